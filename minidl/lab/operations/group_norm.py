"""Checks of group, layer and instance normalization: statistics, forward, backward.

What an input family says of a channel holds here for a group of a sample.
"""

from collections.abc import Iterator
from itertools import product

import numpy as np

from kernels.batchnorm import BatchStatistics
from minidl.backends import Backend
from minidl.lab.budget import merging
from minidl.lab.inputs import FAMILIES, Family, exact_statistics, normal, whole, with_values
from minidl.lab.operations.batchnorm_statistics import (
    EPS,
    PARTS,
    PLAIN,
    affine_parameters,
    compared_statistics,
    given_statistics,
    one_a_channel,
    read,
    statistics_bounds,
)
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
from minidl.lab.operations.group_norm_bounds import backward_bounds, columns, restored, y_bound

Form = tuple[tuple[int, ...], int]  # x's shape and the groups

# Groups of one channel, of some and of all; samples of one row, of a few and of many; what comes in fours and what does
# not; groups of a lane, a warp and a block, blocks that have parts of a sample, and more samples than blocks.
FORMS: tuple[Form, ...] = (
    ((1, 2), 1), ((2, 1, 3), 1), ((3, 2, 1), 1), ((5, 17), 1), ((3, 64), 1), ((7, 12), 3), ((2, 1030), 1),
    ((3, 8, 520), 1), ((2, 5, 12), 2), ((2, 3, 12), 12), ((3, 7, 6), 3), ((2, 2, 8, 1), 1), ((2, 3, 3, 7), 7),
    ((3, 11, 13, 12), 3), ((5, 4, 4, 64), 8), ((2, 16, 16, 16), 16), ((2, 9, 15, 33), 11), ((1, 40, 40, 8), 4),
    ((2, 10, 10, 132), 1), ((130, 3, 3, 5), 1), ((4, 9000), 2), ((1, 40000), 1), ((257, 2, 2, 8), 2),
)  # fmt: skip
HOSTILE_FORMS: tuple[Form, ...] = (
    ((3, 130), 1), ((2, 7, 11, 6), 2), ((3, 8, 5, 8), 4), ((2, 4, 24), 3), ((2, 9, 4), 4),
)  # fmt: skip
IN_ALL_LAYOUTS: tuple[Form, ...] = (((5, 17), 1), ((3, 64), 1), ((3, 7, 6), 3), ((5, 4, 4, 64), 8), ((2, 5, 12), 2))
EXACT_FORMS: tuple[Form, ...] = (((3, 64), 1), ((2, 130), 1), ((3, 4, 4, 8), 2), ((2, 16, 16, 4), 4), ((2, 6, 6, 6), 3))
LONG: tuple[Form, ...] = (((2, 2**19), 1), ((1, 2**19, 2), 2))  # an accumulator over all parts would lose some digits


def in_groups(family: Family, shape: tuple[int, ...], groups: int) -> Family:
    """The family with each group of a sample as one of its channels."""

    def family_of_groups(rng: np.random.Generator, _: tuple[int, ...] = shape) -> Host:
        sets = columns(np.empty(shape, np.float32), groups).shape
        return np.ascontiguousarray(restored(family(rng, sets), shape, groups))

    return family_of_groups


def inputs_of_all_kinds() -> Iterator[tuple[str, Family, Form]]:
    """(family's name, family, form): all forms with ordinary numbers, all families with a few forms."""
    yield from (("ordinary", PLAIN, form) for form in FORMS)
    hostile = ((name, family) for name, family in FAMILIES.items() if name != "ordinary")
    yield from ((name, family, form) for (name, family), form in product(hostile, HOSTILE_FORMS))
    yield from (("exact", exact_statistics, form) for form in EXACT_FORMS)


def statistics_cases() -> Iterator[Case]:
    """Of group_norm_statistics."""

    def case(name: str, family: Family, form: Form, eps: float = EPS) -> Case:
        shape, groups = form

        def make(rng: np.random.Generator) -> Problem:
            x = in_groups(family, shape, groups)(rng, shape)
            sets = columns(x, groups)

            def call(backend: Backend, arrays: Arrays) -> None:
                backend.group_norm_statistics(arrays["x"], groups, eps, read(arrays))

            def derive(answers: Values) -> Values:
                if not shape[0]:
                    return answers
                return compared_statistics(sets, {name: value.reshape(-1) for name, value in answers.items()})

            def bounds(answers: Answers) -> Values:
                if not shape[0]:
                    return exact(answers)
                return statistics_bounds(sets, eps, answers, name)[0]

            return Problem(
                inputs={"x": x},
                outputs={part: Output((shape[0], groups)) for part in PARTS},
                call=call,
                derive=derive,
                bounds=bounds,
            )

        return Case(label(name, shape, f"groups-{groups}", "" if eps == EPS else f"eps-{eps:g}"), make)

    for arguments in inputs_of_all_kinds():
        yield from in_all_layouts(case(*arguments)) if arguments[2] in IN_ALL_LAYOUTS else (case(*arguments),)
    yield case("one-element", PLAIN, ((3, 2), 2))
    yield case("one-element", PLAIN, ((2, 1, 1, 4), 4))
    yield case("no-samples", PLAIN, ((0, 3, 4), 2))
    yield from (case("whole", whole(0, 251), form) for form in LONG)
    for eps in (1e-12, 1e-3, 1.0):
        yield case("mean-1e4-std-1e-2", FAMILIES["mean-1e4-std-1e-2"], ((3, 8, 5, 8), 4), eps)


