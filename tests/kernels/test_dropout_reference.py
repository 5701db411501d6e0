import numpy as np
import pytest
from numpy.testing import assert_array_equal

from kernels.dropout import dropout_reference
from kernels.random import dropout_keep_reference
from minidl.lab.gradcheck import check_gradient

NAN, INF = np.nan, np.inf


@pytest.mark.parametrize("p", [0.0, 0.25, 0.9])
def test_dropout_scales_what_it_keeps(rng, p: float) -> None:
    x = rng.standard_normal((7, 11, 3))
    keep = dropout_keep_reference(x.shape, p, 6, 1, 9)
    y = dropout_reference(x, p, 6, 1, 9)
    assert_array_equal(y[keep], x[keep] * (1 / (1 - p)))
    assert_array_equal(y[~keep], 0)


def test_dropout_at_the_ends() -> None:
    x = np.array([1.0, NAN, INF, -2.0])
    assert_array_equal(dropout_reference(x, 0.0, 0, 0, 0), x)
    assert_array_equal(dropout_reference(x, 1.0, 0, 0, 0), np.zeros(4))
    assert dropout_reference(np.zeros((0, 3)), 0.5, 0, 0, 0).shape == (0, 3)
    with pytest.raises(ValueError, match=r"dropout: p = 1\.01 is not a probability"):
        dropout_reference(x, 1.01, 0, 0, 0)


def test_what_is_dropped_is_zero_even_if_it_was_nan() -> None:
    x = np.full(1000, NAN)
    keep = dropout_keep_reference(x.shape, 0.5, 0, 0, 0)
    assert_array_equal(np.isnan(dropout_reference(x, 0.5, 0, 0, 0)), keep)


def test_the_factor_is_rounded_once_to_float32() -> None:
    x, p = np.ones(1000, np.float32), 0.15  # 1 / (1 - p) in float32 throughout is another number
    y = dropout_reference(x, p, 0, 0, 0)
    assert set(y.tolist()) == {0.0, float(np.float32(1 / (1 - p)))}


def test_gradient(rng) -> None:
    x, dy = rng.standard_normal((2, 2, 3, 5, 4))
    check_gradient(
        "dropout",
        lambda x: dropout_reference(x, 0.4, 1, 2, 3),
        {"x": x},
        {"x": dropout_reference(dy, 0.4, 1, 2, 3)},
        dy,
    )
