"""Factors of a convolution that are worked out as they arrive: an activation, or a gradient that is pending.

The numbers are the very bits that batch normalization's own kernels give: the same operations in the same order, with
`normalized` of kernels/batchnorm/apply.py and `passed` of kernels/activation.py. Per channel they need, in this order,

    shift, delta, scale = inv_std * gamma, beta            an activation, and the mask of its ReLU
    mean_g, slope                                          a pending gradient besides
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from numba import cuda, float32

from kernels.activation import passed
from kernels.batch_statistics import Normalization
from kernels.batchnorm.apply import normalized
from kernels.batchnorm.split import loader
from kernels.device import inlined, positive
from kernels.matmul.tensor_copies import Arrival

OF_ACTIVATION, OF_GRADIENT = 4, 6  # numbers of a channel


class Kind(NamedTuple):
    """What the code for a normalization depends on."""

    affine: bool
    relu: bool

    @classmethod
    def of(cls, normalization: Normalization) -> "Kind":
        """That of a normalization."""
        return cls(normalization.gamma is not None, normalization.relu)


def activation(kind: Kind, channels: int) -> Arrival:
    """The activation that a normalization makes of what arrives; known: (shift, delta, inv_std, gamma, beta)."""
    relu = kind.relu

    @inlined
    def value(numbers, j, x, other):  # noqa: ARG001
        y = normalized(x, numbers[j], numbers[4 + j], numbers[8 + j], numbers[12 + j])
        return positive(y) if relu else y

    return Arrival(channels, 1, OF_ACTIVATION, reader(kind, 4), value)


def pending_gradient(kind: Kind, channels: int) -> Arrival:
    """The gradient dx of dy, which arrives first, and of x beside; known: (as for an activation, mean_g, slope)."""
    return Arrival(channels, 2, OF_GRADIENT, _pending_reader(kind, 4), _pending_value(kind))


def one_pending(kind: Kind) -> Callable[..., Any]:
    """Make the device function of a single element: ((dy, x, known), place, channel) -> float32."""
    read, value = _pending_reader(kind, 1), _pending_value(kind)
    size = 4 * OF_GRADIENT

    @inlined
    def element(arrays, place, channel):
        dy, x, known = arrays
        numbers = cuda.local.array(size, float32)
        read(known, channel, numbers)
        return value(numbers, 0, dy[place], x[place])

    return element


def reader(kind: Kind, width: int) -> Callable[..., Any]:
    """Make `Arrival.read` of an activation, for `width` channels: 4, or 1."""
    load, affine = loader(width), kind.affine

    @inlined
    def read(known, channel, numbers):
        shift, delta, inv_std, gamma, beta = known
        load(shift, channel, numbers, 0)
        load(delta, channel, numbers, 4)
        load(inv_std, channel, numbers, 8)
        if affine:
            load(gamma, channel, numbers, 12)
            for j in range(width):
                numbers[8 + j] *= numbers[12 + j]
            load(beta, channel, numbers, 12)
        else:
            for j in range(width):
                numbers[12 + j] = float32(0)

    return read


def _pending_reader(kind: Kind, width: int) -> Callable[..., Any]:
    load, read_normalization = loader(width), reader(kind, width)

    @inlined
    def read(known, channel, numbers):
        normalization, mean_g, slope = known
        read_normalization(normalization, channel, numbers)
        load(mean_g, channel, numbers, 16)
        load(slope, channel, numbers, 20)

    return read


def _pending_value(kind: Kind) -> Callable[..., Any]:
    relu = kind.relu

    @inlined
    def value(numbers, j, dy, x):
        g = dy
        if relu:
            g = passed(g, normalized(x, numbers[j], numbers[4 + j], numbers[8 + j], numbers[12 + j]))
        g = (g - numbers[16 + j]) - ((x - numbers[j]) - numbers[4 + j]) * numbers[20 + j]
        return numbers[8 + j] * g

    return value
