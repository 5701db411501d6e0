"""ONNX's operators by the operations of a backend: how `onnx_nodes` runs the node tests.

An operator here is a function from a node's attributes and NumPy inputs, in ONNX's layout, to its outputs. The
arithmetic is the backend's; what stands here moves axes, pads, scales weights and renumbers indices. What no operation
does is refused by an UnsupportedError that says why.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kernels.window import pooled_size
from minidl.backends import Array, Backend, BatchStatistics
from minidl.interop.onnx_attributes import UnsupportedError, Window, window_of

Inputs = list[np.ndarray]
Attributes = Mapping[str, Any]
Operator = Callable[[Backend, Attributes, Inputs, int], Inputs]

# Rows by which the unbiased variance is the biased one, to the last bit: rows / (rows - 1) is 1. ONNX's running
# variance is the biased one.
MANY = 2**60


def run_operator(backend: Backend, operator: str, attributes: Attributes, inputs: Inputs, outputs: int) -> Inputs:
    """The first `outputs` outputs of an ONNX operator. Raises UnsupportedError."""
    integers = inputs[1:2] if operator == "SoftmaxCrossEntropyLoss" else []  # the labels
    for x in inputs:
        if x.dtype != np.float32 and not any(x is labels for labels in integers):
            raise UnsupportedError("arrays of integers; minidl computes in float32")
    return OPERATORS[operator](backend, attributes, inputs, outputs)


def _relu(backend: Backend, _: Attributes, inputs: Inputs, __: int) -> Inputs:
    x = backend.array(inputs[0])
    y = backend.empty(x.shape)
    backend.relu_forward(x, y)
    return [backend.numpy(y)]


def _add(backend: Backend, _: Attributes, inputs: Inputs, __: int) -> Inputs:
    if inputs[0].shape != inputs[1].shape:
        raise UnsupportedError("broadcasting; minidl adds arrays of equal shapes")
    a, b = map(backend.array, inputs)
    out = backend.empty(a.shape)
    backend.add(a, b, out)
    return [backend.numpy(out)]


def _conv(backend: Backend, attributes: Attributes, inputs: Inputs, _: int) -> Inputs:
    x, weight = inputs[:2]
    window = window_of(attributes, weight.shape[2:], x.shape[2:])
    if attributes.get("group", 1) != 1 or window.dilation != (1, 1):
        raise UnsupportedError("groups or dilations, which minidl's convolution does not have")
    image, window = _image(backend, x, window, 0.0, window.is_symmetric)
    w = backend.array(weight.transpose(2, 3, 1, 0))
    bias = backend.array(inputs[2]) if len(inputs) > 2 else None
    y = backend.empty((*_positions(image, window), weight.shape[0]))
    backend.conv2d_forward(image, w, bias, y, window.stride, window.padding)
    return [_channels_first(backend, y)]


def _max_pool(backend: Backend, attributes: Attributes, inputs: Inputs, outputs: int) -> Inputs:
    (x,) = inputs
    window = window_of(attributes, None, x.shape[2:])
    image, moved = _image(backend, x, window, -math.inf, window.fits_pooling)
    y = backend.empty((*_positions(image, moved), x.shape[1]))
    index = backend.empty(y.shape, np.int32)
    options = moved.kernel, moved.stride, moved.padding, moved.dilation, moved.ceil_mode
    backend.max_pool2d_forward(image, y, index, *options)
    if outputs == 1:
        return [_channels_first(backend, y)]
    if moved != window:
        raise UnsupportedError("places of maxima behind one-sided padding")
    # minidl counts places within an image, row by row; ONNX from the first element of the whole array.
    height, width = x.shape[2:]
    row, column = np.divmod(_channels_first(backend, index).astype(np.int64), width)
    place = column * height + row if attributes.get("storage_order", 0) else row * width + column
    first = np.arange(x.shape[0] * x.shape[1]).reshape(x.shape[0], x.shape[1], 1, 1) * (height * width)
    return [_channels_first(backend, y), first + place]


def _average_pool(backend: Backend, attributes: Attributes, inputs: Inputs, _: int) -> Inputs:
    (x,), counted = inputs, bool(attributes.get("count_include_pad", 0))
    window = window_of(attributes, None, x.shape[2:])
    if window.dilation != (1, 1):
        raise UnsupportedError("dilations, which minidl's average pooling does not have")
    if not window.fits_pooling and not counted:
        raise UnsupportedError("padding that counts in no mean, of one side alone or more than half the window")
    image, window = _image(backend, x, window, 0.0, window.fits_pooling)
    y = backend.empty((*_positions(image, window), x.shape[1]))
    options = window.kernel, window.stride, window.padding, counted, window.ceil_mode
    backend.avg_pool2d_forward(image, y, *options)
    return [_channels_first(backend, y)]


def _global_average_pool(backend: Backend, _: Attributes, inputs: Inputs, __: int) -> Inputs:
    image = _channels_last(backend, inputs[0])
    y = backend.empty((image.shape[0], image.shape[3]))
    backend.global_avg_pool2d_forward(image, y)
    return [backend.numpy(y)[:, :, None, None]]


def _batch_normalization(backend: Backend, attributes: Attributes, inputs: Inputs, outputs: int) -> Inputs:
    image = _channels_last(backend, inputs[0])
    gamma, beta, mean, var = map(backend.array, inputs[1:])
    eps, channels = attributes.get("epsilon", 1e-5), image.shape[3]
    statistics = BatchStatistics(*(backend.empty((channels,)) for _ in range(4)))
    if attributes.get("training_mode", 0):
        backend.batchnorm_statistics(image, eps, statistics)
        factor = 1 - attributes.get("momentum", 0.9)  # ONNX weighs the old value
        backend.batchnorm_update_running(statistics, MANY, factor, mean, var)
    else:
        backend.batchnorm_running_statistics(mean, var, eps, statistics)
    y = backend.empty(image.shape)
    backend.batchnorm_apply(image, statistics, gamma, beta, y, relu=False)
    return [_channels_first(backend, y), backend.numpy(mean), backend.numpy(var)][:outputs]


def _gemm(backend: Backend, attributes: Attributes, inputs: Inputs, _: int) -> Inputs:
    alpha, beta = (np.float32(attributes.get(name, 1.0)) for name in ("alpha", "beta"))
    a = inputs[0].T if attributes.get("transA", 0) else inputs[0]
    weight = alpha * (inputs[1] if attributes.get("transB", 0) else inputs[1].T)  # as a file's weights would be read
    added = beta * inputs[2] if len(inputs) > 2 else np.zeros((), np.float32)
    shape = a.shape[0], weight.shape[0]
    y = backend.empty(shape)
    of_columns = added.ndim < 2 or added.shape[0] == 1
    bias = np.broadcast_to(added, (1, shape[1]))[0] if of_columns else None
    backend.linear_forward(backend.array(a), backend.array(weight), None if bias is None else backend.array(bias), y)
    if bias is None:
        backend.add(y, backend.array(np.broadcast_to(added, shape)), y)
    return [backend.numpy(y)]


def _softmax(operation: str) -> Operator:
    def run(backend: Backend, attributes: Attributes, inputs: Inputs, _: int) -> Inputs:
        axis = attributes.get("axis", -1)
        x = backend.array(np.moveaxis(inputs[0], axis, -1))
        y = backend.empty(x.shape)
        getattr(backend, operation)(x, y)
        return [np.moveaxis(backend.numpy(y), -1, axis)]

    return run


def _softmax_cross_entropy(backend: Backend, attributes: Attributes, inputs: Inputs, outputs: int) -> Inputs:
    logits = backend.array(np.moveaxis(inputs[0], 1, -1).reshape(-1, inputs[0].shape[1]))
    targets = backend.array(inputs[1].reshape(-1), np.int64)
    weight = backend.array(inputs[2]) if len(inputs) > 2 else None
    reduction = attributes.get("reduction", "mean")
    loss = backend.empty(targets.shape if reduction == "none" else ())
    dlogits = backend.empty(logits.shape)
    # Without the attribute nothing is ignored: no label is negative.
    ignored = attributes.get("ignore_index", -100)
    backend.cross_entropy(logits, targets, loss, dlogits, 0.0, ignored, reduction, weight)
    result = backend.numpy(loss)
    answers = [result.reshape(inputs[1].shape) if reduction == "none" else result]
    if outputs > 1:
        log_prob = backend.empty(logits.shape)
        backend.log_softmax_forward(logits, log_prob)
        moved = backend.numpy(log_prob).reshape(inputs[0].shape[0], *inputs[0].shape[2:], inputs[0].shape[1])
        answers.append(np.moveaxis(moved, -1, 1))
    return answers


def _flatten(backend: Backend, attributes: Attributes, inputs: Inputs, _: int) -> Inputs:
    (x,), axis = inputs, attributes.get("axis", 1)
    if axis % x.ndim != 1:
        raise UnsupportedError("another axis than 1; minidl flattens each image by itself")
    image = _channels_last(backend, x)
    y = backend.empty((x.shape[0], math.prod(x.shape[1:])))
    backend.channels_first(image, y)
    return [backend.numpy(y)]


OPERATORS: dict[str, Operator] = {
    "BatchNormalization": _batch_normalization,
    "Conv": _conv,
    "Relu": _relu,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average_pool,
    "Gemm": _gemm,
    "Softmax": _softmax("softmax_forward"),
    "LogSoftmax": _softmax("log_softmax_forward"),
    "SoftmaxCrossEntropyLoss": _softmax_cross_entropy,
    "Flatten": _flatten,
    "Add": _add,
}


# Layout.


def _channels_last(backend: Backend, x: np.ndarray) -> Array:
    if x.ndim != 4:
        raise UnsupportedError(f"{x.ndim} axes; minidl's images have 4")
    return backend.array(np.moveaxis(x, 1, -1))


def _channels_first(backend: Backend, y: Array) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(backend.numpy(y), -1, 1))


def _image(backend: Backend, x: np.ndarray, window: Window, value: float, fits: bool) -> tuple[Array, Window]:
    """The images on the device, and the window over them; padding that the operation does not do is put there now."""
    if fits:
        return _channels_last(backend, x), window
    if window.ceil_mode:
        raise UnsupportedError("ceil_mode behind padding of one side alone or more than half the window")
    top, left, bottom, right = window.pads
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=value)
    return _channels_last(backend, padded), window._replace(pads=(0, 0, 0, 0))


def _positions(image: Array, window: Window) -> tuple[int, int, int]:
    """(n, ho, wo) of the window over images (n, h, w, c)."""
    sizes = zip(image.shape[1:3], window.kernel, window.stride, window.padding, window.dilation, strict=True)
    height, width = (pooled_size(*axis, window.ceil_mode) for axis in sizes)
    return image.shape[0], height, width
