"""Layers wired as a directed acyclic graph, as in an ONNX file: for networks that no nesting of containers makes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kernels.errors import ShapeError
from minidl.backends import Array
from minidl.nn.module import Module

INPUT = "input"  # the name of what the network is given


class Join(Module):
    """Base of the layers that have several inputs; they stand in a Graph, which calls `join` and `spread`."""

    def join(self, inputs: Sequence[Array]) -> Array:
        """The output for these inputs."""
        raise NotImplementedError

    def spread(self, dy: Array) -> list[Array]:
        """The gradients of the inputs of the last `join`."""
        raise NotImplementedError

    def forward(self, x: Array) -> Array:
        """Of one input alone."""
        return self.join([x])

    def backward(self, dy: Array) -> Array:
        """See `Module.backward`."""
        return self.spread(dy)[0]


class Add(Join):
    """The sum of inputs of equal shapes."""

    def join(self, inputs: Sequence[Array]) -> Array:
        """Raises ShapeError unless all have one shape."""
        first, *others = (self.accept_stored(x, "Add: an input") for x in inputs)
        for other in others:
            if other.shape != first.shape:
                raise ShapeError(f"Add: the inputs have shapes {tuple(first.shape)} and {tuple(other.shape)}")
        y = self.backend.empty(first.shape, first.dtype)
        self.backend.copy(first, y)
        for other in others:
            self.backend.add(y, other, y)
        self.keep(len(inputs), y.shape)
        return y

    def spread(self, dy: Array) -> list[Array]:
        """The gradient itself, for each input."""
        count, shape = self.kept()
        return [self.accept_gradient(dy, shape)] * count


class ConcatChannels(Join):
    """The channels of the inputs one after another; the other axes must agree."""

    def join(self, inputs: Sequence[Array]) -> Array:
        """Raises ShapeError unless the inputs agree in all axes but the last."""
        inputs = [self.accept_stored(x, "ConcatChannels: an input") for x in inputs]
        if len({x.shape[:-1] for x in inputs}) != 1:
            shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
            raise ShapeError(f"ConcatChannels: the inputs have shapes {shapes}; expected equal axes but for the last")
        y = self.backend.empty((*inputs[0].shape[:-1], sum(x.shape[-1] for x in inputs)), inputs[0].dtype)
        self.backend.concat(inputs, y)
        self.keep([x.shape for x in inputs], y.shape)
        return y

    def spread(self, dy: Array) -> list[Array]:
        """The gradient's channels, to each input its own."""
        shapes, whole = self.kept()
        dy = self.accept_gradient(dy, whole)
        parts = [self.backend.empty(shape, dy.dtype) for shape in shapes]
        self.backend.split(dy, parts)
        return parts


class OnePixel(Module):
    """(n, c) -> (n, 1, 1, c), for layers of images behind global pooling; no element moves."""

    def forward(self, x: Array) -> Array:
        """See the class."""
        x = self.accept(x, "n c")
        self.keep(x.shape)
        return x.reshape(len(x), 1, 1, x.shape[1])

    def backward(self, dy: Array) -> Array:
        """See `Module.backward`."""
        (shape,) = self.kept()
        return self.accept_gradient(dy, (shape[0], 1, 1, shape[1])).reshape(shape)


class Node(NamedTuple):
    """A layer and what it is given: the names of earlier layers, or `INPUT`."""

    layer: Module
    inputs: tuple[str, ...]


