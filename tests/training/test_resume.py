"""Going on with a stopped run: the same bits as if it had never stopped, or a reason why not."""

import copy
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minidl.data.catalogue import IDX_FILES
from minidl.errors import CheckpointError, ConfigError, DataError
from minidl.training import TrainConfig, begin, checkpoint, resume
from minidl.training.config import load_config
from minidl.training.runs import RunFolder

STEPS = 6  # an epoch: 90 images in batches of 16, the last of 10


class Notes:
    """A reporter that remembers what was noted, and calls `at_step` after each step."""

    def __init__(self, at_step=lambda session: None) -> None:
        self.notes, self.at_step = [], at_step

    def note(self, text) -> None:
        self.notes.append(text)

    def start(self, session) -> None:
        pass

    def step(self, session) -> None:
        self.at_step(session)

    def epoch(self, session, row) -> None:
        pass


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    """Drawing takes longer than training here; test_session.py has the curves."""
    monkeypatch.setattr("minidl.training.session.draw_curves", lambda *_: None)


@pytest.fixture
def config(stripes_file) -> TrainConfig:
    """Four epochs of six steps, with augmentation where the data set has any."""
    return TrainConfig(data=stripes_file, epochs=4, batch_size=16)


@pytest.fixture
def train(config, tmp_path):
    """Trains a new run; returns its folder."""

    def run(reporter=None, config=config, **changes) -> RunFolder:
        reporter = reporter or Notes()
        session = begin(replace(config, **changes), tmp_path / "runs", reporter)
        session.train(reporter)
        return session.run

    return run


def go_on(run: RunFolder, reporter=None, **changes) -> RunFolder:
    reporter = reporter or Notes()
    session = resume(run.path, changes, reporter)
    session.train(reporter)
    return session.run


def everything(run: RunFolder) -> dict:
    """All that a run has computed, as comparable values; not what depends on the clock or the folder's name."""
    state = {}
    for name in (checkpoint.LAST, checkpoint.BEST):
        saved = checkpoint.load(run.checkpoints / name)
        metadata = copy.deepcopy(saved.metadata)
        for clock in ("epoch_seconds", "train_seconds", "seconds"):
            del metadata["counters"]["progress"][clock]
        del metadata["config"]["max_steps"]
        state[name, "metadata"] = metadata
        state |= {(name, key): (a.dtype, a.shape, a.tobytes()) for key, a in saved.tensors.items()}
    rows = run.read_metrics()
    state["csv rows"] = len(run.metrics_csv.read_text().splitlines()) - 1
    state["metrics"] = [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]
    return state


def without_config(state: dict) -> dict:
    """`everything` of a run less its configuration (which `--resume` may have changed)."""
    state = copy.deepcopy(state)
    for name in (checkpoint.LAST, checkpoint.BEST):
        del state[name, "metadata"]["config"]
    return state


# The same bits


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("step", [1, STEPS, 2 * STEPS + 3])
def test_stopped_and_resumed_equals_never_stopped(train, optimizer, step) -> None:
    whole = train(optimizer=optimizer)
    run = train(optimizer=optimizer, max_steps=step)
    assert checkpoint.load(run.checkpoints / checkpoint.LAST).metadata["counters"]["progress"]["step"] == step
    reporter = Notes()
    go_on(run, reporter)
    assert f"resumed {run.path} after step {step}" in reporter.notes
    assert everything(run) == everything(whole)


EVERYTHING = {
    "ema": 0.9,
    "clip": 0.7,
    "accumulate": 4,
    "norm_decay": 1e-3,
    "warmup": 0.7,
    "min_lr": 1e-3,
    "label_smoothing": 0.1,
    "optimizer": "adamw",
}


@pytest.mark.parametrize(
    "options", [{"momentum": 0.0}, {"norm": "none"}, {"schedule": "step", "label_smoothing": 0.1}, EVERYTHING]
)
def test_so_with_other_options(train, options) -> None:
    whole = train(**options)
    assert everything(go_on(train(max_steps=9, **options))) == everything(whole)


