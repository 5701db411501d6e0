"""Softmax cross-entropy of a small batch in one launch; for maths, shapes and edges see loss.py.

Three small launches cost more than what they compute. So here each block looks at all targets, in the same order, and
knows by itself whether one is no class and what a mean is divided by. It makes its rows, a few neighbouring lanes of a
warp each, and where the losses are added, the first block does that behind a barrier of the grid, in an order that
depends on the number of rows alone.

Traffic  logits once and dlogits once, of few classes through shared memory, where the rows of a block lie one after the
         other; targets once for each block.
"""

import math
from typing import Any

import numpy as np
from numba import cuda, float32, int64, uint32

from kernels.chip import Chip
from kernels.choice import Option
from kernels.device import WARP, index_type, inlined
from kernels.grid_barrier import grid_barrier
from kernels.launch import Array, Cost, Float, Floats, Int64, Int64s, Launch, Runner, UInt32s, blocks_for, kernel
from kernels.reductions import INFINITY, add, rounded
from kernels.sums import sum_by_block
from kernels.targets_reader import targets_reader

NAME = "fused"
BLOCK = 256
NAN = np.float32(np.nan)
MOST_ROWS = 4096  # whose targets each block looks at
BLOCKS = 64  # at most: they wait for each other, so all must have room at once
RESIDENT = 2  # blocks that a multiprocessor has room for
PASSES = 2  # of a block over rows, at most
EACH, MANY = 4, 8  # classes of a lane, about, and at most: unless there are more than a warp has room for
HELD = 16  # classes that a lane keeps in registers, at most
STAGED = 2048  # logits that a block brings to shared memory at once, at most


def lanes_for(classes: int) -> int:
    """Lanes of a warp that share a row: a power of 2.

    Where it is an odd number of times in a row, the rows of a warp begin in different banks of shared memory.
    """
    odd = classes & -classes  # the power of 2 of which that is so
    if classes <= MANY * odd and odd <= WARP:
        return odd
    return min(WARP, 1 << (blocks_for(classes, EACH) - 1).bit_length())


def blocks_of(n: int, classes: int) -> int:
    """That share n rows."""
    return max(1, min(BLOCKS, blocks_for(n * lanes_for(classes), BLOCK)))


