"""Softmax cross-entropy with its gradient.

Of a row of logits z with target t among C classes, label smoothing s:

    p    = exp(z - max z) / sum(exp(z - max z))
    q    = (1 - s) * onehot(t) + s / C
    loss = -sum(q * log p)
    dz   = p - q

Rows whose target is `ignore_index` take no part. `reduction` "sum" adds the rows, "mean" divides loss and gradient by
the number of rows that take part.

Shapes   logits, dlogits (n, C); targets (n,) int64; loss () of the logits' dtype, on the device float32.
Traffic  reads logits and targets once and writes dlogits once; the later looks at a row find it in cache.
Edges    No row takes part (all ignored, or n = 0): the mean is NaN and the sum 0, the gradient 0 for both. Logits of
         any finite size are safe. A logit of -inf has p = 0; with smoothing, or as the target, its loss is inf. NaN,
         +inf or all -inf in a row make that row's loss and gradient NaN (all PyTorch's rules). The gradient of an
         ignored row is 0 whatever it holds; PyTorch's is NaN where the row is.
Source   label smoothing: C. Szegedy et al., "Rethinking the Inception Architecture", 2016, arXiv:1512.00567, section 7.
"""

import math
from typing import Any

import numpy as np
from numba import cuda, float32, int64, uint32
from numpy.typing import NDArray

from kernels.device import WARP, index_type, inlined
from kernels.errors import ShapeError, require_shape, same_shape
from kernels.launch import Array as DeviceArray
from kernels.launch import Cost, Float, Floats, Int64, Int64s, Launch, Runner, blocks_for, kernel, techniques
from kernels.targets import check_targets, no_class

Array = NDArray[Any]
BLOCK = 256
NAN, INFINITY = np.float32(np.nan), np.float32(np.inf)


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
    _check_reduction(reduction)
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


def _check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum"):
        raise ValueError(f'cross_entropy: reduction {reduction!r} is not known; use "mean" or "sum"')


# A sum is carried as two numbers, the sum and what its additions lost, so that its error does not grow with the number
# of terms. Where the first is infinite the second is NaN, and left out.


@inlined
def _add(total, lost, value):
    """(total, lost) + value, by D. Knuth's exact addition (TAOCP 2, section 4.2.2, theorem B)."""
    after = total + value
    taken = after - total
    return after, lost + ((total - (after - taken)) + (value - taken))


@inlined
def _rounded(total, lost):
    """The sum as one number."""
    return total + lost if abs(total) < INFINITY else total


@inlined
def _warp_sum(total, lost):
    """Over the lanes of a warp, the same bits in each: both lanes of a pair add the same two numbers."""
    for k in range(5):
        other = cuda.shfl_xor_sync(0xFFFFFFFF, total, 16 >> k)
        lost += cuda.shfl_xor_sync(0xFFFFFFFF, lost, 16 >> k)
        total, lost = _add(total, lost, other)
    return total, lost


@inlined
def _warp_max(value):
    """Over the lanes of a warp; a NaN is passed over."""
    for k in range(5):
        other = cuda.shfl_xor_sync(0xFFFFFFFF, value, 16 >> k)
        value = other if other > value else value
    return value


# Three launches: the targets are counted and checked, each row makes its gradient and its loss, the losses are added.


@kernel(traffic="targets -> summary", registers=32, examples=[(10,)])
def cross_entropy_targets(classes: int) -> Launch:
    """summary[0]: rows that take part; summary[1]: the first whose target is no class, or n. One block."""

    def cross_entropy_targets(targets: Int64s, summary: Int64s, ignore_index: Int64, n: Int64):
        counts = cuda.shared.array(BLOCK, int64)
        firsts = cuda.shared.array(BLOCK, int64)
        thread = cuda.threadIdx.x
        count = int64(0)
        first = n
        for row in range(thread, n, BLOCK):
            target = targets[row]
            if target != ignore_index:
                count += 1
                if target < 0 or target >= classes:
                    first = min(first, row)
        counts[thread] = count
        firsts[thread] = first
        half = BLOCK // 2
        while half > 0:
            cuda.syncthreads()
            if thread < half:
                counts[thread] += counts[thread + half]
                firsts[thread] = min(firsts[thread], firsts[thread + half])
            half >>= 1
        if thread == 0:
            summary[0] = counts[0]
            summary[1] = firsts[0]

    return Launch(cross_entropy_targets, BLOCK, lambda: 1, lambda n: Cost(8 * n, 16))


