import hashlib
import pickle

import numpy as np
import pytest
from sample_files import write_cifar_set

from minidl.data import check, load
from minidl.data.cifar import read_batch
from minidl.errors import DataError


@pytest.mark.parametrize("folder", ["", "cifar-10-batches-bin", "cifar10"])
def test_round_trip(tmp_path, folder) -> None:
    images, labels = write_cifar_set(tmp_path / folder)
    dataset = load("cifar10", tmp_path)
    assert dataset.train_images.shape == (15, 32, 32, 3)
    assert dataset.test_images.shape == (3, 32, 32, 3)
    assert np.array_equal(dataset.train_images, images[:5].reshape(15, 32, 32, 3))
    assert np.array_equal(dataset.test_images, images[5])
    assert np.array_equal(dataset.train_labels, labels[:5].reshape(15))
    assert np.array_equal(dataset.test_labels, labels[5])
    assert dataset.class_names[0] == "airplane"
    assert dataset.classes == 10
    assert dataset.train_images.flags.c_contiguous
    assert dataset.source == str(tmp_path / folder)


def test_planes_become_channels(tmp_path) -> None:
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(bytes([7]) + bytes([10] * 1024 + [20] * 1024) + bytes([30] * 1023 + [31]))
    images, labels, sha256 = read_batch(path)
    assert labels.tolist() == [7]
    assert images[0, 0, 0].tolist() == [10, 20, 30]
    assert images[0, 31, 31].tolist() == [10, 20, 31]
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_check_counts_records(tmp_path) -> None:
    write_cifar_set(tmp_path, count=1)
    report = check("cifar10", tmp_path)
    assert [file.verdict for file in report.files] == ["differs from the published file"] * 6
    assert report.files[0].part == "training images, part 1"
    assert report.differs


BINARY = 'minidl reads the binary version of CIFAR-10 ("cifar-10-binary.tar.gz")'
BAD = {
    "empty": (b"", "the file is empty"),
    "truncated": (bytes(2 * 3073 - 1), "6,145 bytes, expected a multiple of 3,073"),
    "trailing": (bytes(3073 + 1), "3,074 bytes, expected a multiple of 3,073"),
    "label": (bytes(3073) + bytes([10]) + bytes(3072), "label 10 at index 1 is out of range; expected 0 to 9"),
    "pickle": (
        pickle.dumps({b"data": b"x"}, protocol=2),
        f"a pickle (the python version of the set), never opened; {BINARY}",
    ),
}


@pytest.mark.parametrize(("contents", "message"), BAD.values(), ids=BAD)
def test_bad_file(tmp_path, contents, message) -> None:
    write_cifar_set(tmp_path)
    path = tmp_path / "data_batch_3.bin"
    path.write_bytes(contents)
    with pytest.raises(DataError) as caught:
        load("cifar10", tmp_path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_python_version_is_refused(tmp_path) -> None:
    for name in ("data_batch_1", "test_batch"):
        (tmp_path / name).write_bytes(pickle.dumps({}))
    with pytest.raises(DataError) as caught:
        load("cifar10", tmp_path)
    assert str(caught.value) == f"{tmp_path}: the pickled python version, never opened; {BINARY}"


def test_missing_file_is_named(tmp_path) -> None:
    write_cifar_set(tmp_path)
    (tmp_path / "data_batch_4.bin").unlink()
    with pytest.raises(DataError) as caught:
        load("cifar10", tmp_path)
    expected = f"cifar10: {tmp_path} has only part of the files; copy there what is missing: data_batch_4.bin"
    assert str(caught.value) == expected
