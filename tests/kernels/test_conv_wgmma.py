"""Convolution by wgmma. Numbers are whole and small where sums are to be exact, in TF32 too."""

import re

import numpy as np
import pytest
from convolutions import CALLS, Case, arguments, name, products, whole
from emulated import Recorder, placed
from numba import cuda, float32, int64, uint32
from numpy.testing import assert_array_equal

from kernels.chip import HOPPER
from kernels.conv import (
    conv2d_backward_input_reference,
    conv2d_backward_weight_reference,
    conv2d_forward,
    conv2d_forward_reference,
    wgmma_launch,
)
from kernels.conv.geometry import Geometry
from kernels.conv.tensor_core_sides import matrix, windows_by_pixel
from kernels.conv.wgmma import conv2d_backward_input_wgmma, conv2d_backward_weight_wgmma, conv2d_forward_wgmma
from kernels.conv.wgmma_pack import conv2d_backward_input_pack_wgmma, conv2d_forward_pack_wgmma, slabs_shape
from kernels.device import inlined
from kernels.emulator import emulate
from kernels.emulator.tensor import round_tf32
from kernels.errors import TechniqueError
from kernels.intrinsics import store2
from kernels.launch import Floats
from kernels.matmul.tensor_tiles import DEPTH
from kernels.matmul.tiles import slices_of
from kernels.matmul.wgmma_product import wgmma_product
from kernels.matmul.wgmma_tiles import LARGE, LOW, NARROW, TILES, WIDE, WgmmaTile, tile_for
from kernels.run_emulated import EmulatorRunner
from kernels.wgmma import ATOM, STEPS, WIDTHS

WGMMA = "wgmma"


@pytest.mark.parametrize("tile", TILES, ids=lambda tile: f"{tile.rows}x{tile.columns}")
def test_every_tile_with_indices_of_64_bits_and_in_slices(rng, tile: WgmmaTile) -> None:
    """Two tiles each way, of which the second is one row and four columns; slices of five slabs, the last of a part."""
    across = tile.columns + 4
    forward = Case((1, 1, tile.rows + 1, 84), (1, 2), across, padding=(0, 1))
    x, w, bias = (whole(rng, shape) for shape in (forward.x, forward.w, (across,)))
    run, span = EmulatorRunner(), 5 * DEPTH
    y = np.empty((slices_of(168, span), *forward.y), np.float32)
    packed = run.empty(slabs_shape(tile, across, 168), np.uint32)
    run(conv2d_forward_pack_wgmma(tile, forward.geometry), w, packed)
    run(conv2d_forward_wgmma(tile, forward.geometry, True, int64), x, packed, bias, y, 1, span)
    assert_array_equal(y.sum(axis=0), conv2d_forward_reference(x, w, bias, *forward.window))
    assert len(y) == 2
    assert np.abs(y).max(axis=(1, 2, 3, 4)).min() > 0

    backward = Case((1, 1, tile.rows + 1, across), (1, 2), 84, padding=(0, 1))
    w, dy = (whole(rng, shape) for shape in (backward.w, backward.y))
    dx = np.empty((slices_of(168, span), *backward.x), np.float32)
    packed = run.empty(slabs_shape(tile, across, 168), np.uint32)
    run(conv2d_backward_input_pack_wgmma(tile, backward.geometry), w, packed)
    run(conv2d_backward_input_wgmma(tile, backward.geometry, int64), dy, packed, w, dx, 1, span)
    assert_array_equal(dx.sum(axis=0), conv2d_backward_input_reference(dy, w, backward.x, *backward.window))

    weight = Case((1, 14, 13, tile.rows + 4), (1, 1), across, padding=(0, 1))
    x, dy = (whole(rng, shape) for shape in (weight.x, weight.y))
    dw = np.empty((slices_of(210, span), *weight.w), np.float32)
    run(conv2d_backward_weight_wgmma(tile, weight.geometry, int64), x, dy, dw, 1, span)
    assert_array_equal(dw.sum(axis=0), conv2d_backward_weight_reference(x, dy, weight.w, *weight.window))


@pytest.mark.parametrize(
    "case",
    [Case((2, 5, 7, 36), (3, 3), 40, padding=(1, 1)), Case((1, 9, 9, 20), (3, 3), 12, (2, 2), (1, 1))],
    ids=name,
)
def test_bits_are_those_of_the_other_tensor_core_technique(rng, case: Case) -> None:
    """The same factors, rounded the same, in the same products of eight steps and the same slices."""
    arrays = [placed(rng.standard_normal(shape)) for shape in (case.x, case.w, case.y)]
    found, other = (products(case, *arrays, technique=technique) for technique in (WGMMA, "tensor_core"))
    for which, right in other.items():
        assert_array_equal(found[which].view(np.uint32), right.view(np.uint32), err_msg=which)


def test_weights_are_packed_as_slabs_lie_in_shared_memory(rng) -> None:
    tile, case = NARROW, Case((1, 5, 5, 12), (3, 3), 36, (2, 1), (1, 1))
    w, run = placed(rng.standard_normal(case.w)), EmulatorRunner()
    packed = run.empty(slabs_shape(tile, 36, 108), np.uint32)
    run(conv2d_forward_pack_wgmma(tile, case.geometry), w, packed)
    matrix = np.zeros((128, 64), np.float32)
    matrix[:108, :36] = w.reshape(108, 36)
    of_lines = round_tf32(matrix).reshape(4, 8, 4, 2, 32)  # slab, chunk, step of it, column of tiles, line
    for line in range(32):
        for chunk in range(8):
            found = packed.view(np.ndarray)[0, :, :, line, 4 * (chunk ^ line % 8) :][..., :4]
            assert_array_equal(found, of_lines[:, chunk, :, :, line].transpose(2, 0, 1))


