import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from minidl.backends import get_backend
from minidl.data import Augmentation, Loader, load
from minidl.data.catalogue import IDX_FILES
from minidl.training import ImageSource


def idx_bytes(array):
    """`array` (uint8) in the IDX format."""
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path):
    """A folder of data sets: twelve training and seven test images that pass for MNIST."""
    mnist = tmp_path / "sets" / "mnist"
    mnist.mkdir(parents=True)
    for part, name in IDX_FILES.items():
        count = 12 if part.startswith("training") else 7
        shape = (count, 5, 4) if part.endswith("images") else (count,)
        (mnist / name).write_bytes(idx_bytes(np.arange(np.prod(shape)).reshape(shape) % 10))
    return mnist.parent


def rows(text):
    """Words of each line."""
    return [line.split() for line in text.splitlines()]


def test_list(minidl, folder) -> None:
    result = minidl("data", "list", "--data-dir", folder)
    assert result.exit_code == 0
    table, notes, npz = result.stdout.split("\n\n")
    assert rows(table) == [
        ["name", "found", "train", "test", "image", "classes", "size"],
        ["digits", "yes", "1,437", "360", "8x8x1", "10", "48.0", "kB"],
        ["fashion-mnist", "no", "10"],
        ["mnist", "yes", "12", "7", "5x4x1", "10", "0.4", "kB"],
        ["cifar10", "no", "10"],
    ]
    assert len({line.index(word) for line, word in zip(table.splitlines()[:2], ("found", "yes"), strict=True)}) == 1
    digits, fashion, mnist, cifar = notes.splitlines()
    assert digits.split(maxsplit=1) == ["digits", "UCI handwritten digits, comes with minidl (licence: CC BY 4.0)"]
    assert f"not found in {folder / 'fashion-mnist'}" in fashion
    assert "apt install dataset-fashion-mnist" in fashion
    assert str(folder / "mnist") in mnist
    assert "cifar-10-binary.tar.gz" in cifar
    assert ".npz" in npz


def test_list_shows_damage(minidl, folder) -> None:
    (folder / "mnist" / IDX_FILES["training images"]).write_bytes(b"nothing")
    result = minidl("data", "list", "--data-dir", folder)
    assert result.exit_code == 0
    assert ["mnist", "damaged"] in [row[:2] for row in rows(result.stdout)]
    assert "not an IDX file" in result.stdout


def test_list_as_json(minidl, folder) -> None:
    sets = {one["name"]: one for one in json.loads(minidl("data", "list", "--data-dir", folder, "--json").stdout)}
    assert list(sets) == ["digits", "fashion-mnist", "mnist", "cifar10"]
    assert (sets["mnist"]["found"], sets["mnist"]["train_count"], sets["mnist"]["image_shape"]) == (True, 12, [5, 4, 1])
    assert (sets["cifar10"]["found"], sets["cifar10"]["train_count"]) == (False, None)
    assert sets["cifar10"]["problem"]


def test_check_takes_all_that_are_found(minidl, folder) -> None:
    result = minidl("data", "check", "--data-dir", folder)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "digits: 1,437 training and 360 test images of 8x8x1 in 10 classes, comes with minidl"
    assert lines[1] == "  all arrays: as published"
    assert lines[3] == f"mnist: 12 training and 7 test images of 5x4x1 in 10 classes, {folder / 'mnist'}"
    assert lines[4] == "  training images, train-images-idx3-ubyte: differs from the published file"
    contents = (folder / "mnist" / "train-images-idx3-ubyte").read_bytes()
    assert lines[5] == f"    sha256 {hashlib.sha256(contents).hexdigest()}"
    assert lines[-1] == "not found: fashion-mnist, cifar10; `python -m minidl data list` says what to do"


def test_check_of_a_name_is_of_that_alone(minidl) -> None:
    result = minidl("data", "check", "digits")
    assert result.exit_code == 0
    assert result.stdout.count("images of") == 1
    assert "not found" not in result.stdout


def test_check_as_json(minidl, folder, stripes_file) -> None:
    result = minidl("data", "check", "digits", "cifar10", stripes_file, "mnist", "--data-dir", folder, "--json")
    assert result.exit_code == 2
    digits, cifar, stripes, mnist = json.loads(result.stdout)
    assert (digits["ok"], digits["differs"], digits["train_count"], digits["classes"]) == (True, False, 1437, 10)
    assert (cifar["ok"], cifar["name"]) == (False, "cifar10")
    assert f"Error: {cifar['problem']}\n" == result.stderr
    assert (stripes["ok"], stripes["name"], stripes["image_shape"]) == (True, stripes_file, [8, 8, 1])
    assert stripes["files"][0]["verdict"] == "no published checksum is known"
    assert (mnist["differs"], len(mnist["files"])) == (True, 4)


