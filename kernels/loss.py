"""Softmax cross-entropy with its gradient.

Of a row of logits z with target t among C classes, label smoothing s, class weights w (all 1 unless given):

    p    = exp(z - max z) / sum(exp(z - max z))
    q    = ((1 - s) * onehot(t) + s / C) * w
    loss = -sum(q * log p)
    dz   = sum(q) * p - q

Rows whose target is `ignore_index` take no part. `reduction` "none" gives each row's own loss and gradient, "sum" adds
the losses, "mean" divides their sum and the gradient by the sum of w[t] over the rows that take part: by their number
where there are no weights.

Shapes   logits, dlogits (n, C); targets (n,) int64; weight (C,), finite and not negative, or None; loss () of the
         logits' dtype, or (n,) with reduction "none"; on the device float32.
Traffic  reads logits and targets once and writes dlogits once; the later looks at a row find it in cache.
Edges    No row takes part (all ignored, or n = 0): the mean is NaN and the sum 0, the gradient 0 for both. Where all
         that take part have targets of weight 0, the mean is NaN and so are their gradients. Logits of any finite size
         are safe. A logit of -inf has p = 0; with smoothing, or as the target, its loss is inf. NaN, +inf or all -inf
         in a row make that row's loss and gradient NaN (all PyTorch's rules). What is not PyTorch's: the loss and the
         gradient of an ignored row are 0 whatever it holds (there its gradient is NaN where the row is), and so is the
         share of a class of weight 0, even at a logit of -inf (there NaN).
Source   label smoothing: C. Szegedy et al., "Rethinking the Inception Architecture", 2016, arXiv:1512.00567, section 7.
"""

import math
from typing import Any

import numpy as np
from numba import cuda, float32, int64, uint32
from numpy.typing import NDArray

from kernels import loss_fused
from kernels.choice import choose
from kernels.device import WARP, index_type, inlined
from kernels.errors import ShapeError, require_shape, same_shape
from kernels.launch import Array as DeviceArray
from kernels.launch import Cost, Float, Floats, Int64, Int64s, Launch, Runner, blocks_for, kernel, techniques
from kernels.reductions import INFINITY, add, rounded, warp_max, warp_sum
from kernels.targets import check_targets, no_class
from kernels.targets_reader import targets_reader

Array = NDArray[Any]
BLOCK = 256
NAN = np.float32(np.nan)
REDUCTIONS = "mean", "sum", "none"


@np.errstate(invalid="ignore", over="ignore", divide="ignore")
def cross_entropy_reference(
    logits: Array,
    targets: NDArray[np.int64],
    label_smoothing: float,
    ignore_index: int,
    reduction: str,
    weight: Array | None = None,
) -> tuple[Any, Array]:
    """(loss, dlogits).

    Raises:
        IndexError: A target is neither a class nor `ignore_index`.
        ValueError: `reduction` is none of "mean", "sum" and "none".
    """
    _check_reduction(reduction)
    classes = logits.shape[1]
    check_targets(targets, classes, ignore_index)

    counted = targets != ignore_index
    onehot = targets[:, None] == np.arange(classes)
    q = ((1 - label_smoothing) * onehot + label_smoothing / classes).astype(logits.dtype)
    mass, divisor = 1, counted.sum(dtype=logits.dtype)
    if weight is not None:
        q = q * weight
        mass, divisor = q.sum(axis=1, keepdims=True), weight[targets[counted]].sum()

    shifted = logits - logits.max(axis=1, keepdims=True)  # the largest exponential is 1: none overflows
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    losses = -np.where((q != 0) | np.isnan(log_p), q * log_p, 0).sum(axis=1)  # 0 * log 0 is 0
    losses = np.where(counted, losses, 0)
    dlogits = np.where(counted[:, None], mass * np.exp(log_p) - q, 0)
    if reduction == "none":
        return losses, dlogits

    loss = losses[counted].sum()
    if reduction == "mean":
        divisor = divisor if divisor != 0 else np.nan
        loss = loss / divisor
        dlogits = np.where(counted[:, None], dlogits / divisor, 0)
    return loss, dlogits


def _check_reduction(reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f'cross_entropy: reduction {reduction!r} is not known; use "mean", "sum" or "none"')


