import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from sample_files import idx_bytes, sample, write_cifar_set, write_idx_set

from minidl.data import available, catalogue, check, load
from minidl.data.catalogue import KNOWN, PUBLISHED
from minidl.errors import DataError

FASHION_FOLDERS = ["", "fashion-mnist", "FashionMNIST/raw", "fashion"]
MNIST_FOLDERS = ["", "mnist", "MNIST/raw"]
INSTALLED = catalogue.SYSTEM_FOLDERS  # before conftest hides it from the tests


def refusal(name, data_dir=None):
    with pytest.raises(DataError) as caught:
        load(name, data_dir)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("name", "folder"),
    [("fashion-mnist", folder) for folder in FASHION_FOLDERS] + [("mnist", folder) for folder in MNIST_FOLDERS],
)
def test_idx_set_is_found_and_read(tmp_path, name, folder, zipped) -> None:
    arrays = sample()
    write_idx_set(tmp_path / folder, arrays, zipped)
    dataset = load(name, tmp_path)
    assert dataset.name == name
    assert np.array_equal(dataset.train_images[..., 0], arrays["training images"])
    assert np.array_equal(dataset.train_labels, arrays["training labels"])
    assert np.array_equal(dataset.test_images[..., 0], arrays["test images"])
    assert np.array_equal(dataset.test_labels, arrays["test labels"])
    assert dataset.class_names == KNOWN[name].class_names
    assert dataset.source == str(tmp_path / folder)


def test_search_order(tmp_path, monkeypatch) -> None:
    """data_dir, MINIDL_DATA, the system's folder; in each the subfolder before the folder itself."""
    given, environment, system = tmp_path / "given", tmp_path / "environment", tmp_path / "system"
    monkeypatch.setattr(catalogue, "SYSTEM_FOLDERS", {"fashion-mnist": (system,)})
    monkeypatch.setenv("MINIDL_DATA", str(environment))
    given.mkdir()
    for folder in (system, environment, environment / "fashion-mnist", given, given / "fashion-mnist"):
        write_idx_set(folder, sample())
        assert load("fashion-mnist", given).source == str(folder)
    assert load("fashion-mnist").source == str(environment / "fashion-mnist")


def test_home_is_expanded(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write_idx_set(tmp_path / "sets" / "mnist", sample())
    assert load("mnist", "~/sets").source == str(tmp_path / "sets" / "mnist")


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("fashion_mnist", "fashion-mnist"),
        ("minst", "mnist"),
        ("CIFAR-10", "cifar10"),
        ("digit", "digits"),
        ("Fashion-MNIST", "fashion-mnist"),
    ],
)
def test_unknown_name_with_a_suggestion(name, suggestion) -> None:
    assert refusal(name) == (
        f"unknown data set {name!r}; expected one of digits, fashion-mnist, mnist, cifar10, or the path of an .npz file"
        f"; did you mean {suggestion!r}?"
    )


@pytest.mark.parametrize("name", ["", "imagenet", "a\nb", "\0"])
def test_unknown_name(name) -> None:
    assert refusal(name) == (
        f"unknown data set {name!r}; expected one of digits, fashion-mnist, mnist, cifar10, or the path of an .npz file"
    )


def test_folder_as_name(tmp_path) -> None:
    assert refusal(str(tmp_path)) == (
        f"{str(tmp_path)!r} is a folder; expected one of digits, fashion-mnist, mnist, cifar10, "
        "with the folder as --data-dir"
    )


def test_the_home_of_nobody_is_a_path_like_any_other(monkeypatch) -> None:
    monkeypatch.setenv("MINIDL_DATA", "~no-such-user/sets")
    monkeypatch.setattr(catalogue, "SYSTEM_FOLDERS", {})
    assert f"not found in {Path('~no-such-user/sets/mnist')}, " in refusal("mnist")
    assert refusal("mnist", "~no-such-user").startswith("~no-such-user: no such folder; --data-dir names")
    assert refusal("~no-such-user/mine.npz") == f"{Path('~no-such-user/mine.npz')}: no such file"


def test_missing_lists_the_places_and_the_remedy(tmp_path, monkeypatch) -> None:
    given, environment = tmp_path / "given", tmp_path / "environment"
    given.mkdir()
    monkeypatch.setenv("MINIDL_DATA", str(environment))
    monkeypatch.setattr(catalogue, "SYSTEM_FOLDERS", {"fashion-mnist": (tmp_path / "system",)})
    roots = (given, environment, tmp_path / "system")
    places = [root / folder for root in roots for folder in ("fashion-mnist", "FashionMNIST/raw", "fashion", "")]
    assert refusal("fashion-mnist", given) == (
        f"fashion-mnist: not found in {', '.join(map(str, places))} (MINIDL_DATA names no folder); "
        "on Debian and Ubuntu `apt install dataset-fashion-mnist`, elsewhere download its four files from "
        "https://github.com/zalandoresearch/fashion-mnist, then name their folder by --data-dir or MINIDL_DATA"
    )


