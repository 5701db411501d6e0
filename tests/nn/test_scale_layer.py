"""Scale against PyTorch's autograd, alone and as SkipInit at the end of a residual branch."""

import re
from typing import Any

import numpy as np
import pytest

from kernels.errors import ShapeError
from minidl import nn, optim


def twin(oracle, initial: float = 0.0) -> Any:
    """What a PyTorch user writes."""
    torch = oracle.torch

    class Scale(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(float(initial)))

        def forward(self, x: Any) -> Any:
            return self.weight * x

    return Scale()


@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 4, 5)])
@pytest.mark.parametrize("initial", [0.0, 1.0, -0.3])
def test_scale_is_pytorchs(backend, normal, oracle, passes, within, unit, shape: Any, initial: float) -> None:
    layer = nn.Scale(initial, device=backend)
    x, dy = normal(*shape), normal(*shape)
    ours, theirs = passes(layer, x, dy), oracle.run(oracle.load(twin(oracle), layer), x, dy)
    within(ours.y, theirs.y, unit * np.abs(theirs.y), "y")
    within(ours.dx, theirs.dx, unit * np.abs(theirs.dx), "dx")
    within(ours.grads["weight"], theirs.grads["weight"], x.size * unit * np.abs(x * dy).sum(), "weight")


def test_a_residual_block_with_skipinit_is_the_identity_at_first_and_learns(backend, normal) -> None:
    block = nn.Residual(nn.Conv2d(3, 3, 3, padding=1, device=backend), nn.Scale(device=backend))
    x, dy = normal(2, 5, 5, 3), normal(2, 5, 5, 3)
    assert np.array_equal(block(x), x)
    assert np.array_equal(block.backward(dy), dy)
    (scale,) = [p for name, p in block.named_parameters() if name == "1.weight"]
    assert scale.shape == ()
    assert scale.grad != 0
    optim.SGD(block.parameters(), lr=0.1).step()
    assert not np.array_equal(block(x), x)


def test_weight_decay_leaves_it_out_and_the_state_has_pytorchs_shape(backend) -> None:
    layer = nn.Scale(0.5, device=backend)
    assert not layer.weight.decay
    state = layer.state_dict()
    assert [(name, value.shape, float(value)) for name, value in state.items()] == [("weight", (), 0.5)]
    layer.load_state_dict({"weight": np.array(0.25)})
    assert layer.weight.value == 0.25
    with pytest.raises(ValueError, match=re.escape("weight has shape (1,), expected ()")):
        layer.load_state_dict({"weight": np.array([0.25])})
    assert repr(layer) == "Scale(initial=0.5)"
    assert repr(nn.Scale()) == "Scale()"


def test_what_makes_no_sense_is_refused(backend, normal) -> None:
    with pytest.raises(TypeError, match="Scale: initial must be a number, got '0'"):
        nn.Scale("0")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Scale: initial must be a finite number, got nan"):
        nn.Scale(float("nan"))
    layer = nn.Scale(device=backend)
    with pytest.raises(RuntimeError, match=r"Scale\.backward: there is no forward pass"):
        layer.backward(normal(3))
    layer(normal(3, 4))
    with pytest.raises(ShapeError, match=r"Scale: the gradient has shape \(4, 3\), expected \(3, 4\)"):
        layer.backward(normal(4, 3))
