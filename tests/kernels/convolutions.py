"""Convolutions to test: what they are, their three products by a technique and by the definition."""

from typing import NamedTuple

import numpy as np
from emulated import placed

from kernels.conv import (
    conv2d_backward_input,
    conv2d_backward_input_reference,
    conv2d_backward_weight,
    conv2d_backward_weight_reference,
    conv2d_forward,
    conv2d_forward_reference,
)
from kernels.conv.geometry import Geometry
from kernels.run_emulated import EmulatorRunner


class Case(NamedTuple):
    """x (n, h, w, c_in), kernel, c_out, stride and padding."""

    x: tuple[int, int, int, int]
    kernel: tuple[int, int]
    c_out: int
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)

    @property
    def geometry(self) -> Geometry:
        return Geometry(*self.x[1:], *self.kernel, self.c_out, *self.stride, *self.padding)

    @property
    def w(self) -> tuple[int, int, int, int]:
        return *self.kernel, self.x[3], self.c_out

    @property
    def y(self) -> tuple[int, int, int, int]:
        return self.x[0], self.geometry.ho, self.geometry.wo, self.c_out

    @property
    def window(self) -> tuple[tuple[int, int], tuple[int, int]]:
        return self.stride, self.padding


def whole(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return placed(rng.integers(-3, 4, shape))


def name(case: Case) -> str:
    return "-".join("x".join(map(str, part)) if isinstance(part, tuple) else str(part) for part in case)


def products(case: Case, x: np.ndarray, w: np.ndarray, dy: np.ndarray, **options: str) -> dict[str, np.ndarray]:
    """All three, without a bias."""
    found = {"y": np.empty_like(dy), "dx": np.empty_like(x), "dw": np.empty_like(w)}
    run = EmulatorRunner()
    conv2d_forward(run, x, w, None, found["y"], *case.window, **options)
    conv2d_backward_input(run, dy, w, found["dx"], *case.window, **options)
    conv2d_backward_weight(run, x, dy, found["dw"], *case.window, **options)
    return found


def expected(case: Case, x: np.ndarray, w: np.ndarray, dy: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "y": conv2d_forward_reference(x, w, None, *case.window),
        "dx": conv2d_backward_input_reference(dy, w, x.shape, *case.window),
        "dw": conv2d_backward_weight_reference(x, dy, w.shape, *case.window),
    }


CALLS = (conv2d_forward, conv2d_backward_input, conv2d_backward_weight)


def arguments(case: Case) -> list[tuple[np.ndarray | None, ...]]:
    """Of each of CALLS."""
    x, w, y = (placed(np.zeros(shape)) for shape in (case.x, case.w, case.y))
    return [(x, w, None, y), (y, w, x), (x, y, w)]
