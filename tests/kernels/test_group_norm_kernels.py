from typing import Any

import numpy as np
import pytest
from emulated import RUN, Recorder, blank, launched, placed, run_by
from numba import int64, uint32
from numpy.testing import assert_allclose, assert_array_equal

from kernels import group_norm
from kernels.batch_statistics import BatchStatistics
from kernels.errors import ShapeError
from kernels.group_norm import layout
from kernels.group_norm.backward_of_groups import group_norm_backward_of_groups_vector
from kernels.group_norm.gradient_sums import (
    group_norm_finish_gradients,
    group_norm_sum_gradients_scalar,
    group_norm_sum_gradients_vector,
)
from kernels.group_norm.statistics import (
    group_norm_finish_statistics,
    group_norm_sum_shifted_scalar,
    group_norm_sum_shifted_vector,
)
from kernels.group_norm.statistics_of_groups import group_norm_statistics_of_groups_vector
from kernels.run_emulated import EmulatorRunner
from minidl.lab.budget import U
from minidl.lab.inputs import FAMILIES
from minidl.lab.operations.group_norm import in_groups
from minidl.lab.operations.group_norm_bounds import backward_bounds, y_bound

Array = np.ndarray
EPS = 1e-5
TECHNIQUES = ["scalar", "vector"]
# Groups of one channel, some and all; rows with every kind of tail; parts of a warp, warps and blocks for a group.
FORMS = [
    ((2, 3), 1), ((3, 4), 4), ((9, 17), 1), ((5, 64), 2), ((2, 1030), 1), ((2, 3, 12), 3), ((3, 2, 2, 8), 8),
    ((2, 7, 11, 5), 5), ((2, 16, 20), 5), ((3, 13, 5, 64), 32), ((1, 40, 9, 36), 1), ((2, 9, 260), 2),
]  # fmt: skip
WAYS = {"by shape": layout.FEW_ROWS, "by rows": 0, "by groups": 10**9}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All forms by rows, and all by groups: both ways are right for any, though not as fast."""
    monkeypatch.setattr(layout, "FEW_ROWS", WAYS[request.param])
    name: str = request.param
    return name


def tensors(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Array, ...]:
    """x, dy, gamma, beta."""
    c = shape[-1]
    arrays = (
        2 + 3 * rng.standard_normal(shape),
        rng.standard_normal(shape),
        rng.uniform(0.5, 2, c) * rng.choice([-1, 1], c),
        rng.standard_normal(c),
    )
    return tuple(array.astype(np.float32) for array in arrays)


def outputs(shape: tuple[int, ...], groups: int, offset: int = 0) -> BatchStatistics:
    return BatchStatistics(*(blank((shape[0], groups), offset) for _ in range(4)))


def wide(statistics: BatchStatistics) -> BatchStatistics:
    return BatchStatistics(*(part.astype(np.float64) for part in statistics))


def assert_right(out: BatchStatistics, x: Array, groups: int, units: float = 8, eps: float = EPS) -> None:
    """Within some units of rounding of a deviation, and of the variance."""
    right = group_norm.group_norm_statistics_reference(x.astype(np.float64), groups, eps)
    error = np.abs((out.shift.astype(np.float64) - right.shift) + out.delta)
    assert (error <= units * U * np.sqrt(right.var)).all()
    assert_allclose(out.var, right.var, rtol=units * U)
    assert_allclose(out.inv_std, right.inv_std, rtol=(units / 2 + 4) * U)


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize(("shape", "groups"), FORMS, ids=str)
def test_statistics_forward_and_backward(rng, way: str, shape, groups: int, technique: str) -> None:
    x, dy, gamma, beta = tensors(rng, shape)
    offset = int(rng.integers(2))
    x_, dy_ = placed(x, offset), placed(dy, offset)
    out = outputs(shape, groups, offset)
    seen = layout.view("", x, groups)
    in_fours, whole, across = offset == 0 and shape[-1] % 4 == 0, seen.size % 4 == 0, layout.walks_across(seen)
    fits = in_fours and (whole or not seen.by_groups)
    run_by(technique, fits, group_norm.group_norm_statistics, RUN, x_, groups, EPS, out)
    assert_right(out, x, groups)
    exact = wide(out)
    for parameters in ((gamma, beta), (gamma, None), (None, None)):
        g, b = (None if array is None else placed(array, offset) for array in parameters)
        g64, b64 = (None if array is None else array.astype(np.float64) for array in parameters)
        y, dx, dgamma, dbeta = blank(shape, offset), blank(shape, offset), blank(gamma.shape), blank(gamma.shape)
        fits = in_fours and (whole or not across)
        run_by(technique, fits, group_norm.group_norm_apply, RUN, x_, out, groups, g, b, y)
        right = group_norm.group_norm_apply_reference(x.astype(np.float64), exact, groups, g64, b64)
        assert (np.abs(y - right) <= y_bound(x, out, groups, g, b)).all()

        fits = in_fours and (whole or not (across or seen.by_groups))
        run_by(technique, fits, group_norm.group_norm_backward, RUN, x_, dy_, out, groups, g, dx, dgamma, dbeta)
        rights = group_norm.group_norm_backward_reference(x.astype(float), dy.astype(float), exact, groups, g64)
        bounds = backward_bounds(x, dy, exact, groups, g)
        for name, got, expected in zip(("dx", "dgamma", "dbeta"), (dx, dgamma, dbeta), rights, strict=True):
            assert (np.abs(got - expected) <= bounds[name]).all(), name


@pytest.mark.parametrize("family", ["mean-1e4-std-1e-2", "mean-1e6-std-1", "two-outliers", "scattered-outliers"])
@pytest.mark.parametrize(("shape", "groups"), [((3, 1200), 1), ((2, 24, 25, 8), 2), ((2, 15, 40, 3), 3)], ids=str)
def test_statistics_of_hostile_numbers_are_as_good(rng, way: str, family: str, shape, groups: int) -> None:
    x = in_groups(FAMILIES[family], shape, groups)(rng, shape)
    out = outputs(shape, groups)
    group_norm.group_norm_statistics(RUN, placed(x), groups, EPS, out)
    assert_right(out, x, groups, units=10)
    if family.startswith("mean"):  # y up to 5 would be off by 5e-2 with a single float32 mean
        y = blank(shape)
        group_norm.group_norm_apply(RUN, placed(x), out, groups, None, None, y)
        right = group_norm.group_norm_statistics_reference(x.astype(np.float64), groups, EPS)
        expected = group_norm.group_norm_apply_reference(x.astype(np.float64), right, groups, None, None)
        assert np.abs(y - expected).max() < 8e-7


@pytest.mark.parametrize(("shape", "groups"), [((2, 1003), 1), ((3, 77, 6), 3)], ids=str)
def test_a_constant_group_is_its_own_mean_and_has_variance_0(rng, way: str, shape, groups: int) -> None:
    x = in_groups(FAMILIES["constant"], shape, groups)(rng, shape)
    out = outputs(shape, groups)
    group_norm.group_norm_statistics(RUN, placed(x), groups, EPS, out)
    assert_array_equal(out.shift, x.reshape(shape[0], -1, groups, shape[-1] // groups)[:, 0, :, 0])
    assert_array_equal([out.delta, out.var], 0)


@pytest.mark.parametrize("special", [(np.nan,), (np.inf,), (-np.inf,), (np.inf, -np.inf)], ids=str)
def test_what_is_not_finite_poisons_its_group_and_no_other(rng, way: str, special) -> None:
    x = rng.standard_normal((3, 40, 16)).astype(np.float32)
    clean, out = outputs(x.shape, 4), outputs(x.shape, 4)
    group_norm.group_norm_statistics(RUN, placed(x), 4, EPS, clean)
    x[1, 30, 8 : 8 + len(special)] = special
    group_norm.group_norm_statistics(RUN, placed(x), 4, EPS, out)
    others = np.ones((3, 4), bool)
    others[1, 2] = False
    for got, alone in zip(out, clean, strict=True):
        assert_array_equal(got[others], alone[others])
    assert_array_equal((out.shift + out.delta)[1, 2], np.float32(sum(special)))
    assert np.isnan(out.var[1, 2])


@pytest.mark.parametrize("index", [uint32, int64])
@pytest.mark.parametrize("factory", [group_norm_sum_shifted_scalar, group_norm_sum_shifted_vector])
@pytest.mark.parametrize(("groups", "span"), [(1, 1), (1, 16), (2, 300), (8, 16), (8, 5000)])
def test_statistics_of_any_pieces(rng, factory, index, groups: int, span: int) -> None:
    """More of them than a team has threads, and pieces of which a thread has many chunks."""
    x = placed(in_groups(FAMILIES["mean-1e4-std-1"], (2, 1501, 8), groups)(rng))
    per = -(-1501 // span)
    partial, out = blank((3, 2 * per, 8)), outputs(x.shape, groups)
    RUN(factory(8, index), x, partial, 2, 1501, per, span)
    RUN(group_norm_finish_statistics(8, groups), partial, *out, 2 * groups, 1501, per, span, EPS)
    assert_right(out, x, groups)


@pytest.mark.parametrize("index", [uint32, int64])
@pytest.mark.parametrize("factory", [group_norm_sum_gradients_scalar, group_norm_sum_gradients_vector])
@pytest.mark.parametrize(("groups", "span"), [(1, 1), (2, 300), (8, 16), (8, 5000)])
def test_sums_of_any_pieces(rng, factory, index, groups: int, span: int) -> None:
    x, dy = (placed(rng.integers(-3, 4, (2, 1501, 8))) for _ in range(2))  # their sums are exact
    gamma = placed(rng.integers(-3, 4, 8))
    statistics = [placed(rng.integers(-3, 4, (2, groups))) for _ in range(2)]
    inverse = placed(2.0 ** rng.integers(-1, 2, (2, groups)))
    per = -(-1501 // span)
    partial, mean_g, slope = blank((2, 2 * per, 8)), blank((2, groups)), blank((2, groups))
    RUN(factory(8, groups, 0, index), x, dy, *statistics, inverse, partial, 2, 1501, per, span)
    RUN(group_norm_finish_gradients(8, groups, True), partial, inverse, gamma, mean_g, slope, 2 * groups, 1501, per)

    size, m = 8 // groups, np.float32(1501 * 8 // groups)
    shift, delta, scale = (np.repeat(part, size, axis=1)[:, None] for part in (*statistics, inverse))
    xhat = (x - shift - delta) * scale
    for plane, terms in enumerate((dy, dy * xhat)):
        assert_array_equal(partial[plane].sum(axis=0), terms.sum(axis=(0, 1)))
    sums = [(gamma * terms).reshape(2, 1501, groups, size).sum(axis=(1, 3)) for terms in (dy, dy * xhat)]
    assert_array_equal(mean_g, sums[0] / m)
    assert_array_equal(slope, sums[1] / m * inverse)


def test_a_block_has_a_large_group(rng) -> None:
    x, dy, gamma, _ = tensors(rng, (3, 2104))
    exact = group_norm.group_norm_statistics_reference(x.astype(np.float64), 1, EPS)
    for threads in (32, 256, 512):
        out, dx = outputs(x.shape, 1), blank(x.shape)
        for index in (uint32, int64):
            kernel = group_norm_statistics_of_groups_vector(2104, 1, threads, True, index)
            RUN(kernel, placed(x), *out, 3, 1, EPS)
            assert_right(out, x, 1)
            kernel = group_norm_backward_of_groups_vector(2104, 1, threads, True, True, index)
            RUN(kernel, placed(x), placed(dy), out.shift, out.delta, out.inv_std, placed(gamma), dx, 3, 1)
            right = group_norm.group_norm_backward_reference(x.astype(float), dy.astype(float), exact, 1, gamma)
            assert_allclose(dx, right[0], atol=2e-6)


@pytest.mark.parametrize("special", [np.nan, np.inf])
def test_what_is_not_finite_in_dy_stays_in_its_group(rng, way: str, special: float) -> None:
    x, dy, gamma, _ = tensors(rng, (2, 30, 8))
    dy[1, 20, 5] = special
    out, dx, dgamma, dbeta = outputs(x.shape, 2), blank(x.shape), blank((8,)), blank((8,))
    group_norm.group_norm_statistics(RUN, placed(x), 2, EPS, out)
    group_norm.group_norm_backward(RUN, placed(x), placed(dy), out, 2, placed(gamma), dx, dgamma, dbeta)
    assert_array_equal(np.isfinite(dx).all(axis=1), [[True] * 8, [True] * 4 + [False] * 4])
    assert_array_equal(np.isfinite([dgamma, dbeta]), np.arange(8) != [[5], [5]])


@pytest.mark.parametrize("shape", [(0, 4), (0, 20, 4), (2, 0, 4)], ids=str)
def test_nothing_in_nothing_out(shape) -> None:
    x, ones = placed(np.zeros(shape)), placed(np.ones(4))
    statistics = BatchStatistics(*(placed(np.ones((shape[0], 2))) for _ in range(4)))
    group_norm.group_norm_apply(RUN, x, statistics, 2, ones, ones, blank(shape))
    dgamma, dbeta = blank((4,)), blank((4,))
    group_norm.group_norm_backward(RUN, x, x, statistics, 2, ones, blank(shape), dgamma, dbeta)
    assert_array_equal([dgamma, dbeta], 0)
    if shape[0] == 0:
        group_norm.group_norm_statistics(RUN, x, 2, EPS, statistics)
    else:
        with pytest.raises(ShapeError, match=r"x has shape \(2, 0, 4\), expected at least one row in a sample"):
            group_norm.group_norm_statistics(RUN, x, 2, EPS, statistics)


# What is launched.


def names(x: Array, groups: int, affine: bool = True, technique: str | None = None) -> list[str]:
    """Of the kernels of all three operations."""
    statistics, parameter = outputs(x.shape, groups), blank(x.shape[-1:])
    gamma, beta = (parameter, parameter) if affine else (None, None)
    choice: dict[str, Any] = {"technique": technique}
    return [
        *launched(group_norm.group_norm_statistics, x, groups, EPS, statistics, **choice),
        *launched(group_norm.group_norm_apply, x, statistics, groups, gamma, beta, x, **choice),
        *launched(group_norm.group_norm_backward, x, x, statistics, groups, gamma, x, gamma, beta, **choice),
    ]


def test_few_rows_go_by_groups_and_many_by_rows() -> None:
    for technique, width in ((None, "vector"), ("vector", "vector"), ("scalar", "scalar")):
        assert names(blank((5, 64)), 1, technique=technique) == [
            f"group_norm_statistics_of_groups_{width}", f"group_norm_apply_{width}",
            f"group_norm_backward_of_groups_{width}", f"group_norm_sum_gradients_{width}",
            *["sum_columns_of_chunks"] * 2,
        ]  # fmt: skip
        assert names(blank((5, 30, 64)), 8, technique=technique) == [
            f"group_norm_sum_shifted_{width}", "group_norm_finish_statistics", f"group_norm_apply_{width}",
            f"group_norm_sum_gradients_{width}", "group_norm_finish_gradients", f"group_norm_backward_{width}",
            *["sum_columns_of_chunks"] * 2,
        ]  # fmt: skip
    assert names(blank((5, 64)), 1, affine=False)[2:] == ["group_norm_backward_of_groups_vector"]
    assert len(names(blank((5, 30, 64)), 8, affine=False)) == 6


def test_wide_accesses_where_the_arrays_and_the_groups_allow_them() -> None:
    for x, groups in ((blank((5, 30, 64), 1), 8), (blank((5, 30, 6)), 2), (blank((5, 64), 1), 1), (blank((5, 12)), 4)):
        assert not any("vector" in name for name in names(x, groups))
    x, off = blank((5, 30, 64)), blank((5, 30, 64), 1)
    statistics, parameter, misplaced = outputs(x.shape, 8), blank((64,)), blank((64,), 1)
    for given in ((off, parameter), (x, misplaced)):
        y, beta = given
        assert launched(group_norm.group_norm_apply, x, statistics, 8, parameter, beta, y) == [
            "group_norm_apply_scalar"
        ]
    tables = outputs(x.shape, 64)
    for table, width in ((blank((5, 64)), "vector"), (blank((5, 64), 1), "scalar")):  # read together with channels
        found = launched(group_norm.group_norm_apply, x, tables._replace(delta=table), 64, None, None, x)
        assert found == [f"group_norm_apply_{width}"]
        found = launched(group_norm.group_norm_backward, x, x, tables._replace(delta=table), 64, None, x, None, None)
        assert found == [
            f"group_norm_sum_gradients_{width}", "group_norm_finish_gradients", f"group_norm_backward_{width}",
        ]  # fmt: skip
    for dy, gamma, dx in ((off, parameter, x), (x, misplaced, x), (x, parameter, off)):
        found = launched(group_norm.group_norm_backward, x, dy, statistics, 8, gamma, dx, None, None)
        assert found[-1] == "group_norm_backward_scalar"


@pytest.mark.parametrize(
    ("shape", "groups"), [((4, 1024, 64), 8), ((2, 1024, 96), 96), ((2048, 64), 1), ((256, 512), 1)], ids=str
)
def test_accesses_are_coalesced_and_meet_no_bank_twice(rng, shape, groups: int) -> None:
    run = EmulatorRunner(counts=True)
    x, dy, y, dx = (placed(rng.standard_normal(shape)) for _ in range(4))
    statistics, gamma, beta = outputs(shape, groups), blank(shape[-1:]), blank(shape[-1:])
    group_norm.group_norm_statistics(run, x, groups, EPS, statistics)
    group_norm.group_norm_apply(run, x, statistics, groups, gamma, beta, y)
    group_norm.group_norm_backward(run, x, dy, statistics, groups, gamma, dx, blank(gamma.shape), blank(gamma.shape))
    assert len(run.launched) in (6, 8)
    for kernel, _, report in run.launched:
        assert report.counts is not None
        total = report.counts.total
        assert total.bank_conflicts == 0, kernel
        # Of the statistics a load takes a part of a sector, and sums at a group's end are a few hundredths of x.
        assert total.bytes_moved <= max(1.3 * total.bytes_asked, 0.06 * x.nbytes), kernel


def test_a_short_last_batch_compiles_nothing_new() -> None:
    recorder = Recorder()
    for n in (64, 7, 1):
        for shape, groups in (((n, 30, 8), 2), ((n, 64), 1), ((n, 4, 8), 2)):
            x, statistics, parameter = blank(shape), outputs(shape, groups), blank(shape[-1:])
            group_norm.group_norm_statistics(recorder, x, groups, EPS, statistics)
            group_norm.group_norm_apply(recorder, x, statistics, groups, parameter, parameter, x)
            arguments = x, x, statistics, groups, parameter, x, None, None
            group_norm.group_norm_backward(recorder, *arguments)
    assert len(set(map(id, recorder.kernels))) == 6 + 2 * 3


def test_no_group_asks_for_more_threads_than_its_registers_allow() -> None:
    sizes = (1, 3, 4, 31, 64, 129, 512, 2048, 2049, 10**5, 10**8)
    found = {layout.threads_of(size, width) for size in sizes for width in (1, 4)}
    assert found <= {1, 2, 4, 8, 16, 32, 256, 512}
    assert {1, 8, 32, 256, 512} <= found


def refused(match: str, host: Any, *arguments: Any, error: type[Exception] = ShapeError) -> None:
    with pytest.raises(error, match=match):
        host(RUN, *arguments)


def test_wrong_arguments_are_refused() -> None:
    x, statistics, parameter, short = blank((5, 3, 8)), outputs((5,), 4), blank((8,)), blank((7,))
    measure, apply, back = (
        group_norm.group_norm_statistics, group_norm.group_norm_apply, group_norm.group_norm_backward,
    )  # fmt: skip
    for groups in (3, 0, -2, 16):
        refused(rf"group_norm_statistics: groups is {groups}, expected a divisor of", measure, x, groups, 1, statistics)
    refused(r"x has shape \(8,\), expected \(n, \.\.\., c\)", measure, parameter, 4, 1, statistics)
    refused(r"x has shape \(3, 0\), expected", measure, blank((3, 0)), 1, 1, statistics)
    wrong = statistics._replace(var=blank((5, 3)))
    refused(r"group_norm_statistics: var has shape \(5, 3\), expected \(5, 4\)", measure, x, 4, 1, wrong)
    refused(r"group_norm_apply: shift has shape \(5, 4\), expected \(5, 2\)", apply, x, statistics, 2, None, None, x)
    refused(r"group_norm_apply: gamma has shape \(7,\)", apply, x, statistics, 4, short, None, x)
    refused(r"group_norm_apply: y has shape \(5, 8\)", apply, x, statistics, 4, None, None, blank((5, 8)))
    refused("beta is given without gamma", apply, x, statistics, 4, None, parameter, x, error=TypeError)
    given = statistics, 4, parameter
    refused(r"group_norm_backward: dy has shape \(5, 8\)", back, x, blank((5, 8)), *given, x, None, None)
    refused(r"group_norm_backward: dbeta has shape \(7,\)", back, x, x, *given, x, parameter, short)
    double = placed(np.zeros((5, 3, 8)), dtype=np.float64)
    refused("x has dtype float64, expected float32", measure, double, 4, 1, statistics, error=TypeError)
