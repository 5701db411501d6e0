"""Convolution that normalizes as it loads and sums as it stores, on tensor cores: the same bits as separate steps."""

from typing import NamedTuple

import numpy as np
import pytest
from emulated import blank, launched, placed
from numba import int64
from numpy.testing import assert_allclose, assert_array_equal

from kernels import batchnorm as bn
from kernels.batch_statistics import BatchStatistics, GradientSums, Normalization, PendingGradient
from kernels.conv import (
    conv2d_normalized_backward_input,
    conv2d_normalized_backward_weight,
    conv2d_normalized_forward,
)
from kernels.conv.geometry import Geometry
from kernels.conv.normalized_arrival import Kind
from kernels.conv.normalized_epilogue import scratch_floats
from kernels.conv.normalized_tensor_core import (
    conv2d_normalized_backward_input_tensor_core,
    conv2d_normalized_backward_weight_tensor_core,
    conv2d_normalized_forward_tensor_core,
)
from kernels.conv.tensor_core import (
    conv2d_backward_input_tensor_core,
    conv2d_backward_weight_tensor_core,
    conv2d_forward_tensor_core,
)
from kernels.errors import TechniqueError
from kernels.matmul.tensor_tiles import DEPTH, LARGE, SMALL, TILES, TensorTile
from kernels.matmul.tiles import slices_of
from kernels.run_emulated import EmulatorRunner
from kernels.storage import STORAGES

EPS = 1e-5
FULL, PLAIN = Kind(True, True), Kind(False, False)


class Case(NamedTuple):
    """x (n, h, w, c_in), kernel, c_out, stride, padding; what the normalizations before and behind are."""

    x: tuple[int, int, int, int]
    kernel: tuple[int, int]
    c_out: int
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    before: Kind | None = FULL
    behind: Kind = FULL

    @property
    def geometry(self) -> Geometry:
        return Geometry(*self.x[1:], *self.kernel, self.c_out, *self.stride, *self.padding)

    @property
    def y(self) -> tuple[int, int, int, int]:
        return self.x[0], self.geometry.ho, self.geometry.wo, self.c_out

    @property
    def window(self) -> tuple[tuple[int, int], tuple[int, int]]:
        return self.stride, self.padding


class Given(NamedTuple):
    x: np.ndarray
    before: Normalization | None
    w: np.ndarray
    dy: PendingGradient


def name(case: Case) -> str:
    return "-".join("x".join(map(str, part)) if isinstance(part, tuple) else str(part) for part in case)


def vectors(channels: int, count: int = 4) -> list[np.ndarray]:
    return [blank((channels,)) for _ in range(count)]


def normalization(rng: np.random.Generator, x: np.ndarray, kind: Kind) -> Normalization:
    """That of x by its own statistics."""
    statistics = BatchStatistics(*vectors(x.shape[-1]))
    if x.size:
        bn.batchnorm_statistics(EmulatorRunner(), x, EPS, statistics)
    gamma, beta = (placed(rng.normal(at, 0.5, x.shape[-1])) if kind.affine else None for at in (1, 0))
    return Normalization(statistics, gamma, beta, kind.relu)


def given(rng: np.random.Generator, case: Case) -> Given:
    """Activations far from zero, so that what is taken for a zero of the padding shows."""
    x, w = placed(rng.normal(3, 2, case.x)), placed(rng.standard_normal((*case.kernel, case.x[3], case.c_out)))
    raw, dy = placed(rng.normal(-2, 1, case.y)), placed(rng.standard_normal(case.y))
    behind = normalization(rng, raw, case.behind)
    sums = GradientSums(*vectors(case.c_out))
    bn.batchnorm_gradient_sums(EmulatorRunner(), raw, dy, behind, sums)
    before = None if case.before is None else normalization(rng, x, case.before)
    return Given(x, before, w, PendingGradient(dy, raw, behind, sums))


