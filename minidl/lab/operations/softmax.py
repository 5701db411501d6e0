"""Checks of softmax and log_softmax, forward and backward. Bounds follow from the formulas of kernels/softmax.py."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.softmax import log_softmax_forward_reference, softmax_forward_reference
from minidl.backends import Array, Backend
from minidl.lab.budget import TINY, U
from minidl.lab.inputs import FAMILIES, Family, integers
from minidl.lab.operations.case import Arrays, Case, Output, Problem, in_all_layouts, label, within
from minidl.lab.operations.loss import LOGITS

Host = NDArray[Any]
Bounds = dict[str, Host]


class _Steps(NamedTuple):
    """What forward goes through, and the absolute error of s, the relative one of exp(s) and of the sum."""

    s: Host  # x - max x
    log_sum: Host
    of_s: Host
    of_exp: Host
    of_sum: Host


def _steps(x: Host) -> _Steps:
    z = x.astype(np.float64)
    s = z - z.max(axis=-1, keepdims=True, initial=-np.inf)
    exponentials = np.exp(s)
    total = exponentials.sum(axis=-1, keepdims=True)
    # The difference rounds once; where exp(s) is 0 it has no error. The function is good to 2 units in the last place.
    of_s = np.where(exponentials > 0, U * np.abs(s), 0)
    of_exp = of_s + 4 * U
    # The sum weighs them; it is compensated, or in float64: 1 rounding for the result, 1 for what its parts lost.
    return _Steps(s, np.log(total), of_s, of_exp, (exponentials / total * of_exp).sum(axis=-1, keepdims=True) + 2 * U)


def forward(x: Host) -> Bounds:
    """Of softmax: the exponential, the sum, the quotient. An exponential that underflows is off by TINY."""
    steps = _steps(x)
    y = np.exp(steps.s - steps.log_sum)
    return {"y": y * (steps.of_exp + steps.of_sum + U) + 2 * TINY}


def log_forward(x: Host) -> Bounds:
    """Of log_softmax: the logarithm is good to 1 unit in the last place; then a difference."""
    steps = _steps(x)
    y = steps.s - steps.log_sum
    rounded = np.where(np.isfinite(y), U * (np.abs(steps.s) + np.abs(y)), 0)  # -inf is exact
    return {"y": rounded + steps.of_sum + 2 * U * steps.log_sum}


def backward(dy: Host, y: Host) -> Bounds:
    """Of softmax: the products round, their sum is compensated; then a difference and a product."""
    dy, y = dy.astype(np.float64), y.astype(np.float64)
    total, absolute = _sums(dy * y)
    classes = y.shape[-1]
    of_total = 2 * U * np.abs(total) + (U + classes * U * U) * absolute + classes * TINY
    return {"dx": np.abs(y) * of_total + 2 * U * np.abs(y * (dy - total)) + 2 * TINY}


def log_backward(dy: Host, y: Host) -> Bounds:
    """Of log_softmax: a compensated sum, times an exponential; then a difference."""
    dy, p = dy.astype(np.float64), np.exp(y.astype(np.float64))
    total, absolute = _sums(dy)
    of_total = 2 * U * np.abs(total) + y.shape[-1] * U * U * absolute
    return {"dx": p * (of_total + 5 * U * np.abs(total)) + TINY * (1 + np.abs(total)) + U * np.abs(dy - p * total)}


def _sums(terms: Host) -> tuple[Host, Host]:
    return terms.sum(axis=-1, keepdims=True), np.abs(terms).sum(axis=-1, keepdims=True)


SHAPES: tuple[tuple[int, ...], ...] = (
    (0, 3), (3, 0), (1,), (1, 1), (1, 2), (5, 1), (3, 10), (9, 31), (7, 32), (5, 33), (2, 3, 5, 7), (17, 1000),
    (127, 10), (1, 8193),
)  # fmt: skip
KINDS: tuple[tuple[str, Family, tuple[int, ...]], ...] = (
    *(("ordinary", FAMILIES["ordinary"], shape) for shape in SHAPES),
    *((name, family, (33, 10)) for name, family in FAMILIES.items() if name != "ordinary"),
)


def forward_cases(operation: str, of: Callable[[Host], Bounds]) -> Iterator[Case]:
    """Of softmax_forward or log_softmax_forward."""

    def case(name: str, family: Any, shape: tuple[int, ...]) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            x = family(rng, shape)

            def call(backend: Backend, a: Arrays) -> None:
                getattr(backend, operation)(a["x"], a["y"])

            return Problem(inputs={"x": x}, outputs={"y": Output(shape)}, call=call, bounds=within(**of(x)))

        return Case(label(name, shape), make)

    for kind in KINDS:
        yield from in_all_layouts(case(*kind)) if kind[2] == (5, 33) else (case(*kind),)
    for name, logits in LOGITS.items():
        if name not in FAMILIES:
            yield case(name, logits, (33, 10))
    yield case("ties-1e4", LOGITS["ties-1e4"], (3, 1000))


def backward_cases(
    operation: str, definition: Callable[[Host], Host], of: Callable[[Host, Host], Bounds]
) -> Iterator[Case]:
    """Of softmax_backward or log_softmax_backward; y is forward's."""

    def case(name: str, y_name: str, shape: tuple[int, ...], x_family: Any, dy_family: Any) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            y = definition(x_family(rng, shape)).astype(np.float32)
            dy = dy_family(rng, shape)

            def call(backend: Backend, a: Arrays) -> None:
                getattr(backend, operation)(a["dy"], a["y"], a["dx"])

            return Problem(
                inputs={"dy": dy, "y": y},
                outputs={"dx": Output(shape)},
                call=call,
                bounds=within(**of(dy, y)),
            )

        return Case(label(name, shape, y_name), make)

    plain = FAMILIES["ordinary"]
    for name, family, shape in KINDS:
        one = case(name, "", shape, plain, family)
        yield from in_all_layouts(one) if shape == (5, 33) else (one,)
    for y_name, logits in LOGITS.items():
        if y_name != "ordinary":
            yield case("ordinary", f"y-of-{y_name}", (33, 10), logits, plain)
    yield case("integers", "", (5, 1000), plain, integers)
    yield case("long", "", (1, 65537), FAMILIES["zeros"], _thirds)


def _thirds(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """1/3 throughout: in a plain float32 sum, all additions between two powers of two round the same way."""
    del rng
    return np.full(shape, 1 / 3, np.float32)


CASES = {
    "softmax_forward": lambda: forward_cases("softmax_forward", forward),
    "softmax_backward": lambda: backward_cases("softmax_backward", softmax_forward_reference, backward),
    "log_softmax_forward": lambda: forward_cases("log_softmax_forward", log_forward),
    "log_softmax_backward": lambda: backward_cases("log_softmax_backward", log_softmax_forward_reference, log_backward),
}
