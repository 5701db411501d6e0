"""How far a training run is, and what is told of an epoch."""

from dataclasses import dataclass
from typing import Any

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
    train_seconds: float = 0.0  # of all steps; neither evaluation nor compiling is in it
    seconds: float = 0.0  # of everything, sessions before a resumption included
    images: int = 0
    best_accuracy: float = -1.0
    best_epoch: int = 0

    def finish_epoch(self, train: tuple[float, float], test: tuple[float, float], lr: float) -> Row:
        """Count an epoch as finished, and begin to add up the next one's results.

        Args:
            train: Loss and accuracy on the images that it trained on.
            test: Loss and accuracy afterwards, on the test images.
            lr: The learning rate of its last step.

        Returns:
            The epoch's metrics.
        """
        self.epoch += 1
        speed = self.seen / self.epoch_seconds
        row = dict(zip(COLUMNS, (self.epoch, self.step, *train, *test, speed, lr), strict=True))
        self.batch = self.seen = self.correct = 0
        self.loss_sum = self.epoch_seconds = 0.0
        if test[1] > self.best_accuracy:
            self.best_accuracy, self.best_epoch = test[1], self.epoch
        return row