@pytest.mark.parametrize("name", ["mnist", "cifar10", "fashion-mnist"])
def test_missing_with_no_folder_to_look_in(name) -> None:
    assert refusal(name).startswith(f"{name}: no folder to look in; ")


def test_data_dir_must_exist(tmp_path) -> None:
    expected = f"{tmp_path / 'no'}: no such folder; --data-dir names the folder that holds the data sets"
    assert refusal("mnist", tmp_path / "no") == expected
    with pytest.raises(DataError, match="no such folder"):
        available(tmp_path / "no")


def test_debian_places_fashion_mnist() -> None:
    assert {"fashion-mnist": (Path("/usr/share/datasets/fashion-mnist"),)} == INSTALLED


def test_incomplete_set_names_what_is_missing(tmp_path) -> None:
    write_idx_set(tmp_path, sample(), zipped=True)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    assert refusal("mnist", tmp_path) == (
        f"mnist: {tmp_path} has only part of the files; copy there what is missing: "
        "train-labels-idx1-ubyte, t10k-labels-idx1-ubyte (with or without .gz)"
    )


@pytest.mark.parametrize("half", ["training", "test"])
def test_counts_differ(tmp_path, half) -> None:
    arrays = sample()
    arrays[f"{half} labels"] = arrays[f"{half} labels"][:-1]
    write_idx_set(tmp_path, arrays)
    images, labels = (tmp_path / catalogue.IDX_FILES[f"{half} {what}"] for what in ("images", "labels"))
    count = len(arrays[f"{half} images"])
    assert refusal("mnist", tmp_path) == (
        f"{images} holds {count} images but {labels} holds {count - 1} labels; expected one label an image"
    )


def test_label_out_of_range_and_damage_name_the_file(tmp_path) -> None:
    write_idx_set(tmp_path, sample())
    path = tmp_path / "t10k-labels-idx1-ubyte"
    path.write_bytes(idx_bytes(np.array([0, 1, 2, 3, 4, 5, 200])))
    assert refusal("mnist", tmp_path) == f"{path}: label 200 at index 6 is out of range; expected 0 to 9 (10 classes)"
    path.write_bytes(b"")
    assert refusal("mnist", tmp_path) == f"{path}: the file is empty; copy or download it again"


def test_sizes_differ(tmp_path) -> None:
    write_idx_set(tmp_path, {**sample(), "test images": np.zeros((7, 4, 4), np.uint8)})
    assert "training images are 5x4x1 and test images 4x4x1; expected one size for all" in refusal("mnist", tmp_path)


def publish(monkeypatch, name, arrays):
    """Let these arrays be the published ones of a set, so that they stand for MNIST or Fashion-MNIST."""
    for part, array in arrays.items():
        monkeypatch.setitem(PUBLISHED, (name, part), hashlib.sha256(idx_bytes(array)).hexdigest())


def test_mnist_under_the_name_fashion_mnist(tmp_path, monkeypatch) -> None:
    arrays = sample()
    publish(monkeypatch, "mnist", arrays)
    write_idx_set(tmp_path, arrays, zipped=True)
    message = refusal("fashion-mnist", tmp_path)
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    assert message.startswith(
        f"{path}: expected the test labels of fashion-mnist, but these are the test labels of mnist; "
    )
    assert "apt install dataset-fashion-mnist" in message
    assert load("mnist", tmp_path).name == "mnist"


def test_another_sets_folder_is_passed_over(tmp_path, monkeypatch) -> None:
    """MINIDL_DATA may be the folder of the one set while the other lies where the system has it."""
    digits, clothes = sample(seed=1), sample(seed=2)
    publish(monkeypatch, "mnist", digits)
    write_idx_set(tmp_path / "digits", digits)
    write_idx_set(tmp_path / "system", clothes)
    monkeypatch.setenv("MINIDL_DATA", str(tmp_path / "digits"))
    monkeypatch.setattr(catalogue, "SYSTEM_FOLDERS", {"fashion-mnist": (tmp_path / "system",)})
    assert load("fashion-mnist").source == str(tmp_path / "system")
    assert load("mnist").source == str(tmp_path / "digits")


@pytest.mark.parametrize("part", ["training images", "training labels", "test images"])
def test_one_file_of_another_set(tmp_path, monkeypatch, part) -> None:
    arrays, other = sample(seed=1), sample(seed=2)
    publish(monkeypatch, "mnist", other)
    write_idx_set(tmp_path, {**arrays, part: other[part]})
    path = tmp_path / catalogue.IDX_FILES[part]
    assert f"{path}: expected the {part} of fashion-mnist, but these are the {part} of mnist" in refusal(
        "fashion-mnist", tmp_path
    )


def test_test_images_under_the_name_of_training_images(tmp_path, monkeypatch) -> None:
    arrays = sample(train=7, test=7)
    publish(monkeypatch, "mnist", arrays)
    write_idx_set(tmp_path, {**arrays, "training images": arrays["test images"]})
    message = refusal("mnist", tmp_path)
    assert "expected the training images of mnist, but these are the test images of mnist" in message


