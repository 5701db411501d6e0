"""What every layer does: modes, parameters, gradients that add up, the rule of one backward for each forward."""

import threading
from typing import Any

import numpy as np
import pytest

from kernels.errors import ShapeError
from minidl import nn
from minidl.backends.cpu import CpuBackend


def network(device: Any) -> nn.Sequential:
    return nn.Sequential(
        {
            "conv": nn.Conv2d(2, 3, 3, padding=1, device=device),
            "bn": nn.BatchNorm2d(3, device=device),
            "block": nn.Residual(nn.Conv2d(3, 3, 1, device=device), nn.ReLU(device=device)),
            "drop": nn.Dropout(0.5, device=device),
            "flatten": nn.Flatten(device=device),
            "fc": nn.Linear(48, 4, device=device),
        }
    )


def test_modes_reach_every_layer(cpu) -> None:
    model = network(cpu)
    assert all(module.training for _, module in model.named_modules())
    assert model.eval() is model
    assert not any(module.training for _, module in model.named_modules())
    assert model.train() is model
    assert all(module.training for _, module in model.named_modules())


def test_modules_and_parameters_have_pytorchs_names_and_order(cpu) -> None:
    model = network(cpu)
    assert [name for name, _ in model.named_modules()] == [
        *("", "conv", "bn", "block", "block.0", "block.1", "drop", "flatten", "fc")
    ]
    assert [name for name, _ in model.children()] == ["conv", "bn", "block", "drop", "flatten", "fc"]
    named = list(model.named_parameters())
    assert [name for name, _ in named] == [
        *("conv.weight", "conv.bias", "bn.weight", "bn.bias", "block.0.weight", "block.0.bias"),
        *("fc.weight", "fc.bias"),
    ]
    assert all(a is b for a, (_, b) in zip(model.parameters(), named, strict=True))
    assert [name for name, parameter in named if parameter.decay] == [*("conv.weight", "block.0.weight", "fc.weight")]


def test_calling_is_forward(backend, normal, same_bits) -> None:
    layer, x = nn.Linear(3, 2, device=backend), normal(4, 3)
    assert same_bits(layer(x), layer.forward(x))


def test_gradients_add_up_until_zero_grad(backend, normal, same_bits) -> None:
    model = network(backend).eval()  # the same function each time
    xs, dys = [normal(2, 4, 4, 2) for _ in range(2)], [normal(2, 4) for _ in range(2)]
    assert all(parameter.grad is None for parameter in model.parameters())
    single = []
    for x, dy in zip(xs, dys, strict=True):
        model.zero_grad()
        model.forward(x)
        model.backward(dy)
        single.append([parameter.grad.copy() for parameter in model.parameters()])
    model.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())
    for x, dy in zip(xs, dys, strict=True):
        model.forward(x)
        model.backward(dy)
    for parameter, first, second in zip(model.parameters(), *single, strict=True):
        assert parameter.grad.shape == parameter.value.shape == parameter.shape
        assert same_bits(parameter.grad, first + second)


LAYERS = [
    (lambda d: nn.Conv2d(2, 2, 1, device=d), (1, 3, 3, 2)),
    (lambda d: nn.Linear(2, 2, device=d), (3, 2)),
    (lambda d: nn.BatchNorm1d(2, device=d), (3, 2)),
    (lambda d: nn.BatchNorm2d(2, device=d), (1, 3, 3, 2)),
    (lambda d: nn.ReLU(device=d), (3, 2)),
    (lambda d: nn.Dropout(device=d), (3, 2)),
    (lambda d: nn.MaxPool2d(1, device=d), (1, 3, 3, 2)),
    (lambda d: nn.AvgPool2d(1, device=d), (1, 3, 3, 2)),
    (lambda d: nn.Concat(nn.ReLU(device=d)), (3, 2)),
    (lambda d: nn.Residual(nn.ReLU(device=d)), (3, 2)),
]


@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_each_forward_allows_one_backward(make: Any, shape: Any, backend, normal) -> None:
    layer, x = make(backend), normal(*shape)
    remedy = r"backward: there is no forward pass to go back through; call forward\(x\) first, once for each backward"
    with pytest.raises(RuntimeError, match=remedy):
        layer.backward(x)
    layer.forward(x)
    layer.backward(x)
    with pytest.raises(RuntimeError, match=remedy):
        layer.backward(x)
    layer.forward(x)
    layer.backward(x)


@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_inference_keeps_nothing(make: Any, shape: Any, backend, normal, same_bits) -> None:
    layer, x = make(backend), normal(*shape)
    layer.eval()
    expected = layer.forward(x).copy()
    with nn.inference():
        assert same_bits(layer.forward(x), expected)
    with pytest.raises(RuntimeError, match=r"not inside inference\(\)"):
        layer.backward(x)


def test_inference_ends_with_its_block(cpu) -> None:
    layer, x = nn.ReLU(device=cpu), np.ones((2, 2), np.float32)
    with nn.inference(), nn.inference():
        pass
    layer.forward(x)
    layer.backward(x)
    with pytest.raises(ZeroDivisionError), nn.inference():
        raise ZeroDivisionError
    layer.forward(x)
    layer.backward(x)


