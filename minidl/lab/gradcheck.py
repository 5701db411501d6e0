"""Gradient checks: a backward formula against central differences of its forward, in float64.

With loss(x) = sum(f(x) * dy), a correct gradient g has

    (loss(x + h v) - loss(x - h v)) / 2h  =  <g, v>  +  truncation  +  rounding        for every direction v.

A wrong g agrees along a random v with probability 0, so a few directions test all elements at the price of a few
evaluations; only after a failure is each element differenced by itself, to name the worst.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
UNIT = 2.0**-53  # the largest relative rounding error of one float64 operation
ROUNDINGS = 16  # allowed to one evaluation, in units: a dozen operations in a row; within a sum, errors mostly cancel


def check_gradient(
    operation: str,
    function: Callable[..., Any],
    inputs: Mapping[str, Any],
    gradients: Mapping[str, Any],
    dy: Any,
    *,
    directions: int = 3,
    seed: int = 0,
) -> None:
    """Hold `gradients` against central differences of sum(function(**inputs) * dy).

    Args:
        operation: What the message of a failure calls the function.
        function: Takes `inputs` by name and returns one float64 array or number. It must be smooth around the inputs,
            within about 1e-5 of their size: keep them away from the kink of a ReLU and from ties of a maximum.
        inputs: Float64 arrays of any shape.
        gradients: For the names that are to be checked, the gradient with respect to that input, of the same shape.
        dy: The gradient of the loss with respect to the function's result, of its shape.
        directions: How many random directions to try for each input.
        seed: Of the directions.

    Raises:
        AssertionError: A gradient is wrong, or has the wrong shape, or is not finite, or the function is not finite or
            not smooth there. The message names the operation, the input and the element that disagrees most, with the
            expected value (the central difference) and the one that was got.
        TypeError: An input is not a float64 array; smaller types are too coarse to be differenced.
        ValueError: There is no gradient to check or one of no input, or dy's shape is not the result's.
    """
    rng = np.random.default_rng(seed)
    values = {name: _float64(operation, name, value) for name, value in inputs.items()}
    unknown = sorted(set(gradients) - set(values))
    if unknown or not gradients:
        raise ValueError(
            f"{operation}: gradients of {sorted(gradients)} were given; expected some of the inputs {sorted(values)}"
        )

    for name, given in gradients.items():
        loss = _Loss(operation, function, values, name, np.asarray(dy, np.float64))
        gradient = np.asarray(given, np.float64)
        if gradient.shape != loss.x.shape:
            raise AssertionError(
                f"{operation}: gradient of {name} has shape {gradient.shape}, expected {loss.x.shape} as {name} has"
            )
        if not np.isfinite(gradient).all():
            loss.fail(gradient)
        for _ in range(directions if gradient.size else 0):
            direction = rng.standard_normal(gradient.shape)
            if not loss.disagreement(gradient, direction / np.linalg.norm(direction)) <= 1:  # NaN is not
                loss.fail(gradient)


class _Loss:
    """The loss as a function of one input, and its slope."""

    def __init__(
        self, operation: str, function: Callable[..., Any], inputs: dict[str, Array], name: str, dy: Array
    ) -> None:
        self.operation, self.function, self.inputs, self.name, self.dy = operation, function, inputs, name, dy
        self.x = inputs[name]
        y = self._evaluate(self.x)
        if y.shape != dy.shape:
            raise ValueError(f"{operation}: dy has shape {dy.shape}, expected that of the result, {y.shape}")
        # Truncation grows as h², rounding as 1/h: the best step is near the cube root of the unit, relative to x.
        self.step = UNIT ** (1 / 3) * (float(np.linalg.norm(self.x)) or 1.0)

    def _evaluate(self, x: Array) -> Array:
        y = np.asarray(self.function(**{**self.inputs, self.name: x}), np.float64)
        if not np.isfinite(y).all():
            raise AssertionError(f"{self.operation}: the result is not finite near the given {self.name}")
        return y

    def _difference(self, direction: Array, step: float) -> tuple[float, float]:
        """The central difference along `direction`, and the size of what was summed and subtracted for it."""
        above, below = self._evaluate(self.x + step * direction), self._evaluate(self.x - step * direction)
        slope = math.fsum(((above - below) * self.dy).ravel()) / (2 * step)  # fsum adds without error
        return slope, float(((np.abs(above) + np.abs(below)) * np.abs(self.dy)).sum())

    def _slope(self, direction: Array, step: float, gradient: Array) -> tuple[float, float, float]:
        """The central difference along `direction`, and bounds on its truncation and rounding errors."""
        (near, size), (far, _) = self._difference(direction, step), self._difference(direction, 2 * step)
        # Truncation is h² f'''/6 + O(h⁴): doubling h makes it four times as large, so far - near is three times that of
        # `near`, and the whole of it a bound with room for the next term.
        truncation = abs(far - near)
        # Each of the two evaluations is the exact result, off by ROUNDINGS units, of inputs that are off by as many;
        # an input's units move the loss by its gradient times as much. Both are divided by 2h.
        sensitivity = float(((np.abs(self.x) + step * np.abs(direction)) * np.abs(gradient)).sum())
        rounding = ROUNDINGS * UNIT * (size + 2 * sensitivity) / (2 * step)
        return near, truncation, rounding

    def disagreement(self, gradient: Array, direction: Array) -> float:
        """The error of `gradient` along `direction` divided by what it may be: above 1, or NaN, it is wrong."""
        slope, truncation, rounding = self._slope(direction, self.step, gradient)
        # A kink within the step shows as a change of slope that no h² explains. Then nothing is proven, either way.
        if truncation > 1e-4 * abs(slope) + 2 * rounding:
            raise AssertionError(
                f"{self.operation}: not smooth in {self.name} near the given value: the slope differs by "
                f"{truncation:.2g} between steps of {self.step:.2g} and of twice that; keep away from kinks and ties"
            )
        error = abs(slope - math.fsum((gradient * direction).ravel()))
        bound = truncation + rounding
        if error == 0:
            return 0.0
        return error / bound if 0 < bound < math.inf else math.inf

    def fail(self, gradient: Array) -> None:
        """Difference element by element and raise, naming the one that is off most."""
        finite = np.where(np.isfinite(gradient), gradient, 0)
        step = self.step / math.sqrt(gradient.size)  # as far as an element moves along a random direction
        worst: tuple[int, ...] = ()
        expected, largest, wrong = math.nan, -1.0, 0
        for place in np.ndindex(gradient.shape):
            direction = np.zeros_like(gradient)
            direction[place] = 1
            slope, truncation, rounding = self._slope(direction, step, finite)
            error = abs(slope - float(gradient[place]))
            error = math.inf if math.isnan(error) else error
            wrong += error > truncation + rounding
            if error > largest:
                worst, expected, largest = place, slope, error
        index = ", ".join(str(i) for i in worst)
        raise AssertionError(
            f"{self.operation}: wrong gradient of {self.name}[{index}]: expected {expected:.9g} (central difference), "
            f"got {gradient[worst]:.9g}; {wrong} of {gradient.size} elements disagree"
        )


def _float64(operation: str, name: str, value: Any) -> Array:
    array = np.asarray(value)
    if array.dtype != np.float64:
        raise TypeError(f"{operation}: input {name} is {array.dtype}, expected float64; convert it with astype")
    return array
