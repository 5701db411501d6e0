"""Checks of what computes each element by itself or only moves it. Nearly all of it is exact."""

import functools
from collections.abc import Callable, Iterator
from itertools import product

import numpy as np

from kernels.random import dropout_keep_reference
from kernels.storage import FLOAT32
from minidl.backends import Backend
from minidl.lab import bounds
from minidl.lab.inputs import FAMILIES, Family
from minidl.lab.operations.case import Arrays, Case, Output, Problem, exact, in_all_layouts, label, relative, within
from minidl.lab.operations.stored import NARROW, families, in_storage

PLAIN = FAMILIES["ordinary"]

# Around the width of a vector and a piece of work for a thread.
SHAPES: tuple[tuple[int, ...], ...] = (
    (0, 3), (1, 1), (1, 3), (2, 2), (5, 1), (2, 3), (1, 5, 7, 3), (16, 16), (127, 17), (2, 64, 32, 16), (65537, 1),
    (140009, 1),
)  # fmt: skip
FAMILY_SHAPE = (3, 5, 7, 5)


NARROW_SHAPES: tuple[tuple[int, ...], ...] = ((0, 3), (1, 3), (2, 3), (16, 16), (127, 17), (2, 64, 32, 16))
# Of the numbers of a family, of the ordinary ones beside them, and a shape.
Maker = Callable[[Family, Family, tuple[int, ...]], Callable[[np.random.Generator], Problem]]


def _kinds() -> Iterator[tuple[str, Family, tuple[int, ...]]]:
    yield from (("ordinary", PLAIN, shape) for shape in SHAPES)
    yield from ((name, family, FAMILY_SHAPE) for name, family in FAMILIES.items())


def _elementwise(make: Maker, arrays: tuple[str, ...], rounds: bool) -> Iterator[Case]:
    """The cases; also those with these arrays stored in 16 bits, to which the answers are rounded (`rounds`) or not."""
    for name, family, shape in _kinds():
        case = Case(label(name, shape), make(family, PLAIN, shape))
        yield from in_all_layouts(case) if shape == (127, 17) else (case,)
    for storage in NARROW:
        known, stored = families(storage), dict.fromkeys(arrays, storage)
        kinds = [("ordinary", shape) for shape in NARROW_SHAPES] + [(name, FAMILY_SHAPE) for name in known]
        for name, shape in kinds:
            plain = Case(label(name, shape), make(known[name], known["ordinary"], shape))
            case = in_storage(plain, stored, rounds)
            yield from in_all_layouts(case) if shape == (127, 17) else (case,)


def relu_forward_cases() -> Iterator[Case]:
    """Of relu_forward."""

    def make(family: Family, plain: Family, shape: tuple[int, ...]) -> Callable[[np.random.Generator], Problem]:
        del plain
        return lambda rng: Problem(
            inputs={"x": family(rng, shape)},
            outputs={"y": Output(shape)},
            call=lambda backend, a: backend.relu_forward(a["x"], a["y"]),
            bounds=exact,
        )

    return _elementwise(make, ("x", "y"), rounds=False)


def relu_backward_cases() -> Iterator[Case]:
    """Of relu_backward; y is ReLU's, zeros and all."""

    def make(family: Family, plain: Family, shape: tuple[int, ...]) -> Callable[[np.random.Generator], Problem]:
        def problem(rng: np.random.Generator) -> Problem:
            y = family(rng, shape)
            y[y <= 0] = 0
            return Problem(
                inputs={"dy": plain(rng, shape), "y": y},
                outputs={"dx": Output(shape)},
                call=lambda backend, a: backend.relu_backward(a["dy"], a["y"], a["dx"]),
                bounds=exact,
            )

        return problem

    yield from _elementwise(make, ("dy", "y", "dx"), rounds=False)
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

    def make(family: Family, plain: Family, shape: tuple[int, ...]) -> Callable[[np.random.Generator], Problem]:
        del plain
        return lambda rng: Problem(
            inputs={"a": family(rng, shape), "b": family(rng, shape)},
            outputs={"out": Output(shape)},
            call=lambda backend, a: backend.add(a["a"], a["b"], a["out"]),
            bounds=relative(1),
        )

    yield from _elementwise(make, ("a", "b", "out"), rounds=True)
    for target, other in (("a", "b"), ("b", "a")):

        def in_place(
            rng: np.random.Generator, target: str = target, other: str = other, family: Family = PLAIN
        ) -> Problem:
            shape = (2, 64, 32, 17)
            return Problem(
                inputs={other: family(rng, shape)},
                state={target: family(rng, shape)},
                call=lambda backend, a: backend.add(a["a"], a["b"], a[target]),
                bounds=relative(1),
            )

        case = Case(f"in-place-{target}", in_place)
        yield case
        for storage in NARROW:
            of_storage = functools.partial(in_place, family=families(storage)["ordinary"])
            yield in_storage(case._replace(make=of_storage), {"a": storage, "b": storage})


CHANNELS: tuple[tuple[int, ...], ...] = ((1,), (3, 5), (1, 1, 1), (4, 8), (16, 17, 2, 64))
NARROW_CHANNELS: tuple[tuple[int, ...], ...] = ((1,), (3, 5), (12, 4), (8, 16), (16, 17, 2, 61))
LEADING: tuple[tuple[int, ...], ...] = ((0, 3, 3), (1, 1, 1), (2, 5, 7), (127,))


