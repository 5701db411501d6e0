"""Checks of batch normalization's use of its statistics: forward, backward, and both with what comes before."""

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np

from kernels.batchnorm import BatchStatistics
from minidl.backends import Array, Backend
from minidl.lab.budget import merging
from minidl.lab.inputs import FAMILIES, Family, normal, whole, with_values
from minidl.lab.operations.batchnorm_bounds import GIVEN, backward_bounds, elements, held_shift, update_bound
from minidl.lab.operations.batchnorm_statistics import (
    EPS,
    FROZEN,
    IN_ALL_LAYOUTS,
    MANY_ROWS,
    PARTS,
    PLAIN,
    affine_parameters,
    compared_statistics,
    fixed_statistics,
    given_statistics,
    inputs_of_all_kinds,
    one_a_channel,
    read,
    running_statistics_cases,
    statistics_bounds,
    statistics_cases,
    update_running_cases,
)
from minidl.lab.operations.batchnorm_stored import stored_cases
from minidl.lab.operations.case import (
    Answers,
    Arrays,
    Case,
    Output,
    Problem,
    Values,
    in_all_layouts,
    label,
    within,
)


def apply_cases() -> Iterator[Case]:
    """Of batchnorm_apply."""

    def case(name: str, family: Family, shape: tuple[int, ...], affine: bool = True, relu: bool = False) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            x = family(rng, shape)
            parameters = affine_parameters(rng, shape[-1], affine)
            statistics = given_statistics(x)

            def call(backend: Backend, a: Arrays) -> None:
                backend.batchnorm_apply(a["x"], read(a), a.get("gamma"), a.get("beta"), a["y"], relu)

            given = parameters.get("gamma"), parameters.get("beta")
            return Problem(
                inputs={"x": x, **parameters, **statistics},
                outputs={"y": Output(shape)},
                call=call,
                bounds=within(y=elements(x, read(statistics), *given, GIVEN).y_error),
            )

        return Case(label(name, shape, "" if affine else "no-affine", "relu" if relu else ""), make)

    for arguments in inputs_of_all_kinds():
        yield from in_all_layouts(case(*arguments)) if arguments[2] in IN_ALL_LAYOUTS else (case(*arguments),)
        yield case(*arguments, relu=True)
    for relu in (False, True):
        yield case("ordinary", PLAIN, (5, 3, 3, 33), affine=False, relu=relu)
        yield case("empty", PLAIN, (0, 3), relu=relu)
        yield case("one-row", PLAIN, (1, 3), relu=relu)
        yield from stored_cases(
            lambda name, family, _, shape, relu=relu: case(name, family, shape, relu=relu), "x", "y"
        )


def backward_cases() -> Iterator[Case]:
    """Of batchnorm_backward."""

    def case(
        name: str,
        family: Family,
        shape: tuple[int, ...],
        training: bool,
        relu: bool,
        affine: bool = True,
        of_dy: Family = PLAIN,
        frozen: Sequence[str] = (),
    ) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            x, dy = family(rng, shape), of_dy(rng, shape)
            parameters = affine_parameters(rng, shape[-1], affine)
            statistics = fixed_statistics(rng, shape[-1]) if name.startswith("fixed") else given_statistics(x)

            e = elements(x, read(statistics), parameters.get("gamma"), parameters.get("beta"), GIVEN)
            inv_std = statistics["inv_std"].astype(np.float64)
            sums = merging(shape[0]) if name == "whole" else None  # all other sums are exact
            known = backward_bounds(e, dy, inv_std, GIVEN, training, relu, sums)
            return Problem(
                inputs={"x": x, "dy": dy, **parameters, **statistics},
                outputs={key: output for key, output in _gradients(shape, affine).items() if key not in frozen},
                call=lambda backend, a: _backward(backend, a, read(a), training, relu),
                bounds=within(**known),
            )

        mode = "training" if training else "evaluation"
        without = "" if affine else "no-affine", f"no-{'-'.join(frozen)}" if frozen else ""
        return Case(label(name, shape, mode, "relu" if relu else "", *without), make)

    modes = tuple(product((True, False), (False, True)))
    for arguments in inputs_of_all_kinds():
        for training, relu in modes:
            one = case(*arguments, training, relu)
            yield from in_all_layouts(one) if arguments[2] in IN_ALL_LAYOUTS and training else (one,)
    for training, relu in modes:
        yield case("ordinary", PLAIN, (5, 3, 3, 33), training, relu, affine=False)
        for frozen in FROZEN:
            yield case("ordinary", PLAIN, (5, 3, 3, 33), training, relu, frozen=frozen)
        yield case("empty", PLAIN, (0, 3), training, relu)
        yield case("dy-mean-1e4", PLAIN, (257, 5), training, relu, of_dy=normal(1e4, 1))
        yield case("dy-nan", PLAIN, (130, 3), training, relu, of_dy=with_values(np.nan))
        yield case("dy-inf", PLAIN, (130, 3), training, relu, of_dy=with_values(np.inf))
        yield case("dy-denormal", PLAIN, (130, 3), training, relu, of_dy=FAMILIES["denormal"])
        for name in ("nan", "inf", "minus-inf-and-inf"):  # in x; the statistics, being given, are finite
            yield case(f"fixed-{name}", FAMILIES[name], (130, 8), training, relu)
        yield from stored_cases(
            lambda name, family, plain, shape, training=training, relu=relu: case(
                name, family, shape, training, relu, of_dy=plain
            ),
            *("x", "dy", "dx"),
        )
    yield case("whole", whole(0, 1), (MANY_ROWS, 2), True, False, of_dy=whole(30005, 29990))


