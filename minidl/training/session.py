"""A training run from its configuration to its summary: the run folder, checkpoints, interruption, resumption."""

import contextlib
import math
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import numpy as np

from minidl import models, optim
from minidl.backends import Backend, choose
from minidl.data import NO_AUGMENTATION, Dataset, load
from minidl.data.files import expanded
from minidl.data.registry import is_npz
from minidl.errors import CheckpointError, ConfigError, NonFiniteError
from minidl.models.norms import parse
from minidl.nn import Conv2d, Linear, Module, Sequential, fuse, manual_seed
from minidl.training import checkpoint
from minidl.training.config import REPEATS, TrainConfig, flag, load_config, validate, write_config
from minidl.training.curves import draw_curves
from minidl.training.lock import RunLock
from minidl.training.monitor import Monitor, Record
from minidl.training.monitor.events import Events, require_tensorboard
from minidl.training.monitor.record import append_record, truncate_records
from minidl.training.recipe import augmentation, rates, resolve
from minidl.training.runs import RunFolder
from minidl.training.trainer import COLUMNS, Row, Trainer, require_captures
from minidl.version import __version__

# What a resumed run may be given anew: none of it touches what has been computed so far.
CHANGEABLE = ("epochs", "max_steps", "device", "threads", "data_dir", "monitor", "tensorboard", "graph", "precision")


# Gives a new model its weights, and returns the head of config.toml, which alone does not repeat the run then.
Initial = Callable[[Module], str]


class Reporter(Protocol):
    """Whoever shows a run to somebody; every method may do nothing."""

    def note(self, text: str) -> None:
        """One line worth knowing."""

    def start(self, session: "Session") -> None:
        """Training begins."""

    def step(self, session: "Session") -> None:
        """A step is done."""

    def epoch(self, session: "Session", row: Row) -> None:
        """An epoch is done."""


class Session:
    """A run that can be trained on; made by `begin` or `resume`.

    Attributes:
        config: With every choice made.
        run: Its folder.
        dataset: Its data.
        trainer: Its model, optimizer and progress.
        stopped: The signal that ended `train` early, or None.
    """

    def __init__(
        self,
        config: TrainConfig,
        run: RunFolder,
        dataset: Dataset,
        backend: Backend,
        lock: RunLock | None = None,
        weights: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.config, self.run, self.dataset = config, run, dataset
        self._lock = lock  # held since the session was made, until `train` ends
        self.trainer = _trainer(config, dataset, backend, weights)
        self._events: Events | None = None
        self.stopped: signal.Signals | None = None

    @property
    def complete(self) -> bool:
        """Whether all epochs are done."""
        return self.trainer.progress.epoch >= _known(self.config.epochs)

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(math.prod(parameter.shape) for parameter in self.trainer.model.parameters())

    def train(self, reporter: Reporter) -> dict[str, Any]:
        """Train until the last epoch, --max-steps or a signal; leave every file of the run up to date.

        Returns:
            The summary, as in summary.json.

        Raises:
            NonFiniteError: Training produced NaN or infinity; the last checkpoint, from before, is kept.
            CheckpointError, ConfigError: A file cannot be written, or another process is training this run.
        """
        lock, self._lock = self._lock or RunLock(self.run.path), None
        try:
            return self._train(reporter)
        finally:
            lock.release()

    def _train(self, reporter: Reporter) -> dict[str, Any]:
        reporter.start(self)
        try:
            with self._signals(), self._monitoring():
                while not self.complete and not self._should_stop():
                    row = self.trainer.train_epoch(lambda: self._keep_going(reporter))
                    if row is not None:
                        self.run.append_metrics(row)
                        if self._events is not None:
                            self._events.epoch(row)
                        if self.trainer.progress.best_epoch == self.trainer.progress.epoch:
                            self._save(checkpoint.BEST)
                        self._save(checkpoint.LAST)
                        reporter.epoch(self, row)
                if self.trainer.progress.batch:
                    self.trainer.require_finite_state()
                    self._save(checkpoint.LAST)
        except NonFiniteError as error:
            kept = self.run.checkpoints / checkpoint.LAST
            raise NonFiniteError(f"{error}; the last good checkpoint is {kept}; try a smaller --lr") from None
        summary = self.summary()
        self.run.write_summary(summary)
        rows = self.run.read_metrics()
        if rows:
            title = f"{self.dataset.name}, {describe(self.config)}, seed {self.config.seed}"
            draw_curves(rows, self.run.curves, title)
        return summary

    def summary(self) -> dict[str, Any]:
        """The run in numbers: the last finished epoch's, or those of this moment if it stopped within an epoch."""
        trainer, progress = self.trainer, self.trainer.progress
        rows = [] if progress.batch else self.run.read_metrics()
        if rows and rows[-1]["epoch"] == progress.epoch:
            metrics = {name: rows[-1][name] for name in _METRICS}
        else:
            train, test = trainer.train_result(), trainer.evaluate()
            metrics = dict(zip(_METRICS, (*train, *test), strict=True))
        return {
            "run": str(self.run.path),
            "device": trainer.backend.name,
            "precision": trainer.backend.precision,
            "data": self.dataset.name,
            "model": self.config.model,
            "norm": self.config.norm,
            "epochs": progress.epoch,
            "steps": progress.step,
            "seed": self.config.seed,
            **metrics,
            "best_test_accuracy": progress.best_accuracy if progress.best_epoch else None,
            "best_epoch": progress.best_epoch or None,
            "seconds": progress.seconds,
            "images_per_second": progress.images / progress.train_seconds if progress.train_seconds else None,
            "parameters": self.parameters,
            "complete": self.complete,
            "version": __version__,
        }

    @contextlib.contextmanager
    def _monitoring(self) -> Iterator[None]:
        """Inside, the trainer measures what the configuration asks for, and it is written."""
        config, trainer = self.config, self.trainer
        if config.tensorboard:
            self._events = Events(self.run.path, trainer.progress.step)
        if config.monitor is not None:
            trainer.monitor = Monitor(config.monitor, self._keep_record)
        try:
            yield
        finally:
            trainer.monitor = None
            if self._events is not None:
                self._events.close()
                self._events = None

    def _keep_record(self, record: Record) -> None:
        append_record(self.run.monitor, record)
        if self._events is not None:
            self._events.record(record)

    def _keep_going(self, reporter: Reporter) -> bool:
        reporter.step(self)
        return not self._should_stop()

    def _should_stop(self) -> bool:
        limit = self.config.max_steps
        return self.stopped is not None or (limit is not None and self.trainer.progress.step >= limit)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Inside, Ctrl-C and SIGTERM end the run after the current step; a second one ends it at once, unsaved."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, _frame: FrameType | None) -> None:
            self.stopped = signal.Signals(number)
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _save(self, name: str) -> None:
        tensors, metadata = self.trainer.tensors(), self._metadata()
        if name == checkpoint.LAST:
            checkpoint.save_last(self.run.checkpoints, tensors, metadata)
        else:
            checkpoint.save(self.run.checkpoints / name, tensors, metadata)

    def _metadata(self) -> dict[str, Any]:
        dataset = self.dataset
        return {
            "minidl": __version__,
            "config": asdict(self.config),
            "counters": self.trainer.counters(),
            "model": _spec(self.config, dataset)._asdict(),
            "data": {
                "name": dataset.name,
                "fingerprint": dataset.fingerprint,
                "class_names": list(dataset.class_names),
                "mean": dataset.mean.tolist(),
                "std": dataset.std.tolist(),
                "white": int(dataset.train_images.max()),  # the raw value of the brightest pixel
                "background": _border_mean(dataset),  # in the units of "white"
            },
        }


_METRICS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")


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
    model = models.build(*_spec(config, dataset))  # refused before a folder is made, as weights are
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
    images = _known(config.batch_size) // config.accumulate
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
    if finished >= _known(config.epochs):
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


def _border_mean(dataset: Dataset) -> float:
    """The mean raw value of the outermost pixels, by which `predict` knows dark backgrounds from light ones."""
    images = dataset.train_images
    edges = images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]
    return sum(float(edge.mean()) for edge in edges) / len(edges)


