"""The loss at the end of a classifier."""

from typing import Any

import numpy as np

from kernels.errors import ShapeError
from minidl.backends import Array, Backend
from minidl.nn.arguments import real_number, whole_number
from minidl.nn.module import Module


class CrossEntropyLoss(Module):
    """Softmax cross-entropy of logits (n, classes) with targets (n,), as PyTorch's CrossEntropyLoss.

    Args:
        ignore_index: Targets of this value count neither in the loss nor in the mean.
        reduction: "mean" over the targets that count, or "sum".
        label_smoothing: s in [0, 1]: the target distribution is (1 - s) at the target plus s / classes everywhere.
        device: Where it computes; the CPU unless given.
    """

    def __init__(
        self,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        device: str | Backend | None = None,
    ) -> None:
        super().__init__(device)
        if reduction not in ("mean", "sum"):
            raise ValueError(f"CrossEntropyLoss: reduction is '{reduction}', expected 'mean' or 'sum'")
        if not 0 <= real_number(self, "label_smoothing", label_smoothing) <= 1:
            raise ValueError(f"CrossEntropyLoss: label_smoothing is {label_smoothing}, expected 0 to 1")
        self.ignore_index = whole_number(self, "ignore_index", ignore_index)
        self.reduction, self.label_smoothing = reduction, label_smoothing

    def forward(self, x: Array, targets: Array = None) -> Array:
        """The loss, of shape (); `float(loss)` brings it to the host.

        Args:
            x: Logits (n, classes).
            targets: (n,) int64, 0 to classes - 1, or ignore_index.

        Raises:
            ShapeError: The shapes do not fit.
            IndexError: A target is out of range; the message names the first.
        """
        logits = self.accept(x, "n classes")
        targets = self.backend.accept(targets, "CrossEntropyLoss: targets", np.int64)
        if tuple(targets.shape) != (logits.shape[0],):
            raise ShapeError(
                f"CrossEntropyLoss: targets have shape {tuple(targets.shape)}, expected ({logits.shape[0]},) "
                f"for logits of shape {tuple(logits.shape)}"
            )
        loss = self.backend.empty(())
        dlogits = self.backend.empty(logits.shape)
        self.backend.cross_entropy(
            logits, targets, loss, dlogits, self.label_smoothing, self.ignore_index, self.reduction
        )
        self.keep(dlogits)
        return loss

    def __call__(self, x: Array, targets: Array = None) -> Array:
        """Forward."""
        return self.forward(x, targets)

    def backward(self, dy: Any = None) -> Array:
        """The gradient of the loss with respect to the logits. `dy` is there for symmetry; leave it out."""
        if dy is not None:
            raise TypeError("CrossEntropyLoss.backward takes no gradient: it is where gradients begin")
        (dlogits,) = self.kept()
        self._kept = None
        return dlogits
