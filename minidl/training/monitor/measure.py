"""Measures a network during a step of training, without changing what the step computes.

The layers' own forward passes are watched, so that fused steps are measured as they run and no running statistics or
random numbers are touched: a monitored run has the bits of one that is not.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from minidl.backends import Array, BatchStatistics, numbers
from minidl.nn import (
    Conv2d,
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    LayerNorm,
    Linear,
    Module,
    Parameter,
    ReLU,
    Residual,
    Sequential,
)
from minidl.nn.batchnorm import BatchNorm
from minidl.nn.fusion import BatchNormAddReLU, BatchNormReLU
from minidl.nn.normalized_convolution import NormalizedConvolution
from minidl.nn.normalized_pooling import NormalizedPooling
from minidl.nn.pending import PendingActivation
from minidl.training.monitor.record import PERCENTILES, SAMPLE, Record


class Monitor:
    """Measures every so many steps.

    Args:
        every: Steps from one measurement to the next; the first is that of step 0.
        sink: Takes each record; see record.py for what is in one.
    """

    def __init__(self, every: int, sink: Callable[[Record], None]) -> None:
        if every < 1:
            raise ValueError(f"Monitor: every must be at least 1, got {every}")
        self.every, self.sink = every, sink
        self._gradients: dict[str, float] | None = None  # of the step that is watched

    def wants(self, step: int) -> bool:
        """Whether the step with that number, from 0, is measured."""
        return step % self.every == 0

    @contextlib.contextmanager
    def watch(self, model: Module, step: int, epoch: int, lr: float) -> Iterator[None]:
        """Measure the training step that is made inside: forward, backward, and then the optimizer's step.

        Args:
            model: The network.
            step: Steps that were made before.
            epoch: Epochs that were finished before.
            lr: The step's learning rate.
        """
        activations: Record = {}
        statistics: Record = {}
        before = {name: parameter.state() for name, parameter in weights(model)}
        invariant = scale_invariant(model)
        gradients: dict[str, float] = {}
        self._gradients = gradients
        try:
            with contextlib.ExitStack() as stack:
                for name, layer, batchnorm, rectifies in watched(model):
                    stack.enter_context(_watching(name, layer, batchnorm, rectifies, activations, statistics))
                yield
        finally:
            self._gradients = None
        affine = {name: _affine(module) for name, module in model.named_modules() if _has_affine(module)}
        record = {
            "step": step,
            "epoch": epoch,
            "lr": lr,
            "activations": activations,
            "statistics": statistics,
            "affine": affine,
            "weights": {
                name: _weight(before[name], parameter, gradients.get(name), lr, name in invariant)
                for name, parameter in weights(model)
            },
        }
        self.sink(record)

    def gradients(self, model: Module) -> None:
        """To be called after backward, before gradients are changed or forgotten; does nothing outside `watch`."""
        if self._gradients is None:
            return
        for name, parameter in weights(model):
            if parameter.grad is not None:
                self._gradients[name] = _norm(parameter.backend.numpy(parameter.grad))


def weights(model: Module) -> Iterator[tuple[str, Parameter]]:
    """The weights of convolutions and linear layers, by name."""
    for path, module in model.named_modules():
        if isinstance(module, Conv2d | Linear):
            yield f"{path}.weight" if path else "weight", module.weight


def scale_invariant(model: Module) -> set[str]:
    """Names of the weights whose scale the normalization behind them takes away, ReLU between them or not."""
    found = set()
    for path, module in model.named_modules():
        if not isinstance(module, Sequential):
            continue
        chain = list(module.chain())
        for i, (name, layer) in enumerate(chain):
            behind = [following for _, following in chain[i + 1 : i + 3]]
            if isinstance(layer, Conv2d | Linear) and _takes_scale_away(behind, layer.bias is None):
                found.add(f"{path}.{name}.weight" if path else f"{name}.weight")
    return found


def _takes_scale_away(behind: list[Module], unbiased: bool) -> bool:
    if behind and isinstance(behind[0], ReLU):  # ReLU(a x) = a ReLU(x), but a bias would not be multiplied
        return unbiased and len(behind) > 1 and is_normalization(behind[1])
    return bool(behind) and is_normalization(behind[0]) and (unbiased or isinstance(behind[0], BatchNorm))


def is_normalization(module: Module) -> bool:
    """Whether it normalizes by statistics of its input: batch, group, layer or instance normalization."""
    return isinstance(module, BatchNorm | GroupNorm | InstanceNorm1d | InstanceNorm2d | LayerNorm)


def watched(model: Module) -> Iterator[tuple[str, Any, BatchNorm | None, bool]]:
    """What has an output of its own: name, step, the batch normalization in it, and whether ReLU ends it.

    A fused step has the names of its parts, "bn1+relu1"; what is fused never runs by itself and is not named. A step of
    a chain of convolutions appears as its convolution and as its normalization.
    """
    fused: set[int] = set()
    paths = {id(module): path for path, module in model.named_modules()}
    for _, module in model.named_modules():
        if isinstance(module, Sequential):
            steps = list(module.steps)
            chain = {id(layer): name for name, layer in module.chain()}
            for step in steps:
                if isinstance(step, NormalizedConvolution):
                    fused.add(id(step.convolution))
                    yield paths[id(step.convolution)], step, None, False
                if isinstance(step, NormalizedPooling):
                    fused.add(id(step.pool))
                    yield paths[id(step.pool)], step, None, False
                if isinstance(step, BatchNormReLU) or (isinstance(step, NormalizedConvolution) and not step.joined):
                    name, rectifies = paths[id(step.batchnorm)], isinstance(step, BatchNormReLU) or step.relu
                    fused.add(id(step.batchnorm))
                    if rectifies:
                        following = _after(module, step.batchnorm)
                        fused.add(id(following))
                        name += f"+{chain[id(following)]}"
                    yield name, step, step.batchnorm, rectifies
            if isinstance(module, Residual) and isinstance(module.joint, BatchNormAddReLU):
                inner = module.joint.batchnorm
                fused |= {id(inner), id(module.activation)}
                yield f"{paths[id(inner)]}+sum+activation", module.joint, inner, True
    for path, module in model.named_modules():
        if id(module) in fused or any(True for _ in module.children()):
            continue
        batchnorm = module if isinstance(module, BatchNorm) else None
        yield path or type(module).__name__, module, batchnorm, isinstance(module, ReLU)


def _after(sequential: Sequential, layer: Module) -> Module:
    layers = list(sequential)
    return layers[next(i for i, other in enumerate(layers) if other is layer) + 1]


@contextlib.contextmanager
def _watching(
    name: str, layer: Any, batchnorm: BatchNorm | None, rectifies: bool, activations: Record, statistics: Record
) -> Iterator[None]:
    forward = layer.forward

    def measured(x: Array | PendingActivation, *others: Array) -> Array | PendingActivation:
        running = _running(batchnorm) if batchnorm is not None and batchnorm.track_running_stats else None
        y = forward(x, *others)
        output = y.written() if isinstance(y, PendingActivation) else y
        normalized = x.x if isinstance(x, PendingActivation) else x
        if isinstance(layer, NormalizedConvolution):
            normalized = layer.output_of_convolution(y)
            output = normalized if batchnorm is None else output
        if batchnorm is not None and running is not None and normalized.size // normalized.shape[-1] > 1:
            statistics[name] = _statistics(batchnorm, normalized, running)
        activations[name] = _activation(batchnorm.backend if batchnorm else layer.backend, output, rectifies)
        return y

    layer.forward = measured
    try:
        yield
    finally:
        vars(layer).pop("forward", None)


def _activation(backend: Any, y: Array, rectifies: bool) -> Record:
    host = numbers(backend, y)
    sample = host.reshape(-1)[:: _stride(host.size, host.shape[-1])].astype(np.float64)
    if not sample.size:
        return {"percentiles": [None] * len(PERCENTILES), "mean": None, "std": None, "dead": None}
    with np.errstate(all="ignore"):
        return {
            "percentiles": np.percentile(sample, PERCENTILES).tolist(),
            "mean": float(sample.mean()),
            "std": float(sample.std()),
            "dead": float((host.reshape(-1, host.shape[-1]).max(axis=0) <= 0).mean()) if rectifies else None,
        }


def _stride(size: int, channels: int) -> int:
    """Between the elements of a sample: it has no factor in common with `channels`, so that all of them are in it."""
    stride = max(1, -(-size // SAMPLE))
    while math.gcd(stride, channels) > 1:
        stride += 1
    return stride


def _running(batchnorm: BatchNorm) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the variance as they are before a batch moves them."""
    backend = batchnorm.backend
    mean, variance = (
        backend.numpy(part).astype(np.float64) for part in (batchnorm.running_mean, batchnorm.running_var)
    )
    return mean, variance


