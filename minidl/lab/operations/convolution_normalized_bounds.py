"""The error bounds of convolutions whose factors are worked out as they are loaded.

Such a factor is not given: it is known up to what normalization, or the gradient that is pending, may be off by,
element by element. The products then are off by what that makes of them, and by what the sum loses, as for given
factors (`minidl.lab.bounds`). What comes out beside a product is held against the product that the device itself has
stored, so its bounds are those of batch normalization's own passes.
"""

from typing import NamedTuple

import numpy as np

from kernels.batch_statistics import BatchStatistics, Normalization, PendingGradient
from kernels.batchnorm import batchnorm_pending_gradient_reference, batchnorm_statistics_reference
from kernels.conv.normalized_reference import activation_reference
from kernels.storage import FLOAT32, Storage
from minidl.backends.techniques import WINOGRAD
from minidl.lab.bounds import Product, beside_zeros, by_tiles, rounded_to
from minidl.lab.budget import U, chained, products
from minidl.lab.operations.batchnorm_bounds import (
    GIVEN,
    SPREAD,
    Elements,
    elements,
    pending_bound,
    statistics_uncertainty,
)
from minidl.lab.operations.case import Host, Values
from minidl.lab.operations.stored import half_unit


class Factor(NamedTuple):
    """One of a product's two: what it is in float64, and how far off it may be; of one shape."""

    value: Host
    off: Host
    is_image: bool = True


def given(array: Host, is_image: bool = True) -> Factor:
    """A factor that is an input; an image or weights."""
    return Factor(array.astype(np.float64), np.zeros(array.shape), is_image)


def activation(x: Host, before: Normalization | None) -> Factor:
    """What `before` makes of x."""
    if before is None:
        return given(x)
    value = activation_reference(x.astype(np.float64), wide(before))
    return _where_finite(value, _elements(x, before).y_error, before.relu)


def gradient(dy: PendingGradient) -> Factor:
    """What is pending."""
    sums, statistics = dy.sums, dy.normalization.statistics
    value = batchnorm_pending_gradient_reference(
        dy._replace(dy=dy.dy.astype(np.float64), x=dy.x.astype(np.float64), normalization=wide(dy.normalization))
    )
    e = _elements(dy.x, dy.normalization)
    return _where_finite(
        value, pending_bound(e, dy.x, dy.dy, statistics, sums.mean_g, sums.slope, dy.normalization.relu), False
    )


def product_bound(
    made: Product, a: Factor, b: Factor, terms: int, precision: str, tiles: Product | None = None
) -> Host:
    """Of a sum of `terms` products, `made` of the two factors, which is linear in either.

    With a' within a.off of a, and b' likewise, a' b' - a b is at most (|a| + a.off)(|b| + b.off) - |a||b|. Unless it is
    "fp32" the factors are rounded on the way; that is monotone, so a' then lies between a - a.off and a + a.off
    rounded. Images in 16 bits are rounded by every technique, weights by tensor cores alone: it may be either.

    `tiles` is what is lost by "winograd" besides what is moved, of the absolute values (`minidl.lab.winograd_bounds`).
    """
    factors = a, b
    if precision in ("fp32", WINOGRAD):
        direct = _sum_bound(made, factors, factors, terms, "fp32")
        if precision == "fp32" or tiles is None:
            return direct
        with np.errstate(all="ignore"):
            return by_tiles(direct, direct + tiles(np.abs(a.value) + a.off, np.abs(b.value) + b.off))
    rounded = _rounded(a, precision), _rounded(b, precision)
    bound = _sum_bound(made, factors, rounded, terms, precision)
    if b.is_image or precision == "tf32":
        return bound
    return np.maximum(bound, _sum_bound(made, factors, (rounded[0], b), terms, precision))


