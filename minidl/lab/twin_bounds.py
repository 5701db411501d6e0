"""The bounds of one call of an operation, from its arguments: what `minidl.lab.twin` holds a device to.

An answer's bound goes by the name of the argument that holds it: "y", "out.var", "values[2]".
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from kernels.batch_statistics import BatchStatistics
from kernels.random import dropout_keep_reference
from minidl.lab import bounds
from minidl.lab.budget import U
from minidl.lab.operations import softmax as softmax_bounds
from minidl.lab.operations.averaging import moving_average_bound
from minidl.lab.operations.batchnorm_bounds import (
    GIVEN,
    add_relu_backward_bounds,
    add_relu_bound,
    backward_bounds,
    elements,
    held_shift,
    statistics_uncertainty,
    update_bound,
)
from minidl.lab.operations.gradient_norm import clip_bound, global_norm_bounds
from minidl.lab.operations.loss import cross_entropy_bounds
from minidl.lab.operations.optimizer import adam_bounds, sgd_bounds
from minidl.lab.operations.scale import scale_backward_bounds

Bounds = Mapping[str, Any]


class Call(NamedTuple):
    """One call of an operation: arguments by the protocol's names."""

    given: Mapping[str, Any]  # before it, host arrays as they were on the device
    expected: Mapping[str, Any]  # after it, in the reference: float64, with the answers
    got: Mapping[str, Any]  # the answers on the device


# What each operation writes. One that returns its answer (all_finite) is not among them.
OUTPUTS: dict[str, tuple[str, ...]] = {
    "conv2d_forward": ("y",),
    "conv2d_backward_input": ("dx",),
    "conv2d_backward_weight": ("dw",),
    "bias_backward": ("db",),
    "linear_forward": ("y",),
    "linear_backward_input": ("dx",),
    "linear_backward_weight": ("dw",),
    "batchnorm_statistics": ("out",),
    "batchnorm_running_statistics": ("out",),
    "batchnorm_update_running": ("running_mean", "running_var"),
    "cumulative_weight": ("weight",),
    "batchnorm_apply": ("y",),
    "batchnorm_forward": ("out", "y"),
    "batchnorm_backward": ("dx", "dgamma", "dbeta"),
    "batchnorm_add_relu_apply": ("y",),
    "batchnorm_add_relu_backward": ("dx", "dresidual", "dgamma", "dbeta"),
    "relu_forward": ("y",),
    "relu_backward": ("dx",),
    "add": ("out",),
    "scale_forward": ("y",),
    "scale_backward": ("dx", "dfactor"),
    "concat": ("out",),
    "split": ("parts",),
    "channels_first": ("y",),
    "channels_last": ("y",),
    "dropout": ("y",),
    "noise_forward": ("y",),
    "noise_backward": ("dx",),
    "max_pool2d_forward": ("y", "index"),
    "max_pool2d_backward": ("dx",),
    "avg_pool2d_forward": ("y",),
    "avg_pool2d_backward": ("dx",),
    "global_avg_pool2d_forward": ("y",),
    "global_avg_pool2d_backward": ("dx",),
    "softmax_forward": ("y",),
    "softmax_backward": ("dx",),
    "log_softmax_forward": ("y",),
    "log_softmax_backward": ("dx",),
    "cross_entropy": ("loss", "dlogits"),
    "scale_rows": ("y",),
    "append_result": ("count", "losses", "corrects"),
    "sgd": ("values", "velocities"),
    "adam": ("values", "first_moments", "second_moments"),
    "moving_average": ("averages",),
    "begin_step": ("step", "index", "numbers"),
    "count_call": ("count", "call"),
    "append_number": ("count", "log"),
    "global_norm": ("norm",),
    "clip_by_norm": ("arrays",),
    "draw_augmentation": ("shifts", "flips", "centres"),
    "gather_images": ("out",),
    "gather_labels": ("out",),
}


def of_call(operation: str, call: Call) -> Bounds:
    """The bounds of what a call wrote, by label."""
    return _BOUNDS.get(operation, _exact)(call)


def labelled(name: str, value: Any) -> dict[str, Any]:
    """The arrays of an argument: "y", "out.var", "values[2]"."""
    if hasattr(value, "_asdict"):
        return {f"{name}.{part}": array for part, array in value._asdict().items()}
    if isinstance(value, list | tuple):
        return {f"{name}[{i}]": array for i, array in enumerate(value) if hasattr(array, "dtype")}
    return {name: value} if hasattr(value, "dtype") else {}


