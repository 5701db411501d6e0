"""What is noted beside the gradient: the loss and how many answers are correct; and whether numbers are finite.

    append_result   losses[count] = loss, corrects[count] = rows with the largest logit at their target; count + 1

A log on the device, which the host reads now and then: no step waits for it, and a captured one appends in each replay.

Shapes   logits (n, C); targets (n,) int64; loss (); count () int64; losses (N,) and corrects (N,) int64 with room for
         one more; x any shape. On the device float32, x stored as kernels/storage.py says; C-contiguous.
Traffic  each reads its inputs once.
Edges    The first of equal logits leads. A row with a NaN is not correct, nor is one whose target is no class. An empty
         array is finite.
"""

from typing import Any

import numpy as np
from numba import cuda, float32, int32, int64, uint32
from numpy.typing import NDArray

from kernels.choice import choose, vectors
from kernels.device import WARP, index_type, inlined
from kernels.errors import ShapeError, require_shape
from kernels.launch import Array as DeviceArray
from kernels.launch import Cost, Floats, Int32s, Int64, Int64s, Launch, Runner, blocks_for, kernel, techniques
from kernels.storage import BFLOAT16, FLOAT16, FLOAT32, Storage, common_storage

Array = NDArray[Any]
BLOCK = 256
CHUNK = 16 * BLOCK  # elements that a block looks at
INFINITY = np.float32(np.inf)


def count_correct_reference(logits: Array, targets: NDArray[np.int64]) -> np.int64:
    """By definition: rows whose largest logit, the first of equals, is at their target; none with a NaN."""
    rows = np.arange(len(logits))
    best = logits.argmax(axis=1)  # the first NaN, where there is one
    return np.int64(((best == targets) & ~np.isnan(logits[rows, best])).sum())


def all_finite_reference(x: Array) -> bool:
    """Whether x, of any shape, holds neither NaN nor infinity."""
    return bool(np.isfinite(x).all())


def append_result_reference(
    logits: Array,
    targets: NDArray[np.int64],
    loss: Any,
    count: NDArray[np.int64],
    losses: Array,
    corrects: NDArray[np.int64],
) -> None:
    """In place."""
    losses[count], corrects[count] = loss, count_correct_reference(logits, targets)
    count += 1


# A block counts its threads by a barrier, exactly. A small batch is one block's; of a large one, a second launch adds
# the blocks' counts.

FEW = 512  # rows that one block looks at


@inlined
def _leads(logits, targets, row, lane, n, index, classes, lanes):
    """Whether the row is correct; all lanes of a warp ask together."""
    leads = False
    if row < n:
        target = targets[row]
        if target >= 0 and target < classes:
            start = index(row * classes)
            best = logits[index(start + target)]
            leads = True
            for k in range(lane, classes, lanes):
                value = logits[index(start + k)]
                # Written so that a NaN on either side counts as not leading.
                ahead = best >= value if k >= target else best > value
                leads = leads and ahead
            if lanes > 1:
                leads = cuda.all_sync(0xFFFFFFFF, leads)
    return leads


@kernel(
    traffic="logits, targets, loss, count -> count, losses, corrects",
    partial="count, losses, corrects",
    registers=40,
    examples=[(uint32, 10), (int64, 999)],
)
def append_result_of_block(index: Any, classes: int) -> Launch:
    """All of it by one block, a row a thread."""

    def append_result(
        logits: Floats, targets: Int64s, loss: Floats, count: Int64s, losses: Floats, corrects: Int64s, n: Int64
    ):
        correct = int64(0)
        for first in range(0, n, BLOCK):
            row = index(first + cuda.threadIdx.x)
            correct += cuda.syncthreads_count(int32(_leads(logits, targets, row, 0, n, index, classes, 1)))
        if cuda.threadIdx.x == 0:
            place = count[0]
            losses[place] = loss[0]
            corrects[place] = correct
            count[0] = place + 1

    return Launch(append_result, BLOCK, lambda: 1, lambda n: Cost(4 * n * classes + 8 * n + 12, 20))