def results(case: Case, arrays: Given, technique: str) -> dict[str, np.ndarray]:
    """Everything that the three operations give, in TF32."""
    run, way = EmulatorRunner(), {"technique": technique, "precision": "tf32"}
    x, before, w, dy = arrays
    y, dw, dx, alone = (blank(shape) for shape in (case.y, w.shape, case.x, case.x))
    out, sums = BatchStatistics(*vectors(case.c_out)), GradientSums(*vectors(case.x[3]))
    conv2d_normalized_forward(run, x, before, w, y, *case.window, EPS, out if y.size else None, **way)
    conv2d_normalized_backward_weight(run, x, before, dy, dw, *case.window, **way)
    conv2d_normalized_backward_input(run, dy, w, alone, *case.window, None, None, None, **way)
    found = {"y": y, "dw": dw, "dx": alone, **{f"out.{key}": value for key, value in out._asdict().items()}}
    if before is not None:
        conv2d_normalized_backward_input(run, dy, w, dx, *case.window, x, before, sums, **way)
        found |= {"g": dx, **{f"sums.{key}": value for key, value in sums._asdict().items()}}
    return found


def assert_same(case: Case, arrays: Given) -> dict[str, np.ndarray]:
    """Fused equals separate: products bit for bit, sums over rows as exactly as float32 allows."""
    fused, separate = results(case, arrays, "tensor_core"), results(case, arrays, "separate")
    for key in ("y", "dw", "dx", "g"):
        assert_array_equal(fused.get(key), separate.get(key), err_msg=key)
    if fused["y"].size:
        assert_statistics(fused, fused["y"])
    if "g" in fused:
        assert_sums(fused, arrays)
    return fused


def assert_statistics(found: dict[str, np.ndarray], y: np.ndarray) -> None:
    """Those of y as it is: the variance to a few units of float32, the mean to as little of the deviation."""
    rows = y.reshape(-1, y.shape[-1]).astype(np.float64)
    mean, var = rows.mean(axis=0), rows.var(axis=0)
    there = np.isfinite(mean)
    assert_array_equal(np.isfinite(found["out.var"]), there)
    error = np.abs(found["out.shift"].astype(np.float64) + found["out.delta"] - mean)[there]
    assert (error <= 1e-6 * np.sqrt(var[there]) + 1e-37).all()
    assert_allclose(found["out.var"][there], var[there], rtol=2e-6)
    assert_allclose(found["out.inv_std"][there], 1 / np.sqrt(var[there] + EPS), rtol=2e-6)


def assert_sums(found: dict[str, np.ndarray], arrays: Given) -> None:
    """Those of g as it is."""
    channels = arrays.x.shape[-1]
    g, x = (array.reshape(-1, channels).astype(np.float64) for array in (found["g"], arrays.x))
    assert arrays.before is not None
    shift, delta, _, inv_std = (array.astype(np.float64) for array in arrays.before.statistics)
    products = g * (x - shift - delta) * inv_std
    for key, right, terms in (("dbeta", g.sum(0), g), ("dgamma", products.sum(0), products)):
        size = np.abs(terms).sum(axis=0)
        there = np.isfinite(right)
        error = np.abs(found[f"sums.{key}"] - right)[there]
        assert (error <= 2e-6 * size[there]).all(), key
        assert not np.isfinite(found[f"sums.{key}"][~there]).any()
    there = np.isfinite(found["sums.dbeta"]) & np.isfinite(found["sums.dgamma"])
    n = max(len(g), 1)
    assert_allclose(found["sums.mean_g"][there], found["sums.dbeta"][there] / n, rtol=1e-6)
    assert_allclose(found["sums.slope"][there], (found["sums.dgamma"] * inv_std)[there] / n, rtol=1e-6)


@pytest.mark.parametrize(
    "case",
    [
        Case((1, 1, 2, 4), (1, 1), 4),
        Case((0, 5, 5, 4), (3, 3), 8, padding=(1, 1)),  # no image
        Case((2, 5, 7, 12), (3, 3), 36, padding=(1, 1), before=PLAIN, behind=PLAIN),
        Case((1, 9, 16, 20), (1, 1), 12, before=Kind(True, False), behind=Kind(False, True)),  # two tiles of rows
        Case((1, 5, 6, 8), (3, 3), 4, padding=(2, 1), before=None),
        Case((1, 7, 5, 12), (2, 3), 24, (3, 2), (1, 2)),  # phases with more taps than others
        Case((1, 5, 6, 8), (1, 1), 4, (2, 3)),  # and without any
        Case((1, 4, 5, 8), (3, 3), 60, padding=(1, 1)),  # slices of the input gradient's depth
        Case((1, 4, 5, 8), (3, 3), 60, padding=(1, 1), before=PLAIN),
        Case((1, 4, 5, 60), (3, 3), 8, padding=(1, 1)),  # slices of taps
        Case((3, 13, 14, 4), (1, 1), 8, padding=(1, 0)),  # slices of pixels
    ],
    ids=name,
)
def test_fused_equals_separate(rng, case: Case) -> None:
    assert_same(case, given(rng, case))


