"""What tests share: threads woken for little, images so few that an epoch takes milliseconds, and Fashion-MNIST."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from minidl.backends.cpu import convolution, threads
from minidl.data import Dataset
from minidl.data.search import find
from minidl.errors import DataError

REPOSITORY = Path(__file__).resolve().parents[1]


def stripes(train: int = 90, test: int = 30, channels: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays of an npz data set: 8x8 images of three classes (rows, columns, checks), with noise."""
    generator = np.random.default_rng(seed)
    band = np.arange(8) // 2 % 2
    patterns = np.stack([np.tile(band[:, None], 8), np.tile(band, (8, 1)), band[:, None] ^ band])
    labels = np.arange(train + test) % 3
    images = patterns[labels] * 120 + generator.integers(0, 120, (len(labels), 8, 8))
    images = np.repeat(images[..., None].astype(np.uint8), channels, axis=-1)
    return {
        "train_images": images[:train],
        "train_labels": labels[:train],
        "test_images": images[train:],
        "test_labels": labels[train:],
    }


@pytest.fixture(scope="session", autouse=True)
def threads_are_woken_for_little() -> Iterator[None]:
    """Small arrays are shared out, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "WORTH", 1)
        patch.setattr(convolution, "WORTH_PRODUCTS", 1)
        yield


@pytest.fixture(scope="session")
def write_stripes():
    """Writes such a data set as an npz file: `write_stripes(path, channels=3)`. Returns the path as text."""

    def write(path: Path, **options: int) -> str:
        np.savez_compressed(path, **stripes(**options))
        return str(path)

    return write


@pytest.fixture(scope="session")
def stripes_file(tmp_path_factory, write_stripes) -> str:
    """The path of stripes.npz: 90 training and 30 test images of 8x8x1, three classes."""
    return write_stripes(tmp_path_factory.mktemp("data") / "stripes.npz")


@pytest.fixture(scope="session")
def stripes_dataset() -> Dataset:
    """The same images without a file."""
    return Dataset.from_arrays("stripes", *stripes().values(), class_names=("rows", "columns", "checks"), source="here")


@pytest.fixture(scope="session")
def fashion_mnist_folder() -> str:
    """A folder for --data-dir in which the real Fashion-MNIST lies."""
    for folder in (os.environ.get("MINIDL_DATA"), REPOSITORY.parent / "shared" / "data"):
        if folder and Path(folder).is_dir():
            try:
                find("fashion-mnist", folder)
            except DataError:
                continue
            return str(folder)
    pytest.skip("no Fashion-MNIST here: name its folder by MINIDL_DATA")
