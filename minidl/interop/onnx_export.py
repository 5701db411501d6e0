"""A model as an ONNX file, for inference anywhere.

Graph       the model in evaluation: batch normalization by its running statistics, dropout does nothing. Training can
            go on from it: it is not folded, fused steps are written layer by layer.
Input       "input", (N, C, H, W) float32, the field's order, whatever minidl's is; N is free. Output "output".
Names       initializers have PyTorch's names ("layer1.0.conv1.weight") and PyTorch's layouts.
Pixels      are normalized before, not in the graph: what comes in is (pixel - mean) / std. mean and std are in the
            file's metadata, with model, classes and what else the caller gives.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kernels.errors import ShapeError
from minidl.errors import InteropError
from minidl.interop.messages import one_line
from minidl.interop.onnx_builder import GraphBuilder, Value, onnx_shape
from minidl.interop.onnx_package import IR_VERSION, OPSET, require_onnx
from minidl.interop.onnx_rules import RULES
from minidl.nn import Concat, Graph, Module, Residual, Sequential
from minidl.nn.graph import INPUT, Add, ConcatChannels
from minidl.training.atomic import write_atomically
from minidl.version import __version__


def export_onnx(
    model: Module,
    image_shape: tuple[int, ...],
    path: str | Path,
    *,
    name: str = "model",
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write `model` as an ONNX file, checked by onnx itself; whole, or not at all.

    Args:
        model: Any nesting of minidl's containers and layers, on any device; it is not changed.
        image_shape: Of one input: (height, width, channels), or (features,).
        path: The file; an older one is replaced.
        name: The graph's.
        metadata: Goes into the file's metadata: text as it is, anything else as JSON.

    Raises:
        InteropError: The package onnx is missing, a layer cannot be in an ONNX file, or the file cannot be written.
        ShapeError: The model does not fit images of this shape.
    """
    write_onnx(to_onnx(model, image_shape, name=name, metadata=metadata), path)


def write_onnx(proto: Any, path: str | Path) -> None:
    """Write what `to_onnx` gave; equal models give equal bytes. Raises InteropError."""
    try:
        write_atomically(Path(path), proto.SerializeToString(deterministic=True))
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL byte
        raise InteropError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}") from None


def to_onnx(
    model: Module, image_shape: tuple[int, ...], *, name: str = "model", metadata: Mapping[str, Any] | None = None
) -> Any:
    """The onnx.ModelProto that `export_onnx` writes; arguments and errors are its."""
    onnx = require_onnx()
    _require_known(model)
    builder = GraphBuilder()
    output = _walk(model, "", Value("input", tuple(image_shape)), builder)
    builder.finish(output)
    values = {"input": tuple(image_shape), "output": output.shape}
    source, target = (
        onnx.helper.make_tensor_value_info(of, onnx.TensorProto.FLOAT, onnx_shape(shape, "N"))
        for of, shape in values.items()
    )
    document = _document(metadata or {})
    graph = onnx.helper.make_graph(builder.nodes, name, [source], [target], builder.initializers, doc_string=document)
    proto = onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="minidl",
        producer_version=__version__,
        doc_string=document,
    )
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in (metadata or {}).items()}
    onnx.helper.set_model_props(proto, texts)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise InteropError(f"the model makes no valid ONNX file: {one_line(error)}") from None
    return proto


def _document(metadata: Mapping[str, Any]) -> str:
    normalized = "normalized as in training"
    if {"mean", "std"} <= metadata.keys():
        normalized = "(pixel - mean) / std, by the mean and std of each channel in the metadata, in units of the pixels"
    return f"Input (N, C, H, W) or (N, C), {normalized}: that is not part of the graph. Output: logits for each class."


# Containers: how layers are wired.


def _sequential(model: Sequential, path: str, x: Value, builder: GraphBuilder) -> Value:
    for name, layer in model.chain():
        x = _walk(layer, _join(path, name), x, builder)
    return x


def _residual(model: Residual, path: str, x: Value, builder: GraphBuilder) -> Value:
    main = _sequential(model, path, x, builder)
    side = x if model.downsample is None else _walk(model.downsample, _join(path, "downsample"), x, builder)
    if main.shape != side.shape:
        raise ShapeError(f"Residual {path}: the layers give {main.shape}, the way around {side.shape}")
    y = builder.add("Add", _join(path, "add"), [main.name, side.name], main.shape)
    return y if model.activation is None else _walk(model.activation, _join(path, "activation"), y, builder)


def _concat(model: Concat, path: str, x: Value, builder: GraphBuilder) -> Value:
    parts = [_walk(branch, _join(path, name), x, builder) for name, branch in model.children()]
    return _side_by_side(_join(path, "concat"), parts, builder)


def _graph(model: Graph, path: str, x: Value, builder: GraphBuilder) -> Value:
    values = {INPUT: x}
    for name, (layer, inputs) in model.nodes.items():
        given, inner = [values[source] for source in inputs], _join(path, name)
        if type(layer) is Add:
            values[name] = builder.add("Sum", inner, [value.name for value in given], given[0].shape)
        elif type(layer) is ConcatChannels:
            values[name] = _side_by_side(inner, given, builder)
        else:
            values[name] = _walk(layer, inner, given[0], builder)
    return values[model.output]


def _side_by_side(path: str, parts: list[Value], builder: GraphBuilder) -> Value:
    if len({part.shape[:-1] for part in parts}) != 1:
        raise ShapeError(f"{path}: the branches give {', '.join(str(part.shape) for part in parts)}")
    shape = *parts[0].shape[:-1], sum(part.shape[-1] for part in parts)
    return builder.add("Concat", path, [part.name for part in parts], shape, axis=1)


# Exactly these: a subclass may compute something else.
_CONTAINERS: dict[type[Module], Callable[[Any, str, Value, GraphBuilder], Value]] = {
    Sequential: _sequential,
    Residual: _residual,
    Concat: _concat,
    Graph: _graph,
}
_JOINS = (Add, ConcatChannels)


def _walk(module: Module, path: str, x: Value, builder: GraphBuilder) -> Value:
    rule = _CONTAINERS.get(type(module)) or RULES[type(module)]
    return rule(module, path, x, builder)


def _require_known(model: Module) -> None:
    """Raise InteropError, naming all, where a layer is of a kind that has no counterpart."""
    folders = {Module, *_CONTAINERS}  # a Module itself is a folder in the tree of a Graph
    unknown: dict[str, list[str]] = {}
    owners = {id(child): module for _, module in model.named_modules() for _, child in module.children()}
    for path, module in model.named_modules():
        joins = type(module) in _JOINS and type(owners.get(id(module))) in (Graph, Module)
        if type(module) not in folders and type(module) not in RULES and not joins:
            unknown.setdefault(type(module).__name__, []).append(path or "the model")
    if unknown:
        words = "; ".join(f"{kind} ({', '.join(paths[:3])})" for kind, paths in unknown.items())
        raise InteropError(f"minidl has no ONNX counterpart for {words}")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
