"""How a training run comes to be: a new one from its configuration, or one that stands in its folder already."""

import contextlib
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from minidl import models
from minidl.backends import Backend, choose
from minidl.data import Dataset, load
from minidl.data.files import expanded
from minidl.data.registry import is_npz
from minidl.errors import CheckpointError, ConfigError
from minidl.models.norms import parse
from minidl.nn import Module, Sequential
from minidl.training import checkpoint
from minidl.training.assembly import known, require_norm_for, spec_of
from minidl.training.captured import require_captures
from minidl.training.config import REPEATS, TrainConfig, flag, load_config, validate, write_config
from minidl.training.lock import RunLock
from minidl.training.monitor.events import require_tensorboard
from minidl.training.monitor.record import truncate_records
from minidl.training.progress import COLUMNS
from minidl.training.recipe import resolve
from minidl.training.runs import RunFolder
from minidl.training.session import Reporter, Session

# What a resumed run may be given anew: none of it touches what has been computed so far.
CHANGEABLE = ("epochs", "max_steps", "device", "threads", "data_dir", "monitor", "tensorboard", "graph", "precision")


# Gives a new model its weights, and returns the head of config.toml, which alone does not repeat the run then.
Initial = Callable[[Module], str]


def begin(config: TrainConfig, out: str | Path, reporter: Reporter, initial: Initial | None = None) -> Session:
    """A new run in the folder `out`; with `initial`, from the weights that it gives the model.

    Raises:
        ConfigError, DataError, DeviceError: An option, the data or the device will not do; nothing is left behind.
    """
    validate(config)
    if config.tensorboard:
        require_tensorboard()
    backend = _device(config, reporter)
    dataset = load(config.data, config.data_dir)
    config = replace(resolve(_with_absolute_paths(config), dataset), precision=backend.precision)
    model = models.build(*spec_of(config, dataset))  # refused before a folder is made, as weights are
    require_norm_for(backend, config.norm)
    _require_parts_that_train(config, model, dataset)
    remark = REPEATS if initial is None else initial(model)
    weights = None if initial is None else model.state_dict()
    run = RunFolder.create(out, f"{_file_name(dataset.name)}-{config.model}")
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, run.path, ignore_errors=True)
        lock = _lock(run, reporter)
        undo.callback(lock.release)
        session = Session(config, run, dataset, backend, lock, weights)
        write_config(run.config, config, remark)
        run.write_environment()
        session._save(checkpoint.LAST)  # so that there is always one to go back to, and a full disk is found now
        undo.pop_all()
    return session


def _require_parts_that_train(config: TrainConfig, model: Sequential, dataset: Dataset) -> None:
    images = known(config.batch_size) // config.accumulate
    parts = f" in {config.accumulate} parts" if config.accumulate > 1 else ""
    try:
        models.require_that_it_trains(model, dataset.image_shape, images)
    except ValueError as error:
        raise ConfigError(f"--batch-size {config.batch_size}{parts} is too small for {config.model}: {error}") from None


def _with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The run may be resumed or evaluated from another folder."""
    data, data_dir = config.data, config.data_dir
    if is_npz(data):
        data = str(expanded(data).absolute())
    if data_dir is not None:
        data_dir = str(expanded(data_dir).absolute())
    return replace(config, data=data, data_dir=data_dir)


def _file_name(name: str) -> str:
    """What a run's folder is called after a data set of any name."""
    return re.sub(r"[^\w.+-]+", "_", name).lstrip(".+-") or "data"


def resume(path: str | Path, changes: Mapping[str, Any], reporter: Reporter) -> Session:
    """An existing run, where its last checkpoint left it; `changes` are the options given anew.

    Raises:
        ConfigError: An option would change what was computed so far, the run is complete, or another process trains it.
        CheckpointError: There is no good checkpoint, or it is of another model or other data.
        DataError: As for a new run; or a line of the metrics is damaged.
        DeviceError: As for a new run.
    """
    run = RunFolder.open(path)
    lock = _lock(run, reporter)
    try:
        return _resumed(run, changes, reporter, lock)
    except BaseException:
        lock.release()
        raise


