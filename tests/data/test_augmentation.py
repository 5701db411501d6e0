import numpy as np
import pytest

from kernels.random import philox4x32
from minidl.data import Augmentation, draw
from minidl.data.augmentation import STREAM
from minidl.errors import ConfigError

BOTH = Augmentation(shift=4, flip=True)
MANY = np.arange(100_000)


def test_an_image_is_treated_alike_in_any_batch() -> None:
    index = np.random.default_rng(0).permutation(1000)
    shifts, flips = draw(BOTH, 5, 2, index)
    assert shifts.shape == (1000, 2)
    assert shifts.dtype == np.int32
    assert flips.shape == (1000,)
    assert flips.dtype == bool
    for start in range(0, 1000, 7):
        some_shifts, some_flips = draw(BOTH, 5, 2, index[start : start + 7])
        assert np.array_equal(some_shifts, shifts[start : start + 7])
        assert np.array_equal(some_flips, flips[start : start + 7])


def test_definition() -> None:
    """The numbers that the docstring promises, word by word."""
    seed, epoch, image = (3 << 32) + 17, 9, (1 << 32) + 5
    down, right, mirror, _ = (int(word) for word in philox4x32(5, 1, epoch, STREAM, 17, 3))
    shifts, flips = draw(BOTH, seed, epoch, np.array([image]))
    assert shifts.tolist() == [[(down * 9 >> 32) - 4, (right * 9 >> 32) - 4]]
    assert flips.tolist() == [mirror >= 2**31]


def test_seed_and_epoch_matter() -> None:
    drawn = {draw(BOTH, seed, epoch, MANY[:100])[0].tobytes() for seed in range(3) for epoch in range(3)}
    assert len(drawn) == 9


def test_distribution() -> None:
    shifts, flips = draw(BOTH, 0, 0, MANY)
    count = len(MANY)
    assert abs(flips.sum() - count / 2) < 5 * np.sqrt(count / 4)  # five standard deviations of a binomial
    cells = np.bincount(((shifts[:, 0] + 4) * 9 + shifts[:, 1] + 4) * 2 + flips, minlength=162)
    assert len(cells) == 162
    p = 1 / 162
    assert np.abs(cells - count * p).max() < 5 * np.sqrt(count * p * (1 - p))  # pairs and flip are independent


def test_nothing_to_do() -> None:
    shifts, flips = draw(Augmentation(shift=0, flip=False), 0, 0, MANY[:50])
    assert not shifts.any()
    assert not flips.any()
    assert len(flips) == 50


def test_flip_does_not_change_the_shifts() -> None:
    alone, _ = draw(Augmentation(shift=4, flip=False), 1, 1, MANY[:50])
    assert np.array_equal(alone, draw(BOTH, 1, 1, MANY[:50])[0])


def test_negative_shift() -> None:
    with pytest.raises(ConfigError, match="augmentation: a shift of -1 pixels; expected 0 or more"):
        Augmentation(shift=-1, flip=False)
