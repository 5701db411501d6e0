"""The matrix product, and linear layers, on tensor cores. Numbers are whole and small: every sum is exact."""

import numpy as np
import pytest
from emulated import launched, placed
from numba import int64
from numpy.testing import assert_array_equal

from kernels.errors import TechniqueError
from kernels.linear import linear_backward_input, linear_backward_weight, linear_forward
from kernels.matmul import matmul
from kernels.matmul.tensor_core import matmul_tensor_core
from kernels.matmul.tensor_tiles import DEPTH, MEDIUM, SMALL
from kernels.run_emulated import EmulatorRunner

TENSOR_CORE = "tensor_core"
TURNS = [(False, False), (False, True), (True, False), (True, True)]


def whole(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return placed(rng.integers(-3, 4, shape))


@pytest.mark.parametrize(("a_transposed", "b_transposed"), TURNS)
@pytest.mark.parametrize("at_once", [4, 2, 1])
def test_both_turns_of_both_factors_at_the_edges_of_tiles(
    rng, a_transposed: bool, b_transposed: bool, at_once: int
) -> None:
    tile = MEDIUM if at_once == 1 else SMALL
    m, n, k = tile.rows + 4, tile.columns + 4, 2 * DEPTH + 4
    a = whole(rng, k, m) if a_transposed else whole(rng, m, k)
    b = whole(rng, n, k) if b_transposed else whole(rng, k, n)
    bias, c = whole(rng, n), np.empty((2, m, n), np.float32)
    kernel = matmul_tensor_core(tile, a_transposed, b_transposed, True, at_once, int64)
    EmulatorRunner()(kernel, a, b, bias, c, m, n, k, 2 * DEPTH)
    left, right = a.T if a_transposed else a, b.T if b_transposed else b
    assert_array_equal(c[0], left[:, : 2 * DEPTH] @ right[: 2 * DEPTH] + bias)
    assert_array_equal(c[1], left[:, 2 * DEPTH :] @ right[2 * DEPTH :])


@pytest.mark.parametrize("size", [(1, 4, 4), (5, 36, 8), (66, 12, 20), (7, 600, 12), (0, 4, 8)], ids=str)
def test_linear_layers_are_exact(rng, size: tuple[int, int, int]) -> None:
    n, c_in, c_out = size
    x, w, bias, dy = whole(rng, n, c_in), whole(rng, c_out, c_in), whole(rng, c_out), whole(rng, n, c_out)
    y, dx, dw, run = np.empty_like(dy), np.empty_like(x), np.empty_like(w), EmulatorRunner()
    linear_forward(run, x, w, bias, y, technique=TENSOR_CORE)
    linear_backward_input(run, dy, w, dx, technique=TENSOR_CORE)
    linear_backward_weight(run, x, dy, dw, technique=TENSOR_CORE)
    assert_array_equal(y, x @ w.T + bias)
    assert_array_equal(dx, dy @ w)
    assert_array_equal(dw, dy.T @ x)


@pytest.mark.parametrize("c_out", [10, 7])
def test_a_result_of_any_width(rng, c_out: int) -> None:
    """Ten classes: lines of w are in fours, those of y need not be."""
    x, w, bias, y = whole(rng, 9, 20), whole(rng, c_out, 20), whole(rng, c_out), np.empty((9, c_out), np.float32)
    run = EmulatorRunner(counts=True)
    linear_forward(run, x, w, bias, y, technique="tensor_core")
    assert [one.kernel.name for one in run.launched] == ["matmul_tensor_core"]
    assert_array_equal(y, x @ w.T + bias)


def test_a_nan_and_an_infinity_go_where_the_sums_go(rng) -> None:
    a, b, c = whole(rng, 20, 36), placed(np.ones((36, 12))), np.empty((20, 12), np.float32)
    a[3, 4], b[35, 11] = np.nan, np.inf
    a[5, 35] = 0
    matmul(EmulatorRunner(), a, b, c, technique=TENSOR_CORE)
    with np.errstate(invalid="ignore"):
        assert_array_equal(c, a @ b)
    assert np.isnan(c[3]).all()
    assert np.isnan(c[5, 11])


def test_what_it_cannot_take_is_refused_by_name(rng) -> None:
    run, (x, w, dy) = EmulatorRunner(), (whole(rng, 4, 8), whole(rng, 18, 8), whole(rng, 4, 18))
    with pytest.raises(TechniqueError, match=r"^linear_backward_input .*: dy has lines of 18, no multiple of 4; tiled"):
        linear_backward_input(run, dy, w, np.empty_like(x), technique=TENSOR_CORE)
    with pytest.raises(
        TechniqueError, match=r"^linear_backward_weight .*: dy has lines of 18, no multiple of 4; tiled"
    ):
        linear_backward_weight(run, x, dy, np.empty_like(w), technique=TENSOR_CORE)
    with pytest.raises(
        TechniqueError, match=r"^linear_forward .*: x starts at no multiple of 16 bytes; tiled or plain"
    ):
        linear_forward(run, placed(x, 1), w, None, dy, technique=TENSOR_CORE)
    assert launched(linear_backward_input, dy, w, np.empty_like(x), precision="tf32") == ["matmul_tiled"]
    assert launched(linear_forward, x, w, None, dy, precision="tf32") == ["matmul_tensor_core"]
    assert launched(linear_forward, x, w, None, dy) == ["matmul_tiled"]


def test_lines_are_copied_whole_and_without_bank_conflicts() -> None:
    x, w, y = placed(np.zeros((64, 32))), placed(np.zeros((32, 32))), placed(np.zeros((64, 32)))
    run = EmulatorRunner(checks=False, counts=True)
    linear_forward(run, x, w, None, y, technique=TENSOR_CORE)
    linear_backward_input(run, y, w, x, technique=TENSOR_CORE)
    linear_backward_weight(run, x, y, w, technique=TENSOR_CORE)
    for one in run.launched:
        total = one.report.counts.total
        assert total.bytes_asked >= 0.95 * total.bytes_moved
        assert total.bank_conflicts <= 0.05 * total.shared_passes
