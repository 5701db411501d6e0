"""The UCI handwritten digits that come with minidl; README.md here says more and credits their authors.

digits.npz holds the 1,797 images in the order of scikit-learn's copy, with the indices of a fixed split, so that
training needs no download and everyone's results are of the same 360 test images. scripts/make_digits.py writes it.
"""

from pathlib import Path

from minidl.data.dataset import Dataset
from minidl.data.npz import read_arrays

FILE = Path(__file__).with_name("digits.npz")
CLASS_NAMES = tuple("0123456789")
SOURCE = "comes with minidl"


def read_digits() -> Dataset:
    """1,437 training and 360 test images, 8x8x1 uint8 in 0..16. Raises DataError if the file is damaged."""
    arrays = read_arrays(FILE, ("images", "labels", "train_index", "test_index"))
    images, labels = arrays["images"], arrays["labels"]
    train, test = arrays["train_index"], arrays["test_index"]
    halves = images[train], labels[train], images[test], labels[test]
    return Dataset.from_arrays("digits", *halves, CLASS_NAMES, SOURCE, known=True)
