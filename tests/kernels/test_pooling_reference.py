import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from kernels.pooling import (
    avg_pool2d_backward_reference,
    avg_pool2d_forward_reference,
    global_avg_pool2d_backward_reference,
    global_avg_pool2d_forward_reference,
    max_pool2d_backward_reference,
    max_pool2d_forward_reference,
)
from minidl.lab.gradcheck import check_gradient

NAN, INF = np.nan, np.inf

# (n, h, w, c), kernel, stride, padding
CASES = [
    ((2, 8, 8, 3), (2, 2), (2, 2), (0, 0)),
    ((1, 7, 11, 5), (3, 3), (2, 2), (1, 1)),
    ((3, 5, 7, 1), (2, 3), (1, 2), (1, 0)),
    ((2, 13, 5, 2), (3, 2), (5, 1), (0, 1)),  # the stride leaves elements out
    ((1, 1, 1, 2), (3, 3), (1, 1), (1, 1)),
    ((2, 4, 3, 2), (4, 3), (1, 1), (0, 0)),  # one window
    ((2, 6, 6, 2), (5, 5), (1, 1), (2, 2)),
]


def image(values) -> np.ndarray:
    """(1, h, w, 1) of a nested list."""
    return np.array(values, float)[None, :, :, None]


def channels_first(torch, x, *, requires_grad: bool):
    return torch.tensor(x.transpose(0, 3, 1, 2).copy(), requires_grad=requires_grad)


def test_max_by_hand() -> None:
    x = image([[1, 5, 2], [4, 3, 9], [8, 7, 6]])
    y, index = max_pool2d_forward_reference(x, (2, 2), (1, 1), (0, 0))
    assert_array_equal(y[0, :, :, 0], [[5, 9], [8, 9]])
    assert_array_equal(index[0, :, :, 0], [[1, 5], [6, 5]])
    assert index.dtype == np.int32

    dx = max_pool2d_backward_reference(image([[1, 10], [100, 1000]]), index, x.shape, (2, 2), (1, 1), (0, 0))
    assert_array_equal(dx[0, :, :, 0], [[0, 1, 0], [0, 0, 1010], [100, 0, 0]])


def test_ties_go_to_the_first_in_row_major_order() -> None:
    _, index = max_pool2d_forward_reference(image([[0, 7, 7], [7, 0, 7], [7, 7, 7]]), (3, 3), (1, 1), (0, 0))
    assert index.item() == 1
    _, index = max_pool2d_forward_reference(image([[-0.0, 0.0], [0.0, -0.0]]), (2, 2), (1, 1), (0, 0))
    assert index.item() == 0


@pytest.mark.parametrize("value", [-1.0, -INF])
def test_padding_never_is_the_maximum(value: float) -> None:
    y, index = max_pool2d_forward_reference(np.full((1, 3, 3, 1), value), (3, 3), (1, 1), (1, 1))
    assert_array_equal(y, np.full((1, 3, 3, 1), value))
    assert_array_equal(index[0, :, :, 0], [[0, 0, 1], [0, 0, 1], [3, 3, 4]])  # the first real element of each window


def test_a_nan_wins_and_the_last_one_is_its_place() -> None:
    x = image([[1, NAN, 2], [NAN, 5, 3], [0, 1, INF]])
    y, index = max_pool2d_forward_reference(x, (2, 2), (1, 1), (0, 0))
    assert_array_equal(y[0, :, :, 0], [[NAN, NAN], [NAN, INF]])
    assert_array_equal(index[0, :, :, 0], [[3, 1], [3, 8]])


def test_average_by_hand() -> None:
    x = image([[1, 2], [3, 6]])
    all_taps = avg_pool2d_forward_reference(x, (2, 2), (2, 2), (1, 1), True)
    real_taps = avg_pool2d_forward_reference(x, (2, 2), (2, 2), (1, 1), False)
    assert_array_equal(all_taps[0, :, :, 0], [[0.25, 0.5], [0.75, 1.5]])
    assert_array_equal(real_taps, x)

    dy = image([[4, 8], [12, 16]])
    assert_array_equal(avg_pool2d_backward_reference(dy, x.shape, (2, 2), (2, 2), (1, 1), True), dy / 4)
    assert_array_equal(avg_pool2d_backward_reference(dy, x.shape, (2, 2), (2, 2), (1, 1), False), dy)


def test_global_average_by_hand() -> None:
    x = np.arange(12.0).reshape(1, 2, 3, 2)
    assert_array_equal(global_avg_pool2d_forward_reference(x), [[5, 6]])
    dx = global_avg_pool2d_backward_reference(np.array([[6.0, 12.0]]), x.shape)
    assert_array_equal(dx, np.broadcast_to([1.0, 2.0], x.shape))


