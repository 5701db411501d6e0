import numpy as np
import pytest
from emulated import RUN, blank, figures, launched, number, placed
from numba import int64, uint32
from numpy.testing import assert_array_equal

from kernels.augmentation import draw_augmentation, draw_augmentation_reference, draw_augmentation_scalar
from kernels.errors import ShapeError
from kernels.random import seed_words


def outputs(n: int, offset: int = 0) -> list[np.ndarray]:
    """Shifts, flips and centres to be drawn; the flips hold no number that is a flip."""
    flips = placed(np.full(n, 77), offset, np.uint8).view(np.bool_)
    return [blank((n, 2), offset, np.int32), flips, blank((n, 2), offset, np.int32)]


def same(drawn: list[np.ndarray], expected: tuple[np.ndarray, ...]) -> None:
    for got, right in zip(drawn, expected, strict=True):
        assert_array_equal(got.view(np.uint8), right.view(np.uint8))  # bits: a bool of 77 is no True


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize(
    ("n", "size", "padding", "flip", "seed", "epoch"),
    [
        (1, (1, 1), 0, False, 0, 0),
        (0, (28, 28), 4, True, 0, number(0)),
        (129, (28, 28), 4, True, 3, 7),
        (257, (5, 7), 2, False, 2**40 + 17, 2**31),
        (1000, (31, 33), 0, True, 2**64 - 1, 2**32 - 1),
        (33, (65535, 65537), 2**31 - 1, True, 2**32 - 1, 1),  # the largest of both
        (33, (7, 3), 1, True, -1, 0),
    ],
)
def test_draws_have_the_references_bits(rng, n, size, padding, flip, seed, epoch, offset: int) -> None:
    index = placed(rng.integers(0, 2**62, n), offset, np.int64)
    drawn = outputs(n, offset)
    draw_augmentation(RUN, index, *drawn, size, padding, flip, seed, number(epoch))
    same(drawn, draw_augmentation_reference(index, size, padding, flip, seed, epoch))


@pytest.mark.parametrize("place", [uint32, int64])
def test_both_index_types(rng, place) -> None:
    index = placed(rng.integers(0, 60000, 300), dtype=np.int64)
    drawn = shifts, flips, centres = outputs(300)
    kernel = draw_augmentation_scalar(place, 6, 9, 3, True)
    RUN(kernel, index, number(2), shifts, flips.view(np.uint8), centres, 300, *seed_words(5))
    same(drawn, draw_augmentation_reference(index, (6, 9), 3, True, 5, 2))


def test_each_array_is_moved_once() -> None:
    index = placed(np.arange(256), dtype=np.int64)
    counts = figures(draw_augmentation, index, *outputs(256), (8, 8), 2, True, 0, number(0))
    assert (counts.load_bytes, counts.store_bytes) == (8 * 256 + 4 * 256, 17 * 256)  # each thread reads the epoch


def test_shapes_and_numbers_that_do_not_fit() -> None:
    index, good = blank((3,), dtype=np.int64), outputs(3)
    assert launched(draw_augmentation, index, *good, (8, 8), 2, True, 0, number(0)) == ["draw_augmentation_scalar"]
    for i, name in enumerate(("shifts", "flips", "centres")):
        wrong = [*good]
        wrong[i] = blank((4, *good[i].shape[1:]), dtype=good[i].dtype)
        with pytest.raises(ShapeError, match=f"draw_augmentation: {name} has shape .* expected"):
            draw_augmentation(RUN, index, *wrong, (8, 8), 2, True, 0, number(0))
    with pytest.raises(ShapeError, match=r"draw_augmentation: index has shape \(3, 1\), expected \(n,\)"):
        draw_augmentation(RUN, index[:, None], *good, (8, 8), 2, True, 0, number(0))
    with pytest.raises(ValueError, match="draw_augmentation: crop_padding is -1, expected 0 to"):
        draw_augmentation(RUN, index, *good, (8, 8), -1, True, 0, number(0))
    with pytest.raises(ValueError, match=r"draw_augmentation: image_size is \(0, 8\), expected 1 to"):
        draw_augmentation(RUN, index, *good, (0, 8), 2, True, 0, number(0))
    with pytest.raises(ShapeError, match=r"draw_augmentation: epoch has shape \(1,\), expected \(\)"):
        draw_augmentation(RUN, index, *good, (8, 8), 2, True, 0, number([0]))
    assert (good[0] == 77).all()  # nothing was written by then
