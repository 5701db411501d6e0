"""Checks of what computes each element by itself or only moves it. Nearly all of it is exact."""

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np

from kernels.random import dropout_keep_reference
from minidl.backends import Backend
from minidl.lab import bounds
from minidl.lab.inputs import FAMILIES, Family
from minidl.lab.operations.case import Arrays, Case, Output, Problem, exact, in_all_layouts, label, relative, within

PLAIN = FAMILIES["ordinary"]

# Around the width of a vector and a piece of work for a thread.
SHAPES: tuple[tuple[int, ...], ...] = (
    (0, 3), (1, 1), (1, 3), (2, 2), (5, 1), (2, 3), (1, 5, 7, 3), (16, 16), (127, 17), (2, 64, 32, 16), (65537, 1),
    (140009, 1),
)  # fmt: skip
FAMILY_SHAPE = (3, 5, 7, 5)


def _kinds() -> Iterator[tuple[str, Family, tuple[int, ...]]]:
    yield from (("ordinary", PLAIN, shape) for shape in SHAPES)
    yield from ((name, family, FAMILY_SHAPE) for name, family in FAMILIES.items())


def _elementwise(make: Callable[[Family, tuple[int, ...]], Callable[[np.random.Generator], Problem]]) -> Iterator[Case]:
    for name, family, shape in _kinds():
        case = Case(label(name, shape), make(family, shape))
        yield from in_all_layouts(case) if shape == (127, 17) else (case,)


def relu_forward_cases() -> Iterator[Case]:
    """Of relu_forward."""

    def make(family: Family, shape: tuple[int, ...]) -> Callable[[np.random.Generator], Problem]:
        return lambda rng: Problem(
            inputs={"x": family(rng, shape)},
            outputs={"y": Output(shape)},
            call=lambda backend, a: backend.relu_forward(a["x"], a["y"]),
            bounds=exact,
        )

    return _elementwise(make)


def relu_backward_cases() -> Iterator[Case]:
    """Of relu_backward; y is ReLU's, zeros and all."""

    def make(family: Family, shape: tuple[int, ...]) -> Callable[[np.random.Generator], Problem]:
        def problem(rng: np.random.Generator) -> Problem:
            y = family(rng, shape)
            y[y <= 0] = 0
            return Problem(
                inputs={"dy": PLAIN(rng, shape), "y": y},
                outputs={"dx": Output(shape)},
                call=lambda backend, a: backend.relu_backward(a["dy"], a["y"], a["dx"]),
                bounds=exact,
            )

        return problem

    yield from _elementwise(make)
    for name in ("nan", "inf", "minus-inf-and-inf", "denormal"):

        def dy_problem(rng: np.random.Generator, family: Family = FAMILIES[name]) -> Problem:
            y = np.maximum(PLAIN(rng, FAMILY_SHAPE), 0)
            return Problem(
                inputs={"dy": family(rng, FAMILY_SHAPE), "y": y},
                outputs={"dx": Output(FAMILY_SHAPE)},
                call=lambda backend, a: backend.relu_backward(a["dy"], a["y"], a["dx"]),
                bounds=exact,
            )

        yield Case(label(f"dy-{name}", FAMILY_SHAPE), dy_problem)


def add_cases() -> Iterator[Case]:
    """Of add: one rounding. Also in place, to the left and to the right."""

    def make(family: Family, shape: tuple[int, ...]) -> Callable[[np.random.Generator], Problem]:
        return lambda rng: Problem(
            inputs={"a": family(rng, shape), "b": family(rng, shape)},
            outputs={"out": Output(shape)},
            call=lambda backend, a: backend.add(a["a"], a["b"], a["out"]),
            bounds=relative(1),
        )

    yield from _elementwise(make)
    for target, other in (("a", "b"), ("b", "a")):

        def in_place(rng: np.random.Generator, target: str = target, other: str = other) -> Problem:
            shape = (2, 64, 32, 17)
            return Problem(
                inputs={other: PLAIN(rng, shape)},
                state={target: PLAIN(rng, shape)},
                call=lambda backend, a: backend.add(a["a"], a["b"], a[target]),
                bounds=relative(1),
            )

        yield Case(f"in-place-{target}", in_place)


CHANNELS: tuple[tuple[int, ...], ...] = ((1,), (3, 5), (1, 1, 1), (4, 8), (16, 17, 2, 64))
LEADING: tuple[tuple[int, ...], ...] = ((0, 3, 3), (1, 1, 1), (2, 5, 7), (127,))


