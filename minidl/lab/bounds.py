"""How far an operation's answers may be off, for given inputs: the bounds of sums and of what is computed elementwise.

Each function takes the inputs of the protocol's method of that name, as host arrays of any float type, and returns the
bound of each output by name. No order of a sum's terms is assumed. `precision` is that of convolutions and linear
layers, as a backend's: what is in float32 is within the bounds of "tf32" too. Those of batch normalization, of the loss
and of the optimizers stand with their cases, in `minidl.lab.operations`.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels import conv, noise, pooling
from kernels.emulator.tensor import round_tf32
from kernels.storage import BFLOAT16, FLOAT16
from kernels.window import span_of
from minidl.backends.techniques import WINOGRAD
from minidl.lab import winograd_bounds
from minidl.lab.budget import TINY, U, chained, products, rounding, summation

Host = NDArray[Any]
Pair = tuple[int, int]
Bounds = dict[str, Any]
Product = Callable[[Host, Host], Host]


def conv2d_forward(x: Host, w: Host, bias: Host | None, stride: Pair, padding: Pair, precision: str = "fp32") -> Bounds:
    """A sum over the taps and channels of a window, and the bias."""

    def made(x: Host, w: Host) -> Host:
        return conv.conv2d_forward_reference(x, w, None, stride, padding)

    def tiles(x: Host, w: Host) -> Host:
        return winograd_bounds.forward(x, w, padding)

    return {"y": _product(made, x, w, math.prod(w.shape[:3]), precision, bias, tiles)}


def conv2d_backward_input(
    dy: Host, w: Host, shape: tuple[int, ...], stride: Pair, padding: Pair, precision: str = "fp32"
) -> Bounds:
    """`shape` is that of dx. An element of x is in at most ceil(kernel / stride) windows along each axis."""

    def made(dy: Host, w: Host) -> Host:
        return conv.conv2d_backward_input_reference(dy, w, shape, stride, padding)  # type: ignore[arg-type]

    def tiles(dy: Host, w: Host) -> Host:
        return winograd_bounds.backward_input(dy, w, padding)

    return {"dx": _product(made, dy, w, _overlap(w.shape[:2], stride) * w.shape[3], precision, tiles=tiles)}


def conv2d_backward_weight(
    x: Host, dy: Host, shape: tuple[int, ...], stride: Pair, padding: Pair, precision: str = "fp32"
) -> Bounds:
    """`shape` is that of dw. A sum over all positions of all images."""

    def made(x: Host, dy: Host) -> Host:
        return conv.conv2d_backward_weight_reference(x, dy, shape, stride, padding)  # type: ignore[arg-type]

    def tiles(x: Host, dy: Host) -> Host:
        return winograd_bounds.backward_weight(x, dy, padding)

    return {"dw": _product(made, x, dy, math.prod(dy.shape[:3]), precision, tiles=tiles)}


def _product(
    made: Product, a: Host, b: Host, terms: int, precision: str, bias: Host | None = None, tiles: Product | None = None
) -> Host:
    """Of the sum of `terms` products, `made` of its two factors, and the bias.

    In "tf32" both factors are rounded to 10 bits of fraction, to nearest and ties away from 0, which is off by up to
    2^-11 of each. What that does to the result is known: it is the difference between the product of the rounded
    factors and that of the factors, both in float64. Only what the sum loses is bounded by the absolute values.

    In "bf16" and "fp16" they are rounded to that storage, which leaves what is stored so as it is. A zero in float16
    counts with the exponent of 2^-14.

    By "winograd" it is off by `tiles` of the absolute values, or as in "fp32" where that makes it.
    """
    given = 0.0 if bias is None else _abs(bias)
    if precision in ("fp32", WINOGRAD):
        absolute = made(_abs(a), _abs(b)) + given
        direct = products(absolute, terms + (bias is not None))
        if precision == "fp32" or tiles is None:
            return direct
        with np.errstate(all="ignore"):
            return by_tiles(direct, tiles(_abs(a), _abs(b)) + U * absolute)
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    with np.errstate(all="ignore"):
        a_rounded, b_rounded = rounded_to(precision, a), rounded_to(precision, b)
        finite = np.concatenate([array[np.isfinite(array)].ravel() for array in (_abs(a), _abs(b))])
        moved: Host = np.abs(made(a_rounded, b_rounded) - made(a, b))
        absolute = made(_abs(a_rounded), _abs(b_rounded)) + given
        largest = float(finite.max(initial=0))
        moved = moved + beside_zeros(terms, largest, precision) * (absolute > 0)
        return moved + chained(absolute, terms + (bias is not None), largest)


def by_tiles(direct: Host, lost: Host) -> Host:
    """Of a sum that Winograd's technique makes: a tile that is not finite is left to the definition."""
    return np.where(np.isfinite(lost), np.maximum(direct, lost), direct)


def rounded_to(precision: str, x: Host) -> Host:
    """What tensor cores multiply in the place of x, float64: in "tf32", "bf16" or "fp16"."""
    return _ROUNDED[precision](x).astype(np.float64)


def beside_zeros(terms: int, largest: float, precision: str) -> float:
    """What a sum of products loses to zeros of float16, which count with the exponent of 2^-14; else 0.

    `largest` is the largest absolute value of a factor.
    """
    return 2 * math.ceil(terms / 8) * (18 * 2.0**-24 * 2.0**-14 * max(largest, 1.0)) if precision == "fp16" else 0.0


def _to_tf32(x: Host) -> Host:
    return round_tf32(x.astype(np.float32)).view(np.float32)


_ROUNDED: dict[str, Callable[[Host], Host]] = {
    "tf32": _to_tf32,
    "bf16": BFLOAT16.rounded,
    "fp16": FLOAT16.rounded,
}


