"""Checks of batch normalization's statistics: of a batch, of the running estimates, and how one enters the other."""

from collections.abc import Iterator
from itertools import product

import numpy as np

from kernels.batchnorm import BatchStatistics
from minidl.backends import Backend
from minidl.lab.budget import U, merging
from minidl.lab.inputs import FAMILIES, Family, exact_statistics, normal, whole
from minidl.lab.operations.batchnorm_bounds import SPREAD, Uncertainty, statistics_uncertainty, update_bound
from minidl.lab.operations.batchnorm_stored import stored_cases
from minidl.lab.operations.case import (
    Answers,
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

EPS = 1e-5
PARTS = ("shift", "delta", "var", "inv_std")
PLAIN = FAMILIES["ordinary"]
FROZEN = (("dgamma",), ("dbeta",), ("dgamma", "dbeta"))  # gradients that backward may not be asked for

# Rows around chunks of 128 and 256, one channel to many (130 and 516 are more than one block's), and (the last two)
# enough rows for several threads.
SHAPES: tuple[tuple[int, ...], ...] = (
    (2, 1), (3, 2), (1, 1, 2, 3), (7, 5), (1, 7, 11, 5), (127, 1), (128, 2), (129, 3), (2, 8, 16, 16), (257, 17),
    (5, 3, 3, 33), (4, 8, 8, 64), (9, 130), (5, 516), (70001, 1), (8, 32, 32, 16),
)  # fmt: skip
HOSTILE_SHAPES: tuple[tuple[int, ...], ...] = ((1, 7, 11, 5), (130, 3), (131, 8), (4100, 2))
IN_ALL_LAYOUTS = ((129, 3), (2, 8, 16, 16))  # channels that come in fours, and that do not
MANY_ROWS = 2**20  # a float32 accumulator over all chunks would lose several digits
EXACT_SHAPES: tuple[tuple[int, ...], ...] = ((2, 1), (64, 3), (130, 5), (2, 32, 32, 2), (258, 17))


def inputs_of_all_kinds(shapes: tuple[tuple[int, ...], ...] = SHAPES) -> Iterator[tuple[str, Family, tuple[int, ...]]]:
    """(family's name, family, shape of x): all shapes with ordinary numbers, all families with a few shapes."""
    yield from (("ordinary", PLAIN, shape) for shape in shapes)
    yield from product_of(((name, family) for name, family in FAMILIES.items() if name != "ordinary"), HOSTILE_SHAPES)
    yield from product_of((("exact", exact_statistics),), EXACT_SHAPES)


def product_of(
    families: Iterator[tuple[str, Family]] | tuple[tuple[str, Family], ...], shapes: tuple[tuple[int, ...], ...]
) -> Iterator[tuple[str, Family, tuple[int, ...]]]:
    """Each family with each shape."""
    yield from ((name, family, shape) for (name, family), shape in product(families, shapes))


def one_a_channel(rng: np.random.Generator, mean: float, std: float, c: int) -> Host:
    """(c,) Gaussian numbers: a parameter or a statistic."""
    return normal(mean, std)(rng, (c,))


def affine_parameters(rng: np.random.Generator, c: int, affine: bool) -> dict[str, Host]:
    """Gamma around 1, of both signs, with a 0 where there is room; beta."""
    if not affine:
        return {}
    gamma = one_a_channel(rng, 1, 1, c)
    gamma[3::7] = 0
    return {"gamma": gamma, "beta": one_a_channel(rng, 0, 1, c)}


def fixed_statistics(rng: np.random.Generator, c: int) -> dict[str, Host]:
    """Running estimates, which have nothing to do with x: what of it is not finite meets finite numbers."""
    var = one_a_channel(rng, 0, 1, c) ** 2
    return dict(zip(PARTS, (one_a_channel(rng, 0, 1, c), np.zeros_like(var), var, 1 / np.sqrt(var + EPS)), strict=True))


def given_statistics(x: Host) -> dict[str, Host]:
    """Statistics of x as a backend would hand them on: float32, the shift an element of the channel."""
    rows = x.reshape(-1, x.shape[-1]).astype(np.float64)
    if not len(rows):
        return {name: np.ones(x.shape[-1], np.float32) for name in PARTS}
    mean, var = rows.mean(axis=0), rows.var(axis=0)
    shift = np.sort(rows[[0, len(rows) // 2, -1]], axis=0)[1]  # the median of three
    parts = shift, mean - shift, var, 1 / np.sqrt(var + EPS)
    return {name: part.astype(np.float32) for name, part in zip(PARTS, parts, strict=True)}


def read(arrays: Arrays) -> BatchStatistics:
    """The four statistics among `arrays`."""
    return BatchStatistics(*(arrays[name] for name in PARTS))


def compared_statistics(x: Host, answers: Values) -> dict[str, Host]:
    """Mean in float64, var and inv_std; and the shift, where the channel is finite (elsewhere it may be anything)."""
    finite = np.isfinite(x.reshape(-1, x.shape[-1])).all(axis=0)
    return {
        "shift": np.where(finite, answers["shift"], 0),
        "mean": answers["shift"] + answers["delta"],
        "var": answers["var"],
        "inv_std": answers["inv_std"],
    }


def statistics_bounds(x: Host, eps: float, answers: Answers, name: str) -> tuple[Values, Uncertainty]:
    """Bounds of `compared_statistics` for the family `name`, and what they leave open to users of the statistics."""
    expected = answers.expected
    sums = merging(x.size // x.shape[-1]) if name == "whole" else None  # all other sums are exact
    off = statistics_uncertainty(x, eps, expected["mean"], expected["var"], answers.got["shift"], sums)
    if name == "exact":  # x is made so that these two need no rounding
        off = Uncertainty(np.zeros_like(off.mean), np.zeros_like(off.var), np.full_like(off.inv_std, 4 * U))
    reach = np.where(np.isfinite(expected["var"]), SPREAD * np.sqrt(expected["var"]), 0)
    return {"shift": reach, "mean": off.mean, "var": off.var, "inv_std": off.inv_std * expected["inv_std"]}, off


def statistics_cases() -> Iterator[Case]:
    """Of batchnorm_statistics."""

    def case(name: str, family: Family, shape: tuple[int, ...], eps: float = EPS) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            x = family(rng, shape)

            def bounds(answers: Answers) -> Values:
                return statistics_bounds(x, eps, answers, name)[0]

            def call(backend: Backend, arrays: Arrays) -> None:
                backend.batchnorm_statistics(arrays["x"], eps, read(arrays))

            return Problem(
                inputs={"x": x},
                outputs={part: Output(shape[-1:]) for part in PARTS},
                call=call,
                derive=lambda answers: compared_statistics(x, answers),
                bounds=bounds,
            )

        return Case(label(name, shape, "" if eps == EPS else f"eps-{eps:g}"), make)

    for arguments in inputs_of_all_kinds():
        yield from in_all_layouts(case(*arguments)) if arguments[2] in IN_ALL_LAYOUTS else (case(*arguments),)
    yield case("one-row", PLAIN, (1, 3))
    yield case("two-outliers", FAMILIES["two-outliers"], (MANY_ROWS + 1, 1))
    yield case("whole", whole(0, 251), (MANY_ROWS, 2))
    for eps in (1e-12, 1e-3, 1.0):
        yield case("mean-1e4-std-1e-2", FAMILIES["mean-1e4-std-1e-2"], (257, 5), eps)
    yield from stored_cases(lambda name, family, _, shape: case(name, family, shape), "x")


def running_statistics_cases() -> Iterator[Case]:
    """Of batchnorm_running_statistics: exact but for inv_std."""

    def case(name: str, var: tuple[float, ...], eps: float) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            values = {"mean": one_a_channel(rng, 1e4, 1, len(var)), "running_var": np.array(var, np.float32)}

            def call(backend: Backend, arrays: Arrays) -> None:
                backend.batchnorm_running_statistics(arrays["mean"], arrays["running_var"], eps, read(arrays))

            return Problem(
                inputs=values,
                outputs={part: Output((len(var),)) for part in PARTS},
                call=call,
                # eps, the sum with it, the square root and the reciprocal; the first two under the root, so half.
                bounds=lambda answers: {**exact(answers), "inv_std": 3 * U * answers.expected["inv_std"]},
            )

        return Case(label(name, f"eps-{eps:g}"), make)

    var = (0.0, 1e-45, 1e-10, 9e-6, 0.7, 1.0, 1.5, 3e4, 1e30, np.nan, np.inf)
    yield from (case("all-sizes", var, eps) for eps in (1e-12, 1e-5, 1e-3, 1.0))
    yield from in_all_layouts(case("one-channel", (0.3,), EPS))


def update_running_cases() -> Iterator[Case]:
    """Of batchnorm_update_running."""

    def case(name: str, mean: float, rows: int, factor: float, on_device: bool = False) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            batch = {
                "shift": one_a_channel(rng, mean, 1, 7),
                "delta": one_a_channel(rng, 0, 1, 7),
                "var": one_a_channel(rng, 0, 1, 7) ** 2,
                "inv_std": one_a_channel(rng, 0, 1, 7) ** 2,
            }
            batch["var"][2] = np.nan if name == "nan" else 0
            state = {
                "running_mean": one_a_channel(rng, mean / 2, 1, 7),
                "running_var": one_a_channel(rng, 0, 1, 7) ** 2,
            }

            def call(backend: Backend, arrays: Arrays) -> None:
                running = arrays["running_mean"], arrays["running_var"]
                given = arrays["factor"] if on_device else factor
                backend.batchnorm_update_running(read(arrays), rows, given, *running)

            batch_mean = batch["shift"].astype(np.float64) + batch["delta"]
            unbiased = batch["var"].astype(np.float64) * (rows / (rows - 1))
            return Problem(
                inputs=batch | ({"factor": np.array(factor, np.float32)} if on_device else {}),
                state=state,
                call=call,
                bounds=within(
                    running_mean=update_bound(state["running_mean"], batch_mean, factor),
                    running_var=update_bound(state["running_var"], unbiased, factor),
                ),
            )

        where = "on-the-device" if on_device else ""
        return Case(label(name, f"rows-{rows}", f"factor-{factor:.4g}", where), make)

    for rows, factor in product((2, 3, 50000), (0.1, 1.0, 1 / 3, 0.001)):
        yield case("ordinary", 0, rows, factor)
    yield from in_all_layouts(case("mean-1e4", 1e4, 10, 0.1))
    yield from in_all_layouts(case("mean-1e4", 1e4, 10, 0.3, on_device=True))
    yield case("nan", 0, 10, 0.1)