def test_stopped_many_times(train) -> None:
    whole = train()
    run = train(max_steps=2)
    for step in (3, 7, 12, 13, 23):
        go_on(run, max_steps=step)
        assert checkpoint.load(run.checkpoints / checkpoint.LAST).metadata["counters"]["progress"]["step"] == step
    assert everything(go_on(run)) == everything(whole)


def test_another_number_of_threads_changes_nothing(train) -> None:
    whole = train(threads=1)
    assert without_config(everything(go_on(train(threads=1, max_steps=8), threads=3))) == without_config(
        everything(whole)
    )


def test_three_epochs_and_three_more_are_six(train) -> None:
    whole = train(schedule="constant", epochs=6)
    run = train(schedule="constant", epochs=3)
    reporter = Notes()
    go_on(run, reporter, epochs=6)
    assert not any("schedule" in note for note in reporter.notes)
    state, expected = everything(run), everything(whole)
    assert state[checkpoint.LAST, "metadata"] == expected[checkpoint.LAST, "metadata"]
    assert without_config(state) == without_config(expected)
    assert load_config(run.config)["epochs"] == 6


def test_a_schedule_over_another_number_of_epochs_is_noted(train) -> None:
    reporter = Notes()
    go_on(train(epochs=2), reporter, epochs=3)
    assert "the cosine schedule now spans 3 epochs instead of 2" in reporter.notes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [4, 2 * STEPS])
def test_a_signal_saves_after_the_step_and_resuming_equals_never_stopped(config, train, tmp_path, number, step) -> None:
    whole = train()

    def at_step(session) -> None:
        if session.trainer.progress.step == step:
            signal.raise_signal(number)

    before = signal.getsignal(number)
    reporter = Notes(at_step)
    session = begin(config, tmp_path / "runs", reporter)
    summary = session.train(reporter)
    assert session.stopped == number
    assert signal.getsignal(number) == before
    assert (summary["steps"], summary["complete"]) == (step, False)
    assert everything(go_on(session.run)) == everything(whole)


def test_killed_between_the_metrics_and_the_checkpoint(config, train, tmp_path, monkeypatch) -> None:
    """The row is on the disk and the checkpoint is not: the epoch is trained again and its row written once."""
    whole = train()

    class KilledError(Exception):
        pass

    def killed(*_args) -> None:
        raise KilledError

    session = begin(config, tmp_path / "runs", Notes())
    with monkeypatch.context() as patch:

        def at_step(session) -> None:
            if session.trainer.progress.step == 2 * STEPS:
                patch.setattr(checkpoint, "save_last", killed)

        with pytest.raises(KilledError):
            session.train(Notes(at_step))
    assert [row["epoch"] for row in session.run.read_metrics()] == [1, 2]
    assert everything(go_on(session.run)) == everything(whole)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
@pytest.mark.parametrize("step", [STEPS, 2 * STEPS + 3])
def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(train, damage, step) -> None:
    whole = train()
    run = train(max_steps=step)
    last = run.checkpoints / checkpoint.LAST
    content = bytearray(last.read_bytes())
    if damage == "truncated":
        last.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[-1000] ^= 1
        last.write_bytes(content)
    else:
        last.unlink()
    reporter = Notes()
    go_on(run, reporter)
    assert reporter.notes[0].startswith(f"{last}: ")
    assert reporter.notes[0].endswith("; continuing from previous.safetensors, the checkpoint before it")
    assert everything(run) == everything(whole)


def test_data_that_moved_are_found_by_data_dir(train, tmp_path) -> None:
    generator = np.random.default_rng(0)
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    for part, name in IDX_FILES.items():
        shape = (40,) if part.endswith("labels") else (40, 8, 8)
        array = generator.integers(0, 10, shape).astype(np.uint8)
        (old / name).write_bytes(bytes((0, 0, 8, array.ndim)) + np.array(shape, ">u4").tobytes() + array.tobytes())
    mnist = TrainConfig(data="mnist", data_dir=str(old), epochs=2, batch_size=10)
    whole, run = train(config=mnist), train(config=mnist, max_steps=5)
    old.rename(new)
    assert without_config(everything(go_on(run, data_dir=str(new)))) == without_config(everything(whole))


