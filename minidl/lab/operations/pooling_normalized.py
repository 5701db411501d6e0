"""Checks of max pooling at the end of a chain of normalizations: forward, and backward with the sums of its gradient.

An activation is known within the error of normalization, so which element of a window is the largest can be open. Where
it is not, the index is the definition's; where it is, it is one of the window's, and of an element near the largest.
Sums are compared as their distance from those that the definition makes of the dx of the same device.
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import NamedTuple

import numpy as np

from kernels.batch_statistics import GradientSums, Normalization
from kernels.batchnorm import batchnorm_gradient_sums_reference
from kernels.pooling import max_pool2d_backward_reference, max_pool2d_forward_reference
from kernels.storage import FLOAT32, Storage
from minidl.backends import Backend
from minidl.lab import bounds as bounds_of
from minidl.lab.inputs import FAMILIES, Family, integers
from minidl.lab.operations.batchnorm_bounds import GIVEN, elements, sums_bounds
from minidl.lab.operations.batchnorm_statistics import (
    PLAIN,
    affine_parameters,
    fixed_statistics,
    given_statistics,
    read,
)
from minidl.lab.operations.case import Answers, Arrays, Case, Host, Output, Problem, Values, in_all_layouts, label
from minidl.lab.operations.convolution_normalized import GRADIENTS, SUMS, fitting_families
from minidl.lab.operations.convolution_normalized_bounds import activation, masked_bound, wide
from minidl.lab.operations.pooling import CEIL, DILATED, FEW, FOURS, GEOMETRIES, NARROW_GEOMETRIES, Geometry
from minidl.lab.operations.stored import NARROW, half_unit, in_storage

PAIRS = Geometry((2, 8, 8, 16), (2, 2), (2, 2))
OPTIONS = ("no-relu", "no-affine")
WIDE = (
    Geometry((2, 3, 301, 5), (2, 2), (2, 2)),  # lines that are several chunks of sums
    Geometry((1, 2, 40, 35), (2, 3), (2, 5)),
)


class Kind(NamedTuple):
    """What is tried: a family for x, one for dy, a geometry, an option and how images are stored."""

    name: str
    of_x: Family
    of_dy: Family
    geometry: Geometry
    option: str = ""
    storage: Storage = FLOAT32

    def __str__(self) -> str:
        return label(self.name, str(self.geometry), self.option)

    @property
    def relu(self) -> bool:
        """Whether before has one."""
        return self.option != "no-relu"

    def inputs(self, rng: np.random.Generator) -> dict[str, Host]:
        """X and the arrays of a normalization: of its own statistics, or of numbers that have nothing to do with it."""
        x, c = self.of_x(rng, self.geometry.x), self.geometry.x[3]
        statistics = fixed_statistics(rng, c) if self.name.startswith("fixed") else given_statistics(x)
        return {"x": x, **statistics, **affine_parameters(rng, c, self.option != "no-affine")}

    def before(self, a: Arrays) -> Normalization:
        """The normalization among `a`."""
        return Normalization(read(a), a.get("gamma"), a.get("beta"), self.relu)


def _kinds() -> Iterator[Kind]:
    yield from (Kind("ordinary", PLAIN, PLAIN, geometry) for geometry in (*GEOMETRIES, *CEIL, *DILATED, *WIDE))
    few = PAIRS, FOURS
    yield from (Kind("ordinary", PLAIN, PLAIN, *one) for one in product(few, OPTIONS))
    hostile = [(name, family) for name, family in FAMILIES.items() if name != "ordinary"]
    yield from (Kind(name, family, PLAIN, geometry) for (name, family), geometry in product(hostile, (FEW[0], PAIRS)))
    yield from (Kind("integers", integers, PLAIN, geometry) for geometry in (*few, *DILATED))  # full of ties
    for name, geometry in product(("nan", "inf", "minus-inf-and-inf"), (*few, GEOMETRIES[-1])):
        yield Kind(f"fixed-{name}", FAMILIES[name], PLAIN, geometry)


def _stored_kinds() -> Iterator[Kind]:
    """With images in 16 bits."""
    for storage in NARROW:
        known = fitting_families(storage)
        plain = known.pop("ordinary")
        yield from (Kind("ordinary", plain, plain, geometry, "", storage) for geometry in NARROW_GEOMETRIES)
        yield from (Kind("ordinary", plain, plain, NARROW_GEOMETRIES[4], option, storage) for option in OPTIONS)
        yield from (Kind(name, family, plain, NARROW_GEOMETRIES[4], "", storage) for name, family in known.items())


def _gradient_kinds() -> Iterator[Kind]:
    yield from _kinds()
    yield from (Kind(name, PLAIN, family, one) for (name, family), one in product(GRADIENTS.items(), (PAIRS, FOURS)))


def _cases(make: Callable[[Kind, np.random.Generator], Problem], kinds: Iterator[Kind], *images: str) -> Iterator[Case]:
    """Of all kinds; the `images` among their arrays are stored in 16 bits in those that are."""
    for kind in (*kinds, *_stored_kinds()):
        case = Case(str(kind), lambda rng, kind=kind: make(kind, rng))  # type: ignore[misc]
        if kind.storage is not FLOAT32:
            case = in_storage(case, dict.fromkeys(images, kind.storage))
        in_all = kind.name == "ordinary" and kind.geometry in (PAIRS, FOURS) and not kind.option
        yield from in_all_layouts(case) if in_all else (case,)


def _forward(kind: Kind, rng: np.random.Generator) -> Problem:
    geometry, inputs = kind.geometry, kind.inputs(rng)
    known = activation(inputs["x"], kind.before(inputs))
    off = _off(known.value, known.off, inputs["x"], kind.before(inputs))
    around = off + (half_unit(known.value, off, kind.storage) if kind.storage is not FLOAT32 else 0)

    def call(backend: Backend, a: Arrays) -> None:
        backend.max_pool2d_normalized_forward(a["x"], kind.before(a), a["y"], a["index"], *geometry.window)

    def derive(answers: Values) -> Values:
        index = answers["index"].astype(np.int64)
        right = max_pool2d_forward_reference(known.value, *geometry.window)[1]
        is_open, inside = _looked_at(known.value, off, around, right, index, geometry)
        return {
            "y": answers["y"],
            "index": np.where(is_open & inside, -1, index),
            "element": _elements(known.value, np.where(inside, index, 0)),
        }

    def bounds(_: Answers) -> Values:
        most = [max_pool2d_forward_reference(one, *geometry.window)[0] for one in (off, around)]
        return {"y": most[0], "index": 0.0, "element": 2 * most[1]}

    outputs = {"y": Output(geometry.y), "index": Output(geometry.y, np.int32)}
    return Problem(inputs=inputs, outputs=outputs, call=call, derive=derive, bounds=bounds)


def _off(value: Host, off: Host, x: Host, before: Normalization) -> Host:
    """How far off an activation may be: not at all where ReLU surely stops it."""
    if not before.relu:
        return off
    e = elements(x, before.statistics, before.gamma, before.beta, GIVEN)
    return np.where((value == 0) & (e.y + e.y_error <= 0), 0, off)


def _looked_at(value: Host, off: Host, around: Host, right: Host, index: Host, geometry: Geometry) -> tuple[Host, Host]:
    """Whether another element than that of the index `right` may be the largest; and whether `index` is of the window.

    Not if all others stay below it, or are known exactly, and are the same: then the first of them wins. With a NaN
    among them there is no doubt at all.
    """
    (_, height, width, _), (_, ho, wo, _) = geometry.x, geometry.y
    best, exact, lowest = (_elements(array, right) for array in (value, off, value - around))
    is_open, inside = np.zeros(right.shape, bool), np.zeros(right.shape, bool)
    for i, j in product(range(geometry.kernel[0]), range(geometry.kernel[1])):
        row = np.arange(ho) * geometry.stride[0] - geometry.padding[0] + i * geometry.dilation[0]
        column = np.arange(wo) * geometry.stride[1] - geometry.padding[1] + j * geometry.dilation[1]
        real = ((row >= 0) & (row < height))[:, None, None] & ((column >= 0) & (column < width))[:, None]
        place = np.broadcast_to((row[:, None] * width + column)[..., None], right.shape)
        there = np.where(real, place, 0)
        other, of_other, highest = (_elements(array, there) for array in (value, off, value + around))
        same = (other == best) & (exact == 0) & (of_other == 0)
        is_open |= real & (place != right) & ~(highest < lowest) & ~same & ~np.isnan(best)
        inside |= real & (place == index)
    return is_open, inside


def _elements(image: Host, index: Host) -> Host:
    """Those of (n, h, w, c) at places of its images, (n, ho, wo, c)."""
    n, height, width, c = image.shape
    places = index.reshape(n, index.shape[1] * index.shape[2], c).astype(np.int64)
    return np.take_along_axis(image.reshape(n, height * width, c), places, axis=1).reshape(index.shape)


def _backward(kind: Kind, rng: np.random.Generator) -> Problem:
    """The index is of numbers that have nothing to do with x: so dy comes to elements that ReLU stops, too."""
    geometry, inputs = kind.geometry, kind.inputs(rng)
    _, index = max_pool2d_forward_reference(integers(rng, geometry.x), *geometry.window)
    inputs |= {"dy": kind.of_dy(rng, geometry.y), "index": index}
    x, dy, before = inputs["x"], inputs["dy"], kind.before(inputs)
    wanted = SUMS if kind.option != "no-affine" else SUMS[2:]

    def call(backend: Backend, a: Arrays) -> None:
        given = a["x"], kind.before(a), GradientSums(*(a.get(name) for name in SUMS))
        backend.max_pool2d_normalized_backward(a["dy"], a["index"], a["dx"], *geometry.window, *given)

    def derive(answers: Values) -> Values:
        without = wide(before)._replace(relu=False)
        right = batchnorm_gradient_sums_reference(x.astype(np.float64), answers["dx"], without)
        return {"dx": answers["dx"], **{name: answers[name] - getattr(right, name) for name in wanted}}

    def bounds(answers: Answers) -> Values:
        full = max_pool2d_backward_reference(dy.astype(np.float64), index, geometry.x, *geometry.window)
        off = bounds_of.max_pool2d_backward(dy, index, geometry.x, *geometry.window)["dx"]
        e = elements(x, before.statistics, before.gamma, before.beta, GIVEN)
        of_sums = sums_bounds(e, answers.got["dx"], before.statistics.inv_std.astype(np.float64), False)
        return {"dx": masked_bound(full, off, x, before), **{name: of_sums[name] for name in wanted}}

    outputs = {"dx": Output(geometry.x), **{name: Output((geometry.x[3],)) for name in wanted}}
    return Problem(inputs=inputs, outputs=outputs, call=call, derive=derive, bounds=bounds)


CASES = {
    "max_pool2d_normalized_forward": lambda: _cases(_forward, _kinds(), "x", "y"),
    "max_pool2d_normalized_backward": lambda: _cases(_backward, _gradient_kinds(), "x", "dy", "dx"),
}
