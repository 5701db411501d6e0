"""Fusion: a rewrite of a Sequential in which one step does the work of several layers."""

import contextlib
from collections.abc import Iterator

from minidl.backends import Array
from minidl.nn.activation import ReLU
from minidl.nn.batchnorm import BatchNorm
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
        names = {id(child): name for name, child in module.children()}
        steps: list[Module] = []
        for step in module.steps:
            before = steps[-1] if steps else None
            if isinstance(step, ReLU) and isinstance(before, BatchNorm):
                steps[-1] = BatchNormReLU(before)
                prefix = f"{path}." if path else ""
                fused.append(f"{prefix}{names[id(before)]} + {prefix}{names[id(step)]}")
            else:
                steps.append(step)
        module.steps = steps
    return fused


@contextlib.contextmanager
def unfused(model: Module) -> Iterator[None]:
    """Inside, every layer of `model` runs by itself."""
    fused = [(module, module.steps) for _, module in model.named_modules() if isinstance(module, Sequential)]
    for module, _ in fused:
        module.steps = list(module)
    try:
        yield
    finally:
        for module, steps in fused:
            module.steps = steps
