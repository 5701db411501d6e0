"""Noise from another distribution in every step, for the study of covariate shift: y = s x + m; backward dx = s dy.

Each channel c draws a distribution, each element i of it draws from that:

    s = 1 + (scale - 1) u0[c] + jitter (2 u2[i] - 1)            sigma ~ U(1, scale),          s ~ U(sigma -+ jitter)
    m = offset (2 u1[c] - 1) + jitter (2 u3[i] - 1)             mu ~ U(-offset, offset),      m ~ U(mu -+ jitter)

with u0 to u3 the uniform numbers of kernels/random.py, of the streams `stream` to `stream` + 3. They are functions of
(seed, stream, call, index) alone and never stored: backward draws the s of forward again from the same numbers.

Shapes   x, y, dy, dx: (..., c), equal shapes; on the device float32, C-contiguous. y may be x, dx may be dy.
Traffic  reads x and writes y once; the scalar technique two numbers a channel too, drawn by a launch of their own.
Edges    NaN and infinity stay in their element.
Source   "noisy" batch normalization: S. Santurkar, D. Tsipras, A. Ilyas, A. Madry, "How does batch normalization help
         optimization?", 2018, arXiv:1805.11604, section 2.2 and appendix A. Here the jitter of s is uniform too, which
         every device draws alike; in convolutional networks the units are channels and each position is a sample.
"""

import math
from typing import Any

import numpy as np
from numba import cuda, float32, int64, uint32
from numpy.typing import NDArray

from kernels.batchnorm.split import BLOCK, Split
from kernels.choice import vectors
from kernels.device import index_type, inlined
from kernels.errors import ShapeError, require_shape, same_shape
from kernels.intrinsics import load4, store4
from kernels.launch import Array as DeviceArray
from kernels.launch import (
    Cost,
    Float,
    Floats,
    Int64,
    Launch,
    Runner,
    UInt32,
    UInt32s,
    blocks_for,
    kernel,
    techniques,
)
from kernels.random import philox4x32, seed_words, uniform_reference
from kernels.storage import require_float32

Array = NDArray[Any]
BLOCKS = 1056  # of the vector technique: eight on each multiprocessor of a large GPU
ROWS = 16  # of a thread, at most
WIDE = "LDG.E.128", "STG.E.128"
UNIT = 2.0**-24  # of uniform numbers

_philox = inlined(philox4x32)


@np.errstate(invalid="ignore", over="ignore")
def noise_forward_reference(
    x: Array, offset: float, scale: float, jitter: float, seed: int, stream: int, call: int
) -> Array:
    """The noisy x. Raises ValueError unless offset and jitter are at least 0 and scale at least 1."""
    factors = noise_factors(x.shape, scale, jitter, seed, stream, call)
    terms = noise_terms(x.shape, offset, jitter, seed, stream, call)
    return factors.astype(x.dtype) * x + terms.astype(x.dtype)


@np.errstate(invalid="ignore", over="ignore")
def noise_backward_reference(dy: Array, scale: float, jitter: float, seed: int, stream: int, call: int) -> Array:
    """The gradient of forward's x, given that of its y and the same numbers."""
    return noise_factors(dy.shape, scale, jitter, seed, stream, call).astype(dy.dtype) * dy


def noise_factors(
    shape: tuple[int, ...], scale: float, jitter: float, seed: int, stream: int, call: int
) -> NDArray[np.float64]:
    """The s of each element, float64."""
    require_noise(0, scale, jitter)
    of_channel, of_element = _uniform(shape, seed, stream, call), uniform_reference(shape, seed, stream + 2, call)
    return 1 + (scale - 1) * of_channel + jitter * (2 * of_element - 1)


def noise_terms(
    shape: tuple[int, ...], offset: float, jitter: float, seed: int, stream: int, call: int
) -> NDArray[np.float64]:
    """The m of each element, float64."""
    require_noise(offset, 1, jitter)
    of_channel, of_element = _uniform(shape, seed, stream + 1, call), uniform_reference(shape, seed, stream + 3, call)
    return offset * (2 * of_channel - 1) + jitter * (2 * of_element - 1)


def _uniform(shape: tuple[int, ...], seed: int, stream: int, call: int) -> NDArray[np.float64]:
    return uniform_reference(shape[-1], seed, stream, call)


def require_noise(offset: float, scale: float, jitter: float) -> None:
    """Raise ValueError unless noise can be drawn with these."""
    for name, value, least in (("offset", offset, 0), ("scale", scale, 1), ("jitter", jitter, 0)):
        if not least <= value < math.inf:
            raise ValueError(f"noise: {name} = {value}, expected a number of at least {least}")


