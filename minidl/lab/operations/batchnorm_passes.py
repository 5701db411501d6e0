"""Checks of batch normalization's backward in training a pass at a time: the sums over rows, and dx from them."""

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import numpy as np

from kernels.activation import relu_forward_reference
from kernels.batch_statistics import GradientSums, Normalization, PendingGradient
from kernels.batchnorm import batchnorm_gradient_sums_reference
from minidl.backends import Backend
from minidl.lab.budget import merging
from minidl.lab.inputs import FAMILIES, Family, normal, whole, with_values
from minidl.lab.operations.batchnorm_bounds import GIVEN, elements, pending_bound, sums_bounds
from minidl.lab.operations.batchnorm_statistics import (
    FROZEN,
    IN_ALL_LAYOUTS,
    MANY_ROWS,
    PLAIN,
    affine_parameters,
    fixed_statistics,
    given_statistics,
    inputs_of_all_kinds,
    read,
)
from minidl.lab.operations.batchnorm_stored import stored_cases
from minidl.lab.operations.case import Arrays, Case, Host, Output, Problem, in_all_layouts, label, within

HOSTILE_SHAPES: tuple[tuple[int, ...], ...] = ((130, 3), (131, 8))
# With hostile gradients: of dy, by name.
GRADIENTS: dict[str, Family] = {
    "dy-mean-1e4": normal(1e4, 1),
    "dy-nan": with_values(np.nan),
    "dy-inf": with_values(np.inf),
    "dy-denormal": FAMILIES["denormal"],
    "dy-scattered-outliers": FAMILIES["scattered-outliers"],
}
WHOLE, OPEN = whole(30005, 29990), whole(1, 0)
MEAN, SLOPE = "mean_g", "slope"
Make = Callable[..., Case]


def _all(case: Make) -> Iterator[Case]:
    """What both passes are tried on."""
    for arguments in inputs_of_all_kinds():
        for relu in (False, True):
            one = case(*arguments, relu=relu)
            yield from in_all_layouts(one) if arguments[2] in IN_ALL_LAYOUTS else (one,)
    for relu, shape in product((False, True), HOSTILE_SHAPES):
        for name, family in GRADIENTS.items():
            yield case(name, PLAIN, shape, relu=relu, of_dy=family)
        for name in ("nan", "inf", "minus-inf-and-inf"):  # in x; the statistics, being given, are finite
            yield case(f"fixed-{name}", FAMILIES[name], shape, relu=relu)
        yield case("empty", PLAIN, (0, shape[-1]), relu=relu)
    for relu in (False, True):
        yield case("ordinary", PLAIN, (5, 3, 3, 33), relu=relu, affine=False)


def _sums_of(arrays: Arrays) -> GradientSums:
    return GradientSums(arrays.get("dgamma"), arrays.get("dbeta"), arrays[MEAN], arrays[SLOPE])


def _outputs(c: int, affine: bool, frozen: Sequence[str]) -> dict[str, Output]:
    wanted = [name for name in ("dgamma", "dbeta") if affine and name not in frozen]
    return {name: Output((c,)) for name in (*wanted, MEAN, SLOPE)}


def sums_cases() -> Iterator[Case]:
    """Of batchnorm_gradient_sums."""

    def case(
        name: str,
        family: Family,
        shape: tuple[int, ...],
        relu: bool = False,
        affine: bool = True,
        of_dy: Family = PLAIN,
        frozen: Sequence[str] = (),
    ) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            x, dy, c = family(rng, shape), of_dy(rng, shape), shape[-1]
            parameters = affine_parameters(rng, c, affine)
            statistics = fixed_statistics(rng, c) if name.startswith("fixed") else given_statistics(x)

            def call(backend: Backend, a: Arrays) -> None:
                normalization = Normalization(read(a), a.get("gamma"), a.get("beta"), relu)
                backend.batchnorm_gradient_sums(a["x"], a["dy"], normalization, _sums_of(a))

            e = elements(x, read(statistics), parameters.get("gamma"), parameters.get("beta"), GIVEN)
            sums = merging(shape[0]) if name == "whole" else None  # all other sums are exact
            return Problem(
                inputs={"x": x, "dy": dy, **parameters, **statistics},
                outputs=_outputs(c, affine, frozen),
                call=call,
                bounds=within(**sums_bounds(e, dy, statistics["inv_std"].astype(np.float64), relu, sums)),
            )

        return Case(label(name, shape, "relu" if relu else "", *_without(affine, frozen)), make)

    yield from _all(case)
    for frozen in FROZEN:
        yield case("ordinary", PLAIN, (5, 3, 3, 33), frozen=frozen)
    yield case("whole", whole(0, 1), (MANY_ROWS, 2), of_dy=WHOLE)
    yield from stored_cases(
        lambda name, family, plain, shape: case(name, family, shape, relu=True, of_dy=plain), "x", "dy"
    )


