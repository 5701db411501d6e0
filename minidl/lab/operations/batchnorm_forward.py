"""Checks of batch normalization's forward in training as one operation: the statistics of a batch, and y by them."""

from collections.abc import Iterator

import numpy as np

from kernels.batchnorm import BatchStatistics
from minidl.backends import Backend
from minidl.lab.inputs import FAMILIES, Family
from minidl.lab.operations.batchnorm_bounds import add_relu_bound, elements, held_shift
from minidl.lab.operations.batchnorm_statistics import (
    EPS,
    PARTS,
    PLAIN,
    affine_parameters,
    compared_statistics,
    inputs_of_all_kinds,
    read,
    statistics_bounds,
)
from minidl.lab.operations.batchnorm_stored import stored_cases
from minidl.lab.operations.case import Answers, Arrays, Case, Output, Problem, Values, in_all_layouts, label

# For one channel a thread and for four, the rows no multiple of anything; more than one line of channels, and rows for
# several blocks.
HOSTILE_SHAPES: tuple[tuple[int, ...], ...] = ((130, 3), (131, 8))
IN_ALL_LAYOUTS: tuple[tuple[int, ...], ...] = ((129, 3), (129, 8))
LARGE: tuple[tuple[int, ...], ...] = ((4133, 40), (20011, 4), (300, 260))


def forward_cases() -> Iterator[Case]:
    """Of batchnorm_forward."""

    def case(
        name: str,
        family: Family,
        shape: tuple[int, ...],
        relu: bool = False,
        affine: bool = True,
        of_residual: Family | None = None,
    ) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            x = family(rng, shape)
            parameters = affine_parameters(rng, shape[-1], affine)
            added = {} if of_residual is None else {"residual": of_residual(rng, shape)}

            def call(backend: Backend, a: Arrays) -> None:
                given = a["x"], a.get("gamma"), a.get("beta"), EPS, read(a), a["y"], relu
                backend.batchnorm_forward(*given, a.get("residual"))

            def derive(answers: Values) -> Values:
                return {**compared_statistics(x, answers), "y": answers["y"]}

            def bounds(answers: Answers) -> Values:
                mean, var, inv_std = (answers.expected[key] for key in ("mean", "var", "inv_std"))
                of_statistics, off = statistics_bounds(x, EPS, answers, name)
                shift = held_shift(answers.got["shift"], mean, var)
                statistics = BatchStatistics(shift, mean - shift, var, inv_std)
                e = elements(x, statistics, parameters.get("gamma"), parameters.get("beta"), off)
                return {**of_statistics, "y": add_relu_bound(e, added["residual"]) if added else e.y_error}

            return Problem(
                inputs={"x": x, **parameters, **added},
                outputs={**{part: Output(shape[-1:]) for part in PARTS}, "y": Output(shape)},
                call=call,
                derive=derive,
                bounds=bounds,
            )

        options = "" if affine else "no-affine", "relu" if relu else "", "" if of_residual is None else "residual"
        return Case(label(name, shape, *options), make)

    for i, arguments in enumerate(inputs_of_all_kinds()):
        yield case(*arguments, relu=i % 2 == 0)
    for shape in IN_ALL_LAYOUTS:
        yield from in_all_layouts(case("ordinary", PLAIN, shape, affine=False))
        yield from in_all_layouts(case("ordinary", PLAIN, shape, True, of_residual=PLAIN))
    for shape in HOSTILE_SHAPES:
        for name, family in FAMILIES.items():
            yield case(name, family, shape, True, of_residual=PLAIN)
            yield case(f"residual-{name}", PLAIN, shape, True, of_residual=family)
    for shape in LARGE:
        yield case("ordinary", PLAIN, shape)
        yield case("mean-1e4-std-1e-2", FAMILIES["mean-1e4-std-1e-2"], shape, True, of_residual=PLAIN)
    for affine in (True, False):
        yield case("one-row", PLAIN, (1, 3), True, affine)
    yield from stored_cases(lambda name, family, _, shape: case(name, family, shape), "x", "y")
    yield from stored_cases(
        lambda name, family, plain, shape: case(name, family, shape, True, of_residual=plain), "x", "y", "residual"
    )


CASES = {"batchnorm_forward": forward_cases}
