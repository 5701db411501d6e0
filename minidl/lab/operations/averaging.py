"""Checks of weight averaging, over several steps: an error of one step is carried into the next."""

from collections.abc import Iterator

import numpy as np

from minidl.backends import Backend
from minidl.lab.budget import TINY, U
from minidl.lab.inputs import FAMILIES
from minidl.lab.operations.case import Arrays, Case, Host, Problem, in_all_layouts, label, within
from minidl.lab.operations.optimizer import GRADIENTS

PLAIN = FAMILIES["ordinary"]
STEPS = 4
SHAPES: tuple[tuple[int, ...], ...] = ((), (1,), (3, 5), (0, 2), (17,), (140009,))
FEW: tuple[tuple[int, ...], ...] = ((5,), (3, 7))


def moving_average_bound(average: Host, values: list[Host], weight: Host) -> Host:
    """Of an average after a step for each of `values`: the difference, its product and the sum round."""
    average = average.astype(np.float64)
    bound = np.zeros_like(average)
    share = float(weight)
    with np.errstate(all="ignore"):
        for value in values:
            gap = share * np.abs(value - average)
            average = average + share * (value - average)
            # What is off in the average is off in the difference too, the other way round.
            bound = (1 - share) * bound + share * U * bound + 2 * U * gap + U * np.abs(average) + TINY
    return bound


def moving_average_cases() -> Iterator[Case]:
    """Of moving_average."""

    def case(name: str, shapes: tuple[tuple[int, ...], ...], decay: float = 0.9) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            family = GRADIENTS[name]
            inputs = {
                f"value{t}.{i}": np.asarray(family(rng, shape)) for t in range(STEPS) for i, shape in enumerate(shapes)
            }
            inputs["weight"] = np.array(1 - decay, np.float32)
            state = {f"average.{i}": np.asarray(PLAIN(rng, shape)) for i, shape in enumerate(shapes)}

            def call(backend: Backend, a: Arrays) -> None:
                averages = [a[name] for name in state]
                for t in range(STEPS):
                    backend.moving_average(averages, [a[f"value{t}.{i}"] for i in range(len(shapes))], a["weight"])

            bounds = {
                f"average.{i}": moving_average_bound(
                    state[f"average.{i}"], [inputs[f"value{t}.{i}"] for t in range(STEPS)], inputs["weight"]
                )
                for i in range(len(shapes))
            }
            return Problem(inputs=inputs, state=state, call=call, bounds=within(**bounds))

        return Case(label(name, max(shapes, key=np.prod, default=()), f"decay-{decay:g}"), make)

    yield case("ordinary", SHAPES)
    yield from (case("ordinary", FEW, decay) for decay in (0.0, 0.1, 0.99, 0.9999, 1.0))
    yield from (case(name, FEW, decay) for name in GRADIENTS if name != "ordinary" for decay in (0.5, 0.999))
    yield from in_all_layouts(case("ordinary", ((4, 3),)))


CASES = {"moving_average": moving_average_cases}
