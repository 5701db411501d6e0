"""Checks of the metrics of a classifier, and of the look for numbers that are not finite. All of it is exact."""

from collections.abc import Iterator
from itertools import product

import numpy as np

from kernels.storage import Storage
from minidl.backends import Backend
from minidl.lab.inputs import FAMILIES, normal
from minidl.lab.operations.case import Arrays, Case, Output, Problem, exact, in_all_layouts, label
from minidl.lab.operations.loss import IGNORE, LOGITS
from minidl.lab.operations.stored import NARROW, in_storage, largest

PLAIN = FAMILIES["ordinary"]


def append_result_cases() -> Iterator[Case]:
    """Of append_result, twice. Ties are many, some targets are to be ignored."""

    def case(name: str, shape: tuple[int, int], best: bool) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            logits = LOGITS[name](rng, shape) if name in LOGITS else FAMILIES[name](rng, shape)
            if name == "ordinary":
                logits = np.round(logits)
            targets = rng.integers(0, shape[1], shape[0], np.int64)
            if best:  # the first of the largest, in most rows
                targets = np.where(rng.uniform(size=shape[0]) < 0.8, logits.argmax(axis=1), targets)
            targets[rng.uniform(size=shape[0]) < 0.1] = IGNORE

            def call(backend: Backend, a: Arrays) -> None:
                for _ in range(2):
                    log = a["count"], a["losses"], a["corrects"]
                    backend.append_result(a["logits"], a["targets"], a["loss"], *log)

            return Problem(
                inputs={"logits": logits, "targets": targets, "loss": PLAIN(rng, ())},
                state={
                    "count": np.array(3),
                    "losses": PLAIN(rng, (6,)),
                    "corrects": rng.integers(0, 9, 6, np.int64),
                },
                call=call,
                bounds=exact,
            )

        return Case(label(name, shape, "mostly-correct" if best else ""), make)

    for shape, best in product(((0, 3), (1, 1), (7, 2), (127, 10), (1000, 33)), (False, True)):
        yield case("ordinary", shape, best)
    for name in (*(name for name in LOGITS if name != "ordinary"), "nan", "minus-inf-and-inf"):
        yield case(name, (33, 10), best=True)
    yield from in_all_layouts(case("ordinary", (19, 7), best=True))


def all_finite_cases() -> Iterator[Case]:
    """Of all_finite: one number that is not finite, in any place."""

    def case(name: str, shape: tuple[int, ...], place: float | None, value: float = 1.0) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            x = normal(0, 1e30)(rng, shape)
            if place is not None:
                x.reshape(-1)[int(place * (x.size - 1))] = value

            def call(backend: Backend, a: Arrays) -> None:
                a["finite"][...] = backend.all_finite(a["x"])

            return Problem(inputs={"x": x}, outputs={"finite": Output((), np.bool_)}, call=call, bounds=exact)

        return Case(label(name, shape, "" if place is None else f"at-{place:g}"), make)

    for shape in ((0, 3), (1,), (2, 7, 5, 3), (70001,)):
        yield case("finite", shape, None)
    bad = {"nan": np.nan, "inf": np.inf, "minus-inf": -np.inf}
    for (name, value), shape, place in product(bad.items(), ((1,), (129,), (70001,)), (0.0, 0.5, 1.0)):
        yield case(name, shape, place, value)
    yield case("largest", (5,), 0.5, float(np.finfo(np.float32).max))
    yield from in_all_layouts(case("nan", (9, 3), 0.9, np.nan))
    yield from _stored()
    yield Case("nan/64x8260/one-a-row", _one_nan_a_row)


def _stored() -> Iterator[Case]:
    """Of all_finite in 16 bits: the largest numbers, all of them, and one that is not finite beside them."""

    def case(storage: Storage, name: str, shape: tuple[int, ...], place: float, value: float | None) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            x = largest(storage)(rng, shape)
            if value is not None:
                x.reshape(-1)[int(place * (x.size - 1))] = value

            def call(backend: Backend, a: Arrays) -> None:
                a["finite"][...] = backend.all_finite(a["x"])

            return Problem(inputs={"x": x}, outputs={"finite": Output((), np.bool_)}, call=call, bounds=exact)

        return in_storage(Case(label(name, shape, f"at-{place:g}"), make), {"x": storage}, rounds=False)

    for storage in NARROW:
        yield from in_all_layouts(case(storage, "largest", (9, 7), 0, None))
        yield case(storage, "largest", (30007,), 0, None)
        bad = {"nan": np.nan, "inf": np.inf, "minus-inf": -np.inf}
        for (name, value), size, place in product(bad.items(), (1, 131, 30007), (0.0, 0.5, 1.0)):
            yield case(storage, name, (size,), place, value)


def _one_nan_a_row(rng: np.random.Generator) -> Problem:
    """Each row is an array of its own; their NaNs lie all over the row, and in its last element."""
    rows, length = 64, 8260
    x = normal(0, 1)(rng, (rows, length))
    x[np.arange(rows), np.linspace(0, length - 1, rows).astype(np.int64)] = np.nan

    def call(backend: Backend, a: Arrays) -> None:
        for row in range(rows):
            a["finite"][row] = backend.all_finite(a["x"][row])

    return Problem(inputs={"x": x}, outputs={"finite": Output((rows,), np.bool_)}, call=call, bounds=exact)


CASES = {
    "append_result": append_result_cases,
    "all_finite": all_finite_cases,
}
