"""Checks of the noise after batch normalization: the numbers are the reference's, so only rounding is left."""

from collections.abc import Callable, Iterator

import numpy as np

from minidl.backends import Backend
from minidl.lab import bounds
from minidl.lab.inputs import FAMILIES, Family
from minidl.lab.operations.case import Arrays, Case, Output, Problem, in_all_layouts, label, within

PLAIN = FAMILIES["ordinary"]
Numbers = tuple[int, int, int]  # seed, stream, call
Noise = tuple[float, float, float]  # offset, scale, jitter

# Around the width of a vector, a block of threads and a piece of work for a thread; channels by fours and others.
SHAPES: tuple[tuple[int, ...], ...] = (
    (0, 3), (0, 4), (1, 1), (1, 3), (2, 2), (5, 1), (2, 3), (1, 4), (3, 8), (1, 5, 7, 3), (16, 16), (127, 17), (67, 5),
    (2, 16, 9, 16), (65537, 1), (3, 300), (140009, 1), (35003, 4),
)  # fmt: skip
PAPER: Noise = (0.5, 1.25, 0.1)


def noise_cases(operation: str) -> Iterator[Case]:
    """Of noise_forward and noise_backward."""
    given, result = ("x", "y") if operation == "noise_forward" else ("dy", "dx")

    def case(
        name: str,
        family: Family,
        shape: tuple[int, ...],
        noise: Noise = PAPER,
        numbers: Numbers = (7, 0, 3),
        in_place: bool = False,
    ) -> Case:
        arguments = (*(noise if result == "y" else noise[1:]), *numbers)

        def make(rng: np.random.Generator) -> Problem:
            x = family(rng, shape)
            target = given if in_place else result
            known = getattr(bounds, operation)(x, *arguments)[result]

            def call(backend: Backend, a: Arrays) -> None:
                getattr(backend, operation)(a[given], a[target], *arguments[:-1], a["call"])

            inputs = {"call": np.array(numbers[2], np.uint32)} | ({} if in_place else {given: x})
            held = {"state": {given: x}} if in_place else {"outputs": {result: Output(shape)}}
            return Problem(inputs=inputs, **held, call=call, bounds=within(**{target: known}))

        of_noise = "" if noise == PAPER else "noise-" + "-".join(f"{number:g}" for number in noise)
        of_numbers = "" if numbers == (7, 0, 3) else f"seed-{label(numbers)}"
        return Case(label(name, shape, of_noise, of_numbers, "in-place" if in_place else ""), make)

    return _all(case)


def _all(case: Callable[..., Case]) -> Iterator[Case]:
    for shape in SHAPES:
        yield case("ordinary", PLAIN, shape)
    for noise in (
        (0.0, 1.0, 0.0),
        (0.0, 1.0, 0.5),
        (3.0, 1.0, 0.0),
        (0.0, 7.0, 0.0),
        (1e4, 1e3, 1e-3),
        (1e-3, 1.1, 3.0),
    ):
        for shape in ((19, 8), (19, 7)):
            yield case("ordinary", PLAIN, shape, noise)
    for numbers in ((0, 0, 0), (2**32 - 1, 1, 2), (2**40 + 17, 2**32 - 4, 2**32 - 1), (2**64 - 1, 3, 70000)):
        for shape in ((33, 8), (33, 7)):
            yield case("ordinary", PLAIN, shape, PAPER, numbers)
    for name, family in FAMILIES.items():
        for shape in ((3, 5, 7, 5), (3, 5, 7, 8)):
            yield case(name, family, shape)
    for shape in ((13, 5), (13, 8)):
        yield from in_all_layouts(case("ordinary", PLAIN, (*shape[:1], 2, *shape[1:])))
        yield case("ordinary", PLAIN, shape, in_place=True)


CASES = {
    "noise_forward": lambda: noise_cases("noise_forward"),
    "noise_backward": lambda: noise_cases("noise_backward"),
}