def _lock(run: RunFolder, reporter: Reporter) -> RunLock:
    lock = RunLock(run.path)
    if not lock.held:
        reporter.note(f"{run.path}: its file system has no locks; let no other process train this run")
    return lock


def _resumed(run: RunFolder, changes: Mapping[str, Any], reporter: Reporter, lock: RunLock) -> Session:
    saved, note = checkpoint.load_latest(run.checkpoints)
    if note:
        reporter.note(note)
    try:
        before = TrainConfig(**saved.metadata["config"])
        counters, data = saved.metadata["counters"], saved.metadata["data"]
        finished = int(counters["progress"]["epoch"])
    except (KeyError, TypeError):
        raise CheckpointError(f"{run.checkpoints}: the checkpoint is not that of a training run") from None
    given = _with_absolute_paths(replace(before, **changes))
    for name in changes:
        old, value = getattr(before, name), getattr(given, name)
        if name not in CHANGEABLE and value != old:
            if name == "norm" and parse(value) == parse(old):
                given = replace(given, norm=old)  # in other words
                continue
            option = flag(name).replace("--no-", "--")
            raise ConfigError(
                f"{option} is {old} in {run.path} and cannot become {value} there; "
                "start a new run, or leave the option out"
            )
    _require_same_run(run, before)
    changed = {name: getattr(given, name) for name in CHANGEABLE if name in changes}
    if "device" in changes:
        changed = {"precision": None} | changed  # another device makes its own choice
    config = replace(before, **{"max_steps": None} | changed)
    validate(config)
    if config.tensorboard:
        require_tensorboard()
    if finished >= known(config.epochs):
        raise ConfigError(
            f"{run.path} is complete at --epochs {config.epochs} (it has finished {finished}); "
            "give a larger number to go on"
        )
    if config.epochs != before.epochs and config.schedule != "constant":
        reporter.note(f"the {config.schedule} schedule now spans {config.epochs} epochs instead of {before.epochs}")
    backend = _device(config, reporter)
    if before.precision not in (None, backend.precision):
        reporter.note(f"precision: {backend.precision} from here on, {before.precision} so far")
    config = replace(config, precision=backend.precision)
    dataset = load(config.data, config.data_dir)
    if dataset.fingerprint != data["fingerprint"]:
        raise CheckpointError(
            f"{run.path} was trained on other data than {dataset.source} holds now; "
            "restore the data, or start a new run"
        )
    gap = run.require_metrics(COLUMNS, finished)
    session = Session(config, run, dataset, backend, lock)
    try:
        session.trainer.restore(saved.tensors, counters)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{run.checkpoints}: the checkpoint is of another model: {error}") from None
    run.truncate_metrics(finished)
    truncate_records(run.monitor, session.trainer.progress.step)
    if config.epochs != before.epochs:
        remark = (
            f"Epochs 1 to {finished} were trained with epochs = {before.epochs}: this file does not repeat the run."
        )
        write_config(run.config, config, remark)
    if gap:
        reporter.note(gap)
    reporter.note(f"resumed {run.path} after step {session.trainer.progress.step}")
    return session


def _require_same_run(run: RunFolder, saved: TrainConfig) -> None:
    """Raise CheckpointError unless the checkpoint's configuration is that of the folder it lies in."""
    for name, value in load_config(run.config).items():
        if name not in CHANGEABLE and getattr(saved, name) != value:
            raise CheckpointError(
                f"{run.checkpoints}: the checkpoint is of another run than {run.config.name} beside it: "
                f"{name} is {getattr(saved, name)} there and {value} here; put the right one back, or start a new run"
            )


def _device(config: TrainConfig, reporter: Reporter) -> Backend:
    choice = choose(config.device, config.threads, config.precision)
    require_captures(choice.backend, config.graph)
    reporter.note(f"device: {choice.backend.describe()} ({choice.why})")
    return choice.backend
