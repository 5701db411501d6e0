import math

import numpy as np
import pytest

from minidl.lab.budget import (
    DEPTH,
    LAMBDA,
    TINY,
    Comparison,
    U,
    compare,
    poison,
    products,
    rounding,
    summation,
    unwritten,
)

NAN, INF = math.nan, math.inf


def test_the_worst_element_is_found_by_its_ratio_not_its_error() -> None:
    worst = compare(np.float32([[1, 2], [3, 100]]), np.array([[1.0, 2.25], [3.0, 101.0]]), np.array([[1, 0.5], [1, 4]]))
    assert worst == Comparison(error=0.25, bound=0.5, ratio=0.5, index=(0, 1), got=2.0, expected=2.25)
    assert worst.passed


def test_a_ratio_of_one_passes_and_anything_above_fails() -> None:
    assert compare(np.float32([2]), np.array([1.0]), 1.0).passed
    assert not compare(np.float32([2]), np.array([1.0]), 1 - 1e-9).passed


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_what_is_not_finite_matches_itself_alone(value: float) -> None:
    assert compare(np.float32([value, 1]), np.array([value, 1]), 0.0).ratio == 0
    for other in {1.0, NAN, INF, -INF} - {value}:
        if not (math.isnan(other) and math.isnan(value)):
            worst = compare(np.float32([1, value]), np.array([1.0, other]), 1e30)
            assert (worst.ratio, worst.error, worst.index) == (INF, INF, (1,))
            assert not worst.passed


def test_bound_zero_demands_equality_and_zeros_have_no_sign() -> None:
    assert compare(np.float32([-0.0, 5]), np.array([0.0, 5.0]), 0.0).ratio == 0
    assert compare(np.float32([5]), np.array([5 + 1e-12]), 0.0).ratio == INF


@pytest.mark.parametrize("bound", [INF, NAN])
def test_a_bound_that_is_not_finite_excuses_nothing(bound: float) -> None:
    assert compare(np.float32([1]), np.array([1.5]), bound).ratio == INF
    assert compare(np.float32([1]), np.array([1.0]), bound).ratio == 0


def test_a_negative_bound_and_different_shapes_are_mistakes_of_the_check() -> None:
    with pytest.raises(ValueError, match=r"a bound is negative: -1"):
        compare(np.float32([1]), np.array([1.0]), -1.0)
    with pytest.raises(ValueError, match=r"the result has shape \(2,\), the reference \(1,\)"):
        compare(np.zeros(2), np.zeros(1), 1.0)


def test_empty_arrays_pass_and_numbers_compare_like_arrays() -> None:
    assert compare(np.zeros((0, 3)), np.zeros((0, 3)), 0.0).ratio == 0
    assert compare(np.float32(1.5), np.float64(1), 0.25).ratio == 2


def test_integers_and_booleans_are_compared_exactly_even_where_float64_cannot() -> None:
    big = np.array([2**62 + 1, 3])
    assert compare(big, big, 0.0).ratio == 0
    assert compare(big, np.array([2**62, 3]), 1e9).ratio == INF
    assert compare(np.array(True), np.array(False), 1.0).ratio == INF
    assert compare(np.array([3], np.int32), np.array([3], np.int64), 0.0).ratio == 0


def test_a_few_roundings_are_counted_one_by_one_and_many_by_their_square_root() -> None:
    assert rounding(0) == 0
    assert rounding(1) == U
    assert rounding(10) == 10 * U
    assert rounding(10000) == LAMBDA * 100 * U
    assert all(rounding(n) <= rounding(n + 1) for n in range(100))


def test_a_sum_of_one_is_exact_and_a_long_one_loses_no_more_than_its_first_stage() -> None:
    assert summation(0) == summation(1) == 0
    assert summation(2) == U
    assert summation(10**6) == summation(DEPTH + 1) == LAMBDA * 16 * U


def test_products_allow_for_underflow_but_only_where_there_is_something() -> None:
    assert products(np.array([0.0, 1.0]), 4).tolist() == [0.0, 4 * U + 4 * TINY]


def test_float32_sums_of_random_and_of_constant_terms_keep_their_bounds() -> None:
    rng = np.random.default_rng(0)
    for values in (rng.standard_normal((200, 1000)), np.full((1, 1000), 0.1), rng.uniform(1, 2, (200, 1000))):
        terms = values.astype(np.float32)
        total = np.zeros(len(terms), np.float32)
        for column in terms.T:
            total += column
        error = np.abs(total - terms.astype(np.float64).sum(axis=1))
        ratio = error / (rounding(999) * np.abs(terms.astype(np.float64)).sum(axis=1))
        assert 1e-4 < ratio.max() < 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64, np.uint8])
def test_poison_is_found_where_it_was_left(dtype: type) -> None:
    array = poison((3, 2), dtype)
    array[1] = 7
    assert unwritten(array).tolist() == [[True, True], [False, False], [True, True]]


def test_ordinary_nans_are_no_poison() -> None:
    array = poison((4,), np.float32)
    assert np.isnan(array).all()
    array[:] = [NAN, -NAN, INF, 0]
    assert not unwritten(array).any()
    assert unwritten(poison((2,), np.float32)[:, None]).all()
    assert not unwritten(np.ones(2, bool)).any()
