import numpy as np
import pytest
from convolutions import Case, name, whole
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
from kernels.conv.direct import (
    conv2d_backward_input_direct,
    conv2d_backward_weight_direct,
    conv2d_forward_direct,
)
from kernels.conv.implicit_gemm import (
    conv2d_backward_input_implicit_gemm,
    conv2d_backward_weight_implicit_gemm,
    conv2d_forward_implicit_gemm,
)
from kernels.errors import ShapeError
from kernels.matmul.tiles import TILES, Tile, slices_of
from kernels.run_emulated import EmulatorRunner
from kernels.storage import FLOAT32

TECHNIQUES = "direct", "implicit_gemm"  # which take everything


CASES = [
    Case((1, 1, 1, 1), (1, 1), 1),
    Case((2, 5, 7, 3), (1, 1), 5),
    Case((1, 8, 8, 1), (3, 3), 15, padding=(1, 1)),  # 64 pixels
    Case((1, 9, 7, 2), (3, 3), 16, padding=(1, 1)),  # 63
    Case((1, 13, 5, 5), (3, 3), 17, padding=(1, 1)),  # 65
    Case((2, 8, 8, 3), (3, 3), 31, padding=(1, 1)),  # 128
    Case((1, 43, 3, 16), (3, 3), 32, padding=(1, 1)),  # 129; a slab of depth is one tap
    Case((1, 5, 5, 33), (3, 3), 64, padding=(1, 1)),
    Case((1, 4, 4, 17), (2, 2), 65),
    Case((2, 9, 9, 2), (3, 3), 3, stride=(2, 2), padding=(1, 1)),
    Case((2, 13, 11, 3), (3, 3), 4, stride=(3, 3)),  # the last columns are in no window
    Case((2, 11, 7, 2), (2, 3), 3, stride=(1, 2), padding=(0, 1)),
    Case((2, 6, 9, 3), (2, 3), 2, stride=(3, 1), padding=(2, 0)),
    Case((1, 11, 9, 2), (4, 5), 3, stride=(3, 2), padding=(3, 4)),  # phases with more taps than others
    Case((2, 9, 8, 3), (1, 1), 4, stride=(2, 2)),  # a stride larger than the kernel: phases without a tap
    Case((1, 11, 13, 2), (2, 2), 3, stride=(3, 5)),
    Case((2, 4, 4, 2), (1, 1), 3, padding=(2, 1)),  # windows that are all padding
    Case((1, 3, 3, 2), (3, 3), 2, padding=(5, 4)),
    Case((1, 2, 3, 2), (5, 4), 3, stride=(2, 3), padding=(3, 2)),  # a kernel larger than the image
    Case((2, 7, 7, 2), (7, 7), 3),  # one window
    Case((3, 16, 14, 12), (3, 3), 10, padding=(1, 1)),  # slices of taps and of pixels
    Case((0, 5, 5, 3), (3, 3), 2, padding=(1, 1)),  # no image
]


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("case", CASES, ids=name)
def test_products_of_whole_numbers_are_exact(rng, case: Case, technique: str) -> None:
    x, w, bias, dy = (whole(rng, shape) for shape in (case.x, case.w, (case.c_out,), case.y))
    y, dx, dw = np.empty_like(dy), np.empty_like(x), np.empty_like(w)
    run = EmulatorRunner()
    conv2d_forward(run, x, w, None, y, *case.window, technique=technique)
    assert_array_equal(y, conv2d_forward_reference(x, w, None, *case.window))
    conv2d_forward(run, x, w, bias, y, *case.window, technique=technique)
    assert_array_equal(y, conv2d_forward_reference(x, w, bias, *case.window))
    conv2d_backward_input(run, dy, w, dx, *case.window, technique=technique)
    assert_array_equal(dx, conv2d_backward_input_reference(dy, w, x.shape, *case.window))
    conv2d_backward_weight(run, x, dy, dw, *case.window, technique=technique)
    assert_array_equal(dw, conv2d_backward_weight_reference(x, dy, w.shape, *case.window))


TILED = Case((2, 13, 6, 3), (3, 4), 21, stride=(2, 1), padding=(2, 1))


