"""What each ONNX operator is in minidl: one rule for each, from a node to layers of a graph in the making.

Everything that a file says is checked before a layer is made of it. A rule raises UnsupportedError for what minidl has
no layer for; the messages complete the sentence "Conv conv1: ...".
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from minidl import nn
from minidl.interop.onnx_attributes import UnsupportedError, Window, decimal, window_of
from minidl.interop.onnx_wiring import Source, Wiring
from minidl.nn import Module

LIMIT = "minidl pads opposite sides alike, by at most half the window,"
Rule = Callable[[Wiring, Any, dict[str, Any]], None]


def _conv(wiring: Wiring, node: Any, attributes: dict[str, Any]) -> None:
    x, weight = wiring.image(node, 0), wiring.constant(node, 1)
    bias = wiring.constant(node, 2) if wiring.has(node, 2) else None
    window = window_of(attributes, weight.shape[2:], x.size)
    if attributes.get("group", 1) != 1:
        raise UnsupportedError(f"it works on {attributes['group']} groups of channels, minidl on all together")
    if window.dilation != (1, 1):
        raise UnsupportedError(f"its dilations are {window.dilation}, minidl has none")
    x, window = _padded(wiring, node, x, window, 0.0)
    out, channels = weight.shape[:2]
    layer = nn.Conv2d(channels, out, window.kernel, window.stride, window.padding, bias=bias is not None)
    _load(layer, weight=weight, bias=bias)
    path = wiring.path(node, 1, 2)
    wiring.add(node, layer, [x], x.resized(_output_size(layer, x)), path)


def _gemm(wiring: Wiring, node: Any, attributes: dict[str, Any]) -> None:
    x, weight = wiring.vector(node, 0), wiring.constant(node, 1)
    if attributes.get("transA", 0):
        raise UnsupportedError("transA would exchange images and features")
    weight = weight if attributes.get("transB", 0) else weight.T
    weight = weight * np.asarray(attributes.get("alpha", 1.0), weight.dtype)
    bias = None
    if wiring.has(node, 2):
        bias = wiring.constant(node, 2)
        if bias.ndim > 1 and bias.shape[0] != 1:
            raise UnsupportedError(f"C has shape {bias.shape}, a row for each image; minidl adds one row to all")
        bias = np.broadcast_to(bias * np.asarray(attributes.get("beta", 1.0), bias.dtype), (1, len(weight)))[0]
    layer = nn.Linear(weight.shape[1], len(weight), bias=bias is not None)
    _load(layer, weight=weight, bias=bias)
    wiring.add(node, layer, [x], x, wiring.path(node, 1, 2))


def _batchnorm(wiring: Wiring, node: Any, attributes: dict[str, Any]) -> None:
    if attributes.get("training_mode", 0) or not attributes.get("spatial", 1) or any(node.output[1:]):
        raise UnsupportedError("it is not in inference form; export the model for inference")
    x = wiring.source(node, 0)
    weight, bias, mean, var = (wiring.constant(node, place) for place in (1, 2, 3, 4))
    if (var < 0).any():
        raise UnsupportedError("its variance is negative in places")
    kind = nn.BatchNorm2d if x.kind == "image" else nn.BatchNorm1d
    momentum = round(1 - attributes.get("momentum", 0.9), 10)  # ONNX weighs the old value
    layer = kind(len(weight), attributes.get("epsilon", 1e-5), momentum)
    _load(layer, weight=weight, bias=bias, running_mean=mean, running_var=var)
    wiring.add(node, layer, [x], x, wiring.path(node, 1, 2, 3, 4))


def _group_normalization(wiring: Wiring, node: Any, attributes: dict[str, Any]) -> None:
    # Before opset 21 it scaled groups; onnx's checker calls that deprecated, so none comes here.
    layer = nn.GroupNorm(attributes["num_groups"], len(wiring.constant(node, 1)), attributes.get("epsilon", 1e-5))
    _add_norm(wiring, node, layer, wiring.source(node, 0))


def _instance_normalization(wiring: Wiring, node: Any, attributes: dict[str, Any]) -> None:
    layer = nn.InstanceNorm2d(len(wiring.constant(node, 1)), attributes.get("epsilon", 1e-5), affine=True)
    _add_norm(wiring, node, layer, wiring.image(node, 0))


def _layer_normalization(wiring: Wiring, node: Any, attributes: dict[str, Any]) -> None:
    if any(node.output[1:]):
        raise UnsupportedError("its other outputs, mean and deviation, are used")
    x = wiring.source(node, 0)
    x, shape, axis = wiring.as_image(x), wiring.constant(node, 1).shape, attributes.get("axis", -1)
    if axis % x.rank != 1 or len(shape) != x.rank - 1:
        raise UnsupportedError("minidl normalizes all axes but the batch together, each element with its own scale")
    channels, *size = shape
    layer = nn.LayerNorm((*size, channels), attributes.get("epsilon", 1e-5), bias=wiring.has(node, 2))
    _add_norm(wiring, node, layer, x)


def _add_norm(wiring: Wiring, node: Any, layer: Module, x: Source) -> None:
    _load(layer, weight=wiring.constant(node, 1), bias=wiring.constant(node, 2) if wiring.has(node, 2) else None)
    wiring.add(node, layer, [x], x, wiring.path(node, 1, 2))


def _max_pool(wiring: Wiring, node: Any, attributes: dict[str, Any]) -> None:
    if len(node.output) > 1 and node.output[1]:
        raise UnsupportedError("its second output, the places of the maxima, is used")
    x = wiring.image(node, 0)
    x, window = _padded(wiring, node, x, window_of(attributes, None, x.size), -np.inf)
    layer = nn.MaxPool2d(window.kernel, window.stride, window.padding, window.dilation, ceil_mode=window.ceil_mode)
    wiring.add(node, layer, [x], x.resized(_output_size(layer, x)))


def _average_pool(wiring: Wiring, node: Any, attributes: dict[str, Any]) -> None:
    x, counted = wiring.image(node, 0), bool(attributes.get("count_include_pad", 0))
    window = window_of(attributes, None, x.size)
    if window.dilation != (1, 1):
        raise UnsupportedError(f"its dilations are {window.dilation}, minidl has none")
    if not counted and not window.fits_pooling:
        raise UnsupportedError(f"its pads {window.pads} count in no mean; {LIMIT}")
    x, window = _padded(wiring, node, x, window, 0.0)
    layer = nn.AvgPool2d(window.kernel, window.stride, window.padding, window.ceil_mode, counted)
    wiring.add(node, layer, [x], x.resized(_output_size(layer, x)))


def _global_average_pool(wiring: Wiring, node: Any, _: dict[str, Any]) -> None:
    x = wiring.source(node, 0)
    if x.kind == "vector":
        raise UnsupportedError("its input is no image")
    if x.kind == "pixel":  # the mean of one element
        wiring.alias(node, x)
    else:
        wiring.add(node, nn.GlobalAvgPool2d(), [x], Source(x.name, "pixel"))


def _flatten(wiring: Wiring, node: Any, attributes: dict[str, Any]) -> None:
    x = wiring.source(node, 0)
    axis = attributes.get("axis", 1)
    if axis + (x.rank if axis < 0 else 0) != 1:
        raise UnsupportedError(f"its axis is {axis}; minidl flattens each image by itself, axis 1")
    if x.kind == "image":
        wiring.add(node, nn.Flatten(), [x], Source(x.name, "vector"))
    else:
        wiring.alias(node, Source(x.name, "vector"))


def _unsqueeze(wiring: Wiring, node: Any, attributes: dict[str, Any]) -> None:
    axes = attributes["axes"] if "axes" in attributes else wiring.constant(node, 1).tolist()
    if [axis + (4 if axis < 0 else 0) for axis in axes] != [2, 3]:
        raise UnsupportedError(f"its axes are {axes}; minidl makes images of one pixel by axes 2 and 3")
    wiring.alias(node, Source(wiring.vector(node, 0).name, "pixel"))


def _relu(wiring: Wiring, node: Any, _: dict[str, Any]) -> None:
    x = wiring.source(node, 0)
    wiring.add(node, nn.ReLU(), [x], x)


def _softmax(layer: type[Module], wiring: Wiring, node: Any, attributes: dict[str, Any]) -> None:
    x = wiring.source(node, 0)
    axis = attributes.get("axis", -1 if wiring.opset >= 13 else 1)
    if axis + (x.rank if axis < 0 else 0) != 1 or (x.kind == "image" and wiring.opset < 13):
        raise UnsupportedError(f"its axis is {axis}; minidl takes it over channels, axis 1")
    wiring.add(node, layer(), [x], x)


def _dropout(wiring: Wiring, node: Any, attributes: dict[str, Any]) -> None:
    if len(node.output) > 1 and node.output[1]:
        raise UnsupportedError("its second output, the mask, is used")
    if wiring.has(node, 2) and wiring.constant(node, 2).any():
        raise UnsupportedError("its training_mode is on; export the model for inference")
    x = wiring.source(node, 0)
    ratio = attributes.get("ratio", 0.5)
    if wiring.has(node, 1):
        ratio = decimal(wiring.constant(node, 1).item())
    wiring.add(node, nn.Dropout(ratio), [x], x)


def _identity(wiring: Wiring, node: Any, _: dict[str, Any]) -> None:
    if node.input[0] in wiring.constants:
        wiring.constants[node.output[0]] = wiring.constants[node.input[0]]
    else:
        wiring.alias(node, wiring.source(node, 0))


def _add(wiring: Wiring, node: Any, _: dict[str, Any]) -> None:
    sources = wiring.alike(node)
    wiring.add(node, nn.Add(), sources, sources[0])


def _mul(wiring: Wiring, node: Any, _: dict[str, Any]) -> None:
    factor = 1 if node.input[1] in wiring.constants else 0
    x, weight = wiring.source(node, 1 - factor), wiring.constant(node, factor)
    if weight.size != 1 or weight.ndim > x.rank:
        raise UnsupportedError(f"its factor has shape {weight.shape}; minidl multiplies by one number")
    layer = nn.Scale(weight.item())
    wiring.add(node, layer, [x], x, wiring.path(node, factor))


def _concat(wiring: Wiring, node: Any, attributes: dict[str, Any]) -> None:
    sources = wiring.alike(node)
    if attributes["axis"] + (sources[0].rank if attributes["axis"] < 0 else 0) != 1:
        raise UnsupportedError(f"its axis is {attributes['axis']}; minidl concatenates channels, axis 1")
    wiring.add(node, nn.ConcatChannels(), sources, sources[0])


def _pad(wiring: Wiring, node: Any, attributes: dict[str, Any]) -> None:
    x = wiring.image(node, 0)
    pads = attributes["pads"] if "pads" in attributes else wiring.constant(node, 1).tolist()
    value = attributes.get("value", 0.0)
    if wiring.has(node, 2):
        value = wiring.constant(node, 2, finite=False).item()
    if attributes.get("mode", "constant") != "constant" or wiring.has(node, 3) or len(pads) != 8:
        raise UnsupportedError("minidl pads height and width, with a constant")
    _, before, top, left, _, after, bottom, right = pads
    if pads[0] or pads[4] or before or after or min(pads) < 0:
        raise UnsupportedError(f"its pads are {pads}; minidl pads height and width, and removes nothing")
    layer = _pad_layer((top, left, bottom, right), value)
    wiring.add(node, layer, [x], x.resized(_output_size(layer, x)))


# Operators by name. Constant is read before any of them runs.
RULES: dict[str, Rule] = {
    "Add": _add,
    "AveragePool": _average_pool,
    "BatchNormalization": _batchnorm,
    "Concat": _concat,
    "Conv": _conv,
    "Dropout": _dropout,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "GroupNormalization": _group_normalization,
    "Identity": _identity,
    "InstanceNormalization": _instance_normalization,
    "LayerNormalization": _layer_normalization,
    "LogSoftmax": functools.partial(_softmax, nn.LogSoftmax),
    "MaxPool": _max_pool,
    "Mul": _mul,
    "Pad": _pad,
    "Relu": _relu,
    "Softmax": functools.partial(_softmax, nn.Softmax),
    "Sum": _add,
    "Unsqueeze": _unsqueeze,
}


def _padded(wiring: Wiring, node: Any, x: Source, window: Window, value: float) -> tuple[Source, Window]:
    """A window whose padding the layer can do by itself, behind a layer of padding where one is needed."""
    if window.is_symmetric if node.op_type == "Conv" else window.fits_pooling:
        return x, window
    if window.ceil_mode:
        raise UnsupportedError(f"its pads {window.pads} go with ceil_mode; {LIMIT} there")
    layer = _pad_layer(window.pads, value)
    x = wiring.insert(node, "pad", layer, x.resized(_output_size(layer, x)))
    return x, window._replace(pads=(0, 0, 0, 0))


def _pad_layer(pads: tuple[int, ...], value: float) -> nn.ConstantPad2d:
    top, left, bottom, right = pads
    sides = left, right, top, bottom
    return nn.ZeroPad2d(sides) if value == 0 else nn.ConstantPad2d(sides, value)


def _output_size(layer: Any, x: Source) -> tuple[int, int] | None:
    if x.size is None:
        return None
    _, height, width, _ = layer.output_shape((1, *x.size, 1))
    return height, width


def _load(layer: Module, **state: np.ndarray | None) -> None:
    layer.load_state_dict({name: value for name, value in state.items() if value is not None}, strict=False)
