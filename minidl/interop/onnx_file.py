"""Reading an ONNX file from anywhere: parsed as data, checked, and refused in one line where it is not understood.

Nothing in the file is run, and no other file is opened for it: tensors in files of their own ("external data") are
refused. A file may have at most MAX_BYTES, which is what protobuf can parse, and MAX_NODES nodes.
"""

import math
from collections.abc import Collection, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from minidl.errors import InteropError
from minidl.interop.messages import one_line, shown
from minidl.interop.onnx_package import require_onnx

MAX_BYTES = 2**31 - 1
MAX_NODES = 100_000
OPSETS = range(7, 29)  # versions of ONNX's operators whose changes are known to onnx_layers.py
# For each kind of numbers the field that holds them where raw_data does not, and their dtype.
_KINDS: dict[str, tuple[str, type[np.generic]]] = {
    "FLOAT": ("float_data", np.float32),
    "DOUBLE": ("double_data", np.float64),
    "INT64": ("int64_data", np.int64),
    "BOOL": ("int32_data", np.bool_),
}


def read_onnx(path: str | Path, operators: Collection[str]) -> Any:
    """The onnx.ModelProto in the file, of those operators only, valid by onnx's own checker.

    Raises:
        InteropError: The package onnx is missing, or the file is missing, too large, damaged, or has what minidl does
            not import; the message names all operators that it does not.
    """
    onnx = require_onnx()
    decode_error = import_module("google.protobuf.message").DecodeError  # what onnx stands on
    model = onnx.ModelProto()
    try:
        model.ParseFromString(_bytes_of(Path(path)))
    except (decode_error, RecursionError):
        raise InteropError(f"{path}: is not an ONNX file, or is damaged") from None
    if not model.opset_import or not model.graph.node:
        raise InteropError(f"{path}: is not an ONNX file, or has no operators")
    if not all(isinstance(text, str) for text in _names(model)):  # protobuf gives bytes for what is not UTF-8
        raise InteropError(f"{path}: is damaged: it has names that are not text")
    problem = _problem(model, operators)
    if problem:
        raise InteropError(f"{path}: {problem}")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        raise InteropError(f"{path}: is no valid ONNX model: {one_line(error)}") from None
    return model


def opset_of(model: Any) -> int:
    """The version of ONNX's own operators; 0 if the model does not say."""
    return next((int(opset.version) for opset in model.opset_import if opset.domain in ("", "ai.onnx")), 0)


def array_of(tensor: Any, where: str) -> np.ndarray:
    """The array in a TensorProto of float32, float64, int64 or bool numbers.

    Raises:
        InteropError: It has other numbers, or fewer or more than its shape says; `where` begins the message.
    """
    onnx = require_onnx()
    kind = _kind(onnx.TensorProto.DataType, tensor.data_type)
    if kind not in _KINDS:
        raise InteropError(f"{where} holds numbers of type {kind}; minidl imports {', '.join(_KINDS)}")
    field, dtype = _KINDS[kind]
    shape = tuple(tensor.dims)
    held = len(tensor.raw_data) / np.dtype(dtype).itemsize if tensor.raw_data else len(getattr(tensor, field))
    if any(size < 0 for size in shape) or math.prod(shape) != held:
        raise InteropError(f"{where} is damaged: it has shape {shape} and {held:g} numbers")
    return np.array(onnx.numpy_helper.to_array(tensor))


def _bytes_of(path: Path) -> bytes:
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            what = "is a folder, not a file" if path.is_dir() else "is not a regular file"
            raise InteropError(f"{path}: {what if path.exists() else 'no such file'}")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InteropError(f"{path}: has {size:,} bytes; minidl reads ONNX files of up to {MAX_BYTES:,}")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL byte
        raise InteropError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _problem(model: Any, operators: Collection[str]) -> str | None:
    """What about the model is not imported, in words; None where nothing is known to stand against it."""
    graph, opset = model.graph, opset_of(model)
    if len(graph.node) > MAX_NODES:
        return f"has {len(graph.node):,} nodes; minidl imports up to {MAX_NODES:,}"
    domains = {node.domain for node in graph.node}
    foreign = sorted(
        {
            shown(f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type)
            for node in graph.node
            if node.domain not in ("", "ai.onnx") or node.op_type not in operators
        }
    )
    if foreign:
        listed = f"{', '.join(foreign[:8])}{f' and {len(foreign) - 8} more' if len(foreign) > 8 else ''}"
        return f"has operators that minidl does not import: {listed}; it imports {', '.join(sorted(operators))}"
    if opset not in OPSETS:
        return (
            f"uses version {opset} of ONNX's operators; minidl imports versions {OPSETS[0]} to {OPSETS[-1]} "
            "(onnx.version_converter can convert it)"
        )
    if len(domains - {"", "ai.onnx"}) or len(model.functions) or len(model.training_info) or graph.sparse_initializer:
        return "has functions, training information or sparse tensors, which minidl does not import"
    if any(_is_external(tensor) for tensor in _tensors(graph)):
        return "keeps tensors in other files (external data), which minidl does not open; save it as one file"
    return None


def _names(model: Any) -> Iterator[Any]:
    """All that is looked up, compared or shown."""
    graph = model.graph
    yield from (opset.domain for opset in model.opset_import)
    yield from (value.name for value in (*graph.input, *graph.output, *graph.initializer))
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from _attribute_tensors(attribute)


def _attribute_tensors(attribute: Any) -> Iterable[Any]:
    return [attribute.t, *attribute.tensors]


def _is_external(tensor: Any) -> bool:
    return tensor.data_location == type(tensor).EXTERNAL or len(tensor.external_data) > 0


def _kind(kinds: Any, number: int) -> str:
    return str(kinds.Name(number)) if number in kinds.values() else f"number {number}"
