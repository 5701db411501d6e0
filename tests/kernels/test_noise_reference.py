import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from kernels.noise import (
    noise_backward_reference,
    noise_factors,
    noise_forward_reference,
    noise_terms,
)
from kernels.random import uniform_reference
from minidl.lab.gradcheck import check_gradient

PAPER = 0.5, 1.25, 0.1  # offset, scale, jitter
NUMBERS = 6, 1, 9  # seed, stream, call


def test_the_definition_by_hand(rng) -> None:
    x = rng.standard_normal((5, 3))
    sigma = 1 + 0.25 * uniform_reference(3, 6, 1, 9)
    mu = 0.5 * (2 * uniform_reference(3, 6, 2, 9) - 1)
    s = sigma + 0.1 * (2 * uniform_reference((5, 3), 6, 3, 9) - 1)
    m = mu + 0.1 * (2 * uniform_reference((5, 3), 6, 4, 9) - 1)
    assert_allclose(noise_forward_reference(x, *PAPER, *NUMBERS), s * x + m, rtol=0, atol=1e-15)
    assert_allclose(noise_backward_reference(x, *PAPER[1:], *NUMBERS), s * x, rtol=0, atol=1e-15)


def test_distributions_within_and_between_channels() -> None:
    """Uniform numbers on an interval of width w have the mean of its ends and the standard deviation w / sqrt(12)."""
    shape = 400, 500
    s = noise_factors(shape, *PAPER[1:], *NUMBERS)
    m = noise_terms(shape, PAPER[0], PAPER[2], *NUMBERS)
    for values, low, high in ((s, 1, 1.25), (m, -0.5, 0.5)):
        of_channels = values.mean(axis=0)  # within 0.2 / sqrt(12 * 400) of what each channel drew
        assert low - 0.015 < of_channels.min() < low + 0.03 * (high - low)
        assert high - 0.03 * (high - low) < of_channels.max() < high + 0.015
        assert abs(of_channels.mean() - (low + high) / 2) < 5 * (high - low) / np.sqrt(12 * 500)
        rest = values - of_channels
        assert abs(rest.std() - 0.2 / np.sqrt(12)) < 1e-3
        assert np.abs(values - np.round(of_channels, 12)).max() < 0.1 + 0.015
    correlation = np.corrcoef([s.mean(axis=0), m.mean(axis=0)])[0, 1]
    assert abs(correlation) < 5 / np.sqrt(500)
    assert abs(np.corrcoef((s - s.mean(axis=0)).ravel(), (m - m.mean(axis=0)).ravel())[0, 1]) < 5 / np.sqrt(200_000)


def test_each_call_and_each_stream_has_numbers_of_its_own() -> None:
    x = np.zeros((4, 5))
    base = noise_forward_reference(x, *PAPER, *NUMBERS)
    for numbers in ((7, 1, 9), (6, 5, 9), (6, 1, 10)):
        assert not (noise_forward_reference(x, *PAPER, *numbers) == base).any()
    assert_array_equal(noise_forward_reference(x, *PAPER, *NUMBERS), base)


def test_no_noise_is_the_identity(rng) -> None:
    x = rng.standard_normal((4, 3))
    assert_array_equal(noise_forward_reference(x, 0.0, 1.0, 0.0, *NUMBERS), x)
    assert_array_equal(noise_backward_reference(x, 1.0, 0.0, *NUMBERS), x)


def test_a_nan_stays_in_its_element(rng) -> None:
    x = rng.standard_normal((4, 3))
    x[1, 2], x[2, 0] = np.nan, -np.inf
    y = noise_forward_reference(x, *PAPER, *NUMBERS)
    assert np.isnan(y[1, 2])
    assert y[2, 0] == -np.inf
    assert np.isfinite(y).sum() == 10


@pytest.mark.parametrize(
    ("noise", "named"),
    [
        ((-0.1, 1.0, 0.0), "offset = -0.1, expected a number of at least 0"),
        ((0.0, 0.9, 0.0), "scale = 0.9, expected a number of at least 1"),
        ((0.0, 1.0, float("nan")), "jitter = nan, expected a number of at least 0"),
        ((0.0, float("inf"), 0.0), "scale = inf, expected a number of at least 1"),
    ],
)
def test_noise_that_there_is_not(noise, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        noise_forward_reference(np.zeros((2, 2)), *noise, *NUMBERS)


def test_gradient(rng) -> None:
    x, dy = rng.standard_normal((2, 3, 4, 5))
    gradient = noise_backward_reference(dy, *PAPER[1:], *NUMBERS)
    check_gradient("noise", lambda x: noise_forward_reference(x, *PAPER, *NUMBERS), {"x": x}, {"x": gradient}, dy)
