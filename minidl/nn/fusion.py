"""Fusion: a rewrite of a Sequential in which one step does the work of several layers."""

import contextlib
from collections.abc import Iterator

from minidl.backends import Array, PendingGradient
from minidl.nn.activation import ReLU
from minidl.nn.batchnorm import BatchNorm, BatchNorm1d, BatchNorm2d
from minidl.nn.containers import Joint, Residual, Sequential
from minidl.nn.ghost import GhostBatchNorm1d, GhostBatchNorm2d
from minidl.nn.linear import Conv2d
from minidl.nn.module import Module
from minidl.nn.normalized_convolution import NormalizedConvolution
from minidl.nn.normalized_pooling import NormalizedPooling
from minidl.nn.pending import PendingActivation
from minidl.nn.pooling import MaxPool2d

SUM = "sum"  # as a residual block's is called
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
        self._pending = False  # as the last forward pass's x was

    def forward(self, x: Array | PendingActivation, residual: Array) -> Array:
        """ReLU of the normalized x plus `residual`; x may have its statistics already."""
        self._pending = isinstance(x, PendingActivation)
        if isinstance(x, PendingActivation):
            return self.batchnorm.write_add_relu(x, residual)
        return self.batchnorm.normalize_add_relu(x, residual)

    def backward(self, dy: Array) -> tuple[Array | PendingGradient, Array]:
        """The gradients of x, pending where x was, and `residual`."""
        return self.batchnorm.split_gradient(dy) if self._pending else self.batchnorm.backward_add_relu(dy)


_Layers = list[Module]


class _Fusion:
    """See `Rewrite`."""

    def chain(self, layers: _Layers) -> _Layers:
        return _steps(layers, joined=False)

    def residual(self, layers: _Layers, activation: Module | None) -> tuple[_Layers, Joint | None]:
        last = layers[-1] if layers else None
        if isinstance(last, BatchNorm) and _are_fusible(last, activation):
            return _steps(layers, joined=True), BatchNormAddReLU(last)
        return _steps(layers, joined=False), None


def _steps(layers: _Layers, joined: bool) -> _Layers:
    """The steps that do what `layers` do; `joined`: but for the last one, which a joint does."""
    steps: _Layers = []
    at, end = 0, len(layers) - joined
    while at < end:
        pool = _fused_pooling(layers, at) if steps and _hands_on(steps[-1]) else None
        step: Module | None = None if pool is None else NormalizedPooling(pool)
        step = step or _normalized_convolution(layers, at, joined) or _batchnorm_relu(layers, at)
        steps.append(step or layers[at])
        at += _width(steps[-1])
    return steps


def _hands_on(step: Module) -> bool:
    return isinstance(step, NormalizedConvolution) and step.hands_on


def _fused_pooling(layers: _Layers, at: int) -> MaxPool2d | None:
    """That layer, if it can be the end of a chain."""
    layer = layers[at] if at < len(layers) else None
    # Exactly this, as for a convolution.
    return layer if type(layer) is MaxPool2d and layer.backend.fuses_pooling() else None


def _batchnorm_relu(layers: _Layers, at: int) -> BatchNormReLU | None:
    first, second = (*layers[at : at + 2], None)[:2]
    return BatchNormReLU(first) if isinstance(first, BatchNorm) and _are_fusible(first, second) else None


def _normalized_convolution(layers: _Layers, at: int, joined: bool) -> NormalizedConvolution | None:
    """The step of a chain that begins with that layer, if one does."""
    unit = _unit(layers, at)
    if unit is None:
        return None
    convolution, batchnorm, relu = unit
    end = at + 2 + relu
    following = _unit(layers, end)
    into_convolution = following is not None and _fuses(following[0])
    read_on = into_convolution or _fused_pooling(layers, end) is not None  # by the step after this one
    if not (_fuses(convolution) or read_on):
        return None
    last = joined and end == len(layers)
    options = {"fused": _fuses(convolution), "hands_on": read_on or last, "joined": last}
    return NormalizedConvolution(convolution, batchnorm, relu, **options)


def _unit(layers: _Layers, at: int) -> tuple[Conv2d, BatchNorm2d, bool] | None:
    """A convolution without a bias and its batch normalization that begin there, and whether ReLU follows."""
    convolution, batchnorm, activation = (*layers[at : at + 3], None, None, None)[:3]
    # Exactly these: a subclass may compute something else. (What does not fit together says so when it runs.)
    if type(convolution) is not Conv2d or type(batchnorm) is not BatchNorm2d or convolution.bias is not None:
        return None
    if convolution.out_channels != batchnorm.num_features:
        return None
    return convolution, batchnorm, type(activation) is ReLU


def _fuses(convolution: Conv2d) -> bool:
    return convolution.backend.fuses_normalization(convolution.in_channels, convolution.out_channels)


def _are_fusible(first: Module, second: Module | None) -> bool:
    return type(first) in FUSIBLE and type(second) is ReLU  # exactly these, likewise


def _width(step: Module) -> int:
    """How many layers it does."""
    if isinstance(step, NormalizedConvolution):
        return 2 + step.relu
    return 2 if isinstance(step, BatchNormReLU) else 1


_FUSION = _Fusion()


def fuse(model: Module) -> list[str]:
    """Replace layers that follow each other by steps that take fewer passes over memory.

    In every Sequential and Residual of `model`: BatchNorm followed by ReLU, and the end of a residual block, become one
    step each; and where the device has fused operations for them (`Backend.fuses_normalization`), so do chains of
    convolutions without a bias, their BatchNorm2d and ReLU, in which no normalized activation is stored, and MaxPool2d
    at the end of one (`Backend.fuses_pooling`). That is looked at again when the model is moved to another device.

    Names, parameters and state stay what they were. Outputs and gradients do too, to the bit where no chain is fused;
    in one statistics and sums are added up in another order, and what it computes is the same within rounding.

    Returns:
        What is fused on the model's device, e.g. "bn1 + relu1", "bn2 + sum + activation", "bn1 + relu1 + conv2 + bn2 +
        relu2": a chain whose first convolution, conv1, runs as it would alone.
    """
    fused = []
    for path, module in model.named_modules():
        if isinstance(module, Sequential):
            module.rewrite(_FUSION)
            prefix = f"{path}." if path else ""
            fused += [" + ".join(_with(prefix, name) for name in names) for names in _fused_names(module)]
    return fused


def _with(prefix: str, name: str) -> str:
    return name if name == SUM else prefix + name


def _fused_names(module: Sequential) -> list[list[str]]:
    """The children that run together."""
    names = [name for name, _ in module.chain()]
    groups: list[list[str]] = []
    at, open_ended = 0, False
    for step in module.steps:
        own, at = names[at : at + _width(step)], at + _width(step)
        if isinstance(step, NormalizedConvolution) and not step.fused:
            own = own[1:]
        if open_ended:
            groups[-1] += own
        elif isinstance(step, (BatchNormReLU, NormalizedConvolution)):
            groups.append(own)
        open_ended = _hands_on(step)
    if isinstance(module, Residual) and isinstance(module.joint, BatchNormAddReLU):
        if not open_ended:
            groups.append(names[at:])
        groups[-1] += [SUM, "activation"]
    return groups


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
