import numpy as np
import pytest
from numpy.testing import assert_array_equal

from kernels.augmentation import STREAM, below, draw_augmentation_reference
from kernels.random import philox4x32

MANY = np.arange(100_000)


def draw(index, padding: int = 4, flip: bool = True, seed: int = 0, epoch: int = 0, size: tuple[int, int] = (28, 28)):
    return draw_augmentation_reference(np.asarray(index, np.int64), size, padding, flip, seed, epoch)


def chi_square_of_uniform(counts: np.ndarray) -> float:
    """In standard deviations from what is expected of it, n - 1 ± sqrt(2 (n - 1)) of n cells."""
    expected, freedom = counts.sum() / counts.size, counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


def test_definition() -> None:
    """The numbers that the docstring promises, word by word."""
    seed, epoch, image = (3 << 32) + 17, 9, (1 << 32) + 5
    down, right, mirror, centre = (int(word) for word in philox4x32(5, 1, epoch, STREAM, 17, 3))
    shifts, flips, centres = draw([image], seed=seed, epoch=epoch, size=(31, 20))
    assert shifts.tolist() == [[(down * 9 >> 32) - 4, (right * 9 >> 32) - 4]]
    assert flips.tolist() == [mirror >= 2**31]
    assert centres.tolist() == [list(divmod(centre * 31 * 20 >> 32, 20))]
    assert (shifts.dtype, flips.dtype, centres.dtype) == (np.int32, np.bool_, np.int32)


@pytest.mark.parametrize(
    ("seed", "epoch", "index", "expected"),
    [
        (0, 0, [0, 1, 2, 1436], [[3, 4], [0, 3], [0, 0], [-3, 1]]),
        (4, 11, [0, 1, 2, 1436], [[-4, -1], [-1, 3], [-2, 2], [-2, -1]]),
        (2**40 + 7, 3, [5, 59999, 2**32 + 5], [[4, 1], [4, 3], [-2, 1]]),
    ],
)
def test_runs_of_long_ago_can_be_repeated(seed: int, epoch: int, index, expected) -> None:
    """The numbers of minidl 0.1, when they were drawn on the host."""
    shifts, flips, _ = draw(index, seed=seed, epoch=epoch)
    assert shifts.tolist() == expected
    assert flips.tolist() == [(seed, image) == (0, 1436) for image in index]


def test_an_image_is_treated_alike_in_any_batch() -> None:
    index = np.random.default_rng(0).permutation(1000)
    together = draw(index, seed=5, epoch=2)
    for start in range(0, 1000, 7):
        for some, all_of_them in zip(draw(index[start : start + 7], seed=5, epoch=2), together, strict=True):
            assert_array_equal(some, all_of_them[start : start + 7])


def test_seed_and_epoch_matter() -> None:
    for part in range(3):
        drawn = {draw(MANY[:100], seed=seed, epoch=epoch)[part].tobytes() for seed in range(3) for epoch in range(3)}
        assert len(drawn) == 9


def test_shifts_and_flips_are_uniform_and_independent() -> None:
    shifts, flips, _ = draw(MANY)
    cells = np.bincount(((shifts[:, 0] + 4) * 9 + shifts[:, 1] + 4) * 2 + flips, minlength=162)
    assert len(cells) == 162
    assert abs(chi_square_of_uniform(cells)) < 4
    assert abs(flips.sum() - len(MANY) / 2) < 4 * np.sqrt(len(MANY) / 4)  # standard deviations of a binomial


@pytest.mark.parametrize("size", [(28, 28), (5, 7), (31, 2), (1, 64)])
def test_every_pixel_is_as_often_the_centre(size) -> None:
    _, _, centres = draw(MANY, size=size)
    cells = np.zeros(size, np.int64)
    np.add.at(cells, (centres[:, 0], centres[:, 1]), 1)
    assert cells.sum() == len(MANY)
    assert abs(chi_square_of_uniform(cells)) < 4


def test_the_centre_is_independent_of_the_rest() -> None:
    shifts, flips, centres = draw(MANY, padding=1, size=(3, 4))
    place = centres[:, 0] * 4 + centres[:, 1]
    cells = np.bincount(((place * 3 + shifts[:, 0] + 1) * 3 + shifts[:, 1] + 1) * 2 + flips, minlength=12 * 18)
    assert len(cells) == 12 * 18
    assert abs(chi_square_of_uniform(cells)) < 4


def test_without_padding_and_flip_nothing_happens() -> None:
    shifts, flips, _ = draw(MANY[:50], padding=0, flip=False)
    assert not shifts.any()
    assert not flips.any()
    assert len(flips) == 50


def test_no_option_changes_what_another_draws() -> None:
    shifts, flips, centres = draw(MANY[:50])
    assert_array_equal(draw(MANY[:50], flip=False)[0], shifts)
    assert_array_equal(draw(MANY[:50], padding=1)[1], flips)
    assert_array_equal(draw(MANY[:50], padding=1, flip=False)[2], centres)


def test_no_images() -> None:
    shifts, flips, centres = draw([])
    assert (shifts.shape, flips.shape, centres.shape) == ((0, 2), (0,), (0, 2))


@pytest.mark.parametrize("count", [0, 1, 2, 9, 2**32 - 1])
def test_integers_below(count: int) -> None:
    words = np.array([0, 1, 2**31 - 1, 2**31, 2**32 - 1], np.uint32)
    assert below(words, count).tolist() == [int(word) * count >> 32 for word in words]
    assert int(below(words[-1], count)) == max(0, count - 1)


@pytest.mark.parametrize(
    ("size", "padding", "message"),
    [
        ((5, 4), -1, "crop_padding is -1, expected 0 to"),
        ((5, 4), 2**31, "crop_padding is 2147483648, expected 0 to"),
        ((0, 4), 1, r"image_size is \(0, 4\), expected 1 to"),
        ((4, 0), 1, r"image_size is \(4, 0\), expected 1 to"),
        ((2**16, 2**16), 1, r"image_size is \(65536, 65536\), expected 1 to"),
    ],
)
def test_bad_input(size, padding: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"draw_augmentation: {message}"):
        draw([0], padding=padding, size=size)
