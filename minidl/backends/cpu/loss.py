"""Softmax cross-entropy and the count of correct answers on the CPU, in float64 inside: the arrays are small."""

import numpy as np

from kernels.targets import check_targets
from minidl.backends.cpu.compile import compiled
from minidl.backends.cpu.device import CpuDevice


@compiled
def _cross_entropy(logits, targets, dlogits, label_smoothing, ignore_index, mean):
    """The loss; its gradient goes to dlogits."""
    rows, classes = logits.shape
    total, counted = 0.0, 0
    for n in range(rows):
        counted += targets[n] != ignore_index
    scale = (1.0 / counted if mean else 1.0) if counted else 0.0
    for n in range(rows):
        target = targets[n]
        if target == ignore_index:
            dlogits[n] = np.float32(0)
            continue
        largest = np.float64(logits[n, 0])
        for k in range(classes):
            if logits[n, k] > largest:
                largest = np.float64(logits[n, k])
        exponentials = 0.0
        for k in range(classes):
            exponentials += np.exp(logits[n, k] - largest)
        log_sum = np.log(exponentials)  # never added to the largest: beside a huge logit it would be lost
        for k in range(classes):
            log_p = (logits[n, k] - largest) - log_sum
            wanted = label_smoothing / classes + (1.0 - label_smoothing if k == target else 0.0)
            if wanted > 0.0:  # 0 * log 0 is 0
                total -= wanted * log_p
            dlogits[n, k] = (np.exp(log_p) - wanted) * scale
    if mean:
        return total / counted  # 0 / 0 is NaN when nothing was counted, as in PyTorch
    return total


@compiled
def _count_correct(logits, targets):
    correct = 0
    for n in range(logits.shape[0]):
        target = targets[n]
        if target < 0 or target >= logits.shape[1]:
            continue
        leads = True
        for k in range(logits.shape[1]):
            # Written so that a NaN on either side counts as not leading.
            ahead = logits[n, target] >= logits[n, k] if k >= target else logits[n, target] > logits[n, k]
            leads = leads and ahead
        correct += leads
    return correct


class LossOps(CpuDevice):
    """The loss part of the CPU backend; see `Backend` for the operations."""

    def cross_entropy(
        self,
        logits: np.ndarray,
        targets: np.ndarray,
        loss: np.ndarray,
        dlogits: np.ndarray,
        label_smoothing: float,
        ignore_index: int,
        reduction: str,
    ) -> None:
        check_targets(targets, logits.shape[1], ignore_index)
        loss[...] = _cross_entropy(logits, targets, dlogits, label_smoothing, ignore_index, reduction == "mean")

    def count_correct(self, logits: np.ndarray, targets: np.ndarray, correct: np.ndarray) -> None:
        correct[...] = _count_correct(logits, targets)

    def all_finite(self, x: np.ndarray) -> bool:
        return bool(np.isfinite(x).all())
