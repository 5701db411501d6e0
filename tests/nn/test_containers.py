"""Sequential, Residual and Concat. Weights and inputs are small integers: nothing rounds, so equality is exact."""

from typing import Any

import numpy as np
import pytest

from kernels.errors import ShapeError
from minidl import nn


@pytest.fixture
def integers(backend):
    rng = np.random.default_rng(4)
    return lambda *shape: rng.integers(-3, 4, shape).astype(backend.dtype)


def with_integers(model: nn.Module) -> nn.Module:
    rng = np.random.default_rng(5)
    model.load_state_dict({name: rng.integers(-2, 3, value.shape) for name, value in model.state_dict().items()})
    return model


def hold_to_torch(model: nn.Module, twin: Any, oracle, passes, x: np.ndarray, dy: np.ndarray) -> None:
    ours, theirs = passes(model, x, dy), oracle.run(oracle.load(twin, model), x, dy)
    assert np.array_equal(ours.y, theirs.y)
    assert np.array_equal(ours.dx, theirs.dx)
    assert list(ours.grads) == list(theirs.grads)
    assert all(np.array_equal(grad, theirs.grads[name]) for name, grad in ours.grads.items())


def test_sequential_is_pytorchs(backend, integers, oracle, passes) -> None:
    layers = oracle.torch.nn
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, device=backend),
        nn.ReLU(device=backend),
        nn.MaxPool2d(2, device=backend),
        nn.Flatten(device=backend),
        nn.Linear(12, 4, device=backend),
    )
    twin = layers.Sequential(
        layers.Conv2d(2, 3, 3, padding=1), layers.ReLU(), layers.MaxPool2d(2), layers.Flatten(), layers.Linear(12, 4)
    )
    hold_to_torch(with_integers(model), twin, oracle, passes, integers(3, 4, 4, 2), integers(3, 4))


def test_sequential_with_names_inside_a_sequential(backend, integers, oracle, passes) -> None:
    layers = oracle.torch.nn
    model = nn.Sequential(
        {"body": nn.Sequential({"a": nn.Linear(3, 4, device=backend), "act": nn.ReLU(device=backend)})}
        | {"head": nn.Linear(4, 2, device=backend)}
    )
    twin = layers.Sequential()
    twin.add_module("body", layers.Sequential())
    twin.body.add_module("a", layers.Linear(3, 4))
    twin.body.add_module("act", layers.ReLU())
    twin.add_module("head", layers.Linear(4, 2))
    hold_to_torch(with_integers(model), twin, oracle, passes, integers(5, 3), integers(5, 2))


