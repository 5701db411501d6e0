"""Input families: what operations are tried on, from the ordinary to the hostile.

A family makes a float32 array (..., c) whose last axis is the channel; what it says of "a channel" holds for the rows
of each. All are functions of the generator and the shape alone.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Family = Callable[[np.random.Generator, tuple[int, ...]], Floats]

# Not multiples of a power of two, small and large: their float32 sums round at every step.
CONSTANTS = (10000.1, 0.1, 12345.678, -3.3, 1e7 + 1, 1e-3)
OUTLIER = 1e4  # among numbers of size 1


def normal(mean: float, std: float) -> Family:
    """Gaussian channels. What float32 cannot represent of them is lost before any operation sees it."""

    def family(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        return (mean + std * rng.standard_normal(shape)).astype(np.float32)

    return family


def constant(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Each channel one value throughout: its variance is 0, whatever its size."""
    del rng
    values = np.array([CONSTANTS[c % len(CONSTANTS)] for c in range(shape[-1])])
    return np.full(shape, values, np.float32)


def outlier(place: float) -> Family:
    """Each channel N(0, 1) but for one element, at `place` between the first row (0) and the last (1)."""

    def family(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        x = rng.standard_normal(shape).astype(np.float32)
        rows = x.reshape(-1, shape[-1])
        if len(rows):
            rows[min(int(place * len(rows)), len(rows) - 1)] = OUTLIER
        return x

    return family


def two_outliers(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Each channel N(0, 1) but for its first and its middle element: not even the median of a few is safe."""
    x = rng.standard_normal(shape).astype(np.float32)
    rows = x.reshape(-1, shape[-1])
    rows[[0, len(rows) // 2] if len(rows) else []] = OUTLIER
    return x


def scattered_outliers(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Each channel N(0, 1) but for two elements (one where there is but one row), at places of its own."""
    x = rng.standard_normal(shape).astype(np.float32)
    rows = x.reshape(-1, shape[-1])
    for c in range(shape[-1] if len(rows) else 0):
        rows[rng.choice(len(rows), min(2, len(rows)), replace=False), c] = OUTLIER
    return x


def denormal(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Numbers below the smallest normal float32, 2^-126, of both signs, some 0."""
    return (rng.integers(-(2**22), 2**22, shape) * 2.0**-149).astype(np.float32)


def mixed_scales(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """N(0, 1) times a scale of the channel, from 1e-6 in the first to 1e6 in the last."""
    return (rng.standard_normal(shape) * np.logspace(-6, 6, shape[-1])).astype(np.float32)


def alternating(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Plus and minus by turns along the rows, so that sums cancel: (-1)^row times a number in [1, 2)."""
    magnitude = rng.uniform(1, 2, shape)
    rows = magnitude.reshape(-1, shape[-1])
    rows[1::2] *= -1
    return magnitude.astype(np.float32)


def with_values(*values: float) -> Family:
    """N(0, 1), but the middle channel holds each of `values` once, as far as its rows go."""

    def family(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        x = rng.standard_normal(shape).astype(np.float32)
        rows = x.reshape(-1, shape[-1])
        places = rng.permutation(len(rows))[: len(values)]
        rows[places, shape[-1] // 2] = values[: len(places)]
        return x

    return family


def zeros(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Nothing but 0."""
    del rng
    return np.zeros(shape, np.float32)


def integers(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Whole numbers from -3 to 3: their sums, and the sums of their products, are exact in float32 in any order."""
    return rng.integers(-3, 4, shape).astype(np.float32)


def whole(middle: int, swing: int) -> Family:
    """Whole numbers: by turns along the rows middle + swing and middle - swing, and 16 more from channel to channel.

    Below 2^16 (their products, where those are summed) every sum of up to 256 is exact in float32, in any order, and
    each of them rounds in the same direction when it is added to a large total. So an error is that of adding up the
    partial sums, and the plainest way of doing so in float32 shows.
    """

    def family(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        del rng
        x = np.empty(shape, np.float32)
        rows = x.reshape(-1, shape[-1])
        rows[...] = middle + 16 * np.arange(shape[-1])
        rows[0::2] += swing
        rows[1::2] -= swing
        return x

    return family


def exact_statistics(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Channels whose mean and biased variance are float32 numbers, and exact in a sum of shifted squares in any order.

    Rows come in pairs mean + a, mean - a, in random order, with the mean 4096 + channel and a in units of 2^-6. The
    variance is the mean of a²: a is 1, 2 or 3 units where the number of rows is a power of two, else 1 unit throughout.
    (The idea of exact statistics is that of oneDNN's benchdnn.) The number of rows must be even.
    """
    c = shape[-1]
    count = int(np.prod(shape[:-1]))
    if count % 2:
        raise ValueError(f"exact_statistics: {count} rows cannot be paired; give an even number")
    largest = 3 if count & (count - 1) == 0 else 1
    half = rng.integers(1, largest + 1, (count // 2, c))
    deviation = rng.permuted(np.concatenate([half, -half]), axis=0) * 2.0**-6
    return (4096.0 + np.arange(c) + deviation).astype(np.float32).reshape(shape)


FAMILIES: dict[str, Family] = {
    "ordinary": normal(0, 1),
    "mean-1e4-std-1e-2": normal(1e4, 1e-2),
    "mean-1e4-std-1": normal(1e4, 1),
    "mean-1e6-std-1": normal(1e6, 1),
    "constant": constant,
    "outlier-first": outlier(0),
    "outlier-middle": outlier(0.5),
    "outlier-last": outlier(1),
    "two-outliers": two_outliers,
    "scattered-outliers": scattered_outliers,
    "denormal": denormal,
    "mixed-scales": mixed_scales,
    "alternating": alternating,
    "nan": with_values(np.nan),
    "inf": with_values(np.inf),
    "minus-inf-and-inf": with_values(-np.inf, np.inf),
    "zeros": zeros,
}
