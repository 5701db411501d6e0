"""The definition of max pooling at the end of a chain of normalizations against PyTorch's autograd."""

from typing import Any

import numpy as np
import pytest

from kernels.batch_statistics import BatchStatistics, GradientSums, Normalization, PendingGradient
from kernels.batchnorm import batchnorm_pending_gradient_reference, batchnorm_statistics_reference
from kernels.pooling import max_pool2d_normalized_backward_reference, max_pool2d_normalized_forward_reference

EPS = 1e-3
WINDOWS: list[tuple[Any, Any, Any, Any, bool]] = [
    ((2, 2), (2, 2), (0, 0), (1, 1), False),
    ((3, 3), (2, 2), (1, 1), (1, 1), False),
    ((3, 2), (1, 2), (1, 1), (2, 3), False),
    ((2, 3), (3, 2), (0, 1), (1, 1), True),
]


def near(ours: np.ndarray, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-11 * np.abs(theirs).max())


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("relu", "affine"), [(True, True), (False, True), (True, False)])
def test_it_has_pytorchs_outputs_and_gradients(window: Any, relu: bool, affine: bool, rng) -> None:
    torch = pytest.importorskip("torch")
    x = rng.normal(2, 3, (4, 9, 11, 3))
    gamma, beta = (rng.normal(1, 0.5, 3) if affine else None for _ in range(2))
    t = {"x": np.moveaxis(x, -1, 1)} | ({"gamma": gamma, "beta": beta} if affine else {})
    t = {name: torch.from_numpy(np.array(value, order="C")).requires_grad_() for name, value in t.items()}
    a = torch.nn.functional.batch_norm(t["x"], None, None, t.get("gamma"), t.get("beta"), training=True, eps=EPS)
    pooled = torch.nn.functional.max_pool2d(a.relu() if relu else a, *window, return_indices=True)
    dy = rng.standard_normal(pooled[0].shape)
    pooled[0].backward(torch.from_numpy(dy))

    before = Normalization(batchnorm_statistics_reference(x, EPS), gamma, beta, relu)
    y, index = max_pool2d_normalized_forward_reference(x, before, *window)
    near(np.moveaxis(y, -1, 1), pooled[0].detach().numpy())
    np.testing.assert_array_equal(np.moveaxis(index, -1, 1), pooled[1].numpy())
    given = np.moveaxis(dy, 1, -1), index, x.shape, *window, x, before
    g, sums = max_pool2d_normalized_backward_reference(*given)
    if affine:
        near(sums.dgamma, t["gamma"].grad.numpy())
        near(sums.dbeta, t["beta"].grad.numpy())
    # What it leaves for the step before: that step's own gradient of x is PyTorch's.
    dx = batchnorm_pending_gradient_reference(PendingGradient(g, x, before._replace(relu=False), sums))
    near(np.moveaxis(dx, -1, 1), t["x"].grad.numpy())


def plain(c: int, relu: bool = True) -> Normalization:
    zeros, ones = np.zeros(c), np.ones(c)
    return Normalization(BatchStatistics(zeros, zeros, ones, ones), None, None, relu)


def test_a_window_that_relu_stops_is_0_and_its_gradient_goes_nowhere() -> None:
    x = np.array([[-1.0, -2], [-3, -0.5]]).reshape(1, 2, 2, 1)
    window = WINDOWS[0]
    y, index = max_pool2d_normalized_forward_reference(x, plain(1), *window)
    assert (y.item(), index.item()) == (0, 0)  # all four are 0: the first
    g, sums = max_pool2d_normalized_backward_reference(y + 5, index, x.shape, *window, x, plain(1))
    assert not g.any()
    assert all(not part.any() for part in sums)
    y, index = max_pool2d_normalized_forward_reference(x, plain(1, relu=False), *window)
    assert (y.item(), index.item()) == (-0.5, 3)
    g, _ = max_pool2d_normalized_backward_reference(y, index, x.shape, *window, x, plain(1, relu=False))
    assert g.ravel().tolist() == [0, 0, 0, -0.5]


def test_padding_is_none_of_the_activation_and_a_nan_passes() -> None:
    x = np.full((1, 3, 3, 1), -2.0)
    window = (3, 3), (1, 1), (1, 1), (1, 1), False
    y, _ = max_pool2d_normalized_forward_reference(x, plain(1, relu=False), *window)
    assert (y == -2).all()
    x[0, 0, 0, 0] = np.nan
    y, index = max_pool2d_normalized_forward_reference(x, plain(1), *window)
    assert np.isnan(y[0, :2, :2]).all()
    assert not index[0, :2, :2].any()
    assert not y[0, 2].any()
    g, sums = max_pool2d_normalized_backward_reference(np.ones(y.shape), index, x.shape, *window, x, plain(1))
    assert g[0, 0, 0, 0] == 4  # of the windows that it is the maximum of
    assert np.isnan(sums.slope).all()


def test_no_images() -> None:
    empty, window = np.empty((0, 4, 4, 2)), WINDOWS[0]
    y, index = max_pool2d_normalized_forward_reference(empty, plain(2), *window)
    assert y.shape == index.shape == (0, 2, 2, 2)
    g, sums = max_pool2d_normalized_backward_reference(y, index, empty.shape, *window, empty, plain(2))
    assert g.shape == empty.shape
    assert isinstance(sums, GradientSums)
    assert not np.array(sums).any()
