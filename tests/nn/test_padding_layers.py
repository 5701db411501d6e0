"""ConstantPad2d and ZeroPad2d against PyTorch."""

import numpy as np
import pytest

from kernels.errors import ShapeError
from minidl import nn

SIDES = [2, (1, 0, 0, 3), (0, 0, 0, 0), (0, 4, 2, 1)]


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("value", [0.0, -1.5, -np.inf])
def test_padding_is_pytorchs(backend, oracle, passes, torch, normal, same_bits, sides, value) -> None:
    layer = nn.ConstantPad2d(sides, value, device=backend)
    x = normal(2, 3, 4, 5)
    dy = normal(*layer.output_shape(x.shape))
    ours, theirs = passes(layer, x, dy), oracle.run(torch.nn.ConstantPad2d(sides, value), x, dy)
    assert same_bits(ours.y, theirs.y.astype(backend.dtype))
    assert same_bits(ours.dx, theirs.dx.astype(backend.dtype))


def test_zeros_are_a_constant(cpu, normal, same_bits) -> None:
    x = np.ones((2, 3, 4, 5), np.float32)
    assert same_bits(nn.ZeroPad2d((1, 2, 0, 1)).forward(x), nn.ConstantPad2d((1, 2, 0, 1), 0).forward(x))
    assert nn.ZeroPad2d(1).forward(x[:0]).shape == (0, 5, 6, 5)
    assert repr(nn.ZeroPad2d(1)) == "ZeroPad2d((1, 1, 1, 1))"


def test_it_runs_as_kernels_do() -> None:
    layer, x = nn.ZeroPad2d((1, 0, 0, 2), device="emulator"), np.ones((1, 2, 2, 3), np.float32)
    y = layer.forward(x)
    assert y.sum() == x.sum()
    assert layer.backward(y).shape == x.shape


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        ((1, 2), "padding is one number or"),
        (-1, "padding must not be negative"),
        ((0, 0, -1, 0), "padding must not be negative"),
        (1.0, "padding must be a whole number"),
    ],
)
def test_sides_that_cannot_be_are_refused(sides, message) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        nn.ZeroPad2d(sides)


def test_another_shape_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"ZeroPad2d: the input has shape \(2, 3\)"):
        nn.ZeroPad2d(1).forward(np.ones((2, 3), np.float32))