@inlined
def uniform(word):
    """The uniform number of a word, in [0, 1); exact."""
    return float32(uint32(word >> 8)) * float32(UNIT)


@inlined
def centred(word):
    """Twice that less 1, in [-1, 1); exact."""
    return float32(uint32(word >> 8)) * float32(2 * UNIT) - float32(1)


@inlined
def of_lane(words, lane):
    """The word of an element, of its block's four."""
    a, b, c, d = words
    lower, upper = (a if lane == 0 else b), (c if lane == 2 else d)
    return lower if lane < 2 else upper


@kernel(traffic="call -> factors, terms", registers=32, examples=[()])
def noise_of_channels() -> Launch:
    """What the channels draw: sigma and mu. One channel a thread."""

    def noise_of_channels(
        call: UInt32s, factors: Floats, terms: Floats, channels: Int64, spread: Float, offset: Float,
        stream: UInt32, seed_low: UInt32, seed_high: UInt32,
    ):  # fmt: skip
        i = uint32(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if i < channels:
            block, lane = i // 4, uint32(i % 4)
            word = of_lane(_philox(block, 0, call[0], stream, seed_low, seed_high), lane)
            factors[i] = float32(1) + spread * uniform(word)
            word = of_lane(_philox(block, 0, call[0], uint32(stream + 1), seed_low, seed_high), lane)
            terms[i] = offset * centred(word)

    return Launch(
        noise_of_channels,
        BLOCK,
        lambda channels: blocks_for(channels, BLOCK),
        lambda channels: Cost(4, 8 * channels, 4 * channels),
    )


@kernel(
    traffic="x, call, factors, terms -> y",
    registers=32,
    examples=[(5, True, uint32), (64, False, uint32), (17, True, int64)],
)
def noise_scalar(channels: int, forward: bool, index: Any) -> Launch:
    """One element a thread: it draws blocks of four words and uses the one of its lane."""

    def noise(
        x: Floats, call: UInt32s, factors: Floats, terms: Floats, y: Floats, n: Int64, jitter: Float,
        stream: UInt32, seed_low: UInt32, seed_high: UInt32,
    ):  # fmt: skip
        i = index(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if i < n:
            block, lane, channel = i // 4, uint32(i % 4), uint32(i % channels)
            low, high = block & 0xFFFFFFFF, block >> 32
            word = of_lane(_philox(low, high, call[0], uint32(stream + 2), seed_low, seed_high), lane)
            value = (factors[channel] + jitter * centred(word)) * x[i]
            if forward:
                word = of_lane(_philox(low, high, call[0], uint32(stream + 3), seed_low, seed_high), lane)
                value += terms[channel] + jitter * centred(word)
            y[i] = value

    return Launch(noise, BLOCK, lambda n: blocks_for(n, BLOCK), lambda n: _cost(n, channels, forward))


@kernel(
    traffic="x, call -> y",
    registers=48,
    instructions=WIDE,
    examples=[(4, True, uint32), (64, False, uint32), (1028, True, uint32), (64, True, int64)],
)
def noise_vector(channels: int, forward: bool, index: Any) -> Launch:
    """Four channels of `span // depth` rows a thread: a block of words serves all four. Channels by fours.

    What its channels draw a thread draws itself, once for all of its rows: so nothing else is read or launched.
    """
    parts = Split(channels, 4)
    lanes, depth, quads = parts.lanes, parts.depth, channels // 4

    def noise(
        x: Floats, call: UInt32s, y: Floats, rows: Int64, span: Int64, jitter: Float, spread: Float, offset: Float,
        stream: UInt32, seed_low: UInt32, seed_high: UInt32,
    ):  # fmt: skip
        thread = uint32(cuda.threadIdx.x)
        quad, step = uint32(cuda.blockIdx.y * lanes + thread % lanes), uint32(thread // lanes)
        if quad < quads and step < depth:
            number = call[0]
            a, b, c, d = _philox(quad, 0, number, stream, seed_low, seed_high)
            sigma0, sigma1 = float32(1) + spread * uniform(a), float32(1) + spread * uniform(b)
            sigma2, sigma3 = float32(1) + spread * uniform(c), float32(1) + spread * uniform(d)
            mu0 = mu1 = mu2 = mu3 = float32(0)
            if forward:
                a, b, c, d = _philox(quad, 0, number, uint32(stream + 1), seed_low, seed_high)
                mu0, mu1, mu2, mu3 = offset * centred(a), offset * centred(b), offset * centred(c), offset * centred(d)
            for row in range(cuda.blockIdx.x * span + step, min((cuda.blockIdx.x + 1) * span, rows), depth):
                block = row * quads + int64(quad)
                low, high, first = block & 0xFFFFFFFF, block >> 32, index(4 * block)
                x0, x1, x2, x3 = load4(x, first)
                a, b, c, d = _philox(low, high, number, uint32(stream + 2), seed_low, seed_high)
                y0, y1 = (sigma0 + jitter * centred(a)) * x0, (sigma1 + jitter * centred(b)) * x1
                y2, y3 = (sigma2 + jitter * centred(c)) * x2, (sigma3 + jitter * centred(d)) * x3
                if forward:
                    a, b, c, d = _philox(low, high, number, uint32(stream + 3), seed_low, seed_high)
                    y0, y1 = y0 + (mu0 + jitter * centred(a)), y1 + (mu1 + jitter * centred(b))
                    y2, y3 = y2 + (mu2 + jitter * centred(c)), y3 + (mu3 + jitter * centred(d))
                store4(y, first, y0, y1, y2, y3)

    return Launch(
        noise,
        BLOCK,
        grid=lambda rows, span: (blocks_for(rows, span), parts.across),
        cost=lambda rows: Cost(4 * rows * channels + 4, 4 * rows * channels, (8 if forward else 4) * rows * channels),
    )


def _cost(n: int, channels: int, forward: bool) -> Cost:
    return Cost(4 * n + (8 if forward else 4) * channels, 4 * n, (8 if forward else 4) * n)


@techniques("scalar", "vector")
def noise_forward(
    run: Runner,
    x: DeviceArray,
    y: DeviceArray,
    offset: float,
    scale: float,
    jitter: float,
    seed: int,
    stream: int,
    call: DeviceArray,
    *,
    technique: str | None = None,
) -> None:
    """Launch on `run`; by the scalar technique twice: what the channels draw, then the elements.

    The vector technique takes arrays that start at multiples of 16 bytes, with channels in multiples of 4.

    Args:
        run: The device.
        x: Values (..., c).
        y: The result, of the same shape; may be x.
        offset: The largest |mu| of a channel, at least 0.
        scale: The largest sigma of a channel, at least 1.
        jitter: How far an element's numbers are from those of its channel at most, at least 0.
        seed: Of the generator; of a larger number its lower 64 bits count.
        stream: The first of four, in [0, 2^32 - 3).
        call: The draw's number, () uint32 in device memory, as in `dropout`.
        technique: See above.

    Raises:
        ShapeError: x and y have different shapes or no channels, or call is not ().
        TypeError: x or y is not float32; noise is for studies, and not made for what is stored in 16 bits.
        TechniqueError: "vector" is asked for, and cannot take the arrays.
        ValueError: offset, scale or jitter is too small, or not finite.
    """
    same_shape("noise_forward", x=x, y=y)
    _noise("noise_forward", run, x, y, (offset, scale, jitter), True, call, (stream, *seed_words(seed)), technique)


@techniques("scalar", "vector")
def noise_backward(
    run: Runner,
    dy: DeviceArray,
    dx: DeviceArray,
    scale: float,
    jitter: float,
    seed: int,
    stream: int,
    call: DeviceArray,
    *,
    technique: str | None = None,
) -> None:
    """Launch on `run`, with the numbers that forward had; dx may be dy. Otherwise as `noise_forward`."""
    same_shape("noise_backward", dy=dy, dx=dx)
    _noise("noise_backward", run, dy, dx, (0.0, scale, jitter), False, call, (stream, *seed_words(seed)), technique)


def _noise(
    operation: str,
    run: Runner,
    x: DeviceArray,
    y: DeviceArray,
    noise: tuple[float, float, float],
    forward: bool,
    call: DeviceArray,
    numbers: tuple[int, ...],
    technique: str | None,
) -> None:
    offset, scale, jitter = noise
    require_noise(offset, scale, jitter)
    if x.ndim < 1 or x.shape[-1] == 0:
        raise ShapeError(
            f"{operation}: an array has shape {tuple(x.shape)}, expected (..., c) with at least one channel"
        )
    require_shape(operation, "call", call, ())
    channels = int(x.shape[-1])
    moved: dict[str, DeviceArray] = {"x": x, "y": y} if forward else {"dy": x, "dx": y}
    require_float32(operation, **moved)
    vector = vectors(run, operation, technique, {"channels": channels}, **moved)
    if vector:
        rows = x.size // channels
        span = Split(channels, 4).span(rows, BLOCKS, ROWS)
        given = rows, span, jitter, scale - 1, offset
        run(noise_vector(channels, forward, index_type(x.size)), x, call, y, *given, *numbers)
        return
    factors, terms = run.empty((channels,)), run.empty((channels,))
    run(noise_of_channels(), call, factors, terms, channels, scale - 1, offset, *numbers)
    run(noise_scalar(channels, forward, index_type(x.size)), x, call, factors, terms, y, x.size, jitter, *numbers)