def _sum_bound(
    made: Product,
    factors: tuple[Factor, Factor],
    multiplied: tuple[Factor, Factor],
    terms: int,
    precision: str,
) -> Host:
    """Where these factors are multiplied in the place of those."""
    a, b = multiplied
    with np.errstate(all="ignore"):
        largest = max((float(np.abs(f.value[np.isfinite(f.value)]).max(initial=0)) for f in factors), default=0)
        moved: Host = np.zeros(())
        if multiplied is not factors:
            moved = np.abs(made(a.value, b.value) - made(factors[0].value, factors[1].value))
        exact = made(np.abs(a.value), np.abs(b.value))
        absolute = made(np.abs(a.value) + a.off, np.abs(b.value) + b.off)
        moved = moved + np.maximum(absolute - exact, 0) + beside_zeros(terms, largest, precision) * (absolute > 0)
        lost = products(absolute, terms) if precision == "fp32" else chained(absolute, terms, largest)
        bound: Host = moved + lost
        return bound


def masked_bound(full: Host, off: Host, x: Host, before: Normalization) -> Host:
    """Of the input gradient behind before's ReLU, which is `full` within `off` in front of it.

    Where y is within its error of 0, ReLU may be open for one and closed for the other.
    """
    if not before.relu:
        return off
    e = _elements(x, before)
    unsure = (np.abs(e.y) <= e.y_error) & (e.y_error > 0)
    is_open = (e.y > 0) | np.isnan(e.y) | unsure
    return np.where(is_open, off, 0) + np.where(unsure, np.abs(full), 0)


def statistics_bounds(y: Host, eps: float, shift: Host, storage: Storage) -> Values:
    """How far the statistics that come out beside y, stored so, may be from those of y; `shift` is the device's.

    They may be those of y before it was rounded, which is off by at most half a unit in each place: by h. Then the mean
    is off by no more than the mean of h and, as a deviation is a norm, the deviation by no more than the root of the
    mean of its squares; to which comes what the sums lose, whose terms are larger by at most h.
    """
    right = batchnorm_statistics_reference(y, eps)
    if storage is FLOAT32:
        off = statistics_uncertainty(y, eps, right.shift, right.var, shift)
        reach = SPREAD * np.sqrt(right.var)
        return {"shift": reach, "mean": off.mean, "var": off.var, "inv_std": off.inv_std * right.inv_std}
    axes = tuple(range(y.ndim - 1))
    h, deviation = half_unit(y, 0.0, storage), np.sqrt(right.var)
    of_mean, of_deviation = h.mean(axis=axes), np.sqrt((h**2).mean(axis=axes))
    most = (deviation + of_deviation) ** 2
    mean = right.shift + np.copysign(of_mean, right.shift - shift)
    off = statistics_uncertainty(y + np.copysign(h, y - shift), eps, mean, most, shift)
    most, least = most + off.var, np.maximum(np.maximum(deviation - of_deviation, 0) ** 2 - off.var, 0)
    largest, smallest = (1 + 4 * U) / np.sqrt(least + eps), (1 - 4 * U) / np.sqrt(most + eps)
    return {
        "shift": SPREAD * (deviation + of_deviation) + of_mean,
        "mean": of_mean + off.mean,
        "var": np.maximum(most - right.var, right.var - least),
        "inv_std": np.maximum(largest - right.inv_std, right.inv_std - smallest),
    }


def wide(before: Normalization) -> Normalization:
    """In float64."""
    statistics = BatchStatistics(*(part.astype(np.float64) for part in before.statistics))
    gamma, beta = (None if part is None else part.astype(np.float64) for part in (before.gamma, before.beta))
    return Normalization(statistics, gamma, beta, before.relu)


def _elements(x: Host, before: Normalization) -> Elements:
    return elements(x, before.statistics, before.gamma, before.beta, GIVEN)


def _where_finite(value: Host, off: Host, relu: bool) -> Factor:
    """Infinity is the same for all, and so is the 0 that ReLU makes of minus infinity (where `off` is not finite)."""
    settled = ~np.isfinite(value) | (relu & (value == 0) & ~np.isfinite(off))
    return Factor(value, np.where(settled, 0, np.broadcast_to(off, value.shape)))


def _rounded(factor: Factor, precision: str) -> Factor:
    """As tensor cores multiply it, what is off with it."""
    value, off, is_image = factor
    nearest = rounded_to(precision, value)
    most = np.maximum(rounded_to(precision, value + off) - nearest, nearest - rounded_to(precision, value - off))
    return Factor(nearest, np.where(np.isfinite(most), most, 0), is_image)
