"""Checks of convolution and of the bias gradient.

All three products are bounded by the same product of absolute values, times what one float32 accumulator may lose over
as many terms: see `minidl.lab.bounds`; so are those of tensor cores, whose factors are rounded to TF32 besides.
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from kernels.window import output_size
from minidl.backends import Backend, Pair
from minidl.backends.techniques import WINOGRAD
from minidl.lab import bounds
from minidl.lab.budget import U, merging
from minidl.lab.inputs import FAMILIES, Family, integers, normal, whole
from minidl.lab.operations.case import (
    Answers,
    Arrays,
    Case,
    Output,
    Problem,
    Values,
    exact,
    in_all_layouts,
    label,
    relative,
    within,
)
from minidl.lab.operations.convolution_stored import stored_cases

PLAIN = FAMILIES["ordinary"]


class Geometry(NamedTuple):
    """A convolution: x (n, h, w, c_in), kernel (kh, kw), c_out, stride and padding."""

    x: tuple[int, int, int, int]
    kernel: Pair
    c_out: int
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)

    @property
    def weight(self) -> tuple[int, int, int, int]:
        """(kh, kw, c_in, c_out)."""
        return *self.kernel, self.x[3], self.c_out

    @property
    def y(self) -> tuple[int, int, int, int]:
        """(n, ho, wo, c_out)."""
        sizes = zip(self.x[1:3], self.kernel, self.stride, self.padding, strict=True)
        ho, wo = (output_size(*axis) for axis in sizes)
        return self.x[0], ho, wo, self.c_out

    def __str__(self) -> str:
        return "-".join(f"{letter}{label(numbers)}" for letter, numbers in zip("xkosp", self, strict=True))


GEOMETRIES = (
    Geometry((1, 1, 1, 1), (1, 1), 1),  # one image, one pixel, one channel
    Geometry((0, 5, 5, 3), (3, 3), 2, padding=(1, 1)),  # no image
    Geometry((2, 5, 7, 3), (1, 1), 5),
    Geometry((1, 8, 8, 1), (3, 3), 16, padding=(1, 1)),
    Geometry((3, 7, 11, 5), (3, 3), 17, padding=(1, 1)),
    Geometry((2, 9, 9, 2), (3, 3), 3, stride=(2, 2), padding=(1, 1)),
    Geometry((2, 13, 11, 3), (3, 3), 4, stride=(3, 3)),  # the last columns are in no window
    Geometry((2, 11, 7, 2), (2, 3), 3, stride=(1, 2), padding=(0, 1)),
    Geometry((2, 6, 9, 3), (2, 3), 2, stride=(3, 1), padding=(2, 0)),
    Geometry((1, 10, 10, 2), (5, 5), 3, padding=(2, 2)),
    Geometry((2, 17, 19, 3), (7, 7), 8, stride=(2, 2), padding=(3, 3)),
    Geometry((2, 9, 8, 3), (1, 1), 4, stride=(2, 2)),  # stride larger than the kernel
    Geometry((1, 11, 13, 2), (2, 2), 3, stride=(3, 5)),
    Geometry((2, 4, 4, 2), (1, 1), 3, padding=(2, 1)),  # windows that are all padding
    Geometry((1, 3, 3, 2), (3, 3), 2, padding=(3, 3)),
    Geometry((2, 7, 7, 2), (7, 7), 3),  # one window
    Geometry((1, 5, 5, 33), (3, 3), 64, padding=(1, 1)),
    Geometry((5, 28, 28, 16), (3, 3), 33, padding=(1, 1)),  # several tiles of every kind, several threads
    Geometry((3, 64, 50, 16), (3, 3), 16, stride=(1, 1), padding=(1, 1)),
    Geometry((2, 5, 11, 2), (2, 4), 3, stride=(1, 3), padding=(0, 1)),  # padded by a third of the stride
)
FEW = (GEOMETRIES[4], GEOMETRIES[7], GEOMETRIES[10])
IN_FOURS = (  # what tensor cores take; tiles are 64 or 128 by 32, 64 or 128, slabs 32 deep, slices at least 256
    Geometry((1, 1, 1, 4), (1, 1), 4),
    Geometry((0, 5, 5, 4), (3, 3), 8, padding=(1, 1)),
    Geometry((2, 5, 7, 4), (3, 3), 8, padding=(1, 1)),  # a slab of taps is 8 positions
    Geometry((1, 11, 9, 12), (3, 5), 24, stride=(2, 1), padding=(1, 2)),  # slabs that end within a position
    Geometry((2, 9, 7, 20), (1, 1), 72),  # a product of matrices; several tiles across
    Geometry((1, 9, 8, 20), (1, 1), 12, stride=(2, 2)),  # phases without a tap
    Geometry((1, 9, 10, 64), (3, 3), 8, stride=(2, 2), padding=(1, 1)),  # slices of taps
    Geometry((1, 3, 4, 8), (3, 3), 36, padding=(2, 2)),  # windows of which little is in the image
    Geometry((1, 13, 15, 4), (7, 7), 68, stride=(2, 3), padding=(3, 3)),  # several tiles each way
    Geometry((3, 17, 13, 8), (5, 5), 132, padding=(2, 2)),  # slices of pixels and of taps, tiles of every size
)
HOSTILE = (*FEW[:2], IN_FOURS[3])
STORED = (  # with images in 16 bits; slabs are 64 deep
    Geometry((2, 5, 7, 8), (3, 3), 16, padding=(1, 1)),
    GEOMETRIES[4],
    Geometry((1, 11, 9, 24), (3, 5), 40, stride=(2, 1), padding=(1, 2)),
    Geometry((1, 1, 1, 8), (1, 1), 8),
    Geometry((0, 5, 5, 8), (3, 3), 8, padding=(1, 1)),
    Geometry((2, 9, 7, 72), (1, 1), 136),
    Geometry((1, 9, 8, 40), (1, 1), 24, stride=(2, 2)),
    Geometry((1, 9, 10, 64), (3, 3), 8, stride=(2, 2), padding=(1, 1)),  # slices of taps
    Geometry((3, 17, 13, 8), (5, 5), 136, padding=(2, 2)),  # slices of pixels and of taps
)
IMAGES = GEOMETRIES[3], GEOMETRIES[10], GEOMETRIES[9]  # of a first layer, in float32


def _all_kinds() -> Iterator[tuple[str, Family, Family, Geometry]]:
    """(name, family of one factor, of the other, geometry)."""
    yield from (("ordinary", PLAIN, PLAIN, geometry) for geometry in (*GEOMETRIES, *IN_FOURS))
    hostile = ((name, family) for name, family in FAMILIES.items() if name != "ordinary")
    yield from ((name, family, PLAIN, geometry) for (name, family), geometry in product(hostile, HOSTILE))
    yield from (("integers", integers, integers, geometry) for geometry in (*FEW, GEOMETRIES[17], *IN_FOURS[2:]))


def _cases(make: "type[_Forward | _BackwardInput | _BackwardWeight]") -> Iterator[Case]:
    for name, first, second, geometry in _all_kinds():
        case = Case(label(name, str(geometry)), make(geometry, first, second, is_exact=name == "integers"))
        yield from in_all_layouts(case) if name == "ordinary" and geometry in (FEW[0], IN_FOURS[2]) else (case,)


class _Product:
    """What the three have in common: two factors and one result."""

    def __init__(
        self, geometry: Geometry, first: Family, second: Family, is_exact: bool, precision: str = "tf32"
    ) -> None:
        self.geometry, self.first, self.second, self.is_exact = geometry, first, second, is_exact
        self.precision = precision  # of tensor cores

    def fp32(self, of_rounding: Callable[..., Values], *given: Any) -> Callable[[Answers], Values]:
        """The bounds, of which `of_rounding` knows by what is given and the precision."""
        return exact if self.is_exact else within(**of_rounding(*given, "fp32"))

    def later(self, precision: str, of_rounding: Callable[..., Values], *given: Any) -> Callable[[Answers], Values]:
        """The same in another precision; worked out when it is asked for."""
        # The transforms of Winograd's technique round whole numbers too.
        is_exact = self.is_exact and precision != WINOGRAD
        return exact if is_exact else lambda answers: within(**of_rounding(*given, precision))(answers)


class _Forward(_Product):
    """The first factor is x, the second w and bias."""

    with_bias = False

    def __call__(self, rng: np.random.Generator) -> Problem:
        shape, weight, c_out = self.geometry.x, self.geometry.weight, self.geometry.c_out
        inputs = {"x": self.first(rng, shape), "w": self.second(rng, weight)}
        if self.with_bias:
            inputs["bias"] = self.second(rng, (c_out,))
        window = self.geometry.stride, self.geometry.padding
        given = inputs["x"], inputs["w"], inputs.get("bias"), *window

        def call(backend: Backend, a: Arrays) -> None:
            backend.conv2d_forward(a["x"], a["w"], a.get("bias"), a["y"], *window)

        return Problem(
            inputs=inputs,
            outputs={"y": Output(self.geometry.y)},
            call=call,
            bounds=self.fp32(bounds.conv2d_forward, *given),
            tf32_bounds=self.later(self.precision, bounds.conv2d_forward, *given),
            winograd_bounds=self.later(WINOGRAD, bounds.conv2d_forward, *given),
        )


class _ForwardWithBias(_Forward):
    with_bias = True


class _BackwardInput(_Product):
    """The first factor is dy, the second w."""

    def __call__(self, rng: np.random.Generator) -> Problem:
        geometry = self.geometry
        inputs = {"dy": self.first(rng, geometry.y), "w": self.second(rng, geometry.weight)}
        window = geometry.stride, geometry.padding
        given = inputs["dy"], inputs["w"], geometry.x, *window
        return Problem(
            inputs=inputs,
            outputs={"dx": Output(geometry.x)},
            call=lambda backend, a: backend.conv2d_backward_input(a["dy"], a["w"], a["dx"], *window),
            bounds=self.fp32(bounds.conv2d_backward_input, *given),
            tf32_bounds=self.later(self.precision, bounds.conv2d_backward_input, *given),
            winograd_bounds=self.later(WINOGRAD, bounds.conv2d_backward_input, *given),
        )


class _BackwardWeight(_Product):
    """The first factor is x, the second dy."""

    def __call__(self, rng: np.random.Generator) -> Problem:
        geometry = self.geometry
        inputs = {"x": self.first(rng, geometry.x), "dy": self.second(rng, geometry.y)}
        window = geometry.stride, geometry.padding
        given = inputs["x"], inputs["dy"], geometry.weight, *window
        return Problem(
            inputs=inputs,
            outputs={"dw": Output(geometry.weight)},
            call=lambda backend, a: backend.conv2d_backward_weight(a["x"], a["dy"], a["dw"], *window),
            bounds=self.fp32(bounds.conv2d_backward_weight, *given),
            tf32_bounds=self.later(self.precision, bounds.conv2d_backward_weight, *given),
            winograd_bounds=self.later(WINOGRAD, bounds.conv2d_backward_weight, *given),
        )


def forward_cases() -> Iterator[Case]:
    """Of conv2d_forward."""
    yield from _cases(_Forward)
    yield from (
        case._replace(name=f"{case.name}/bias") for case in _cases(_ForwardWithBias) if case.layout == "aligned"
    )
    yield from _hostile_second("w", _Forward)
    yield from stored_cases(_Forward, ("x", "y"), STORED, IMAGES)
    yield from stored_cases(_ForwardWithBias, ("x", "y"), STORED[:2], IMAGES[:1], "bias")


def backward_input_cases() -> Iterator[Case]:
    """Of conv2d_backward_input; also with the hostile numbers in w, where no product with what is not there counts."""
    yield from _cases(_BackwardInput)
    yield from _hostile_second("w", _BackwardInput)
    yield from stored_cases(_BackwardInput, ("dy", "dx"), STORED)


def backward_weight_cases() -> Iterator[Case]:
    """Of conv2d_backward_weight; also with the hostile numbers in dy."""
    yield from _cases(_BackwardWeight)
    yield from _hostile_second("dy", _BackwardWeight)
    yield from stored_cases(_BackwardWeight, ("x", "dy"), STORED, IMAGES)


def _hostile_second(argument: str, make: "type[_Forward | _BackwardInput | _BackwardWeight]") -> Iterator[Case]:
    """The hostile numbers in the second factor, which is called `argument`."""
    for (name, family), geometry in product(FAMILIES.items(), HOSTILE[1:]):
        yield Case(label(f"{argument}-{name}", str(geometry)), make(geometry, PLAIN, family, is_exact=False))


def bias_backward_cases() -> Iterator[Case]:
    """Of bias_backward: the sum of all rows."""

    def case(name: str, family: Family, shape: tuple[int, ...]) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            dy = family(rng, shape)
            of_rounding = within(**bounds.bias_backward(dy))
            if name == "integers":
                of_rounding = exact
            elif name == "whole":  # partial sums are exact: what rounds is adding them up, and the result
                of_rounding = relative(merging(shape[0]) / U + 1)
            return Problem(
                inputs={"dy": dy},
                outputs={"db": Output(shape[-1:])},
                call=lambda backend, a: backend.bias_backward(a["dy"], a["db"]),
                bounds=of_rounding,
            )

        return Case(label(name, shape), make)

    shapes: tuple[tuple[int, ...], ...] = (
        (0, 3), (1, 1), (1, 5), (2, 3), (127, 1), (128, 2), (129, 17), (2, 7, 11, 33), (4097, 16), (70001, 1),
    )  # fmt: skip
    for shape in shapes:
        one = case("ordinary", PLAIN, shape)
        yield from in_all_layouts(one) if shape == (129, 17) else (one,)
    for (name, family), shape in product(FAMILIES.items(), ((130, 5), (5001, 6))):
        yield case(name, family, shape)
    yield case("mean-1", normal(1, 0.1), (70001, 2))
    yield case("integers", integers, (5001, 5))
    yield case("whole", whole(61003, 0), (2**20, 2))


CASES = {
    "conv2d_forward": forward_cases,
    "conv2d_backward_input": backward_input_cases,
    "conv2d_backward_weight": backward_weight_cases,
    "bias_backward": bias_backward_cases,
}
