import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from kernels.softmax import (
    log_softmax_backward_reference,
    log_softmax_forward_reference,
    softmax_backward_reference,
    softmax_forward_reference,
)
from minidl.lab.gradcheck import check_gradient

NAN, INF = np.nan, np.inf
KINDS = {
    "softmax": (softmax_forward_reference, softmax_backward_reference),
    "log_softmax": (log_softmax_forward_reference, log_softmax_backward_reference),
}
SHAPES = [(1, 1), (3, 2), (7, 10), (2, 3, 5), (6,), (2, 1000)]
HOSTILE = np.array(
    [[-INF, 1, 2], [-INF, -INF, 2], [-INF] * 3, [INF, 0, 0], [INF, -INF, 0], [INF] * 3, [NAN, 0, 0], [NAN] * 3]
)


def test_by_hand() -> None:
    x = np.array([[math.log(3), 0], [7, 7]])
    assert_allclose(softmax_forward_reference(x), [[0.75, 0.25], [0.5, 0.5]], rtol=1e-15)
    assert_allclose(log_softmax_forward_reference(x), np.log([[0.75, 0.25], [0.5, 0.5]]), rtol=1e-15)
    dy = np.array([[4.0, 0]])
    assert_allclose(softmax_backward_reference(dy, np.array([[0.75, 0.25]])), [[0.75, -0.75]], rtol=1e-15)
    assert_allclose(log_softmax_backward_reference(dy, np.log([[0.75, 0.25]])), [[1, -1]], rtol=1e-15)


def test_huge_logits_are_exact() -> None:
    x = np.array([[1e4, -1e4], [1e308, 1e308], [-1e308, -1e308]])
    assert_array_equal(softmax_forward_reference(x), [[1, 0], [0.5, 0.5], [0.5, 0.5]])
    assert_array_equal(log_softmax_forward_reference(x), [[0, -2e4], *[[-math.log(2)] * 2] * 2])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("mean", "scale"), [(0, 1), (1e4, 3), (-1e4, 100)])
def test_agrees_with_pytorch(torch, rng, kind: str, shape, mean: float, scale: float) -> None:
    forward, backward = KINDS[kind]
    x, dy = mean + scale * rng.standard_normal(shape), rng.standard_normal(shape)
    tx = torch.tensor(x, requires_grad=True)
    ty = getattr(torch, kind)(tx, -1)
    ty.backward(torch.tensor(dy))
    y = forward(x)
    assert_allclose(y, ty.detach(), rtol=1e-13, atol=1e-300)
    assert_allclose(backward(dy, y), tx.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_pytorch_on_infinite_logits(torch, rng, kind: str) -> None:
    forward, backward = KINDS[kind]
    dy = rng.standard_normal(HOSTILE.shape)
    tx = torch.tensor(HOSTILE, requires_grad=True)
    ty = getattr(torch, kind)(tx, -1)
    ty.backward(torch.tensor(dy))
    y = forward(HOSTILE)
    assert_allclose(y, ty.detach(), rtol=1e-15)
    assert_allclose(backward(dy, y), tx.grad, rtol=1e-14, atol=1e-15)
    assert np.isnan(y[2:]).all()
    assert not np.isnan(y[:2]).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 4), (3, 1)], ids=str)
def test_gradients(rng, kind: str, shape) -> None:
    forward, backward = KINDS[kind]
    x, dy = rng.standard_normal(shape), rng.standard_normal(shape)
    check_gradient(kind, forward, {"x": x}, {"x": backward(dy, forward(x))}, dy)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_at_all(kind: str, shape) -> None:
    forward, backward = KINDS[kind]
    x = np.zeros(shape)
    assert forward(x).shape == backward(x, x).shape == shape
