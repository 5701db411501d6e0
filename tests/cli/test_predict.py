import json
import shutil

import numpy as np
import pytest
from PIL import Image

from minidl.backends import get_backend
from minidl.data import load
from minidl.nn import inference
from minidl.training import ImageSource, load_model


@pytest.fixture(scope="module")
def digit():
    """A test image of the digits in black and white, (8, 8) uint8 of 0 and 16."""
    return np.where(load("digits").test_images[0, ..., 0] > 7, 16, 0).astype(np.uint8)


@pytest.fixture
def picture(tmp_path, digit):
    """The digit as a file of 8x8 pixels: nothing of it has to be changed but the scale."""
    path = tmp_path / "digit.png"
    Image.fromarray(np.where(digit, 255, 0).astype(np.uint8)).save(path)
    return path


def predictions(result):
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return [json.loads(line) for line in result.stdout.splitlines()]


def expected_probabilities(run, digit):
    """By the way that training and evaluation take, from the raw image."""
    backend, digits = get_backend("cpu"), load("digits")
    model, _, _ = load_model(run, backend)
    source = ImageSource(digit[None, ..., None], np.zeros(1, np.int64), digits.mean, digits.std, backend)
    with inference():
        logits = backend.numpy(model(source.batch(np.arange(1))[0]))[0].astype(np.float64)
    return np.exp(logits) / np.exp(logits).sum()


def test_json(minidl, runs, picture, digit) -> None:
    (prediction,) = predictions(minidl("predict", picture, "--out", runs, "--top", 99, "--json"))
    run = runs / "digits-small-cnn-001"
    assert {name: prediction[name] for name in ("image", "run", "checkpoint", "prepared")} == {
        "image": str(picture),
        "run": str(run),
        "checkpoint": str(runs / "digits-small-cnn-001" / "checkpoints" / "last.safetensors"),  # no best one yet
        "prepared": "8x8 grey -> 8x8, not inverted (its background is dark)",
    }
    wanted = expected_probabilities(run, digit)
    top = prediction["top"]
    assert [guess["class"] for guess in top] == np.argsort(-wanted).tolist()
    assert [guess["name"] for guess in top] == [str(guess["class"]) for guess in top]
    assert [guess["probability"] for guess in top] == pytest.approx(np.sort(wanted)[::-1].tolist(), rel=1e-5)
    assert sum(guess["probability"] for guess in top) == pytest.approx(1, abs=1e-12)


def test_text(minidl, runs, picture, digit) -> None:
    result = minidl("predict", picture, "--out", runs)
    assert result.exit_code == 0
    device, model, blank, name, prepared, *table = result.stdout.splitlines()
    assert device.startswith("device: ")
    file = runs / "digits-small-cnn-001" / "checkpoints" / "last.safetensors"
    assert model == f"model: small-cnn trained on digits, from {file}"
    assert (blank, name) == ("", str(picture))
    assert prepared == "  prepared: 8x8 grey -> 8x8, not inverted (its background is dark)"
    wanted = expected_probabilities(runs / "digits-small-cnn-001", digit)
    best = np.argsort(-wanted)[:3]
    assert [line.split() for line in table] == [[f"{wanted[number]:.2%}", str(number)] for number in best]


def test_a_large_photograph_of_dark_ink_on_light_paper_gives_the_same(minidl, runs, picture, digit, tmp_path) -> None:
    ink = np.kron(np.where(digit, 0, 255), np.ones((30, 30))).astype(np.uint8)
    paper = np.repeat(ink[..., None], 3, axis=-1)
    Image.fromarray(paper).save(tmp_path / "paper.png")
    small, large = predictions(minidl("predict", picture, tmp_path / "paper.png", "--out", runs, "--json"))
    assert large["prepared"] == "240x240 RGB -> grey, 8x8, inverted (its background is light)"
    for one, other in zip(small["top"], large["top"], strict=True):
        assert one["class"] == other["class"]
        assert one["probability"] == pytest.approx(other["probability"], rel=1e-5)


def test_inversion_as_asked(minidl, runs, picture) -> None:
    given, inverted, left = (
        predictions(minidl("predict", picture, "--out", runs, "--top", 10, "--json", *option))[0]
        for option in ((), ("--invert",), ("--no-invert",))
    )
    assert inverted["prepared"].endswith("8x8, inverted (as asked)")
    assert left["prepared"].endswith("8x8, not inverted (as asked)")
    assert left["top"] == given["top"] != inverted["top"]