@pytest.mark.parametrize("tile", [LARGE, SMALL], ids=lambda tile: f"{tile.rows}x{tile.columns}")
def test_tiles_with_indices_of_64_bits_and_in_slices(rng, tile: TensorTile) -> None:
    """Against the plain kernels with the same tile, given what batch normalization writes."""
    run, span, across = EmulatorRunner(), 2 * DEPTH, tile.columns + 4
    forward = Case((1, 1, tile.rows + 1, 36), (1, 2), across, padding=(0, 1))
    x, before, w, _ = given(rng, forward)
    activation = blank(forward.x)
    bn.batchnorm_apply(run, x, before.statistics, before.gamma, before.beta, activation, True)
    known = *before.statistics[:2], before.statistics.inv_std, before.gamma, before.beta
    right, y = (blank((slices_of(72, span), *forward.y)) for _ in range(2))
    run(conv2d_forward_tensor_core(tile, forward.geometry, False, int64), activation, w, w, right, 1, span)
    kernel = conv2d_normalized_forward_tensor_core(tile, forward.geometry, FULL, False, int64)
    run(kernel, x, *known, w, y, run.empty((0,)), 1, span)
    assert_array_equal(y, right)

    partial, single = blank((3, 2, across)), blank((1, *forward.y))
    kernel = conv2d_normalized_forward_tensor_core(tile, forward.geometry, FULL, True, int64)
    run(kernel, x, *known, w, single, partial, 1, 3 * DEPTH)
    rows = single.reshape(-1, across).astype(np.float64)
    for i, part in enumerate((rows[: tile.rows], rows[tile.rows :])):
        shift = partial[0, i].astype(np.float64)
        assert_allclose(shift, part.mean(axis=0), rtol=1e-5, atol=1e-5 * np.abs(part).max())
        for found, terms in ((partial[1, i], part - shift), (partial[2, i], (part - shift) ** 2)):
            assert (np.abs(found - terms.sum(axis=0)) <= 2e-6 * np.abs(terms).sum(axis=0) + 1e-30).all()

    backward = Case((1, 1, tile.rows + 1, across), (1, 2), 36, padding=(0, 1))
    x, before, w, dy = given(rng, backward)
    pending = (dy.dy, dy.x, *dy.normalization.statistics[:2], dy.normalization.statistics.inv_std)
    pending = (*pending, dy.normalization.gamma, dy.normalization.beta, dy.sums.mean_g, dy.sums.slope)
    written = blank(backward.y)
    bn.batchnorm_pending_gradient(run, dy, written)
    right, dx = (blank((slices_of(72, span), *backward.x)) for _ in range(2))
    run(conv2d_backward_input_tensor_core(tile, backward.geometry, int64), written, w, right, 1, span)
    fewer = tile.with_room(True, True, 2, 1)
    kernel = conv2d_normalized_backward_input_tensor_core(fewer, backward.geometry, FULL, None, int64)
    run(kernel, *pending, w, *[w] * 6, dx, run.empty((0,)), 1, span)
    assert_array_equal(dx, right)

    weight = Case((1, 5, 13, tile.rows + 4), (1, 1), across, padding=(0, 1))
    x, before, w, dy = given(rng, weight)
    activation, written = blank(weight.x), blank(weight.y)
    bn.batchnorm_apply(run, x, before.statistics, before.gamma, before.beta, activation, True)
    bn.batchnorm_pending_gradient(run, dy, written)
    known = *before.statistics[:2], before.statistics.inv_std, before.gamma, before.beta
    pending = (dy.dy, dy.x, *dy.normalization.statistics[:2], dy.normalization.statistics.inv_std)
    pending = (*pending, dy.normalization.gamma, dy.normalization.beta, dy.sums.mean_g, dy.sums.slope)
    right, dw = (blank((slices_of(75, span), *w.shape)) for _ in range(2))
    run(conv2d_backward_weight_tensor_core(tile, weight.geometry, int64), activation, written, right, 1, span)
    fewer = tile.with_room(False, False, 1, 2)
    kernel = conv2d_normalized_backward_weight_tensor_core(fewer, weight.geometry, FULL, FULL, int64)
    run(kernel, x, *known, *pending, dw, 1, span)
    assert_array_equal(dw, right)


