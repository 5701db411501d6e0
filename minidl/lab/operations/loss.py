"""Checks of the loss and of the metrics beside it."""

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
from numpy.typing import NDArray

from minidl.backends import Backend
from minidl.lab.budget import TINY, U, summation
from minidl.lab.inputs import FAMILIES, Floats, normal
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
    within,
)

IGNORE = -100
Targets = NDArray[np.int64]


def cross_entropy_bounds(
    logits: Host, targets: Targets, smoothing: float, reduction: str, ignore_index: int = IGNORE
) -> Values:
    """Of the loss and its gradient, by float32's rules for log p = (z - max z) - log(sum(exp(z - max z)))."""
    counted = targets != ignore_index
    classes = logits.shape[1]
    z = logits.astype(np.float64)
    q = (1 - smoothing) * (targets[:, None] == np.arange(classes)) + smoothing / classes
    s = z - z.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(s).sum(axis=1, keepdims=True))
    log_p = s - log_sum
    p = np.exp(log_p)
    # An error of s is a relative error of exp(s); the function itself is good to 2 units in the last place, 4 U. Where
    # exp(s) is 0 it has none. The sum weighs them with p and adds its own roundings.
    of_exp = np.where(p > 0, U * np.abs(s), 0) + 4 * U
    of_sum = (p * of_exp).sum(axis=1, keepdims=True) + summation(classes)
    # The logarithm, 2 U of itself; the two differences.
    of_log_p = U * np.abs(s) + of_sum + 2 * U * log_sum + U * np.abs(log_p)
    of_p = p * (np.where(p > 0, of_log_p, 0) + 4 * U)
    # p - q: q is (1 - smoothing) + smoothing / classes, then the difference, the factor 1 / rows and its product.
    of_difference = of_p + 3 * U * q + U * np.abs(p - q)
    count = max(int(counted.sum()), 1) if reduction == "mean" else 1
    dlogits = (of_difference + 2 * U * np.abs(p - q)) / count + TINY
    # A row's loss is a sum over classes, the loss a sum over rows.
    row = (np.where(q > 0, q * of_log_p, 0)).sum(axis=1)
    size = np.where(q > 0, q * np.abs(log_p), 0).sum(axis=1)
    row += (summation(classes) + 2 * U) * size
    loss = (row[counted].sum() + (summation(int(counted.sum())) + 2 * U) * size[counted].sum()) / count + TINY
    return {"loss": loss, "dlogits": np.where(counted[:, None], dlogits, 0)}


LogitsFamily = Callable[[np.random.Generator, tuple[int, int]], Floats]


