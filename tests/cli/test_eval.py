"""`minidl eval`: it repeats the run's own numbers, and refuses what the network was not trained for."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from click.testing import Result

from minidl.training import TrainConfig, begin, checkpoint

RUN = Path("runs/stripes-small-cnn-001")
LAST, BEST = RUN / "checkpoints" / checkpoint.LAST, RUN / "checkpoints" / checkpoint.BEST


@pytest.fixture
def minidl(minidl, tmp_path, monkeypatch):
    """Runs `minidl ARGUMENTS` in an empty folder; what would be a traceback is raised."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Result:
        result = minidl(*arguments)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


class Saboteur:
    """A reporter that spoils the classifier after the last step, so that the best epoch is not the last one."""

    def note(self, text) -> None:
        pass

    def start(self, session) -> None:
        pass

    def step(self, session) -> None:
        if session.trainer.progress.step == 18:
            session.trainer.model.fc.bias.value[0] = 1000.0

    def epoch(self, session, row) -> None:
        pass


@pytest.fixture(scope="module")
def runs(tmp_path_factory, stripes_file) -> Path:
    """A folder with one run of three epochs."""
    folder = tmp_path_factory.mktemp("eval") / "runs"
    config = TrainConfig(data=stripes_file, batch_size=16, epochs=3)
    begin(config, folder, Saboteur()).train(Saboteur())
    return folder


@pytest.fixture
def trained(runs, minidl) -> list[dict]:
    """The run, at RUN; its metrics."""
    shutil.copytree(runs, "runs")
    rows = [json.loads(line) for line in (RUN / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["test_accuracy"] == 1 / 3 < max(row["test_accuracy"] for row in rows)
    return rows


def error_of(result: Result) -> str:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line.removeprefix("Error: ")


def as_json(result: Result) -> dict:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_best_and_last_repeat_the_runs_own_numbers(trained, minidl) -> None:
    best, last = max(trained, key=lambda row: row["test_accuracy"]), trained[-1]
    for arguments, row in (([], best), (["--checkpoint", "best"], best), (["--checkpoint", "last"], last)):
        result = as_json(minidl("eval", str(RUN), "--json", *arguments))
        assert result["accuracy"] == row["test_accuracy"]
        assert result["loss"] == pytest.approx(row["test_loss"], rel=1e-6)
    summary = json.loads((RUN / "summary.json").read_text())
    assert as_json(minidl("eval", "--checkpoint", "last", "--json"))["accuracy"] == summary["test_accuracy"]


def test_what_json_says(trained, minidl, stripes_file) -> None:
    result = as_json(minidl("eval", "--json"))
    assert {name: result[name] for name in ("data", "split", "images", "device")} == {
        "data": "stripes",
        "split": "test",
        "images": 30,
        "device": "cpu",
    }
    assert Path(result["run"]) == RUN
    assert Path(result["checkpoint"]) == BEST
    assert result["epoch"] == json.loads((RUN / "summary.json").read_text())["best_epoch"]
    assert as_json(minidl("eval", "--json", "--checkpoint", "last"))["epoch"] == 3


def test_in_words(trained, minidl) -> None:
    result = minidl("eval", "--device", "cpu", "--threads", "1")
    device, words = result.stdout.splitlines()
    best = max(row["test_accuracy"] for row in trained)
    assert device == "device: cpu, 1 thread (asked for)"
    epoch = json.loads((RUN / "summary.json").read_text())["best_epoch"]
    assert words.startswith(f"{BEST} (epoch {epoch}, the best by test accuracy): stripes test, 30 images: loss ")
    assert words.endswith(f", accuracy {best:.2%}")


def test_the_epoch_of_other_checkpoints(trained, minidl, stripes_file) -> None:
    assert minidl("eval", "--checkpoint", "last").stdout.splitlines()[1].startswith(f"{LAST} (epoch 3): stripes ")
    minidl("train", "--data", stripes_file, "--batch-size", "16", "--max-steps", "7", "-q")
    assert "last.safetensors (1 step after epoch 1): " in minidl("eval", "--checkpoint", "last").stdout


def test_a_checkpoint_that_does_not_say_its_epoch(trained, minidl) -> None:
    saved = checkpoint.load(LAST)
    checkpoint.save("mine.safetensors", saved.tensors, saved.metadata | {"counters": {}})
    assert as_json(minidl("eval", "mine.safetensors", "--json"))["epoch"] is None
    assert "\nmine.safetensors: stripes test, " in minidl("eval", "mine.safetensors").stdout


def test_neither_threads_nor_batch_size_change_the_accuracy(trained, minidl) -> None:
    results = [
        as_json(minidl("eval", "--json", "--threads", t, "--batch-size", b)) for t, b in (("1", "1"), ("2", "7"))
    ]
    assert results[0]["accuracy"] == results[1]["accuracy"] == max(row["test_accuracy"] for row in trained)


def test_the_training_images(trained, minidl) -> None:
    result = as_json(minidl("eval", "--split", "train", "--json"))
    assert (result["split"], result["images"]) == ("train", 90)
    # Those rows' training accuracies are of a model that still changed; this one answers for the spoilt one.
    result = as_json(minidl("eval", "--split", "train", "--checkpoint", "last", "--json"))
    assert result["accuracy"] == 30 / 90


def test_other_images_are_normalized_as_in_training(trained, minidl, tmp_path, stripes_file) -> None:
    """The same test images in a file whose training images, and so its mean and deviation, are others."""
    arrays = dict(np.load(stripes_file))
    arrays["train_images"] = np.full_like(arrays["train_images"], 255)
    np.savez(tmp_path / "bright.npz", **arrays)
    own, bright = as_json(minidl("eval", "--json")), as_json(minidl("eval", "--json", "--data", "bright.npz"))
    assert bright["data"] == "bright"
    assert (bright["loss"], bright["accuracy"]) == (own["loss"], own["accuracy"])


@pytest.mark.parametrize("where", [str(LAST), str(RUN), None])
def test_a_run_by_its_folder_its_file_or_not_at_all(trained, minidl, where) -> None:
    result = as_json(minidl("eval", *([where] if where else []), "--checkpoint", "last", "--json"))
    assert result["accuracy"] == trained[-1]["test_accuracy"]


def test_the_file_that_was_read_is_named_whatever_was_asked_for(trained, minidl) -> None:
    assert Path(as_json(minidl("eval", str(BEST), "--checkpoint", "last", "--json"))["checkpoint"]) == BEST
    BEST.unlink()
    assert Path(as_json(minidl("eval", "--json"))["checkpoint"]) == LAST


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 3}, "has images of (8, 8, 3) in 3 classes; {run} was trained on (8, 8, 1) in 3 classes"),
        (None, "--data digits has images of (8, 8, 1) in 10 classes; {run} was trained on (8, 8, 1) in 3 classes"),
    ],
)
def test_images_of_another_shape_or_other_classes_are_refused(trained, minidl, write_stripes, options, message) -> None:
    data = "digits" if options is None else write_stripes(Path("other.npz"), **options)
    assert message.format(run=RUN) in error_of(minidl("eval", str(RUN), "--data", data))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "runs: there is no run in this folder"),
        (["--out", "nothing"], "nothing: there is no run in this folder"),
        (["nothing"], "nothing: no such run"),
        (["file"], "file: is not a safetensors file"),
        (["."], "is not a run folder (it has no config.toml and checkpoints)"),
        (["--threads", "100000"], "--threads must be at most 4,096, not 100000"),
        (["--threads", "0"], "--threads must be a whole number of at least 1, not 0"),
    ],
)
def test_no_run_there(minidl, arguments, message) -> None:
    Path("file").write_text("not a checkpoint at all")
    assert message in error_of(minidl("eval", *arguments))


