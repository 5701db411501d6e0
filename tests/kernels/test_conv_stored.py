"""Convolutions of images stored in 16 bits. Numbers are whole and small, so that sums are exact, and rounded once."""

import numpy as np
import pytest
from convolutions import Case
from emulated import Recorder, blank, launched, placed
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
from kernels.conv.tensor_core import (
    conv2d_backward_input_narrow_tensor_core,
    conv2d_backward_weight_narrow_tensor_core,
    conv2d_forward_narrow_tensor_core,
)
from kernels.errors import TechniqueError
from kernels.matmul.tensor_tiles import TILES, TensorTile, depth_of
from kernels.run_emulated import EmulatorRunner
from kernels.storage import BFLOAT16, FLOAT16, FLOAT32, Storage

NARROW = BFLOAT16, FLOAT16
each_narrow = pytest.mark.parametrize("storage", NARROW, ids=repr)


def whole(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return placed(rng.integers(-3, 4, shape))


def assert_products(rng, case: Case, x_storage: Storage, y_storage: Storage, technique: str | None) -> list[str]:
    """All three, each rounded once; returns the kernels of the runs."""
    x, w, bias, dy = (whole(rng, shape) for shape in (case.x, case.w, (case.c_out,), case.y))
    run, window = EmulatorRunner(counts=True), case.window
    y, dx, dw = blank(case.y, 0, y_storage.dtype), blank(case.x, 0, x_storage.dtype), blank(case.w)
    stored_x, stored_dy = (placed(s.encode(a), 0, s.dtype) for s, a in ((x_storage, x), (y_storage, dy)))
    conv2d_forward(run, stored_x, w, bias, y, *window, technique=technique)
    conv2d_backward_weight(run, stored_x, stored_dy, dw, *window, technique=technique)
    right_y = conv2d_forward_reference(x, w, bias, *window)
    assert_array_equal(y_storage.decode(y), y_storage.rounded(right_y))
    assert_array_equal(dw, conv2d_backward_weight_reference(x, dy, case.w, *window))
    if technique != "first_layer":
        conv2d_backward_input(run, stored_dy, w, dx, *window, technique=technique)
        right_dx = conv2d_backward_input_reference(dy, w, case.x, *window)
        assert_array_equal(x_storage.decode(dx), x_storage.rounded(right_dx))
    return [one.kernel.name for one in run.launched]


@pytest.mark.parametrize(
    ("storage", "case"),
    [
        (FLOAT16, Case((0, 5, 5, 8), (3, 3), 8, padding=(1, 1))),  # no image
        (BFLOAT16, Case((2, 5, 7, 8), (3, 3), 16, padding=(1, 1))),
        (FLOAT16, Case((1, 9, 9, 24), (2, 3), 40, (3, 2), (1, 2))),  # phases with more taps than others
        (BFLOAT16, Case((1, 5, 6, 8), (1, 1), 16, (2, 3))),  # and without any
        (FLOAT16, Case((1, 4, 5, 64), (3, 3), 8, padding=(1, 1))),  # slices of taps
    ],
    ids=str,
)
def test_tensor_cores_take_eights_of_channels_in_any_precision(rng, storage: Storage, case: Case) -> None:
    names = assert_products(rng, case, storage, storage, None)
    assert not case.x[0] or {
        "conv2d_forward_narrow_tensor_core",
        "conv2d_backward_weight_narrow_tensor_core",
        "conv2d_backward_input_narrow_tensor_core",
    } <= set(names)
    if not case.x[0]:
        assert_products(rng, case, storage, storage, "tensor_core")


@pytest.mark.parametrize("technique", ["direct", "implicit_gemm"])
@pytest.mark.parametrize(
    "storages", [(BFLOAT16, BFLOAT16), (FLOAT16, FLOAT16), (FLOAT32, BFLOAT16), (FLOAT16, FLOAT32)], ids=str
)
def test_plain_techniques_take_anything(rng, technique: str, storages: tuple[Storage, Storage]) -> None:
    assert_products(rng, Case((2, 5, 7, 3), (3, 2), 5, (2, 1), (1, 1)), *storages, technique)


@pytest.mark.parametrize("tile", TILES, ids=lambda tile: f"{tile.rows}x{tile.columns}")
def test_every_tile_with_indices_of_64_bits_and_in_slices(rng, tile: TensorTile) -> None:
    """Two tiles each way; slices of two slabs, the last of a part, in float32."""
    run, across, storage = EmulatorRunner(), tile.columns + 8, FLOAT16 if tile is TILES[-1] else BFLOAT16
    span = 2 * depth_of(storage)

    def stored(array: np.ndarray) -> np.ndarray:
        return placed(storage.encode(array), 0, storage.dtype)

    forward = Case((1, 1, tile.rows + 1, 72), (1, 2), across)
    x, w, bias = (whole(rng, shape) for shape in (forward.x, forward.w, (across,)))
    y = blank((2, *forward.y))
    kernel = conv2d_forward_narrow_tensor_core(tile, forward.geometry, True, int64, storage, FLOAT32)
    run(kernel, stored(x), stored(w), bias, y, 1, span)
    assert_array_equal(y.sum(axis=0), conv2d_forward_reference(x, w, bias, (1, 1), (0, 0)))
    single = blank(forward.y, 0, storage.dtype)
    kernel = conv2d_forward_narrow_tensor_core(tile, forward.geometry, True, int64, storage, storage)
    run(kernel, stored(x), stored(w), bias, single, 1, 2 * span)
    assert_array_equal(storage.decode(single), storage.rounded(y.sum(axis=0)))

    backward = Case((1, 1, tile.rows + 1, across), (1, 2), 72)
    w, dy = (whole(rng, shape) for shape in (backward.w, backward.y))
    dx = blank((2, *backward.x))
    kernel = conv2d_backward_input_narrow_tensor_core(tile, backward.geometry, int64, storage, FLOAT32)
    run(kernel, stored(dy), stored(w), dx, 1, span)
    assert_array_equal(dx.sum(axis=0), conv2d_backward_input_reference(dy, w, backward.x, (1, 1), (0, 0)))

    weight = Case((1, 5, 29, tile.rows + 8), (1, 1), across)
    x, dy = (whole(rng, shape) for shape in (weight.x, weight.y))
    dw = blank((2, *weight.w))
    kernel = conv2d_backward_weight_narrow_tensor_core(tile, weight.geometry, int64, storage)
    run(kernel, stored(x), stored(dy), dw, 1, span)
    assert_array_equal(dw.sum(axis=0), conv2d_backward_weight_reference(x, dy, weight.w, (1, 1), (0, 0)))


@each_narrow
def test_weights_that_are_not_finite_meet_no_gradient_that_does_not_exist(rng, storage: Storage) -> None:
    case = Case((1, 5, 7, 8), (3, 2), 16, (2, 3), (2, 1))
    w, dy = whole(rng, case.w), whole(rng, case.y)
    w[0, 0, 0, 0] = np.inf
    dx, run = blank(case.x, 0, storage.dtype), EmulatorRunner()
    conv2d_backward_input(run, placed(storage.encode(dy), 0, storage.dtype), w, dx, case.stride, case.padding)
    with np.errstate(invalid="ignore"):
        right = conv2d_backward_input_reference(dy, w, case.x, case.stride, case.padding)
    assert_array_equal(storage.decode(dx), storage.rounded(right))


@pytest.mark.parametrize(
    ("storage", "case"),
    [
        (FLOAT16, Case((2, 9, 9, 1), (3, 3), 32, padding=(1, 1))),
        (BFLOAT16, Case((1, 8, 12, 3), (3, 3), 64, padding=(1, 1))),
        (FLOAT16, Case((1, 11, 11, 3), (5, 5), 8, (2, 2), (2, 2))),
        (BFLOAT16, Case((1, 8, 9, 2), (3, 3), 5, padding=(1, 1))),  # no vectors
    ],
    ids=str,
)
def test_a_first_layer_makes_16_bits_of_a_float32_image(rng, storage: Storage, case: Case) -> None:
    names = assert_products(rng, case, FLOAT32, storage, "first_layer")
    kind = "scalar" if case.c_out % 8 else "vector"
    assert {f"conv2d_forward_{kind}_first_layer", f"conv2d_backward_weight_{kind}_first_layer"} <= set(names)


def test_what_tensor_cores_cannot_take_is_refused_by_name_and_taken_by_others() -> None:
    case = Case((1, 4, 4, 8), (3, 3), 12)
    x, w, y = blank(case.x, 0, np.uint16), blank(case.w), blank(case.y, 0, np.uint16)
    window = case.stride, case.padding
    assert launched(conv2d_forward, x, w, None, y, *window) == ["conv2d_forward_implicit_gemm"]
    with pytest.raises(TechniqueError, match="c_out 12 is no multiple of 8; implicit_gemm or direct"):
        conv2d_forward(Recorder(), x, w, None, y, *window, technique="tensor_core")
    with pytest.raises(TechniqueError, match="x is stored as bfloat16 and y as float32"):
        conv2d_forward(Recorder(), x, w, None, blank(case.y), *window, technique="tensor_core")
    with pytest.raises(TechniqueError, match="stored as bfloat16"):
        conv2d_forward(Recorder(), x, w, None, y, *window, technique="wgmma")
    with pytest.raises(TypeError, match="conv2d_forward: w has dtype uint16, expected float32"):
        conv2d_forward(Recorder(), x, w.astype(np.uint16), None, y, *window)
    with pytest.raises(ValueError, match="precision 'half' is given"):
        conv2d_forward(Recorder(), x, w, None, y, *window, precision="half")


@each_narrow
def test_sectors_are_full_and_banks_are_free(rng, storage: Storage) -> None:
    case = Case((2, 8, 8, 64), (3, 3), 64, padding=(1, 1))
    run, window = EmulatorRunner(checks=False, counts=True), (case.stride, case.padding)
    x, y = (blank(shape, 0, storage.dtype) for shape in (case.x, case.y))
    w, way = placed(np.zeros(case.w)), {"technique": "tensor_core"}
    conv2d_forward(run, x, w, None, y, *window, **way)
    conv2d_backward_input(run, y, w, x, *window, **way)
    conv2d_backward_weight(run, x, y, w, *window, **way)
    products = [one.report.counts.total for one in run.launched if "tensor_core" in one.kernel.name]
    assert len(products) == 3
    for total in products:
        assert total.bytes_asked >= 0.95 * total.bytes_moved
        assert total.bank_conflicts <= 0.01 * total.shared_passes