@kernel(
    traffic="counts, loss, count -> count, losses, corrects",
    partial="count, losses, corrects",
    registers=32,
    examples=[()],
)
def append_result_of_blocks() -> Launch:
    """The same from what each block has counted. One block."""

    def append_result(counts: Int32s, loss: Floats, count: Int64s, losses: Floats, corrects: Int64s, n: Int64):
        sums = cuda.shared.array(BLOCK, int64)
        thread = cuda.threadIdx.x
        sums[thread] = int64(0)
        for i in range(thread, n, BLOCK):
            sums[thread] += counts[i]
        half = BLOCK // 2
        while half > 0:
            cuda.syncthreads()
            if thread < half:
                sums[thread] += sums[thread + half]
            half >>= 1
        if thread == 0:
            place = count[0]
            losses[place] = loss[0]
            corrects[place] = sums[0]
            count[0] = place + 1

    return Launch(append_result, BLOCK, lambda: 1, lambda n: Cost(4 * n + 12, 20))


@kernel(
    traffic="logits, targets -> counts", registers=32, examples=[(uint32, 10, 1), (uint32, 10, 32), (int64, 999, 32)]
)
def count_correct_rows(index: Any, classes: int, lanes: int) -> Launch:
    """counts: each block's correct rows, looked at by one thread or by the 32 of a warp (`lanes`)."""
    rows = BLOCK // lanes  # of a block

    def count_correct_rows(logits: Floats, targets: Int64s, counts: Int32s, n: Int64):
        row = index(cuda.blockIdx.x * rows + cuda.threadIdx.x // lanes)
        lane = cuda.threadIdx.x % lanes
        leads = _leads(logits, targets, row, lane, n, index, classes, lanes)
        correct = cuda.syncthreads_count(int32(leads and lane == 0))
        if cuda.threadIdx.x == 0:
            counts[cuda.blockIdx.x] = correct

    def cost(n: int) -> Cost:
        return Cost(4 * n * classes + 8 * n, 4 * blocks_for(n, rows))

    return Launch(count_correct_rows, BLOCK, lambda n: blocks_for(n, rows), cost)


@inlined
def _not_finite(value):
    return not abs(value) < INFINITY


@kernel(traffic="x -> counts", registers=40, examples=[(uint32, FLOAT32), (uint32, BFLOAT16), (int64, FLOAT16)])
def count_not_finite_scalar(index: Any, storage: Storage) -> Launch:
    """counts: each block's threads that met a NaN or an infinity."""
    stored: Any = storage.pointer
    load, size = storage.load, storage.bytes

    def count_not_finite(x: stored, counts: Int32s, n: Int64):
        start = cuda.blockIdx.x * CHUNK + cuda.threadIdx.x
        met = False
        for k in range(CHUNK // BLOCK):
            i = index(start + k * BLOCK)
            if i < n:
                met |= _not_finite(load(x, i))
        count = cuda.syncthreads_count(int32(met))
        if cuda.threadIdx.x == 0:
            counts[cuda.blockIdx.x] = count

    return Launch(
        count_not_finite, BLOCK, lambda n: blocks_for(n, CHUNK), lambda n: Cost(size * n, 4 * blocks_for(n, CHUNK), n)
    )


@kernel(
    traffic="x -> counts",
    registers=40,
    instructions=("LDG.E.128",),
    examples=[(uint32, FLOAT32), (int64, FLOAT32), (uint32, BFLOAT16), (int64, FLOAT16)],
)
def count_not_finite_vector(index: Any, storage: Storage) -> Launch:
    """The same, with loads of 16 bytes; x aligned to that."""
    stored: Any = storage.pointer
    wide, load, load_wide, size = storage.wide, storage.load, storage.load_wide, storage.bytes
    tail = wide - 1

    def count_not_finite(x: stored, counts: Int32s, n: Int64):
        values = cuda.local.array(wide, float32)
        start = cuda.blockIdx.x * CHUNK + wide * cuda.threadIdx.x
        met = False
        for k in range(CHUNK // (wide * BLOCK)):
            first = index(start + k * wide * BLOCK)
            if first + tail < n:
                load_wide(x, first, values)
                for j in range(wide):
                    met |= _not_finite(values[j])
            else:
                for i in range(first, n):  # at most `tail` elements
                    met |= _not_finite(load(x, i))
        count = cuda.syncthreads_count(int32(met))
        if cuda.threadIdx.x == 0:
            counts[cuda.blockIdx.x] = count

    return Launch(
        count_not_finite, BLOCK, lambda n: blocks_for(n, CHUNK), lambda n: Cost(size * n, 4 * blocks_for(n, CHUNK), n)
    )


@kernel(traffic="counts -> total", registers=32, examples=[()])
def add_counts() -> Launch:
    """total[0]: the sum of counts. One block."""

    def add_counts(counts: Int32s, total: Int64s, n: Int64):
        sums = cuda.shared.array(BLOCK, int64)
        thread = cuda.threadIdx.x
        sums[thread] = int64(0)
        for i in range(thread, n, BLOCK):
            sums[thread] += counts[i]
        half = BLOCK // 2
        while half > 0:
            cuda.syncthreads()
            if thread < half:
                sums[thread] += sums[thread + half]
            half >>= 1
        if thread == 0:
            total[0] = sums[0]

    return Launch(add_counts, BLOCK, lambda: 1, lambda n: Cost(4 * n, 8))


@techniques("thread", "warp", "block")
def append_result(
    run: Runner,
    logits: DeviceArray,
    targets: DeviceArray,
    loss: DeviceArray,
    count: DeviceArray,
    losses: DeviceArray,
    corrects: DeviceArray,
    *,
    technique: str | None = None,
) -> None:
    """Launch on `run`. That there is room is the caller's affair: the count lies on the device.

    Up to FEW rows are one launch, of one block; more are two, by "warp". Raises ShapeError unless the arrays fit each
    other.
    """
    if len(logits.shape) != 2:
        raise ShapeError(f"append_result: logits has shape {tuple(logits.shape)}, expected (n, classes)")
    n, classes = logits.shape
    require_shape("append_result", "targets", targets, (n,))
    require_shape("append_result", "loss", loss, ())
    require_shape("append_result", "count", count, ())
    if len(losses.shape) != 1:
        raise ShapeError(f"append_result: losses has shape {tuple(losses.shape)}, expected (N,)")
    require_shape("append_result", "corrects", corrects, tuple(losses.shape))
    block = "block", True, lambda: f"{n} rows, of which one block takes up to {FEW}"
    warp = "warp", True, lambda: f"{n} rows, more than the {FEW} that one block takes"
    options = (block, warp) if n <= FEW else (warp, block)
    technique = choose(run, "append_result", technique, (*options, ("thread", True, "")), logits=logits)
    if technique == "block":
        one = append_result_of_block(index_type(logits.size), classes)
        run(one, logits, targets, loss, count, losses, corrects, n)
        return
    lanes = 1 if technique == "thread" else WARP
    blocks = blocks_for(n * lanes, BLOCK)
    counts = run.empty((blocks,), np.int32)
    run(count_correct_rows(index_type(logits.size), classes, lanes), logits, targets, counts, n)
    run(append_result_of_blocks(), counts, loss, count, losses, corrects, blocks)


@techniques("scalar", "vector")
def all_finite(run: Runner, x: DeviceArray, *, technique: str | None = None) -> bool:
    """Launch on `run` and wait for the answer, of an x in any storage.

    The vector technique takes an x that starts at a multiple of 16 bytes; asked for another it raises TechniqueError.
    """
    storage = common_storage("all_finite", x=x)
    vector = vectors(run, "all_finite", technique, {}, storage.wide, x=x)
    factory = count_not_finite_vector if vector else count_not_finite_scalar
    blocks = blocks_for(x.size, CHUNK)
    counts, total = run.empty((blocks,), np.int32), run.empty((), np.int64)
    run(factory(index_type(x.size), storage), x, counts, x.size)
    run(add_counts(), counts, total, blocks)
    return int(total) == 0
