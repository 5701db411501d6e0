"""Checks of batch normalization at the end of a residual block: with what is added to it, and the ReLU behind."""

from collections.abc import Iterator, Sequence

import numpy as np

from kernels.activation import relu_forward_reference
from kernels.batchnorm import batchnorm_apply_reference
from minidl.backends import Backend
from minidl.lab.budget import U, merging
from minidl.lab.inputs import FAMILIES, Family, integers, normal, whole
from minidl.lab.operations.batchnorm_bounds import GIVEN, add_relu_backward_bounds, add_relu_bound, elements
from minidl.lab.operations.batchnorm_statistics import (
    FROZEN,
    MANY_ROWS,
    PARTS,
    PLAIN,
    affine_parameters,
    fixed_statistics,
    given_statistics,
    inputs_of_all_kinds,
    read,
)
from minidl.lab.operations.batchnorm_stored import stored_cases
from minidl.lab.operations.case import Arrays, Case, Host, Output, Problem, exact, in_all_layouts, label, within

# For one channel a thread, and for four; the rows are no multiple of anything.
HOSTILE_SHAPES: tuple[tuple[int, ...], ...] = ((130, 3), (131, 8))
# Powers of two, for exact means.
EXACT_SHAPES: tuple[tuple[int, ...], ...] = ((2, 1), (64, 3), (2, 8, 8, 8), (2, 32, 32, 2))
HOSTILE = {name: family for name, family in FAMILIES.items() if name != "ordinary"}
OPEN, CLOSED = whole(1, 0), FAMILIES["zeros"]  # outputs of a ReLU that passes everything, and nothing
WHOLE = whole(30005, 29990)


def _exact_statistics(rng: np.random.Generator, c: int) -> dict[str, Host]:
    """Multiples of 1/2, and powers of two to multiply with: with whole numbers, nothing rounds."""
    shift, delta = integers(rng, (c,)), integers(rng, (c,)) / 2
    parts = shift, delta, np.ones(c), 2.0 ** rng.integers(-1, 2, c)
    return {name: np.asarray(part, np.float32) for name, part in zip(PARTS, parts, strict=True)}


def _cancelling(rng: np.random.Generator, x: Host, statistics: dict[str, Host], parameters: dict[str, Host]) -> Host:
    """A residual that leaves of normalized x a few units in the last place, of either sign."""
    wide = {name: np.asarray(value, np.float64) for name, value in (statistics | parameters).items()}
    y = batchnorm_apply_reference(x.astype(np.float64), read(wide), wide.get("gamma"), wide.get("beta"), relu=False)
    return (-y * (1 + 4 * U * rng.integers(-2, 3, x.shape))).astype(np.float32)


def _off(inputs: dict[str, Host], name: str) -> dict[str, Host]:
    """One more element before those of the array `name`, if any: it alone then starts at no multiple of 16 bytes."""
    return inputs | ({name: np.concatenate([np.zeros(1, np.float32), inputs[name].reshape(-1)])} if name else {})


def _on(arrays: Arrays, name: str, shape: tuple[int, ...]) -> Arrays:
    """The arrays without what `_off` has added."""
    return {**arrays, name: arrays[name][1:].reshape(shape)} if name else arrays


def apply_cases() -> Iterator[Case]:
    """Of batchnorm_add_relu_apply."""

    def case(
        name: str,
        family: Family,
        shape: tuple[int, ...],
        of_residual: Family = PLAIN,
        affine: bool = True,
        off: str = "",
    ) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            x, residual, c = family(rng, shape), of_residual(rng, shape), shape[-1]
            parameters = affine_parameters(rng, c, affine)
            if name == "integers":
                statistics = _exact_statistics(rng, c)
                parameters = {key: integers(rng, (c,)) for key in parameters}
            else:
                statistics = fixed_statistics(rng, c) if name.startswith("fixed") else given_statistics(x)
            if name.startswith("cancelling"):
                residual = _cancelling(rng, x, statistics, parameters)

            def call(backend: Backend, arrays: Arrays) -> None:
                a = _on(arrays, off, shape)
                given = read(a), a.get("gamma"), a.get("beta")
                backend.batchnorm_add_relu_apply(a["x"], a["residual"], *given, a["y"])

            e = elements(x, read(statistics), parameters.get("gamma"), parameters.get("beta"), GIVEN)
            return Problem(
                inputs=_off({"x": x, "residual": residual, **parameters, **statistics}, off),
                outputs={"y": Output(shape)},
                call=call,
                bounds=exact if name == "integers" else within(y=add_relu_bound(e, residual)),
            )

        return Case(label(name, shape, "" if affine else "no-affine"), make)

    for arguments in inputs_of_all_kinds():
        yield from in_all_layouts(case(*arguments)) if arguments[2] == (129, 3) else (case(*arguments),)
    yield from in_all_layouts(case("ordinary", PLAIN, (129, 8)))
    yield from (case(f"{name}-off", PLAIN, (129, 8), off=name) for name in ("x", "residual"))
    for shape in HOSTILE_SHAPES:
        for name, family in HOSTILE.items():
            yield case(f"residual-{name}", PLAIN, shape, family)
            yield case(f"both-{name}", family, shape, family)
            yield case(f"fixed-{name}", family, shape, family)
        yield case("cancelling", PLAIN, shape)
        yield case("cancelling-mean-1e4-std-1e-2", HOSTILE["mean-1e4-std-1e-2"], shape)
        # Normalized, a constant is 0: without beta nothing but the residual is left.
        yield case("residual-alone", HOSTILE["constant"], shape, affine=False)
        yield case("residual-alone-denormal", HOSTILE["constant"], shape, HOSTILE["denormal"], affine=False)
    for affine in (True, False):
        yield from (case("integers", integers, shape, integers, affine) for shape in EXACT_SHAPES)
    yield from (case("ordinary", PLAIN, shape, affine=False) for shape in ((5, 3, 3, 33), (2, 8, 16, 16)))
    yield case("empty", PLAIN, (0, 3))
    yield case("one-row", PLAIN, (1, 3))
    yield from stored_cases(lambda name, family, plain, shape: case(name, family, shape, plain), "x", "residual", "y")