def test_inference_is_the_own_affair_of_a_thread(cpu) -> None:
    """As torch.no_grad: somebody may predict while somebody else trains."""
    layer, x = nn.ReLU(device=cpu), np.ones((2, 2), np.float32)
    entered, leave = threading.Event(), threading.Event()

    def predict() -> None:
        with nn.inference():
            entered.set()
            leave.wait(30)

    other = threading.Thread(target=predict)
    other.start()
    try:
        entered.wait(30)
        layer.forward(x)
        layer.backward(x)
        with nn.inference():
            leave.set()
            other.join(30)
        layer.forward(x)
        layer.backward(x)
    finally:
        leave.set()
        other.join(30)


def test_inference_needs_memory_for_two_activations_however_deep() -> None:
    def reserved(keep: bool) -> int:
        backend = CpuBackend(1)
        model = nn.Sequential(*(nn.ReLU(device=backend) for _ in range(12)))
        x = np.ones((256, 1024), np.float32)
        if keep:
            model.forward(x)
        else:
            with nn.inference():
                model.forward(x)
        return backend.arena.reserved_bytes // x.nbytes

    assert reserved(keep=False) == 2
    assert reserved(keep=True) == 12


def test_backward_frees_what_forward_kept() -> None:
    backend = CpuBackend(1)
    model = nn.Sequential(*(nn.ReLU(device=backend) for _ in range(12)))
    x = np.ones((256, 1024), np.float32)
    model.forward(x)
    dx = model.backward(x)
    assert backend.arena.reserved_bytes == 13 * x.nbytes  # each dx but the first takes the place of an activation
    del dx
    again = [backend.empty(x.shape) for _ in range(13)]
    assert backend.arena.reserved_bytes == sum(array.nbytes for array in again)  # all of it had come back


def test_to_the_reference_and_back(cpu, reference, same_bits) -> None:
    model = network("cpu")
    x = np.random.default_rng(0).standard_normal((2, 4, 4, 2))
    model.forward(x.astype(np.float32))
    model.backward(np.ones((2, 4), np.float32))
    before = model.state_dict()
    parameters = list(model.parameters())

    assert model.to("reference") is model
    assert all(module.backend is reference for _, module in model.named_modules())
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(parameter.value.dtype == np.float64 for parameter in parameters)
    assert all(parameter.grad is None for parameter in parameters)
    assert model.bn.running_mean.dtype == np.float64
    assert {name: value.tolist() for name, value in model.state_dict().items()} == {
        name: value.tolist() for name, value in before.items()
    }
    y = model.eval().forward(x)
    assert y.dtype == np.float64

    model.to(cpu)
    after = model.state_dict()
    assert all(same_bits(after[name], value) for name, value in before.items())
    with pytest.raises(TypeError, match="has dtype float64, expected float32"):
        model.forward(x)
    y32 = model.forward(x.astype(np.float32))
    assert np.abs(y32 - y).max() < 1e-5  # both devices hold the same weights


def test_moving_forgets_the_last_forward(cpu) -> None:
    layer = nn.ReLU()
    layer.forward(np.ones((2, 2), np.float32))
    layer.to("reference")
    with pytest.raises(RuntimeError, match="no forward pass"):
        layer.backward(np.ones((2, 2)))


def test_a_refused_forward_or_backward_writes_nothing(backend, normal, same_bits) -> None:
    layer, x, dy = nn.Linear(3, 2, device=backend), normal(4, 3), normal(4, 2)
    layer.forward(x)
    layer.backward(dy)
    before = layer.weight.grad.copy()
    with pytest.raises(ShapeError):
        layer.forward(normal(4, 2))
    layer.forward(x)
    with pytest.raises(ShapeError):
        layer.backward(normal(3, 2))
    assert same_bits(layer.weight.grad, before)


@pytest.mark.parametrize(("make", "shape"), LAYERS[:-1])
def test_a_refused_gradient_can_be_given_again(make: Any, shape: Any, backend, normal) -> None:
    layer, x = make(backend), normal(*shape)
    layer.forward(x)
    with pytest.raises(ShapeError):
        layer.backward(normal(7, 7))
    layer.backward(x)


def test_an_attribute_that_is_set_to_none_is_no_parameter_any_more(backend) -> None:
    layer = nn.Linear(3, 2, device=backend)
    layer.bias = None
    assert list(layer.state_dict()) == ["weight"]
    assert len(list(layer.parameters())) == 1


def test_a_buffer_that_is_assigned_is_the_states(backend, same_bits) -> None:
    layer = nn.BatchNorm1d(3, device=backend).eval()
    layer.running_mean = backend.array(np.array([1.0, 2.0, 3.0]))
    assert not layer.forward(backend.array(np.array([[1.0, 2.0, 3.0]]))).any()
    assert np.array_equal(layer.state_dict()["running_mean"], [1, 2, 3])