def _exact(call: Call) -> Bounds:
    """Moves numbers, picks them or counts: nothing rounds."""
    return {label: 0.0 for name, value in call.expected.items() for label in labelled(name, value)}


def _of_answers(**units: float) -> Callable[[Call], Bounds]:
    def of(call: Call) -> Bounds:
        return {name: bounds.relative(call.expected[name], number) for name, number in units.items()}

    return of


def _statistics(call: Call) -> Bounds:
    off = statistics_uncertainty(
        call.given["x"], call.given["eps"], call.expected["out"].shift, call.expected["out"].var, call.got["out"].shift
    )
    inv_std = off.inv_std * call.expected["out"].inv_std
    return {"out.mean": off.mean, "out.var": off.var, "out.inv_std": inv_std}


def _forward(call: Call) -> Bounds:
    given, out = call.given, call.expected["out"]
    shift = held_shift(call.got["out"].shift, out.shift, out.var)
    off = statistics_uncertainty(given["x"], given["eps"], out.shift, out.var, shift)
    statistics = BatchStatistics(shift, out.shift - shift, out.var, out.inv_std)
    e = elements(given["x"], statistics, given["gamma"], given["beta"], off)
    residual = given.get("residual")
    return {**_statistics(call), "y": e.y_error if residual is None else add_relu_bound(e, residual)}


def _apply(call: Call) -> Bounds:
    return {
        "y": elements(call.given["x"], call.given["statistics"], call.given["gamma"], call.given["beta"], GIVEN).y_error
    }


def _backward(call: Call) -> Bounds:
    statistics = call.given["statistics"]
    e = elements(call.given["x"], statistics, call.given["gamma"], call.given["beta"], GIVEN)
    inv_std = statistics.inv_std.astype(np.float64)
    return backward_bounds(e, call.given["dy"], inv_std, GIVEN, call.given["training"], call.given["relu"])


def _add_relu_apply(call: Call) -> Bounds:
    e = elements(call.given["x"], call.given["statistics"], call.given["gamma"], call.given["beta"], GIVEN)
    return {"y": add_relu_bound(e, call.given["residual"])}


def _add_relu_backward(call: Call) -> Bounds:
    statistics = call.given["statistics"]
    e = elements(call.given["x"], statistics, call.given["gamma"], None, GIVEN)
    inv_std = statistics.inv_std.astype(np.float64)
    return add_relu_backward_bounds(e, call.given["y"], call.given["dy"], inv_std, call.given["training"])


def _update_running(call: Call) -> Bounds:
    batch, rows, factor = call.given["batch"], call.given["rows"], float(call.given["factor"])
    mean = batch.shift.astype(np.float64) + batch.delta
    var = batch.var.astype(np.float64) * (rows / (rows - 1))
    return {
        "running_mean": update_bound(call.given["running_mean"], mean, factor),
        "running_var": update_bound(call.given["running_var"], var, factor),
    }


def _number(call: Call, name: str) -> Any:
    """An argument; the number of a draw, which lies on the device, as a number."""
    return int(call.given[name]) if name == "call" else call.given[name]


def _dropout(call: Call) -> Bounds:
    x, p = call.given["x"], call.given["p"]
    kept = dropout_keep_reference(x.shape, p, call.given["seed"], call.given["stream"], int(call.given["call"]))
    return bounds.dropout(x, kept, p)


def _optimizer(call: Call) -> Bounds:
    adam = "first_moments" in call.given
    names = {"values": "value", "first_moments": "first", "second_moments": "second", "velocities": "velocity"}
    lists = {name: short for name, short in names.items() if call.given.get(name)}
    result: dict[str, Any] = {}
    for i, grad in enumerate(call.given["grads"]):
        state = {f"{short}.{i}": call.given[name][i] for name, short in lists.items()}
        numbers = [call.given["numbers"][call.given["rows"][i]]]
        if adam:
            of = adam_bounds(state, [grad], numbers, i)
        else:
            of = sgd_bounds(state, [grad], numbers, i, nesterov=call.given["nesterov"])
        result |= {f"{name}[{i}]": of[f"{short}.{i}"] for name, short in lists.items()}
    return result