def _statistics(batchnorm: BatchNorm, x: Array, of_before: tuple[np.ndarray, np.ndarray]) -> Record:
    """By the device's own sums, as the layer makes them."""
    backend, channels, eps = batchnorm.backend, batchnorm.num_features, batchnorm.eps
    of_batch = BatchStatistics(*(backend.empty((channels,)) for _ in range(4)))
    backend.batchnorm_statistics(x, eps, of_batch)
    shift, delta, var = (backend.numpy(a).astype(np.float64) for a in (of_batch.shift, of_batch.delta, of_batch.var))
    mean, running = of_before
    with np.errstate(all="ignore"):
        distance = ((shift - mean) + delta) / np.sqrt(running + eps)
        ratio = np.exp(np.mean(np.log((var + eps) / (running + eps))))
    return {"mean_shift": float(np.sqrt(np.mean(distance**2))), "variance_ratio": float(ratio)}


def _has_affine(module: Module) -> bool:
    weight = vars(module).get("weight")
    return isinstance(weight, Parameter) and not isinstance(module, Conv2d | Linear)


def _affine(module: Module) -> Record:
    parts = {"gamma": vars(module).get("weight"), "beta": vars(module).get("bias")}
    hosts = {name: part.state() for name, part in parts.items() if isinstance(part, Parameter)}
    return {name: [float(host.min()), float(host.mean()), float(host.max())] for name, host in hosts.items()}


def _weight(before: np.ndarray, parameter: Parameter, gradient: float | None, lr: float, invariant: bool) -> Record:
    norm = _norm(before)
    change = _norm(parameter.state().astype(np.float64) - before)
    return {
        "norm": norm,
        "gradient_norm": gradient,
        "update_ratio": change / norm if norm else None,
        "effective_lr": lr / norm**2 if invariant and norm else None,
    }


def _norm(host: np.ndarray) -> float:
    return float(np.linalg.norm(host.astype(np.float64)))
