"""Pooling windows that PyTorch's users know: rounded up, dilated. The definition, against PyTorch over a grid."""

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from kernels.errors import ShapeError
from kernels.pooling import (
    avg_pool2d_backward_reference,
    avg_pool2d_forward_reference,
    max_pool2d_backward_reference,
    max_pool2d_forward_reference,
)
from kernels.window import output_size, pooled_size
from minidl.lab.gradcheck import check_gradient

ONE, NONE = (1, 1), (0, 0)


def row(values) -> np.ndarray:
    """(1, 1, w, 1)."""
    return np.array(values, float)[None, None, :, None]


def test_the_last_window_may_end_beyond_the_image() -> None:
    x, window = row([1, 2, 3, 4, 5]), ((1, 2), (1, 2), NONE)
    y, index = max_pool2d_forward_reference(x, *window, ceil_mode=True)
    assert_array_equal(y, row([2, 4, 5]))
    assert_array_equal(index, row([1, 3, 4]))
    assert_array_equal(max_pool2d_forward_reference(x, *window)[0], row([2, 4]))
    dy = row([10, 20, 30])
    assert_array_equal(
        max_pool2d_backward_reference(dy, index, x.shape, *window, ceil_mode=True), row([0, 10, 0, 20, 30])
    )
    for counted in (True, False):  # there is no padding: what is beyond never counts
        assert_array_equal(avg_pool2d_forward_reference(x, *window, counted, True), row([1.5, 3.5, 5]))
        dx = avg_pool2d_backward_reference(dy, x.shape, *window, counted, True)
        assert_array_equal(dx, row([5, 5, 10, 10, 30]))


def test_padding_counts_but_not_what_is_beyond_it() -> None:
    """Windows of 3 at -1, 1, 3 over 4 elements; the last holds an element and one of padding."""
    x, window = row([3, 6, 12, 24]), ((1, 3), (1, 2), (0, 1))
    assert_array_equal(avg_pool2d_forward_reference(x, *window, True, True), row([3, 14, 12]))
    assert_array_equal(avg_pool2d_forward_reference(x, *window, False, True), row([4.5, 14, 24]))


def test_a_window_that_would_begin_in_the_padding_is_dropped() -> None:
    assert output_size(5, 2, 2, 1, ceil_mode=True) == 3  # windows at -1, 1, 3; not at 5
    assert output_size(6, 2, 2, 1, ceil_mode=True) == 4
    assert output_size(2, 3, 2, 0, ceil_mode=True) == 1  # larger than the axis
    with pytest.raises(ShapeError, match="a kernel of 4 does not fit an axis of 2 elements with padding 0"):
        output_size(2, 4, 2, 0, ceil_mode=True)


def test_dilated_taps_by_hand() -> None:
    x = row([5, 9, 1, 2, 7, 3])
    y, index = max_pool2d_forward_reference(x, (1, 2), ONE, NONE, (1, 3))
    assert_array_equal(y, row([5, 9, 3]))
    assert_array_equal(index, row([0, 1, 5]))
    dx = max_pool2d_backward_reference(row([1, 2, 4]), index, x.shape, (1, 2), ONE, NONE, (1, 3))
    assert_array_equal(dx, row([1, 2, 0, 0, 0, 4]))


def test_ties_and_minus_infinity_among_dilated_taps() -> None:
    x = np.full((1, 5, 5, 1), -np.inf)
    y, index = max_pool2d_forward_reference(x, (3, 3), (2, 2), ONE, (2, 2))
    assert_array_equal(y, np.full((1, 2, 2, 1), -np.inf))
    assert_array_equal(index[0, :, :, 0], [[6, 6], [6, 6]])  # the first real tap of each window


def test_a_window_of_padding_alone_is_refused() -> None:
    """PyTorch gives -inf there, and a place outside of the image."""
    message = (
        "max: a kernel of 2 with padding 1 and dilation 2 has a window on an axis of 1 elements that holds padding "
        "alone; use less padding, less dilation or a larger input"
    )
    with pytest.raises(ShapeError, match=message):
        pooled_size(1, 2, 1, 1, 2, operation="max")
    assert pooled_size(2, 2, 1, 1, 2) == 2


@pytest.mark.parametrize("what", ["kernel", "stride", "dilation"])
def test_windows_that_are_none_are_refused(what: str) -> None:
    with pytest.raises(ShapeError, match="expected a kernel and a stride"):
        output_size(8, **{"kernel": 2, "stride": 2, "padding": 0, "dilation": 1} | {what: 0})


