"""The training loop: steps, epochs, and a state from which it goes on bit for bit."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from minidl.data import Augmentation, Dataset, Loader, draw
from minidl.errors import NonFiniteError
from minidl.nn import CrossEntropyLoss, Dropout, Module
from minidl.optim import Optimizer
from minidl.schedule import Schedule
from minidl.training.diagnosis import first_nonfinite
from minidl.training.evaluation import ImageSource, Result, evaluate

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
        augmentation: What happens to training images; None for nothing.
        label_smoothing: See `CrossEntropyLoss`.
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
        augmentation: Augmentation | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.backend = model.backend
        self.seed, self.augmentation = seed, augmentation or Augmentation(shift=0, flip=False)
        self.loader = Loader(len(dataset.train_images), batch_size, seed)
        statistics = dataset.mean, dataset.std
        self.train_source = ImageSource(dataset.train_images, dataset.train_labels, *statistics, self.backend)
        self.test_source = ImageSource(dataset.test_images, dataset.test_labels, *statistics, self.backend)
        self.criterion = CrossEntropyLoss(label_smoothing=label_smoothing, device=self.backend)
        self.progress = Progress()
        self._correct = self.backend.empty((), np.int64)

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
                self._train_step(index)
                if not keep_going() and progress.batch < len(self.loader):
                    return None
            self.require_finite_state()
            test = self.evaluate()
        finally:
            progress.seconds += time.perf_counter() - began
        return self._finish_epoch(test)

    def evaluate(self) -> Result:
        """Loss and accuracy on the test images."""
        return evaluate(self.model, self.test_source, max(64, self.loader.batch_size))

    def train_result(self) -> Result:
        """Mean loss and accuracy over the current epoch's images so far, each as it was when its step was made."""
        progress = self.progress
        if not progress.seen:
            return Result(math.nan, math.nan)
        return Result(progress.loss_sum / progress.seen, progress.correct / progress.seen)

    def _train_step(self, index: np.ndarray) -> None:
        began = time.perf_counter()
        progress = self.progress
        shifts, flips = draw(self.augmentation, self.seed, progress.epoch, index)
        x, targets = self.train_source.batch(index, shifts, flips)
        self.optimizer.set_lr(self.schedule(progress.step))
        self.optimizer.zero_grad()
        logits = self.model.forward(x)
        loss = float(self.criterion.forward(logits, targets))
        if not math.isfinite(loss):
            where = first_nonfinite(self.model, x)
            raise NonFiniteError(
                f"training stopped at step {progress.step + 1} (epoch {progress.epoch + 1}): the loss is {loss}; "
                f"the first values that are not finite: {where}"
            )
        self.model.backward(self.criterion.backward())
        self.optimizer.step()
        self.backend.count_correct(logits, targets, self._correct)
        progress.step += 1
        progress.batch += 1
        progress.seen += len(index)
        progress.images += len(index)
        progress.loss_sum += loss * len(index)
        progress.correct += int(self._correct)
        seconds = time.perf_counter() - began
        progress.epoch_seconds += seconds
        progress.train_seconds += seconds

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
        """Weights, buffers and the optimizer's state: "model.NAME" and "optimizer.NAME"."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors.update({f"optimizer.{name}": value for name, value in self.optimizer.state_dict().items()})
        return tensors

    def counters(self) -> dict[str, Any]:
        """The rest of the state, as JSON can hold it: progress, and each dropout layer's calls."""
        return {"progress": asdict(self.progress), "dropout_calls": {n: d.calls for n, d in _dropouts(self.model)}}

    def restore(self, tensors: Mapping[str, np.ndarray], counters: Mapping[str, Any]) -> None:
        """The inverse of `tensors` and `counters`. Raises ValueError if they are of another model or optimizer."""
        self.model.load_state_dict(_part(tensors, "model."))
        self.optimizer.load_state_dict(_part(tensors, "optimizer."))
        self.progress = Progress(**counters["progress"])
        for name, layer in _dropouts(self.model):
            layer.calls = counters["dropout_calls"][name]


def _part(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _dropouts(model: Module) -> list[tuple[str, Dropout]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, Dropout)]
