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
from kernels.packed import unpack_bf16, unpack_f16
from kernels.storage import BFLOAT16, FLOAT32, Storage
from kernels.tensor_core import pack_bf16, pack_f16

OF_ACTIVATION, OF_GRADIENT = 4, 6  # numbers of a channel


class Kind(NamedTuple):
    """What the code for a normalization depends on."""

    affine: bool
    relu: bool

    @classmethod
    def of(cls, normalization: Normalization) -> "Kind":
        """That of a normalization."""
        return cls(normalization.gamma is not None, normalization.relu)


def activation(kind: Kind, channels: int, width: int = 4) -> Arrival:
    """The activation that a normalization makes of what arrives; known: (shift, delta, inv_std, gamma, beta).

    `width` is how many channels a chunk has: 4, or 8 of elements of 16 bits.
    """
    relu = kind.relu
    one, two, three = width, 2 * width, 3 * width

    @inlined
    def value(numbers, j, x, other):  # noqa: ARG001
        y = normalized(x, numbers[j], numbers[one + j], numbers[two + j], numbers[three + j])
        return positive(y) if relu else y

    return Arrival(channels, 1, OF_ACTIVATION, reader(kind, width), value)


def pending_gradient(kind: Kind, channels: int, width: int = 4) -> Arrival:
    """The gradient dx of dy, which arrives first, and of x beside; known: (as for an activation, mean_g, slope)."""
    return Arrival(channels, 2, OF_GRADIENT, _pending_reader(kind, width), _pending_value(kind, width))


def one_pending(kind: Kind, storage: Storage = FLOAT32) -> Callable[..., Any]:
    """Make the device function of a single element: ((dy, x, known), place, channel) -> float32, of that storage."""
    read, value = _pending_reader(kind, 1), _pending_value(kind, 1)
    size, load, rounded = OF_GRADIENT, storage.load, rounder(storage)

    @inlined
    def element(arrays, place, channel):
        dy, x, known = arrays
        numbers = cuda.local.array(size, float32)
        read(known, channel, numbers)
        return rounded(value(numbers, 0, load(dy, place), load(x, place)))

    return element


def reader(kind: Kind, width: int) -> Callable[..., Any]:
    """Make `Arrival.read` of an activation, for `width` channels: 4, 8, or 1."""
    load, affine = loader(width), kind.affine
    one, two, three = width, 2 * width, 3 * width

    @inlined
    def read(known, channel, numbers):
        shift, delta, inv_std, gamma, beta = known
        load(shift, channel, numbers, 0)
        load(delta, channel, numbers, one)
        load(inv_std, channel, numbers, two)
        if affine:
            load(gamma, channel, numbers, three)
            for j in range(width):
                numbers[two + j] *= numbers[three + j]
            load(beta, channel, numbers, three)
        else:
            for j in range(width):
                numbers[three + j] = float32(0)

    return read


def _pending_reader(kind: Kind, width: int) -> Callable[..., Any]:
    load, read_normalization = loader(width), reader(kind, width)
    four, five = 4 * width, 5 * width

    @inlined
    def read(known, channel, numbers):
        normalization, mean_g, slope = known
        read_normalization(normalization, channel, numbers)
        load(mean_g, channel, numbers, four)
        load(slope, channel, numbers, five)

    return read


def _pending_value(kind: Kind, width: int) -> Callable[..., Any]:
    relu = kind.relu
    one, two, three, four, five = width, 2 * width, 3 * width, 4 * width, 5 * width

    @inlined
    def value(numbers, j, dy, x):
        g = dy
        if relu:
            g = passed(g, normalized(x, numbers[j], numbers[one + j], numbers[two + j], numbers[three + j]))
        g = (g - numbers[four + j]) - ((x - numbers[j]) - numbers[one + j]) * numbers[five + j]
        return numbers[two + j] * g

    return value


def rounder(storage: Storage) -> Callable[..., Any]:
    """Make the device function value -> what is left of it when it has been stored, as float32."""
    pack: Any = pack_bf16 if storage is BFLOAT16 else pack_f16
    unpack: Any = unpack_bf16 if storage is BFLOAT16 else unpack_f16

    @inlined
    def as_it_is(value):
        return value

    @inlined
    def rounded(value):
        low, _ = unpack(pack(value, value))
        return low

    return as_it_is if storage is FLOAT32 else rounded
