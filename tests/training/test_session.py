"""A run from its configuration to its files: what it leaves, that it repeats, and what it refuses."""

import csv
import json
import math
import signal
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minidl import __version__, data
from minidl.backends import get_backend
from minidl.errors import CheckpointError, ConfigError, DataError, DeviceError, NonFiniteError
from minidl.training import ImageSource, TrainConfig, begin, checkpoint, evaluate, load_model, resume
from minidl.training.config import load_config


class Notes:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.notes, self.rows, self.steps = [], [], 0

    def note(self, text) -> None:
        self.notes.append(text)

    def start(self, session) -> None:
        pass

    def step(self, session) -> None:
        self.steps += 1

    def epoch(self, session, row) -> None:
        self.rows.append(row)


@pytest.fixture
def config(stripes_file) -> TrainConfig:
    """Three epochs of six steps."""
    return TrainConfig(data=stripes_file, epochs=3, batch_size=16)


@pytest.fixture
def train(config, tmp_path):
    """Trains a new run in tmp_path / "runs"; returns its session."""

    def run(reporter=None, config=config, **changes):
        reporter = reporter or Notes()
        session = begin(replace(config, **changes), tmp_path / "runs", reporter)
        session.train(reporter)
        return session

    return run


def bits(session, name: str = checkpoint.LAST) -> dict[str, tuple]:
    tensors = checkpoint.load(session.run.checkpoints / name).tensors
    return {key: (array.dtype, array.shape, array.tobytes()) for key, array in tensors.items()}


def history(session) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in session.run.read_metrics()]


# What it leaves


def test_a_run_leaves_exactly_these_files(train, tmp_path) -> None:
    session = train()
    assert session.run.path == tmp_path / "runs" / "stripes-small-cnn-001"
    files = {str(path.relative_to(session.run.path)) for path in session.run.path.rglob("*") if path.is_file()}
    checkpoints = {str(Path("checkpoints", name)) for name in (checkpoint.LAST, checkpoint.PREVIOUS, checkpoint.BEST)}
    assert files == checkpoints | {
        "config.toml",
        "metrics.jsonl",
        "metrics.csv",
        "summary.json",
        "curves.svg",
        "env.json",
    }


def test_the_metrics_are_the_epochs_rows_twice(train) -> None:
    reporter = Notes()
    session = train(reporter)
    lines = session.run.metrics.read_text().splitlines()
    assert [json.loads(line) for line in lines] == reporter.rows
    assert [row["epoch"] for row in reporter.rows] == [1, 2, 3]
    assert [row["step"] for row in reporter.rows] == [6, 12, 18]
    with session.run.metrics_csv.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [{name: json.loads(text) for name, text in row.items()} for row in table] == reporter.rows


def test_the_summary_says_what_happened(train, stripes_file) -> None:
    session = train(seed=4)
    summary = json.loads(session.run.summary.read_text())
    last = session.run.read_metrics()[-1]
    assert {name: summary[name] for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy")} == {
        name: last[name] for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
    }
    assert {name: summary[name] for name in ("device", "data", "model", "epochs", "steps", "seed")} == {
        "device": "cpu",
        "data": "stripes",
        "model": "small-cnn",
        "epochs": 3,
        "steps": 18,
        "seed": 4,
    }
    # Three convolutions without bias, a scale and an offset for each of their channels, the classifier.
    convolutions = 9 * (1 * 32 + 32 * 32 + 32 * 64 + 64 * 64)
    assert summary["parameters"] == convolutions + 2 * (32 + 32 + 64 + 64) + (2 * 2 * 64 * 3 + 3)
    assert summary["complete"] is True
    assert summary["norm"] == "batch"
    assert summary["version"] == __version__
    assert summary["run"] == str(session.run.path)
    # Three epochs of 90 images; the seconds hold the evaluations too, so they are more than the training's alone.
    assert 0 < 270 / summary["images_per_second"] < summary["seconds"]
    accuracies = [row["test_accuracy"] for row in session.run.read_metrics()]
    assert summary["best_test_accuracy"] == max(accuracies)
    assert summary["best_epoch"] == 1 + accuracies.index(max(accuracies))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, data.NO_AUGMENTATION),
        ({"crop_padding": 1, "cutout": 3}, data.Augmentation(crop_padding=1, cutout=3)),
        ({"flip": True}, data.Augmentation(flip=True)),
        ({"flip": True, "crop_padding": 1, "cutout": 3, "augment": False}, data.NO_AUGMENTATION),
    ],
)
def test_training_images_are_augmented_as_asked(config, tmp_path, options, expected) -> None:
    session = begin(replace(config, **options), tmp_path / "runs", Notes())
    assert session.trainer.augmentation == expected
    written = load_config(session.run.config)
    assert {name: written[name] for name in options} == options
    assert {"crop_padding", "flip", "cutout"} <= set(written)  # also what the recipe chose


