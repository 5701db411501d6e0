"""Convolution by wgmma. Numbers are whole and small where sums are to be exact, in TF32 too."""

import re
from typing import NamedTuple

import numpy as np
import pytest
from emulated import Recorder, launched, placed
from numba import cuda, float32, int64, uint32
from numpy.testing import assert_array_equal

from kernels.chip import HOPPER
from kernels.conv import (
    conv2d_backward_input,
    conv2d_backward_input_reference,
    conv2d_backward_weight,
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
    found = products(case, x, w, dy, technique=WGMMA)
    for which, right in expected(case, x, w, dy).items():
        assert_array_equal(found[which], right, err_msg=which)


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
        found = products(case, **arrays, technique=WGMMA)
        for which, right in expected(case, **arrays).items():
            assert_array_equal(found[which], right, err_msg=f"{which} of {hostile}")


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


def test_factors_are_rounded_to_nearest_with_ties_away_from_zero() -> None:
    unit = 2.0**-10  # of TF32, at 1
    given = [1 + unit / 2, 1 + unit / 2 - 2.0**-23, -1 - unit / 2, 1 + unit / 2 + unit]
    rounded = [1 + unit, 1, -1 - unit, 1 + 2 * unit]
    case = Case((1, 2, 2, 4), (1, 1), 4)
    x, w = placed(np.diag(given).reshape(case.x)), placed(np.eye(4).reshape(case.w))
    found = products(case, x, w, placed(np.diag(given).reshape(case.y)), technique=WGMMA)
    for which in ("y", "dx"):
        assert_array_equal(np.diag(found[which].reshape(4, 4)), rounded)
    assert_array_equal(np.diag(found["dw"].reshape(4, 4)), np.square(rounded).astype(np.float32))
    weights = products(case, placed(np.eye(4).reshape(case.x)), placed(np.diag(given).reshape(case.w)),
                       placed(np.eye(4).reshape(case.y)), technique=WGMMA)  # fmt: skip
    for which in ("y", "dx"):
        assert_array_equal(np.diag(weights[which].reshape(4, 4)), rounded)


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


# Images of 8x8, as in a late stage of a network, with a tile each way.
REPRESENTATIVE = Case((2, 8, 8, 32), (3, 3), 64, padding=(1, 1))


def test_memory_moves_what_is_asked_for_and_banks_do_not_conflict() -> None:
    """At least 95 % of the bytes moved are asked for; no more than 5 % of the passes over the banks are conflicts."""
    case, run = REPRESENTATIVE, EmulatorRunner(checks=False, counts=True)
    x, w, y = (placed(np.zeros(shape)) for shape in (case.x, case.w, case.y))
    conv2d_forward(run, x, w, None, y, *case.window, technique=WGMMA)
    conv2d_backward_input(run, y, w, x, *case.window, technique=WGMMA)
    conv2d_backward_weight(run, x, y, w, *case.window, technique=WGMMA)
    own = [one for one in run.launched if re.fullmatch(r"conv2d_[a-z_]*(forward|input|weight)_wgmma", one.kernel.name)]
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


CALLS = (conv2d_forward, conv2d_backward_input, conv2d_backward_weight)


def arguments(case: Case) -> list[tuple[np.ndarray | None, ...]]:
    """Of each of CALLS."""
    x, w, y = (placed(np.zeros(shape)) for shape in (case.x, case.w, case.y))
    return [(x, w, None, y), (y, w, x), (x, y, w)]


@pytest.mark.parametrize(
    ("case", "why"),
    [
        (Case((1, 4, 4, 6), (3, 3), 8), "c_in 6 is no multiple of 4"),
        (Case((1, 4, 4, 8), (3, 3), 7), "c_out 7 is no multiple of 4"),
    ],
    ids=["c_in", "c_out"],
)
def test_channels_that_it_cannot_take(case: Case, why: str) -> None:
    for host, arrays in zip(CALLS, arguments(case), strict=True):
        with pytest.raises(TechniqueError, match=f"^{host.__name__} cannot .* 'wgmma': {why}; "):
            host(EmulatorRunner(), *arrays, *case.window, technique=WGMMA)


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


def test_a_shorter_batch_runs_the_same_kernels() -> None:
    case, kernels = Case((8, 16, 16, 16), (3, 3), 16, padding=(1, 1)), []
    for n in (8, 5):
        x, w, y = (placed(np.zeros(shape)) for shape in ((n, *case.x[1:]), case.w, (n, *case.y[1:])))
        names = launched(conv2d_forward, x, w, None, y, *case.window, technique=WGMMA)
        names += launched(conv2d_backward_input, y, w, x, *case.window, technique=WGMMA)
        kernels.append(names)
    assert kernels[0] == kernels[1]
