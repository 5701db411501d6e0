"""Convolution on tensor cores. Numbers are whole and small, so that every sum is exact, in TF32 too."""

from typing import NamedTuple

import numpy as np
import pytest
from emulated import launched, placed
from numba import int64
from numpy.testing import assert_array_equal

from kernels.conv import (
    conv2d_backward_input,
    conv2d_backward_input_reference,
    conv2d_backward_weight,
    conv2d_backward_weight_reference,
    conv2d_forward,
    conv2d_forward_reference,
)
from kernels.conv.geometry import Geometry
from kernels.conv.tensor_core import (
    conv2d_backward_input_tensor_core,
    conv2d_backward_weight_tensor_core,
    conv2d_forward_tensor_core,
)
from kernels.errors import TechniqueError
from kernels.matmul.tensor_tiles import DEPTH, NARROW, TILES, WIDE, TensorTile
from kernels.matmul.tiles import slices_of
from kernels.run_emulated import EmulatorRunner

TENSOR_CORE = "tensor_core"


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


@pytest.mark.parametrize(
    "case",
    [
        Case((1, 1, 1, 4), (1, 1), 4),
        Case((0, 5, 5, 4), (3, 3), 8, padding=(1, 1)),  # no image
        Case((2, 5, 7, 4), (3, 3), 8, padding=(1, 1)),
        Case((1, 7, 6, 20), (1, 1), 12),
        Case((1, 7, 5, 12), (2, 3), 24, (3, 2), (1, 2)),  # phases with more taps than others
        Case((1, 5, 6, 8), (1, 1), 4, (2, 3)),  # and without any
        Case((1, 2, 3, 4), (5, 4), 8, (2, 3), (3, 2)),  # a kernel larger than the image
        Case((1, 4, 5, 64), (3, 3), 4, padding=(1, 1)),  # slices of taps
        Case((3, 13, 14, 4), (1, 1), 8, padding=(1, 0)),  # slices of pixels
    ],
    ids=name,
)
def test_products_of_whole_numbers_are_exact(rng, case: Case) -> None:
    x, w, dy = (whole(rng, shape) for shape in (case.x, case.w, case.y))
    found = products(case, x, w, dy, technique=TENSOR_CORE)
    for which, right in expected(case, x, w, dy).items():
        assert_array_equal(found[which], right, err_msg=which)


@pytest.mark.parametrize("tile", TILES, ids=lambda tile: f"{tile.rows}x{tile.columns}")
def test_every_tile_with_indices_of_64_bits_and_in_slices(rng, tile: TensorTile) -> None:
    """Two tiles each way, of which the second is one row and four columns; slices of two slabs, the last of a part."""
    across = tile.columns + 4
    forward = Case((1, 1, tile.rows + 1, 36), (1, 2), across, padding=(0, 1))
    x, w, bias = (whole(rng, shape) for shape in (forward.x, forward.w, (across,)))
    run, span = EmulatorRunner(), 2 * DEPTH
    y = np.empty((slices_of(72, span), *forward.y), np.float32)
    run(conv2d_forward_tensor_core(tile, forward.geometry, True, int64), x, w, bias, y, 1, span)
    first = conv2d_forward_reference(x[..., :32], w[:, :, :32], bias, *forward.window)
    assert_array_equal(y.sum(axis=0), conv2d_forward_reference(x, w, bias, *forward.window))
    assert not (y[0] == first).all()  # there is more in it than a slab

    backward = Case((1, 1, tile.rows + 1, across), (1, 2), 36, padding=(0, 1))
    w, dy = (whole(rng, shape) for shape in (backward.w, backward.y))
    dx = np.empty((slices_of(72, span), *backward.x), np.float32)
    run(conv2d_backward_input_tensor_core(tile, backward.geometry, int64), dy, w, dx, 1, span)
    assert_array_equal(dx.sum(axis=0), conv2d_backward_input_reference(dy, w, backward.x, *backward.window))

    weight = Case((1, 5, 13, tile.rows + 4), (1, 1), across, padding=(0, 1))
    x, dy = (whole(rng, shape) for shape in (weight.x, weight.y))
    dw = np.empty((slices_of(75, span), *weight.w), np.float32)
    run(conv2d_backward_weight_tensor_core(tile, weight.geometry, int64), x, dy, dw, 1, span)
    assert_array_equal(dw.sum(axis=0), conv2d_backward_weight_reference(x, dy, weight.w, *weight.window))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "case",
    [
        Case((1, 4, 5, 4), (3, 3), 8, padding=(1, 1)),
        Case((1, 5, 7, 8), (3, 2), 4, (2, 3), (2, 1)),
        Case((1, 3, 2, 4), (3, 3), 60, padding=(1, 1)),  # slices
    ],
    ids=name,
)
def test_what_is_not_finite_goes_where_the_definition_says(rng, case: Case, value: float) -> None:
    """In every factor, at a border: with the padding's zeros, but not with a dy that does not exist."""
    for hostile in ("x", "w", "dy"):
        arrays = {"x": whole(rng, case.x), "w": whole(rng, case.w), "dy": whole(rng, case.y)}
        arrays[hostile].reshape(-1)[0 if hostile == "w" else -1] = value
        found = products(case, **arrays, technique=TENSOR_CORE)
        for which, right in expected(case, **arrays).items():
            assert_array_equal(found[which], right, err_msg=f"{which} of {hostile}")


