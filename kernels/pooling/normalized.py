"""Max pooling of what a normalization makes of its input, and its gradient: host functions.

The definition is in normalized_reference.py. They are composed of the operations that there are anyway: the activation
is written to scratch memory, and the sums are found in a pass of their own.
"""

from kernels import batchnorm
from kernels.activation import relu_backward
from kernels.batch_statistics import GradientSums, Normalization
from kernels.batchnorm.arguments import check_channels, check_normalization
from kernels.choice import choose
from kernels.errors import same_shape
from kernels.launch import Array, Runner, techniques
from kernels.pooling.geometry import geometry_of
from kernels.pooling.maximum import max_pool2d_backward, max_pool2d_forward
from kernels.storage import common_storage
from kernels.window import Pair

SEPARATE = "separate"
ONLY = ((SEPARATE, True, "there is no other"),)


@techniques(SEPARATE)
def max_pool2d_normalized_forward(
    run: Runner,
    x: Array,
    before: Normalization,
    y: Array,
    index: Array,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair = (1, 1),
    ceil_mode: bool = False,
    *,
    technique: str | None = None,
) -> None:
    """Make y and index (n, ho, wo, c) of the activation that `before` makes of x (n, h, w, c).

    Raises:
        ShapeError: The shapes do not agree.
        TypeError: Only one of gamma and beta is given, or x and y are not of one storage.
    """
    operation, window = "max_pool2d_normalized_forward", (kernel, stride, padding, dilation, ceil_mode)
    geometry = geometry_of(operation, ("x", x), {"y": y, "index": index}, *window)
    common_storage(operation, x=x, y=y)
    check_normalization(operation, "before", before, geometry.c)
    choose(run, operation, technique, ONLY, x=x, y=y, index=index)
    if y.size:
        max_pool2d_forward(run, _activation(run, x, before), y, index, *window)


@techniques(SEPARATE)
def max_pool2d_normalized_backward(
    run: Runner,
    dy: Array,
    index: Array,
    dx: Array,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    ceil_mode: bool,
    x: Array,
    before: Normalization,
    sums: GradientSums,
    *,
    technique: str | None = None,
) -> None:
    """Make dx (n, h, w, c) of dy and forward's `index` (n, ho, wo, c), and `sums` (c,) of dx and x.

    dx is 0 where before's ReLU did not pass x. It is no other array given.

    Raises:
        ShapeError: The shapes do not agree.
        TypeError: Only one of gamma and beta is given, or dy, x and dx are not of one storage.
    """
    operation, window = "max_pool2d_normalized_backward", (kernel, stride, padding, dilation, ceil_mode)
    geometry = geometry_of(operation, ("dx", dx), {"dy": dy, "index": index}, *window)
    same_shape(operation, dx=dx, x=x)
    common_storage(operation, dy=dy, dx=dx, x=x)
    check_normalization(operation, "before", before, geometry.c)
    check_channels(operation, geometry.c, **{f"sums.{name}": array for name, array in sums._asdict().items()})
    choose(run, operation, technique, ONLY, dy=dy, index=index, dx=dx, x=x)
    gradient = run.empty(dx.shape, dx.dtype) if before.relu else dx
    max_pool2d_backward(run, dy, index, gradient, *window)
    if before.relu and dx.size:
        relu_backward(run, gradient, _activation(run, x, before), dx)
    batchnorm.batchnorm_gradient_sums(run, x, dx, before._replace(relu=False), sums)


def _activation(run: Runner, x: Array, before: Normalization) -> Array:
    """In scratch memory."""
    activation = run.empty(x.shape, x.dtype)
    batchnorm.batchnorm_apply(run, x, before.statistics, before.gamma, before.beta, activation, before.relu)
    return activation
