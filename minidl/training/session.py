"""A training run as it goes: its files kept up to date, checkpoints, interruption, its summary."""

import contextlib
import math
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from types import FrameType
from typing import Any, Protocol

import numpy as np

from minidl.backends import Backend
from minidl.data import Dataset
from minidl.errors import NonFiniteError
from minidl.training import checkpoint
from minidl.training.assembly import known, spec_of, trainer_of
from minidl.training.config import TrainConfig
from minidl.training.curves import draw_curves
from minidl.training.lock import RunLock
from minidl.training.monitor import Monitor, Record
from minidl.training.monitor.events import Events
from minidl.training.monitor.record import append_record
from minidl.training.progress import Row
from minidl.training.runs import RunFolder
from minidl.version import __version__


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
    """A run that can be trained on; made by `begin` or `resume` (minidl/training/starting.py).

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
        self.trainer = trainer_of(config, dataset, backend, weights)
        self._events: Events | None = None
        self.stopped: signal.Signals | None = None

    @property
    def complete(self) -> bool:
        """Whether all epochs are done."""
        return self.trainer.progress.epoch >= known(self.config.epochs)

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
            "model": spec_of(self.config, dataset)._asdict(),
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


def _border_mean(dataset: Dataset) -> float:
    """The mean raw value of the outermost pixels, by which `predict` knows dark backgrounds from light ones."""
    images = dataset.train_images
    edges = images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]
    return sum(float(edge.mean()) for edge in edges) / len(edges)


def describe(config: TrainConfig) -> str:
    """Model and normalization in a few words."""
    words = {"batch": "", "none": " without batch normalization"}
    return config.model + words.get(config.norm, f", norm {config.norm}")