def statistics_of(x: Host, groups: int) -> dict[str, Host]:
    """As a backend would hand them on: float32, the shift an element of the group."""
    sets = given_statistics(columns(x, groups)) if len(x) else dict.fromkeys(PARTS, np.zeros(0, np.float32))
    return {name: part.reshape(x.shape[0], groups) for name, part in sets.items()}


def fixed_statistics(rng: np.random.Generator, n: int, groups: int) -> dict[str, Host]:
    """Of some other input: what of x is not finite meets finite numbers."""
    var = one_a_channel(rng, 0, 1, n * groups).reshape(n, groups) ** 2
    parts = one_a_channel(rng, 0, 1, n * groups).reshape(n, groups), np.zeros_like(var), var, 1 / np.sqrt(var + EPS)
    return dict(zip(PARTS, parts, strict=True))


def apply_cases() -> Iterator[Case]:
    """Of group_norm_apply."""

    def case(name: str, family: Family, form: Form, parameters: str = "gamma beta") -> Case:
        shape, groups = form

        def make(rng: np.random.Generator) -> Problem:
            x = in_groups(family, shape, groups)(rng, shape)
            given = {key: value for key, value in affine_parameters(rng, shape[-1], True).items() if key in parameters}
            statistics = fixed_statistics(rng, shape[0], groups) if name[:5] == "fixed" else statistics_of(x, groups)

            def call(backend: Backend, a: Arrays) -> None:
                backend.group_norm_apply(a["x"], read(a), groups, a.get("gamma"), a.get("beta"), a["y"])

            bound = y_bound(x, read(statistics), groups, given.get("gamma"), given.get("beta"))
            return Problem(
                inputs={"x": x, **given, **statistics}, outputs={"y": Output(shape)}, call=call, bounds=within(y=bound)
            )

        which = {"gamma beta": "", "gamma": "no-beta", "": "no-affine"}[parameters]
        return Case(label(name, shape, f"groups-{groups}", which), make)

    for arguments in inputs_of_all_kinds():
        yield from in_all_layouts(case(*arguments)) if arguments[2] in IN_ALL_LAYOUTS else (case(*arguments),)
    for parameters in ("gamma", ""):
        for form in IN_ALL_LAYOUTS:
            yield case("ordinary", PLAIN, form, parameters)
    for form in HOSTILE_FORMS:
        yield from (case(f"fixed-{name}", FAMILIES[name], form) for name in ("nan", "inf", "minus-inf-and-inf"))
    yield case("no-samples", PLAIN, ((0, 3, 4), 2))
    yield case("no-rows", PLAIN, ((2, 0, 3, 4), 2))


def backward_cases() -> Iterator[Case]:
    """Of group_norm_backward."""

    def case(
        name: str,
        family: Family,
        form: Form,
        affine: bool = True,
        of_dy: Family = PLAIN,
        wanted: tuple[str, ...] = ("dgamma", "dbeta"),
    ) -> Case:
        shape, groups = form

        def make(rng: np.random.Generator) -> Problem:
            x, dy = in_groups(family, shape, groups)(rng, shape), of_dy(rng, shape)
            parameters = affine_parameters(rng, shape[-1], affine)
            parameters.pop("beta", None)
            statistics = fixed_statistics(rng, shape[0], groups) if name[:5] == "fixed" else statistics_of(x, groups)

            def call(backend: Backend, a: Arrays) -> None:
                gradients = a["dx"], a.get("dgamma"), a.get("dbeta")
                backend.group_norm_backward(a["x"], a["dy"], read(a), groups, a.get("gamma"), *gradients)

            given = x, dy, BatchStatistics(**statistics), groups, parameters.get("gamma")
            sums = (merging(x.size // (shape[0] * groups)), merging(x.size // shape[-1])) if name == "whole" else ()
            known = backward_bounds(*given, *sums)  # all sums of whole numbers are exact, but of parts
            outputs = {"dx": Output(shape), **({key: Output(shape[-1:]) for key in wanted} if affine else {})}
            return Problem(
                inputs={"x": x, "dy": dy, **parameters, **statistics},
                outputs=outputs,
                call=call,
                bounds=within(**known),
            )

        without = "" if len(wanted) == 2 else f"only-{wanted[0]}" if wanted else "only-dx"
        return Case(label(name, shape, f"groups-{groups}", "" if affine else "no-affine", without), make)

    for arguments in inputs_of_all_kinds():
        yield from in_all_layouts(case(*arguments)) if arguments[2] in IN_ALL_LAYOUTS else (case(*arguments),)
    for form in IN_ALL_LAYOUTS:
        yield case("ordinary", PLAIN, form, affine=False)
        for wanted in (("dgamma",), ("dbeta",), ()):
            yield case("ordinary", PLAIN, form, wanted=wanted)
    for form in HOSTILE_FORMS:
        yield case("dy-mean-1e4", PLAIN, form, of_dy=normal(1e4, 1))
        yield case("dy-nan", PLAIN, form, of_dy=with_values(np.nan))
        yield case("dy-inf", PLAIN, form, of_dy=with_values(np.inf))
        yield case("dy-denormal", PLAIN, form, of_dy=FAMILIES["denormal"])
        yield from (case(f"fixed-{name}", FAMILIES[name], form) for name in ("nan", "inf", "minus-inf-and-inf"))
    yield case("no-samples", PLAIN, ((0, 3, 4), 2))
    yield case("no-samples", PLAIN, ((0, 4), 1))
    yield case("no-rows", PLAIN, ((2, 0, 3, 4), 2))
    yield from (case("whole", whole(0, 1), form, of_dy=whole(30005, 29990)) for form in LONG)


CASES = {
    "group_norm_statistics": statistics_cases,
    "group_norm_apply": apply_cases,
    "group_norm_backward": backward_cases,
}