def add_relu_sums_cases() -> Iterator[Case]:
    """Of batchnorm_add_relu_gradient_sums."""

    def case(
        name: str,
        family: Family,
        shape: tuple[int, ...],
        of_dy: Family = PLAIN,
        of_y: Family = PLAIN,
        frozen: Sequence[str] = (),
    ) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            x, dy = family(rng, shape), of_dy(rng, shape)
            y = relu_forward_reference(of_y(rng, shape))  # says nothing of x, as where a residual decides
            statistics = given_statistics(x)

            def call(backend: Backend, a: Arrays) -> None:
                backend.batchnorm_add_relu_gradient_sums(a["x"], a["y"], a["dy"], read(a), a["dresidual"], _sums_of(a))

            e = elements(x, read(statistics), None, None, GIVEN)
            sums = merging(shape[0]) if name == "whole" else None  # all other sums are exact
            masked, inv_std = np.where(y <= 0, 0, dy), statistics["inv_std"].astype(np.float64)
            return Problem(
                inputs={"x": x, "y": y, "dy": dy, **statistics},
                outputs={"dresidual": Output(shape), **_outputs(shape[-1], True, frozen)},
                call=call,
                bounds=within(dresidual=np.zeros(()), **sums_bounds(e, masked, inv_std, False, sums)),
            )

        return Case(label(name, shape, *_without(True, frozen)), make)

    for arguments in inputs_of_all_kinds():
        one = case(*arguments)
        yield from in_all_layouts(one) if arguments[2] in IN_ALL_LAYOUTS else (one,)
    for shape in HOSTILE_SHAPES:
        for name, family in GRADIENTS.items():
            yield case(name, PLAIN, shape, family)
        for name in ("nan", "minus-inf-and-inf", "denormal"):
            yield case(f"y-{name}", PLAIN, shape, of_y=FAMILIES[name])
        yield case("closed", PLAIN, shape, GRADIENTS["dy-nan"], FAMILIES["zeros"])
        yield case("empty", PLAIN, (0, shape[-1]))
    for frozen in FROZEN:
        yield case("ordinary", PLAIN, (5, 3, 3, 33), frozen=frozen)
    yield case("whole", whole(0, 1), (MANY_ROWS, 2), WHOLE, OPEN)
    yield from stored_cases(
        lambda name, family, plain, shape: case(name, family, shape, plain, plain), "x", "y", "dy", "dresidual"
    )


def pending_cases() -> Iterator[Case]:
    """Of batchnorm_pending_gradient."""

    def case(
        name: str,
        family: Family,
        shape: tuple[int, ...],
        relu: bool = False,
        affine: bool = True,
        of_dy: Family = PLAIN,
    ) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            x, dy, c = family(rng, shape), of_dy(rng, shape), shape[-1]
            parameters = affine_parameters(rng, c, affine)
            statistics = fixed_statistics(rng, c) if name.startswith("fixed") else given_statistics(x)
            gamma, beta = parameters.get("gamma"), parameters.get("beta")
            normalization = Normalization(read(_wide(statistics)), gamma, beta, relu)
            found = batchnorm_gradient_sums_reference(x.astype(np.float64), dy.astype(np.float64), normalization)
            sums = {MEAN: np.asarray(found.mean_g, np.float32), SLOPE: np.asarray(found.slope, np.float32)}

            def call(backend: Backend, a: Arrays) -> None:
                given = Normalization(read(a), a.get("gamma"), a.get("beta"), relu)
                of_sums = GradientSums(None, None, a[MEAN], a[SLOPE])
                backend.batchnorm_pending_gradient(PendingGradient(a["dy"], a["x"], given, of_sums), a["dx"])

            e = elements(x, read(statistics), gamma, beta, GIVEN)
            return Problem(
                inputs={"x": x, "dy": dy, **parameters, **statistics, **sums},
                outputs={"dx": Output(shape)},
                call=call,
                bounds=within(dx=pending_bound(e, x, dy, read(statistics), sums[MEAN], sums[SLOPE], relu)),
            )

        return Case(label(name, shape, "relu" if relu else "", *_without(affine, ())), make)

    yield from _all(case)
    yield from stored_cases(
        lambda name, family, plain, shape: case(name, family, shape, relu=True, of_dy=plain), "x", "dy", "dx"
    )


def _wide(arrays: dict[str, Host]) -> dict[str, Host]:
    return {name: array.astype(np.float64) for name, array in arrays.items()}


def _without(affine: bool, frozen: Sequence[str]) -> tuple[str, str]:
    return "" if affine else "no-affine", f"no-{'-'.join(frozen)}" if frozen else ""


CASES = {
    "batchnorm_gradient_sums": sums_cases,
    "batchnorm_add_relu_gradient_sums": add_relu_sums_cases,
    "batchnorm_pending_gradient": pending_cases,
}
