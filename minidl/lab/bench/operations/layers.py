"""ReLU, pooling and the loss, by their layers."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kernels.launch import Cost
from minidl import nn
from minidl.backends import Backend
from minidl.lab.bench.operations.problem import (
    Answers,
    Arrays,
    Call,
    Compiled,
    Input,
    Problem,
    Role,
    gradients,
    normal,
    without_gradients,
)
from minidl.lab.bench.shapes import Shape


def _layer(
    operation: str,
    inputs: Mapping[str, Input],
    make: Callable[[Backend], nn.Module],
    function: Callable[[Any], Callable[[Any], Any]],
    cost: Cost,
    *,
    y: Role = "activation",
    gains_by_compiling: bool = False,
) -> Problem:
    """Forward or backward of a layer without parameters; `function` is PyTorch's, given torch."""
    backward = operation.endswith("backward")

    def ours(on: Backend, a: Arrays) -> Call:
        layer = make(on)
        if not backward:
            return Call(lambda: {"y": layer.forward(a["x"])})

        def prepare() -> None:
            layer.forward(a["x"])

        return Call(lambda: {"dx": layer.backward(a["dy"])}, prepare)

    def theirs(torch: Any, t: Mapping[str, Any], compiled: Compiled) -> Call:
        forward = compiled(function(torch))
        if backward:
            return gradients(torch, forward, (t["x"],), t["dy"], {"dx": t["x"]})
        return without_gradients(torch, forward, (t["x"],))

    return Problem(
        inputs=inputs,
        ours=ours,
        theirs=theirs,
        outputs={"dx": "activation"} if backward else {"y": y},
        cost=cost,
        uses=(operation,),
        gains_by_compiling=gains_by_compiling,
    )


def relu(operation: str, shape: Shape, rng: np.random.Generator) -> Problem:
    """relu_forward or relu_backward, each into a new array."""
    dims = (shape.n, shape.h, shape.w, shape.c)
    inputs = {name: Input(normal(rng, dims), "activation") for name in ("x", "dy")}
    elements = inputs["x"].value.size
    reads = 2 if operation.endswith("backward") else 1
    cost = Cost(4 * reads * elements, 4 * elements, elements)
    return _layer(
        operation,
        inputs,
        lambda on: _on(nn.ReLU(), on),
        lambda torch: torch.nn.functional.relu,
        cost,
        gains_by_compiling=True,
    )


def max_pool(operation: str, shape: Shape, rng: np.random.Generator) -> Problem:
    """max_pool2d_forward, with the places of the maxima, or max_pool2d_backward from them."""
    layer = nn.MaxPool2d(shape.kernel, shape.stride, shape.padding)
    dims = (shape.n, shape.h, shape.w, shape.c)
    y_dims = layer.output_shape(dims)
    inputs = {"x": Input(normal(rng, dims), "activation"), "dy": Input(normal(rng, y_dims), "activation")}
    x_bytes, y_bytes = 4 * inputs["x"].value.size, 4 * inputs["dy"].value.size
    taps = y_bytes // 4 * shape.kernel[0] * shape.kernel[1]
    cost = Cost(2 * y_bytes, x_bytes, taps) if operation.endswith("backward") else Cost(x_bytes, 2 * y_bytes, taps)

    def function(torch: Any) -> Callable[[Any], Any]:
        return lambda x: torch.nn.functional.max_pool2d(x, shape.kernel, shape.stride, shape.padding)

    def make(on: Backend) -> nn.Module:
        return nn.MaxPool2d(shape.kernel, shape.stride, shape.padding, device=on)

    return _layer(operation, inputs, make, function, cost)


def global_average(operation: str, shape: Shape, rng: np.random.Generator) -> Problem:
    """global_avg_pool2d_forward or global_avg_pool2d_backward."""
    dims = (shape.n, shape.h, shape.w, shape.c)
    inputs = {"x": Input(normal(rng, dims), "activation"), "dy": Input(normal(rng, (shape.n, shape.c)))}
    x_bytes, y_bytes = 4 * inputs["x"].value.size, 4 * inputs["dy"].value.size
    backward = operation.endswith("backward")
    cost = Cost(y_bytes if backward else x_bytes, x_bytes if backward else y_bytes, x_bytes // 4)

    def function(torch: Any) -> Callable[[Any], Any]:
        return lambda x: torch.flatten(torch.nn.functional.adaptive_avg_pool2d(x, 1), 1)

    return _layer(
        operation, inputs, lambda on: _on(nn.GlobalAvgPool2d(), on), function, cost, y="plain", gains_by_compiling=True
    )


def cross_entropy(operation: str, shape: Shape, rng: np.random.Generator) -> Problem:
    """The mean loss and its gradient: forward and backward together, as a training step has them."""
    del operation
    n, classes = shape.n, shape.classes
    inputs = {
        "logits": Input(normal(rng, (n, classes))),
        "targets": Input(rng.integers(0, classes, n).astype(np.int64)),
    }

    def ours(on: Backend, a: Arrays) -> Call:
        criterion = nn.CrossEntropyLoss(device=on)

        def run() -> Answers:
            loss = criterion.forward(a["logits"], a["targets"])
            return {"loss": loss, "dlogits": criterion.backward()}

        return Call(run)

    def theirs(torch: Any, t: Mapping[str, Any], compiled: Compiled) -> Call:
        function, logits = compiled(torch.nn.functional.cross_entropy), t["logits"].requires_grad_()

        def run() -> Answers:
            loss = function(logits, t["targets"])
            return {"loss": loss, "dlogits": torch.autograd.grad(loss, logits)[0]}

        return Call(run)

    return Problem(
        inputs=inputs,
        ours=ours,
        theirs=theirs,
        outputs={"loss": "plain", "dlogits": "plain"},
        cost=Cost(4 * n * classes + 8 * n, 4 * n * classes + 4, 6 * n * classes),
        uses=("cross_entropy",),
        has_layout=False,
    )


def _on(layer: nn.Module, backend: Backend) -> nn.Module:
    return layer.to(backend)
