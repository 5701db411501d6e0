import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from kernels.conv import bias_backward_reference
from kernels.linear import (
    linear_backward_input_reference,
    linear_backward_weight_reference,
    linear_forward_reference,
)
from minidl.lab.gradcheck import check_gradient


def test_by_hand() -> None:
    x, w, bias = np.array([[1.0, 2.0]]), np.array([[3.0, 4.0], [5.0, 6.0], [0.0, -1.0]]), np.array([10.0, 20.0, 30.0])
    dy = np.array([[1.0, 0.0, 2.0]])
    assert_array_equal(linear_forward_reference(x, w, bias), [[21, 37, 28]])
    assert_array_equal(linear_forward_reference(x, w, None), [[11, 17, -2]])
    assert_array_equal(linear_backward_input_reference(dy, w), [[3, 2]])
    assert_array_equal(linear_backward_weight_reference(x, dy), [[1, 2], [0, 0], [2, 4]])


@pytest.mark.parametrize(("n", "c_in", "c_out"), [(1, 1, 1), (1, 7, 3), (5, 1, 13), (17, 31, 2)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_agrees_with_pytorch(torch, rng, n: int, c_in: int, c_out: int, with_bias: bool) -> None:
    x, w, dy = rng.standard_normal((n, c_in)), rng.standard_normal((c_out, c_in)), rng.standard_normal((n, c_out))
    bias = rng.standard_normal(c_out) if with_bias else None
    tx, tw = torch.tensor(x, requires_grad=True), torch.tensor(w, requires_grad=True)
    tb = torch.tensor(bias, requires_grad=True) if with_bias else None
    y = torch.nn.functional.linear(tx, tw, tb)
    y.backward(torch.tensor(dy))

    close = {"rtol": 1e-13, "atol": 1e-13}  # sums of at most 31 products of numbers near 1, in another order
    assert_allclose(linear_forward_reference(x, w, bias), y.detach(), **close)
    assert_allclose(linear_backward_input_reference(dy, w), tx.grad, **close)
    assert_allclose(linear_backward_weight_reference(x, dy), tw.grad, **close)
    if with_bias:
        assert_allclose(bias_backward_reference(dy), tb.grad, **close)


def test_gradient(rng) -> None:
    x, w, bias = rng.standard_normal((5, 7)), rng.standard_normal((3, 7)), rng.standard_normal(3)
    dy = rng.standard_normal((5, 3))
    check_gradient(
        "linear",
        linear_forward_reference,
        {"x": x, "w": w, "bias": bias},
        {
            "x": linear_backward_input_reference(dy, w),
            "w": linear_backward_weight_reference(x, dy),
            "bias": bias_backward_reference(dy),
        },
        dy,
    )


def test_a_nan_stays_in_its_row_and_an_empty_batch_gives_zero_gradients(rng) -> None:
    x, w = rng.standard_normal((4, 3)), rng.standard_normal((2, 3))
    x[1, 2], x[2] = np.nan, [np.inf, -np.inf, 1]
    assert_array_equal(np.isfinite(linear_forward_reference(x, w, np.ones(2))).all(axis=1), [True, False, False, True])

    empty_x, empty_dy = np.zeros((0, 3)), np.zeros((0, 2))
    assert linear_forward_reference(empty_x, w, None).shape == (0, 2)
    assert linear_backward_input_reference(empty_dy, w).shape == (0, 3)
    assert_array_equal(linear_backward_weight_reference(empty_x, empty_dy), np.zeros((2, 3)))
    assert_array_equal(bias_backward_reference(empty_dy), np.zeros(2))