@pytest.mark.parametrize("tile", TILES, ids=lambda tile: f"{tile.rows}x{tile.columns}")
def test_tiles_are_sound(tile: WgmmaTile) -> None:
    assert tile.columns in WIDTHS
    assert not tile.stage_bytes % ATOM  # so each slab of a stage begins with an atom
    assert not (4 * tile.rows * DEPTH) % ATOM
    for lines in (tile.rows, tile.columns):
        assert lines % (tile.threads // 8) == 0  # a thread has the same chunk of all its lines
        assert tile.threads // 8 % 8 == 0  # and the same swizzle
    assert 2 * (tile.shared_bytes + 1024) <= 228 << 10  # two blocks on a multiprocessor
    assert tile.stages == 3  # what the order of the loop is for
    assert DEPTH % STEPS == 0


def test_tiles_fit_what_they_are_for() -> None:
    assert [tile_for(1000, columns) for columns in (1, 32, 33, 64, 65, 512)] == [
        NARROW, NARROW, WIDE, WIDE, LARGE, LARGE,
    ]  # fmt: skip
    assert [tile_for(64, columns) for columns in (8, 32, 33, 512)] == [NARROW, NARROW, LOW, LOW]


def test_slabs_begin_with_an_atom_wherever_shared_memory_does(rng) -> None:
    """Behind another array of 64 bytes; with a factor that comes as it lies and one that is turned."""
    geometry = Geometry(1, 70, 44, 1, 1, 68, 1, 1, 0, 0)

    @inlined
    def store(target, row, k, left, right):
        store2(target, row * 68 + k, left, right)

    multiply = wgmma_product(LOW, uint32, windows_by_pixel(geometry, uint32), matrix(68, uint32), store)

    def kernel(x: Floats, w: Floats, y: Floats):
        before = cuda.shared.array(16, float32)
        if cuda.threadIdx.x < 16:
            before[cuda.threadIdx.x] = float32(0)
        block = uint32(cuda.blockIdx.x)
        multiply((x, 0), (w, 0), y, 70, 68, block // 2 * 64, block % 2 * 64, 0, 44)

    x, w, y = whole(rng, (70, 44)), whole(rng, (44, 68)), placed(np.zeros((70, 68)))
    emulate(kernel, 4, LOW.threads, x.ravel(), w.ravel(), y.reshape(-1), shared_bytes=LOW.shared_bytes)
    assert_array_equal(y, x @ w)


def test_gpus_that_do_not_have_it() -> None:
    """Neither older ones nor newer ones; by name it is taken where nothing is known of the GPU."""
    case = Case((1, 4, 4, 8), (3, 3), 8)
    for capability, fits in (((8, 0), False), ((10, 0), False), ((12, 0), False), ((9, 0), True), (None, True)):
        for host, arrays in zip(CALLS, arguments(case), strict=True):
            run = Recorder()
            run.chip = HOPPER._replace(capability=capability)
            if fits:
                host(run, *arrays, *case.window, technique=WGMMA)
                assert any(kernel.name == f"{host.__name__}_wgmma" for kernel in run.kernels)
                continue
            dotted = re.escape(".".join(map(str, capability)))
            with pytest.raises(TechniqueError, match=rf"the GPU has compute capability {dotted}, only 9\.0 has wgmma"):
                host(run, *arrays, *case.window, technique=WGMMA)
            assert not run.kernels


def chosen(case: Case, capability: tuple[int, int] | None, precision: str) -> list[str]:
    """The techniques that CALLS choose, by the endings of their kernels' names."""
    found = []
    for host, arrays in zip(CALLS, arguments(case), strict=True):
        run = Recorder()
        run.chip = HOPPER._replace(capability=capability)
        host(run, *arrays, *case.window, precision=precision)
        found += [
            kernel.name.removeprefix(f"{host.__name__}_") for kernel in run.kernels if host.__name__ in kernel.name
        ]
    return found


BIG, SMALL = (Case((8, 16, 16, 64), (3, 3), c_out, padding=(1, 1)) for c_out in (64, 32))


def test_it_is_not_taken_unasked_until_a_gpu_has_shown_it_right(monkeypatch) -> None:
    assert not wgmma_launch.UNASKED  # see there; when that changes, so does this test
    assert chosen(BIG, (9, 0), "tf32") == ["tensor_core"] * 3
    monkeypatch.setattr(wgmma_launch, "UNASKED", True)
    taken = ["pack_wgmma", "wgmma", "pack_wgmma", "wgmma", "wgmma"]
    assert chosen(BIG, (9, 0), "tf32") == taken
    assert "wgmma" not in chosen(BIG, (9, 0), "fp32")
    assert "wgmma" not in chosen(BIG, (8, 0), "tf32")
    assert "wgmma" not in chosen(BIG, None, "tf32")
    narrow = chosen(SMALL, (9, 0), "tf32")
    assert narrow == ["tensor_core", "pack_wgmma", "wgmma", "tensor_core"]  # 32 columns, 64, 32


def test_the_reason_is_told(monkeypatch) -> None:
    monkeypatch.setattr(wgmma_launch, "UNASKED", True)
    told = []
    run = Recorder()
    run.chip, run.on_choice = HOPPER, told.append
    conv2d_forward(run, *arguments(BIG)[0], *BIG.window, precision="tf32")
    assert [one.why for one in told] == ["a product of 2,048 x 64 x 576 fills wgmma's tiles"]
