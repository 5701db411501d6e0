"""Checks of pooling. The maximum and its index are exact; averages are sums of at most a window's elements."""

import functools
from collections.abc import Callable, Iterator
from itertools import product
from typing import NamedTuple

import numpy as np

from kernels.pooling import max_pool2d_forward_reference
from kernels.storage import FLOAT32, Storage
from kernels.window import pooled_size
from minidl.backends import Pair
from minidl.lab import bounds
from minidl.lab.inputs import FAMILIES, Family, integers
from minidl.lab.operations.case import Case, Host, Output, Problem, exact, in_all_layouts, label, relative, within
from minidl.lab.operations.stored import NARROW, families, in_storage

PLAIN = FAMILIES["ordinary"]


class Geometry(NamedTuple):
    """A pooling: x (n, h, w, c) and the window; averages have no dilation."""

    x: tuple[int, int, int, int]
    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    ceil_mode: bool = False

    @property
    def y(self) -> tuple[int, int, int, int]:
        """(n, ho, wo, c)."""
        sizes = zip(self.x[1:3], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        ho, wo = (pooled_size(*axis, self.ceil_mode) for axis in sizes)
        return self.x[0], ho, wo, self.x[3]

    @property
    def window(self) -> tuple[Pair, Pair, Pair, Pair, bool]:
        """The arguments of the maximum's operations."""
        return self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode

    def averaged(self, count_include_pad: bool) -> tuple[Pair, Pair, Pair, bool, bool]:
        """The arguments of the average's operations."""
        return self.kernel, self.stride, self.padding, count_include_pad, self.ceil_mode

    def __str__(self) -> str:
        parts = zip("xksp", self[:4], strict=True)
        dilation = f"-d{label(self.dilation)}" if self.dilation != (1, 1) else ""
        text = "-".join(f"{letter}{label(numbers)}" for letter, numbers in parts)
        return text + dilation + ("-ceil" if self.ceil_mode else "")


FOURS = Geometry((2, 9, 7, 12), (3, 3), (2, 1), (1, 1))  # channels in fours, at edges and in overlapping windows
GEOMETRIES = (
    Geometry((1, 1, 1, 1), (1, 1), (1, 1)),
    Geometry((0, 4, 4, 3), (2, 2), (2, 2)),
    Geometry((2, 8, 8, 16), (2, 2), (2, 2)),
    Geometry((3, 7, 9, 5), (3, 3), (2, 2), (1, 1)),
    Geometry((2, 7, 11, 3), (3, 3), (1, 1), (1, 1)),  # overlapping windows
    Geometry((2, 8, 7, 2), (2, 3), (1, 2), (1, 1)),
    Geometry((2, 11, 10, 3), (2, 2), (3, 3)),  # elements in no window
    Geometry((1, 9, 9, 2), (5, 5), (1, 1), (2, 2)),
    Geometry((2, 6, 6, 1), (4, 4), (1, 3), (2, 2)),
    Geometry((2, 5, 3, 17), (5, 3), (5, 3)),  # one window
    Geometry((2, 6, 5, 3), (3, 2), (2, 1), (1, 0)),  # padding along one axis
    Geometry((2, 5, 6, 3), (2, 3), (1, 2), (0, 1)),
    FOURS,
    Geometry((1, 5, 6, 4), (3, 3), (1, 1), (1, 1)),  # windows beyond the last, in fours
    Geometry((9, 28, 28, 33), (2, 2), (2, 2)),  # several threads
    Geometry((2, 8, 11, 3), (2, 2), (3, 3)),  # elements between windows, none behind the last
)
CEIL = (
    Geometry((2, 7, 9, 5), (2, 2), (2, 2), ceil_mode=True),  # windows that end beyond the image
    Geometry((2, 9, 11, 3), (3, 2), (2, 3), (1, 1), ceil_mode=True),  # across, the last would begin in the padding
    Geometry((3, 6, 7, 4), (3, 3), (2, 2), (1, 1), ceil_mode=True),  # beyond the padding, in fours
    Geometry((2, 2, 3, 8), (3, 5), (2, 3), (0, 2), ceil_mode=True),  # down, one window that is larger than the image
    Geometry((2, 8, 8, 3), (2, 2), (2, 2), ceil_mode=True),  # nothing is left over
    Geometry((1, 5, 5, 2), (1, 1), (3, 3), ceil_mode=True),
)
DILATED = (
    Geometry((2, 9, 11, 3), (3, 2), (1, 2), (1, 1), (2, 3)),
    Geometry((2, 8, 9, 12), (2, 3), (2, 1), (1, 1), (3, 2)),
    Geometry((1, 7, 7, 4), (3, 3), (3, 3), (1, 0), (3, 2), ceil_mode=True),
    Geometry((2, 6, 5, 5), (3, 3), (2, 2), (1, 1), (2, 1), ceil_mode=True),
)
FEW = (GEOMETRIES[3], GEOMETRIES[4], FOURS)
KINDS: tuple[tuple[str, Family, Geometry], ...] = (
    *(("ordinary", PLAIN, geometry) for geometry in (*GEOMETRIES, *CEIL)),
    *((name, family, geometry) for (name, family), geometry in product(FAMILIES.items(), FEW) if name != "ordinary"),
    *(("integers", integers, geometry) for geometry in (*GEOMETRIES[2:], *CEIL)),  # full of ties
)
MAXIMUM_KINDS: tuple[tuple[str, Family, Geometry], ...] = (
    *KINDS,
    *((name, family, geometry) for (name, family), geometry in product(
        (("ordinary", PLAIN), ("integers", integers), ("nan", FAMILIES["nan"])), DILATED)),
)  # fmt: skip


# In 16 bits: elements alone, channels in eights (of two groups) and images of which a tile is a part.
EIGHTS = Geometry((2, 9, 7, 16), (3, 3), (2, 1), (1, 1))
NARROW_GEOMETRIES = (
    Geometry((0, 4, 4, 8), (2, 2), (2, 2)),
    GEOMETRIES[3],
    FOURS,  # no multiple of 8
    EIGHTS,
    Geometry((2, 8, 8, 24), (2, 2), (2, 2)),
    Geometry((1, 13, 37, 72), (3, 3), (2, 2), (1, 1)),
    Geometry((3, 6, 7, 8), (3, 3), (2, 2), (1, 1), ceil_mode=True),
)


def _narrow(case: Callable[..., Case], *arrays: str, rounds: bool) -> Iterator[Case]:
    """The cases of both storages; `case` makes one of a name, a family, and a geometry."""
    for storage in NARROW:
        known, stored = families(storage), dict.fromkeys(arrays, storage)
        for geometry in NARROW_GEOMETRIES:
            one = in_storage(case("ordinary", known["ordinary"], geometry), stored, rounds)
            yield from in_all_layouts(one) if geometry == EIGHTS else (one,)
        for name, family in known.items():
            if name != "ordinary" and not (rounds and _overflows(name, storage)):
                yield in_storage(case(name, family, EIGHTS), stored, rounds)


def _overflows(name: str, storage: Storage) -> bool:
    """Whether sums of a family's numbers are beyond float32 on their way: then the order decides what they are."""
    return name == "largest" and storage.most == FLOAT32.most


def _with_layouts(case: Case, geometry: Geometry) -> Iterator[Case]:
    all_layouts = case.name.startswith("ordinary") and geometry in (FEW[0], FOURS)
    yield from in_all_layouts(case) if all_layouts else (case,)


def max_forward_cases() -> Iterator[Case]:
    """Of max_pool2d_forward."""

    def case(name: str, family: Family, geometry: Geometry) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            return Problem(
                inputs={"x": family(rng, geometry.x)},
                outputs={"y": Output(geometry.y), "index": Output(geometry.y, np.int32)},
                call=lambda backend, a: backend.max_pool2d_forward(a["x"], a["y"], a["index"], *geometry.window),
                bounds=exact,
            )

        return Case(label(name, str(geometry)), make)

    for kind in MAXIMUM_KINDS:
        yield from _with_layouts(case(*kind), kind[2])
    for geometry in (*FEW, *CEIL, *DILATED):
        yield case("all-minus-inf", _all_minus_inf, geometry)
    yield from _narrow(case, "x", "y", rounds=False)


def _all_minus_inf(rng: np.random.Generator, shape: tuple[int, ...]) -> Host:
    del rng
    return np.full(shape, -np.inf, np.float32)


def max_backward_cases() -> Iterator[Case]:
    """Of max_pool2d_backward. The index is the reference's, of inputs that make ties and long chains of one maximum."""

    def case(name: str, family: Family, geometry: Geometry) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            x = integers(rng, geometry.x)
            _, index = max_pool2d_forward_reference(x, *geometry.window)
            dy = family(rng, geometry.y)
            of_rounding = bounds.max_pool2d_backward(dy, index, geometry.x, *geometry.window)
            return Problem(
                inputs={"dy": dy, "index": index},
                outputs={"dx": Output(geometry.x)},
                call=lambda backend, a: backend.max_pool2d_backward(a["dy"], a["index"], a["dx"], *geometry.window),
                bounds=exact if name == "integers" else within(**of_rounding),
            )

        return Case(label(name, str(geometry)), make)

    for kind in MAXIMUM_KINDS:
        yield from _with_layouts(case(*kind), kind[2])
    yield from _narrow(case, "dy", "dx", rounds=True)


def avg_forward_cases() -> Iterator[Case]:
    """Of avg_pool2d_forward."""

    def case(name: str, family: Family, geometry: Geometry, padded: bool) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            x, options = family(rng, geometry.x), geometry.averaged(padded)
            return Problem(
                inputs={"x": x},
                outputs={"y": Output(geometry.y)},
                call=lambda backend, a: backend.avg_pool2d_forward(a["x"], a["y"], *options),
                bounds=within(**bounds.avg_pool2d_forward(x, *options)),
            )

        return Case(label(name, str(geometry), "count-pad" if padded else ""), make)

    for kind, padded in product(KINDS, (True, False)):
        yield from _with_layouts(case(*kind, padded), kind[2])
    yield from _narrow(functools.partial(case, padded=False), "x", "y", rounds=True)


def avg_backward_cases() -> Iterator[Case]:
    """Of avg_pool2d_backward."""

    def case(name: str, family: Family, geometry: Geometry, padded: bool) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            dy, options = family(rng, geometry.y), geometry.averaged(padded)
            return Problem(
                inputs={"dy": dy},
                outputs={"dx": Output(geometry.x)},
                call=lambda backend, a: backend.avg_pool2d_backward(a["dy"], a["dx"], *options),
                bounds=within(**bounds.avg_pool2d_backward(dy, geometry.x, *options)),
            )

        return Case(label(name, str(geometry), "count-pad" if padded else ""), make)

    for kind, padded in product(KINDS, (True, False)):
        yield from _with_layouts(case(*kind, padded), kind[2])
    yield from _narrow(functools.partial(case, padded=False), "dy", "dx", rounds=True)


IMAGES: tuple[tuple[int, int, int, int], ...] = (
    (1, 1, 1, 1), (0, 3, 3, 2), (2, 1, 5, 3), (3, 7, 11, 17), (2, 4, 4, 64), (2, 31, 29, 5), (5, 56, 56, 16),
)  # fmt: skip
GLOBAL_KINDS: tuple[tuple[str, Family, tuple[int, int, int, int]], ...] = (
    *(("ordinary", PLAIN, shape) for shape in IMAGES),
    *((name, family, (3, 7, 11, 5)) for name, family in FAMILIES.items()),
    ("integers", integers, (3, 8, 8, 5)),
)


NARROW_IMAGES: tuple[tuple[int, int, int, int], ...] = (0, 3, 3, 8), (3, 7, 11, 17), (2, 4, 4, 64), (2, 31, 29, 8)


def _narrow_global(case: Callable[..., Case], image: str, rounds: bool) -> Iterator[Case]:
    """The cases of both storages; `case` makes one of a name, a family, and the image's shape."""
    for storage in NARROW:
        known, stored = families(storage), {image: storage}
        for shape in NARROW_IMAGES:
            one = in_storage(case("ordinary", known["ordinary"], shape), stored, rounds)
            yield from in_all_layouts(one) if shape[3] == 64 else (one,)
        for name, family in known.items():
            if not _overflows(name, storage):
                yield in_storage(case(name, family, (3, 7, 11, 8)), stored, rounds)


def global_forward_cases() -> Iterator[Case]:
    """Of global_avg_pool2d_forward."""

    def case(name: str, family: Family, shape: tuple[int, int, int, int]) -> Case:
        n, _, _, c = shape

        def make(rng: np.random.Generator) -> Problem:
            x = family(rng, shape)
            return Problem(
                inputs={"x": x},
                outputs={"y": Output((n, c))},
                call=lambda backend, a: backend.global_avg_pool2d_forward(a["x"], a["y"]),
                # 64 pixels: the division is exact too.
                bounds=exact if name == "integers" else within(**bounds.global_avg_pool2d_forward(x)),
            )

        return Case(label(name, shape), make)

    for name, family, shape in GLOBAL_KINDS:
        one = case(name, family, shape)
        yield from in_all_layouts(one) if name == "ordinary" and shape[3] in (17, 64) else (one,)
    yield from _narrow_global(case, "x", rounds=False)


def global_backward_cases() -> Iterator[Case]:
    """Of global_avg_pool2d_backward."""

    def case(name: str, family: Family, shape: tuple[int, int, int, int]) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            dy = family(rng, (shape[0], shape[3]))
            return Problem(
                inputs={"dy": dy},
                outputs={"dx": Output(shape)},
                call=lambda backend, a: backend.global_avg_pool2d_backward(a["dy"], a["dx"]),
                bounds=relative(2),  # one division, or a reciprocal and a product
            )

        return Case(label(name, shape), make)

    for name, family, shape in GLOBAL_KINDS:
        one = case(name, family, shape)
        yield from in_all_layouts(one) if name == "ordinary" and shape[3] in (17, 64) else (one,)
    yield from _narrow_global(case, "dx", rounds=True)


CASES = {
    "max_pool2d_forward": max_forward_cases,
    "max_pool2d_backward": max_backward_cases,
    "avg_pool2d_forward": avg_forward_cases,
    "avg_pool2d_backward": avg_backward_cases,
    "global_avg_pool2d_forward": global_forward_cases,
    "global_avg_pool2d_backward": global_backward_cases,
}
