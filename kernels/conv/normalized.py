"""Convolution of what a normalization makes of its input, and its gradients: host functions.

The definition is in normalized_reference.py. Technique "separate" is composed of the operations that there are anyway:
what is to be worked out on the way in is written to scratch memory, what is to come out beside the result is found in a
pass of its own. It takes any arrays. Technique "tensor_core" (normalized_tensor_core.py) does it on the way, in TF32,
or in 16 bits where images are stored so.
"""

from kernels import batchnorm
from kernels.activation import relu_backward
from kernels.batch_statistics import BatchStatistics, GradientSums, Normalization, PendingGradient
from kernels.batchnorm.arguments import check_channels, check_normalization
from kernels.choice import choose
from kernels.conv import normalized_tensor_core_launch as tensor_core
from kernels.conv.geometry import geometry_of
from kernels.conv.host import conv2d_backward_input, conv2d_backward_weight, conv2d_forward
from kernels.errors import ShapeError, same_shape
from kernels.launch import Array, Runner, techniques
from kernels.window import Pair

SEPARATE = "separate"


@techniques("separate", "tensor_core")
def conv2d_normalized_forward(
    run: Runner,
    x: Array,
    before: Normalization | None,
    w: Array,
    y: Array,
    stride: Pair,
    padding: Pair,
    eps: float,
    out: BatchStatistics | None,
    *,
    technique: str | None = None,
    precision: str = "fp32",
) -> None:
    """Make y (n, ho, wo, c_out) of x (n, h, w, c_in), as `before` makes it an activation, and w (kh, kw, c_in, c_out).

    Where `out` is not None, it becomes the statistics of y, which then has at least one row.

    Raises:
        ShapeError: The shapes do not agree.
        TypeError: Only one of gamma and beta is given.
        TechniqueError: The technique cannot take these arrays.
    """
    operation = "conv2d_normalized_forward"
    geometry = geometry_of(operation, stride, padding, x=x.shape, w=w.shape, y=y.shape)
    check_normalization(operation, "before", before, geometry.c_in)
    if out is not None:
        check_channels(operation, geometry.c_out, **{f"out.{name}": array for name, array in out._asdict().items()})
        if y.size == 0:
            raise ShapeError(f"{operation}: y has shape {tuple(y.shape)}, expected at least one row for its statistics")
    options = tensor_core.options(precision, geometry, before, x=x, w=w, y=y)
    if choose(run, operation, technique, options, x=x, w=w, y=y) != SEPARATE:
        tensor_core.forward(run, geometry, x, before, w, y, eps, out)
        return
    conv2d_forward(run, _activation(run, x, before), w, None, y, stride, padding, precision=precision)
    if out is not None:
        batchnorm.batchnorm_statistics(run, y, eps, out)


@techniques("separate", "tensor_core")
def conv2d_normalized_backward_weight(
    run: Runner,
    x: Array,
    before: Normalization | None,
    dy: PendingGradient,
    dw: Array,
    stride: Pair,
    padding: Pair,
    *,
    technique: str | None = None,
    precision: str = "fp32",
) -> None:
    """Make dw (kh, kw, c_in, c_out) of the activation that `before` makes of x, and of the pending gradient of y.

    Raises:
        ShapeError: The shapes do not agree.
        TypeError: Only one of gamma and beta is given.
        TechniqueError: The technique cannot take these arrays.
    """
    operation = "conv2d_normalized_backward_weight"
    geometry = geometry_of(operation, stride, padding, x=x.shape, dw=dw.shape, dy=dy.dy.shape)
    check_normalization(operation, "before", before, geometry.c_in)
    _check_pending(operation, dy)
    options = tensor_core.options(precision, geometry, before, dy, x=x, dw=dw)
    if choose(run, operation, technique, options, x=x, dy=dy.dy, dw=dw) != SEPARATE:
        tensor_core.backward_weight(run, geometry, x, before, dy, dw)
        return
    written = _written(run, dy)
    conv2d_backward_weight(run, _activation(run, x, before), written, dw, stride, padding, precision=precision)


@techniques("separate", "tensor_core")
def conv2d_normalized_backward_input(
    run: Runner,
    dy: PendingGradient,
    w: Array,
    dx: Array,
    stride: Pair,
    padding: Pair,
    x: Array | None,
    before: Normalization | None,
    sums: GradientSums | None,
    *,
    technique: str | None = None,
    precision: str = "fp32",
) -> None:
    """Make dx (n, h, w, c_in) of the pending gradient of y and w (kh, kw, c_in, c_out).

    Where `before` is given, so are x (like dx) and `sums`: dx is 0 where before's ReLU did not pass x, and the sums are
    those of dx and x. dx is no other array given.

    Raises:
        ShapeError: The shapes do not agree.
        TypeError: Only some of x, before and sums are given, or only one of gamma and beta.
        TechniqueError: The technique cannot take these arrays.
    """
    operation = "conv2d_normalized_backward_input"
    geometry = geometry_of(operation, stride, padding, dx=dx.shape, w=w.shape, dy=dy.dy.shape)
    _check_pending(operation, dy)
    check_normalization(operation, "before", before, geometry.c_in)
    options = tensor_core.options(precision, geometry, before, dy, w=w, dx=dx, x=x)
    if x is None or before is None or sums is None:
        if not (x is None and before is None and sums is None):
            raise TypeError(f"{operation}: x, before and sums are given together or not at all")
        if choose(run, operation, technique, options, dy=dy.dy, w=w, dx=dx) != SEPARATE:
            tensor_core.backward_input(run, geometry, dy, w, dx)
            return
        conv2d_backward_input(run, _written(run, dy), w, dx, stride, padding, precision=precision)
        return
    same_shape(operation, dx=dx, x=x)
    check_channels(operation, geometry.c_in, **{f"sums.{name}": array for name, array in sums._asdict().items()})
    if choose(run, operation, technique, options, dy=dy.dy, w=w, dx=dx, x=x) != SEPARATE:
        tensor_core.backward_input(run, geometry, dy, w, dx, x, before, sums)
        return
    gradient = run.empty(dx.shape, dx.dtype) if before.relu else dx
    conv2d_backward_input(run, _written(run, dy), w, gradient, stride, padding, precision=precision)
    if before.relu:
        relu_backward(run, gradient, _activation(run, x, before), dx)
    batchnorm.batchnorm_gradient_sums(run, x, dx, before._replace(relu=False), sums)


def _activation(run: Runner, x: Array, before: Normalization | None) -> Array:
    """What `before` makes of x, in scratch memory; x where there is none, or nothing in it."""
    if before is None or x.size == 0:
        return x
    activation = run.empty(x.shape, x.dtype)
    batchnorm.batchnorm_apply(run, x, before.statistics, before.gamma, before.beta, activation, before.relu)
    return activation


def _written(run: Runner, dy: PendingGradient) -> Array:
    """The gradient dx that is pending, in scratch memory."""
    written = run.empty(dy.x.shape, dy.x.dtype)
    batchnorm.batchnorm_pending_gradient(run, dy, written)
    return written


def _check_pending(operation: str, dy: PendingGradient) -> None:
    same_shape(operation, **{"dy.dy": dy.dy, "dy.x": dy.x})
    channels = int(dy.dy.shape[-1])
    check_normalization(operation, "dy.normalization", dy.normalization, channels)
    check_channels(operation, channels, **{f"dy.sums.{name}": array for name, array in dy.sums._asdict().items()})
