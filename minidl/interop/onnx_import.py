"""An ONNX file as a model of minidl, which computes the same and can be trained further.

The file's graph becomes a `Graph` of layers, called as the file calls their weights: what export_onnx wrote returns
with the names it had. Images are (N, C, H, W) in the file and (n, h, w, c) in the model, as everywhere in minidl.

Of batch normalization the file does not say how many batches it has seen; num_batches_tracked is 0. Weights that
several nodes share are each layer's own afterwards.
"""

from pathlib import Path
from typing import Any

import numpy as np

from minidl.errors import InteropError
from minidl.interop.messages import one_line, shown
from minidl.interop.onnx_attributes import Pair, UnsupportedError, attributes_of
from minidl.interop.onnx_file import array_of, opset_of, read_onnx
from minidl.interop.onnx_layers import RULES
from minidl.interop.onnx_package import require_onnx
from minidl.interop.onnx_wiring import Source, Wiring
from minidl.nn import Graph
from minidl.nn.graph import INPUT

CONSTANT = "Constant"


def import_onnx(path: str | Path) -> Graph:
    """The model in an ONNX file, on the CPU, in training mode as any new model.

    Args:
        path: The file; of any origin.

    Raises:
        InteropError: The package onnx is missing; or the file is missing, damaged, or has operators or forms of them
            that minidl does not have. The message is one line and says which.
    """
    return from_onnx(read_onnx(path, (*RULES, CONSTANT)), str(path))


def from_onnx(model: Any, where: str) -> Graph:
    """The model in an onnx.ModelProto that `read_onnx` has passed; `where` begins the messages of errors."""
    graph = model.graph
    constants = {tensor.name: array_of(tensor, f"{where}: {shown(tensor.name)}") for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise InteropError(
            f"{where}: has {len(inputs)} inputs and {len(graph.output)} outputs; minidl imports models with one of each"
        )
    source = _input(inputs[0], where)
    wiring = Wiring(constants, opset_of(model), inputs[0].name, source)
    for node in graph.node:
        try:
            if node.op_type == CONSTANT:
                constants[node.output[0]] = _constant(node, where)
            else:
                RULES[node.op_type](wiring, node, attributes_of(node))
        except (UnsupportedError, ValueError, TypeError, KeyError, IndexError) as error:
            called = shown(node.name or (node.output[0] if node.output else ""))
            raise InteropError(f"{where}: {node.op_type} {called}: {_reason(error)}") from None
    try:
        return wiring.finish(graph.output[0].name)
    except UnsupportedError as error:
        raise InteropError(f"{where}: {error}") from None


def _input(value: Any, where: str) -> Source:
    """What the model is given: images or vectors of float32."""
    onnx = require_onnx()
    tensor = value.type.tensor_type
    if tensor.elem_type != onnx.TensorProto.FLOAT:
        raise InteropError(f"{where}: its input {shown(value.name)} is not float32")
    sizes = [axis.dim_value if axis.HasField("dim_value") else None for axis in tensor.shape.dim]
    if len(sizes) == 2:
        return Source(INPUT, "vector")
    if len(sizes) != 4:
        raise InteropError(
            f"{where}: its input {shown(value.name)} has {len(sizes)} axes; expected images (N, C, H, W) or vectors "
            "(N, C)"
        )
    height, width = sizes[2:]
    size: Pair | None = None if height is None or width is None else (height, width)
    return Source(INPUT, "image", size)


def _constant(node: Any, where: str) -> np.ndarray:
    (attribute,) = node.attribute
    if attribute.name == "value":
        return array_of(attribute.t, f"{where}: {shown(node.output[0])}")
    if attribute.name in ("value_float", "value_floats", "value_int", "value_ints"):
        value = attributes_of(node)[attribute.name]
        return np.array(value, np.float32 if "float" in attribute.name else np.int64)
    raise UnsupportedError(f"its {attribute.name} is no number")


def _reason(error: Exception) -> str:
    """One line; an error of Python's own comes from attributes that no operator of that name has."""
    if isinstance(error, UnsupportedError | ValueError | TypeError):
        return one_line(error)
    return f"is damaged ({type(error).__name__})"