def _gradients(shape: tuple[int, ...], affine: bool) -> dict[str, Output]:
    gradients = {"dx": Output(shape)}
    return {**gradients, "dgamma": Output(shape[-1:]), "dbeta": Output(shape[-1:])} if affine else gradients


def _backward(backend: Backend, a: Arrays, statistics: BatchStatistics, training: bool, relu: bool) -> None:
    affine: tuple[Array, Array] = (a.get("gamma"), a.get("beta"))
    gradients = a["dx"], a.get("dgamma"), a.get("dbeta")
    backend.batchnorm_backward(a["x"], a["dy"], statistics, *affine, *gradients, training, relu)


def layer_cases() -> Iterator[Case]:
    """Of "batchnorm_layer": a training pass, each operation reading what the one before it wrote.

    What a user sees is the sum of all errors: y and the gradients here carry those of the statistics.
    """

    def case(name: str, family: Family, shape: tuple[int, ...], relu: bool) -> Case:
        rows, factor = int(np.prod(shape[:-1])), 0.1

        def make(rng: np.random.Generator) -> Problem:
            x, dy = family(rng, shape), PLAIN(rng, shape)
            parameters = affine_parameters(rng, shape[-1], affine=True)
            state = {
                "running_mean": one_a_channel(rng, 0, 1, shape[-1]),
                "running_var": one_a_channel(rng, 0, 1, shape[-1]) ** 2,
            }

            def call(backend: Backend, a: Arrays) -> None:
                statistics = read(a)
                backend.batchnorm_statistics(a["x"], EPS, statistics)
                backend.batchnorm_update_running(statistics, rows, factor, a["running_mean"], a["running_var"])
                backend.batchnorm_apply(a["x"], statistics, a["gamma"], a["beta"], a["y"], relu)
                _backward(backend, a, statistics, True, relu)

            def derive(answers: Values) -> Values:
                rest = {name: value for name, value in answers.items() if name not in PARTS}
                return {**compared_statistics(x, answers), **rest}

            def bounds(answers: Answers) -> Values:
                mean, var, inv_std = (answers.expected[key] for key in ("mean", "var", "inv_std"))
                of_statistics, off = statistics_bounds(x, EPS, answers, name)
                shift = held_shift(answers.got["shift"], mean, var)
                e = elements(x, BatchStatistics(shift, mean - shift, var, inv_std), **parameters, off=off)
                unbiased = rows / (rows - 1)
                return {
                    **of_statistics,
                    "y": e.y_error,
                    **backward_bounds(e, dy, inv_std, off, True, relu),
                    "running_mean": update_bound(state["running_mean"], mean, factor, off.mean),
                    "running_var": update_bound(state["running_var"], var * unbiased, factor, off.var * unbiased),
                }

            return Problem(
                inputs={"x": x, "dy": dy, **parameters},
                outputs={
                    **{part: Output(shape[-1:]) for part in PARTS},
                    "y": Output(shape),
                    **_gradients(shape, affine=True),
                },
                state=state,
                call=call,
                derive=derive,
                bounds=bounds,
            )

        return Case(label(name, shape, "relu" if relu else ""), make)

    for arguments in inputs_of_all_kinds():
        for relu in (False, True):
            yield case(*arguments, relu)


CASES = {
    "batchnorm_statistics": statistics_cases,
    "batchnorm_running_statistics": running_statistics_cases,
    "batchnorm_update_running": update_running_cases,
    "batchnorm_apply": apply_cases,
    "batchnorm_backward": backward_cases,
    "batchnorm_layer": layer_cases,
}