def test_check_compares_with_the_published_files(tmp_path, monkeypatch) -> None:
    arrays = sample()
    publish(monkeypatch, "mnist", arrays)
    write_idx_set(tmp_path, arrays, zipped=True)
    report = check("mnist", tmp_path)
    assert [file.verdict for file in report.files] == ["as published"] * 4
    assert not report.differs
    assert report.dataset.name == "mnist"

    arrays["training images"][3, 2, 1] ^= 1
    write_idx_set(tmp_path, arrays, zipped=True)
    report = check("mnist", tmp_path)
    verdicts = {file.part: file.verdict for file in report.files}
    assert verdicts.pop("training images") == "differs from the published file"
    assert set(verdicts.values()) == {"as published"}
    assert report.differs
    changed = report.files[0]
    assert changed.file == str(tmp_path / "train-images-idx3-ubyte.gz")
    assert changed.sha256 == hashlib.sha256(idx_bytes(arrays["training images"])).hexdigest()


def test_available_where_nothing_is_installed() -> None:
    records = {record.name: record for record in available()}
    assert list(records) == ["digits", "fashion-mnist", "mnist", "cifar10"]
    digits = records["digits"]
    assert digits.found
    assert (digits.train_count, digits.test_count, digits.image_shape, digits.classes) == (1437, 360, (8, 8, 1), 10)
    assert digits.licence == "CC BY 4.0"
    assert digits.origin == "https://doi.org/10.24432/C50P49"
    assert digits.problem == ""
    for name in ("fashion-mnist", "mnist", "cifar10"):
        record = records[name]
        assert not record.found
        assert record.where == ""
        assert record.train_count is record.test_count is record.bytes is record.image_shape is None
        assert record.problem.startswith(f"{name}: no folder to look in; ")


def test_available_reads_headers(tmp_path) -> None:
    write_idx_set(tmp_path / "mnist", sample(), zipped=True)
    write_cifar_set(tmp_path / "cifar10")
    records = {record.name: record for record in available(tmp_path)}
    mnist, cifar10 = records["mnist"], records["cifar10"]
    assert mnist.found
    assert mnist.where == str(tmp_path / "mnist")
    assert (mnist.train_count, mnist.test_count, mnist.image_shape) == (12, 7, (5, 4, 1))
    assert mnist.bytes == sum(path.stat().st_size for path in (tmp_path / "mnist").iterdir())
    assert (cifar10.train_count, cifar10.test_count, cifar10.image_shape) == (15, 3, (32, 32, 3))
    assert cifar10.bytes == 6 * 3 * 3073
    assert not records["fashion-mnist"].found


def test_available_lists_a_damaged_set_with_its_fault(tmp_path) -> None:
    write_idx_set(tmp_path / "mnist", sample())
    (tmp_path / "mnist" / "train-images-idx3-ubyte").write_bytes(b"damaged")
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({}))
    records = {record.name: record for record in available(tmp_path)}
    assert records["mnist"].found
    assert "not an IDX file, wrong magic number" in records["mnist"].problem
    assert not records["cifar10"].found
    assert "cifar-10-binary.tar.gz" in records["cifar10"].problem


def test_published_checksums_begin_as_documented() -> None:
    begins = {
        ("fashion-mnist", "training images"): "c59f468a2f672dc8",
        ("fashion-mnist", "training labels"): "bad3541b69d91243",
        ("fashion-mnist", "test images"): "5b4141f0afbad91e",
        ("fashion-mnist", "test labels"): "0402a96d92fd2663",
        ("mnist", "training images"): "ba891046e6505d7a",
        ("mnist", "training labels"): "65a50cbbf4e906d7",
        ("mnist", "test images"): "0fa7898d509279e4",
        ("mnist", "test labels"): "ff7bcfd416de3373",
    }
    assert {key: value[:16] for key, value in PUBLISHED.items()} == begins
    assert {len(value) for value in PUBLISHED.values()} == {64}


def test_real_fashion_mnist(real_fashion_mnist) -> None:
    report = check("fashion-mnist", real_fashion_mnist)
    assert [file.verdict for file in report.files] == ["as published"] * 4
    dataset = report.dataset
    assert dataset.train_images.shape == (60000, 28, 28, 1)
    assert dataset.test_images.shape == (10000, 28, 28, 1)
    assert np.bincount(dataset.train_labels).tolist() == [6000] * 10
    assert np.bincount(dataset.test_labels).tolist() == [1000] * 10
    assert round(dataset.mean[0] / 255, 4) == 0.2860
    assert round(dataset.std[0] / 255, 4) == 0.3530
    assert "trouser" in dataset.class_names[1].lower()


def test_real_fashion_mnist_is_not_mnist(real_fashion_mnist) -> None:
    message = refusal("mnist", real_fashion_mnist)
    assert "expected the test labels of mnist, but these are the test labels of fashion-mnist" in message
