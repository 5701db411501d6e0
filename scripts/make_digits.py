"""Write minidl/data/digits.npz: the UCI handwritten digits from scikit-learn's copy, and their split.

    python scripts/make_digits.py [FILE]

Running it again gives the same file, byte for byte, where zlib compresses alike. minidl/data/README.md describes the
data and says whose they are.
"""

import io
import sys
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

FILE = Path(__file__).resolve().parent.parent / "minidl" / "data" / "digits.npz"
TEST_IMAGES = 360
SEED = 0


def held_out_counts(class_counts: list[int], total: int) -> list[int]:
    """How many test images each class gives: its share of `total`, by largest remainder (ties to the lower class)."""
    images = sum(class_counts)
    shares = [divmod(count * total, images) for count in class_counts]
    by_remainder = sorted(range(len(shares)), key=lambda label: -shares[label][1])
    extra = by_remainder[: total - sum(whole for whole, _ in shares)]
    return [whole + (label in extra) for label, (whole, _) in enumerate(shares)]


def split(labels: NDArray[np.integer]) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Indices (1437,) and (360,) of the training and test images, each in ascending order.

    Per class, its images are put in the order of as many draws of PCG64, seeded with (SEED, class); the first ones go
    to the test set. Raw draws are the same in every version of NumPy, which its `permutation` does not promise.
    """
    test = np.zeros(len(labels), bool)
    for label, count in enumerate(held_out_counts(np.bincount(labels).tolist(), TEST_IMAGES)):
        members = np.flatnonzero(labels == label)
        draws = np.random.PCG64([SEED, label]).random_raw(len(members))
        test[members[np.argsort(draws, kind="stable")][:count]] = True
    return np.flatnonzero(~test).astype(np.uint16), np.flatnonzero(test).astype(np.uint16)


def write(path: Path) -> None:
    """Write the npz file: images (1797, 8, 8, 1) uint8 in 0..16, labels uint8, train_index and test_index uint16."""
    digits = load_digits()
    train_index, test_index = split(digits.target)
    arrays = {
        "images": digits.images.astype(np.uint8)[..., np.newaxis],
        "labels": digits.target.astype(np.uint8),
        "train_index": train_index.astype("<u2"),
        "test_index": test_index.astype("<u2"),
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))  # numpy.savez puts the time here
            member.create_system = 3  # and zipfile the operating system
            member.compress_type = zipfile.ZIP_DEFLATED
            stream = io.BytesIO()
            np.lib.format.write_array(stream, array, version=(1, 0), allow_pickle=False)
            archive.writestr(member, stream.getvalue(), compresslevel=9)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else FILE
    write(target)
    print(f"{target}: {target.stat().st_size:,} bytes")
