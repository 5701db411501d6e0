import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from kernels.conv import (
    bias_backward_reference,
    conv2d_backward_input_reference,
    conv2d_backward_weight_reference,
    conv2d_forward_reference,
)
from kernels.window import output_size
from minidl.lab.gradcheck import check_gradient

# n, h, w, c_in, c_out, kernel, stride, padding
CASES = [
    (1, 1, 1, 1, 1, (1, 1), (1, 1), (0, 0)),
    (2, 5, 7, 3, 4, (3, 3), (1, 1), (1, 1)),
    (3, 7, 5, 1, 5, (3, 3), (2, 2), (1, 1)),
    (1, 11, 13, 2, 3, (5, 3), (3, 2), (2, 0)),  # stride leaves the last rows uncovered
    (2, 6, 9, 3, 1, (2, 4), (1, 3), (0, 3)),
    (2, 8, 8, 5, 7, (1, 1), (2, 2), (0, 0)),  # elements between the strides are never read
    (1, 2, 2, 2, 2, (3, 3), (1, 1), (2, 2)),  # kernel larger than the image
    (2, 4, 3, 2, 3, (4, 3), (1, 1), (0, 0)),  # one position
]


def tensors(rng, case):
    n, h, w, c_in, c_out, kernel, stride, padding = case
    size = [output_size(*axis) for axis in zip((h, w), kernel, stride, padding, strict=True)]
    x, weight = rng.standard_normal((n, h, w, c_in)), rng.standard_normal((*kernel, c_in, c_out))
    return x, weight, rng.standard_normal(c_out), rng.standard_normal((n, *size, c_out)), stride, padding


def test_by_hand() -> None:
    x = np.arange(1.0, 10.0).reshape(1, 3, 3, 1)
    w = np.array([[1.0, 10.0], [100.0, 1000.0]]).reshape(2, 2, 1, 1)  # not mirrored: the first tap is at the upper left
    y = conv2d_forward_reference(x, w, np.array([0.5]), (1, 1), (0, 0))
    assert_array_equal(y[0, :, :, 0], [[5421.5, 6532.5], [8754.5, 9865.5]])

    # With padding and stride 3, each of the four windows has one tap on the image, at its corner.
    corners = conv2d_forward_reference(x, w, None, (3, 3), (1, 1))
    assert_array_equal(corners[0, :, :, 0], [[1000, 300], [70, 9]])


def test_gradients_by_hand() -> None:
    x = np.array([[1.0, 2.0, 3.0]]).reshape(1, 1, 3, 1)
    w = np.array([10.0, 100.0]).reshape(1, 2, 1, 1)
    dy = np.array([1.0, 7.0]).reshape(1, 1, 2, 1)
    dx = conv2d_backward_input_reference(dy, w, x.shape, (1, 1), (0, 0))
    dw = conv2d_backward_weight_reference(x, dy, w.shape, (1, 1), (0, 0))
    assert_array_equal(dx.ravel(), [10, 170, 700])
    assert_array_equal(dw.ravel(), [1 * 1 + 2 * 7, 2 * 1 + 3 * 7])
    assert_array_equal(bias_backward_reference(dy), [8])


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_agrees_with_pytorch(torch, rng, case, with_bias: bool) -> None:
    x, w, bias, dy, stride, padding = tensors(rng, case)
    tx = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    tw = torch.tensor(w.transpose(3, 2, 0, 1).copy(), requires_grad=True)  # PyTorch wants it contiguous
    tb = torch.tensor(bias, requires_grad=True)
    ty = torch.nn.functional.conv2d(tx, tw, tb if with_bias else None, stride, padding)
    ty.backward(torch.tensor(dy.transpose(0, 3, 1, 2)))

    close = {"rtol": 1e-12, "atol": 1e-12}  # sums of at most a few hundred products of numbers near 1
    y = conv2d_forward_reference(x, w, bias if with_bias else None, stride, padding)
    assert_allclose(y, ty.detach().permute(0, 2, 3, 1), **close)
    dx = conv2d_backward_input_reference(dy, w, x.shape, stride, padding)
    assert_allclose(dx, tx.grad.permute(0, 2, 3, 1), **close)
    dw = conv2d_backward_weight_reference(x, dy, w.shape, stride, padding)
    assert_allclose(dw, tw.grad.permute(2, 3, 1, 0), **close)
    if with_bias:
        assert_allclose(bias_backward_reference(dy), tb.grad, **close)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradient(rng, case) -> None:
    x, w, bias, dy, stride, padding = tensors(rng, case)
    check_gradient(
        "conv2d",
        lambda x, w, bias: conv2d_forward_reference(x, w, bias, stride, padding),
        {"x": x, "w": w, "bias": bias},
        {
            "x": conv2d_backward_input_reference(dy, w, x.shape, stride, padding),
            "w": conv2d_backward_weight_reference(x, dy, w.shape, stride, padding),
            "bias": bias_backward_reference(dy),
        },
        dy,
    )


def test_a_nan_reaches_the_windows_that_hold_it_and_no_other() -> None:
    x, w = np.zeros((2, 5, 5, 1)), np.ones((3, 3, 1, 2))
    x[0, 0, 4, 0] = np.nan
    y = conv2d_forward_reference(x, w, None, (1, 1), (1, 1))
    reached = np.zeros((2, 5, 5, 2), bool)
    reached[0, :2, 3:, :] = True
    assert_array_equal(np.isnan(y), reached)


def test_a_nan_of_dy_reaches_every_tap_also_from_the_padding() -> None:
    x, dy = np.ones((1, 3, 3, 1)), np.zeros((1, 3, 3, 2))
    dy[0, 0, 0, 1] = np.nan  # of the corner's nine taps five lie in the padding
    dw = conv2d_backward_weight_reference(x, dy, (3, 3, 1, 2), (1, 1), (1, 1))
    assert np.isnan(dw[..., 1]).all()
    assert_array_equal(dw[..., 0], np.zeros((3, 3, 1)))

    dx = conv2d_backward_input_reference(dy, np.ones((3, 3, 1, 2)), x.shape, (1, 1), (1, 1))
    assert_array_equal(np.isnan(dx[0, :, :, 0]), [[True, True, False], [True, True, False], [False, False, False]])


def test_zero_times_infinity_is_nan() -> None:
    x = np.full((1, 1, 1, 1), np.inf)
    assert np.isnan(conv2d_forward_reference(x, np.zeros((1, 1, 1, 1)), None, (1, 1), (0, 0))).all()


def test_an_empty_batch_gives_zero_gradients() -> None:
    x, w, dy = np.zeros((0, 5, 5, 2)), np.ones((3, 3, 2, 4)), np.zeros((0, 3, 3, 4))
    assert conv2d_forward_reference(x, w, np.ones(4), (1, 1), (0, 0)).shape == dy.shape
    assert conv2d_backward_input_reference(dy, w, x.shape, (1, 1), (0, 0)).shape == x.shape
    assert_array_equal(conv2d_backward_weight_reference(x, dy, w.shape, (1, 1), (0, 0)), np.zeros(w.shape))
    assert_array_equal(bias_backward_reference(dy), np.zeros(4))
