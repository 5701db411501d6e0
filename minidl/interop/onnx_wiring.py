"""A graph of layers in the making, out of the nodes of an ONNX file: what each value is, and what layers are called."""

import re
from typing import Any, NamedTuple

import numpy as np

from minidl.interop.messages import shown
from minidl.interop.onnx_attributes import Pair, UnsupportedError
from minidl.nn import Graph, Module, OnePixel
from minidl.nn.graph import INPUT

_PATH = re.compile(r"[A-Za-z0-9_]{1,60}(\.[A-Za-z0-9_]{1,60}){0,11}")
_PARAMETER = re.compile(r"(.+)\.(weight|bias|running_mean|running_var|ones|zeros)")


class Source(NamedTuple):
    """A value that layers read.

    Attributes:
        name: Of the layer of minidl that gives it, or `INPUT`.
        kind: "image" (n, h, w, c), ONNX's (N, C, H, W); "vector" (n, c), ONNX's (N, C); or "pixel", which is (n, c) in
            minidl and (N, C, 1, 1) in ONNX, as global pooling leaves it.
        size: (height, width) of images, where the file fixes it.
    """

    name: str
    kind: str
    size: Pair | None = None

    @property
    def rank(self) -> int:
        """How many axes ONNX gives it."""
        return 2 if self.kind == "vector" else 4

    def resized(self, size: Pair | None) -> "Source":
        """The same with images of another size."""
        return self._replace(size=size)


class Wiring:
    """Layers by name, each with its inputs, in order.

    Attributes:
        constants: The file's initializers and constants, by ONNX's names.
        opset: The version of ONNX's operators.
        layers: What `Graph` is made of.
    """

    def __init__(self, constants: dict[str, np.ndarray], opset: int, given: str, source: Source) -> None:
        self.constants, self.opset = constants, opset
        self.layers: dict[str, tuple[Any, ...]] = {}
        self._sources = {given: source}
        self._attributes = set(dir(Graph({"layer": (OnePixel(), INPUT)})))

    # What a node is given.

    def has(self, node: Any, place: int) -> bool:
        """Whether the node has an input in that place; ONNX calls one that is left out ""."""
        return len(node.input) > place and bool(node.input[place])

    def constant(self, node: Any, place: int, finite: bool = True) -> np.ndarray:
        """An input that the file fixes: weights and the like."""
        name = node.input[place] if len(node.input) > place else ""
        if name not in self.constants:
            raise UnsupportedError(f"input {place}, {shown(name)!r}, is computed; minidl needs it in the file")
        array = self.constants[name]
        if finite and array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UnsupportedError(f"{shown(name)} holds NaN or infinity")
        return array

    def source(self, node: Any, place: int) -> Source:
        """An input that other layers compute."""
        name = node.input[place]
        if name not in self._sources:
            raise UnsupportedError(f"input {place}, {shown(name)!r}, is a constant; minidl computes it from the images")
        return self._sources[name]

    def image(self, node: Any, place: int) -> Source:
        """The same, as (n, h, w, c)."""
        source = self.source(node, place)
        if source.kind == "vector":
            raise UnsupportedError("its input is no image")
        return self.as_image(source)

    def vector(self, node: Any, place: int) -> Source:
        """The same, as (n, c)."""
        source = self.source(node, place)
        if source.kind != "vector":
            raise UnsupportedError("its input is an image; a Flatten must stand before it")
        return source

    def alike(self, node: Any) -> list[Source]:
        """All inputs, in one form."""
        sources = [self.source(node, place) for place in range(len(node.input))]
        kinds = {source.kind for source in sources}
        if len(kinds) == 1:
            return sources
        if "vector" in kinds or node.op_type != "Concat":
            raise UnsupportedError("its inputs have unequal shapes")
        return [self.as_image(source) for source in sources]

    # What a node becomes.

    def add(self, node: Any, layer: Module, sources: list[Source], like: Source, path: str | None = None) -> None:
        """A layer that gives the node's output, which is `like` but for its name."""
        path = self._free(path or self._spoken(node))
        self.layers[path] = (layer, *(source.name for source in sources))
        self._sources[node.output[0]] = like._replace(name=path)

    def insert(self, node: Any, what: str, layer: Module, like: Source) -> Source:
        """A layer in front of the node's own; `like` is its output but for the name, with its input's name."""
        path = self._free(f"{self.path(node, 1, 2) or self._spoken(node)}_{what}")
        self.layers[path] = (layer, like.name)
        return like._replace(name=path)

    def alias(self, node: Any, source: Source) -> None:
        """No layer: the node's output is that value."""
        self._sources[node.output[0]] = source

    def path(self, node: Any, *places: int) -> str | None:
        """What a layer is called by its parameters' names: "layer1.0.conv1", from "layer1.0.conv1.weight"."""
        for place in places:
            found = _PARAMETER.fullmatch(node.input[place]) if self.has(node, place) else None
            if found and self._is_good(found[1]):
                return found[1]
        return None

    def finish(self, output: str) -> Graph:
        """The graph of what the output needs."""
        source = self._sources.get(output)
        if source is None or not self.layers:
            raise UnsupportedError("its output is a constant, or its input itself")
        last = self.as_image(source).name
        needed = {last}
        for path, (_, *inputs) in reversed(self.layers.items()):
            if path in needed:
                needed.update(inputs)
        kept = {path: entry for path, entry in self.layers.items() if path in needed and path != last}
        if INPUT not in needed or last == INPUT:
            raise UnsupportedError("its output does not depend on its input")
        return Graph(kept | {last: self.layers[last]})

    def as_image(self, source: Source) -> Source:
        """`source`, by a layer where it is a "pixel"; a vector stays one."""
        if source.kind != "pixel":
            return source
        path = self._free(f"{source.name.replace('.', '_')}_pixel")
        self.layers[path] = (OnePixel(), source.name)
        return Source(path, "image", (1, 1))

    # Names of layers: the file's where they can be.

    def _spoken(self, node: Any) -> str:
        """A name from the node's own, "layer1.0.relu", else from its operator, "relu"."""
        name = _module_of(node)
        return name if self._is_good(name) else node.op_type.lower()

    def _is_good(self, path: str) -> bool:
        return bool(_PATH.fullmatch(path)) and not self._attributes & set(path.split(".")) and path != INPUT

    def _free(self, wanted: str) -> str:
        """`wanted`, or with a number behind it, so that no layer has that name or is a folder of that name."""
        path, number = wanted, 1
        while self._clashes(path):
            number += 1
            path = f"{wanted.replace('.', '_')}_{number}"
        return path

    def _clashes(self, path: str) -> bool:
        parts = path.split(".")
        if any(".".join(parts[:depth]) in self.layers for depth in range(1, len(parts) + 1)):
            return True
        return any(other.startswith(f"{path}.") for other in self.layers)


def _module_of(node: Any) -> str:
    """A node's name; of one that PyTorch wrote, "/layer1/layer1.0/conv1/Conv", its module's: "layer1.0.conv1"."""
    if not node.name.startswith("/"):
        return str(node.name)
    *scopes, operator = node.name[1:].split("/")
    modules: list[str] = []
    for scope in scopes:  # each by its path from the one before, but children of a Sequential by that and their number
        modules[-1:] = [scope] if modules and scope.startswith(f"{modules[-1]}.") else [*modules[-1:], scope]
    if modules and node.op_type in ("Conv", "Gemm", "BatchNormalization"):  # always a module's, and its only ones
        return ".".join(modules)
    return ".".join([*modules, operator])
