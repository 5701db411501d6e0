"""A step of an optimizer over all parameters of a model at once."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kernels.launch import Cost
from minidl import optim
from minidl.backends import Backend
from minidl.lab.bench.networks import network
from minidl.lab.bench.operations.problem import Answers, Arrays, Call, Compiled, Input, Problem, normal, nothing
from minidl.lab.bench.shapes import Shape
from minidl.nn import Parameter
from minidl.optim.optimizer import Numbers

LR, MOMENTUM, DECAY = 1e-3, 0.9, 5e-4
_PASSES = {"sgd": (3, 2, 6), "adam": (4, 3, 14)}  # read, written, operations an element


def optimizer(operation: str, shape: Shape, rng: np.random.Generator) -> Problem:
    """Sgd with momentum or adam, both with weight decay. Each call is a step; answers are the values after it."""
    found = [parameter.shape for parameter in network(shape.model).build().parameters()]
    inputs = {f"value{i}": Input(normal(rng, dims)) for i, dims in enumerate(found)}
    inputs |= {f"grad{i}": Input(normal(rng, dims)) for i, dims in enumerate(found)}
    elements = sum(int(np.prod(dims, dtype=np.int64)) for dims in found)
    reads, writes, work = _PASSES[operation]

    def ours(on: Backend, a: Arrays) -> Call:
        parameters = [Parameter(on, np.empty(dims, np.float32), decay=True) for dims in found]
        for i, parameter in enumerate(parameters):
            on.copy(a[f"value{i}"], parameter.value)
            parameter.grad = a[f"grad{i}"]
        if operation == "sgd":
            made: optim.Optimizer = optim.SGD(parameters, LR, MOMENTUM, DECAY)
        else:
            made = optim.Adam(parameters, lr=LR, weight_decay=DECAY)
        numbers: Numbers | None = None

        def prepare() -> None:  # as in training, where what Adam goes by in a step is on the device before it begins
            nonlocal numbers
            plan = made.plan([LR])
            numbers = Numbers(plan.rows, on.array(plan.steps[0]))

        return _steps(lambda: made.step(numbers), lambda: [one.value for one in parameters], prepare)

    def theirs(torch: Any, t: Mapping[str, Any], compiled: Compiled) -> Call:
        parameters = [torch.nn.Parameter(t[f"value{i}"]) for i in range(len(found))]
        for i, parameter in enumerate(parameters):
            parameter.grad = t[f"grad{i}"]
        if operation == "sgd":
            made = torch.optim.SGD(parameters, lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
        else:
            made = torch.optim.Adam(parameters, lr=LR, weight_decay=DECAY)
        return _steps(compiled(lambda: made.step()), lambda: [parameter.detach() for parameter in parameters])

    return Problem(
        inputs=inputs,
        ours=ours,
        theirs=theirs,
        outputs={f"value{i}": "plain" for i in range(len(found))},
        cost=Cost(4 * reads * elements, 4 * writes * elements, work * elements),
        uses=(operation,),
        has_layout=False,
    )


def _steps(step: Callable[[], Any], values: Callable[[], list[Any]], prepare: Callable[[], None] = nothing) -> Call:
    def run() -> Answers:
        step()
        return {f"value{i}": value for i, value in enumerate(values())}

    return Call(run, prepare)
