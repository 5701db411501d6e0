"""The training loop: steps, epochs, and a state from which it goes on bit for bit."""

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from minidl.backends import Array
from minidl.data import NO_AUGMENTATION, Augmentation, Dataset, Loader
from minidl.errors import ConfigError, NonFiniteError
from minidl.nn import CrossEntropyLoss, Module, batch_multiple
from minidl.optim import Optimizer, WeightAverage, clip_grad_norm
from minidl.schedule import Schedule
from minidl.training.diagnosis import first_nonfinite, first_nonfinite_gradient
from minidl.training.evaluation import ImageSource, Result, evaluate
from minidl.training.monitor import Monitor

Row = dict[str, Any]
COLUMNS = (
    *("epoch", "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy"),
    *("images_per_second", "lr"),
)  # of a Row, in this order


@dataclass
class Progress:
    """How far a run is. With it, the weights and the optimizer's state, the rest of the run is determined."""

    epoch: int = 0  # finished ones
    batch: int = 0  # finished ones of the current epoch
    step: int = 0
    loss_sum: float = 0.0  # of the current epoch, over images
    correct: int = 0
    seen: int = 0
    epoch_seconds: float = 0.0
    train_seconds: float = 0.0  # of all steps; evaluation is not in it
    seconds: float = 0.0  # of everything, sessions before a resumption included
    images: int = 0
    best_accuracy: float = -1.0
    best_epoch: int = 0


