"""Batch normalization in training, by the layer: whatever it does in a training step is what is timed."""

from collections.abc import Mapping
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
    gradients,
    normal,
    without_gradients,
)
from minidl.lab.bench.shapes import Shape

EPS = 1e-5
_USED = {
    "forward": ("batchnorm_statistics", "batchnorm_update_running", "batchnorm_apply"),
    "add_relu_forward": ("batchnorm_statistics", "batchnorm_update_running", "batchnorm_add_relu_apply"),
    "backward": ("batchnorm_backward",),
    "add_relu_backward": ("batchnorm_add_relu_backward",),
}


def _near_zero(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, residual: np.ndarray | None = None) -> np.ndarray:
    """Where ReLU's input is so near 0 that its sign is up to rounding: there one side would let a gradient through."""
    axes = (0, 1, 2)
    mean, var = x.mean(axis=axes, dtype=np.float64), x.var(axis=axes, dtype=np.float64)
    y = (x - mean.astype(np.float32)) * (gamma / np.sqrt(var + EPS)).astype(np.float32) + beta
    return np.abs(y if residual is None else y + residual) < 1e-4


def batchnorm(operation: str, shape: Shape, rng: np.random.Generator) -> Problem:
    """batchnorm_forward, batchnorm_relu_backward, ...: statistics, running estimates and all; backward to gamma, beta.

    Passes over memory by the definition, of arrays of x's size: forward reads x twice and writes y; backward reads x
    and dy twice and writes dx. The end of a residual block reads the residual once; backward reads y once and writes
    its gradient, which the second pass reads in place of dy.
    """
    ending = operation.removeprefix("batchnorm_")
    backward, relu, add = ending.endswith("backward"), "relu" in ending, ending.startswith("add")
    dims = (shape.n, shape.h, shape.w, shape.c)
    elements, channels = int(np.prod(dims, dtype=np.int64)), shape.c
    inputs = {
        "x": Input(normal(rng, dims) + np.float32(0.5), "activation"),
        "gamma": Input(rng.uniform(0.5, 1.5, channels).astype(np.float32)),
        "beta": Input(rng.uniform(-0.5, 0.5, channels).astype(np.float32)),
    }
    if add:
        inputs["residual"] = Input(normal(rng, dims), "activation")
    if backward:
        dy = normal(rng, dims)
        if relu:
            dy[_near_zero(*(given.value for given in inputs.values()))] = 0
        inputs["dy"] = Input(dy, "activation")

    def ours(on: Backend, a: Arrays) -> Call:
        layer = nn.BatchNorm2d(channels, eps=EPS, device=on)
        assert layer.weight is not None
        assert layer.bias is not None
        on.copy(a["gamma"], layer.weight.value)
        on.copy(a["beta"], layer.bias.value)

        def forward() -> Answers:
            return {"y": layer.normalize_add_relu(a["x"], a["residual"]) if add else layer.normalize(a["x"], relu)}

        def prepare() -> None:
            layer.zero_grad()
            forward()

        def back() -> Answers:
            found = dict(zip(("dx", "dresidual"), layer.backward_add_relu(a["dy"]), strict=True)) if add else {}
            if not add:
                found = {"dx": layer.backward(a["dy"])}
            assert layer.weight is not None
            assert layer.bias is not None
            return {**found, "dgamma": layer.weight.grad, "dbeta": layer.bias.grad}

        return Call(back, prepare) if backward else Call(forward)

    def theirs(torch: Any, t: Mapping[str, Any], compiled: Compiled) -> Call:
        functional = torch.nn.functional
        mean, var = torch.zeros_like(t["gamma"]), torch.ones_like(t["gamma"])

        def forward(x: Any, gamma: Any, beta: Any, *residual: Any) -> Any:
            y = functional.batch_norm(x, mean, var, gamma, beta, training=True, momentum=0.1, eps=EPS)
            if residual:
                y += residual[0]
            return functional.relu(y, inplace=True) if relu else y

        names = "x", "gamma", "beta", *(("residual",) if add else ())
        arguments = tuple(t[name] for name in names)
        if backward:
            return gradients(torch, compiled(forward), arguments, t["dy"], {f"d{name}": t[name] for name in names})
        return without_gradients(torch, compiled(forward), arguments)

    outputs: dict[str, Any] = {"y": "activation"}
    if backward:
        outputs = {"dx": "activation", "dgamma": "plain", "dbeta": "plain"}
        outputs |= {"dresidual": "activation"} if add else {}
        reads, writes, work = (5, 2, 9) if add else (4, 1, 9)
    else:
        reads, writes, work = (3, 1, 9) if add else (2, 1, 8)
    return Problem(
        inputs=inputs,
        ours=ours,
        theirs=theirs,
        outputs=outputs,
        cost=Cost(4 * reads * elements, 4 * writes * elements, work * elements),
        uses=_USED[("add_relu_" if add else "") + ("backward" if backward else "forward")],
    )
