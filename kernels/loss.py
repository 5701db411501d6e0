"""Softmax cross-entropy with its gradient, and what is counted beside it.

Of a row of logits z with target t among C classes, label smoothing s:

    p    = exp(z - max z) / sum(exp(z - max z))
    q    = (1 - s) * onehot(t) + s / C
    loss = -sum(q * log p)
    dz   = p - q

Rows whose target is `ignore_index` take no part. `reduction` "sum" adds the rows, "mean" divides loss and gradient by
the number of rows that take part.

Shapes   logits, dlogits (n, C); targets (n,) int64; loss () of the logits' dtype; correct () int64.
Edges    No row takes part (all ignored, or n = 0): the mean is NaN and the sum 0, the gradient 0 for both. Logits of
         any finite size are safe. A logit of -inf has p = 0; with smoothing, or as the target, its loss is inf. NaN,
         +inf or all -inf in a row make that row's loss and gradient NaN (all PyTorch's rules). The gradient of an
         ignored row is 0 whatever it holds; PyTorch's is NaN where the row is.
Source   label smoothing: C. Szegedy et al., "Rethinking the Inception Architecture", 2016, arXiv:1512.00567, section 7.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@np.errstate(invalid="ignore", over="ignore", divide="ignore")
def cross_entropy_reference(
    logits: Array,
    targets: NDArray[np.int64],
    label_smoothing: float,
    ignore_index: int,
    reduction: str,
) -> tuple[Any, Array]:
    """(loss, dlogits).

    Raises:
        IndexError: A target is neither a class nor `ignore_index`.
        ValueError: `reduction` is neither "mean" nor "sum".
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f'cross_entropy: reduction {reduction!r} is not known; use "mean" or "sum"')
    classes = logits.shape[1]
    check_targets(targets, classes, ignore_index)

    counted = targets != ignore_index
    onehot = targets[:, None] == np.arange(classes)
    q = ((1 - label_smoothing) * onehot + label_smoothing / classes).astype(logits.dtype)

    shifted = logits - logits.max(axis=1, keepdims=True)  # the largest exponential is 1: none overflows
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    losses = -np.where(q > 0, q * log_p, 0).sum(axis=1)  # 0 * log 0 is 0
    dlogits = np.where(counted[:, None], np.exp(log_p) - q, 0)

    loss = losses[counted].sum()
    if reduction == "mean":
        count = int(counted.sum())
        loss = loss / count
        dlogits = dlogits / max(count, 1)
    return loss, dlogits


def check_targets(targets: NDArray[np.int64], classes: int, ignore_index: int) -> None:
    """Raise IndexError, naming the first bad row, unless each target is in [0, classes) or is `ignore_index`."""
    bad = (targets != ignore_index) & ((targets < 0) | (targets >= classes))
    if bad.any():
        row = int(bad.argmax())
        raise IndexError(
            f"cross_entropy: target {targets[row]} in row {row} is not one of the {classes} classes; "
            f"give 0 to {classes - 1}, or {ignore_index} to ignore the row"
        )


def count_correct_reference(logits: Array, targets: NDArray[np.int64]) -> np.int64:
    """Rows whose largest logit, the first of equals, is at their target. A row with a NaN is not correct."""
    rows = np.arange(len(logits))
    best = logits.argmax(axis=1)  # the first NaN, where there is one
    return np.int64(((best == targets) & ~np.isnan(logits[rows, best])).sum())


def all_finite_reference(x: Array) -> bool:
    """Whether x, of any shape, holds neither NaN nor infinity."""
    return bool(np.isfinite(x).all())
