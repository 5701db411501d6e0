"""Loss and accuracy of a model on images it does not learn from."""

from typing import NamedTuple

import numpy as np

from minidl.backends import Array, Backend
from minidl.data import NO_AUGMENTATION, Augmentation
from minidl.nn import CrossEntropyLoss, Module, inference, reestimate_statistics
from minidl.nn.statistics import Method
from minidl.training.step import Log


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
        self, index: np.ndarray, augmentation: Augmentation = NO_AUGMENTATION, *, seed: int = 0, epoch: int = 0
    ) -> tuple[Array, Array]:
        """Images (n, h, w, c) and targets (n,) of the index (n,).

        The images are augmented as in this epoch of a run with this seed: an image's numbers do not depend on the rest
        of the batch, nor on the device.
        """
        places = self.backend.array(index, np.int64)
        return self.take(places, augmentation, seed=seed, epoch=self.backend.array(np.array(epoch), np.uint32))

    def take(self, places: Array, augmentation: Augmentation, *, seed: int, epoch: Array) -> tuple[Array, Array]:
        """`batch`, of an index (n,) int64 and an epoch () uint32 that lie on the device."""
        backend, n, (h, w, _) = self.backend, len(places), self.images.shape[1:]
        shifts, centres = backend.empty((n, 2), np.int32), backend.empty((n, 2), np.int32)
        flips = backend.empty((n,), np.bool_)
        x = backend.empty((n, *self.images.shape[1:]))
        targets = backend.empty((n,), np.int64)
        drawn = shifts, flips, centres
        backend.draw_augmentation(places, *drawn, (h, w), augmentation.crop_padding, augmentation.flip, seed, epoch)
        backend.gather_images(self.images, places, *drawn, self.mean, self.std, x, augmentation.cutout)
        backend.gather_labels(self.labels, places, targets)
        return x, targets


def evaluate(model: Module, source: ImageSource, batch_size: int) -> Result:
    """The model's result over all of `source`, by running statistics and without dropout; the model is not changed."""
    backend = source.backend
    criterion = CrossEntropyLoss(reduction="sum", device=backend)
    starts = range(0, len(source), batch_size)
    log = Log(backend, len(starts))
    was_training = model.training
    model.eval()
    try:
        with inference():
            for start in starts:
                x, targets = source.batch(np.arange(start, min(start + batch_size, len(source))))
                logits = model.forward(x)
                log.append(logits, targets, criterion.forward(logits, targets))
            results = log.read(len(starts))
    finally:
        model.train(was_training)
    loss, right = 0.0, 0
    for of_batch, correct in results:
        loss += of_batch
        right += correct
    return Result(loss / len(source), right / len(source))


def reestimate(model: Module, source: ImageSource, batch_size: int, method: Method = "precise") -> list[str]:
    """Running statistics of batch normalization over all of `source`; see `reestimate_statistics`.

    The images are shared out evenly among as few batches of at most `batch_size` as there can be, so that none is left
    with too few.
    """
    batches = np.array_split(np.arange(len(source)), -(-len(source) // batch_size))
    return reestimate_statistics(model, (source.batch(index) for index in batches), method)
