"""The definition of convolution in a chain of normalizations against PyTorch's autograd through the layers."""

from typing import Any, NamedTuple

import numpy as np
import pytest

from kernels.batch_statistics import BatchStatistics, GradientSums, Normalization, PendingGradient
from kernels.batchnorm import batchnorm_gradient_sums_reference, batchnorm_statistics_reference
from kernels.conv import (
    conv2d_normalized_backward_input_reference,
    conv2d_normalized_backward_weight_reference,
    conv2d_normalized_forward_reference,
    conv2d_normalized_statistics_reference,
)

torch = pytest.importorskip("torch")
EPS = 1e-3
WINDOWS = [((1, 1), (1, 1)), ((2, 1), (0, 2)), ((3, 2), (2, 1))]


class Chain(NamedTuple):
    """Normalization, ReLU, convolution, normalization and ReLU, by us and by PyTorch."""

    x: np.ndarray
    w: np.ndarray
    before: Normalization
    y: np.ndarray
    behind: Normalization
    dy: np.ndarray
    tensors: dict[str, Any]
    gradients: dict[str, np.ndarray]


def chain(rng: np.random.Generator, stride: Any, padding: Any, relu: bool, affine: bool) -> Chain:
    x, w = rng.normal(2, 3, (4, 7, 6, 3)), rng.standard_normal((3, 2, 3, 5))
    numbers = [rng.normal(1, 0.5, c) if affine else None for c in (3, 3, 5, 5)]
    tensors = {"x": np.moveaxis(x, -1, 1), "w": w.transpose(3, 2, 0, 1)}
    tensors |= {name: n for name, n in zip(("g1", "b1", "g2", "b2"), numbers, strict=True) if n is not None}
    t = {name: torch.from_numpy(np.array(value, order="C")).requires_grad_() for name, value in tensors.items()}

    def normalized(tensor: Any, number: int) -> Any:
        parameters = t.get(f"g{number}"), t.get(f"b{number}")
        y = torch.nn.functional.batch_norm(tensor, None, None, *parameters, training=True, eps=EPS)
        return y.relu() if relu else y

    a = normalized(t["x"], 1)
    raw = torch.nn.functional.conv2d(a, t["w"], None, stride, padding)
    a.retain_grad(), raw.retain_grad()
    end = normalized(raw, 2)
    dy = rng.standard_normal(end.shape)
    end.backward(torch.from_numpy(dy))
    gradients = {name: tensor.grad.numpy() for name, tensor in (*t.items(), ("a", a), ("raw", raw))}
    before = Normalization(batchnorm_statistics_reference(x, EPS), numbers[0], numbers[1], relu)
    y = conv2d_normalized_forward_reference(x, before, w, stride, padding)
    behind = Normalization(conv2d_normalized_statistics_reference(y, EPS), numbers[2], numbers[3], relu)
    last = np.moveaxis(dy, 1, -1)
    return Chain(x, w, before, y, behind, last, {"raw": np.moveaxis(raw.detach().numpy(), 1, -1)}, gradients)


def pending(c: Chain) -> PendingGradient:
    return PendingGradient(c.dy, c.y, c.behind, batchnorm_gradient_sums_reference(c.y, c.dy, c.behind))


def near(ours: np.ndarray, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-11 * np.abs(theirs).max())


@pytest.mark.parametrize(("stride", "padding"), WINDOWS)
@pytest.mark.parametrize(("relu", "affine"), [(True, True), (False, True), (True, False)])
def test_a_chain_has_pytorchs_outputs_and_gradients(stride: Any, padding: Any, relu: bool, affine: bool, rng) -> None:
    c = chain(rng, stride, padding, relu, affine)
    near(c.y, c.tensors["raw"])
    rows = c.y.reshape(-1, 5)
    near(c.behind.statistics.shift + c.behind.statistics.delta, rows.mean(axis=0))
    near(c.behind.statistics.inv_std, 1 / np.sqrt(rows.var(axis=0) + EPS))

    dy = pending(c)
    dw = conv2d_normalized_backward_weight_reference(c.x, c.before, dy, c.w.shape, stride, padding)
    near(dw, c.gradients["w"].transpose(2, 3, 1, 0))
    g, sums = conv2d_normalized_backward_input_reference(dy, c.w, c.x.shape, stride, padding, c.x, c.before)
    of_activation = np.moveaxis(c.gradients["a"], 1, -1)
    plain, none = conv2d_normalized_backward_input_reference(dy, c.w, c.x.shape, stride, padding, None, None)
    near(plain, of_activation)
    assert none is None
    if affine:
        near(sums.dgamma, c.gradients["g1"])
        near(sums.dbeta, c.gradients["b1"])
    # What it leaves for the step before: that step's own gradient of x is PyTorch's.
    again = PendingGradient(g, c.x, c.before._replace(relu=False), sums)
    identity = np.eye(3)[None, None]
    dx, _ = conv2d_normalized_backward_input_reference(again, identity, c.x.shape, (1, 1), (0, 0), None, None)
    near(dx, np.moveaxis(c.gradients["x"], 1, -1))


def test_the_paddings_zeros_are_of_the_activation(rng) -> None:
    """An activation that is 5 everywhere meets zeros around it, not what normalization would make of zeros."""
    x, w = rng.standard_normal((2, 3, 3, 1)), np.ones((3, 3, 1, 1))
    statistics = batchnorm_statistics_reference(x, EPS)
    before = Normalization(statistics, np.zeros(1), np.full(1, 5.0), True)
    y = conv2d_normalized_forward_reference(x, before, w, (1, 1), (1, 1))
    assert y[0, ..., 0].tolist() == [[20, 30, 20], [30, 45, 30], [20, 30, 20]]


def test_without_a_normalization_before_it_is_the_convolution(rng) -> None:
    from kernels.conv import conv2d_forward_reference

    x, w = rng.standard_normal((2, 5, 4, 3)), rng.standard_normal((3, 3, 3, 2))
    y = conv2d_normalized_forward_reference(x, None, w, (1, 1), (1, 1))
    assert np.array_equal(y, conv2d_forward_reference(x, w, None, (1, 1), (1, 1)))


def test_no_images_and_a_nan() -> None:
    ones = np.ones(2)
    statistics = BatchStatistics(ones, ones, ones, ones)
    before = Normalization(statistics, None, None, True)
    empty, w = np.empty((0, 3, 3, 2)), np.ones((3, 3, 2, 2))
    assert conv2d_normalized_forward_reference(empty, before, w, (1, 1), (1, 1)).shape == (0, 3, 3, 2)
    dy = PendingGradient(empty, empty, before, GradientSums(None, None, ones, ones))
    dw = conv2d_normalized_backward_weight_reference(empty, before, dy, w.shape, (1, 1), (1, 1))
    assert not dw.any()
    x = np.zeros((1, 5, 5, 2))
    x[0, 0, 0, 1] = np.nan
    y = conv2d_normalized_forward_reference(x, before, w, (1, 1), (1, 1))
    assert np.isnan(y[0, :2, :2]).all()
    assert np.isfinite(y[0, 2:]).all()