@pytest.mark.parametrize("which", ["last", "best"])
def test_the_checkpoints_hold_the_models_of_these_metrics(train, stripes_file, which) -> None:
    session = train(epochs=4, lr=0.4, schedule="constant")
    model, metadata, _ = load_model(session.run.path, get_backend("cpu"), which)
    dataset = data.load(stripes_file)
    statistics = np.array(metadata["data"]["mean"]), np.array(metadata["data"]["std"])
    source = ImageSource(dataset.test_images, dataset.test_labels, *statistics, get_backend("cpu"))
    result = evaluate(model, source, 64)
    rows = session.run.read_metrics()
    row = rows[-1] if which == "last" else max(rows, key=lambda row: row["test_accuracy"])
    assert (result.loss, result.accuracy) == (row["test_loss"], row["test_accuracy"])


def test_without_a_best_yet_the_last_is_taken(train) -> None:
    session = train(max_steps=2)
    assert not (session.run.checkpoints / checkpoint.BEST).exists()
    model, _, _ = load_model(session.run.path, get_backend("cpu"), "best")
    assert model.state_dict()["fc.bias"].tobytes() == bits(session)["model.fc.bias"][2]


def test_curves_and_environment_are_well_formed(train) -> None:
    session = train()
    root = ET.fromstring(session.run.curves.read_bytes())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    seed = session.config.seed
    assert f"stripes, small-cnn, seed {seed}" in [
        "".join(text.itertext()) for text in root.iter(f"{root.tag[:-3]}text")
    ]
    environment = json.loads(session.run.environment.read_text())
    assert environment["versions"]["minidl"] == __version__
    assert environment["versions"]["numpy"] == np.__version__


def test_a_run_that_stops_within_an_epoch_says_so(train) -> None:
    session = train(max_steps=8)
    summary = json.loads(session.run.summary.read_text())
    assert (summary["epochs"], summary["steps"], summary["complete"]) == (1, 8, False)
    assert len(history(session)) == 1
    assert summary["train_loss"] != session.run.read_metrics()[0]["train_loss"]
    assert summary["test_accuracy"] == session.trainer.evaluate().accuracy


def test_the_device_is_noted_with_the_reason(train) -> None:
    reporter = Notes()
    train(reporter, threads=1, max_steps=1)
    assert reporter.notes[0].startswith("device: cpu, 1 thread (")
    reporter = Notes()
    train(reporter, device="cpu", threads=2, max_steps=1)
    assert reporter.notes == ["device: cpu, 2 threads (asked for)"]


# The same bits


def test_the_same_seed_gives_the_same_bits_and_another_does_not(train) -> None:
    first, again, other = train(seed=1), train(seed=1), train(seed=2)
    assert [session.run.path.name[-3:] for session in (first, again, other)] == ["001", "002", "003"]
    assert bits(again) == bits(first)
    assert bits(again, checkpoint.BEST) == bits(first, checkpoint.BEST)
    assert history(again) == history(first)
    assert bits(other)["model.conv1.weight"] != bits(first)["model.conv1.weight"]
    assert history(other) != history(first)


def test_threads_do_not_change_the_bits(train) -> None:
    one, two, three = (train(data="digits", batch_size=64, max_steps=30, threads=threads) for threads in (1, 2, 3))
    assert bits(two) == bits(one)
    assert bits(three) == bits(one)
    assert history(two) == history(one)
    assert history(three) == history(one)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm": "none", "optimizer": "adamw", "label_smoothing": 0.1, "schedule": "step", "seed": 7},
        {"optimizer": "adam", "lr": 1 / 300, "weight_decay": 0.0, "schedule": "step", "max_steps": 8},
    ],
)
def test_the_recorded_configuration_repeats_the_run(train, options) -> None:
    first = train(**options)
    again = train(config=TrainConfig(**load_config(first.run.config)))
    assert bits(again) == bits(first)
    assert history(again) == history(first)
    assert again.run.config.read_text() == first.run.config.read_text()


@pytest.mark.parametrize(
    "change",
    [
        {"norm": "none"},
        {"lr": 0.02},
        {"optimizer": "adam"},
        {"momentum": 0.5},
        {"weight_decay": 0.1},
        {"label_smoothing": 0.2},
        {"schedule": "one-cycle"},
        {"batch_size": 15},
    ],
)
def test_every_option_has_an_effect(train, change) -> None:
    assert bits(train(max_steps=3, **change)) != bits(train(max_steps=3))


