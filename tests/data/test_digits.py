import runpy
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from minidl.data import check, load
from minidl.data.digits import FILE
from minidl.data.npz import read_arrays

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_digits.py"
NAMES = ("images", "labels", "train_index", "test_index")
TRAIN_COUNTS = [142, 145, 142, 146, 145, 146, 145, 143, 139, 144]
TEST_COUNTS = [36, 37, 35, 37, 36, 36, 36, 36, 35, 36]


@pytest.fixture(scope="module")
def script():
    pytest.importorskip("sklearn")
    return runpy.run_path(str(SCRIPT))


def test_split() -> None:
    dataset = load("digits")
    assert dataset.train_images.shape == (1437, 8, 8, 1)
    assert dataset.test_images.shape == (360, 8, 8, 1)
    assert dataset.train_images.max() == 16
    assert np.bincount(dataset.train_labels).tolist() == TRAIN_COUNTS
    assert np.bincount(dataset.test_labels).tolist() == TEST_COUNTS
    assert dataset.class_names == tuple("0123456789")


def test_split_is_stratified() -> None:
    """Each class is within one image of its share."""
    shares = (np.array(TRAIN_COUNTS) + TEST_COUNTS) * 360 / 1797
    assert np.abs(shares - TEST_COUNTS).max() < 1


def test_parts_are_disjoint_and_together_all() -> None:
    arrays = read_arrays(FILE, NAMES)
    both = np.concatenate([arrays["train_index"], arrays["test_index"]])
    assert np.array_equal(np.sort(both), np.arange(1797))
    assert (np.diff(arrays["train_index"].astype(int)) > 0).all()
    assert (np.diff(arrays["test_index"].astype(int)) > 0).all()


def test_images_are_scikit_learns() -> None:
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    arrays, dataset = read_arrays(FILE, NAMES), load("digits")
    assert np.array_equal(arrays["images"][..., 0], digits.images)
    assert np.array_equal(arrays["labels"], digits.target)
    assert np.array_equal(dataset.train_images[..., 0], digits.images[arrays["train_index"]])
    assert np.array_equal(dataset.test_labels, digits.target[arrays["test_index"]])


def test_fingerprint_is_the_published_one() -> None:
    report = check("digits")
    assert [file.verdict for file in report.files] == ["as published"]


def test_script_writes_the_same_arrays_each_time(script, tmp_path) -> None:
    script["write"](tmp_path / "one.npz")
    script["write"](tmp_path / "two.npz")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    written, shipped = read_arrays(tmp_path / "one.npz", NAMES), read_arrays(FILE, NAMES)
    for name in NAMES:
        assert written[name].dtype == shipped[name].dtype
        assert np.array_equal(written[name], shipped[name])


def test_script_writes_the_shipped_file_byte_for_byte(script, tmp_path) -> None:
    with zipfile.ZipFile(FILE) as archive:
        info = archive.getinfo("images.npy")
        compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
        size = len(compressor.compress(archive.read(info)) + compressor.flush())
    if size != info.compress_size:
        pytest.skip("this machine's zlib compresses otherwise than the one that made the file")
    script["write"](tmp_path / "digits.npz")
    assert (tmp_path / "digits.npz").read_bytes() == FILE.read_bytes()


def test_archive_holds_no_trace_of_where_and_when_it_was_written() -> None:
    with zipfile.ZipFile(FILE) as archive:
        for info in archive.infolist():
            assert info.date_time == (1980, 1, 1, 0, 0, 0)
            assert info.create_system == 3


def test_held_out_counts_follow_the_largest_remainders(script) -> None:
    assert script["held_out_counts"]([3, 3, 3], 4) == [2, 1, 1]
    assert script["held_out_counts"]([10, 20, 70], 10) == [1, 2, 7]
    assert script["held_out_counts"]([1, 1, 8], 5) == [1, 0, 4]
