"""Loss and accuracy of a model on images it does not learn from."""

from typing import NamedTuple

import numpy as np

from minidl.backends import Array, Backend
from minidl.nn import CrossEntropyLoss, Module, inference


class Result(NamedTuple):
    """Mean loss, and the share of correct answers, 0 to 1."""

    loss: float
    accuracy: float


class ImageSource:
    """Images and labels on a device, as normalized batches.

    Args:
        images: (N, h, w, c) uint8.
        labels: (N,) int64.
        mean: (c,), in the units of `images`.
        std: (c,), likewise.
        backend: Where batches are made.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, mean: np.ndarray, std: np.ndarray, backend: Backend
    ) -> None:
        self.backend = backend
        self.images = backend.array(images, np.uint8)
        self.labels = backend.array(labels, np.int64)
        self.mean, self.std = backend.array(mean), backend.array(std)

    def __len__(self) -> int:
        return len(self.images)

    def batch(
        self, index: np.ndarray, shifts: np.ndarray | None = None, flips: np.ndarray | None = None
    ) -> tuple[Array, Array]:
        """Images (n, h, w, c) and targets (n,) of the index (n,), shifted and mirrored where asked."""
        backend, n = self.backend, len(index)
        places = backend.array(index, np.int64)
        shifts = backend.zeros((n, 2), np.int32) if shifts is None else backend.array(shifts, np.int32)
        flips = backend.zeros((n,), np.bool_) if flips is None else backend.array(flips, np.bool_)
        x = backend.empty((n, *self.images.shape[1:]))
        targets = backend.empty((n,), np.int64)
        backend.gather_images(self.images, places, shifts, flips, self.mean, self.std, x)
        backend.gather_labels(self.labels, places, targets)
        return x, targets


def evaluate(model: Module, source: ImageSource, batch_size: int) -> Result:
    """The model's result over all of `source`, by running statistics and without dropout; the model is not changed."""
    backend = source.backend
    criterion = CrossEntropyLoss(reduction="sum", device=backend)
    correct = backend.empty((), np.int64)
    loss, right = 0.0, 0
    was_training = model.training
    model.eval()
    try:
        with inference():
            for start in range(0, len(source), batch_size):
                x, targets = source.batch(np.arange(start, min(start + batch_size, len(source))))
                logits = model.forward(x)
                loss += float(criterion.forward(logits, targets))
                backend.count_correct(logits, targets, correct)
                right += int(correct)
    finally:
        model.train(was_training)
    return Result(loss / len(source), right / len(source))
