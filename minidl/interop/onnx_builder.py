"""An ONNX graph in the making: nodes in order, initializers, and a name for each value."""

from typing import Any, NamedTuple

import numpy as np

from minidl.interop.onnx_package import require_onnx


class Value(NamedTuple):
    """What an ONNX node gives, and its shape in minidl without the batch: (h, w, c), (l, c) or (c,)."""

    name: str
    shape: tuple[int, ...]


class GraphBuilder:
    """Collects nodes and initializers. Values are called by the layers that give them, by PyTorch's dotted names."""

    def __init__(self) -> None:
        self.onnx = require_onnx()
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._taken = {"input", "output"}

    def add(self, operator: str, path: str, inputs: list[str], shape: tuple[int, ...], **attributes: Any) -> Value:
        """A node with one output; it and the node are called `path`, as nearly as that is free."""
        name = self._free(path or operator.lower())
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, [name], name=name, **attributes))
        return Value(name, shape)

    def constant(self, name: str, array: np.ndarray) -> str:
        """An initializer of that name; of real numbers as float32."""
        array = np.asarray(array, np.float32 if array.dtype.kind == "f" else array.dtype, order="C")
        free = self._free(name)
        self.initializers.append(self.onnx.numpy_helper.from_array(array, free))
        return free

    def finish(self, output: Value) -> None:
        """Call the graph's output "output"."""
        for node in self.nodes:
            if list(node.output) == [output.name]:
                node.output[:] = ["output"]
                return
        self.nodes.append(self.onnx.helper.make_node("Identity", [output.name], ["output"]))  # of the input itself

    def _free(self, name: str) -> str:
        free, number = name, 1
        while free in self._taken:
            number += 1
            free = f"{name}_{number}"
        self._taken.add(free)
        return free


def onnx_shape(shape: tuple[int, ...], batch: str) -> list[str | int]:
    """A shape of minidl's, without its batch, as ONNX has it: channels before height and width."""
    return [batch, *shape[-1:], *shape[:-1]]