def test_classes_have_the_names_of_the_data(minidl, write_stripes, tmp_path) -> None:
    file = tmp_path / "stripes.npz"
    with np.load(write_stripes(file, channels=3)) as arrays:
        np.savez(file, class_names=np.array(["rows", "columns", "checks"]), **arrays)
    out = tmp_path / "runs"
    assert minidl("train", "--data", file, "--max-steps", 2, "--batch-size", 8, "--out", out, "-q").exit_code == 0
    Image.new("L", (20, 10), 80).save(tmp_path / "grey.png")
    (prediction,) = predictions(minidl("predict", tmp_path / "grey.png", "--out", out, "--json"))
    assert {guess["name"] for guess in prediction["top"]} == {"rows", "columns", "checks"}
    assert prediction["prepared"] == (
        "20x10 grey -> RGB, padded to square, 8x8, not inverted (the data have no background of one kind), "
        "blank: it has one colour everywhere"
    )


def test_a_run_a_checkpoint_file_and_the_newest_run(minidl, runs, picture, tmp_path) -> None:
    out = tmp_path / "runs"
    shutil.copytree(runs / "digits-small-cnn-001", out / "digits-small-cnn-001")
    assert minidl("train", "--max-steps", 1, "--out", out, "-q").exit_code == 0
    (newest,) = predictions(minidl("predict", picture, "--out", out, "--json"))
    assert newest["run"] == str(out / "digits-small-cnn-002")
    (older,) = predictions(minidl("predict", picture, "--run", out / "digits-small-cnn-001", "--json"))
    assert older["top"] != newest["top"]
    file = out / "digits-small-cnn-001" / "checkpoints" / "last.safetensors"
    (same,) = predictions(minidl("predict", picture, "--run", file, "--json"))
    assert same["top"] == older["top"]
    assert same["checkpoint"] == str(file)


def test_best_and_last(minidl, stripes_file, picture, tmp_path) -> None:
    trained = minidl("train", "--data", stripes_file, "--epochs", 1, "--batch-size", 30, "--out", tmp_path, "-q")
    assert trained.exit_code == 0
    assert predictions(minidl("predict", picture, "--out", tmp_path, "--json"))[0]["checkpoint"].endswith(
        "best.safetensors"
    )
    last = minidl("predict", picture, "--out", tmp_path, "--checkpoint", "last", "--json")
    assert predictions(last)[0]["checkpoint"].endswith("last.safetensors")


def write_bad(folder, kind):
    path = folder / "bad.png"
    if kind == "text":
        path.write_text("a cat\n")
    elif kind == "truncated":
        noise = np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:700])
    elif kind == "folder":
        path.mkdir()
    return path


BAD = {
    "missing": "no such file",
    "text": "not a picture; expected PNG, JPEG, GIF, BMP, TIFF or WebP",
    "truncated": "damaged, image file is truncated",
    "folder": "a folder or device, expected a file",
}


@pytest.mark.parametrize(("kind", "message"), BAD.items())
@pytest.mark.parametrize("as_json", [False, True])
def test_a_bad_picture_is_reported_and_does_not_hold_up_others(
    minidl, runs, picture, tmp_path, kind, message, as_json
) -> None:
    bad = write_bad(tmp_path, kind)
    result = minidl("predict", bad, picture, "--out", runs, *(["--json"] if as_json else []))
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {bad}: {message}")
    assert result.stderr.count("\n") == 1
    assert str(picture) in result.stdout
    if as_json:
        assert json.loads(result.stdout)["image"] == str(picture)


def test_no_run_yet(minidl, picture, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = minidl("predict", picture)
    assert result.exit_code == 2
    assert result.stderr.startswith(
        "Error: runs: there is no run in this folder; train first: python -m minidl train\n"
    )
    result = minidl("predict", picture, "--out", "mine")
    assert result.stderr.endswith("train first: python -m minidl train --out mine\n")


def test_a_run_that_is_none(minidl, picture, tmp_path) -> None:
    result = minidl("predict", picture, "--run", tmp_path / "nothing")
    assert result.exit_code == 2
    assert result.stderr == f"Error: {tmp_path / 'nothing'}: no such run\n"


def test_a_checkpoint_that_is_none(minidl, picture) -> None:
    result = minidl("predict", picture, "--run", picture)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {picture}: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [[], ["x.png", "--top", "0"], ["x.png", "--device", "gpu"], ["x.png", "--nonsense"]]
)
def test_wrong_command_lines(minidl, arguments) -> None:
    result = minidl("predict", *arguments)
    assert result.exit_code == 2
    assert "Error: " in result.stderr