# Three launches: the targets are counted and checked, each row makes its gradient and its loss, the losses are added.


@kernel(traffic="targets, weight -> first, divisor", registers=32, examples=[(10, False), (10, True)])
def cross_entropy_targets(classes: int, weighted: bool) -> Launch:
    """first[0]: the first row whose target is no class, or n; divisor[0]: what a mean is divided by. One block.

    That is how many rows take part, or the sum of their targets' weights; NaN where it would be 0.
    """
    read_targets = targets_reader(BLOCK, classes, weighted)

    def cross_entropy_targets(
        targets: Int64s, weight: Floats, first: Int64s, divisor: Floats, ignore_index: Int64, n: Int64
    ):
        totals = cuda.shared.array(BLOCK, float32)
        losts = cuda.shared.array(BLOCK, float32)
        firsts = cuda.shared.array(BLOCK, int64)
        thread = cuda.threadIdx.x
        read_targets(targets, weight, ignore_index, n, totals, losts, firsts)
        if thread == 0:
            first[0] = firsts[0]
            result = rounded(totals[0], losts[0])
            divisor[0] = result if result != float32(0) else NAN

    def cost(n: int) -> Cost:
        return Cost((12 if weighted else 8) * n, 12)

    return Launch(cross_entropy_targets, BLOCK, lambda: 1, cost)