# A reason why not


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.01}, "--lr is 0.05 in {run} and cannot become 0.01 there; start a new run, or leave the option out"),
        ({"seed": 1}, "--seed is 0 in {run} and cannot become 1 there"),
        ({"optimizer": "adam"}, "--optimizer is sgd in {run} and cannot become adam there"),
        ({"batch_size": 8}, "--batch-size is 16 in {run} and cannot become 8 there"),
        ({"norm": "none"}, "in {run} and cannot become"),
        ({"data": "digits"}, "in {run} and cannot become digits there"),
        ({"epochs": 0}, "--epochs must be a whole number of at least 1, not 0"),
        ({"threads": 0}, "--threads must be a whole number of at least 1, not 0"),
    ],
)
def test_what_would_change_the_past_is_refused(train, change, message) -> None:
    run = train(max_steps=2)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError) as caught:
        go_on(run, **change)
    assert message.format(run=run.path) in str(caught.value)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_an_option_may_be_repeated(train) -> None:
    whole = train()
    run = train(max_steps=8)
    assert everything(go_on(run, **load_config(run.config) | {"max_steps": None})) == everything(whole)


def test_data_may_be_named_from_here_again(train, stripes_file, monkeypatch) -> None:
    run = train(max_steps=8)
    monkeypatch.chdir(Path(stripes_file).parent)
    go_on(run, data=Path(stripes_file).name)


@pytest.mark.parametrize(("options", "changes"), [({}, {}), ({}, {"epochs": 4}), ({"max_steps": 20}, {"epochs": 2})])
def test_a_complete_run_is_refused_with_the_remedy(train, options, changes) -> None:
    run = train(**options)
    metrics = run.metrics.read_bytes()
    with pytest.raises(
        ConfigError, match=r" is complete at --epochs \d \(it has finished \d\); give a larger number to go on$"
    ):
        go_on(run, **changes)
    assert run.metrics.read_bytes() == metrics


def test_data_that_changed_are_refused(train, tmp_path, write_stripes) -> None:
    path = write_stripes(tmp_path / "mine.npz")
    run = train(data=path, max_steps=8)
    write_stripes(tmp_path / "mine.npz", seed=1)
    with pytest.raises(CheckpointError) as caught:
        go_on(run)
    assert str(caught.value) == (
        f"{run.path} was trained on other data than {path} holds now; restore the data, or start a new run"
    )


@pytest.mark.parametrize("other", [{"norm": "none"}, {"optimizer": "adam"}, {"seed": 5}])
def test_another_runs_checkpoint_is_refused_and_nothing_is_changed(train, other) -> None:
    run, stranger = train(max_steps=8), train(max_steps=9, **other)
    for name in (checkpoint.LAST, checkpoint.PREVIOUS):
        (run.checkpoints / name).write_bytes((stranger.checkpoints / name).read_bytes())
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises((CheckpointError, ConfigError), match="another"):
        go_on(run)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_a_checkpoint_of_another_model_is_refused(train) -> None:
    """Of a network that this name no longer stands for: the tensors do not fit."""
    run = train(max_steps=8)
    last = run.checkpoints / checkpoint.LAST
    saved = checkpoint.load(last)
    fewer = {name: array for name, array in saved.tensors.items() if not name.startswith("model.bn2")}
    checkpoint.save(last, fewer, saved.metadata)
    with pytest.raises(CheckpointError, match=r"the checkpoint is of another model: .*missing: bn2\.weight, bn2\.bias"):
        go_on(run)


def test_a_checkpoint_that_no_run_wrote_is_refused(train) -> None:
    run = train(max_steps=8)
    saved = checkpoint.load(run.checkpoints / checkpoint.LAST)
    checkpoint.save(run.checkpoints / checkpoint.LAST, saved.tensors, {"mine": 1})
    with pytest.raises(CheckpointError, match="the checkpoint is not that of a training run"):
        go_on(run)