class Trainer:
    """Trains a model on a data set.

    Args:
        model: On the device where training happens.
        dataset: Its training images are learned from, its test images evaluated after each epoch.
        optimizer: Over the model's parameters.
        schedule: The learning rate of each step.
        batch_size: Images a step.
        seed: Of the data order and the augmentation.
        augmentation: What happens to training images.
        label_smoothing: See `CrossEntropyLoss`.
        accumulate: Parts that a step's images are shared out among; each goes forward and back by itself, and the step
            is made with the mean of their gradients. So memory holds a part, and batch statistics are those of parts:
            the running ones move once a part. It divides `batch_size`.
        clip: The largest norm of all gradients together; see `clip_grad_norm`. None for no limit.
        average: Of `model`; updated after each step, and what is evaluated. None for none.

    Raises:
        ConfigError: The parts of a batch cannot be.
    """

    def __init__(
        self,
        model: Module,
        dataset: Dataset,
        optimizer: Optimizer,
        schedule: Schedule,
        *,
        batch_size: int,
        seed: int = 0,
        augmentation: Augmentation = NO_AUGMENTATION,
        label_smoothing: float = 0.0,
        accumulate: int = 1,
        clip: float | None = None,
        average: WeightAverage | None = None,
    ) -> None:
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.accumulate, self.clip, self.average = accumulate, clip, average
        self.backend = model.backend
        self.seed, self.augmentation = seed, augmentation
        self.loader = Loader(len(dataset.train_images), batch_size, seed, batch_multiple(model))
        statistics = dataset.mean, dataset.std
        self.train_source = ImageSource(dataset.train_images, dataset.train_labels, *statistics, self.backend)
        self.test_source = ImageSource(dataset.test_images, dataset.test_labels, *statistics, self.backend)
        self.criterion = CrossEntropyLoss(label_smoothing=label_smoothing, device=self.backend)
        self.progress = Progress()
        self.monitor: Monitor | None = None
        self._correct = self.backend.empty((), np.int64)
        self._shares: dict[float, Array] = {}  # of a step's images, on the device
        self._check_parts()

    def _check_parts(self) -> None:
        size, parts = self.loader.batch_size, self.accumulate
        if parts < 1 or size % parts:
            raise ConfigError(f"accumulate is {parts}, expected a number that divides the batch size {size}")
        if parts > 1 and size // parts % self.loader.multiple_of:
            raise ConfigError(
                f"--accumulate {parts} makes parts of {size // parts} images, not a multiple of the ghost batch of "
                f"{self.loader.multiple_of}"
            )

    def train_epoch(self, keep_going: Callable[[], bool] = lambda: True) -> Row | None:
        """Finish the current epoch and evaluate.

        Args:
            keep_going: Asked after each step; once it says no, training stops there.

        Returns:
            The epoch's metrics, or None if it was stopped before its end; `progress` then stands between two steps.

        Raises:
            NonFiniteError: The loss or a weight is no longer finite.
        """
        progress, began = self.progress, time.perf_counter()
        self.model.train()
        try:
            for index in self.loader.batches(progress.epoch, first=progress.batch):
                with self._monitored():
                    self._train_step(index)
                if not keep_going() and progress.batch < len(self.loader):
                    return None
            self.require_finite_state()
            test = self.evaluate()
        finally:
            progress.seconds += time.perf_counter() - began
        return self._finish_epoch(test)

    def evaluate(self) -> Result:
        """Loss and accuracy on the test images, of the averaged weights where there are any."""
        with self.average.averaged() if self.average is not None else contextlib.nullcontext():
            return evaluate(self.model, self.test_source, max(64, self.loader.batch_size // self.accumulate))

    def train_result(self) -> Result:
        """Mean loss and accuracy over the current epoch's images so far, each as it was when its step was made."""
        progress = self.progress
        if not progress.seen:
            return Result(math.nan, math.nan)
        return Result(progress.loss_sum / progress.seen, progress.correct / progress.seen)

    def _train_step(self, index: np.ndarray) -> None:
        began = time.perf_counter()
        progress = self.progress
        self.optimizer.set_lr(self.schedule(progress.step))
        self.optimizer.zero_grad()
        loss_sum, correct = 0.0, 0
        for part in self._parts(index):
            loss, right = self._back_and_forth(part, len(part) / len(index))
            loss_sum += loss * len(part)
            correct += right
        if self.monitor is not None:
            self.monitor.gradients(self.model)
        if self.clip is not None:
            self._clip_gradients(self.clip)
        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        progress.step += 1
        progress.batch += 1
        progress.seen += len(index)
        progress.images += len(index)
        progress.loss_sum += loss_sum
        progress.correct += correct
        seconds = time.perf_counter() - began
        progress.epoch_seconds += seconds
        progress.train_seconds += seconds

    def _parts(self, index: np.ndarray) -> list[np.ndarray]:
        """A step's images, shared out evenly among as few parts as hold at most batch_size / accumulate each.

        Only where those are 2 and the batch is odd has one of them 3: batch normalization needs two values a channel.
        """
        if self.accumulate == 1:
            return [index]
        size = self.loader.batch_size // self.accumulate
        count = -(-len(index) // size)
        if size > 1 and len(index) // count < 2:
            count = max(1, count - 1)
        if len(index) % self.loader.multiple_of:
            return np.array_split(index, count)
        return [part.reshape(-1) for part in np.array_split(index.reshape(-1, self.loader.multiple_of), count)]

    def _back_and_forth(self, index: np.ndarray, share: float) -> tuple[float, int]:
        """Add the gradients of these images, a `share` of the step's, to the model's: (mean loss, correct answers)."""
        progress = self.progress
        x, targets = self.train_source.batch(index, self.augmentation, seed=self.seed, epoch=progress.epoch)
        logits = self.model.forward(x)
        loss = float(self.criterion.forward(logits, targets))
        if not math.isfinite(loss):
            where = first_nonfinite(self.model, x)
            raise NonFiniteError(
                f"training stopped at step {progress.step + 1} (epoch {progress.epoch + 1}): the loss is {loss}; "
                f"the first values that are not finite: {where}"
            )
        dlogits = self.criterion.backward()
        if share != 1:
            if share not in self._shares:
                self._shares[share] = self.backend.array(np.array(share))
            self.backend.scale_forward(dlogits, self._shares[share], dlogits)
        self.model.backward(dlogits)
        self.backend.count_correct(logits, targets, self._correct)
        return loss, int(self._correct)

    def _clip_gradients(self, most: float) -> None:
        try:
            clip_grad_norm(self.model.parameters(), most, error_if_nonfinite=True)
        except FloatingPointError:
            raise NonFiniteError(
                f"training stopped at step {self.progress.step + 1} (epoch {self.progress.epoch + 1}): the norm of the "
                f"gradients is not finite; the first values that are not: {first_nonfinite_gradient(self.model)}"
            ) from None

    def _monitored(self) -> contextlib.AbstractContextManager[None]:
        """Around a step: whether and how it is measured."""
        step, epoch = self.progress.step, self.progress.epoch
        if self.monitor is None or not self.monitor.wants(step):
            return contextlib.nullcontext()
        return self.monitor.watch(self.model, step, epoch, self.schedule(step))

    def _finish_epoch(self, test: Result) -> Row:
        progress, train = self.progress, self.train_result()
        progress.epoch += 1
        speed, lr = progress.seen / progress.epoch_seconds, self.schedule(progress.step - 1)
        row = dict(zip(COLUMNS, (progress.epoch, progress.step, *train, *test, speed, lr), strict=True))
        progress.batch = progress.seen = progress.correct = 0
        progress.loss_sum = progress.epoch_seconds = 0.0
        if test.accuracy > progress.best_accuracy:
            progress.best_accuracy, progress.best_epoch = test.accuracy, progress.epoch
        return row

    def require_finite_state(self) -> None:
        """Raise NonFiniteError if a parameter or buffer is not finite: such a state is not worth keeping."""
        where = first_nonfinite(self.model)
        if where is not None:
            raise NonFiniteError(
                f"training stopped after step {self.progress.step} (epoch {self.progress.epoch + 1}): "
                f"the first values that are not finite: {where}"
            )

    # The state, for checkpoints.

    def tensors(self) -> dict[str, np.ndarray]:
        """Weights, buffers, the optimizer's state and the averages: "model.NAME", "optimizer.NAME", "average.NAME"."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors.update({f"optimizer.{name}": value for name, value in self.optimizer.state_dict().items()})
        if self.average is not None:
            tensors.update({f"average.{name}": value for name, value in self.average.state_dict().items()})
        return tensors

    def counters(self) -> dict[str, Any]:
        """The rest of the state, as JSON can hold it: progress, and the calls of each layer that draws numbers."""
        calls = {name: layer.calls for name, layer in _drawing(self.model)}
        return {"progress": asdict(self.progress), "calls": calls}

    def restore(self, tensors: Mapping[str, np.ndarray], counters: Mapping[str, Any]) -> None:
        """The inverse of `tensors` and `counters`. Raises ValueError if they are of another model or optimizer."""
        self.model.load_state_dict(_part(tensors, "model."))
        self.optimizer.load_state_dict(_part(tensors, "optimizer."))
        if self.average is not None:
            self.average.load_state_dict(_part(tensors, "average."))
        self.progress = Progress(**counters["progress"])
        for name, layer in _drawing(self.model):
            layer.calls = counters["calls"][name]


def _part(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _drawing(model: Module) -> list[tuple[str, Any]]:
    """The layers whose random numbers depend on a count of calls: dropout, noise."""
    return [(name, module) for name, module in model.named_modules() if hasattr(module, "calls")]
