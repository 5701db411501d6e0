"""Checks of what gradient clipping is made of: the norm of many arrays, and their scaling by it."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from kernels.gradient_norm import EPS, clip_by_norm_reference
from minidl.backends import Backend
from minidl.lab.budget import TINY, U, summation
from minidl.lab.inputs import FAMILIES, Family, normal
from minidl.lab.operations.case import Arrays, Case, Host, Output, Problem, Values, in_all_layouts, label, within

PLAIN = FAMILIES["ordinary"]
Shapes = tuple[tuple[int, ...], ...]
# One number, none, a prime number of them, and enough for several blocks.
SHAPES: Shapes = ((), (3, 5), (0, 2), (17,), (4097,), (140009,))
FEW: Shapes = ((5,), (3, 7), (1,))


def _all_sizes(rng: np.random.Generator, shape: tuple[int, ...]) -> Host:
    """Numbers of every size that float32 has but the largest, whose squares could not be added in any float32."""
    return (rng.standard_normal(shape) * 2.0 ** rng.integers(-149, 120, shape)).astype(np.float32)


def _one_in_a_thousand(small: float, large: float) -> Family:
    def family(rng: np.random.Generator, shape: tuple[int, ...]) -> Host:
        size = np.where(rng.uniform(size=shape) < 0.001, large, small)
        return (rng.standard_normal(shape) * size).astype(np.float32)

    return family


NORMS: dict[str, Family] = {
    "mean-1e4": normal(1e4, 1),
    "1e30": normal(0, 1e30),
    "1e-30": normal(0, 1e-30),
    "1e-21": normal(0, 1e-21),  # whose squares underflow in part
    "around-2^-60": normal(0, 2.0**-60),
    "around-2^46": normal(0, 2.0**46),
    "few-large": _one_in_a_thousand(1, 1e25),
    "few-ordinary": _one_in_a_thousand(1e-25, 1),
    "all-sizes": _all_sizes,
    **{name: FAMILIES[name] for name in ("denormal", "zeros", "nan", "inf", "minus-inf-and-inf", "alternating")},
}


def global_norm_bounds(arrays: list[Host]) -> Values:
    """Squares round and are added; the root halves what is relative, and rounds with the sum it is taken of."""
    norm = np.sqrt(sum(np.square(array.astype(np.float64)).sum() for array in arrays))
    terms = sum(array.size for array in arrays)
    return {"norm": norm * ((U + summation(terms)) / 2 + 2 * U) + TINY * (norm > 0)}


def clip_bound(array: Host, norm: Host, max_norm: float) -> Host:
    """Of an array after clipping: 1e-6, max_norm, their sum, the quotient and the product round; a factor of 1 none."""
    with np.errstate(all="ignore"):
        off = max_norm / (norm.astype(np.float64) + EPS) < 1 + 4 * U
        clipped = np.abs(clip_by_norm_reference(array.astype(np.float64), norm.astype(np.float64), max_norm))
    bound: Host = np.where(off, 5 * U * clipped + TINY * (clipped > 0), 0)
    return bound


def global_norm_cases() -> Iterator[Case]:
    """Of global_norm."""

    def case(name: str, family: Family, shapes: Shapes) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            arrays = {f"array.{i}": np.asarray(family(rng, shape)) for i, shape in enumerate(shapes)}
            return Problem(
                inputs=arrays,
                outputs={"norm": Output(())},
                call=lambda backend, a: backend.global_norm([a[name] for name in arrays], a["norm"]),
                bounds=within(**global_norm_bounds(list(arrays.values()))),
            )

        return Case(label(name, *(shape or "number" for shape in shapes)) or "nothing", make)

    yield case("ordinary", PLAIN, SHAPES)
    yield case("ordinary", PLAIN, ((),))
    yield case("ordinary", PLAIN, ((0, 3),))
    yield case("none", PLAIN, ())
    for name, family in NORMS.items():
        yield case(name, family, FEW)
        yield case(name, family, ((9001,), (64, 3)))
    yield from in_all_layouts(case("ordinary", PLAIN, ((4, 3), (4100, 1))))


def clip_by_norm_cases() -> Iterator[Case]:
    """Of clip_by_norm."""

    def case(name: str, family: Family, shapes: Shapes, norm: float, max_norm: float) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            state = {f"array.{i}": np.asarray(family(rng, shape)) for i, shape in enumerate(shapes)}
            given = np.array(norm, np.float32)

            def call(backend: Backend, a: Arrays) -> None:
                backend.clip_by_norm([a[name] for name in state], a["norm"], max_norm)

            bounds: dict[str, Any] = {key: clip_bound(array, given, max_norm) for key, array in state.items()}
            return Problem(inputs={"norm": given}, state=state, call=call, bounds=within(**bounds))

        words = [shape or "number" for shape in shapes]
        return Case(label(name, *words, f"norm-{norm:g}", f"most-{max_norm:g}"), make)

    make: Callable[..., Case] = case
    yield make("ordinary", PLAIN, SHAPES, 3.7, 1.1)
    yield make("ordinary", PLAIN, SHAPES, 1.1, 3.7)
    for norm in (0.0, 1e-42, 1e-6, 1e38, np.inf, np.nan):
        for max_norm in (1e-6, 1.0, 0.0):
            yield make("ordinary", PLAIN, FEW, norm, max_norm)
    yield make("ordinary", PLAIN, FEW, 1.0, 1.0)
    for name, family in NORMS.items():
        yield make(name, family, FEW, 3.7, 1.1)
    yield make("inf", FAMILIES["inf"], FEW, np.inf, 1.0)
    yield from in_all_layouts(make("ordinary", PLAIN, ((4, 3), (4100, 1)), 2.5, 0.3))


CASES = {"global_norm": global_norm_cases, "clip_by_norm": clip_by_norm_cases}
