"""Partial statistics and partial sums of gradients, few and many: what they merge into, and at what price."""

from typing import Any

import numpy as np
import pytest
from emulated import RUN, Recorder, blank, placed
from numpy.testing import assert_array_equal

from kernels.batch_statistics import BatchStatistics, GradientSums
from kernels.batchnorm import batchnorm_statistics_reference, merge_gradient_sums, merge_statistics
from kernels.errors import ShapeError
from kernels.run_emulated import EmulatorRunner
from minidl.lab.budget import U
from minidl.lab.inputs import FAMILIES

Array = np.ndarray
EPS = 1e-5
# (rows, span, channels): one launch and two; a short last block; one channel, some, more than a line of them.
SPLITS = ((7, 8, 1), (1000, 8, 5), (3073, 8, 4), (3075, 8, 3), (4999, 1, 33), (6400, 16, 130), (40001, 16, 1))


def partial_statistics(x: Array, span: int) -> Array:
    """Of each `span` rows, rounded once; the shift is the block's first row."""
    parts = [x[first : first + span].astype(np.float64) for first in range(0, len(x), span)]
    away = [rows - rows[0] for rows in parts]
    stacked = [rows[0] for rows in parts], [d.sum(axis=0) for d in away], [(d**2).sum(axis=0) for d in away]
    return placed(np.array(stacked))


def merged(run: Any, partial: Array, rows: int, span: int) -> BatchStatistics:
    out = BatchStatistics(*(blank(partial.shape[-1:]) for _ in range(4)))
    merge_statistics(run, partial, out, rows, span, EPS)
    return out


@pytest.mark.parametrize("family", ["ordinary", "mean-1e4-std-1e-2", "alternating", "constant"])
@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_statistics_of_partials_are_those_of_the_rows(rng, split: tuple[int, int, int], family: str) -> None:
    rows, span, c = split
    x = FAMILIES[family](rng, (rows, c))
    partial = partial_statistics(x, span)
    out = merged(RUN, partial, rows, span)
    right = batchnorm_statistics_reference(x.astype(np.float64), EPS)
    error = np.abs((out.shift.astype(np.float64) - right.shift) + out.delta)
    # A merge rounds a handful of times; a dozen of them lie one above the other.
    assert (error <= 40 * U * np.sqrt(right.var)).all()
    assert (np.abs(out.var - right.var) <= 40 * U * right.var).all()
    assert (np.abs(out.inv_std - right.inv_std) <= (20 + 4) * U * right.inv_std).all()
    for one, other in zip(out, merged(RUN, partial, rows, span), strict=True):
        assert_array_equal(one, other)


@pytest.mark.parametrize("blocks", [1, 384, 385, 5000])
@pytest.mark.parametrize("c", [1, 5, 64, 130])
def test_sums_of_partials_are_exact_where_they_can_be(rng, c: int, blocks: int) -> None:
    partial = placed(rng.integers(-99, 100, (2, blocks, c)))
    inv_std, rows = placed(2.0 ** rng.integers(-3, 4, c)), 1 << 14
    sums = GradientSums(*(blank((c,)) for _ in range(4)))
    merge_gradient_sums(RUN, partial, inv_std, sums, rows)
    s, p = partial.astype(np.float64).sum(axis=1)
    for got, right in zip(sums, (p * inv_std, s, s / rows, p * inv_std**2 / rows), strict=True):
        assert_array_equal(got, right)


def test_gradients_of_parameters_may_be_left_out(rng) -> None:
    partial, inv_std = placed(rng.standard_normal((2, 500, 8))), placed(np.ones(8))
    full, less = (GradientSums(*(blank((8,)) for _ in range(4))) for _ in range(2))
    merge_gradient_sums(RUN, partial, inv_std, full, 9)
    merge_gradient_sums(RUN, partial, inv_std, less._replace(dgamma=None, dbeta=None), 9)
    assert_array_equal(less.mean_g, full.mean_g)
    assert_array_equal(less.slope, full.slope)


def test_what_is_not_finite_stays_in_its_channel(rng) -> None:
    x = rng.standard_normal((8000, 5)).astype(np.float32)
    x[7990, 3] = np.nan
    with np.errstate(invalid="ignore"):
        out = merged(RUN, partial_statistics(x, 16), 8000, 16)
    assert np.isnan(out.var[3])
    assert np.isfinite(np.delete(np.array(out), 3, axis=1)).all()


def test_many_take_two_launches_and_few_one() -> None:
    for blocks, names in ((384, ["finish"]), (385, ["merge", "finish"]), (4096, ["merge", "finish"])):
        run, c = Recorder(), blank((64,))
        merge_statistics(
            run, np.empty((3, blocks, 64), np.float32), BatchStatistics(c, c, c, c), 128 * blocks, 128, EPS
        )
        merge_gradient_sums(run, np.empty((2, blocks, 64), np.float32), c, GradientSums(c, c, c, c), 128 * blocks)
        expected = [f"batchnorm_{name}_{what}" for what in ("statistics", "gradients") for name in names]
        assert [kernel.name for kernel in run.kernels] == expected


def test_many_are_read_coalesced_by_many_blocks() -> None:
    """4096 tiles of 128 rows and 64 channels, as an epilogue of resnet-18's first stage leaves them."""
    run, c = EmulatorRunner(counts=True), [blank((64,)) for _ in range(4)]
    partial = np.ones((3, 4096, 64), np.float32)
    merge_statistics(run, partial, BatchStatistics(*c), 4096 * 128, 128, EPS)
    merge_gradient_sums(run, partial[:2], c[0], GradientSums(*c), 4096 * 128)
    for kernel, grid, report in run.launched:
        assert report.counts is not None
        total = report.counts.total
        if "merge" in kernel.name:
            assert np.prod(grid) >= 256
            assert total.bytes_moved <= 1.05 * total.bytes_asked
            assert total.bank_conflicts == 0
    assert sum(report.counts.total.bytes_moved for _, _, report in run.launched) <= 1.2 * 5 / 3 * partial.nbytes


def test_wrong_arguments_are_refused_before_anything_is_launched() -> None:
    run, c = Recorder(), blank((8,))
    out, sums = BatchStatistics(c, c, c, c), GradientSums(None, None, c, c)
    with pytest.raises(ShapeError, match=r"merge_statistics: partial has shape \(3, 4, 8\), expected \(3, 5, 8\)"):
        merge_statistics(run, blank((3, 4, 8)), out, 33, 8, EPS)
    with pytest.raises(ShapeError, match=r"merge_statistics: var has shape \(7,\), expected \(8,\)"):
        merge_statistics(run, blank((3, 5, 8)), out._replace(var=blank((7,))), 33, 8, EPS)
    with pytest.raises(ShapeError, match="merge_statistics: 0 rows, 8 of each block, expected at least one of each"):
        merge_statistics(run, blank((3, 0, 8)), out, 0, 8, EPS)
    with pytest.raises(ShapeError, match=r"merge_gradient_sums: partial has shape \(3, 5, 8\), expected \(2, blocks"):
        merge_gradient_sums(run, blank((3, 5, 8)), c, sums, 33)
    with pytest.raises(ShapeError, match=r"merge_gradient_sums: slope has shape \(7,\), expected \(8,\)"):
        merge_gradient_sums(run, blank((2, 5, 8)), c, sums._replace(slope=blank((7,))), 33)
    assert not run.kernels
