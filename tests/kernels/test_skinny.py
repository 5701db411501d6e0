"""The kernels for linear layers of few outputs; numbers are whole, so that every sum is exact."""

import itertools
from typing import Any

import numpy as np
import pytest
from emulated import blank, launched, placed
from numba import int64
from numpy.testing import assert_array_equal

from kernels.errors import TechniqueError
from kernels.linear import (
    linear_backward_input,
    linear_backward_weight,
    linear_backward_weight_reference,
    linear_forward,
    linear_forward_reference,
)
from kernels.matmul import skinny_launch
from kernels.matmul.skinny import (
    MANY_ROWS,
    STEP,
    WARPS,
    linear_backward_input_skinny,
    linear_backward_weight_skinny,
    linear_forward_skinny,
    rows_of,
)
from kernels.matmul.skinny_launch import CHAIN, FEW_ROWS, MOST
from kernels.run_dry import DryRunner
from kernels.run_emulated import EmulatorRunner

SIZES = [  # n, c_in, c_out
    (1, 4, 1), (2, 8, 16), (47, 128, 10), (48, 124, 10), (49, 132, 10), (64, 256, 1), (65, 260, 3), (33, 516, 7),
    (130, 520, 16), (260, 1028, 10), (385, 64, 5), (3, 784, 10), (0, 8, 3),
]  # fmt: skip


