"""The sums of gradient_sums.py at the end of a residual block, whose ReLU's mask is taken from its output y.

Beside a residual x alone does not tell the mask, so g is stored on the way, as dresidual: what comes after reads that.

Traffic  x, y and dy once, dresidual once; and partial sums.
"""

from typing import Any

from numba import cuda, float32, int64, uint32

from kernels.activation import passed
from kernels.batchnorm.adding import partial_adder
from kernels.batchnorm.held import held_rows
from kernels.batchnorm.split import AHEAD, BLOCK, CHUNK, Split, loader
from kernels.launch import Cost, Floats, Int64, Launch, blocks_for, kernel
from kernels.storage import BFLOAT16, FLOAT16, FLOAT32, Storage


def _mask_and_sum_gradients(channels: int, index: Any, storage: Storage, width: int) -> Launch:
    stored: Any = storage.pointer
    held = held_rows(storage, width)
    kind, places, take, number, store = held.dtype, held.places, held.load, held.number, held.store
    parts = Split(channels, width)
    lanes, depth, across = parts.lanes, parts.depth, parts.across
    load, add_and_store = loader(width), partial_adder(parts, index)
    size, loads, bytes_each = width * BLOCK, AHEAD * places, storage.bytes

    def mask_and_sum_gradients(
        x: stored, y: stored, dy: stored, shift: Floats, delta: Floats, dresidual: stored, partial: Floats,
        rows: Int64, span: Int64,
    ):  # fmt: skip
        sums = cuda.shared.array(size, float32)
        products = cuda.shared.array(size, float32)
        values = cuda.local.array(loads, kind)
        outputs = cuda.local.array(loads, kind)
        gradients = cuda.local.array(loads, kind)
        masked = cuda.local.array(width, float32)
        near = cuda.local.array(width, float32)
        rest = cuda.local.array(width, float32)
        chunk_sum = cuda.local.array(width, float32)
        chunk_product = cuda.local.array(width, float32)
        thread = cuda.threadIdx.x
        row = thread // lanes
        channel = (cuda.blockIdx.y * lanes + thread % lanes) * width
        for j in range(width):
            sums[j * BLOCK + thread] = float32(0)
            products[j * BLOCK + thread] = float32(0)
        if row < depth and channel < channels:
            load(shift, channel, near, 0)
            load(delta, channel, rest, 0)
            at = index(cuda.blockIdx.x * span + row)
            end = index(min(rows, (cuda.blockIdx.x + 1) * span))
            while at < end:
                stop = index(min(end, at + CHUNK * depth))
                for j in range(width):
                    chunk_sum[j] = float32(0)
                    chunk_product[j] = float32(0)
                while at < stop:
                    for i in range(AHEAD):
                        if at + i * depth < stop:
                            take(x, index((at + i * depth) * channels + channel), values, i * places)
                            take(y, index((at + i * depth) * channels + channel), outputs, i * places)
                            take(dy, index((at + i * depth) * channels + channel), gradients, i * places)
                    for i in range(AHEAD):
                        if at + i * depth < stop:
                            for j in range(width):
                                g = passed(number(gradients, i * places, j), number(outputs, i * places, j))
                                masked[j] = g
                                chunk_sum[j] += g
                                chunk_product[j] += g * ((number(values, i * places, j) - near[j]) - rest[j])
                            store(dresidual, index((at + i * depth) * channels + channel), masked)
                    at = index(at + AHEAD * depth)
                for j in range(width):
                    sums[j * BLOCK + thread] += chunk_sum[j]
                    products[j * BLOCK + thread] += chunk_product[j]

        add_and_store(partial, row, channel, thread, sums, products, chunk_sum)

    return Launch(
        mask_and_sum_gradients,
        BLOCK,
        lambda rows, span: (blocks_for(rows, span), across),
        lambda rows, span: Cost(
            3 * bytes_each * rows * channels + 8 * channels,
            bytes_each * rows * channels + 8 * blocks_for(rows, span) * channels,
            5 * rows * channels,
        ),
    )


@kernel(
    traffic="x, y, dy, shift, delta -> dresidual, partial",
    examples=[
        (1, uint32, FLOAT32),
        (17, uint32, FLOAT32),
        (513, int64, FLOAT32),
        (17, uint32, BFLOAT16),
        (65, uint32, FLOAT16),
    ],
)
def batchnorm_mask_and_sum_gradients_scalar(channels: int, index: Any, storage: Storage) -> Launch:
    """Sums of g and g * centred over each block's rows, partial (2, blocks, c); dresidual = g. One channel a thread."""
    return _mask_and_sum_gradients(channels, index, storage, 1)


@kernel(
    traffic="x, y, dy, shift, delta -> dresidual, partial",
    instructions=("LDG.E.128", "STG.E.128"),
    registers=128,  # twelve loads of 16 bytes are under way; in float32 at most 112
    examples=[
        (4, uint32, FLOAT32),
        (64, uint32, FLOAT32),
        (512, int64, FLOAT32),
        (64, uint32, BFLOAT16),
        (512, int64, FLOAT16),
    ],
)
def batchnorm_mask_and_sum_gradients_vector(channels: int, index: Any, storage: Storage) -> Launch:
    """The same with as many channels a thread as 16 bytes hold. All arrays aligned to 16."""
    return _mask_and_sum_gradients(channels, index, storage, storage.wide)