def test_a_run_trains_fused_and_without_the_images_gradient(train) -> None:
    model = train(max_steps=1).trainer.model
    assert [type(step).__name__ for step in model.steps].count("NormalizedConvolution") == 4
    assert not model[0].input_gradient


def test_a_saved_model_is_ready_to_evaluate(train) -> None:
    session = train(max_steps=1)
    saved = load_model(session.run.path, get_backend("cpu"))
    assert not any(module.training for _, module in saved.model.named_modules())


def test_sgd_is_nesterovs_and_decay_is_for_weights_alone(train) -> None:
    session = train(max_steps=1, weight_decay=0.01)
    weights, others = session.trainer.optimizer.groups
    assert (weights["nesterov"], weights["momentum"], weights["weight_decay"]) == (True, 0.9, 0.01)
    assert others["weight_decay"] == 0
    names = {id(parameter): name for name, parameter in session.trainer.model.named_parameters()}
    assert [names[id(parameter)] for parameter in weights["params"]] == [
        *("conv1.weight", "conv2.weight", "conv3.weight", "conv4.weight", "fc.weight")
    ]
    assert all(".bias" in names[id(p)] or names[id(p)].startswith("bn") for p in others["params"])
    assert not train(max_steps=1, momentum=0.0).trainer.optimizer.groups[0]["nesterov"]


# What it refuses, leaving nothing behind


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ConfigError, "--batch-size must be a whole number of at least 1, not 0"),
        (
            {"batch_size": 91},
            ConfigError,
            "--batch-size 91 is larger than the data set: stripes has 90 training images",
        ),
        ({"lr": math.nan}, ConfigError, "--lr must be a finite number above 0, not nan"),
        ({"lr": 0.0}, ConfigError, "--lr must be a finite number above 0, not 0.0"),
        (
            {"model": "small-cn"},
            ConfigError,
            "there is no model 'small-cn' (known: small-cnn, ",
        ),
        ({"data": "digit"}, DataError, "unknown data set 'digit'"),
        ({"data": "missing.npz"}, DataError, "missing.npz: no such file"),
        ({"data_dir": "a\udcffb"}, ConfigError, "is not valid Unicode"),
    ],
)
def test_a_configuration_that_will_not_do_leaves_no_folder(train, tmp_path, options, error, message) -> None:
    with pytest.raises(error) as caught:
        train(**options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("runs/*"))


def test_an_interruption_while_the_run_is_set_up_leaves_no_folder(train, tmp_path, monkeypatch) -> None:
    def interrupted(*_args) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("minidl.training.runs.RunFolder.write_environment", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train()
    assert not list(tmp_path.glob("runs/*"))


def test_cuda_without_a_gpu_is_refused_and_never_replaced(train, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("minidl.backends.why_no_cuda", lambda: "there is no such thing here")
    monkeypatch.setattr("minidl.training.starting.Session", lambda *_: pytest.fail("trained without being asked to"))
    with pytest.raises(DeviceError, match=r"^device cuda cannot be used: .*--device cpu"):
        train(device="cuda")
    assert not list(tmp_path.glob("runs/*"))


def test_an_output_folder_that_is_a_file_is_refused(train, tmp_path) -> None:
    (tmp_path / "runs").write_text("mine")
    with pytest.raises(ConfigError, match=r"runs: cannot make a run folder there: it is a file; .* with --out DIR$"):
        train()
    assert (tmp_path / "runs").read_text() == "mine"


def test_any_name_of_an_npz_file_will_do(train, tmp_path, write_stripes) -> None:
    path = write_stripes(tmp_path / "my stripes (1).npz")
    assert train(data=path, epochs=1).run.summary.exists()


def test_a_file_named_like_a_known_set_gets_nothing_of_it(train, tmp_path, write_stripes) -> None:
    """Fashion-MNIST's recipe has fewer epochs than the default, and its images are flipped."""
    stripes, fashion = (write_stripes(tmp_path / name) for name in ("mine.npz", "fashion-mnist.npz"))
    mine, other = (train(data=path, epochs=None, batch_size=None, max_steps=4) for path in (stripes, fashion))
    assert replace(other.config, data=stripes) == mine.config
    assert bits(other) == bits(mine)


def test_the_path_of_an_npz_file_is_made_whole_whatever_its_case(train, tmp_path, write_stripes, monkeypatch) -> None:
    path = Path(write_stripes(tmp_path / "mine.npz")).rename(tmp_path / "MINE.NPZ")
    monkeypatch.chdir(tmp_path)
    assert train(data="MINE.NPZ", max_steps=1).config.data == str(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "~no-such-user/mine.npz"}, "~no-such-user/mine.npz: no such file"),
        ({"data": "mnist", "data_dir": "~no-such-user"}, "~no-such-user: no such folder"),
    ],
)
def test_the_home_of_nobody_is_a_path_like_any_other(train, options, message) -> None:
    with pytest.raises(DataError, match=message):
        train(**options)


