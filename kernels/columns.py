"""Column sums of a matrix: the bias gradient, and the end of every product that is summed in slices.

    sums[c] = sum over rows r of  x[r, c]

Shapes   x (rows, c), stored in any way (kernels/storage.py), C-contiguous; sums (c,) float32.
Work     rows * c additions.
Traffic  reads x once and writes sums once, but for partial sums: at most 1/128 of x.
Order    A thread adds at most 128 rows in four accumulators, a block adds its threads' sums as a tree, and further
         launches add the blocks' sums in the same way. The order depends on the shape alone, so the bits do too, and
         no accumulator takes more than 32 terms in a row.
Edges    NaN and infinity follow the sums. No rows: sums = 0.
"""

from typing import Any

from numba import cuda, float32, int64, uint32

from kernels.device import index_type
from kernels.errors import ShapeError
from kernels.launch import Array, Cost, Floats, Int64, Launch, Runner, blocks_for, kernel
from kernels.storage import BFLOAT16, FLOAT16, FLOAT32, Storage, storage_of

BLOCK = 256
FEW, MANY = 32, 128  # rows a thread adds: as few as fill the GPU, within these limits
ENOUGH = 512  # blocks that fill a GPU
EXAMPLES = [
    (32, uint32, FLOAT32), (1, uint32, FLOAT32), (32, int64, FLOAT32), (32, uint32, BFLOAT16), (8, int64, FLOAT16)
]  # fmt: skip


@kernel(traffic="x -> sums", registers=48, examples=EXAMPLES)
def sum_columns_of_chunks(width: int, index: type, storage: Storage) -> Launch:
    """`width` columns of one chunk of the rows a block, in x the columns first.

    Neighbouring threads read neighbouring columns. The rows that they read at once are `BLOCK / width`, so few columns
    leave no thread without work.
    """
    stored: Any = storage.pointer
    load, size = storage.load, storage.bytes
    lanes = BLOCK // width

    def sum_columns(x: stored, sums: Floats, rows: Int64, columns: Int64, chunk: Int64):
        partial = cuda.shared.array(BLOCK, float32)
        thread = cuda.threadIdx.x
        block = uint32(cuda.blockIdx.x)
        across = uint32((columns + width - 1) // width)
        number = block // across
        column = block % across * width + thread % width
        lane = thread // width
        stop = min((number + 1) * chunk, rows)
        a = b = c = d = float32(0)
        if column < columns:
            for row in range(number * chunk + lane, stop, 4 * lanes):  # four loads under way at once
                a += load(x, index(row * columns + column))
                if row + lanes < stop:
                    b += load(x, index((row + lanes) * columns + column))
                if row + 2 * lanes < stop:
                    c += load(x, index((row + 2 * lanes) * columns + column))
                if row + 3 * lanes < stop:
                    d += load(x, index((row + 3 * lanes) * columns + column))
        partial[thread] = (a + b) + (c + d)
        cuda.syncthreads()
        half = lanes // 2
        while half > 0:
            if lane < half:
                partial[thread] += partial[thread + half * width]
            cuda.syncthreads()
            half //= 2
        if lane == 0 and column < columns:
            sums[index(number * columns + column)] = partial[thread]

    return Launch(
        sum_columns,
        block=BLOCK,
        grid=lambda rows, columns, chunk: max(1, blocks_for(rows, chunk)) * blocks_for(columns, width),
        cost=lambda rows, columns, chunk: Cost(
            size * rows * columns, 4 * max(1, blocks_for(rows, chunk)) * columns, rows * columns
        ),
    )


def sum_columns(run: Runner, x: Array, sums: Array) -> None:
    """Write into `sums` (c elements, of any shape) the sum of the rows of x (..., c). Launch on `run`.

    x may be stored in 16 bits; `sums` is float32.
    """
    columns = sums.size
    rows = x.size // columns if columns else 0
    width = min(32, 1 << (columns - 1).bit_length()) if columns else 1
    lanes, across = BLOCK // width, blocks_for(columns, width)
    per_thread = min(MANY, max(FEW, blocks_for(rows * across, lanes * ENOUGH)))
    while True:
        chunk = lanes * per_thread
        chunks = max(1, blocks_for(rows, chunk))
        target = sums if chunks == 1 else run.empty((chunks, columns))
        summing = sum_columns_of_chunks(width, index_type(max(rows, 1) * columns), storage_of(x, "sum_columns: x"))
        run(summing, x, target, rows, columns, chunk)
        if chunks == 1:
            return
        x, rows, per_thread = target, chunks, MANY


def bias_backward(run: Runner, dy: Array, db: Array) -> None:
    """Launch db (c,) = the sum of the rows of dy (..., c) on `run`. Raises ShapeError unless the channels agree."""
    if dy.ndim < 1 or tuple(db.shape) != tuple(dy.shape[-1:]):
        raise ShapeError(
            f"bias_backward: db has shape {tuple(db.shape)}, expected {tuple(dy.shape[-1:])} for dy {tuple(dy.shape)}"
        )
    sum_columns(run, dy, db)