def test_cuda_without_a_gpu_is_refused(trained, minidl, monkeypatch) -> None:
    monkeypatch.setattr("minidl.backends.why_no_cuda", lambda: "the reason")
    assert error_of(minidl("eval", "--device", "cuda")).startswith("device cuda cannot be used: the reason")


def test_data_that_are_gone(minidl, write_stripes) -> None:
    path = Path(write_stripes(Path("mine.npz")))
    minidl("train", "--data", "mine.npz", "--max-steps", "1", "-q")
    path.unlink()
    assert error_of(minidl("eval")) == f"{path.absolute()}: no such file"


def test_a_damaged_checkpoint_is_refused(trained, minidl) -> None:
    content = bytearray(LAST.read_bytes())
    content[-100] ^= 1
    LAST.write_bytes(content)
    message = error_of(minidl("eval", "--checkpoint", "last"))
    assert message.startswith(f"{LAST}: is damaged: the bytes of tensor ")


def test_a_safetensors_file_of_another_program_is_refused(minidl) -> None:
    safetensors.numpy.save_file({"weight": np.zeros(3, np.float32)}, "foreign.safetensors")
    message = error_of(minidl("eval", "foreign.safetensors"))
    assert message == "foreign.safetensors: is a safetensors file but not a minidl checkpoint"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 4}, "fc.weight has shape (3, 256), expected (4, 256)"),
        ({"norm": "none"}, "unexpected: bn1.weight, bn1.bias"),
        ({"image_shape": [16, 8, 1]}, "fc.weight has shape (3, 256), expected (3, 512)"),
        ({"name": "vast-cnn"}, "there is no model 'vast-cnn'"),
        ({"classes": "many"}, "last.safetensors: the checkpoint "),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(trained, minidl, change, message) -> None:
    saved = checkpoint.load(LAST)
    checkpoint.save(LAST, saved.tensors, saved.metadata | {"model": saved.metadata["model"] | change})
    assert message in error_of(minidl("eval", str(LAST)))


@pytest.mark.parametrize("kept", [(), ("model",), ("model", "config"), ("model", "data")])
def test_a_checkpoint_that_no_run_wrote_is_refused(trained, minidl, kept) -> None:
    saved = checkpoint.load(LAST)
    checkpoint.save("mine.safetensors", saved.tensors, {name: saved.metadata[name] for name in kept})
    assert error_of(minidl("eval", "mine.safetensors")).startswith("mine.safetensors: ")
