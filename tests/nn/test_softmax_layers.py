"""Softmax and LogSoftmax against PyTorch, and what they refuse."""

from typing import Any

import numpy as np
import pytest

from kernels.errors import ShapeError
from minidl import nn

LAYERS = ["Softmax", "LogSoftmax"]
HOSTILE = [[-np.inf, 1, 2], [-np.inf] * 3, [np.inf, 0, 0], [np.nan, 0, 0], [1e4, -1e4, 0], [1e4, 1e4, 1e4]]


def pytorchs(torch: Any, name: str, x: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(y, dx) over the last axis, in float64."""
    inputs = torch.tensor(x.astype(np.float64), requires_grad=True)
    y = getattr(torch.nn, name)(dim=-1)(inputs)
    y.backward(torch.tensor(dy.astype(np.float64)))
    return y.detach().numpy(), inputs.grad.numpy()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shape", [(6, 10), (1, 1), (7,), (2, 3, 4, 5)], ids=str)
def test_they_are_pytorchs(backend, normal, torch, within, unit, name: str, shape: Any) -> None:
    x, dy = 3 * normal(*shape), normal(*shape)
    layer = getattr(nn, name)(device=backend)
    y = layer.forward(x)
    dx = layer.backward(dy)
    expected, dexpected = pytorchs(torch, name, x, dy)
    # Each exponent is a difference of numbers no larger than `size`, which is the relative error of a probability; the
    # sum has as many terms as there are classes.
    size, classes = 2 * np.abs(x).max() + np.log(shape[-1]), shape[-1]
    error = (classes + 8) * unit * (1 + size)
    within(y, expected, error * (expected if name == "Softmax" else 1), "y")
    absolute = np.abs(dy).sum(axis=-1, keepdims=True)
    within(dx, dexpected, 4 * error * absolute, "dx")


@pytest.mark.parametrize("name", LAYERS)
def test_hostile_rows_are_pytorchs(backend, normal, torch, name: str) -> None:
    x = np.array(HOSTILE, backend.dtype)
    dy = normal(*x.shape)
    layer = getattr(nn, name)(device=backend)
    expected, dexpected = pytorchs(torch, name, x, dy)
    tolerance = {"rtol": 1e-6, "atol": 1e-6}
    np.testing.assert_allclose(layer.forward(x), expected, **tolerance)
    np.testing.assert_allclose(layer.backward(dy), dexpected, **tolerance)


def test_the_channels_of_an_image_are_pytorchs_first_axis_after_the_batch(backend, normal, oracle, passes) -> None:
    x, dy = normal(2, 3, 5, 4), normal(2, 3, 5, 4)
    ours, theirs = passes(nn.Softmax(device=backend), x, dy), oracle.run(oracle.torch.nn.Softmax(dim=1), x, dy)
    np.testing.assert_allclose(ours.y, theirs.y, rtol=1e-5)
    np.testing.assert_allclose(ours.dx, theirs.dx, rtol=1e-5, atol=1e-6)


def test_the_logarithm_and_the_loss_agree(backend, normal) -> None:
    """Cross-entropy is minus the logarithm at the target."""
    logits, targets = 5 * normal(6, 4), np.array([0, 1, 2, 3, 0, 1])
    losses = nn.CrossEntropyLoss(reduction="none", device=backend).forward(logits, targets)
    y = nn.LogSoftmax(device=backend).forward(logits)
    np.testing.assert_allclose(losses, -y[np.arange(6), targets], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_an_empty_batch_passes(backend, passes, name: str) -> None:
    x = np.empty((0, 5), backend.dtype)
    result = passes(getattr(nn, name)(device=backend), x, x)
    assert result.y.shape == result.dx.shape == x.shape


@pytest.mark.parametrize("name", LAYERS)
def test_what_does_not_fit_is_refused(backend, name: str) -> None:
    kind = getattr(nn, name)
    for dim in (1, 0, None, True, "channels"):
        with pytest.raises(ValueError, match=f"{name}: dim is {dim!r}, expected -1, the last axis"):
            kind(dim)
    with pytest.raises(ShapeError, match=rf"{name}: the input has shape \(\), expected \(..., c\)"):
        kind(device=backend).forward(np.array(1, backend.dtype))
    layer = kind(device=backend)
    layer.forward(np.zeros((2, 3), backend.dtype))
    with pytest.raises(ShapeError, match=rf"{name}: the gradient has shape \(3, 2\), expected \(2, 3\)"):
        layer.backward(np.zeros((3, 2), backend.dtype))


def test_they_print_their_axis() -> None:
    assert [repr(nn.Softmax()), repr(nn.LogSoftmax())] == ["Softmax(dim=-1)", "LogSoftmax(dim=-1)"]