@pytest.mark.parametrize("named", [True, False])
def test_check_of_a_damaged_set(minidl, folder, named) -> None:
    images = folder / "mnist" / IDX_FILES["test images"]
    images.write_bytes(images.read_bytes()[:-1])
    result = minidl("data", "check", *(["mnist"] if named else []), "--data-dir", folder)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {images}: truncated: its header promises 7x5x4 = 140 bytes")
    assert result.stderr.count("\n") == 1
    assert ("digits:" in result.stdout) == (not named)


@pytest.mark.parametrize("command", [["data", "list"], ["data", "check"], ["data", "check", "mnist"]])
def test_wrong_data_dir(minidl, tmp_path, command) -> None:
    result = minidl(*command, "--data-dir", tmp_path / "nowhere")
    assert result.exit_code == 2
    assert result.stderr == (
        f"Error: {tmp_path / 'nowhere'}: no such folder; --data-dir names the folder that holds the data sets\n"
    )


def test_unknown_and_missing_names(minidl) -> None:
    result = minidl("data", "check", "fashion_mist", "cifar10", "digits")
    assert result.exit_code == 2
    unknown, missing = result.stderr.splitlines()
    assert unknown.startswith("Error: unknown data set 'fashion_mist'; expected one of digits, fashion-mnist, mnist")
    assert unknown.endswith("did you mean 'fashion-mnist'?")
    assert missing.startswith("Error: cifar10: no folder to look in; download and unpack")
    assert result.stdout.startswith("digits: 1,437 training")


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


SMALL = "--count", 3, "--epochs", 2


def test_augment_draws_what_training_sees(minidl, tmp_path) -> None:
    out = tmp_path / "sheet.PNG"
    arguments = "data", "augment", "digits", *SMALL, "--crop-padding", 1, "--flip", "--cutout", 3, "--seed", 4
    result = minidl(*arguments, "--epoch", 2, "--device", "cpu", "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{out}: digits with crop padding 1, flip, cutout 3, on cpu\n"
    digits = load("digits")
    source = ImageSource(digits.train_images, digits.train_labels, digits.mean, digits.std, get_backend("cpu"))
    index = Loader(len(digits.train_images), 3, 4).order(1)[:3]
    sheet = pixels(out)[..., 0]
    for row, options in enumerate(
        (
            {},
            {"augmentation": Augmentation(1, True, 3), "seed": 4, "epoch": 1},
            {"augmentation": Augmentation(1, True, 3), "seed": 4, "epoch": 2},
        )
    ):
        image = source.batch(index, **options)[0][row, ..., 0] * digits.std + digits.mean
        tile = np.rint(image.clip(0, 16) * (255 / 16)).astype(np.uint8).repeat(9, axis=0).repeat(9, axis=1)
        windows = np.lib.stride_tricks.sliding_window_view(sheet, tile.shape)
        assert (windows == tile).all(axis=(-2, -1)).sum() == 1


def test_augment_is_the_same_on_every_device(minidl, tmp_path, stripes_file) -> None:
    for device in ("cpu", "emulator"):
        arguments = stripes_file, *SMALL, "--cutout", 4, "--crop-padding", 2, "--device", device
        assert minidl("data", "augment", *arguments, "--out", tmp_path / f"{device}.png").exit_code == 0
    assert np.array_equal(pixels(tmp_path / "cpu.png"), pixels(tmp_path / "emulator.png"))


def test_augment_with_nothing_says_what_to_ask_for(minidl, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = minidl("data", "augment", "digits", *SMALL, "--device", "cpu")
    assert result.exit_code == 0
    said, hint = result.stdout.splitlines()
    assert said == "digits-augmented.png: digits with no augmentation, on cpu"
    assert "--crop-padding, --flip and --cutout" in hint
    assert pixels("digits-augmented.png").any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("digits", "--cutout", -1), "--cutout must be a whole number of at least 0, not -1"),
        (("digits", "--crop-padding", 9999), "--crop-padding must be at most 4,096, not 9999"),
        (("digits", "--cutout", 16), "--cutout 16 leaves nothing of any image of digits, 8x8 pixels"),
        (("digits", "--seed", -1), "--seed must be a whole number from 0 to 2**64 - 1, not -1"),
        (
            ("digits", "--out", "sheet.jpg"),
            "--out sheet.jpg: is not the name of a PNG file; give one that ends in .png",
        ),
        (("digits", "--out", "no/folder.png"), "cannot be written: No such file or directory"),
        (("digit",), "did you mean 'digits'?"),
    ],
)
def test_augment_refuses(minidl, tmp_path, monkeypatch, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    result = minidl("data", "augment", *arguments, *SMALL)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
