"""Fusion: a rewrite of a Sequential in which one step does the work of several layers."""

import contextlib
from collections.abc import Iterator
from itertools import pairwise

from minidl.backends import Array
from minidl.nn.activation import ReLU
from minidl.nn.batchnorm import BatchNorm, BatchNorm1d, BatchNorm2d
from minidl.nn.containers import Joint, Residual, Sequential
from minidl.nn.ghost import GhostBatchNorm1d, GhostBatchNorm2d
from minidl.nn.module import Module

FUSIBLE = BatchNorm1d, BatchNorm2d, GhostBatchNorm1d, GhostBatchNorm2d


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


class BatchNormAddReLU:
    """The end of a residual block in one pass: batch normalization, the sum and ReLU. Borrows the layer likewise."""

    def __init__(self, batchnorm: BatchNorm) -> None:
        self.batchnorm = batchnorm

    def forward(self, x: Array, residual: Array) -> Array:
        """ReLU of the normalized x plus `residual`."""
        return self.batchnorm.normalize_add_relu(x, residual)

    def backward(self, dy: Array) -> tuple[Array, Array]:
        """The gradients of x and `residual`."""
        return self.batchnorm.backward_add_relu(dy)


class _Fusion:
    """See `Rewrite`."""

    def chain(self, layers: list[Module]) -> list[Module]:
        steps: list[Module] = []
        for layer in layers:
            before = steps[-1] if steps else None
            if isinstance(before, BatchNorm) and _are_fusible(before, layer):
                steps[-1] = BatchNormReLU(before)
            else:
                steps.append(layer)
        return steps

    def joint(self, last: Module, activation: Module | None) -> Joint | None:
        if isinstance(last, BatchNorm) and _are_fusible(last, activation):
            return BatchNormAddReLU(last)
        return None


_FUSION = _Fusion()


def fuse(model: Module) -> list[str]:
    """Replace BatchNorm followed by ReLU, and the end of a residual block, by one step each.

    In every Sequential and Residual of `model`. Outputs, gradients, names and state stay what they were. Returns what
    was fused, e.g. "bn1 + relu1" or "bn2 + sum + activation".
    """
    fused = []
    for path, module in model.named_modules():
        if not isinstance(module, Sequential):
            continue
        module.rewrite(_FUSION)
        prefix = f"{path}." if path else ""
        layers = list(module.chain())
        fused += [
            f"{prefix}{name} + {prefix}{following}"
            for (name, layer), (following, next_layer) in pairwise(layers)
            if _are_fusible(layer, next_layer)
        ]
        if isinstance(module, Residual) and layers and _are_fusible(layers[-1][1], module.activation):
            fused.append(f"{prefix}{layers[-1][0]} + sum + {prefix}activation")
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


def _are_fusible(first: Module, second: Module | None) -> bool:
    # Exactly these: a subclass may compute something else.
    return type(first) in FUSIBLE and type(second) is ReLU
