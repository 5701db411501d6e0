"""Softmax, cross-entropy and the count of correct answers on the CPU, in float64 inside: the arrays are small."""

import numpy as np

from kernels.targets import check_targets
from minidl.backends.cpu.compile import compiled
from minidl.backends.cpu.device import CpuDevice

GRAIN_ELEMENTS = 1 << 13  # an exponential each


@compiled
def _softmax(first, last, x, y, log):
    for n in range(first, last):
        largest = -np.inf
        for k in range(x.shape[1]):
            if x[n, k] > largest:
                largest = np.float64(x[n, k])
        total = 0.0
        for k in range(x.shape[1]):
            total += np.exp(x[n, k] - largest)
        if log:
            total = np.log(total)
        for k in range(x.shape[1]):
            shifted = x[n, k] - largest  # the logarithm is never added to the largest: it would be lost there
            y[n, k] = shifted - total if log else np.exp(shifted) / total


@compiled
def _softmax_backward(first, last, dy, y, dx, log):
    for n in range(first, last):
        total = 0.0
        for k in range(y.shape[1]):
            total += np.float64(dy[n, k]) * (1.0 if log else np.float64(y[n, k]))
        for k in range(y.shape[1]):
            if log:
                dx[n, k] = dy[n, k] - np.exp(np.float64(y[n, k])) * total
            else:
                dx[n, k] = y[n, k] * (dy[n, k] - total)


@compiled
def _scale_rows(first, last, x, factors, y):
    for n in range(first, last):
        for k in range(x.shape[1]):
            y[n, k] = x[n, k] * factors[n]


@compiled
def _cross_entropy(logits, targets, weight, losses, dlogits, label_smoothing, ignore_index, mean):
    """The sum or mean of the losses, and its gradient in dlogits.

    No element of `weight` is as many ones. Where there is room in `losses`, the rows' own go there; the rest is left.
    """
    rows, classes = logits.shape
    weighted, apart = weight.size > 0, losses.size > 0
    total, divisor = 0.0, 0.0
    for n in range(rows):
        if targets[n] != ignore_index:
            divisor += np.float64(weight[targets[n]]) if weighted else 1.0
    divisor = divisor if divisor != 0.0 else np.nan
    scale = 1.0 / divisor if mean else 1.0
    for n in range(rows):
        target = targets[n]
        total = 0.0 if apart else total
        if target == ignore_index:
            dlogits[n] = np.float32(0)
            if apart:
                losses[n] = np.float32(0)
            continue
        largest = np.float64(logits[n, 0])
        for k in range(classes):
            if logits[n, k] > largest:
                largest = np.float64(logits[n, k])
        exponentials = 0.0
        for k in range(classes):
            exponentials += np.exp(logits[n, k] - largest)
        log_sum = np.log(exponentials)  # never added to the largest: beside a huge logit it would be lost
        mass = 1.0  # the sum of what is wanted
        if weighted:
            mass = (1.0 - label_smoothing) * weight[target]
            for k in range(classes):
                mass += label_smoothing / classes * weight[k]
        for k in range(classes):
            log_p = (logits[n, k] - largest) - log_sum
            wanted = label_smoothing / classes + (1.0 - label_smoothing if k == target else 0.0)
            if weighted:
                wanted *= weight[k]
            if wanted != 0.0 or np.isnan(log_p):  # 0 * log 0 is 0
                total -= wanted * log_p
            dlogits[n, k] = (mass * np.exp(log_p) - wanted) * scale
        if apart:
            losses[n] = total
    return total / divisor if mean else total


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


_NONE = np.empty(0, np.float32)


def _grain(x: np.ndarray) -> int:
    """Rows in a piece of work."""
    return max(1, GRAIN_ELEMENTS // max(1, x[:1].size))


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
        weight: np.ndarray | None = None,
    ) -> None:
        check_targets(targets, logits.shape[1], ignore_index)
        weight, apart = _NONE if weight is None else weight, reduction == "none"
        options = label_smoothing, ignore_index, reduction == "mean"
        result = _cross_entropy(logits, targets, weight, loss if apart else _NONE, dlogits, *options)
        if not apart:
            loss[...] = result

    def scale_rows(self, x: np.ndarray, factors: np.ndarray, y: np.ndarray) -> None:
        self.workers.run(_scale_rows, len(x), _grain(x), x, factors, y)

    def softmax_forward(self, x: np.ndarray, y: np.ndarray) -> None:
        self._softmax(x, y, False)

    def softmax_backward(self, dy: np.ndarray, y: np.ndarray, dx: np.ndarray) -> None:
        self._softmax_backward(dy, y, dx, False)

    def log_softmax_forward(self, x: np.ndarray, y: np.ndarray) -> None:
        self._softmax(x, y, True)

    def log_softmax_backward(self, dy: np.ndarray, y: np.ndarray, dx: np.ndarray) -> None:
        self._softmax_backward(dy, y, dx, True)

    def _softmax(self, x: np.ndarray, y: np.ndarray, log: bool) -> None:
        if x.size:
            rows = x.reshape(-1, x.shape[-1])
            self.workers.run(_softmax, len(rows), _grain(rows), rows, y.reshape(rows.shape), log)

    def _softmax_backward(self, dy: np.ndarray, y: np.ndarray, dx: np.ndarray, log: bool) -> None:
        if y.size:
            rows = y.reshape(-1, y.shape[-1])
            arrays = dy.reshape(rows.shape), rows, dx.reshape(rows.shape)
            self.workers.run(_softmax_backward, len(rows), _grain(rows), *arrays, log)

    def append_result(
        self,
        logits: np.ndarray,
        targets: np.ndarray,
        loss: np.ndarray,
        count: np.ndarray,
        losses: np.ndarray,
        corrects: np.ndarray,
    ) -> None:
        losses[count], corrects[count] = loss, _count_correct(logits, targets)
        count += 1

    def all_finite(self, x: np.ndarray) -> bool:
        return bool(np.isfinite(x).all())