def backward_cases() -> Iterator[Case]:
    """Of batchnorm_add_relu_backward."""

    def case(
        name: str,
        family: Family,
        shape: tuple[int, ...],
        training: bool,
        of_dy: Family = PLAIN,
        of_y: Family = PLAIN,
        affine: bool = True,
        off: str = "",
        frozen: Sequence[str] = (),
    ) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            x, dy, c = family(rng, shape), of_dy(rng, shape), shape[-1]
            y = relu_forward_reference(of_y(rng, shape))  # says nothing of x, as where a residual decides
            parameters = affine_parameters(rng, c, affine)
            parameters.pop("beta", None)
            if name == "integers":
                statistics = _exact_statistics(rng, c)
                parameters = {key: integers(rng, (c,)) for key in parameters}
            else:
                statistics = fixed_statistics(rng, c) if name.startswith("fixed") else given_statistics(x)

            def call(backend: Backend, arrays: Arrays) -> None:
                a = _on(arrays, off, shape)
                gradients = a["dx"], a["dresidual"], a.get("dgamma"), a.get("dbeta")
                backend.batchnorm_add_relu_backward(
                    a["x"], a["y"], a["dy"], read(a), a.get("gamma"), *gradients, training
                )

            e = elements(x, read(statistics), parameters.get("gamma"), None, GIVEN)
            sums = merging(shape[0]) if name == "whole" else None  # all other sums are exact
            known = add_relu_backward_bounds(e, y, dy, statistics["inv_std"].astype(np.float64), training, sums)
            gradients = {"dx": Output(shape), "dresidual": Output(shape)}
            wanted = [key for key in ("dgamma", "dbeta") if affine and key not in frozen]
            of_parameters = {key: Output(shape[-1:]) for key in wanted}
            return Problem(
                inputs=_off({"x": x, "y": y, "dy": dy, **parameters, **statistics}, off),
                outputs={**gradients, **of_parameters},
                call=call,
                bounds=exact if name == "integers" else within(**known),
            )

        without = "" if affine else "no-affine", f"no-{'-'.join(frozen)}" if frozen else ""
        return Case(label(name, shape, "training" if training else "evaluation", *without), make)

    for training in (True, False):
        for arguments in inputs_of_all_kinds():
            one = case(*arguments, training)
            yield from in_all_layouts(one) if arguments[2] == (129, 3) else (one,)
        yield from in_all_layouts(case("ordinary", PLAIN, (129, 8), training))
        yield from (case(f"{name}-off", PLAIN, (129, 8), training, off=name) for name in ("x", "y", "dy"))
        for shape in HOSTILE_SHAPES:
            for name, family in HOSTILE.items():
                yield case(f"dy-{name}", PLAIN, shape, training, family)
            for name in ("nan", "minus-inf-and-inf"):
                yield case(f"dy-{name}-open", PLAIN, shape, training, HOSTILE[name], OPEN)
                yield case(f"dy-{name}-closed", PLAIN, shape, training, HOSTILE[name], CLOSED)
                yield case(f"y-{name}", PLAIN, shape, training, of_y=HOSTILE[name])
                if not training:
                    yield case(f"fixed-{name}", HOSTILE[name], shape, training)
            yield case("y-denormal", PLAIN, shape, training, of_y=HOSTILE["denormal"])
        for affine in (True, False):
            for shape in EXACT_SHAPES:
                yield case("integers", integers, shape, training, integers, integers, affine)
        for shape in ((5, 3, 3, 33), (2, 8, 16, 16)):
            yield case("ordinary", PLAIN, shape, training, affine=False)
        for frozen in FROZEN:
            yield case("ordinary", PLAIN, (5, 3, 3, 33), training, frozen=frozen)
        yield case("dy-mean-1e4", PLAIN, (257, 5), training, normal(1e4, 1))
        yield case("empty", PLAIN, (0, 3), training)
        yield from stored_cases(
            lambda name, family, plain, shape, mode=training: case(name, family, shape, mode, plain, plain),
            *("x", "y", "dy", "dx", "dresidual"),
        )
    yield case("whole", whole(0, 1), (MANY_ROWS, 2), True, WHOLE, OPEN)


CASES = {"batchnorm_add_relu_apply": apply_cases, "batchnorm_add_relu_backward": backward_cases}
