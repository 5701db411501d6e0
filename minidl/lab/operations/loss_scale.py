"""Checks of loss scaling: the scale is a power of two, so that nothing of it rounds but what underflows."""

from collections.abc import Iterator

import numpy as np

from minidl.backends import Backend
from minidl.lab.inputs import FAMILIES
from minidl.lab.operations.case import Arrays, Case, Output, Problem, exact, in_all_layouts, label, relative

PLAIN = FAMILIES["ordinary"]


def settle_cases() -> Iterator[Case]:
    """Of settle_loss_scale, for a norm of each kind, at the ends of the scale's range and of the interval."""

    def case(name: str, norm: float, scale: float, steps: int, numbers: int = 9, interval: int = 2000) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            return Problem(
                inputs={"norm": np.array(norm, np.float32), "still": PLAIN(rng, (numbers,))},
                state={"state": np.array([scale, steps], np.float32), "numbers": PLAIN(rng, (numbers,))},
                outputs={"factor": Output(())},
                call=lambda backend, a: backend.settle_loss_scale(
                    a["norm"], a["state"], a["factor"], a["numbers"], a["still"], interval
                ),
                bounds=exact,
            )

        return Case(label(name, f"scale-{scale:g}", f"after-{steps}", f"numbers-{numbers}"), make)

    for name, norm in (("ordinary", 3.5), ("nan", np.nan), ("inf", np.inf), ("zero", 0.0)):
        for scale, steps in ((65536.0, 0), (65536.0, 1998), (65536.0, 1999), (1.0, 7), (2.0**60, 1999)):
            yield case(name, norm, scale, steps)
    yield case("ordinary", 1.0, 2.0, 0, 0, 1)
    yield case("inf", np.inf, 2.0, 3, 700)
    yield from in_all_layouts(case("inf", np.inf, 1024.0, 5, 3))


def unscale_cases() -> Iterator[Case]:
    """Of unscale, of several arrays."""

    def case(name: str, factor: float, shapes: tuple[tuple[int, ...], ...]) -> Case:
        names = [f"array{i}" for i in range(len(shapes))]

        def call(backend: Backend, a: Arrays) -> None:
            backend.unscale([a[name] for name in names], a["factor"])

        def make(rng: np.random.Generator) -> Problem:
            return Problem(
                inputs={"factor": np.array(factor, np.float32)},
                state={one: FAMILIES[name](rng, shape) for one, shape in zip(names, shapes, strict=True)},
                call=call,
                bounds=relative(1),
            )

        return Case(label(name, f"factor-{factor:g}", *shapes), make)

    several = (7,), (64, 67), (0, 3), (1,), (5000,)
    for factor in (2.0**-16, 1.0, 0.0):
        yield case("ordinary", factor, several)
        yield from (case(name, factor, ((3, 5, 7, 5), (11,))) for name in FAMILIES if name != "ordinary")
    yield from in_all_layouts(case("ordinary", 2.0**-10, ((128, 3), (5,))))


CASES = {"settle_loss_scale": settle_cases, "unscale": unscale_cases}
