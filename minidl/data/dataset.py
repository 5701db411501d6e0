"""A data set in memory: its images, labels and what training needs to know of them."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minidl.data.augmentation import NO_AUGMENTATION, Augmentation
from minidl.errors import DataError

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
Statistics = NDArray[np.float64]

# What the training recipe of each set does to its images. A digit or a letter mirrored is another sign; clothes,
# animals and vehicles are not. The images of the first three are centred already.
AUGMENTATIONS = {
    "digits": NO_AUGMENTATION,
    "mnist": NO_AUGMENTATION,
    "fashion-mnist": Augmentation(flip=True),
    "cifar10": Augmentation(crop_padding=4, flip=True),
}


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test images with their labels. The arrays are read-only and C-contiguous.

    Make one with `minidl.data.load`, or with `from_arrays`, which checks what it is given.

    Attributes:
        name: "digits", "mnist", "fashion-mnist", "cifar10", or the name of an npz file without its ending.
        train_images: (n, h, w, c) uint8.
        train_labels: (n,) int64, each in 0..classes-1.
        test_images: (m, h, w, c) uint8.
        test_labels: (m,) int64.
        class_names: one a class.
        mean: (c,) float64, of the training images, in their raw units (0..255 in most sets, 0..16 in digits).
        std: (c,) float64, likewise; the biased one. 1 for a channel that is constant, so that it can divide.
        source: where the images were read from, for people.
        known: whether it is the set that minidl knows by this name; never for an npz file, whatever it is called.
    """

    name: str
    train_images: Images = field(repr=False)
    train_labels: Labels = field(repr=False)
    test_images: Images = field(repr=False)
    test_labels: Labels = field(repr=False)
    class_names: tuple[str, ...]
    mean: Statistics
    std: Statistics
    source: str
    known: bool = False

    @classmethod
    def from_arrays(
        cls,
        name: str,
        train_images: NDArray[Any],
        train_labels: NDArray[Any],
        test_images: NDArray[Any],
        test_labels: NDArray[Any],
        class_names: Sequence[str],
        source: str,
        *,
        known: bool = False,
    ) -> "Dataset":
        """A data set of these arrays, checked, with the mean and std of the training images.

        Images are (n, h, w, c) or (n, h, w), uint8; labels (n,), of any integer type. Images that are contiguous
        already are not copied.

        Raises:
            DataError: a dtype, shape, count or label is wrong. The message begins with `source` and the array's name.
        """
        train_images, test_images = (
            as_images(f"{source}: train_images", train_images),
            as_images(f"{source}: test_images", test_images),
        )
        train_labels, test_labels = (
            as_labels(f"{source}: train_labels", train_labels, len(class_names)),
            as_labels(f"{source}: test_labels", test_labels, len(class_names)),
        )
        check_counts(f"{source}: train_images", len(train_images), "train_labels", len(train_labels))
        check_counts(f"{source}: test_images", len(test_images), "test_labels", len(test_labels))
        train_shape, test_shape = train_images.shape[1:], test_images.shape[1:]
        if train_shape != test_shape:
            raise DataError(
                f"{source}: training images are {describe_shape(train_shape)} and test images "
                f"{describe_shape(test_shape)}; expected one size for all"
            )
        mean, std = channel_statistics(train_images)
        for array in (train_images, train_labels, test_images, test_labels, mean, std):
            array.setflags(write=False)
        return cls(
            name=name,
            train_images=train_images,
            train_labels=train_labels,
            test_images=test_images,
            test_labels=test_labels,
            class_names=tuple(class_names),
            mean=mean,
            std=std,
            source=source,
            known=known,
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h, w, c)."""
        height, width, channels = self.train_images.shape[1:]
        return height, width, channels

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @property
    def augmentation(self) -> Augmentation:
        """What the training recipe for this set does to its images; nothing for a set that minidl does not know."""
        return AUGMENTATIONS[self.name] if self.known else NO_AUGMENTATION

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, over name, dtype, shape and bytes (little-endian) of the four arrays, in order.

        Two data sets with equal fingerprints hold the same images and labels, wherever they were read from.
        """
        digest = hashlib.sha256()
        for name in ("train_images", "train_labels", "test_images", "test_labels"):
            array = getattr(self, name)
            array = array.astype(array.dtype.newbyteorder("<"), copy=False)
            digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
            digest.update(memoryview(array).cast("B"))
        return digest.hexdigest()


def channel_statistics(images: Images) -> tuple[Statistics, Statistics]:
    """Mean and biased standard deviation of each channel of images (n, h, w, c), (c,) float64 each.

    The sums are of integers, hence exact; each result is rounded once (the deviation twice), the same on any machine.
    """
    channels = images.shape[-1]
    histogram = np.zeros((channels, 256), np.int64)
    for start in range(0, len(images), 1024):  # bincount widens its input to int64: a part at a time
        pixels = images[start : start + 1024].reshape(-1, channels)
        for channel in range(channels):
            histogram[channel] += np.bincount(pixels[:, channel], minlength=256)
    mean, std = np.empty(channels), np.empty(channels)
    for channel in range(channels):
        counts = histogram[channel].tolist()  # Python integers: no overflow, and / rounds correctly
        n = sum(counts)
        total = sum(value * count for value, count in enumerate(counts))
        squares = sum(value * value * count for value, count in enumerate(counts))
        mean[channel] = total / n
        std[channel] = math.sqrt((n * squares - total * total) / (n * n)) or 1.0
    return mean, std


def as_images(where: str, images: NDArray[Any]) -> Images:
    """`images` as (n, h, w, c) uint8, copied only where needed, or a DataError that begins with `where`."""
    if images.dtype != np.uint8:
        raise DataError(f"{where} has dtype {images.dtype}, expected uint8 (0 to 255 a pixel)")
    if images.ndim not in (3, 4):
        raise DataError(
            f"{where} has shape {images.shape}, expected (images, height, width) or (images, height, width, channels)"
        )
    if images.size == 0:
        raise DataError(f"{where} has shape {images.shape}: it holds no pixel")
    channels_last = images if images.ndim == 4 else images[..., np.newaxis]
    return np.ascontiguousarray(channels_last).view()  # a view, so that making it read-only leaves the caller's alone


def as_labels(where: str, labels: NDArray[Any], classes: int) -> Labels:
    """`labels` as (n,) int64, each in 0..classes-1, or a DataError that begins with `where`."""
    if labels.dtype.kind not in "ui":
        raise DataError(f"{where} has dtype {labels.dtype}, expected integers (uint8)")
    if labels.ndim != 1:
        raise DataError(f"{where} has shape {labels.shape}, expected one label an image: (images,)")
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise DataError(
            f"{where}: label {labels[wrong[0]]} at index {wrong[0]} is out of range; "
            f"expected 0 to {classes - 1} ({classes} classes)"
        )
    return labels.astype(np.int64)


def check_counts(images: str, image_count: int, labels: str, label_count: int) -> None:
    """Raise a DataError unless there are as many labels (in `labels`) as images (in `images`)."""
    if image_count != label_count:
        raise DataError(
            f"{images} holds {image_count:,} images but {labels} holds {label_count:,} labels; "
            "expected one label an image"
        )


def describe_shape(shape: Sequence[int]) -> str:
    """(28, 28, 1) as "28x28x1"."""
    return "x".join(str(size) for size in shape)