@pytest.mark.parametrize("c_out", [8, 36, 72], ids=["narrow", "wide", "large"])
def test_statistics_of_what_is_far_from_zero_beside_its_deviation(rng, c_out: int) -> None:
    """Mean 1e4, deviation 1e-2, in terms that TF32 holds; 390 rows, the last tile of a part."""
    case = Case((2, 13, 15, 4), (1, 1), c_out, before=None)
    x, w = np.zeros(case.x), np.ones((1, 1, 4, c_out))
    x[..., 0], x[..., 1], x[..., 2] = 8192, 1808, rng.normal(0, 1e-2, case.x[:3])
    w[0, 0, 2] = rng.permutation(np.linspace(-1, 1, c_out))
    y, out = blank(case.y), BatchStatistics(*vectors(c_out))
    way = {"technique": "tensor_core"}
    conv2d_normalized_forward(EmulatorRunner(), placed(x), None, placed(w), y, *case.window, EPS, out, **way)
    assert abs(y.mean() - 1e4) < 0.1
    assert_statistics({f"out.{key}": value for key, value in out._asdict().items()}, y)


def test_a_constant_channel_has_no_variance() -> None:
    case = Case((2, 13, 15, 4), (1, 1), 8, before=None)
    x, w, y = placed(np.full(case.x, 0.1)), placed(np.full((1, 1, 4, 8), 77.7)), blank(case.y)
    out = BatchStatistics(*vectors(8))
    conv2d_normalized_forward(EmulatorRunner(), x, None, w, y, *case.window, EPS, out, technique="tensor_core")
    assert not out.var.any()
    assert_array_equal(out.shift + out.delta, y[0, 0, 0])


def test_large_numbers_overflow_in_no_sum_of_the_mean() -> None:
    case = Case((1, 16, 17, 4), (1, 1), 4, before=None)
    x, w, y = placed(np.full(case.x, 2.0**120)), placed(np.full((1, 1, 4, 4), 32)), blank(case.y)
    out = BatchStatistics(*vectors(4))
    conv2d_normalized_forward(EmulatorRunner(), x, None, w, y, *case.window, EPS, out, technique="tensor_core")
    assert_array_equal(out.shift, np.full(4, 2.0**127))
    assert not out.var.any()


@pytest.mark.parametrize(
    ("hostile", "value"),
    [("x", np.nan), ("x", np.inf), ("w", np.nan), ("w", np.inf), ("dy", np.inf), ("raw", np.nan), ("gamma", np.nan)],
)
def test_what_is_not_finite_goes_where_separate_operations_take_it(rng, hostile: str, value: float) -> None:
    """At a border, where zeros stand for what does not exist; the sums are poisoned in their own channels alone."""
    case = Case((1, 5, 7, 8), (3, 2), 4, (2, 3), (2, 1))
    arrays = given(rng, case)
    target = {"x": arrays.x, "w": arrays.w, "dy": arrays.dy.dy, "raw": arrays.dy.x, "gamma": arrays.before.gamma}
    target[hostile].reshape(-1)[0 if hostile == "w" else -1] = value
    with np.errstate(invalid="ignore"):
        found = assert_same(case, arrays)
    finite = np.isfinite(found["sums.dbeta"])
    if hostile == "w":  # of input channel 0 and output channel 0
        assert finite.tolist() == [False] + [True] * 7
        assert np.isfinite(found["out.var"]).tolist() == [False] + [True] * 3
    else:
        assert np.isfinite(found["out.var"]).any() == (hostile in ("dy", "raw"))