def test_factors_are_rounded_to_nearest_with_ties_away_from_zero() -> None:
    unit = 2.0**-10  # of TF32, at 1
    given = [1 + unit / 2, 1 + unit / 2 - 2.0**-23, -1 - unit / 2, 1 + unit / 2 + unit]
    rounded = [1 + unit, 1, -1 - unit, 1 + 2 * unit]
    case = Case((1, 2, 2, 4), (1, 1), 4)
    x, w = placed(np.diag(given).reshape(case.x)), placed(np.eye(4).reshape(case.w))
    found = products(case, x, w, placed(np.diag(given).reshape(case.y)), technique=TENSOR_CORE)
    for which in ("y", "dx"):
        assert_array_equal(np.diag(found[which].reshape(4, 4)), rounded)
    assert_array_equal(np.diag(found["dw"].reshape(4, 4)), np.square(rounded).astype(np.float32))


# Images of 8x8, as in a late stage of a network, of channels for a large tile and a narrow one.
REPRESENTATIVE = Case((2, 8, 8, 32), (3, 3), 64, padding=(1, 1))


def test_memory_moves_what_is_asked_for_and_banks_do_not_conflict() -> None:
    """At least 95 % of the bytes moved are asked for; no more than 5 % of the passes over the banks are conflicts."""
    case, run = REPRESENTATIVE, EmulatorRunner(checks=False, counts=True)
    x, w, y = (placed(np.zeros(shape)) for shape in (case.x, case.w, case.y))
    conv2d_forward(run, x, w, None, y, *case.window, technique=TENSOR_CORE)
    conv2d_backward_input(run, y, w, x, *case.window, technique=TENSOR_CORE)
    conv2d_backward_weight(run, x, y, w, *case.window, technique=TENSOR_CORE)
    own = [one for one in run.launched if one.kernel.name.endswith(TENSOR_CORE)]
    assert [one.kernel.arguments[0] for one in own] == [WIDE, NARROW, WIDE]
    for one in own:
        total = one.report.counts.total
        assert total.bytes_asked >= 0.95 * total.bytes_moved
        assert total.bank_conflicts <= 0.05 * total.shared_passes
        # A tile reads for each of its rows and columns what one element needs of x and w, once.
        tile = one.kernel.arguments[0]
        assert total.load_bytes <= 4 * total.flops["tf32"] / 2 * (1 / tile.rows + 1 / tile.columns)
        assert 1 <= total.flops["tf32"] / case.geometry.work(2) <= 1.4  # the last tile of dw is a part
        assert not total.flops["float64"]


@pytest.mark.parametrize(
    ("case", "why"),
    [
        (Case((1, 4, 4, 6), (3, 3), 8), "c_in 6 is no multiple of 4"),
        (Case((1, 4, 4, 8), (3, 3), 7), "c_out 7 is no multiple of 4"),
    ],
    ids=["c_in", "c_out"],
)
def test_channels_that_it_cannot_take(rng, case: Case, why: str) -> None:
    x, w, dy = (whole(rng, shape) for shape in (case.x, case.w, case.y))
    calls = {
        conv2d_forward: (x, w, None, dy),
        conv2d_backward_input: (dy, w, x),
        conv2d_backward_weight: (x, dy, w),
    }
    for host, arrays in calls.items():
        with pytest.raises(TechniqueError, match=f"^{host.__name__} cannot .* 'tensor_core': {why}; implicit_gemm"):
            host(EmulatorRunner(), *arrays, *case.window, technique=TENSOR_CORE)
        assert not any("tensor" in kernel for kernel in launched(host, *arrays, *case.window, precision="tf32"))


@pytest.mark.parametrize("offset", ["x", "w", "y"])
def test_arrays_that_are_not_aligned(rng, offset: str) -> None:
    case = Case((1, 4, 4, 8), (3, 3), 8)
    shapes = {"x": case.x, "w": case.w, "y": case.y}
    x, w, y = (placed(np.zeros(shape), 1 if key == offset else 0) for key, shape in shapes.items())
    with pytest.raises(TechniqueError, match=f": {offset} starts at no multiple of 16 bytes; implicit_gemm or direct"):
        conv2d_forward(EmulatorRunner(), x, w, None, y, *case.window, technique=TENSOR_CORE)
    assert not any("tensor" in kernel for kernel in launched(conv2d_forward, x, w, None, y, *case.window))


def test_tensor_cores_are_taken_where_tf32_is_asked_for() -> None:
    case = Case((1, 4, 4, 8), (3, 3), 8)
    x, w, y = (placed(np.zeros(shape)) for shape in (case.x, case.w, case.y))
    for precision, kernel in (("tf32", "tensor_core"), ("fp32", "implicit_gemm")):
        options = {"precision": precision}
        assert launched(conv2d_forward, x, w, None, y, *case.window, **options) == [f"conv2d_forward_{kernel}"]
        assert launched(conv2d_backward_input, y, w, x, *case.window, **options) == [f"conv2d_backward_input_{kernel}"]
        assert launched(conv2d_backward_weight, x, y, w, *case.window, **options) == [
            f"conv2d_backward_weight_{kernel}"
        ]
    assert launched(conv2d_forward, x, w, None, y, *case.window) == ["conv2d_forward_implicit_gemm"]
    with pytest.raises(ValueError, match="precision 'half' is given, expected fp32 or tf32"):
        conv2d_forward(EmulatorRunner(), x, w, None, y, *case.window, precision="half")


def test_a_shorter_batch_runs_the_same_kernels() -> None:
    case, kernels = Case((8, 16, 16, 16), (3, 3), 16, padding=(1, 1)), []
    for n in (8, 5):
        x, w, y = (placed(np.zeros(shape)) for shape in ((n, *case.x[1:]), case.w, (n, *case.y[1:])))
        names = launched(conv2d_forward, x, w, None, y, *case.window, technique=TENSOR_CORE)
        names += launched(conv2d_backward_input, y, w, x, *case.window, technique=TENSOR_CORE)
        kernels.append(names)
    assert kernels[0] == kernels[1]
