"""The budget of products on tensor cores, held against what Hopper and Ampere do, and against what they must not."""

from collections.abc import Callable

import numpy as np
import pytest

from kernels.emulator.tensor import KEPT_BITS, dot_add, round_tf32
from minidl.lab import bounds
from minidl.lab.budget import CHAIN, TINY, U, chained, compare
from minidl.lab.inputs import FAMILIES

DEPTH = 2000
F = np.float32


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def rounded(x: np.ndarray) -> np.ndarray:
    return round_tf32(x).view(F)


def truncated(x: np.ndarray) -> np.ndarray:
    return (x.view(np.uint32) & np.uint32(0xFFFFE000)).view(F)


def on_tensor_cores(x: np.ndarray, w: np.ndarray, convert: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """x @ w.T as a chain of products m16n8k8."""
    left, right = convert(x), convert(w)
    total = np.zeros((len(x), len(w)), F)
    for k in range(0, x.shape[1], 8):
        total = dot_add(left[:, k : k + 8], right[:, k : k + 8], total)
    return total


def ampere(x: np.ndarray, w: np.ndarray, convert: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The same in steps of four terms with one bit less."""
    left, right = convert(x), convert(w)
    total = np.zeros((len(x), len(w)), F)
    for k in range(0, x.shape[1], 4):
        total = dot_add(left[:, k : k + 4], right[:, k : k + 4], total)
    return total


def ratio(x: np.ndarray, w: np.ndarray, y: np.ndarray) -> float:
    bound = bounds.linear_forward(x, w, None, "tf32")["y"]
    return compare(y, x.astype(np.float64) @ w.astype(np.float64).T, bound).ratio


@pytest.mark.parametrize("name", ["ordinary", "constant", "mean-1e4-std-1e-2", "denormal", "outlier-middle"])
def test_what_the_hardware_does_is_within(rng: np.random.Generator, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = (FAMILIES[family](rng, (rows, DEPTH)).astype(F) for family, rows in ((name, 16), ("ordinary", 8)))
    assert ratio(x, w, on_tensor_cores(x, w, rounded)) <= 1
    assert ratio(x, w, x @ w.T) <= 1  # and float32
    monkeypatch.setattr("kernels.emulator.tensor.KEPT_BITS", KEPT_BITS - 1)
    assert ratio(x, w, ampere(x, w, rounded)) <= 1


@pytest.mark.parametrize("depth", [8, 72, 576])
def test_factors_that_are_cut_off_leave_it(rng: np.random.Generator, depth: int) -> None:
    x, w = (FAMILIES["ordinary"](rng, (rows, depth)).astype(F) for rows in (16, 8))
    assert ratio(x, w, on_tensor_cores(x, w, rounded)) <= 1
    assert ratio(x, w, on_tensor_cores(x, w, truncated)) > 1
    assert ratio(x, w, on_tensor_cores(x, w, lambda x: round_tf32(x + x * F(2**-10)).view(F))) > 1


def test_a_missing_product_leaves_it(rng: np.random.Generator) -> None:
    x, w = (FAMILIES["ordinary"](rng, (rows, 288)).astype(F) for rows in (16, 8))
    missing = x.copy()
    missing[:, 100] = 0
    assert ratio(x, w, on_tensor_cores(missing, w, rounded)) > 1


def test_the_budget_grows_by_steps_of_eight_and_no_further_than_a_chain() -> None:
    one = np.ones(1)
    assert chained(one, 8, 1.0) == pytest.approx(14 * U)
    assert chained(one, 9, 1.0) == pytest.approx(28 * U)
    assert chained(one, 10 * CHAIN, 1.0) == pytest.approx((14 * CHAIN / 8 + 64) * U)
    assert chained(np.zeros(1), 100, 1.0) == 0
    assert chained(one * TINY, 8, 1.0) > TINY
