"""Batches of images: what training sees is a function of seed, epoch and image, on every device."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from kernels.augmentation import draw_augmentation_reference
from minidl.backends import get_backend
from minidl.data import NO_AUGMENTATION, Augmentation
from minidl.training import ImageSource

ALL = Augmentation(crop_padding=2, flip=True, cutout=4)
AUGMENTATIONS = (ALL, Augmentation(crop_padding=9), Augmentation(flip=True), Augmentation(cutout=3), NO_AUGMENTATION)


def source(device: str, count: int = 40, shape: tuple[int, int, int] = (7, 5, 3)) -> ImageSource:
    rng = np.random.default_rng(1)
    images, labels = rng.integers(0, 256, (count, *shape), dtype=np.uint8), rng.integers(0, 10, count)
    mean, std = images.mean(axis=(0, 1, 2)), images.std(axis=(0, 1, 2))
    return ImageSource(images, labels, mean, std, get_backend(device))


def pictures(where: ImageSource, index: np.ndarray, *args, **options) -> np.ndarray:
    images, targets = where.batch(index, *args, **options)
    assert_array_equal(where.backend.numpy(targets), where.backend.numpy(where.labels)[index])
    return where.backend.numpy(images)


@pytest.mark.parametrize("shape", [(7, 5, 3), (1, 1, 1), (8, 8, 1)])
@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=str)
def test_every_device_makes_the_same_pictures(augmentation: Augmentation, shape) -> None:
    index = np.random.default_rng(2).permutation(40)[:33]
    options = {"seed": 2**40 + 3, "epoch": 6}
    cpu, emulator, reference = (
        pictures(source(device, shape=shape), index, augmentation, **options)
        for device in ("cpu", "emulator", "reference")
    )
    assert cpu.tobytes() == emulator.tobytes()
    # mean and std are rounded to float32 there, by 2^-24 of each, and so is what is computed from them, twice.
    np.testing.assert_allclose(cpu, reference, rtol=2**-22, atol=2**-22 * 255)
    assert_array_equal(cpu == 0, reference == 0)  # what is cut


def test_a_picture_depends_on_seed_epoch_and_image_alone() -> None:
    where, index = source("cpu"), np.random.default_rng(3).permutation(40)
    together = pictures(where, index, ALL, seed=5, epoch=2)
    for start in range(0, 40, 7):
        assert_array_equal(pictures(where, index[start : start + 7], ALL, seed=5, epoch=2), together[start : start + 7])
    others = [pictures(where, index, ALL, seed=seed, epoch=epoch) for seed, epoch in ((5, 3), (6, 2), (5, 2))]
    assert [other.tobytes() == together.tobytes() for other in others] == [False, False, True]


def test_without_augmentation_an_image_is_normalized_and_no_more() -> None:
    where, index = source("cpu"), np.arange(40)
    plain = (where.images.astype(np.float32) - where.mean) / where.std
    for seed in range(3):
        assert_array_equal(pictures(where, index, seed=seed, epoch=seed), plain)
    assert_array_equal(pictures(where, index, NO_AUGMENTATION), plain)


def test_the_pictures_are_those_of_the_definition() -> None:
    """Pad, crop, mirror and cut, step by step."""
    where, index = source("cpu"), np.array([3, 39, 0, 17, 3])
    shifts, flips, centres = draw_augmentation_reference(index, (7, 5), 2, True, 5, 2)
    for picture, image, (down, right), flip, (row, column) in zip(
        pictures(where, index, ALL, seed=5, epoch=2), index, shifts, flips, centres, strict=True
    ):
        raw = where.images[image][:, ::-1] if flip else where.images[image]
        padded = np.pad(raw, ((2, 2), (2, 2), (0, 0)))
        cropped = padded[2 - down : 9 - down, 2 - right : 7 - right]
        expected = (cropped.astype(np.float32) - where.mean) / where.std
        expected[max(0, row - 2) : row + 2, max(0, column - 2) : column + 2] = 0
        assert_array_equal(picture, expected)


def test_a_cutout_larger_than_the_image_leaves_the_mean() -> None:
    assert not pictures(source("cpu"), np.arange(40), Augmentation(crop_padding=1, flip=True, cutout=14)).any()


def test_no_images() -> None:
    assert pictures(source("cpu"), np.arange(0), ALL).shape == (0, 7, 5, 3)
