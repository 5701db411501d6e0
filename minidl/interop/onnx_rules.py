"""What each layer is in ONNX: a rule for each kind of layer, from the layer and its input to nodes and their output."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.errors import ShapeError
from minidl import nn
from minidl.errors import InteropError
from minidl.interop.onnx_builder import GraphBuilder, Value
from minidl.nn import Module

Rule = Callable[[Any, str, Value, GraphBuilder], Value]


def _conv(layer: nn.Conv2d, path: str, x: Value, builder: GraphBuilder) -> Value:
    _require(layer, path, x, 3, layer.in_channels)
    shape = layer.output_shape((1, *x.shape))[1:]
    return builder.add(
        "Conv",
        path,
        [x.name, *_state(layer, path, builder, "weight", "bias")],
        shape,
        kernel_shape=layer.kernel_size,
        strides=layer.stride,
        pads=layer.padding * 2,
    )


def _linear(layer: nn.Linear, path: str, x: Value, builder: GraphBuilder) -> Value:
    _require(layer, path, x, 1, layer.in_features)
    inputs = [x.name, *_state(layer, path, builder, "weight", "bias")]
    return builder.add("Gemm", path, inputs, (layer.out_features,), transB=1)


def _batchnorm(layer: Any, path: str, x: Value, builder: GraphBuilder) -> Value:
    _require(layer, path, x, len(x.shape), layer.num_features)
    if not layer.track_running_stats:
        raise InteropError(
            f"{_called(layer, path)} has no running statistics (track_running_stats=False): it normalizes by "
            "the batch also in evaluation, which an ONNX file for inference cannot"
        )
    names = _affine(layer, path, builder, (layer.num_features,))
    names += _state(layer, path, builder, "running_mean", "running_var")
    more = {} if layer.momentum is None else {"momentum": 1 - layer.momentum}  # ONNX weighs the old value
    return builder.add("BatchNormalization", path, [x.name, *names], x.shape, epsilon=layer.eps, **more)


def _group_norm(layer: nn.GroupNorm, path: str, x: Value, builder: GraphBuilder) -> Value:
    _require(layer, path, x, len(x.shape), layer.num_channels)
    affine = _affine(layer, path, builder, (layer.num_channels,))
    return builder.add(
        "GroupNormalization", path, [x.name, *affine], x.shape, num_groups=layer.num_groups, epsilon=layer.eps
    )


def _instance_norm(layer: Any, path: str, x: Value, builder: GraphBuilder) -> Value:
    _require(layer, path, x, len(layer.form.split()) - 1, layer.num_features)
    affine = _affine(layer, path, builder, (layer.num_features,))
    return builder.add("InstanceNormalization", path, [x.name, *affine], x.shape, epsilon=layer.eps)


def _layer_norm(layer: nn.LayerNorm, path: str, x: Value, builder: GraphBuilder) -> Value:
    if x.shape != layer.normalized_shape:
        raise InteropError(
            f"{_called(layer, path)} normalizes the last axes {layer.normalized_shape} of {x.shape}, channels last; "
            "ONNX, with channels first, can do only all of them together"
        )
    *size, channels = x.shape
    affine = _affine(layer, path, builder, (channels, *size))
    return builder.add("LayerNormalization", path, [x.name, *affine], x.shape, axis=1, epsilon=layer.eps)


def _affine(layer: Module, path: str, builder: GraphBuilder, shape: tuple[int, ...]) -> list[str]:
    """Gamma and beta; where the layer has none, ones and zeros that are not called as parameters are."""
    state, names = layer.own_state(), []
    for name, absent, value in (("weight", "ones", 1.0), ("bias", "zeros", 0.0)):
        called = name if name in state else absent
        names.append(builder.constant(_join(path, called), state.get(name, np.full(shape, value))))
    return names


def _relu(_: nn.ReLU, path: str, x: Value, builder: GraphBuilder) -> Value:
    return builder.add("Relu", path, [x.name], x.shape)


def _dropout(layer: nn.Dropout, path: str, x: Value, builder: GraphBuilder) -> Value:
    # Without its third input, training_mode, it does nothing; it is there for whoever trains on.
    ratio = builder.constant(_join(path, "ratio"), np.array(layer.p, np.float32))
    return builder.add("Dropout", path, [x.name, ratio], x.shape)


def _max_pool(layer: nn.MaxPool2d, path: str, x: Value, builder: GraphBuilder) -> Value:
    return builder.add("MaxPool", path, [x.name], _pooled(layer, path, x), **_window(layer))


def _avg_pool(layer: nn.AvgPool2d, path: str, x: Value, builder: GraphBuilder) -> Value:
    counted = int(layer.count_include_pad)
    return builder.add(
        "AveragePool", path, [x.name], _pooled(layer, path, x), **_window(layer), count_include_pad=counted
    )


def _pooled(layer: Any, path: str, x: Value) -> tuple[int, ...]:
    _require(layer, path, x, 3)
    return tuple(layer.output_shape((1, *x.shape))[1:])


def _window(layer: Any) -> dict[str, Any]:
    attributes = {"kernel_shape": layer.kernel_size, "strides": layer.stride, "pads": layer.padding * 2}
    if layer.dilation != (1, 1):
        attributes["dilations"] = layer.dilation
    if layer.ceil_mode:
        attributes["ceil_mode"] = 1
    return attributes


def _global_avg_pool(layer: nn.GlobalAvgPool2d, path: str, x: Value, builder: GraphBuilder) -> Value:
    _require(layer, path, x, 3)
    pooled = builder.add("GlobalAveragePool", path, [x.name], x.shape)
    return builder.add("Flatten", _join(path, "flatten"), [pooled.name], x.shape[-1:])


def _flatten(layer: nn.Flatten, path: str, x: Value, builder: GraphBuilder) -> Value:
    _require(layer, path, x, 3)
    return builder.add("Flatten", path, [x.name], (int(np.prod(x.shape)),))


def _scale(layer: nn.Scale, path: str, x: Value, builder: GraphBuilder) -> Value:
    return builder.add("Mul", path, [x.name, *_state(layer, path, builder, "weight")], x.shape)


def _softmax(operator: str, _: Module, path: str, x: Value, builder: GraphBuilder) -> Value:
    return builder.add(operator, path, [x.name], x.shape, axis=1)


def _one_pixel(layer: nn.OnePixel, path: str, x: Value, builder: GraphBuilder) -> Value:
    _require(layer, path, x, 1)
    axes = builder.constant(_join(path, "axes"), np.array([2, 3]))
    return builder.add("Unsqueeze", path, [x.name, axes], (1, 1, *x.shape))


def _pad(layer: nn.ConstantPad2d, path: str, x: Value, builder: GraphBuilder) -> Value:
    _require(layer, path, x, 3)
    left, right, top, bottom = layer.padding
    pads = builder.constant(_join(path, "pads"), np.array([0, 0, top, left, 0, 0, bottom, right]))
    value = builder.constant(_join(path, "value"), np.array(layer.value, np.float32))
    return builder.add("Pad", path, [x.name, pads, value], layer.output_shape((1, *x.shape))[1:])


# Exactly these types: a subclass may compute something else.
RULES: dict[type[Module], Rule] = {
    nn.AvgPool2d: _avg_pool,
    nn.BatchNorm1d: _batchnorm,
    nn.BatchNorm2d: _batchnorm,
    nn.Conv2d: _conv,
    nn.ConstantPad2d: _pad,
    nn.Dropout: _dropout,
    nn.Flatten: _flatten,
    nn.GroupNorm: _group_norm,
    nn.InstanceNorm1d: _instance_norm,
    nn.InstanceNorm2d: _instance_norm,
    nn.LayerNorm: _layer_norm,
    nn.GhostBatchNorm1d: _batchnorm,  # in evaluation these are batch normalization
    nn.GhostBatchNorm2d: _batchnorm,
    nn.GlobalAvgPool2d: _global_avg_pool,
    nn.Linear: _linear,
    nn.LogSoftmax: functools.partial(_softmax, "LogSoftmax"),
    nn.MaxPool2d: _max_pool,
    nn.NoisyBatchNorm1d: _batchnorm,
    nn.NoisyBatchNorm2d: _batchnorm,
    nn.OnePixel: _one_pixel,
    nn.ReLU: _relu,
    nn.Scale: _scale,
    nn.Softmax: functools.partial(_softmax, "Softmax"),
    nn.ZeroPad2d: _pad,
}


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _called(layer: Module, path: str) -> str:
    return f"{type(layer).__name__} {path}".rstrip()


def _state(layer: Module, path: str, builder: GraphBuilder, *names: str) -> list[str]:
    """Initializers of those of the layer's parameters and buffers that it has."""
    state = layer.own_state()
    return [builder.constant(_join(path, name), state[name]) for name in names if name in state]


def _require(layer: Module, path: str, x: Value, axes: int, channels: int | None = None) -> None:
    """Raise ShapeError unless x has that many axes beside the batch, and that many channels."""
    wanted = "an image" if axes == 3 else "a vector"
    if len(x.shape) != axes:
        raise ShapeError(f"{_called(layer, path)}: its input has shape {x.shape}, expected {wanted}")
    if channels is not None and x.shape[-1] != channels:
        raise ShapeError(f"{_called(layer, path)}: its input has {x.shape[-1]} channels, expected {channels}")
