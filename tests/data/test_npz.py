import io
import warnings
import zipfile

import numpy as np
import pytest

from minidl.data import NO_AUGMENTATION, check, load
from minidl.data import npz as npz_reader
from minidl.errors import DataError

IMAGES = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)


def arrays(**changes):
    """A sound set's arrays; a change to None leaves one out."""
    sound = {
        "train_images": IMAGES,
        "train_labels": np.array([0, 1, 2, 0, 1, 2], np.uint8),
        "test_images": IMAGES[:3],
        "test_labels": np.array([2, 1, 0], np.uint8),
    }
    return {name: array for name, array in {**sound, **changes}.items() if array is not None}


def npy_bytes(array, version=(1, 0)):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=version)
    return stream.getvalue()


def npy_with_header(header, payload=b""):
    """An npy file with any header text at all."""
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + payload


def write_members(path, **members):
    """An npz whose members are bytes, the rest of the set being sound."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, contents in {**{key: npy_bytes(array) for key, array in arrays().items()}, **members}.items():
            archive.writestr(f"{name}.npy", contents)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_round_trip(tmp_path, save) -> None:
    path = tmp_path / "shapes.npz"
    save(path, **arrays(), extra=np.ones(3))
    dataset = load(str(path))
    assert dataset.name == "shapes"
    assert dataset.source == str(path)
    assert dataset.class_names == ("0", "1", "2")
    assert np.array_equal(dataset.train_images, IMAGES[..., np.newaxis])
    assert dataset.test_labels.tolist() == [2, 1, 0]
    assert dataset.test_labels.dtype == np.int64
    assert dataset.augmentation == NO_AUGMENTATION


def test_channels_class_names_fortran_order_and_other_integers(tmp_path) -> None:
    path = tmp_path / "colour.npz"
    colour = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    np.savez(
        path,
        train_images=np.asfortranarray(colour),
        train_labels=np.array([1, 0], ">i8"),
        test_images=colour,
        test_labels=np.array([0, 1], np.int16),
        class_names=np.array(["red", "bleu clair"]),
    )
    dataset = load(str(path))
    assert np.array_equal(dataset.train_images, colour)
    assert dataset.train_images.flags.c_contiguous
    assert dataset.train_labels.tolist() == [1, 0]
    assert dataset.class_names == ("red", "bleu clair")
    assert dataset.image_shape == (3, 4, 3)


def test_npy_format_2_is_read(tmp_path) -> None:
    path = tmp_path / "set.npz"
    write_members(path, train_images=npy_bytes(IMAGES, (2, 0)))
    assert np.array_equal(load(str(path)).train_images[..., 0], IMAGES)


def test_check(tmp_path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, **arrays())
    report = check(str(path))
    assert report.files[0].verdict == "no published checksum is known"
    assert report.files[0].sha256 == npz_reader.sha256(path)
    assert not report.differs


BAD_ARRAYS = {
    "missing": (
        {"test_labels": None, "test_images": None},
        "array test_images, test_labels is missing; expected train_images, train_labels, test_images, test_labels, "
        "found train_images, train_labels",
    ),
    "float images": ({"train_images": IMAGES / 255}, "train_images has dtype float64, expected uint8"),
    "flat images": (
        {"test_images": IMAGES[:3].reshape(3, 12)},
        "test_images has shape (3, 12), expected (images, height, width) or (images, height, width, channels)",
    ),
    "five dimensions": ({"train_images": IMAGES[:, None, None]}, "train_images has 5 dimensions, expected at most 4"),
    "no images": (
        {"train_images": IMAGES[:0], "train_labels": np.zeros(0, np.uint8)},
        "train_images has shape (0, 4, 3): it holds no pixel",
    ),
    "two sizes": (
        {"test_images": IMAGES[:3, :2]},
        "training images are 4x3x1 and test images 2x3x1; expected one size for all",
    ),
    "counts": (
        {"test_labels": np.array([0, 1], np.uint8)},
        "test_images holds 3 images but test_labels holds 2 labels; expected one label an image",
    ),
    "float labels": ({"train_labels": np.zeros(6)}, "train_labels has dtype float64, expected integers"),
    "one-hot labels": (
        {"train_labels": np.eye(6, dtype=np.uint8)},
        "train_labels has shape (6, 6), expected one label an image",
    ),
    "negative label": (
        {"train_labels": np.array([0, 1, 2, -1, 0, 0])},
        "train_labels: label -1 at index 3 is out of range; expected 0 to 2 (3 classes)",
    ),
    "label beyond the names": (
        {"class_names": np.array(["a", "b"])},
        "train_labels: label 2 at index 2 is out of range; expected 0 to 1 (2 classes)",
    ),
    "enormous label": (
        {"train_labels": np.array([0, 1, 2, 0, 1, 2**63], np.uint64)},
        "a label is 9,223,372,036,854,775,808; expected labels from 0 up, below 10,000",
    ),
    "objects": (
        {"train_labels": np.array([0, 1, 2, 0, 1, None], dtype=object)},
        "train_labels holds Python objects, which are never unpickled",
    ),
    "object names": (
        {"class_names": np.array(["a", "b", "c"], dtype=object)},
        "class_names holds Python objects, which are never unpickled",
    ),
    "records": (
        {"train_labels": np.zeros(6, [("label", np.uint8)])},
        "train_labels has dtype [('label', 'u1')], expected numbers or text",
    ),
    "dates": ({"train_labels": np.zeros(6, "M8[s]")}, "train_labels has dtype datetime64[s], expected numbers or text"),
    "number names": ({"class_names": np.arange(3)}, "class_names has dtype int64 and shape (3,), expected text"),
    "no names": ({"class_names": np.array([], "U3")}, "class_names has dtype <U3 and shape (0,), expected text"),
    "terminal escape": (
        {"class_names": np.array(["a", "\x1b[2J", "c"])},
        r"class_names: name 1 is '\x1b[2J', expected",
    ),
    "empty name": ({"class_names": np.array(["a", "b", ""])}, "class_names: name 2 is '', expected printable text"),
    "not Unicode": (
        {"class_names": np.array([0x41, 0x110000, 0x42], "<u4").view("<U1")},
        "class_names holds what is not text",
    ),
}


@pytest.mark.parametrize(("changes", "message"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_bad_array(tmp_path, changes, message) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, **arrays(**changes))
    assert_refused(path, message)


BAD_MEMBERS = {
    "header": (npy_with_header("{'descr': "), "train_images: its npy header is damaged"),
    "header that NumPy would mend": (
        npy_with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (6L, 4, 3)}", IMAGES.tobytes()),
        "train_images: its npy header is damaged",
    ),
    "not npy": (b"hello", "train_images: its npy header is damaged"),
    "npy format": (b"\x93NUMPY\x03\x00" + bytes(200), "train_images: npy format 3.0, expected 1.0 or 2.0"),
    "4 TiB in the header": (
        npy_with_header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({2**42},)}}", b"x"),
        "shape (4398046511104,) of uint8 takes 4,398,046,511,104 bytes and 1 follow its header",
    ),
    "short": (npy_bytes(IMAGES)[:-1], "shape (6, 4, 3) of uint8 takes 72 bytes and 71 follow its header"),
    "long": (npy_bytes(IMAGES) + b"x", "shape (6, 4, 3) of uint8 takes 72 bytes and 73 follow its header"),
    "negative": (
        npy_with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (-6, -4, 3)}", IMAGES.tobytes()),
        "shape (-6, -4, 3) of uint8 takes 72 bytes",
    ),
    "boolean size": (
        npy_with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (True, 4, 3)}", bytes(12)),
        "train_images holds 1 images but train_labels holds 6 labels",
    ),
    "width 0": (
        npy_with_header("{'descr': '<U0', 'fortran_order': False, 'shape': (6,)}"),
        "train_images has dtype <U0, which holds nothing",
    ),
}


@pytest.mark.parametrize(("member", "message"), BAD_MEMBERS.values(), ids=BAD_MEMBERS)
def test_bad_member(tmp_path, member, message) -> None:
    path = tmp_path / "set.npz"
    write_members(path, train_images=member)
    assert_refused(path, message)


BAD_FILES = {
    "empty": (b"", "the file is empty"),
    "garbage": (b"garbage garbage", "not an npz file: expected a zip archive, found bytes 67 61 72 62"),
    "pickle": (b"\x80\x04\x95", "not an npz file: expected a zip archive, found bytes 80 04 95"),
    "single array": (npy_bytes(IMAGES), "a single array (npy), expected an npz with train_images, train_labels"),
    "cut": (b"PK\x03\x04" + bytes(30), "the archive is truncated or damaged (File is not a zip file)"),
}


@pytest.mark.parametrize(("contents", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_file(tmp_path, contents, message) -> None:
    path = tmp_path / "set.npz"
    path.write_bytes(contents)
    assert_refused(path, message)


def test_missing_file_and_folder(tmp_path) -> None:
    assert_refused(tmp_path / "nothing.npz", "no such file")
    (tmp_path / "folder.npz").mkdir()
    assert_refused(tmp_path / "folder.npz", "a folder or device, expected a file")


def test_empty_archive(tmp_path) -> None:
    path = tmp_path / "set.npz"
    with zipfile.ZipFile(path, "w"):
        pass
    assert_refused(path, "array train_images, train_labels, test_images, test_labels is missing; expected")


def test_zip_bomb_is_refused_before_it_is_opened(tmp_path, monkeypatch) -> None:
    path = tmp_path / "set.npz"
    write_members(path, bomb=bytes(npz_reader.SMALL))

    def opened(*_):
        raise AssertionError("a member was opened")

    monkeypatch.setattr(zipfile.ZipFile, "open", opened)
    assert_refused(path, f"refused, as minidl reads at most {2**32:,} bytes and 200 times the file's size")


def test_more_than_4_gib_is_refused(tmp_path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, **arrays())
    contents = path.read_bytes()
    entry = contents.index(b"PK\x01\x02")  # the directory's first entry; 24 bytes on stands the unpacked size
    path.write_bytes(contents[: entry + 24] + (2**32 - 2).to_bytes(4, "little") + contents[entry + 28 :])
    assert_refused(path, "bytes would unpack to 4,294,9")


def test_the_limit_holds_at_any_ratio(tmp_path, monkeypatch) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, **arrays())
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(info.file_size for info in archive.infolist())
    monkeypatch.setattr(npz_reader, "MAX_BYTES", unpacked)
    assert load(str(path)).classes == 3
    monkeypatch.setattr(npz_reader, "MAX_BYTES", unpacked - 1)
    assert_refused(path, f"bytes would unpack to {unpacked}; refused, as minidl reads at most {unpacked - 1} bytes")


def test_a_size_that_lies_does_not_unpack_more(tmp_path) -> None:
    path = tmp_path / "set.npz"
    write_members(path, train_images=npy_bytes(IMAGES) + bytes(10_000))
    contents = path.read_bytes()
    entry = contents.index(b"PK\x01\x02")
    assert int.from_bytes(contents[entry + 24 : entry + 28], "little") == 128 + 72 + 10_000
    path.write_bytes(contents[: entry + 24] + (128 + 72).to_bytes(4, "little") + contents[entry + 28 :])
    assert_refused(path, "the archive is truncated or damaged (Bad CRC-32 for file 'train_images.npy')")


def test_duplicate_array(tmp_path) -> None:
    path = tmp_path / "set.npz"
    write_members(path)
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("train_images.npy", npy_bytes(IMAGES))
    assert_refused(path, "holds array 'train_images' twice")


def test_other_compression(tmp_path) -> None:
    pytest.importorskip("bz2")
    path = tmp_path / "set.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("train_images.npy", npy_bytes(IMAGES))
    assert_refused(path, "train_images is compressed by method 12, expected 0 or 8 (stored or deflated)")


def test_encrypted_archive(tmp_path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, **arrays())
    contents = bytearray(path.read_bytes())
    contents[contents.index(b"PK\x01\x02") + 8] |= 1
    contents[6] |= 1
    path.write_bytes(bytes(contents))
    assert_refused(path, "train_images is encrypted; write it with numpy.savez_compressed")


def test_names_in_the_archive_cannot_break_the_line(tmp_path) -> None:
    path = tmp_path / "set.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a\nb.npy", b"")
    assert_refused(path, r"found 'a\nb'")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_no_damage_goes_unnoticed_or_raises_another_error(tmp_path, save) -> None:
    """Each byte changed in turn: the file is refused in one line, or read as it was."""
    path = tmp_path / "set.npz"
    save(path, **arrays())
    sound, fingerprint = path.read_bytes(), load(str(path)).fingerprint
    outcomes = []
    for position in range(len(sound)):
        path.write_bytes(sound[:position] + bytes([sound[position] ^ 0x81]) + sound[position + 1 :])
        try:
            outcomes.append(load(str(path)).fingerprint)
        except DataError as error:
            outcomes.append(str(error))
    refused = [outcome for outcome in outcomes if outcome != fingerprint]
    assert len(refused) > len(sound) / 2
    assert all(outcome.startswith(f"{path}: ") and "\n" not in outcome for outcome in refused)


def assert_refused(path, message):
    with pytest.raises(DataError) as caught:
        load(str(path))
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