def concat_cases() -> Iterator[Case]:
    """Of concat."""

    def case(channels: tuple[int, ...], leading: tuple[int, ...], family: str) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            parts = {f"part{i}": FAMILIES[family](rng, (*leading, c)) for i, c in enumerate(channels)}
            return Problem(
                inputs=parts,
                outputs={"out": Output((*leading, sum(channels)))},
                call=lambda backend, a: backend.concat([a[name] for name in parts], a["out"]),
                bounds=exact,
            )

        return Case(label(family, leading, f"channels-{label(channels)}"), make)

    return _moves(case)


def split_cases() -> Iterator[Case]:
    """Of split."""

    def case(channels: tuple[int, ...], leading: tuple[int, ...], family: str) -> Case:
        names = [f"part{i}" for i in range(len(channels))]

        def make(rng: np.random.Generator) -> Problem:
            return Problem(
                inputs={"whole": FAMILIES[family](rng, (*leading, sum(channels)))},
                outputs={name: Output((*leading, c)) for name, c in zip(names, channels, strict=True)},
                call=lambda backend, a: backend.split(a["whole"], [a[name] for name in names]),
                bounds=exact,
            )

        return Case(label(family, leading, f"channels-{label(channels)}"), make)

    return _moves(case)


def _moves(case: Callable[[tuple[int, ...], tuple[int, ...], str], Case]) -> Iterator[Case]:
    yield from (case(channels, leading, "ordinary") for channels, leading in product(CHANNELS, LEADING))
    for channels in ((3, 2), (4, 8)):
        yield from in_all_layouts(case(channels, (5, 3), "ordinary"))
    yield from (case((3, 5), (2, 5, 7), family) for family in ("nan", "minus-inf-and-inf", "denormal"))


def channel_order_cases(operation: str) -> Iterator[Case]:
    """Of channels_first and channels_last."""

    def case(shape: tuple[int, int, int, int], family: str) -> Case:
        n, h, w, c = shape
        before, after = (shape, (n, c * h * w)) if operation == "channels_first" else ((n, c * h * w), shape)

        def make(rng: np.random.Generator) -> Problem:
            return Problem(
                inputs={"x": FAMILIES[family](rng, before)},
                outputs={"y": Output(after)},
                call=lambda backend, a: getattr(backend, operation)(a["x"], a["y"]),
                bounds=exact,
            )

        return Case(label(family, shape), make)

    for shape in ((0, 2, 3, 5), (1, 1, 1, 1), (2, 3, 5, 1), (1, 1, 4, 17), (3, 7, 11, 16), (9, 28, 28, 33)):
        yield case(shape, "ordinary")
    yield from in_all_layouts(case((3, 7, 5, 2), "ordinary"))
    yield from (case((3, 7, 5, 3), family) for family in ("nan", "minus-inf-and-inf", "denormal"))


def dropout_cases() -> Iterator[Case]:
    """Of dropout: the mask has the reference's bits, what is kept is scaled."""

    def case(name: str, family: Family, shape: tuple[int, ...], p: float, *numbers: int) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            x = family(rng, shape)
            of_rounding = bounds.dropout(x, dropout_keep_reference(shape, p, *numbers), p)

            def call(backend: Backend, a: Arrays) -> None:
                seed, stream, _ = numbers
                backend.dropout(a["x"], a["y"], p, seed, stream, a["call"])

            inputs = {"x": x, "call": np.array(numbers[2], np.uint32)}
            return Problem(inputs=inputs, outputs={"y": Output(shape)}, call=call, bounds=within(**of_rounding))

        return Case(label(name, shape, f"p-{p:g}", f"seed-{label(numbers)}"), make)

    for p, shape in product(
        (0.0, 0.1, 0.5, 0.999, 1.0), ((0, 3), (1, 1), (2, 3), (5, 3), (16, 16), (127, 17), (140009, 1))
    ):
        yield case("ordinary", PLAIN, shape, p, 0, 0, 0)
    for numbers in ((2**32 - 1, 1, 2), (2**40 + 17, 2**31 - 1, 2**32 - 1), (2**64 - 1, 3, 70000)):
        yield case("ordinary", PLAIN, (33, 7), 0.3, *numbers)
    for name, family in FAMILIES.items():
        yield case(name, family, FAMILY_SHAPE, 0.5, 7, 1, 3)
        yield case(name, family, FAMILY_SHAPE, 1.0, 7, 1, 3)
    yield from in_all_layouts(case("ordinary", PLAIN, (13, 5), 0.25, 1, 2, 3))


CASES = {
    "relu_forward": relu_forward_cases,
    "relu_backward": relu_backward_cases,
    "add": add_cases,
    "concat": concat_cases,
    "split": split_cases,
    "channels_first": lambda: channel_order_cases("channels_first"),
    "channels_last": lambda: channel_order_cases("channels_last"),
    "dropout": dropout_cases,
}