def concat_cases() -> Iterator[Case]:
    """Of concat."""

    def case(channels: tuple[int, ...], leading: tuple[int, ...], name: str, family: Family) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            parts = {f"part{i}": family(rng, (*leading, c)) for i, c in enumerate(channels)}
            return Problem(
                inputs=parts,
                outputs={"out": Output((*leading, sum(channels)))},
                call=lambda backend, a: backend.concat([a[name] for name in parts], a["out"]),
                bounds=exact,
            )

        return Case(label(name, leading, f"channels-{label(channels)}"), make)

    return _moves(case, "out")


def split_cases() -> Iterator[Case]:
    """Of split."""

    def case(channels: tuple[int, ...], leading: tuple[int, ...], name: str, family: Family) -> Case:
        names = [f"part{i}" for i in range(len(channels))]

        def make(rng: np.random.Generator) -> Problem:
            return Problem(
                inputs={"whole": family(rng, (*leading, sum(channels)))},
                outputs={part: Output((*leading, c)) for part, c in zip(names, channels, strict=True)},
                call=lambda backend, a: backend.split(a["whole"], [a[part] for part in names]),
                bounds=exact,
            )

        return Case(label(name, leading, f"channels-{label(channels)}"), make)

    return _moves(case, "whole")


def _moves(case: Callable[[tuple[int, ...], tuple[int, ...], str, Family], Case], whole: str) -> Iterator[Case]:
    yield from (case(channels, leading, "ordinary", PLAIN) for channels, leading in product(CHANNELS, LEADING))
    for channels in ((3, 2), (4, 8)):
        yield from in_all_layouts(case(channels, (5, 3), "ordinary", PLAIN))
    yield from (case((3, 5), (2, 5, 7), name, FAMILIES[name]) for name in ("nan", "minus-inf-and-inf", "denormal"))
    for storage in NARROW:
        known = families(storage)
        kinds = [("ordinary", counts) for counts in NARROW_CHANNELS]
        for name, counts in kinds + [(name, (3, 5)) for name in known if name != "ordinary"]:
            stored = dict.fromkeys([whole, *(f"part{i}" for i in range(len(counts)))], storage)
            one = in_storage(case(counts, (2, 5, 7), name, known[name]), stored, rounds=False)
            yield from in_all_layouts(one) if counts in ((3, 5), (8, 16)) and name == "ordinary" else (one,)


def channel_order_cases(operation: str) -> Iterator[Case]:
    """Of channels_first and channels_last. From one storage to another they convert."""

    def case(shape: tuple[int, int, int, int], name: str, family: Family) -> Case:
        n, h, w, c = shape
        before, after = (shape, (n, c * h * w)) if operation == "channels_first" else ((n, c * h * w), shape)

        def make(rng: np.random.Generator) -> Problem:
            return Problem(
                inputs={"x": family(rng, before)},
                outputs={"y": Output(after)},
                call=lambda backend, a: getattr(backend, operation)(a["x"], a["y"]),
                bounds=exact,
            )

        return Case(label(name, shape), make)

    for shape in ((0, 2, 3, 5), (1, 1, 1, 1), (2, 3, 5, 1), (1, 1, 4, 17), (3, 7, 11, 16), (9, 28, 28, 33)):
        yield case(shape, "ordinary", PLAIN)
    yield from in_all_layouts(case((3, 7, 5, 2), "ordinary", PLAIN))
    yield from (case((3, 7, 5, 3), name, FAMILIES[name]) for name in ("nan", "minus-inf-and-inf", "denormal"))
    for one in NARROW:
        for before, after in ((one, FLOAT32), (FLOAT32, one), (one, one)):
            known, stored, rounds = families(before), {"x": before, "y": after}, before is FLOAT32
            for shape in ((0, 2, 3, 5), (2, 3, 5, 1), (3, 7, 11, 16), (2, 28, 28, 33)):
                yield in_storage(case(shape, "ordinary", known["ordinary"]), stored, rounds)
            yield from in_all_layouts(in_storage(case((3, 7, 5, 2), "ordinary", known["ordinary"]), stored, rounds))
            for name, family in (families(one) | {"mixed-scales": known["mixed-scales"]}).items():
                yield in_storage(case((3, 7, 5, 3), name, family), stored, rounds)


def dropout_cases() -> Iterator[Case]:
    """Of dropout: the mask has the reference's bits, what is kept is scaled."""
    arrays = "x", "y"

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
    for storage in NARROW:
        known, stored = families(storage), dict.fromkeys(arrays, storage)
        for p, narrow_shape in product((0.0, 0.1, 1.0), ((0, 3), (2, 3), (5, 3), (16, 16), (127, 17))):
            yield in_storage(case("ordinary", known["ordinary"], narrow_shape, p, 0, 0, 0), stored)
        yield in_storage(case("ordinary", known["ordinary"], (33, 7), 0.3, 2**40 + 17, 2**31 - 1, 2**32 - 1), stored)
        yield from (in_storage(case(name, known[name], FAMILY_SHAPE, 0.5, 7, 1, 3), stored) for name in known)
        yield from in_all_layouts(in_storage(case("ordinary", known["ordinary"], (13, 5), 0.25, 1, 2, 3), stored))


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
