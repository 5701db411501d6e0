"""Fusion: a rewrite of a Sequential in which one step does the work of several layers."""

import contextlib
from collections.abc import Iterator
from itertools import pairwise

from minidl.backends import Array
from minidl.nn.activation import ReLU
from minidl.nn.batchnorm import BatchNorm, BatchNorm1d, BatchNorm2d
from minidl.nn.containers import Sequential
from minidl.nn.module import Module


class BatchNormReLU(Module):
    """Batch normalization and ReLU in one pass over memory, forward and backward.

    Borrows the batch normalization layer: parameters and buffers stay there, under its name.
    """

    def __init__(self, batchnorm: BatchNorm) -> None:
        super().__init__(batchnorm.backend)
        object.__setattr__(self, "batchnorm", batchnorm)  # not registered: it is the Sequential's child already
        self.batchnorm: BatchNorm

    def forward(self, x: Array) -> Array:
        """ReLU of the normalized x."""
        return self.batchnorm.normalize(x, relu=True)

    def backward(self, dy: Array) -> Array:
        """See `Module.backward`."""
        return self.batchnorm.backward(dy)


def fuse(model: Module) -> list[str]:
    """Replace, in every Sequential of `model`, BatchNorm followed by ReLU by one step.

    Outputs, gradients, names and state stay what they were. Returns what was fused, e.g. "bn1 + relu1".
    """
    fused = []
    for path, module in model.named_modules():
        if not isinstance(module, Sequential):
            continue
        module.rewrite(_fused)
        prefix = f"{path}." if path else ""
        fused += [
            f"{prefix}{name} + {prefix}{following}"
            for (name, layer), (following, next_layer) in pairwise(module.children())
            if _are_fusible(layer, next_layer)
        ]
    return fused


@contextlib.contextmanager
def unfused(model: Module) -> Iterator[None]:
    """Inside, every layer of `model` runs by itself."""
    sequentials = [module for _, module in model.named_modules() if isinstance(module, Sequential)]
    before = [module.rewritten_by for module in sequentials]
    for module in sequentials:
        module.rewrite(None)
    try:
        yield
    finally:
        for module, rule in zip(sequentials, before, strict=True):
            module.rewrite(rule)


def _are_fusible(first: Module, second: Module) -> bool:
    # Exactly these: a subclass may compute something else.
    return type(first) in (BatchNorm1d, BatchNorm2d) and type(second) is ReLU


def _fused(children: list[Module]) -> list[Module]:
    steps: list[Module] = []
    for child in children:
        before = steps[-1] if steps else None
        if isinstance(before, BatchNorm) and _are_fusible(before, child):
            steps[-1] = BatchNormReLU(before)
        else:
            steps.append(child)
    return steps