@pytest.mark.parametrize("tile", TILES, ids=lambda tile: f"{tile.rows}x{tile.columns}")
def test_every_tile_with_indices_of_64_bits_and_in_slices(rng, tile: Tile) -> None:
    case, n = TILED, TILED.x[0]
    x, w, bias, dy = (whole(rng, shape) for shape in (case.x, case.w, (case.c_out,), case.y))
    run, span = EmulatorRunner(), tile.depth

    def slices(depth: int, shape: tuple[int, ...]) -> np.ndarray:
        assert slices_of(depth, span) > 1
        return np.empty((slices_of(depth, span), *shape), np.float32)

    y = slices(case.geometry.taps, case.y)
    run(conv2d_forward_implicit_gemm(tile, case.geometry, True, int64, FLOAT32, FLOAT32), x, w, bias, y, n, span)
    assert_array_equal(y.sum(axis=0), conv2d_forward_reference(x, w, bias, *case.window))
    dx = slices(case.geometry.input_products()[2], case.x)
    run(conv2d_backward_input_implicit_gemm(tile, case.geometry, int64, FLOAT32, FLOAT32), dy, w, dx, n, span)
    assert_array_equal(dx.sum(axis=0), conv2d_backward_input_reference(dy, w, x.shape, *case.window))
    dw = slices(n * case.geometry.ho * case.geometry.wo, case.w)
    run(conv2d_backward_weight_implicit_gemm(tile, case.geometry, int64, FLOAT32, FLOAT32), x, dy, dw, n, span)
    assert_array_equal(dw.sum(axis=0), conv2d_backward_weight_reference(x, dy, w.shape, *case.window))


def test_direct_with_indices_of_64_bits(rng) -> None:
    case, n = TILED, TILED.x[0]
    x, w, bias, dy = (whole(rng, shape) for shape in (case.x, case.w, (case.c_out,), case.y))
    y, dx, dw = np.empty_like(dy), np.empty_like(x), np.empty((2, *w.shape), np.float32)
    run, rows = EmulatorRunner(), n * case.geometry.ho * case.geometry.wo
    run(conv2d_forward_direct(case.geometry, True, int64, FLOAT32, FLOAT32), x, w, bias, y, n)
    assert_array_equal(y, conv2d_forward_reference(x, w, bias, *case.window))
    run(conv2d_backward_input_direct(case.geometry, int64, FLOAT32, FLOAT32), dy, w, dx, n)
    assert_array_equal(dx, conv2d_backward_input_reference(dy, w, x.shape, *case.window))
    run(conv2d_backward_weight_direct(case.geometry, int64, FLOAT32, FLOAT32), x, dy, dw, n, rows - 5, 2)
    assert_array_equal(dw.sum(axis=0), conv2d_backward_weight_reference(x, dy, w.shape, *case.window))


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "case",
    [
        Case((2, 5, 6, 3), (3, 3), 4, padding=(1, 1)),
        Case((1, 7, 9, 2), (3, 2), 5, stride=(2, 3), padding=(2, 1)),
        Case((1, 5, 6, 3), (3, 3), 40, padding=(1, 1)),  # slices
    ],
    ids=name,
)
def test_what_is_not_finite_goes_where_the_definition_says(rng, case: Case, value: float, technique: str) -> None:
    """In every factor, in the middle and at a border: with the padding's zeros, but not with products that are none."""
    run = EmulatorRunner()
    for place in (0.0, 0.5, 1.0):
        for hostile in ("x", "w", "dy"):
            x, w, dy = (whole(rng, shape) for shape in (case.x, case.w, case.y))
            array = {"x": x, "w": w, "dy": dy}[hostile].reshape(-1)
            array[round(place * (array.size - 1))] = value
            y, dx, dw = np.empty_like(dy), np.empty_like(x), np.empty_like(w)
            conv2d_forward(run, x, w, None, y, *case.window, technique=technique)
            assert_array_equal(y, conv2d_forward_reference(x, w, None, *case.window))
            conv2d_backward_input(run, dy, w, dx, *case.window, technique=technique)
            assert_array_equal(dx, conv2d_backward_input_reference(dy, w, x.shape, *case.window))
            conv2d_backward_weight(run, x, dy, dw, *case.window, technique=technique)
            assert_array_equal(dw, conv2d_backward_weight_reference(x, dy, w.shape, *case.window))