@kernel(
    traffic="logits, targets, weight, divisor -> losses, dlogits",
    registers=56,
    examples=[
        (uint32, 10, 1, True, False),
        (uint32, 10, WARP, True, False),
        (uint32, 10, WARP, True, True),
        (int64, 1000, WARP, False, False),
        (int64, 1000, 1, False, True),
    ],
)
def cross_entropy_rows(index: Any, classes: int, lanes: int, mean: bool, weighted: bool) -> Launch:
    """The loss and the gradient of each row, by one thread or by the 32 of a warp (`lanes`).

    The lanes of a warp read neighbouring logits; single threads read logits that lie a row apart. Where its target is
    no class, a row's loss is NaN.
    """
    rows = BLOCK // lanes  # of a block

    @inlined
    def share(k, target, on, off, weight):
        """Class k's part of q."""
        wanted = on if k == target else off
        return wanted * weight[k] if weighted else wanted

    def cross_entropy_rows(
        logits: Floats,
        targets: Int64s,
        weight: Floats,
        divisor: Floats,
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
                    largest = warp_max(largest)

                total, lost = float32(0), float32(0)
                for k in range(lane, classes, lanes):
                    total, lost = add(total, lost, math.exp(logits[index(start + k)] - largest))
                if lanes > 1:
                    total, lost = warp_sum(total, lost)
                log_sum = math.log(total + lost)  # never added to the largest: beside a huge logit it would be lost

                mass = float32(1)  # the sum of q
                if weighted:
                    total, lost = float32(0), float32(0)
                    for k in range(lane, classes, lanes):
                        total, lost = add(total, lost, share(k, target, on, off, weight))
                    if lanes > 1:
                        total, lost = warp_sum(total, lost)
                    mass = total + lost

                scale = float32(1) / divisor[0] if mean else float32(1)
                total, lost = float32(0), float32(0)
                for k in range(lane, classes, lanes):
                    i = index(start + k)
                    log_p = (logits[i] - largest) - log_sum
                    wanted = share(k, target, on, off, weight)
                    dlogits[i] = (mass * math.exp(log_p) - wanted) * scale
                    if wanted != float32(0) or math.isnan(log_p):  # 0 * log 0 is 0
                        total, lost = add(total, lost, -wanted * log_p)
                if lanes > 1:
                    total, lost = warp_sum(total, lost)
                if lane == 0:
                    losses[row] = NAN if target < 0 or target >= classes else rounded(total, lost)

    def cost(n: int) -> Cost:
        once = (4 * classes if weighted else 0) + (4 if mean else 0)
        return Cost(4 * n * classes + 8 * n + once, 4 * n * classes + 4 * n, (10 if weighted else 7) * n * classes)

    return Launch(cross_entropy_rows, BLOCK, lambda n: blocks_for(n, rows), cost)


@kernel(traffic="losses, divisor -> loss", registers=32, examples=[(True,), (False,)])
def cross_entropy_sum(mean: bool) -> Launch:
    """The rows' losses added, by one block in a fixed order."""

    def cross_entropy_sum(losses: Floats, divisor: Floats, loss: Floats, n: Int64):
        totals = cuda.shared.array(BLOCK, float32)
        losts = cuda.shared.array(BLOCK, float32)
        thread = cuda.threadIdx.x
        total, lost = float32(0), float32(0)
        for row in range(thread, n, BLOCK):
            total, lost = add(total, lost, losses[row])
        totals[thread] = total
        losts[thread] = lost
        half = BLOCK // 2
        while half > 0:
            cuda.syncthreads()
            if thread < half:
                total, lost = add(totals[thread], losts[thread] + losts[thread + half], totals[thread + half])
                totals[thread] = total
                losts[thread] = lost
            half >>= 1
        if thread == 0:
            result = rounded(totals[0], losts[0])
            loss[0] = result / divisor[0] if mean else result

    return Launch(cross_entropy_sum, BLOCK, lambda: 1, lambda n: Cost(4 * n + (4 if mean else 0), 4, n))


@techniques("thread", "warp", "fused")
def cross_entropy(
    run: Runner,
    logits: DeviceArray,
    targets: DeviceArray,
    loss: DeviceArray,
    dlogits: DeviceArray,
    label_smoothing: float,
    ignore_index: int,
    reduction: str,
    weight: DeviceArray | None = None,
    *,
    check: bool = True,
    technique: str | None = None,
) -> None:
    """Launch on `run`: once for a small batch ("fused", loss_fused.py), else three times.

    With `check` the host waits for the device's look at the targets, and nothing is written if one is no class. A CUDA
    graph cannot wait; without `check`, such a target makes the loss NaN.

    Raises:
        IndexError: A target is neither a class nor `ignore_index`.
        ShapeError: The arrays do not fit each other.
        ValueError: `reduction` is none of "mean", "sum" and "none", or `label_smoothing` not in [0, 1].
    """
    _check_reduction(reduction)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: label_smoothing is {label_smoothing}, expected a number from 0 to 1")
    if len(logits.shape) != 2 or logits.shape[1] == 0:
        raise ShapeError(f"cross_entropy: logits has shape {tuple(logits.shape)}, expected (n, classes)")
    n, classes = logits.shape
    require_shape("cross_entropy", "targets", targets, (n,))
    require_shape("cross_entropy", "loss", loss, (n,) if reduction == "none" else ())
    same_shape("cross_entropy", logits=logits, dlogits=dlogits)
    if weight is not None:
        require_shape("cross_entropy", "weight", weight, (classes,))

    fused = loss_fused.option(n, classes, reduction != "none", getattr(run, "chip", None))
    options = fused, ("warp", True, "32 threads for each row"), ("thread", True, "")
    technique = choose(run, "cross_entropy", technique, options, logits=logits)
    off = label_smoothing / classes
    on = 1 - label_smoothing + off
    if technique == loss_fused.NAME:
        numbers = on, off, ignore_index, check
        first = loss_fused.launch(run, logits, targets, weight, loss, dlogits, numbers, reduction)
        if check and (row := int(first[0])) < n:
            raise no_class(int(targets[row]), row, classes, ignore_index)
        return
    mean, lanes, weighted = reduction == "mean", 1 if technique == "thread" else WARP, weight is not None
    weight = run.empty((0,)) if weight is None else weight
    first, divisor = run.empty((1,), np.int64), run.empty((1,))
    run(cross_entropy_targets(classes, weighted), targets, weight, first, divisor, ignore_index, n)
    if check and (row := int(first[0])) < n:
        raise no_class(int(targets[row]), row, classes, ignore_index)
    losses = loss if reduction == "none" else run.empty((n,))
    rows = cross_entropy_rows(index_type(logits.size), classes, lanes, mean, weighted)
    run(rows, logits, targets, weight, divisor, losses, dlogits, on, off, ignore_index, n)
    if reduction != "none":
        run(cross_entropy_sum(mean), losses, divisor, loss, n)