def _peaked(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """One class far ahead in each row: the loss is tiny where it is right."""
    logits = normal(0, 1)(rng, shape)
    logits[np.arange(shape[0]), rng.integers(0, shape[1], shape[0])] += 20
    return logits


def _huge_with_ties(size: float) -> LogitsFamily:
    """Logits of -size, 0 and size: the largest are tied, and log of their number is all that is left of the loss."""

    def family(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
        logits = (rng.integers(-1, 2, shape) * size).astype(np.float32)
        logits[:, :2] = size
        return logits

    return family


def _with_row(values: tuple[float, ...]) -> LogitsFamily:
    """N(0, 1), but one row starts with these values."""

    def family(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
        logits = normal(0, 1)(rng, shape)
        logits[shape[0] // 2, : len(values)] = values[: shape[1]]
        return logits

    return family


def _minus_inf_row(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    logits = normal(0, 1)(rng, shape)
    logits[shape[0] // 2] = -np.inf
    return logits


LOGITS: dict[str, LogitsFamily] = {
    "ordinary": normal(0, 1),
    "wide": normal(0, 30),
    "mean-1e4": normal(1e4, 1),
    "mean-minus-1e6": normal(-1e6, 10),
    "peaked": _peaked,
    "huge": normal(0, 1e30),
    "ties-1e4": _huge_with_ties(1e4),
    "ties-1e12": _huge_with_ties(1e12),
    "ties-1e30": _huge_with_ties(1e30),
    "zeros": FAMILIES["zeros"],
    "denormal": FAMILIES["denormal"],
    "one-minus-inf": _with_row((-np.inf,)),
    "minus-inf-at-target": _with_row((-np.inf,)),
    "minus-inf-row": _minus_inf_row,
    "nan-row": _with_row((0.5, np.nan)),
    "inf-row": _with_row((np.inf,)),
}


def cross_entropy_cases() -> Iterator[Case]:
    """Of cross_entropy."""

    def case(
        name: str, shape: tuple[int, int], smoothing: float = 0.0, reduction: str = "mean", ignored: float = 0.0
    ) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            logits = LOGITS[name](rng, shape)
            targets = rng.integers(0, shape[1], shape[0], np.int64)
            if name == "minus-inf-at-target":
                targets[shape[0] // 2] = 0
            targets[rng.uniform(size=shape[0]) < ignored] = IGNORE

            def call(backend: Backend, a: Arrays) -> None:
                arrays = a["logits"], a["targets"], a["loss"], a["dlogits"]
                backend.cross_entropy(*arrays, smoothing, IGNORE, reduction)

            return Problem(
                inputs={"logits": logits, "targets": targets},
                outputs={"loss": Output(()), "dlogits": Output(shape)},
                call=call,
                bounds=within(**cross_entropy_bounds(logits, targets, smoothing, reduction)),
            )

        words = (f"smoothing-{smoothing}" if smoothing else "", reduction, f"ignored-{ignored}" if ignored else "")
        return Case(label(name, shape, *words), make)

    for shape in ((0, 3), (1, 1), (1, 2), (5, 1), (3, 10), (17, 1000), (127, 10), (2000, 33)):
        yield case("ordinary", shape)
        yield case("ordinary", shape, 0.1, "sum")
    for name, smoothing in product(LOGITS, (0.0, 0.1, 1.0)):
        if name != "ordinary":
            yield case(name, (33, 10), smoothing)
    for ignored, reduction, smoothing in product((0.3, 1.0), ("mean", "sum"), (0.0, 0.1)):
        yield case("ordinary", (33, 10), smoothing, reduction, ignored)
        yield case("nan-row", (33, 10), smoothing, reduction, ignored)
    yield from in_all_layouts(case("ordinary", (19, 7), 0.2))
    for target, row in product((-1, 10, 2**40), (0, 300)):
        yield _no_class_case(target, row)


def _no_class_case(target: int, row: int) -> Case:
    """One target is no class: cross_entropy raises IndexError, which names it, and writes nothing."""

    def make(rng: np.random.Generator) -> Problem:
        targets = rng.integers(0, 10, 301, np.int64)
        targets[::7] = IGNORE
        targets[row] = target

        def call(backend: Backend, a: Arrays) -> None:
            try:
                backend.cross_entropy(a["logits"], a["targets"], a["loss"], a["dlogits"], 0.1, IGNORE, "mean")
            except IndexError as error:
                named = f"target {target} in row {row} " in str(error)
                backend.copy(backend.array(np.array(named), np.bool_), a["refused"])

        return Problem(
            inputs={"logits": normal(0, 1)(rng, (301, 10)), "targets": targets},
            state={
                "loss": np.zeros((), np.float32),
                "dlogits": np.zeros((301, 10), np.float32),
                "refused": np.zeros((), np.bool_),
            },
            call=call,
            bounds=exact,
        )

    return Case(label("no-class", f"target-{target}", f"row-{row}"), make)


def count_correct_cases() -> Iterator[Case]:
    """Of count_correct. Ties are many, some targets are to be ignored."""

    def case(name: str, shape: tuple[int, int], best: bool) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            logits = LOGITS[name](rng, shape) if name in LOGITS else FAMILIES[name](rng, shape)
            if name == "ordinary":
                logits = np.round(logits)
            targets = rng.integers(0, shape[1], shape[0], np.int64)
            if best:  # the first of the largest, in most rows
                targets = np.where(rng.uniform(size=shape[0]) < 0.8, logits.argmax(axis=1), targets)
            targets[rng.uniform(size=shape[0]) < 0.1] = IGNORE
            return Problem(
                inputs={"logits": logits, "targets": targets},
                outputs={"correct": Output((), np.int64)},
                call=lambda backend, a: backend.count_correct(a["logits"], a["targets"], a["correct"]),
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
    yield Case("nan/64x8260/one-a-row", _one_nan_a_row)


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
    "cross_entropy": cross_entropy_cases,
    "count_correct": count_correct_cases,
    "all_finite": all_finite_cases,
}