def test_a_shorter_batch_runs_the_same_kernels(rng) -> None:
    case = Case((4, 4, 4, 3), (3, 3), 5, padding=(1, 1))
    kernels = []
    for n in (4, 1):
        run = EmulatorRunner(counts=True)
        x, w, y = whole(rng, (n, *case.x[1:])), whole(rng, case.w), np.empty((n, *case.y[1:]), np.float32)
        conv2d_forward(run, x, w, None, y, *case.window)
        conv2d_backward_input(run, y, w, np.empty_like(x), *case.window)
        conv2d_backward_weight(run, x, y, np.empty_like(w), *case.window)
        kernels.append({launched.kernel for launched in run.launched if "conv2d" in launched.kernel.name})
    assert kernels[0] == kernels[1]
    assert len(kernels[0]) == 3


def test_tiles_are_loaded_and_stored_as_the_memory_likes_it() -> None:
    """No bank conflict, hardly a divergent branch, no byte moved that nobody asked for."""
    case = Case((2, 8, 8, 16), (3, 3), 64, padding=(1, 1))
    x, w, y = (np.zeros(shape, np.float32) for shape in (case.x, case.w, case.y))
    run = EmulatorRunner(counts=True)
    conv2d_forward(run, x, w, None, y, *case.window)
    conv2d_backward_input(run, y, w, x, *case.window)
    conv2d_backward_weight(run, x, y, w, *case.window)
    products = [launched for launched in run.launched if "conv2d" in launched.kernel.name]
    assert len(products) == 3
    for launched in products:
        total = launched.report.counts.total
        assert total.bank_conflicts == 0
        assert total.divergent_branches <= total.branches / 100
        assert 32 * total.load_sectors == total.load_bytes
        # What a tile of 64 x 64 or 128 x 16 elements reads, it reads once for all of them.
        assert total.load_bytes < 4 * case.geometry.work(case.x[0]) / 2 / 14
    assert 32 * products[0].report.counts.total.store_sectors == y.nbytes  # the others write slices


def test_phases_leave_out_what_a_stride_makes_zero() -> None:
    dense = Case((1, 8, 8, 4), (4, 4), 8).geometry
    strided = dense._replace(sh=2, sw=2)
    products, rows, depth = dense.input_products()
    assert (products, rows, depth) == (1, 64, 4 * 4 * 8)
    assert strided.input_products() == (4, rows // 4, depth // 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": (2, 5, 5)}, r"conv2d_forward: x has shape \(2, 5, 5\), expected \(n, h, w, c_in\)"),
        ({"w": (3, 3, 4, 7)}, r"w has shape \(3, 3, 4, 7\), expected \(kh, kw, 3, c_out\) as x is \(2, 5, 5, 3\)"),
        (
            {"y": (2, 5, 4, 7)},
            r"y has shape \(2, 5, 4, 7\), expected \(2, 5, 5, 7\) for x \(2, 5, 5, 3\), w \(",
        ),
        ({"y": (1, 5, 5, 7)}, r"y has shape \(1, 5, 5, 7\), expected \(2, 5, 5, 7\)"),
        ({"bias": (3,)}, r"bias has shape \(3,\), expected \(7,\)"),
        ({"w": (8, 3, 3, 7)}, r"conv2d_forward: a kernel of 8 does not fit an axis of 5 elements with padding 1"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change, message: str) -> None:
    shapes = {"x": (2, 5, 5, 3), "w": (3, 3, 3, 7), "bias": (7,), "y": (2, 5, 5, 7)} | change
    arrays = (np.zeros(shape, np.float32) for shape in shapes.values())
    with pytest.raises(ShapeError, match=message):
        conv2d_forward(EmulatorRunner(), *arrays, (1, 1), (1, 1))


def test_gradients_name_what_does_not_fit() -> None:
    run, (x, w, dy) = EmulatorRunner(), (np.zeros(s, np.float32) for s in ((2, 5, 5, 3), (3, 3, 3, 7), (2, 5, 5, 6)))
    with pytest.raises(ShapeError, match=r"backward_input: dy has shape \(2, 5, 5, 6\), expected \(2, 5, 5, 7\)"):
        conv2d_backward_input(run, dy, w, x, (1, 1), (1, 1))
    with pytest.raises(ShapeError, match=r"backward_weight: dy has shape .*, expected .* for x .*, dw \(3, 3, 3, 7"):
        conv2d_backward_weight(run, x, dy, w, (1, 1), (1, 1))
