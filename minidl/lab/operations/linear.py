"""Checks of the linear layer's three matrix products."""

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np

from minidl.backends import Backend
from minidl.lab import bounds
from minidl.lab.inputs import FAMILIES, Family, integers
from minidl.lab.operations.case import (
    Answers,
    Arrays,
    Case,
    Output,
    Problem,
    Values,
    exact,
    in_all_layouts,
    label,
    within,
)

PLAIN = FAMILIES["ordinary"]
Size = tuple[int, int, int]  # n, c_in, c_out

SIZES: tuple[Size, ...] = (
    (1, 1, 1), (0, 5, 3), (1, 64, 10), (7, 5, 1), (2, 1, 3), (17, 33, 16), (5, 13, 2), (63, 17, 64), (64, 3, 65),
    (65, 64, 63), (129, 16, 130), (257, 784, 33), (5, 12, 8), (67, 36, 20), (130, 68, 132), (9, 640, 12), (70, 8, 640),
    (51, 1028, 10), (387, 132, 16), (33, 4, 1),  # few outputs, in slices of the depth and of the rows
)  # fmt: skip


def _case(operation: str, name: str, size: Size, first: Family, second: Family, bias: bool = False) -> Case:
    """`first` is the family of the operation's first argument, `second` of its second."""
    n, c_in, c_out = size
    shapes = {
        "x": (n, c_in),
        "dx": (n, c_in),
        "w": (c_out, c_in),
        "dw": (c_out, c_in),
        "y": (n, c_out),
        "dy": (n, c_out),
    }
    arguments, result = {
        "linear_forward": (("x", "w"), "y"),
        "linear_backward_input": (("dy", "w"), "dx"),
        "linear_backward_weight": (("x", "dy"), "dw"),
    }[operation]

    def make(rng: np.random.Generator) -> Problem:
        inputs = {key: family(rng, shapes[key]) for key, family in zip(arguments, (first, second), strict=True)}
        if bias:
            inputs["bias"] = second(rng, (c_out,))
        given = (*inputs.values(), *(() if bias or result != "y" else (None,)))

        def within_bounds(precision: str) -> Callable[[Answers], Values]:
            return within(**getattr(bounds, operation)(*given, precision))

        def call(backend: Backend, a: Arrays) -> None:
            given = [a[key] for key in arguments]
            if result == "y":
                given.append(a.get("bias"))
            getattr(backend, operation)(*given, a[result])

        return Problem(
            inputs=inputs,
            outputs={result: Output(shapes[result])},
            call=call,
            bounds=exact if name == "integers" else within_bounds("fp32"),
            tf32_bounds=None if name == "integers" else lambda answers: within_bounds("tf32")(answers),
        )

    return Case(label(name, size, "bias" if bias else ""), make)


def _cases(operation: str) -> Iterator[Case]:
    for size in SIZES:
        case = _case(operation, "ordinary", size, PLAIN, PLAIN)
        yield from in_all_layouts(case) if size in ((17, 33, 16), (5, 12, 8)) else (case,)
    for (name, family), size in product(FAMILIES.items(), ((19, 7, 5), (130, 33, 3), (66, 12, 8))):
        yield _case(operation, name, size, family, PLAIN)
        yield _case(operation, f"second-{name}", size, PLAIN, family)
    for size in SIZES:
        yield _case(operation, "integers", size, integers, integers)
        if operation == "linear_forward":
            yield _case(operation, "ordinary", size, PLAIN, PLAIN, bias=True)


CASES = {
    "linear_forward": lambda: _cases("linear_forward"),
    "linear_backward_input": lambda: _cases("linear_backward_input"),
    "linear_backward_weight": lambda: _cases("linear_backward_weight"),
}