def bias_backward(dy: Host) -> Bounds:
    """A sum over all rows; the second stage's result is stored once."""
    axes = tuple(range(dy.ndim - 1))
    absolute, exact = _abs(dy).sum(axis=axes), np.abs(dy.astype(np.float64).sum(axis=axes))
    return {"db": summation(math.prod(dy.shape[:-1])) * absolute + U * exact}


def linear_forward(x: Host, w: Host, bias: Host | None, precision: str = "fp32") -> Bounds:
    """A sum over the input's features, and the bias."""
    return {"y": _product(lambda x, w: x @ w.T, x, w, w.shape[1], precision, bias)}


def linear_backward_input(dy: Host, w: Host, precision: str = "fp32") -> Bounds:
    """A sum over the output's features."""
    return {"dx": _product(lambda dy, w: dy @ w, dy, w, w.shape[0], precision)}


def linear_backward_weight(x: Host, dy: Host, precision: str = "fp32") -> Bounds:
    """A sum over the rows of the batch."""
    return {"dw": _product(lambda x, dy: dy.T @ x, x, dy, len(x), precision)}


def max_pool2d_backward(
    dy: Host,
    index: Host,
    shape: tuple[int, ...],
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair = (1, 1),
    ceil_mode: bool = False,
) -> Bounds:
    """Only additions, and no more than the windows an element is in, less one."""
    reference, window = pooling.max_pool2d_backward_reference, (kernel, stride, padding, dilation, ceil_mode)
    absolute = reference(_abs(dy), index, shape, *window)  # type: ignore[arg-type]
    return {"dx": rounding(_overlap(kernel, stride, dilation) - 1) * absolute}


def avg_pool2d_forward(
    x: Host, kernel: Pair, stride: Pair, padding: Pair, count_include_pad: bool, ceil_mode: bool = False
) -> Bounds:
    """A window's additions, and the division (two roundings if by a reciprocal)."""
    absolute = pooling.avg_pool2d_forward_reference(_abs(x), kernel, stride, padding, count_include_pad, ceil_mode)
    return {"y": rounding(math.prod(kernel) + 1) * absolute + TINY * (absolute > 0)}


def avg_pool2d_backward(
    dy: Host,
    shape: tuple[int, ...],
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    count_include_pad: bool,
    ceil_mode: bool = False,
) -> Bounds:
    """A share is divided off (two roundings), and shares are added."""
    reference, options = pooling.avg_pool2d_backward_reference, (kernel, stride, padding, count_include_pad, ceil_mode)
    absolute = reference(_abs(dy), shape, *options)  # type: ignore[arg-type]
    overlap = _overlap(kernel, stride)
    return {"dx": rounding(overlap + 1) * absolute + overlap * TINY * (absolute > 0)}


def global_avg_pool2d_forward(x: Host) -> Bounds:
    """The sum over the image in one accumulator, and the division."""
    absolute = _abs(x).mean(axis=(1, 2))
    return {"y": rounding(x.shape[1] * x.shape[2] + 1) * absolute + TINY * (absolute > 0)}


def dropout(x: Host, kept: NDArray[np.bool_], p: float) -> Bounds:
    """The factor 1 / (1 - p) rounds and the product does; what is dropped, and all of it at p = 0, is exact."""
    scaled = _abs(x) / max(1 - p, 2**-24)
    return {"y": np.where(kept & (p > 0), 2 * U * scaled + TINY, 0)}


def noise_forward(x: Host, offset: float, scale: float, jitter: float, seed: int, stream: int, call: int) -> Bounds:
    """Of y = s x + m; uniform numbers, and twice those less 1, are exact.

    sigma = 1 + (scale - 1) u rounds its factor, a product and a sum, the share of jitter in s its factor and a product,
    and their sum rounds: altogether no more than 4 U f, f being the sum of both sizes. The same for m, where there is
    no 1: 3 U t. Then s x and its sum with m round.
    """
    f, t = _noise(x.shape, offset, scale, jitter, seed, stream, call)
    return {"y": 6 * U * f * _abs(x) + 4 * U * t + TINY}


def noise_backward(dy: Host, scale: float, jitter: float, seed: int, stream: int, call: int) -> Bounds:
    """Of dx = s dy, likewise."""
    f, _ = _noise(dy.shape, 0.0, scale, jitter, seed, stream, call)
    return {"dx": 5 * U * f * _abs(dy) + TINY * (dy != 0)}


def _noise(
    shape: tuple[int, ...], offset: float, scale: float, jitter: float, seed: int, stream: int, call: int
) -> tuple[Host, Host]:
    """The absolute values of what s and m are sums of."""
    numbers = seed, stream, call
    sigma = noise.noise_factors((1, shape[-1]), scale, 0.0, *numbers)
    mu = noise.noise_terms((1, shape[-1]), offset, 0.0, *numbers)
    of_s = np.abs(noise.noise_factors(shape, 1.0, jitter, *numbers) - 1)
    of_m = np.abs(noise.noise_terms(shape, 0.0, jitter, *numbers))
    return sigma + of_s, np.abs(mu) + of_m


def relative(expected: Host, units: float) -> Host:
    """So many unit roundoffs of the answer, for what is rounded at the end of a few steps that lose less."""
    bound: Host = units * U * np.abs(expected) + TINY * (expected != 0)
    return bound


def _abs(array: Host) -> Host:
    return np.abs(array.astype(np.float64))


def _overlap(kernel: tuple[int, ...], stride: Pair, dilation: Pair = (1, 1)) -> int:
    """Windows that one element can be in: those that begin within a span, but no more than there are taps."""
    axes = zip(kernel, stride, dilation, strict=True)
    return math.prod(min(taps, -(-span_of(taps, apart) // step)) for taps, step, apart in axes)