@pytest.mark.parametrize(("shape", "kernel", "stride", "padding"), CASES)
@pytest.mark.parametrize("values", ["distinct", "tied", "not finite"])
def test_max_agrees_with_pytorch(torch, rng, shape, kernel, stride, padding, values: str) -> None:
    x = rng.standard_normal(shape)
    if values == "tied":
        x = rng.integers(-2, 1, shape).astype(float)
    if values == "not finite":
        x = np.where(rng.random(shape) < 0.3, rng.choice([NAN, INF, -INF], shape), x)
    tx = channels_first(torch, x, requires_grad=True)
    ty, place = torch.nn.functional.max_pool2d(tx, kernel, stride, padding, return_indices=True)
    y, index = max_pool2d_forward_reference(x, kernel, stride, padding)
    dy = rng.standard_normal(y.shape)
    ty.backward(channels_first(torch, dy, requires_grad=False))

    assert_array_equal(y, ty.detach().permute(0, 2, 3, 1))
    assert_array_equal(index, place.permute(0, 2, 3, 1))
    dx = max_pool2d_backward_reference(dy, index, shape, kernel, stride, padding)
    assert_allclose(dx, tx.grad.permute(0, 2, 3, 1), rtol=1e-14, atol=1e-14)  # sums of up to 25, in another order


@pytest.mark.parametrize(("shape", "kernel", "stride", "padding"), CASES)
@pytest.mark.parametrize("count_include_pad", [True, False])
def test_average_agrees_with_pytorch(torch, rng, shape, kernel, stride, padding, count_include_pad: bool) -> None:
    x = rng.standard_normal(shape)
    tx = channels_first(torch, x, requires_grad=True)
    ty = torch.nn.functional.avg_pool2d(tx, kernel, stride, padding, count_include_pad=count_include_pad)
    y = avg_pool2d_forward_reference(x, kernel, stride, padding, count_include_pad)
    dy = rng.standard_normal(y.shape)
    ty.backward(channels_first(torch, dy, requires_grad=False))

    close = {"rtol": 1e-14, "atol": 1e-14}  # sums of up to 25 numbers near 1, in another order
    assert_allclose(y, ty.detach().permute(0, 2, 3, 1), **close)
    dx = avg_pool2d_backward_reference(dy, shape, kernel, stride, padding, count_include_pad)
    assert_allclose(dx, tx.grad.permute(0, 2, 3, 1), **close)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 5, 7, 3), (3, 1, 13, 2)])
def test_global_average_agrees_with_pytorch(torch, rng, shape) -> None:
    x = rng.standard_normal(shape)
    tx = channels_first(torch, x, requires_grad=True)
    ty = torch.nn.functional.adaptive_avg_pool2d(tx, 1).flatten(1)
    dy = rng.standard_normal(ty.shape)
    ty.backward(torch.tensor(dy))
    assert_allclose(global_avg_pool2d_forward_reference(x), ty.detach(), rtol=1e-13, atol=1e-14)
    assert_allclose(global_avg_pool2d_backward_reference(dy, shape), tx.grad.permute(0, 2, 3, 1), rtol=1e-15)


@pytest.mark.parametrize(("shape", "kernel", "stride", "padding"), CASES)
def test_gradients(rng, shape, kernel, stride, padding) -> None:
    # Distinct values, one apart in random order: no tie is near.
    x = rng.permutation(np.arange(float(np.prod(shape)))).reshape(shape)
    y, index = max_pool2d_forward_reference(x, kernel, stride, padding)
    dy = rng.standard_normal(y.shape)
    check_gradient(
        "max_pool2d",
        lambda x: max_pool2d_forward_reference(x, kernel, stride, padding)[0],
        {"x": x},
        {"x": max_pool2d_backward_reference(dy, index, shape, kernel, stride, padding)},
        dy,
    )
    for count_include_pad in (True, False):
        check_gradient(
            "avg_pool2d",
            lambda x, include=count_include_pad: avg_pool2d_forward_reference(x, kernel, stride, padding, include),
            {"x": x},
            {"x": avg_pool2d_backward_reference(dy, shape, kernel, stride, padding, count_include_pad)},
            dy,
        )
    dy = rng.standard_normal((shape[0], shape[3]))
    check_gradient(
        "global_avg_pool2d",
        global_avg_pool2d_forward_reference,
        {"x": x},
        {"x": global_avg_pool2d_backward_reference(dy, shape)},
        dy,
    )


def test_averages_spread_a_nan_over_its_windows_only() -> None:
    x = np.zeros((2, 4, 4, 2))
    x[0, 0, 0, 0] = NAN
    y = avg_pool2d_forward_reference(x, (2, 2), (1, 1), (0, 0), True)
    assert np.argwhere(np.isnan(y)).tolist() == [[0, 0, 0, 0]]
    assert_array_equal(np.isnan(global_avg_pool2d_forward_reference(x)), [[True, False], [False, False]])


def test_no_images() -> None:
    shape = (0, 4, 4, 3)
    x = np.zeros(shape)
    y, index = max_pool2d_forward_reference(x, (2, 2), (2, 2), (0, 0))
    assert y.shape == index.shape == (0, 2, 2, 3)
    assert max_pool2d_backward_reference(y, index, shape, (2, 2), (2, 2), (0, 0)).shape == shape
    assert avg_pool2d_forward_reference(x, (2, 2), (2, 2), (0, 0), False).shape == y.shape
    assert avg_pool2d_backward_reference(y, shape, (2, 2), (2, 2), (0, 0), False).shape == shape
    assert global_avg_pool2d_forward_reference(x).shape == (0, 3)
    assert global_avg_pool2d_backward_reference(np.zeros((0, 3)), shape).shape == shape