@pytest.mark.parametrize("activation", [False, True])
@pytest.mark.parametrize("downsample", [False, True])
def test_residual_adds_what_went_through_and_around(
    backend, integers, oracle, passes, downsample: bool, activation: bool
) -> None:
    layers = oracle.torch.nn

    class Residual(layers.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = layers.Conv2d(2, 2, 3, padding=1), layers.Conv2d(2, 2, 1)
            self.downsample = layers.Conv2d(2, 2, 1, bias=False) if downsample else None

        def forward(self, x: Any) -> Any:
            y = self.conv2(self.conv1(x).relu()) + (x if self.downsample is None else self.downsample(x))
            return y.relu() if activation else y

    model = nn.Residual(
        {
            "conv1": nn.Conv2d(2, 2, 3, padding=1, device=backend),
            "relu": nn.ReLU(device=backend),
            "conv2": nn.Conv2d(2, 2, 1, device=backend),
        },
        downsample=nn.Conv2d(2, 2, 1, bias=False, device=backend) if downsample else None,
        activation=nn.ReLU(device=backend) if activation else None,
    )
    hold_to_torch(with_integers(model), Residual(), oracle, passes, integers(2, 4, 5, 2), integers(2, 4, 5, 2))


def test_concat_puts_channels_side_by_side(backend, integers, oracle, passes) -> None:
    layers = oracle.torch.nn

    class Concat(layers.Sequential):
        def forward(self, x: Any) -> Any:
            return oracle.torch.cat([branch(x) for branch in self], dim=1)

    model = nn.Concat(
        nn.Conv2d(2, 3, 1, device=backend),
        nn.MaxPool2d(3, stride=1, padding=1, device=backend),
        nn.Sequential(nn.Conv2d(2, 1, 3, padding=1, device=backend), nn.ReLU(device=backend)),
    )
    twin = Concat(
        layers.Conv2d(2, 3, 1),
        layers.MaxPool2d(3, stride=1, padding=1),
        layers.Sequential(layers.Conv2d(2, 1, 3, padding=1), layers.ReLU()),
    )
    hold_to_torch(with_integers(model), twin, oracle, passes, integers(2, 4, 5, 2), integers(2, 4, 5, 6))


def test_containers_in_containers(backend, integers, oracle, passes) -> None:
    """y = 2 x + x side by side with x, through identities: the gradients of all paths are added once each."""
    identity = lambda: nn.Dropout(0.0, device=backend)  # noqa: E731
    model = nn.Concat(nn.Residual(nn.Residual(identity())), identity())
    x, dy = integers(2, 3, 3, 2), integers(2, 3, 3, 4)
    result = passes(model, x, dy)
    assert np.array_equal(result.y, np.concatenate([3 * x, x], axis=-1))
    assert np.array_equal(result.dx, 3 * dy[..., :2] + dy[..., 2:])


def test_shapes_that_do_not_meet_are_refused(backend) -> None:
    x = np.zeros((1, 4, 4, 2), backend.dtype)
    conv = nn.Conv2d(2, 3, 3, device=backend)
    with pytest.raises(ShapeError, match=r"the layers give \(1, 2, 2, 3\), the way around \(1, 4, 4, 2\).*downsample"):
        nn.Residual(conv).forward(x)
    with pytest.raises(ShapeError, match=r"Concat: the branches give \(1, 2, 2, 3\), \(1, 4, 4, 2\); they must agree"):
        nn.Concat(conv, nn.ReLU(device=backend)).forward(x)


def test_sequential_is_a_list_of_its_layers() -> None:
    first, second = nn.Linear(2, 3), nn.ReLU()
    model = nn.Sequential(first, second)
    assert len(model) == 2
    assert list(model) == [first, second]
    assert model[0] is first
    assert model[-1] is second
    assert repr(model) == ("Sequential(\n  (0): Linear(in_features=2, out_features=3, bias=True)\n  (1): ReLU()\n)")


def test_an_empty_sequential_is_the_identity(backend, integers, same_bits) -> None:
    x = integers(2, 3)
    model = nn.Sequential()
    assert same_bits(model.forward(x), x)
    assert same_bits(model.backward(x), x)


def test_what_is_no_layer_is_refused() -> None:
    with pytest.raises(TypeError, match="Sequential: '1' is a function, expected a layer"):
        nn.Sequential(nn.ReLU(), lambda x: x)


def test_containers_compute_where_their_children_do(reference) -> None:
    layer = nn.ReLU(device="reference")
    for container in (nn.Sequential(layer), nn.Residual(layer), nn.Concat(layer)):
        assert container.backend is reference


def test_a_layer_that_is_assigned_takes_the_old_ones_place(backend) -> None:
    model = nn.Sequential({"body": nn.Linear(3, 4, device=backend), "head": nn.Linear(4, 10, device=backend)})
    model.head = nn.Linear(4, 2, device=backend)
    assert model.state_dict()["head.weight"].shape == (2, 4)
    assert model.forward(np.zeros((5, 3), backend.dtype)).shape == (5, 2)


@pytest.mark.parametrize("name", ["steps", "training", "backend", "forward", "a.b", ""])
def test_names_that_cannot_be_a_childs_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"Sequential: .*'{name}'"):
        nn.Sequential({name: nn.ReLU()})


@pytest.mark.parametrize("container", [nn.Residual, nn.Concat])
def test_branches_without_input_gradient_have_none_together(container: Any, backend, integers) -> None:
    """The first layer of a network may be a container; nobody needs its input's gradient either."""
    branch = nn.Conv2d(2, 2, 1, device=backend)
    branch.input_gradient = False
    model = container(branch)
    x = integers(1, 3, 3, 2)
    model.forward(x)
    model.backward(x)
    assert branch.weight.grad is not None


def test_concat_without_branches_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Concat: .*at least one"):
        nn.Concat()
