import numpy as np
import pytest

from minidl.data import NO_AUGMENTATION, Augmentation, Dataset
from minidl.data.dataset import AUGMENTATIONS, channel_statistics
from minidl.errors import DataError


def make(name="set", train_images=None, source="here", known=False, **changes):
    images = np.arange(4 * 3 * 2 * 2, dtype=np.uint8).reshape(4, 3, 2, 2) if train_images is None else train_images
    arrays = {
        "train_images": images,
        "train_labels": np.arange(len(images)) % 2,
        "test_images": images[:2],
        "test_labels": np.array([0, 1]),
        "class_names": ("a", "b"),
    }
    return Dataset.from_arrays(name, **{**arrays, **changes}, source=source, known=known)


def test_fields() -> None:
    dataset = make()
    assert dataset.image_shape == (3, 2, 2)
    assert dataset.classes == 2
    assert dataset.train_labels.dtype == np.int64
    assert dataset.mean.dtype == dataset.std.dtype == np.float64
    assert dataset.mean.tolist() == [23, 24]


def test_arrays_are_read_only_and_the_callers_are_not() -> None:
    images = np.zeros((2, 3, 3, 1), np.uint8)
    dataset = make(train_images=images)
    for array in (dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels, dataset.mean):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 1
    images[:] = 1


def test_statistics_are_those_of_float64() -> None:
    images = np.random.default_rng(0).integers(0, 256, (1500, 5, 3, 3), np.uint8)  # more than one part of the sum
    images[..., 1] //= 7
    mean, std = channel_statistics(images)
    pixels = images.reshape(-1, 3).astype(np.float64)
    # Both are sums of 22,500 terms rounded at each step, in NumPy; ours round once or twice.
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-13)
    np.testing.assert_allclose(std, pixels.std(0), rtol=1e-13)


def test_statistics_are_exact() -> None:
    images = np.full((1025, 1, 1, 1), 255, np.uint8)
    images[0] = 254
    mean, std = channel_statistics(images)
    assert mean[0] == (1024 * 255 + 254) / 1025
    assert std[0] == np.sqrt(1024) / 1025  # p (1 - p) with p = 1/1025; the usual E[x^2] - E[x]^2 loses nine digits


def test_a_constant_channel_has_std_1() -> None:
    images = np.full((3, 2, 2, 2), 9, np.uint8)
    images[0, 0, 0, 0] = 8
    mean, std = channel_statistics(images)
    assert mean[1] == 9
    assert std[1] == 1
    assert 0 < std[0] < 1


def test_fingerprint_is_of_the_arrays_alone() -> None:
    fingerprint = make().fingerprint
    assert len(fingerprint) == 64
    assert make(name="other", source="there", class_names=("x", "y")).fingerprint == fingerprint
    assert make(train_labels=np.array([0, 1, 0, 1], np.uint8)).fingerprint == fingerprint
    images = make().train_images
    assert make(train_images=np.asfortranarray(images)).fingerprint == fingerprint
    others = [
        make(train_labels=np.array([0, 1, 0, 0])),
        make(test_labels=np.array([0, 0])),
        make(train_images=images.reshape(4, 2, 3, 2)),
        make(train_images=images ^ 1),
        make(test_images=images[2:]),
    ]
    assert len({fingerprint, *(other.fingerprint for other in others)}) == 6


def test_augmentation_of_the_known_sets() -> None:
    assert not AUGMENTATIONS["digits"].flip
    assert not AUGMENTATIONS["mnist"].flip
    assert AUGMENTATIONS["fashion-mnist"].flip
    assert AUGMENTATIONS["cifar10"] == Augmentation(crop_padding=4, flip=True)
    assert make(name="cifar10", known=True).augmentation == AUGMENTATIONS["cifar10"]
    assert make(name="cifar10").augmentation == NO_AUGMENTATION  # a file of that name
    assert make(name="anything").augmentation == NO_AUGMENTATION


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": np.array([0, 1])}, "here: train_images holds 4 images but train_labels holds 2 labels"),
        ({"test_labels": np.array([0, 2])}, "here: test_labels: label 2 at index 1 is out of range; expected 0 to 1"),
        ({"test_images": np.zeros((2, 3, 2, 2))}, "here: test_images has dtype float64, expected uint8"),
    ],
)
def test_arrays_that_do_not_fit(changes, message) -> None:
    with pytest.raises(DataError) as caught:
        make(**changes)
    assert message in str(caught.value)
