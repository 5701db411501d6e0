import numpy as np
from numpy.testing import assert_array_equal

from kernels.activation import relu_backward_reference, relu_forward_reference
from minidl.lab.gradcheck import check_gradient

NAN, INF = np.nan, np.inf
X = np.array([[-INF, -1.5, -0.0], [0.0, 2.5, INF], [NAN, -5e-324, 5e-324]])
DY = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, NAN, NAN]])


def test_forward_keeps_what_is_positive_or_nan() -> None:
    assert_array_equal(relu_forward_reference(X), [[0, 0, 0], [0, 2.5, INF], [NAN, 0, 5e-324]])


def test_backward_passes_dy_where_y_is_positive_or_nan() -> None:
    y = relu_forward_reference(X)
    assert_array_equal(relu_backward_reference(DY, y), [[0, 0, 0], [0, 5, 6], [7, 0, NAN]])


def test_agrees_with_pytorch(torch) -> None:
    x = torch.tensor(X, requires_grad=True)
    y = torch.relu(x)
    y.backward(torch.tensor(DY))
    assert_array_equal(relu_forward_reference(X), y.detach())
    assert_array_equal(relu_backward_reference(DY, y.detach().numpy()), x.grad)


def test_gradient(rng) -> None:
    x = rng.standard_normal((3, 5, 7))
    dy = rng.standard_normal(x.shape)
    dx = relu_backward_reference(dy, relu_forward_reference(x))
    check_gradient("relu", relu_forward_reference, {"x": x}, {"x": dx}, dy)


def test_empty() -> None:
    empty = np.zeros((0, 3))
    assert relu_forward_reference(empty).shape == (0, 3)
    assert relu_backward_reference(empty, empty).shape == (0, 3)