class Graph(Module):
    """Layers, each with one or more of the earlier ones as inputs.

        Graph({"conv": (Conv2d(3, 3, 1), "input"), "sum": (Add(), "conv", "input"), "relu": (ReLU(), "sum")})

    The last layer's output is the network's. A dot in a name makes a part of the tree of modules, so that the state of
    "layer1.conv" is "layer1.conv.weight", as it would be in nested containers.

    Args:
        nodes: For each layer its name, itself and the names of its inputs, in an order in which they can run.

    Raises:
        ValueError: A name is not a good one, or is that of another layer's folder; an input does not come before; a
            layer with one input is given several; a layer's output, or the network's input, is not used.
        TypeError: What stands there is not a layer.
    """

    def __init__(self, nodes: Mapping[str, tuple[Any, ...]]) -> None:
        super().__init__()
        self.nodes: dict[str, Node] = {}
        if not nodes:
            raise ValueError("Graph: needs at least one layer")
        for name, (layer, *inputs) in nodes.items():
            self._add(name, Node(layer, tuple(inputs)))
        self.output = next(reversed(self.nodes))
        self._readers = Counter(name for node in self.nodes.values() for name in node.inputs)
        unused = [name for name in (INPUT, *self.nodes) if not self._readers[name] and name != self.output]
        if unused:
            raise ValueError(f"Graph: nothing uses the output of {', '.join(unused)}")
        self.backend = self.nodes[self.output].layer.backend

    def _add(self, name: str, node: Node) -> None:
        missing = [given for given in node.inputs if given != INPUT and given not in self.nodes]
        if missing or not node.inputs:
            has = f"the input {missing[0]}, which is no earlier layer" if missing else "no input"
            raise ValueError(f"Graph: layer {name} has {has}")
        if len(node.inputs) > 1 and not isinstance(node.layer, Join):
            raise ValueError(
                f"Graph: layer {name} has {len(node.inputs)} inputs, a {type(node.layer).__name__} has one"
            )
        if any(node.layer is other.layer for other in self.nodes.values()):
            raise ValueError(f"Graph: layer {name} stands in two places; it keeps what one backward needs")
        *folders, last = name.split(".")
        place: Module = self
        for depth, folder in enumerate(folders, start=1):
            known = dict(place.children())
            if folder not in known:
                place.add_module(folder, Module())
            elif ".".join(folders[:depth]) in self.nodes:
                raise ValueError(f"Graph: {'.'.join(folders[:depth])} is a layer, so {name} cannot be inside it")
            place = dict(place.children())[folder]
        if name == INPUT:
            raise ValueError(f"Graph: '{INPUT}' is the name of what the network is given")
        place.add_module(last, node.layer)
        self.nodes[name] = node

    def forward(self, x: Array) -> Array:
        """The last layer's output."""
        values, waiting = {INPUT: x}, Counter(self._readers)
        for name, (layer, inputs) in self.nodes.items():
            given = [values[source] for source in inputs]
            values[name] = layer.join(given) if isinstance(layer, Join) else layer.forward(given[0])
            del given
            for source in inputs:
                waiting[source] -= 1
                if not waiting[source]:
                    values.pop(source, None)  # its memory is free as soon as the last reader has run
        return values[self.output]

    def backward(self, dy: Array) -> Array:
        """See `Module.backward`. None where a layer gives no gradient of the network's input."""
        gradients: dict[str, list[Array]] = {self.output: [dy]}
        for name, (layer, inputs) in reversed(self.nodes.items()):
            dy = self._sum(gradients.pop(name))
            if dy is None:
                raise ValueError(f"Graph: the gradient of layer {name} is needed, but a layer after it gives none")
            parts = layer.spread(dy) if isinstance(layer, Join) else [layer.backward(dy)]
            for source, part in zip(inputs, parts, strict=True):
                gradients.setdefault(source, []).append(part)
        return self._sum(gradients[INPUT])

    def _sum(self, parts: list[Array]) -> Array:
        """Of the gradients that the readers of a value gave; in fresh memory, as a part may be another value's too."""
        if len(parts) == 1 or any(part is None for part in parts):
            return parts[0] if len(parts) == 1 else None
        total = self.backend.empty(parts[0].shape, parts[0].dtype)
        self.backend.add(parts[0], parts[1], total)
        for part in parts[2:]:
            self.backend.add(total, part, total)
        return total

    def __repr__(self) -> str:
        lines = [
            f"  ({name}): {node.layer!r} <- {', '.join(node.inputs)}".replace("\n", "\n  ")
            for name, node in self.nodes.items()
        ]
        return "Graph(\n" + "\n".join(lines) + "\n)"
