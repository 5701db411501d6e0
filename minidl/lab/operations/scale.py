"""Checks of scaling by one factor: its products are exact but for one rounding, its gradient is a sum over all."""

from collections.abc import Iterator, Mapping

import numpy as np

from minidl.backends import Backend
from minidl.lab.budget import TINY, U, summation
from minidl.lab.inputs import FAMILIES, Family, integers
from minidl.lab.operations.case import (
    Arrays,
    Case,
    Host,
    Output,
    Problem,
    Values,
    exact,
    in_all_layouts,
    label,
    relative,
    within,
)
from minidl.lab.operations.stored import NARROW, families, in_storage

PLAIN = FAMILIES["ordinary"]
# One element, none, a prime number, around a vector and around what a block adds; several blocks.
SHAPES: tuple[tuple[int, ...], ...] = (
    (1,), (0, 3), (3,), (2, 3, 5, 7), (127, 17), (4096,), (4099,), (8191, 1), (140009,), (1031, 257),
)  # fmt: skip
NARROW_SHAPES: tuple[tuple[int, ...], ...] = ((1,), (0, 3), (2, 3, 5, 7), (127, 17), (4099,), (8191, 1))
FACTORS = {"0": 0.0, "1": 1.0, "minus-0.3": -0.3, "1e30": 1e30, "1e-42": 1e-42, "nan": np.nan, "inf": np.inf}


def scale_backward_bounds(x: Host, dy: Host, factor: Host) -> Values:
    """Of dx, one product; of dfactor, a sum over all elements, whose products round and may underflow."""
    products = x.astype(np.float64) * dy
    rounded = (U + summation(x.size)) * np.abs(products).sum() + U * np.abs(products.sum())
    dx = np.abs(factor.astype(np.float64) * dy)
    return {"dx": U * dx + TINY * (dx > 0), "dfactor": rounded + x.size * TINY}


def scale_forward_cases() -> Iterator[Case]:
    """Of scale_forward; also in place."""

    def case(name: str, shape: tuple[int, ...], factor: float = 0.7, family: Family | None = None) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            return Problem(
                inputs={"x": (family or FAMILIES[name])(rng, shape), "factor": np.array(factor, np.float32)},
                outputs={"y": Output(shape)},
                call=lambda backend, a: backend.scale_forward(a["x"], a["factor"], a["y"]),
                bounds=relative(1),
            )

        return Case(label(name, shape, f"factor-{factor:g}"), make)

    def in_place(rng: np.random.Generator) -> Problem:
        return Problem(
            inputs={"factor": np.array(-1.7, np.float32)},
            state={"x": PLAIN(rng, (4099, 3))},
            call=lambda backend, a: backend.scale_forward(a["x"], a["factor"], a["x"]),
            bounds=relative(1),
        )

    for shape in SHAPES:
        yield from in_all_layouts(case("ordinary", shape)) if shape == (127, 17) else (case("ordinary", shape),)
    yield from (case(name, (3, 5, 7, 5)) for name in FAMILIES if name != "ordinary")
    yield from (case(name, (5, 7), factor) for factor in FACTORS.values() for name in ("ordinary", "inf", "denormal"))
    yield Case("in-place", in_place)
    for storage in NARROW:
        known, stored = families(storage), {"x": storage, "y": storage}
        for shape in NARROW_SHAPES:
            one = in_storage(case("ordinary", shape, family=known["ordinary"]), stored)
            yield from in_all_layouts(one) if shape == (127, 17) else (one,)
        for name, family in known.items():
            yield in_storage(case(name, (3, 5, 7, 5), 2.9, family), stored)


def scale_backward_cases() -> Iterator[Case]:
    """Of scale_backward; also in place."""

    def case(
        name: str,
        shape: tuple[int, ...],
        factor: float = 0.7,
        other: str = "ordinary",
        known: Mapping[str, Family] = FAMILIES,
    ) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            if name == "integers":
                x, dy, by = integers(rng, shape), integers(rng, shape), np.array(2, np.float32)
            else:
                x, dy = known[name](rng, shape), known[other](rng, shape)
                by = np.array(factor, np.float32)

            def call(backend: Backend, a: Arrays) -> None:
                backend.scale_backward(a["x"], a["dy"], a["factor"], a["dx"], a["dfactor"])

            return Problem(
                inputs={"x": x, "dy": dy, "factor": by},
                outputs={"dx": Output(shape), "dfactor": Output(())},
                call=call,
                bounds=exact if name == "integers" else within(**scale_backward_bounds(x, dy, by)),
            )

        second = f"dy-{other}" if other != "ordinary" else ""
        return Case(label(name, shape, f"factor-{factor:g}", second), make)

    def in_place(rng: np.random.Generator) -> Problem:
        x, dy, factor = PLAIN(rng, (4099, 3)), PLAIN(rng, (4099, 3)), np.array(-1.7, np.float32)
        of = scale_backward_bounds(x, dy, factor)
        return Problem(
            inputs={"x": x, "factor": factor},
            outputs={"dfactor": Output(())},
            state={"dy": dy},
            call=lambda backend, a: backend.scale_backward(a["x"], a["dy"], a["factor"], a["dy"], a["dfactor"]),
            bounds=within(dy=of["dx"], dfactor=of["dfactor"]),
        )

    for shape in SHAPES:
        yield from in_all_layouts(case("ordinary", shape)) if shape == (127, 17) else (case("ordinary", shape),)
        yield case("integers", shape)
    for name in FAMILIES:
        if name != "ordinary":
            yield case(name, (3, 50, 7, 5))
            yield case("ordinary", (3, 50, 7, 5), other=name)
    yield from (case(name, (5, 7), factor) for factor in FACTORS.values() for name in ("ordinary", "inf"))
    yield Case("in-place", in_place)
    for storage in NARROW:
        known, stored = families(storage), dict.fromkeys(("x", "dy", "dx"), storage)
        for shape in NARROW_SHAPES:
            one = in_storage(case("ordinary", shape, known=known), stored)
            yield from in_all_layouts(one) if shape == (127, 17) else (one,)
            yield in_storage(case("integers", shape), stored, rounds=False)
        for name in ("mixed-scales", "nan", "minus-inf-and-inf", "smallest"):
            yield in_storage(case(name, (3, 50, 7, 5), known=known), stored)
            yield in_storage(case("ordinary", (3, 50, 7, 5), other=name, known=known), stored)


CASES = {"scale_forward": scale_forward_cases, "scale_backward": scale_backward_cases}