def test_no_good_checkpoint_at_all(train) -> None:
    run = train(max_steps=8)
    for name in (checkpoint.LAST, checkpoint.PREVIOUS):
        (run.checkpoints / name).write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"no good checkpoint \(last\.safetensors: is empty; previous\.safetensors: is"
    ):
        go_on(run)


def test_no_run_there(tmp_path) -> None:
    with pytest.raises(ConfigError, match="nothing: no such run"):
        resume(tmp_path / "nothing", {}, Notes())
    with pytest.raises(ConfigError, match=r"is not a run folder \(it has no config\.toml and checkpoints\)"):
        resume(tmp_path, {}, Notes())


# Metrics that were damaged while the run was stopped


def snapshot(run: RunFolder) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("text", "with_this", "message"),
    [
        (
            '"train_loss": ',
            '"train_loss": "a", "b": ',
            r"line 2 is not a row of metrics \('train_loss' is 'a', expected",
        ),
        ('"train_loss": ', '"train_loss": null, "b": ', r"\('train_loss' is None, expected a number\)"),
        ('"lr": ', '"lr": [], "b": ', r"line 2 .*'lr' is \[\]"),
        ('"lr": ', '"rate": ', r"line 2 .*\('lr', 'rate': expected epoch, step, train_loss, "),
        ('"step": ', '"more": 1, "step": ', r"line 2 .*\('more': expected epoch, step"),
        ('"step": 12', f'"step": {10**400}', r"line 2 .*'step' is 1000"),
        ('"epoch": 2', '"epoch": 1', r"line 2 .*\(epoch 1 after 1\)"),
        ('"epoch": 2', '"epoch": true', r"line 2 is not a row of metrics; mend or remove it$"),
        ('{"epoch": 2', '"epoch": 2', r"line 2 is not a row of metrics; mend or remove it$"),
    ],
)
@pytest.mark.parametrize("more", [{}, {"max_steps": 2 * STEPS}])
def test_a_damaged_line_of_the_metrics_is_named_before_training(train, text, with_this, message, more) -> None:
    run = train(max_steps=2 * STEPS)
    lines = run.metrics.read_text().splitlines(keepends=True)
    assert text in lines[1]
    run.metrics.write_text(lines[0] + lines[1].replace(text, with_this))
    before = snapshot(run)
    with pytest.raises(DataError, match=message) as caught:
        go_on(run, Notes(at_step=lambda _: pytest.fail("trained")), **more)
    assert "\n" not in str(caught.value)
    assert snapshot(run) == before


@pytest.mark.parametrize("lost", ["both", "first", "last"])
@pytest.mark.parametrize("max_steps", [None, 2 * STEPS])
def test_rows_that_are_missing_leave_a_gap_that_is_noted(train, lost, max_steps) -> None:
    whole = train()
    run = train(max_steps=2 * STEPS)
    first, last = run.metrics.read_text().splitlines(keepends=True)
    if lost == "both":
        run.metrics.unlink()
        run.metrics_csv.unlink()
    else:
        run.metrics.write_text(last if lost == "first" else first)
    reporter = Notes()
    session = resume(run.path, {"max_steps": max_steps}, reporter)
    summary = session.train(reporter)
    epochs = {"both": "2 epochs, the first of them 1", "first": "epoch 1", "last": "epoch 2"}[lost]
    assert f"{run.metrics}: has no row of {epochs}; the curves will have a gap" in reporter.notes
    kept = {"both": [], "first": [2], "last": [1]}[lost] + ([3, 4] if max_steps is None else [])
    assert [row["epoch"] for row in run.read_metrics()] == kept
    rows = {row["epoch"]: row for row in whole.read_metrics()}
    assert summary["test_loss"] == rows[4 if max_steps is None else 2]["test_loss"]


def test_a_table_without_its_record_is_not_thrown_away(train) -> None:
    run = train(max_steps=2 * STEPS)
    run.metrics.unlink()
    before = snapshot(run)
    with pytest.raises(DataError, match=r"metrics\.jsonl: is missing, but metrics\.csv is there; put it back, or move"):
        go_on(run)
    assert snapshot(run) == before