@kernel(
    traffic="logits, targets, summary -> losses, dlogits",
    registers=48,
    examples=[(uint32, 10, 1, True), (uint32, 10, WARP, True), (int64, 1000, WARP, False)],
)
def cross_entropy_rows(index: Any, classes: int, lanes: int, mean: bool) -> Launch:
    """The loss and the gradient of each row, by one thread or by the 32 of a warp (`lanes`).

    The lanes of a warp read neighbouring logits; single threads read logits that lie a row apart.
    """
    rows = BLOCK // lanes  # of a block

    def cross_entropy_rows(
        logits: Floats,
        targets: Int64s,
        summary: Int64s,
        losses: Floats,
        dlogits: Floats,
        on: Float,
        off: Float,
        ignore_index: Int64,
        n: Int64,
    ):
        row = index(cuda.blockIdx.x * rows + cuda.threadIdx.x // lanes)
        lane = cuda.threadIdx.x % lanes
        if row < n:
            start = index(row * classes)
            target = targets[row]
            if target == ignore_index:
                for k in range(lane, classes, lanes):
                    dlogits[index(start + k)] = float32(0)
                if lane == 0:
                    losses[row] = float32(0)
            else:
                largest = -INFINITY
                for k in range(lane, classes, lanes):
                    value = logits[index(start + k)]
                    largest = value if value > largest else largest  # a NaN is passed over, and shows in the sum
                if lanes > 1:
                    largest = _warp_max(largest)

                total, lost = float32(0), float32(0)
                for k in range(lane, classes, lanes):
                    total, lost = _add(total, lost, math.exp(logits[index(start + k)] - largest))
                if lanes > 1:
                    total, lost = _warp_sum(total, lost)
                log_sum = math.log(total + lost)  # never added to the largest: beside a huge logit it would be lost

                scale = float32(1) / float32(summary[0]) if mean else float32(1)
                total, lost = float32(0), float32(0)
                for k in range(lane, classes, lanes):
                    i = index(start + k)
                    log_p = (logits[i] - largest) - log_sum
                    wanted = on if k == target else off
                    dlogits[i] = (math.exp(log_p) - wanted) * scale
                    if wanted > float32(0):  # 0 * log 0 is 0
                        total, lost = _add(total, lost, -wanted * log_p)
                if lanes > 1:
                    total, lost = _warp_sum(total, lost)
                if lane == 0:
                    losses[row] = _rounded(total, lost)

    def cost(n: int) -> Cost:
        return Cost(4 * n * classes + 8 * n + 8, 4 * n * classes + 4 * n, 7 * n * classes)

    return Launch(cross_entropy_rows, BLOCK, lambda n: blocks_for(n, rows), cost)


@kernel(traffic="losses, summary -> loss", registers=32, examples=[(True,), (False,)])
def cross_entropy_sum(mean: bool) -> Launch:
    """The rows' losses added, by one block in a fixed order. A target that is no class makes the sum NaN."""

    def cross_entropy_sum(losses: Floats, summary: Int64s, loss: Floats, n: Int64):
        totals = cuda.shared.array(BLOCK, float32)
        losts = cuda.shared.array(BLOCK, float32)
        thread = cuda.threadIdx.x
        total, lost = float32(0), float32(0)
        for row in range(thread, n, BLOCK):
            total, lost = _add(total, lost, losses[row])
        totals[thread] = total
        losts[thread] = lost
        half = BLOCK // 2
        while half > 0:
            cuda.syncthreads()
            if thread < half:
                total, lost = _add(totals[thread], losts[thread] + losts[thread + half], totals[thread + half])
                totals[thread] = total
                losts[thread] = lost
            half >>= 1
        if thread == 0:
            result = _rounded(totals[0], losts[0])
            if mean:
                result /= float32(summary[0])  # 0 / 0 is NaN
            loss[0] = NAN if summary[1] < n else result

    return Launch(cross_entropy_sum, BLOCK, lambda: 1, lambda n: Cost(4 * n + 16, 4, n))


@techniques("thread", "warp")
def cross_entropy(
    run: Runner,
    logits: DeviceArray,
    targets: DeviceArray,
    loss: DeviceArray,
    dlogits: DeviceArray,
    label_smoothing: float,
    ignore_index: int,
    reduction: str,
    *,
    check: bool = True,
    technique: str | None = None,
) -> None:
    """Launch on `run`.

    With `check` the host waits for the device's look at the targets, and nothing is written if one is no class. A CUDA
    graph cannot wait; without `check`, such a target makes the loss NaN.

    Raises:
        IndexError: A target is neither a class nor `ignore_index`.
        ShapeError: The arrays do not fit each other.
        ValueError: `reduction` is neither "mean" nor "sum", or `label_smoothing` not in [0, 1].
    """
    _check_reduction(reduction)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: label_smoothing is {label_smoothing}, expected a number from 0 to 1")
    if len(logits.shape) != 2 or logits.shape[1] == 0:
        raise ShapeError(f"cross_entropy: logits has shape {tuple(logits.shape)}, expected (n, classes)")
    n, classes = logits.shape
    require_shape("cross_entropy", "targets", targets, (n,))
    require_shape("cross_entropy", "loss", loss, ())
    same_shape("cross_entropy", logits=logits, dlogits=dlogits)

    mean, lanes = reduction == "mean", 1 if technique == "thread" else WARP
    summary, losses = run.empty((2,), np.int64), run.empty((n,))
    run(cross_entropy_targets(classes), targets, summary, ignore_index, n)
    if check and (row := int(summary[1])) < n:
        raise no_class(int(targets[row]), row, classes, ignore_index)
    off = label_smoothing / classes
    rows = cross_entropy_rows(index_type(logits.size), classes, lanes, mean)
    run(rows, logits, targets, summary, losses, dlogits, 1 - label_smoothing + off, off, ignore_index, n)
    run(cross_entropy_sum(mean), losses, summary, loss, n)
