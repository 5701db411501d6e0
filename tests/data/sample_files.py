"""Small files in the formats of the known sets, for tests."""

import gzip

import numpy as np

from minidl.data.catalogue import CIFAR_FILES, IDX_FILES


def idx_bytes(array):
    """`array` (uint8) in the IDX format."""
    header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def sample(train=12, test=7, shape=(5, 4), seed=0):
    """Arrays by part, as the IDX sets name them: images (n, *shape) and labels in 0..9."""
    generator = np.random.default_rng(seed)
    arrays = {}
    for half, count in (("training", train), ("test", test)):
        arrays[f"{half} images"] = generator.integers(0, 256, (count, *shape), np.uint8)
        arrays[f"{half} labels"] = generator.integers(0, 10, count, np.uint8)
    return arrays


def write_idx_set(folder, arrays, zipped=False):
    """The four files of an IDX set. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, name in IDX_FILES.items():
        payload = idx_bytes(arrays[part])
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(payload))
        else:
            (folder / name).write_bytes(payload)
    return folder


def write_cifar_set(folder, count=3, seed=0):
    """The six files of CIFAR-10, `count` records each. Returns images (6, count, 32, 32, 3) and labels (6, count)."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (6, count, 32, 32, 3), np.uint8)
    labels = generator.integers(0, 10, (6, count), np.uint8)
    for file, name in enumerate(CIFAR_FILES.values()):
        records = [
            bytes([labels[file, i]]) + b"".join(images[file, i, :, :, channel].tobytes() for channel in range(3))
            for i in range(count)
        ]
        (folder / name).write_bytes(b"".join(records))
    return images, labels
