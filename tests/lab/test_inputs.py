from fractions import Fraction

import numpy as np
import pytest

from minidl.lab.budget import DEPTH
from minidl.lab.inputs import FAMILIES, exact_statistics, integers, whole


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (2, 3, 4, 5), (7, 1)])
@pytest.mark.parametrize("name", FAMILIES)
def test_families_make_the_same_float32_array_again(name: str, shape: tuple[int, ...]) -> None:
    first, second = (FAMILIES[name](np.random.default_rng(3), shape) for _ in range(2))
    assert first.dtype == np.float32
    assert first.shape == shape
    assert first.flags.c_contiguous
    assert first.flags.writeable
    np.testing.assert_array_equal(first, second)


def sample(name: str, shape: tuple[int, ...] = (501, 5)) -> np.ndarray:
    return FAMILIES[name](np.random.default_rng(0), shape)


def test_families_are_what_they_are_called() -> None:
    wide = sample("mean-1e4-std-1e-2").astype(np.float64)
    assert np.abs(wide.mean(axis=0) - 1e4).max() < 1e-2
    assert 8e-3 < wide.std() < 1.2e-2
    assert (sample("constant") == sample("constant")[0]).all()
    assert len(np.unique(sample("constant")[0])) == 5
    for name, row in (("outlier-first", 0), ("outlier-middle", 250), ("outlier-last", 500)):
        assert np.flatnonzero((sample(name) == 1e4).all(axis=1)).tolist() == [row]
        assert (sample(name) > 100).sum() == 5
    assert np.flatnonzero((sample("two-outliers") == 1e4).all(axis=1)).tolist() == [0, 250]
    assert (sample("two-outliers") > 100).sum() == 10
    scattered = sample("scattered-outliers") == 1e4
    assert (scattered.sum(axis=0) == 2).all()
    assert (scattered.sum(axis=1) < 3).all()  # places of its own
    tiny = sample("denormal")
    assert 0 < np.abs(tiny).max() < np.finfo(np.float32).smallest_normal
    scales = np.abs(sample("mixed-scales")).mean(axis=0)
    assert scales[0] < 1e-5 < 1e5 < scales[-1]
    assert (np.sign(sample("alternating")[:, 0]) == np.resize([1, -1], 501)).all()


@pytest.mark.parametrize(
    ("name", "values"), [("nan", [np.nan]), ("inf", [np.inf]), ("minus-inf-and-inf", [-np.inf, np.inf])]
)
def test_special_values_are_in_the_middle_channel_once(name: str, values: list[float]) -> None:
    x = sample(name)
    assert np.isfinite(np.delete(x, 2, axis=1)).all()
    np.testing.assert_array_equal(np.sort(x[~np.isfinite(x[:, 2]), 2]), values)


@pytest.mark.parametrize("shape", [(2, 1), (64, 3), (130, 5), (2, 32, 32, 2), (6, 4)])
def test_exact_statistics_are_float32_numbers(shape: tuple[int, ...]) -> None:
    x = exact_statistics(np.random.default_rng(1), shape).reshape(-1, shape[-1])
    for c, channel in enumerate(x.T):
        values = [Fraction(float(value)) for value in channel]
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / len(values)
        assert mean == 4096 + c
        assert variance > 0
        assert Fraction(float(np.float32(float(variance)))) == variance


def test_exact_statistics_need_pairs() -> None:
    with pytest.raises(ValueError, match="9 rows cannot be paired"):
        exact_statistics(np.random.default_rng(0), (3, 3, 2))


def test_sums_of_products_of_integers_are_exact() -> None:
    rng = np.random.default_rng(0)
    a, b = integers(rng, (50, 700)), integers(rng, (700, 20))
    np.testing.assert_array_equal(a @ b, a.astype(np.float64) @ b.astype(np.float64))


@pytest.mark.parametrize(("middle", "swing"), [(0, 251), (30005, 29990), (61003, 0)])
def test_partial_sums_of_whole_numbers_are_exact_and_their_total_is_not(middle: int, swing: int) -> None:
    x = whole(middle, swing)(np.random.default_rng(0), (2**20, 2))
    assert (x[0::2] == x[0]).all()
    assert (x[1::2] == x[1]).all()
    assert (x[0] - x[1] == 2 * swing).all()
    terms = (x - 16 * np.arange(2)) ** 2 if middle == 0 else x
    assert DEPTH * np.abs(terms).max() < 2**24
    partial = terms.reshape(-1, 128, 2).sum(axis=1, dtype=np.float64)
    one_accumulator = np.add.accumulate(partial.astype(np.float32), axis=0)[-1]
    assert (np.abs(one_accumulator / partial.sum(axis=0) - 1) > 100 * 2.0**-24).all()


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_two_outliers_need_no_more_rows_than_there_are(rows: int) -> None:
    for name in ("two-outliers", "scattered-outliers"):
        assert (sample(name, (rows, 3)) == 1e4).all()
