"""The error bounds of convolutions whose factors are worked out as they are loaded.

Such a factor is not given: it is known up to what normalization, or the gradient that is pending, may be off by,
element by element. The products then are off by what that makes of them, and by what the sum loses, as for given
factors (`minidl.lab.bounds`). What comes out beside a product is held against the product that the device itself has
stored, so its bounds are those of batch normalization's own passes.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from kernels.batch_statistics import BatchStatistics, Normalization, PendingGradient
from kernels.batchnorm import batchnorm_pending_gradient_reference
from kernels.conv.normalized_reference import activation_reference
from kernels.emulator.tensor import round_tf32
from minidl.lab.budget import chained, products
from minidl.lab.operations.batchnorm_bounds import GIVEN, Elements, elements, pending_bound
from minidl.lab.operations.case import Host


class Factor(NamedTuple):
    """One of a product's two: what it is in float64, and how far off it may be; of one shape."""

    value: Host
    off: Host


def given(array: Host) -> Factor:
    """A factor that is an input."""
    return Factor(array.astype(np.float64), np.zeros(array.shape))


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


def product_bound(made: Callable[[Host, Host], Host], a: Factor, b: Factor, terms: int, precision: str) -> Host:
    """Of a sum of `terms` products, `made` of the two factors, which is linear in either.

    With a' within a.off of a, and b' likewise, a' b' - a b is at most (|a| + a.off)(|b| + b.off) - |a||b|. In "tf32"
    the factors are rounded on the way; rounding is monotone, so a' then lies between a - a.off and a + a.off rounded.
    """
    moved: Host = np.zeros(())
    with np.errstate(all="ignore"):
        largest = max((float(np.abs(f.value[np.isfinite(f.value)]).max(initial=0)) for f in (a, b)), default=0)
        if precision == "tf32":
            rounded = _rounded(a), _rounded(b)
            moved = np.abs(made(rounded[0].value, rounded[1].value) - made(a.value, b.value))
            a, b = rounded
        exact = made(np.abs(a.value), np.abs(b.value))
        absolute = made(np.abs(a.value) + a.off, np.abs(b.value) + b.off)
        moved = moved + np.maximum(absolute - exact, 0)
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


def _rounded(factor: Factor) -> Factor:
    """To TF32, what is off with it."""
    value = _tf32(factor.value)
    off = np.maximum(_tf32(factor.value + factor.off) - value, value - _tf32(factor.value - factor.off))
    return Factor(value, np.where(np.isfinite(value), off, 0))


def _tf32(x: Host) -> Host:
    return round_tf32(x.astype(np.float32)).view(np.float32).astype(np.float64)
