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
        weight: A factor for each class, (classes,), finite and not negative: what a target of that class counts. The
            mean is divided by the sum of the targets' weights. A buffer, so it moves with the layer.
        ignore_index: Targets of this value count neither in the loss nor in the mean.
        reduction: "mean" over the targets that count, "sum", or "none" for the loss of each row.
        label_smoothing: s in [0, 1]: the target distribution is (1 - s) at the target plus s / classes everywhere.
        device: Where it computes; the CPU unless given.
    """

    def __init__(
        self,
        weight: Any = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        device: str | Backend | None = None,
    ) -> None:
        super().__init__(device)
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"CrossEntropyLoss: reduction is {reduction!r}, expected 'mean', 'sum' or 'none'")
        if not 0 <= real_number(self, "label_smoothing", label_smoothing) <= 1:
            raise ValueError(f"CrossEntropyLoss: label_smoothing is {label_smoothing}, expected 0 to 1")
        self.ignore_index = whole_number(self, "ignore_index", ignore_index)
        self.reduction, self.label_smoothing = reduction, label_smoothing
        self.weight: Array | None = None
        if weight is not None:
            self.register_buffer("weight", self.backend.array(_class_weights(weight)))

    def forward(self, x: Array, targets: Array = None) -> Array:
        """The loss, of shape (), or (n,) with reduction "none"; `float(loss)` brings a single one to the host.

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
        if self.weight is not None and self.weight.shape != (logits.shape[1],):
            raise ShapeError(
                f"CrossEntropyLoss: weight has shape {tuple(self.weight.shape)}, expected ({logits.shape[1]},) "
                f"for logits of shape {tuple(logits.shape)}"
            )
        loss = self.backend.empty(targets.shape if self.reduction == "none" else ())
        dlogits = self.backend.empty(logits.shape)
        options = self.label_smoothing, self.ignore_index, self.reduction, self.weight
        self.backend.cross_entropy(logits, targets, loss, dlogits, *options)
        self.keep(dlogits)
        return loss

    def __call__(self, x: Array, targets: Array = None) -> Array:
        """Forward."""
        return self.forward(x, targets)

    def backward(self, dy: Any = None) -> Array:
        """The gradient with respect to the logits.

        Args:
            dy: With reduction "none", the gradient (n,) of the rows' losses; otherwise leave it out.

        Raises:
            ShapeError: `dy` is not of the shape of the losses.
            TypeError: `dy` is missing with reduction "none", or given with another.
        """
        if self.reduction != "none" and dy is not None:
            raise TypeError("CrossEntropyLoss.backward takes no gradient: it is where gradients begin")
        if self.reduction == "none" and dy is None:
            raise TypeError(
                "CrossEntropyLoss.backward: with reduction='none' give the gradient of each row's loss, of shape (n,); "
                "ones for their sum"
            )
        (dlogits,) = self.kept()
        if dy is None:
            self._kept = None
            return dlogits
        dy = self.accept_gradient(dy, dlogits.shape[:1])
        scaled = self.backend.empty(dlogits.shape)
        self.backend.scale_rows(dlogits, dy, scaled)
        return scaled

    def extra_repr(self) -> str:
        """The arguments that are not the defaults."""
        return ", ".join(
            f"{name}={value!r}"
            for name, value, default in (
                ("ignore_index", self.ignore_index, -100),
                ("reduction", self.reduction, "mean"),
                ("label_smoothing", self.label_smoothing, 0.0),
            )
            if value != default
        )


def _class_weights(weight: Any) -> np.ndarray:
    """In host memory. Raises ShapeError, TypeError or ValueError."""
    weights = np.asarray(weight)
    if weights.dtype.kind not in "iuf":
        raise TypeError(f"CrossEntropyLoss: weight must be a number for each class, got {weight!r}")
    if weights.ndim != 1:
        raise ShapeError(f"CrossEntropyLoss: weight has shape {weights.shape}, expected (classes,)")
    bad = ~(np.isfinite(weights) & (weights >= 0))
    if bad.any():
        place = int(bad.argmax())
        raise ValueError(
            f"CrossEntropyLoss: weight[{place}] is {weights[place]}, expected a finite number that is not negative"
        )
    return weights