@pytest.mark.parametrize("tile", TILES, ids=lambda tile: f"{tile.rows}x{tile.columns}")
def test_two_blocks_have_room_on_a_multiprocessor(tile: TensorTile) -> None:
    layouts = (True, False, 1, 1), (False, False, 1, 2), (True, True, 2, 1)
    for layout in layouts:
        one = tile.with_room(*layout)
        assert 2 <= one.stages <= tile.stages
        assert 2 * (one.shared_bytes(*layout) + 1024) <= 228 << 10
        assert all(4 * scratch_floats(one, storage) <= one.shared_bytes(*layout) for storage in STORAGES)
    assert tile.with_room(*layouts[0]) == tile  # forward has as many stages as without normalization


def test_sums_take_no_pass_of_their_own(rng) -> None:
    case = Case((2, 5, 7, 8), (3, 3), 12, padding=(1, 1))
    x, before, w, dy = given(rng, case)
    way = {"technique": "tensor_core"}
    out, sums = BatchStatistics(*vectors(12)), GradientSums(*vectors(8))
    forward = x, before, w, blank(case.y), *case.window, EPS, out
    weight = x, before, dy, blank(w.shape), *case.window
    back = dy, w, blank(case.x), *case.window, x, before, sums
    assert launched(conv2d_normalized_forward, *forward, **way) == [
        "conv2d_normalized_forward_tensor_core",
        "batchnorm_finish_statistics",
    ]
    assert launched(conv2d_normalized_backward_weight, *weight, **way) == [
        "conv2d_normalized_backward_weight_tensor_core"
    ]
    assert launched(conv2d_normalized_backward_input, *back, **way) == [
        "conv2d_normalized_backward_input_tensor_core",
        "batchnorm_finish_gradients",
    ]
    for host, arrays in (
        (conv2d_normalized_forward, forward),
        (conv2d_normalized_backward_weight, weight),
        (conv2d_normalized_backward_input, back),
    ):
        assert f"{host.__name__}_tensor_core" in launched(host, *arrays, precision="tf32")
        assert not any("tensor_core" in kernel for kernel in launched(host, *arrays))


def test_channels_and_arrays_that_it_cannot_take(rng) -> None:
    way = {"technique": "tensor_core"}
    for case, why in (
        (Case((1, 4, 4, 6), (3, 3), 8), "c_in 6 is no multiple of 4"),
        (Case((1, 4, 4, 8), (3, 3), 7), "c_out 7 is no multiple of 4"),
    ):
        x, before, w, dy = given(rng, case)
        for host, arrays in (
            (conv2d_normalized_forward, (x, before, w, blank(case.y), *case.window, EPS, None)),
            (conv2d_normalized_backward_weight, (x, before, dy, blank(w.shape), *case.window)),
            (conv2d_normalized_backward_input, (dy, w, blank(case.x), *case.window, None, None, None)),
        ):
            with pytest.raises(TechniqueError, match=f"^{host.__name__} cannot .* 'tensor_core': {why}; separate"):
                host(EmulatorRunner(), *arrays, **way)
    case = Case((1, 4, 4, 8), (3, 3), 8)
    x, before, w, dy = given(rng, case)
    moved = before._replace(beta=placed(before.beta, 1))
    slope = placed(dy.sums.slope, 1)
    for host, arrays, argument in (
        (conv2d_normalized_forward, (x, moved, w, blank(case.y), *case.window, EPS, None), "before.beta"),
        (
            conv2d_normalized_backward_weight,
            (x, before, dy._replace(sums=dy.sums._replace(slope=slope)), blank(w.shape), *case.window),
            "dy.slope",
        ),
        (
            conv2d_normalized_backward_input,
            (dy, w, blank(case.x), *case.window, placed(x, 1), before, GradientSums(*vectors(8))),
            "x",
        ),
    ):
        with pytest.raises(TechniqueError, match=f": {argument} starts at no multiple of 16 bytes"):
            host(EmulatorRunner(), *arrays, **way)
        assert not any("tensor_core" in kernel for kernel in launched(host, *arrays))
