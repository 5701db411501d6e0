"""`minidl eval --fold`: the same answers without batch normalization, and what was done in words."""

import json
import shutil
from pathlib import Path

import pytest

from minidl.backends.cpu import CpuBackend
from minidl.training import checkpoint


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def as_json(result) -> dict:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def error_of(result) -> str:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line.removeprefix("Error: ")


def test_accuracy_is_the_same_and_it_says_what_was_folded(minidl, runs, monkeypatch) -> None:
    normalized = []
    apply = CpuBackend.batchnorm_apply
    monkeypatch.setattr(CpuBackend, "batchnorm_apply", lambda *given: (normalized.append(1), apply(*given)))
    own = as_json(minidl("eval", "--out", runs, "--json"))
    assert normalized
    normalized.clear()
    folded = as_json(minidl("eval", "--out", runs, "--json", "--fold"))
    assert not normalized
    assert folded["accuracy"] == own["accuracy"]
    assert folded["loss"] == pytest.approx(own["loss"], rel=1e-5)
    assert folded["folded"] == {f"bn{i}": f"conv{i}" for i in (1, 2, 3, 4)}
    assert folded["left"] == {}
    assert not {"folded", "left"} & own.keys()


def test_in_words(minidl, runs) -> None:
    _, plain = minidl("eval", "--out", runs).stdout.splitlines()
    _, words, result = minidl("eval", "--out", runs, "--fold").stdout.splitlines()
    assert words == ("folded: 4 batch normalizations: bn1 into conv1, bn2 into conv2, bn3 into conv3, bn4 into conv4")
    assert result == plain


def test_what_is_left_is_named(minidl, stripes_file) -> None:
    arguments = ("--data", stripes_file, "--model", "plain-5", "--norm", "batch-after", "--max-steps", 2)
    result = minidl("train", *arguments, "--batch-size", 16, "--quiet")
    assert result.exit_code == 0, result.output
    _, folded, left, _ = minidl("eval", "--fold").stdout.splitlines()
    assert folded == "folded: 1 batch normalization: layer3.bn1 into fc"
    assert left.startswith("left in place: 3 normalizations: bn1: it comes after ReLU relu1, and layer1.conv1, which ")


def test_a_model_without_batch_normalization_is_refused(minidl, stripes_file) -> None:
    minidl("train", "--data", stripes_file, "--norm", "none", "--max-steps", 1, "--batch-size", 16, "-q")
    message = error_of(minidl("eval", "--fold"))
    assert message.startswith("--fold: ")
    assert message.endswith(".safetensors: this Sequential has no normalization")


def test_a_checkpoint_that_cannot_be_folded_is_refused(minidl, runs) -> None:
    shutil.copytree(runs, "runs")
    (last,) = Path("runs").rglob(checkpoint.LAST)
    saved = checkpoint.load(last)
    saved.tensors["model.bn2.running_var"][3] = -1
    checkpoint.save(last, saved.tensors, saved.metadata)
    message = error_of(minidl("eval", "--fold", last))
    assert message.endswith("bn2: the running statistics hold NaN, infinity or a negative variance")