def test_a_checkpoint_that_does_not_fit_its_model_is_refused(train) -> None:
    session = train(max_steps=1)
    file = session.run.checkpoints / checkpoint.LAST
    saved = checkpoint.load(file)
    checkpoint.save(file, saved.tensors, saved.metadata | {"model": saved.metadata["model"] | {"classes": 4}})
    with pytest.raises(
        CheckpointError, match=r"last\.safetensors: .*fc\.weight has shape \(3, 256\), expected \(4, 256\)"
    ):
        load_model(session.run.path, get_backend("cpu"), "last")


# Ctrl-C


@pytest.fixture
def handlers():
    """What Ctrl-C and SIGTERM did before and must do again."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield before
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
        signal.signal(number, handler)


def test_a_second_ctrl_c_ends_training_at_once_and_the_run_goes_on_later(config, tmp_path, handlers, train) -> None:
    whole = train()
    session = begin(config, tmp_path / "runs", Notes())

    class Impatient(Notes):
        def step(self, session) -> None:
            super().step(session)
            if self.steps == 8:
                signal.raise_signal(signal.SIGINT)
                assert session.stopped == signal.SIGINT
                signal.raise_signal(signal.SIGINT)
                pytest.fail("the second was not heard")

    with pytest.raises(KeyboardInterrupt):
        session.train(Impatient())
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    saved = checkpoint.load(session.run.checkpoints / checkpoint.LAST)
    assert saved.metadata["counters"]["progress"]["step"] == 6  # the first would have saved step 8
    resumed = resume(session.run.path, {}, Notes())
    resumed.train(Notes())
    assert bits(resumed) == bits(whole)
    assert history(resumed) == history(whole)


# A loss that is not finite


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_a_loss_that_becomes_nan_keeps_the_last_good_checkpoint(train, tmp_path, norm) -> None:
    with pytest.raises(NonFiniteError) as caught:
        train(lr=1e30, norm=norm)
    (run,) = (tmp_path / "runs").iterdir()
    assert str(caught.value).startswith("training stopped at step 2 (epoch 1): the loss is ")
    assert str(caught.value).endswith(
        f"the last good checkpoint is {run}/checkpoints/last.safetensors; try a smaller --lr"
    )
    saved = checkpoint.load(run / "checkpoints" / checkpoint.LAST)
    assert all(np.isfinite(array).all() for array in saved.tensors.values())
    assert saved.metadata["counters"]["progress"]["step"] == 0


def test_the_epochs_before_it_are_kept(config, tmp_path) -> None:
    session = begin(config, tmp_path / "runs", Notes())

    class Saboteur(Notes):
        def step(self, session) -> None:
            super().step(session)
            if self.steps == 14:
                session.trainer.model.conv2.weight.value[0, 0, 0, 0] = np.nan

    with pytest.raises(NonFiniteError, match=r"at step 15 \(epoch 3\): .* weight of conv2 \(Conv2d\)"):
        session.train(Saboteur())
    saved = checkpoint.load(session.run.checkpoints / checkpoint.LAST)
    assert saved.metadata["counters"]["progress"]["step"] == 12
    assert all(np.isfinite(array).all() for array in saved.tensors.values())
    assert [row["epoch"] for row in history(session)] == [1, 2]


def test_a_state_that_is_not_finite_is_not_saved_when_stopping(config, tmp_path) -> None:
    session = begin(replace(config, max_steps=8), tmp_path / "runs", Notes())

    class Saboteur(Notes):
        def step(self, session) -> None:
            super().step(session)
            if self.steps == 8:
                session.trainer.model.fc.bias.value[0] = np.inf

    with pytest.raises(NonFiniteError, match=r"after step 8 \(epoch 2\): .* bias of fc \(Linear\)"):
        session.train(Saboteur())
    assert checkpoint.load(session.run.checkpoints / checkpoint.LAST).metadata["counters"]["progress"]["step"] == 6
