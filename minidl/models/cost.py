"""What a network costs: of each layer the output's shape, parameters, FLOPs and the memory that backward needs.

All is read off a forward pass on arrays without memory (`minidl.models.shapes`), so it holds for any nesting of layers.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from minidl.models.shapes import ShapeBackend, on_shapes
from minidl.nn import Module, batch_multiple
from minidl.nn.fusion import unfused


class LayerCost(NamedTuple):
    """What one layer costs, without those inside it.

    Attributes:
        name: Its dotted name; "" for the network itself.
        kind: Its type, "Conv2d".
        output: The shape of its output for one image.
        parameters: Numbers that training changes.
        flops: Of a forward pass of one image: a multiply-add is two, and only those of convolutions and linear layers
            are counted, with those on padding but without biases, as `torch.utils.flop_counter` counts. What else there
            is takes a few operations an element.
        kept_bytes: What it keeps of each image for backward, in float32. An array that several layers keep counts for
            the first of them; what is kept of a batch whatever its size (batch statistics) does not count.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    flops: int
    kept_bytes: int


class Cost(NamedTuple):
    """What a network costs; `layers` has all of them, containers too, in the order of `named_modules`."""

    layers: tuple[LayerCost, ...]

    @property
    def parameters(self) -> int:
        """Of all layers."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def flops(self) -> int:
        """Of a forward pass of one image; see `LayerCost`."""
        return sum(layer.flops for layer in self.layers)

    @property
    def kept_bytes(self) -> int:
        """What a training step keeps of each image between forward and backward; see `LayerCost`."""
        return sum(layer.kept_bytes for layer in self.layers)


def cost(model: Module, image_shape: tuple[int, int, int]) -> Cost:
    """What `model` costs for each image of (height, width, channels).

    Memory is that of the model as it is: a fused one (`nn.fuse`) keeps less where nobody else reads what ReLU made, and
    less still on a device that has fused operations for chains of convolutions.
    Outputs and FLOPs are those of its single layers, fused or not. The model is not changed.

    Raises:
        ShapeError: The images do not fit the model.
        ValueError: They are too small for it to train on.
    """
    images = 2 * batch_multiple(model)  # batch normalization needs more than one value a channel
    outputs, flops = _pass_by_layers(model, (images, *image_shape))
    kept, kept_of_twice = (kept_bytes(model, (n, *image_shape)) for n in (images, 2 * images))
    return Cost(
        tuple(
            LayerCost(
                name,
                type(module).__name__,
                outputs.get(name, ()),
                sum(parameter.value.size for parameter in module._parameters.values()),
                flops.get(name, 0) // images,
                -((kept[name] - kept_of_twice[name]) // images),  # rounded up
            )
            for name, module in model.named_modules()
        )
    )


def kept_bytes(model: Module, x_shape: tuple[int, ...]) -> dict[str, int]:
    """What each layer keeps between forward and backward of a training step on x, in float32, statistics included.

    Raises as `cost` does.
    """
    with on_shapes(model) as backend:
        model.forward(backend.empty(x_shape))
        seen: set[int] = set()
        return {name: _fresh_bytes(module, seen) for name, module in model.named_modules()}


def _fresh_bytes(module: Module, seen: set[int]) -> int:
    """Of the arrays that a layer keeps and no layer before it; they are added to `seen`."""
    fresh = {id(array): array.nbytes for array in _arrays(module._kept) if id(array) not in seen}
    seen.update(fresh)
    return sum(fresh.values())


def _arrays(kept: Any) -> Iterator[np.ndarray]:
    if isinstance(kept, np.ndarray):
        yield kept
    elif isinstance(kept, (tuple, list)):
        for part in kept:
            yield from _arrays(part)


def _pass_by_layers(model: Module, x_shape: tuple[int, ...]) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Of each layer the shape of its output for one image, and of those without children the FLOPs for all."""
    outputs: dict[str, tuple[int, ...]] = {}
    flops: dict[str, int] = {}
    with unfused(model), on_shapes(model) as backend:
        for name, module in model.named_modules():
            _watch(name, module, backend, outputs, flops)
        model.forward(backend.empty(x_shape))
    return outputs, flops


def _watch(
    name: str, module: Module, backend: ShapeBackend, outputs: dict[str, tuple[int, ...]], flops: dict[str, int]
) -> None:
    """Let the layer's forward take notes, until `on_shapes` ends."""
    forward = module.forward

    def watched(x: Any) -> Any:
        before = backend.flops
        y = forward(x)
        outputs[name] = tuple(y.shape[1:])
        if not module._modules:
            flops[name] = backend.flops - before
        return y

    module.forward = watched  # type: ignore[method-assign]