@pytest.fixture
def one_thread(torch):
    """PyTorch's threads cost tens of milliseconds a call where all cores are busy, and these calls are hundreds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def windows():
    """Size, kernel, stride, padding, dilation and whether to round up, of one axis."""
    for size, kernel, stride, dilation in itertools.product((1, 2, 3, 5, 6, 7), (1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3)):
        for padding, ceil_mode in itertools.product(range(kernel // 2 + 1), (False, True)):
            yield size, kernel, stride, padding, dilation, ceil_mode


@pytest.mark.usefixtures("one_thread")
def test_every_small_window_is_pytorchs(torch, rng) -> None:
    """Refused is what does not fit, and what makes PyTorch answer with the -inf of a window of padding."""
    agreed = refused = 0
    for size, kernel, stride, padding, dilation, ceil_mode in windows():
        shape, window = (1, 7, size, 1), ((3, kernel), (2, stride), (1, padding), (2, dilation), ceil_mode)
        x = rng.integers(-5, 6, shape).astype(float)
        tx = torch.tensor(x.transpose(0, 3, 1, 2).copy(), requires_grad=True)
        try:
            y, index = max_pool2d_forward_reference(x, *window)
        except ShapeError:
            try:
                ty = torch.nn.functional.max_pool2d(tx, *window)
            except RuntimeError:
                continue
            assert torch.isinf(ty).any(), (shape, window)
            refused += 1
            continue
        ty, place = torch.nn.functional.max_pool2d(tx, *window, return_indices=True)
        assert_array_equal(y, ty.detach().permute(0, 2, 3, 1), str((shape, window)))
        assert_array_equal(index, place.permute(0, 2, 3, 1), str((shape, window)))
        dy = rng.integers(-9, 10, y.shape).astype(float)
        ty.backward(torch.tensor(dy.transpose(0, 3, 1, 2).copy()))
        assert_array_equal(max_pool2d_backward_reference(dy, index, shape, *window), tx.grad.permute(0, 2, 3, 1))
        agreed += 1
    assert agreed > 500
    assert refused > 0


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("count_include_pad", [True, False])
def test_every_small_average_is_pytorchs(torch, rng, count_include_pad: bool) -> None:
    close = {"rtol": 1e-14, "atol": 1e-14}
    agreed = 0
    for size, kernel, stride, padding, dilation, ceil_mode in windows():
        shape, window = (1, 6, size, 1), ((3, kernel), (2, stride), (1, padding))
        if dilation != 1:
            continue
        x = rng.standard_normal(shape)
        tx = torch.tensor(x.transpose(0, 3, 1, 2).copy(), requires_grad=True)
        try:
            y = avg_pool2d_forward_reference(x, *window, count_include_pad, ceil_mode)
        except ShapeError:  # as of the maximum, above
            continue
        ty = torch.nn.functional.avg_pool2d(tx, *window, ceil_mode, count_include_pad)
        assert_allclose(y, ty.detach().permute(0, 2, 3, 1), err_msg=str((shape, window)), **close)
        dy = rng.standard_normal(y.shape)
        ty.backward(torch.tensor(dy.transpose(0, 3, 1, 2).copy()))
        dx = avg_pool2d_backward_reference(dy, shape, *window, count_include_pad, ceil_mode)
        assert_allclose(dx, tx.grad.permute(0, 2, 3, 1), err_msg=str((shape, window)), **close)
        agreed += 1
    assert agreed > 150


@pytest.mark.parametrize(
    "window",
    [((2, 2), (2, 2), NONE, ONE, True), ((3, 3), (2, 2), ONE, (2, 1), True), ((2, 3), (1, 2), ONE, (3, 2), False)],
    ids=str,
)
def test_gradients(rng, window) -> None:
    shape = (2, 7, 6, 2)
    x = rng.permutation(np.arange(float(np.prod(shape)))).reshape(shape)  # no tie is near
    y, index = max_pool2d_forward_reference(x, *window)
    dy = rng.standard_normal(y.shape)
    dx = max_pool2d_backward_reference(dy, index, shape, *window)
    check_gradient("max_pool2d", lambda x: max_pool2d_forward_reference(x, *window)[0], {"x": x}, {"x": dx}, dy)
    for count_include_pad in (True, False):
        options = *window[:3], count_include_pad, window[4]
        dy = rng.standard_normal(avg_pool2d_forward_reference(x, *options).shape)
        dx = avg_pool2d_backward_reference(dy, shape, *options)
        check_gradient(
            "avg_pool2d", lambda x, options=options: avg_pool2d_forward_reference(x, *options), {"x": x}, {"x": dx}, dy
        )
