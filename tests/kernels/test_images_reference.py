import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from kernels.images import gather_images_reference, gather_labels_reference


def gather(images, index, shifts, flips, mean=0.0, std=1.0, centres=0, cutout=0):
    channels = images.shape[-1]
    n = len(index)
    return gather_images_reference(
        images,
        np.array(index, np.int64),
        np.broadcast_to(np.array(shifts, np.int32), (n, 2)),
        np.broadcast_to(np.array(flips, bool), n),
        np.broadcast_to(np.array(centres, np.int32), (n, 2)),
        np.broadcast_to(mean, channels).astype(float),
        np.broadcast_to(std, channels).astype(float),
        cutout,
    )


IMAGE = np.array([[1, 2, 3], [4, 5, 6]], np.uint8).reshape(1, 2, 3, 1)


@pytest.mark.parametrize(
    ("shift", "flip", "expected"),
    [
        ((0, 0), False, [[1, 2, 3], [4, 5, 6]]),
        ((1, 0), False, [[0, 0, 0], [1, 2, 3]]),
        ((-1, 0), False, [[4, 5, 6], [0, 0, 0]]),
        ((0, 1), False, [[0, 1, 2], [0, 4, 5]]),
        ((0, -2), False, [[3, 0, 0], [6, 0, 0]]),
        ((0, 0), True, [[3, 2, 1], [6, 5, 4]]),
        ((1, 1), True, [[0, 0, 0], [0, 3, 2]]),  # the flip comes first
        ((2, 0), False, [[0, 0, 0], [0, 0, 0]]),
        ((0, -7), True, [[0, 0, 0], [0, 0, 0]]),
    ],
)
def test_shift_and_flip(shift, flip: bool, expected) -> None:
    assert_array_equal(gather(IMAGE, [0], shift, flip)[0, :, :, 0], expected)


def test_what_moves_in_is_raw_zero_normalized() -> None:
    out = gather(IMAGE, [0], (1, 0), False, mean=1.0, std=2.0)
    assert_array_equal(out[0, :, :, 0], [[-0.5, -0.5, -0.5], [0, 0.5, 1]])


def test_each_image_of_the_batch_has_its_own_place_shift_flip_and_channels(rng) -> None:
    images = rng.integers(0, 256, (5, 7, 4, 3), dtype=np.uint8)
    index, shifts, flips = [3, 0, 3, 4], [(1, -1), (0, 0), (-2, 3), (6, 2)], [True, False, False, True]
    mean, std = np.array([1.0, 20.0, 130.0]), np.array([0.5, 3.0, 70.0])
    out = gather(images, index, shifts, flips, mean, std)
    for k, (down, right) in enumerate(shifts):
        raw = images[index[k]][:, ::-1] if flips[k] else images[index[k]]
        raw = np.pad(raw, ((7, 7), (4, 4), (0, 0)))[7 - down : 14 - down, 4 - right : 8 - right]
        assert_allclose(out[k], (raw - mean) / std, rtol=1e-15)


@pytest.mark.parametrize(
    ("centre", "side", "rows", "columns"),
    [
        ((3, 3), 1, (3, 4), (3, 4)),
        ((3, 3), 2, (2, 4), (2, 4)),  # of an even side, a pixel more above and to the left, as the paper has it
        ((3, 3), 3, (2, 5), (2, 5)),
        ((0, 0), 4, (0, 2), (0, 2)),  # what lies outside is lost: the square that is left is smaller
        ((5, 6), 4, (3, 6), (4, 7)),
        ((0, 6), 5, (0, 3), (4, 7)),
        ((5, 0), 3, (4, 6), (0, 2)),
        ((2, 3), 12, (0, 6), (0, 7)),
        ((0, 0), 1000, (0, 6), (0, 7)),
        ((3, 3), 0, (0, 0), (0, 0)),
    ],
)
def test_cutout(centre, side: int, rows, columns) -> None:
    images = np.full((1, 6, 7, 2), 200, np.uint8)
    out = gather(images, [0], (0, 0), False, mean=50.0, std=3.0, centres=centre, cutout=side)
    expected = np.full((1, 6, 7, 2), 50.0)
    expected[:, slice(*rows), slice(*columns)] = 0
    assert_array_equal(out, expected)


def test_cutout_comes_last_and_is_of_the_mean(rng) -> None:
    """What is cut depends neither on the shift nor on the flip; it is 0, and what moves in is not."""
    images = rng.integers(1, 256, (3, 5, 4, 2), dtype=np.uint8)
    out = gather(images, [2, 0, 1], [(1, 0), (0, 0), (-1, 2)], [True, False, True], 100.5, 7.0, (2, 1), 3)
    assert not out[:, 1:4, 0:3].any()
    plain = gather(images, [2, 0, 1], [(1, 0), (0, 0), (-1, 2)], [True, False, True], 100.5, 7.0)
    out[:, 1:4, 0:3] = plain[:, 1:4, 0:3]
    assert_array_equal(out, plain)
    assert plain.all()


def test_a_negative_cutout() -> None:
    with pytest.raises(ValueError, match="gather_images: cutout is -1, expected a side of 0 or more pixels"):
        gather(IMAGE, [0], (0, 0), False, cutout=-1)


def test_an_empty_batch_of_images() -> None:
    assert gather(IMAGE, [], np.zeros((0, 2)), False).shape == (0, 2, 3, 1)


def test_labels() -> None:
    labels = gather_labels_reference(np.array([7, 8, 9]), np.array([2, 0, 2]))
    assert_array_equal(labels, [9, 7, 9])
    assert labels.dtype == np.int64