def _device(config: TrainConfig, reporter: Reporter) -> Backend:
    choice = choose(config.device, config.threads, config.precision)
    require_captures(choice.backend, config.graph)
    reporter.note(f"device: {choice.backend.describe()} ({choice.why})")
    return choice.backend


def _spec(config: TrainConfig, dataset: Dataset) -> models.Spec:
    return models.Spec(config.model, dataset.image_shape, dataset.classes, config.norm, config.zero_gamma)


def describe(config: TrainConfig) -> str:
    """Model and normalization in a few words."""
    words = {"batch": "", "none": " without batch normalization"}
    return config.model + words.get(config.norm, f", norm {config.norm}")


def _trainer(
    config: TrainConfig, dataset: Dataset, backend: Backend, weights: Mapping[str, np.ndarray] | None = None
) -> Trainer:
    manual_seed(config.seed)
    model = models.build(*_spec(config, dataset)).to(backend)
    if weights is not None:
        model.load_state_dict(weights)
    fuse(model)
    if isinstance(model[0], Conv2d | Linear):
        model[0].input_gradient = False  # nobody learns from the images' gradient
    lr = _known(config.lr)
    groups = optim.decay_groups(model, _known(config.weight_decay), config.norm_decay)
    optimizer: optim.Optimizer
    if config.optimizer == "sgd":
        momentum = config.momentum
        optimizer = optim.SGD(groups, lr, momentum=momentum, nesterov=momentum > 0)
    else:
        optimizer = {"adam": optim.Adam, "adamw": optim.AdamW}[config.optimizer](groups, lr)
    return Trainer(
        model,
        dataset,
        optimizer,
        rates(config, dataset),
        batch_size=_known(config.batch_size),
        seed=config.seed,
        augmentation=augmentation(config, dataset) if config.augment else NO_AUGMENTATION,
        label_smoothing=config.label_smoothing,
        accumulate=config.accumulate,
        clip=config.clip,
        average=None if config.ema is None else optim.WeightAverage(model, config.ema),
        graph=backend.name == "cuda" if config.graph is None else config.graph,
    )


def _known(value: Any) -> Any:
    """A field that `resolve` has filled in."""
    assert value is not None
    return value
