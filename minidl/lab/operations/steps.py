"""Checks of what changes from step to step on the device: it is looked up and counted, so all of it is exact."""

from collections.abc import Iterator

import numpy as np

from minidl.backends import Backend
from minidl.lab.inputs import FAMILIES
from minidl.lab.operations.case import Arrays, Case, Output, Problem, exact, in_all_layouts, label, relative

PLAIN = FAMILIES["ordinary"]


def begin_step_cases() -> Iterator[Case]:
    """Of begin_step, for two steps in a row, the second with fewer images."""

    def case(images: int, size: int, numbers: int, first: int, name: str = "ordinary") -> Case:
        last = min(size, images - (first + 1) * size)

        def make(rng: np.random.Generator) -> Problem:
            def call(backend: Backend, a: Arrays) -> None:
                given = a["order"], a["plan"], a["step"], size
                backend.begin_step(*given, a["index"], a["numbers"])
                backend.begin_step(*given, a["last_index"], a["last_numbers"])

            return Problem(
                inputs={
                    "order": rng.permutation(images).astype(np.int64) + 2**40,
                    "plan": FAMILIES[name](rng, (first + 2, numbers)),
                },
                state={"step": np.array(first)},
                outputs={
                    "index": Output((size,), np.int64),
                    "numbers": Output((numbers,)),
                    "last_index": Output((last,), np.int64),
                    "last_numbers": Output((numbers,)),
                },
                call=call,
                bounds=exact,
            )

        return Case(label(name, f"images-{images}", f"batch-{size}", f"numbers-{numbers}", f"from-{first}"), make)

    for images, size, numbers, first in (
        (2, 1, 1, 0), (90, 16, 6, 4), (7, 4, 0, 0), (999, 300, 19, 2), (70001, 1, 3, 69999), (1500, 700, 700, 1),
    ):  # fmt: skip
        yield case(images, size, numbers, first)
    for name in ("nan", "denormal"):
        yield case(20, 8, 9, 0, name)
    yield from in_all_layouts(case(90, 16, 6, 2))


def count_call_cases() -> Iterator[Case]:
    """Of count_call, twice."""

    def case(count: int) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            del rng

            def call(backend: Backend, a: Arrays) -> None:
                backend.count_call(a["count"], a["first"])
                backend.count_call(a["count"], a["second"])

            return Problem(
                inputs={},
                state={"count": np.array(count, np.uint32)},
                outputs={"first": Output((), np.uint32), "second": Output((), np.uint32)},
                call=call,
                bounds=exact,
            )

        return Case(label("ordinary", f"from-{count}"), make)

    yield from (case(count) for count in (0, 1, 70000, 2**31 - 1, 2**32 - 2))
    yield from in_all_layouts(case(5))


def append_number_cases() -> Iterator[Case]:
    """Of append_number, twice."""

    def case(name: str, size: int, count: int) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            def call(backend: Backend, a: Arrays) -> None:
                for _ in range(2):
                    backend.append_number(a["value"], a["count"], a["log"])

            return Problem(
                inputs={"value": FAMILIES[name](rng, (1,)).reshape(())},
                state={"count": np.array(count), "log": PLAIN(rng, (size,))},
                call=call,
                bounds=exact,
            )

        return Case(label(name, f"log-{size}", f"from-{count}"), make)

    yield from (case("ordinary", *sizes) for sizes in ((2, 0), (7, 3), (5000, 4998)))
    yield from (case(name, 3, 1) for name in ("nan", "denormal"))
    yield from in_all_layouts(case("ordinary", 5, 2))


def cumulative_weight_cases() -> Iterator[Case]:
    """Of cumulative_weight: a quotient of whole numbers, rounded once."""

    def case(count: int, part: int, parts: int) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            del rng
            return Problem(
                inputs={"count": np.array(count, np.uint32)},
                outputs={"weight": Output(())},
                call=lambda backend, a: backend.cumulative_weight(a["count"], part, parts, a["weight"]),
                bounds=relative(1 if parts * (count + 1) <= 2**24 else 2),  # beyond, the divisor rounds too
            )

        return Case(label("ordinary", f"count-{count}", f"part-{part}-of-{parts}"), make)

    for count, part, parts in ((0, 1, 1), (0, 1, 4), (0, 4, 4), (6, 2, 3), (70000, 1, 1), (2**32 - 1, 1, 8)):
        yield case(count, part, parts)
    yield from in_all_layouts(case(2, 1, 2))


CASES = {
    "begin_step": begin_step_cases,
    "count_call": count_call_cases,
    "append_number": append_number_cases,
    "cumulative_weight": cumulative_weight_cases,
}
