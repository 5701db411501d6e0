import gzip
import hashlib
import struct

import numpy as np
import pytest
from sample_files import idx_bytes

from minidl.data import files, idx
from minidl.errors import DataError

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
PAYLOAD = idx_bytes(IMAGES)
ZIPPED = gzip.compress(PAYLOAD, mtime=0)


@pytest.mark.parametrize("contents", [PAYLOAD, ZIPPED], ids=["raw", "gzip"])
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"])
def test_images_are_read_whatever_the_name_says(tmp_path, contents, name) -> None:
    path = tmp_path / name
    path.write_bytes(contents)
    images, sha256 = idx.read_images(path)
    assert images.shape == (2, 3, 4, 1)
    assert images.dtype == np.uint8
    assert np.array_equal(images[..., 0], IMAGES)
    assert sha256 == hashlib.sha256(PAYLOAD).hexdigest()
    assert idx.read_sizes(path, 3) == (2, 3, 4)


@pytest.mark.parametrize("zipped", [False, True])
def test_labels(tmp_path, zipped) -> None:
    path = tmp_path / "labels"
    payload = idx_bytes(np.array([0, 9, 3]))
    path.write_bytes(gzip.compress(payload) if zipped else payload)
    labels, sha256 = idx.read_labels(path, classes=10)
    assert labels.dtype == np.int64
    assert labels.tolist() == [0, 9, 3]
    assert sha256 == hashlib.sha256(payload).hexdigest()


def corrupted(position: int) -> bytes:
    changed = bytearray(ZIPPED)
    changed[position] ^= 0xFF
    return bytes(changed)


BAD = {
    "empty": (b"", "the file is empty; copy or download it again"),
    "gzip of nothing": (gzip.compress(b""), "not an IDX file, wrong magic number: expected 00 00 08 03, found nothing"),
    "another format": (b"\x89PNG\r\n", "not an IDX file, wrong magic number: expected 00 00 08 03, found 89 50 4e 47"),
    "gzipped twice": (gzip.compress(ZIPPED), "wrong magic number: expected 00 00 08 03, found 1f 8b 08 00"),
    "floats": (b"\0\0\x0d\3" + PAYLOAD[4:], "elements are not uint8: expected 00 00 08 03, found 00 00 0d 03"),
    "labels": (idx_bytes(np.zeros(5)), "an IDX file of labels, not of images: expected 00 00 08 03, found 00 00 08 01"),
    "dimensions": (idx_bytes(np.zeros((2, 2))), "an IDX file of 2 dimensions, not 3"),
    "header cut": (PAYLOAD[:10], "truncated inside the header"),
    "truncated": (PAYLOAD[:-1], "truncated: its header promises 2x3x4 = 24 bytes of data and the file is too short"),
    "truncated, then gzipped": (gzip.compress(PAYLOAD[:-2]), "promises 2x3x4 = 24 bytes of data and 22 follow"),
    "gzip truncated": (ZIPPED[:-9], "truncated: the gzip stream ends early"),
    "gzip header only": (ZIPPED[:5], "truncated: the gzip stream ends early"),
    "gzip CRC": (corrupted(len(ZIPPED) - 8), "the gzip stream is damaged (CRC check failed"),
    "gzip length": (corrupted(len(ZIPPED) - 1), "the gzip stream is damaged (Incorrect length"),
    "gzip data": (corrupted(10), "the gzip stream is damaged (Error -3"),
    "gzip method": (corrupted(2), "the gzip stream is damaged (Unknown compression method)"),
    "junk after gzip": (ZIPPED + b"junk", "the gzip stream is damaged (Not a gzipped file"),
    "trailing": (PAYLOAD + b"\0", "its header promises 2x3x4 = 24 bytes of data and more follow"),
    "trailing, gzipped": (gzip.compress(PAYLOAD + b"\0"), "its header promises 2x3x4 = 24 bytes of data and more"),
    "no images": (idx_bytes(np.zeros((0, 28, 28))), "its header promises 0x28x28 = 0 bytes of data, so it is empty"),
    "oversized": (
        b"\0\0\x08\3" + struct.pack(">3I", 2**32 - 1, 28, 28),
        "its header promises 4294967295x28x28 = 3,367,254,359,280 bytes of data, more than the 4,294,967,296 that",
    ),
    "promises more than gzip can hold": (
        gzip.compress(b"\0\0\x08\3" + struct.pack(">3I", 1000, 1000, 1000)),
        "truncated: its header promises 1000x1000x1000 = 1,000,000,000 bytes of data and the file is too short",
    ),
}


@pytest.mark.parametrize(("contents", "message"), BAD.values(), ids=BAD)
def test_bad_file(tmp_path, contents, message) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(contents)
    with pytest.raises(DataError) as caught:
        idx.read_images(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("contents", [PAYLOAD, ZIPPED], ids=["raw", "gzip"])
def test_any_truncation_is_found(tmp_path, contents) -> None:
    path = tmp_path / "images"
    for length in range(len(contents)):
        path.write_bytes(contents[:length])
        with pytest.raises(DataError):
            idx.read_images(path)


def test_what_follows_the_promised_bytes_is_not_unpacked(tmp_path, monkeypatch) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(PAYLOAD + bytes(2**26)))
    asked = []
    read = gzip.GzipFile.read

    def recorded(self, size=-1):
        asked.append(size)
        return read(self, size)

    monkeypatch.setattr(gzip.GzipFile, "read", recorded)
    with pytest.raises(DataError, match="and more follow"):
        idx.read_images(path)
    assert asked == [4, 12, IMAGES.size + 1]


def test_label_out_of_range(tmp_path) -> None:
    path = tmp_path / "labels"
    path.write_bytes(idx_bytes(np.array([3, 10, 11])))
    with pytest.raises(DataError) as caught:
        idx.read_labels(path, classes=10)
    assert str(caught.value) == f"{path}: label 10 at index 1 is out of range; expected 0 to 9 (10 classes)"


def test_images_where_labels_belong(tmp_path) -> None:
    path = tmp_path / "labels"
    path.write_bytes(PAYLOAD)
    with pytest.raises(DataError, match="an IDX file of images, not of labels: expected 00 00 08 01"):
        idx.read_labels(path, classes=10)


@pytest.mark.parametrize("kind", ["missing", "folder", "null"])
def test_file_that_cannot_be_opened(tmp_path, kind) -> None:
    path, message = {
        "missing": (tmp_path / "nothing", "no such file"),
        "folder": (tmp_path, "a folder or device, expected a file"),
        "null": (tmp_path / "a\0b", "cannot be read (embedded null"),
    }[kind]
    with pytest.raises(DataError) as caught:
        idx.read_images(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_a_failing_disk_is_named(tmp_path) -> None:
    path = tmp_path / "images"
    path.write_bytes(PAYLOAD)
    with pytest.raises(DataError, match=r"images: cannot be read \(Input/output error\)"), files.opened(path):
        raise OSError(5, "Input/output error")
