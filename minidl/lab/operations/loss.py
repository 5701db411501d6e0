"""Checks of the loss, and of the rows that its gradient is made of."""

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
from numpy.typing import NDArray

from minidl.backends import Backend
from minidl.lab.budget import TINY, U
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
    relative,
    within,
)

IGNORE = -100
Targets = NDArray[np.int64]


def cross_entropy_bounds(
    logits: Host,
    targets: Targets,
    smoothing: float,
    reduction: str,
    ignore_index: int = IGNORE,
    weight: Host | None = None,
) -> Values:
    """Of the loss and its gradient, by float32's rules for log p = (z - max z) - log(sum(exp(z - max z))).

    Sums are compensated, or in float64: whatever their length, 1 rounding for the result and 1 for what its parts lost.
    """
    counted = targets != ignore_index
    classes = logits.shape[1]
    z = logits.astype(np.float64)
    weights = np.ones(classes) if weight is None else weight.astype(np.float64)
    q = ((1 - smoothing) * (targets[:, None] == np.arange(classes)) + smoothing / classes) * weights
    mass = q.sum(axis=1, keepdims=True)
    # (1 - smoothing) + smoothing / classes, and the product with a weight; the sum over classes, where not all are 1.
    of_q, of_mass = (3, 0) if weight is None else (4, 6)
    s = z - z.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(s).sum(axis=1, keepdims=True))
    log_p = s - log_sum
    p = np.exp(log_p)
    # An error of s is a relative error of exp(s); the function itself is good to 2 units in the last place, 4 U. Where
    # exp(s) is 0 it has none. The sum weighs them with p and adds its own roundings.
    of_exp = np.where(p > 0, U * np.abs(s), 0) + 4 * U
    of_sum = (p * of_exp).sum(axis=1, keepdims=True) + 2 * U
    # The logarithm, 2 U of itself; the two differences.
    of_log_p = U * np.abs(s) + of_sum + 2 * U * log_sum + U * np.abs(log_p)
    of_p = p * (np.where(p > 0, of_log_p, 0) + 4 * U)
    # mass * p - q, then the factor 1 / divisor and its product.
    difference = mass * p - q
    of_difference = mass * of_p + (of_mass + 1) * U * mass * p * (of_mass > 0) + of_q * U * q + U * np.abs(difference)
    divisor = (weights[targets[counted]].sum() or 1.0) if reduction == "mean" else 1.0
    of_divisor = 0 if weight is None or reduction != "mean" else 2 * U
    dlogits = (of_difference + (2 * U + of_divisor) * np.abs(difference) + TINY) / divisor + TINY
    # A row's loss is a sum over classes of products, the loss a sum over rows.
    row = (np.where(q > 0, q * of_log_p, 0)).sum(axis=1)
    size = np.where(q > 0, q * np.abs(log_p), 0).sum(axis=1)
    row += (2 + 1 + of_q) * U * size + TINY
    dlogits = np.where(counted[:, None], dlogits, 0)
    if reduction == "none":
        return {"loss": np.where(counted, row, 0), "dlogits": dlogits}
    loss = (row[counted].sum() + (2 * U + U + of_divisor) * size[counted].sum()) / divisor + TINY
    return {"loss": loss, "dlogits": dlogits}


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


WEIGHTS: dict[str, Callable[[int], Host]] = {  # of so many classes
    "uneven": lambda classes: 0.1 + np.arange(classes) * 0.618 % 3,
    "equal": lambda classes: np.full(classes, 7),
    "zero": lambda classes: np.zeros(classes),
    "some-zero": lambda classes: np.where(np.arange(classes) % 2, 2, 0),
    "mixed-scales": lambda classes: np.logspace(-6, 6, classes),
    "tenths": lambda classes: np.full(classes, 0.7),
}
# Rows whose losses are all equal: in a plain float32 sum, all additions between two powers of two round the same way,
# so that the error grows with their number: with 7 classes to three times the bound. A compensated one keeps to 2
# roundings.
LONG = (65537, 7)


def cross_entropy_cases() -> Iterator[Case]:
    """Of cross_entropy."""

    def case(
        name: str,
        shape: tuple[int, int],
        smoothing: float = 0.0,
        reduction: str = "mean",
        ignored: float = 0.0,
        weights: str = "",
    ) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            logits = LOGITS[name](rng, shape)
            weight = WEIGHTS[weights](shape[1]).astype(np.float32) if weights else None
            targets = rng.integers(0, shape[1], shape[0], np.int64)
            if name == "minus-inf-at-target":
                targets[shape[0] // 2] = 0
            targets[rng.uniform(size=shape[0]) < ignored] = IGNORE

            def call(backend: Backend, a: Arrays) -> None:
                arrays = a["logits"], a["targets"], a["loss"], a["dlogits"]
                backend.cross_entropy(*arrays, smoothing, IGNORE, reduction, a.get("weight"))

            return Problem(
                inputs={"logits": logits, "targets": targets} | ({} if weight is None else {"weight": weight}),
                outputs={"loss": Output(shape[:1] if reduction == "none" else ()), "dlogits": Output(shape)},
                call=call,
                bounds=within(**cross_entropy_bounds(logits, targets, smoothing, reduction, weight=weight)),
            )

        words = (f"smoothing-{smoothing}" if smoothing else "", reduction, f"ignored-{ignored}" if ignored else "")
        return Case(label(name, shape, *words, f"{weights}-weights" if weights else ""), make)

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
    yield case("zeros", LONG, reduction="sum")
    for shape, smoothing in product(((0, 3), (1, 1), (3, 10), (17, 1000), (127, 33)), (0.0, 0.1)):
        yield case("ordinary", shape, smoothing, "none")
        for reduction in ("mean", "sum", "none"):
            yield case("ordinary", shape, smoothing, reduction, 0.3, "uneven")
    for name in ("nan-row", "inf-row", "minus-inf-row", "one-minus-inf", "minus-inf-at-target", "mean-1e4"):
        yield case(name, (33, 10), 0.1, "none")
        yield case(name, (33, 10), 0.1, "mean", 0.0, "some-zero")
    for reduction, smoothing, ignored in product(("mean", "none"), (0.0, 0.1), (0.3, 1.0)):
        yield case("ordinary", (33, 10), smoothing, reduction, ignored, "zero")
    for weights in ("mixed-scales", "equal"):
        yield case("ordinary", (33, 10), 0.1, "mean", 0.0, weights)
    yield from in_all_layouts(case("ordinary", (19, 7), 0.2, "none", 0.0, "uneven"))
    yield case("zeros", LONG, 0.1, "mean", 0.0, "tenths")
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


def scale_rows_cases() -> Iterator[Case]:
    """Of scale_rows: one rounding."""

    def case(name: str, shape: tuple[int, int]) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            return Problem(
                inputs={"x": FAMILIES[name](rng, shape), "factors": FAMILIES[name](rng, (shape[0], 1))[:, 0].copy()},
                outputs={"y": Output(shape)},
                call=lambda backend, a: backend.scale_rows(a["x"], a["factors"], a["y"]),
                bounds=relative(1),
            )

        return Case(label(name, shape), make)

    for shape in ((0, 3), (1, 1), (5, 1), (1, 7), (127, 10), (2000, 33)):
        yield case("ordinary", shape)
    for name in FAMILIES:
        if name != "ordinary":
            yield case(name, (33, 10))
    yield from in_all_layouts(case("ordinary", (19, 7)))


CASES = {
    "cross_entropy": cross_entropy_cases,
    "scale_rows": scale_rows_cases,
}
