import re

import numpy as np
import pytest

from minidl.lab.gradcheck import check_gradient

RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 5))
W = RNG.standard_normal((5, 2))
DY = RNG.standard_normal((3, 2))


def product(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    return np.tanh(x @ w)


def gradients() -> dict[str, np.ndarray]:
    g = DY * (1 - product(X, W) ** 2)
    return {"x": g @ W.T, "w": X.T @ g}


def check(wrong: dict[str, np.ndarray]) -> None:
    check_gradient("product", product, {"x": X, "w": W}, wrong, DY)


def test_correct_gradients_pass() -> None:
    check(gradients())


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (1e4, 1.0), (0.0, 1e-6), (0.0, 1e8)])
def test_correct_gradients_pass_at_any_scale(mean: float, deviation: float) -> None:
    x = mean + deviation * X
    check_gradient("square", lambda x: x**2, {"x": x}, {"x": 2 * x}, np.ones_like(x))


def test_one_wrong_element_is_named_with_expected_and_got() -> None:
    wrong = gradients()
    right = wrong["w"][3, 1]
    wrong["w"][3, 1] = 7.25
    message = rf"product: wrong gradient of w\[3, 1\]: expected {right:.6g}\d* .*, got 7.25; 1 of 10 elements disagree"
    with pytest.raises(AssertionError, match=message):
        check(wrong)


def test_the_worst_of_several_wrong_elements_is_named() -> None:
    wrong = gradients()
    wrong["x"][0, 0] += 1e-3
    wrong["x"][2, 4] -= 1e-2
    with pytest.raises(AssertionError, match=r"gradient of x\[2, 4\].*; 2 of 15 elements disagree"):
        check(wrong)


def test_an_error_of_one_part_in_a_million_is_seen() -> None:
    wrong = gradients()
    wrong["x"] *= 1 + 1e-6
    with pytest.raises(AssertionError, match="15 of 15 elements disagree"):
        check(wrong)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_fails(value: float) -> None:
    wrong = gradients()
    wrong["x"][1, 2] = value
    with pytest.raises(AssertionError, match=rf"product: wrong gradient of x\[1, 2\]: expected -?\d.*, got {value}"):
        check(wrong)


def test_a_huge_wrong_gradient_does_not_excuse_itself() -> None:
    wrong = gradients()
    wrong["x"][0, 1] = 1e300
    with pytest.raises(AssertionError, match=r"gradient of x\[0, 1\]"):
        check(wrong)


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_gradient_whose_sums_overflow_fails() -> None:
    with pytest.raises(AssertionError, match="wrong gradient of x"):
        check_gradient("double", lambda x: 2 * x, {"x": np.full(4, 1e3)}, {"x": np.full(4, 1e306)}, np.ones(4))


def test_a_function_that_returns_nan_fails() -> None:
    with pytest.raises(AssertionError, match="nothing: the result is not finite near the given x"):
        check_gradient("nothing", lambda x: x * np.nan, {"x": X}, {"x": X}, X)


def test_a_zero_gradient_of_a_function_that_moves_fails_even_at_zero() -> None:
    zero = np.zeros(3)
    check_gradient("identity", lambda x: x, {"x": zero}, {"x": np.ones(3)}, np.ones(3))
    with pytest.raises(AssertionError, match=r"identity: wrong gradient of x\[\d\]: expected 1 .*, got 0"):
        check_gradient("identity", lambda x: x, {"x": zero}, {"x": zero}, np.ones(3))


def test_a_kink_is_not_taken_for_agreement() -> None:
    x = np.array([1.0, 1e-6, 2.0])
    with pytest.raises(AssertionError, match="relu: not smooth in x"):
        check_gradient("relu", lambda x: np.maximum(x, 0), {"x": x}, {"x": np.ones(3)}, np.ones(3))


def test_a_number_can_be_differenced_and_an_empty_input_passes() -> None:
    check_gradient("sum", lambda x: (x**3).sum(), {"x": X}, {"x": 3 * X**2}, 1.0)
    empty = np.zeros((0, 4))
    check_gradient("double", lambda x: 2 * x, {"x": empty}, {"x": empty}, empty)


def test_a_gradient_of_the_wrong_shape_fails() -> None:
    with pytest.raises(AssertionError, match=re.escape("product: gradient of w has shape (2, 5), expected (5, 2)")):
        check({"w": gradients()["w"].T})


def test_what_cannot_be_checked_is_refused() -> None:
    with pytest.raises(ValueError, match=r"product: gradients of \[\] were given; expected some of .*\['w', 'x'\]"):
        check({})
    with pytest.raises(ValueError, match=r"gradients of \['bias'\] were given"):
        check({"bias": X})
    with pytest.raises(ValueError, match=re.escape("dy has shape (3,), expected that of the result, (3, 2)")):
        check_gradient("product", product, {"x": X, "w": W}, gradients(), np.ones(3))
    with pytest.raises(TypeError, match="input x is float32, expected float64"):
        check_gradient("double", lambda x: 2 * x, {"x": X.astype(np.float32)}, {"x": X}, X)