def option(n: int, classes: int, added: bool, chip: Chip | None) -> Option:
    """This technique among those to choose from; `added` is whether the rows' losses are."""
    most = min(MOST_ROWS, PASSES * BLOCKS * BLOCK // lanes_for(classes))
    if n > most:
        return NAME, False, f"{n:,} rows of {classes:,} classes, {NAME} takes at most {most:,}"
    blocks = blocks_of(n, classes)
    if added and chip is not None and blocks > RESIDENT * chip.multiprocessors:
        return NAME, False, f"{blocks} blocks that wait for each other, this GPU has room for fewer"
    return NAME, True, f"one launch for {n:,} row{'' if n == 1 else 's'}"


@kernel(
    traffic="logits, targets, weight, losses, state -> first, losses, loss, dlogits, state",
    partial="losses, loss, dlogits, state",
    registers=96,  # room for RESIDENT blocks
    examples=[
        (uint32, 10, "mean", False, False),
        (uint32, 10, "mean", False, True),
        (uint32, 10, "mean", True, True),
        (uint32, 1000, "sum", True, True),
        (uint32, 100, "none", True, True),
        (int64, 37, "sum", False, True),
    ],
)
def cross_entropy_fused(index: Any, classes: int, reduction: str, weighted: bool, several: bool) -> Launch:
    """All of it. Unless `check` is 0, nothing but `first` is written where a target is no class.

    first[0] is the first row of which that is so, or n; `losses` those of the rows. `several` blocks wait for each
    other, where `reduction` has them add up.
    """
    lanes, mean, adds = lanes_for(classes), reduction == "mean", reduction != "none"
    rows, steps, halvings = BLOCK // lanes, blocks_for(classes, lanes), lanes.bit_length() - 1
    staged, held = rows * classes <= STAGED, steps <= HELD
    size, values_size = rows * classes if staged else 1, steps if held else 1
    waits = adds and several
    read_targets = targets_reader(BLOCK, classes, weighted)

    @inlined
    def lanes_max(value):
        for k in range(halvings):
            other = cuda.shfl_xor_sync(0xFFFFFFFF, value, lanes >> (k + 1))
            value = other if other > value else value  # a NaN is passed over, and shows in the sum
        return value

    @inlined
    def lanes_sum(total, lost):
        for k in range(halvings):
            other = cuda.shfl_xor_sync(0xFFFFFFFF, total, lanes >> (k + 1))
            lost += cuda.shfl_xor_sync(0xFFFFFFFF, lost, lanes >> (k + 1))
            total, lost = add(total, lost, other)
        return total, lost

    @inlined
    def share(k, target, on, off, weight):
        wanted = on if k == target else off
        return wanted * weight[k] if weighted else wanted

    def cross_entropy(
        logits: Floats, targets: Int64s, weight: Floats, losses: Floats, state: UInt32s, first: Int64s, loss: Floats,
        dlogits: Floats, on: Float, off: Float, ignore_index: Int64, check: Int64, n: Int64,
    ):  # fmt: skip
        totals = cuda.shared.array(BLOCK, float32)
        losts = cuda.shared.array(BLOCK, float32)
        firsts = cuda.shared.array(BLOCK, int64)
        memory = cuda.shared.array(size, float32)
        values = cuda.local.array(values_size, float32)
        thread = cuda.threadIdx.x
        read_targets(targets, weight, ignore_index, n, totals, losts, firsts)
        cuda.syncthreads()
        bad, divisor = firsts[0], rounded(totals[0], losts[0])
        divisor = divisor if divisor != float32(0) else NAN
        if thread == 0 and cuda.blockIdx.x == 0:
            first[0] = bad
        if check == 0 or bad == n:
            scale = float32(1) / divisor if mean else float32(1)
            lane = thread % lanes
            turns = steps if held else (classes - lane + lanes - 1) // lanes  # a long loop is not unrolled
            for base in range(cuda.blockIdx.x * rows, n, cuda.gridDim.x * rows):
                count = min(rows, n - base) * classes
                if staged:
                    cuda.syncthreads()
                    for e in range(thread, count, BLOCK):
                        memory[e] = logits[index(base * classes + e)]
                    cuda.syncthreads()
                row = base + min(thread // lanes, n - base - 1)  # those beyond the last repeat it, and write nothing
                exists = row == base + thread // lanes
                target = targets[row]
                counted = target != ignore_index
                start = index(row * classes)
                kept = (row - base) * classes
                largest = -INFINITY
                for step in range(turns):
                    k = lane + step * lanes
                    if k < classes:
                        value = memory[kept + k] if staged else logits[index(start + k)]
                        if held:
                            values[step] = value
                        largest = value if value > largest else largest
                largest = lanes_max(largest)

                total, lost = float32(0), float32(0)
                for step in range(turns):
                    k = lane + step * lanes
                    if k < classes:
                        value = values[step] if held else logits[index(start + k)]
                        total, lost = add(total, lost, math.exp(value - largest))
                total, lost = lanes_sum(total, lost)
                log_sum = math.log(total + lost)  # never added to the largest: beside a huge logit it would be lost

                mass = float32(1)  # the sum of q
                if weighted:
                    total, lost = float32(0), float32(0)
                    for step in range(turns):
                        k = lane + step * lanes
                        if k < classes:
                            total, lost = add(total, lost, share(k, target, on, off, weight))
                    total, lost = lanes_sum(total, lost)
                    mass = total + lost

                if staged:
                    cuda.syncthreads()  # lanes beyond the last row have read there too
                total, lost = float32(0), float32(0)
                for step in range(turns):
                    k = lane + step * lanes
                    if k < classes:
                        value = values[step] if held else logits[index(start + k)]
                        log_p = (value - largest) - log_sum
                        wanted = share(k, target, on, off, weight)
                        gradient = (mass * math.exp(log_p) - wanted) * scale if counted else float32(0)
                        if exists:
                            if staged:
                                memory[kept + k] = gradient
                            else:
                                dlogits[index(start + k)] = gradient
                        if wanted != float32(0) or math.isnan(log_p):  # 0 * log 0 is 0
                            total, lost = add(total, lost, -wanted * log_p)
                total, lost = lanes_sum(total, lost)
                if lane == 0 and exists:
                    value = NAN if target < 0 or target >= classes else rounded(total, lost)
                    losses[row] = value if counted else float32(0)
                if staged:
                    cuda.syncthreads()
                    for e in range(thread, count, BLOCK):
                        dlogits[index(base * classes + e)] = memory[e]
            if adds:
                if waits:
                    grid_barrier(state)
                else:
                    cuda.syncthreads()
                if cuda.blockIdx.x == 0:
                    result = sum_by_block(thread, losses, 0, n, totals, losts)
                    if thread == 0:
                        loss[0] = result / divisor if mean else result

    def cost(n: int) -> Cost:
        once = 4 * classes if weighted else 0
        result = 4 if adds else 0
        return Cost(
            4 * n * classes + 8 * n + once, 4 * n * classes + 4 * n + 8 + result, (10 if weighted else 7) * n * classes
        )

    return Launch(cross_entropy, BLOCK, lambda n: blocks_of(n, classes), cost, cooperative=waits)


def launch(
    run: Runner,
    logits: Array,
    targets: Array,
    weight: Array | None,
    loss: Array,
    dlogits: Array,
    numbers: tuple[float, float, int, bool],
    reduction: str,
) -> Array:
    """Launch on `run`, where `option` says that it can; returns `first`. `numbers` are on, off, ignore_index, check."""
    n, classes = logits.shape
    several, adds = blocks_of(n, classes) > 1, reduction != "none"
    first = run.empty((1,), np.int64)
    losses, total = (run.empty((n,)), loss) if adds else (loss, run.empty((0,)))
    state = run.barrier() if several and adds else run.empty((0,), np.uint32)
    given = run.empty((0,)) if weight is None else weight
    chosen = cross_entropy_fused(index_type(logits.size), classes, reduction, weight is not None, several and adds)
    on, off, ignore_index, check = numbers
    run(chosen, logits, targets, given, losses, state, first, total, dlogits, on, off, ignore_index, int(check), n)
    return first
