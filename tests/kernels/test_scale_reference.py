import numpy as np
from numpy.testing import assert_allclose, assert_array_equal

from kernels.scale import scale_backward_reference, scale_forward_reference


def test_scale_by_hand() -> None:
    x, dy, factor = np.array([[1.0, -2.0], [3.0, 0.0]]), np.array([[0.5, 1.0], [-1.0, 7.0]]), np.array(0.25)
    assert_array_equal(scale_forward_reference(x, factor), [[0.25, -0.5], [0.75, 0]])
    dx, dfactor = scale_backward_reference(x, dy, factor)
    assert_array_equal(dx, [[0.125, 0.25], [-0.25, 1.75]])
    assert_array_equal(dfactor, -4.5)
    assert dfactor.shape == ()


def test_a_factor_of_0_still_has_a_gradient(rng) -> None:
    x, dy = rng.standard_normal((5, 3)), rng.standard_normal((5, 3))
    dx, dfactor = scale_backward_reference(x, dy, np.array(0.0))
    assert not dx.any()
    assert dfactor == (dy * x).sum() != 0


def test_no_elements() -> None:
    empty = np.empty((0, 3))
    assert scale_forward_reference(empty, np.array(2.0)).shape == (0, 3)
    dx, dfactor = scale_backward_reference(empty, empty, np.array(2.0))
    assert (dx.shape, dfactor) == ((0, 3), 0)


def test_scale_agrees_with_pytorch(torch, rng) -> None:
    x, dy = rng.standard_normal((2, 3, 5, 7)), rng.standard_normal((2, 3, 5, 7))
    inputs, factor = torch.tensor(x, requires_grad=True), torch.tensor(-0.3, dtype=torch.float64, requires_grad=True)
    y = factor * inputs
    y.backward(torch.tensor(dy))
    assert_allclose(scale_forward_reference(x, np.array(-0.3)), y.detach().numpy(), rtol=1e-15)
    dx, dfactor = scale_backward_reference(x, dy, np.array(-0.3))
    assert_allclose(dx, inputs.grad.numpy(), rtol=1e-15)
    assert_allclose(dfactor, factor.grad.numpy(), rtol=1e-12)