_BOUNDS: dict[str, Callable[[Call], Bounds]] = {
    "conv2d_forward": lambda call: bounds.conv2d_forward(
        call.given["x"], call.given["w"], call.given["bias"], call.given["stride"], call.given["padding"]
    ),
    "conv2d_backward_input": lambda call: bounds.conv2d_backward_input(
        call.given["dy"], call.given["w"], call.given["dx"].shape, call.given["stride"], call.given["padding"]
    ),
    "conv2d_backward_weight": lambda call: bounds.conv2d_backward_weight(
        call.given["x"], call.given["dy"], call.given["dw"].shape, call.given["stride"], call.given["padding"]
    ),
    "bias_backward": lambda call: bounds.bias_backward(call.given["dy"]),
    "linear_forward": lambda call: bounds.linear_forward(call.given["x"], call.given["w"], call.given["bias"]),
    "linear_backward_input": lambda call: bounds.linear_backward_input(call.given["dy"], call.given["w"]),
    "linear_backward_weight": lambda call: bounds.linear_backward_weight(call.given["x"], call.given["dy"]),
    "batchnorm_statistics": _statistics,
    "batchnorm_running_statistics": lambda call: {
        **_exact(call),
        "out.inv_std": 3 * U * call.expected["out"].inv_std,
    },
    "batchnorm_update_running": _update_running,
    "cumulative_weight": _of_answers(weight=1),
    "batchnorm_apply": _apply,
    "batchnorm_forward": _forward,
    "batchnorm_backward": _backward,
    "batchnorm_add_relu_apply": _add_relu_apply,
    "batchnorm_add_relu_backward": _add_relu_backward,
    "add": _of_answers(out=1),
    "scale_forward": _of_answers(y=1),
    "scale_backward": lambda call: scale_backward_bounds(call.given["x"], call.given["dy"], call.given["factor"]),
    "dropout": _dropout,
    "noise_forward": lambda call: bounds.noise_forward(
        *(_number(call, name) for name in ("x", "offset", "scale", "jitter", "seed", "stream", "call"))
    ),
    "noise_backward": lambda call: bounds.noise_backward(
        *(_number(call, name) for name in ("dy", "scale", "jitter", "seed", "stream", "call"))
    ),
    "max_pool2d_backward": lambda call: bounds.max_pool2d_backward(
        call.given["dy"],
        call.given["index"],
        call.given["dx"].shape,
        call.given["kernel"],
        call.given["stride"],
        call.given["padding"],
        call.given.get("dilation", (1, 1)),
        call.given.get("ceil_mode", False),
    ),
    "avg_pool2d_forward": lambda call: bounds.avg_pool2d_forward(
        call.given["x"],
        call.given["kernel"],
        call.given["stride"],
        call.given["padding"],
        call.given["count_include_pad"],
        call.given.get("ceil_mode", False),
    ),
    "avg_pool2d_backward": lambda call: bounds.avg_pool2d_backward(
        call.given["dy"],
        call.given["dx"].shape,
        call.given["kernel"],
        call.given["stride"],
        call.given["padding"],
        call.given["count_include_pad"],
        call.given.get("ceil_mode", False),
    ),
    "global_avg_pool2d_forward": lambda call: bounds.global_avg_pool2d_forward(call.given["x"]),
    "global_avg_pool2d_backward": _of_answers(dx=2),
    "cross_entropy": lambda call: cross_entropy_bounds(
        call.given["logits"],
        call.given["targets"],
        call.given["label_smoothing"],
        call.given["reduction"],
        call.given["ignore_index"],
        call.given.get("weight"),
    ),
    "scale_rows": _of_answers(y=1),
    "softmax_forward": lambda call: softmax_bounds.forward(call.given["x"]),
    "softmax_backward": lambda call: softmax_bounds.backward(call.given["dy"], call.given["y"]),
    "log_softmax_forward": lambda call: softmax_bounds.log_forward(call.given["x"]),
    "log_softmax_backward": lambda call: softmax_bounds.log_backward(call.given["dy"], call.given["y"]),
    "sgd": _optimizer,
    "adam": _optimizer,
    "moving_average": lambda call: {
        f"averages[{i}]": moving_average_bound(average, [value], call.given["weight"])
        for i, (average, value) in enumerate(zip(call.given["averages"], call.given["values"], strict=True))
    },
    "global_norm": lambda call: global_norm_bounds(call.given["arrays"]),
    "clip_by_norm": lambda call: {
        f"arrays[{i}]": clip_bound(array, call.given["norm"], call.given["max_norm"])
        for i, array in enumerate(call.given["arrays"])
    },
    "gather_images": _of_answers(out=3),
}


def compared(operation: str, name: str, value: Any) -> dict[str, Any]:
    """Of an answer, what is compared: a batch's mean is one number, however shift and delta share it."""
    arrays = labelled(name, value)
    if operation not in ("batchnorm_statistics", "batchnorm_forward") or name != "out":
        return arrays
    return {
        "out.mean": value.shift.astype(np.float64) + value.delta,
        "out.var": value.var,
        "out.inv_std": value.inv_std,
    }