def whole(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return placed(rng.integers(-3, 4, shape))


def all_three(x: Any, w: Any, bias: Any, dy: Any, run: Any = None, **options: Any) -> tuple[Any, Any, Any]:
    y, dx, dw = blank(dy.shape), blank(x.shape), blank(w.shape)
    run = run or EmulatorRunner()
    linear_forward(run, x, w, bias, y, **options)
    linear_backward_input(run, dy, w, dx, **options)
    linear_backward_weight(run, x, dy, dw, **options)
    return y, dx, dw


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_products_of_whole_numbers_are_exact(rng: np.random.Generator, size, with_bias: bool) -> None:
    n, c_in, c_out = size
    x, w, dy, bias = whole(rng, n, c_in), whole(rng, c_out, c_in), whole(rng, n, c_out), whole(rng, c_out)
    y, dx, dw = all_three(x, w, bias if with_bias else None, dy, technique="skinny")
    assert_array_equal(y, linear_forward_reference(x, w, bias if with_bias else None))
    assert_array_equal(dx, dy @ w)
    assert_array_equal(dw, dy.T @ x)


@pytest.mark.parametrize("c_out", range(1, MOST + 1))
def test_every_number_of_outputs(rng: np.random.Generator, c_out: int) -> None:
    x, w, dy = whole(rng, 9, 132), whole(rng, c_out, 132), whole(rng, 9, c_out)
    y, dx, dw = all_three(x, w, None, dy, technique="skinny")
    assert_array_equal(y, x @ w.T)
    assert_array_equal(dx, dy @ w)
    assert_array_equal(dw, dy.T @ x)


def test_indices_of_64_bits_and_slices_that_end_in_a_part_of_a_step(rng: np.random.Generator) -> None:
    n, c_in, c_out, run = 300, 388, 10, EmulatorRunner()
    x, w, bias, dy = whole(rng, n, c_in), whole(rng, c_out, c_in), whole(rng, c_out), whole(rng, n, c_out)
    y, dx, dw = blank((2, n, c_out)), blank(x.shape), blank((3, c_out, c_in))
    run(linear_forward_skinny(c_out, True, int64), x, w, bias, y, n, c_in, 2 * STEP)
    run(linear_backward_input_skinny(c_out, int64), dy, w, dx, n, c_in, 37)
    run(linear_backward_weight_skinny(c_out, int64), x, dy, dw, n, c_in, STEP)
    assert_array_equal(y[0], x[:, :256] @ w[:, :256].T + bias)
    assert_array_equal(y[1], x[:, 256:] @ w[:, 256:].T)
    assert_array_equal(dx, dy @ w)
    assert_array_equal(dw[2], dy[256:].T @ x[256:])
    assert_array_equal(dw.sum(axis=0), dy.T @ x)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_goes_where_the_sums_go(rng: np.random.Generator, value: float) -> None:
    x, w, dy = whole(rng, 50, 260), np.ones((3, 260), np.float32), whole(rng, 50, 3)
    x[7, 259], dy[:] = value, np.abs(dy) + 1
    y, dx, dw = all_three(x, placed(w), None, dy, technique="skinny")
    assert_array_equal(y, linear_forward_reference(x, w, None))
    assert_array_equal(dx, dy @ w)
    assert_array_equal(dw, linear_backward_weight_reference(x, dy))
    assert np.isfinite(y).sum() == y.size - 3
    assert np.isfinite(dw).sum() == dw.size - 3


def test_few_outputs_are_chosen_for_it_in_any_precision_and_it_is_said_why() -> None:
    for precision in ("fp32", "tf32"):
        run, arrays = DryRunner(), (blank((64, 64)), blank((10, 64)), None, blank((64, 10)))
        all_three(*arrays, run=run, precision=precision)
        assert [one.technique for one in run.chosen] == ["skinny"] * 3
        assert {one.why for one in run.chosen} == {"10 outputs: all of them in a thread's registers"}
    for c_in, c_out, why in (
        (64, 20, "20 outputs, skinny takes 1 to 16"),
        (6, 10, "x and w have lines of 6, no multiple of 4"),
    ):
        run = DryRunner()
        linear_forward(run, blank((64, c_in)), blank((c_out, c_in)), None, blank((64, c_out)))
        assert (run.chosen[0].technique, run.chosen[0].why) == ("tiled", why)


@pytest.mark.parametrize(
    ("c_in", "c_out", "offset", "why"),
    [
        (8, 17, 0, "17 outputs, skinny takes 1 to 16"),
        (8, 0, 0, "0 outputs, skinny takes 1 to 16"),
        (6, 3, 0, "(x and w|w and dx|x and dw) have lines of 6, no multiple of 4"),
        (8, 3, 1, "(x|dx) starts at no multiple of 16 bytes"),
    ],
)
def test_what_it_cannot_take(c_in: int, c_out: int, offset: int, why: str) -> None:
    x, w, y, run = blank((5, c_in), offset), blank((c_out, c_in)), blank((5, c_out)), EmulatorRunner()
    for host, arrays in (
        (linear_forward, (x, w, None, y)),
        (linear_backward_input, (y, w, x)),
        (linear_backward_weight, (x, y, w)),
    ):
        with pytest.raises(TechniqueError, match=f"{host.__name__} .* technique 'skinny': {why}; "):
            host(run, *arrays, technique="skinny")
        assert not any("skinny" in name for name in launched(host, *arrays))


def test_no_sum_has_more_terms_than_promised() -> None:
    """Whatever the size; memory that is never touched costs nothing."""
    spans: dict[str, int] = {}

    class Noting(DryRunner):
        def __call__(self, kernel: Any, *values: Any) -> None:
            kernel.grid(values)
            if "span" in kernel.parameters:
                spans[kernel.name] = values[list(kernel.parameters).index("span")]

    for n, c_in, c_out in itertools.product((1, 128, 10**6), (4, 3136, 10**6), (1, 16)):
        if n * c_in > 10**9:
            continue
        x, w, y = np.empty((n, c_in), np.float32), np.empty((c_out, c_in), np.float32), np.empty((n, c_out), np.float32)
        run = Noting()
        skinny_launch.forward(run, x, w, None, y)
        skinny_launch.backward_input(run, y, w, x)
        skinny_launch.backward_weight(run, x, y, w)
        assert 4 * -(-min(spans["linear_forward_skinny"], c_in) // STEP) <= CHAIN
        assert FEW_ROWS <= spans["linear_backward_input_skinny"] <= MANY_ROWS
        assert -(-min(spans["linear_backward_weight_skinny"], n) // WARPS) <= CHAIN
        assert rows_of(c_out) * c_out <= 64


def test_the_large_array_passes_once() -> None:
    """What else is read: the weights for each 48 rows of x, or 32 of dx; dy for each 128 columns."""
    n, c_in, c_out, run = 96, 256, 10, EmulatorRunner(counts=True)
    x, w, dy = blank((n, c_in)), blank((c_out, c_in)), blank((n, c_out))
    all_three(x, w, None, dy, run=run, technique="skinny")
    forward, backward, weight = (one.report.counts.total for one in run.launched)
    assert (forward.load_bytes, forward.store_bytes) == (x.nbytes + 2 * w.nbytes, dy.nbytes)
    assert (backward.load_bytes, backward.store_bytes) == (dy.nbytes + 3 * w.nbytes, x.nbytes)
    assert (weight.load_bytes, weight.store_bytes) == (x.nbytes + 2 * dy.nbytes, w.nbytes)
    assert [one.bank_conflicts for one in (forward, weight)] == [0, 0]
