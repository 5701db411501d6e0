"""The sums over rows that batch normalization's backward needs, in two stages: sum g and sum g * centred.

g, centred and what the sums are for are in backward.py. A thread adds at most CHUNK rows in one accumulator, then its
chunks, and a block its threads as a tree; the last launch adds the blocks, some 384 at most, as a tree again.

Traffic  x and dy (and y) once, dresidual once; and partial sums.
"""

from typing import Any

from numba import cuda, float32, int64, uint32

from kernels.activation import passed
from kernels.batchnorm.apply import normalized
from kernels.batchnorm.split import AHEAD, BLOCK, CHUNK, Split, largest_power_below, loader, storer
from kernels.device import inlined
from kernels.launch import Cost, Floats, Int64, Launch, blocks_for, kernel

LANES = 4  # channels of a block that adds up what the blocks found
DEPTH = BLOCK // LANES


def block_adder(width: int, lanes: int, depth: int) -> Any:
    """A device function that adds what the threads of a block hold in shared memory, as a tree down the rows.

    Thread `row` * lanes + lane holds, of channel j of its group, two sums at [j * BLOCK + thread]. The block's are left
    with the threads of row 0.
    """
    start = largest_power_below(depth)

    @inlined
    def add_block(thread, row, sums, products):
        stride = start
        while stride > 0:
            cuda.syncthreads()
            if row < stride and row + stride < depth:
                for j in range(width):
                    at = j * BLOCK + thread
                    sums[at] += sums[at + stride * lanes]
                    products[at] += products[at + stride * lanes]
            stride //= 2

    return add_block


def blocks_adder(lanes: int, depth: int) -> Any:
    """A device function that adds what `blocks` blocks have stored, (2, blocks, c), and stores the gradients of them.

    `depth` rows of `lanes` threads add every depth-th block of a channel each, and then these as a tree. The thread of
    row 0 stores dgamma and dbeta where it `writes`; it has mean(g) in `sums` and slope in `products`.
    """
    add_block = block_adder(1, lanes, depth)

    @inlined
    def add_blocks(
        partial, inv_std, dgamma, dbeta, writes, blocks, channels, rows, thread, row, channel, sums, products
    ):
        s = p = float32(0)
        if row < depth and channel < channels:
            for block in range(row, blocks, depth):
                s += partial[block * channels + channel]
                p += partial[(blocks + block) * channels + channel]
        sums[thread] = s
        products[thread] = p
        add_block(thread, row, sums, products)
        if row == 0 and channel < channels:
            n = float32(max(rows, 1))
            scale = inv_std[channel]
            total = sums[thread]
            product = products[thread] * scale
            if writes:
                dbeta[channel] = total
                dgamma[channel] = product
            sums[thread] = total / n
            products[thread] = product / n * scale

    return add_blocks


def _sum_gradients(channels: int, affine: bool, relu: bool, index: Any, width: int) -> Launch:
    parts = Split(channels, width)
    lanes, depth, across = parts.lanes, parts.depth, parts.across
    load, store, add_block = loader(width), storer(width), block_adder(width, lanes, depth)
    size, loads = width * BLOCK, AHEAD * width

    def sum_gradients(
        x: Floats, dy: Floats, shift: Floats, delta: Floats, inv_std: Floats, gamma: Floats, beta: Floats,
        partial: Floats, rows: Int64, span: Int64,
    ):  # fmt: skip
        sums = cuda.shared.array(size, float32)
        products = cuda.shared.array(size, float32)
        values = cuda.local.array(loads, float32)
        gradients = cuda.local.array(loads, float32)
        near = cuda.local.array(width, float32)
        rest = cuda.local.array(width, float32)
        scale = cuda.local.array(width, float32)
        offset = cuda.local.array(width, float32)
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
            if relu:
                load(inv_std, channel, scale, 0)
                for j in range(width):
                    offset[j] = float32(0)
                if affine:
                    load(gamma, channel, offset, 0)
                    for j in range(width):
                        scale[j] *= offset[j]
                    load(beta, channel, offset, 0)
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
                            load(x, index((at + i * depth) * channels + channel), values, i * width)
                            load(dy, index((at + i * depth) * channels + channel), gradients, i * width)
                    for i in range(AHEAD):
                        if at + i * depth < stop:
                            for j in range(width):
                                value, g = values[i * width + j], gradients[i * width + j]
                                if relu:
                                    g = passed(g, normalized(value, near[j], rest[j], scale[j], offset[j]))
                                chunk_sum[j] += g
                                chunk_product[j] += g * ((value - near[j]) - rest[j])
                    at = index(at + AHEAD * depth)
                for j in range(width):
                    sums[j * BLOCK + thread] += chunk_sum[j]
                    products[j * BLOCK + thread] += chunk_product[j]

        add_block(thread, row, sums, products)
        if row == 0 and channel < channels:
            place = cuda.blockIdx.x * channels + channel
            for j in range(width):
                chunk_sum[j] = sums[j * BLOCK + thread]
                chunk_product[j] = products[j * BLOCK + thread]
            store(partial, index(place), chunk_sum)
            store(partial, index(cuda.gridDim.x * channels + place), chunk_product)

    return Launch(
        sum_gradients,
        BLOCK,
        lambda rows, span: (blocks_for(rows, span), across),
        lambda rows, span: Cost(
            8 * rows * channels + 20 * channels, 8 * blocks_for(rows, span) * channels, 5 * rows * channels
        ),
    )


def _mask_and_sum_gradients(channels: int, index: Any, width: int) -> Launch:
    parts = Split(channels, width)
    lanes, depth, across = parts.lanes, parts.depth, parts.across
    load, store, add_block = loader(width), storer(width), block_adder(width, lanes, depth)
    size, loads = width * BLOCK, AHEAD * width

    def mask_and_sum_gradients(
        x: Floats, y: Floats, dy: Floats, shift: Floats, delta: Floats, dresidual: Floats, partial: Floats,
        rows: Int64, span: Int64,
    ):  # fmt: skip
        sums = cuda.shared.array(size, float32)
        products = cuda.shared.array(size, float32)
        values = cuda.local.array(loads, float32)
        outputs = cuda.local.array(loads, float32)
        gradients = cuda.local.array(loads, float32)
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
                            load(x, index((at + i * depth) * channels + channel), values, i * width)
                            load(y, index((at + i * depth) * channels + channel), outputs, i * width)
                            load(dy, index((at + i * depth) * channels + channel), gradients, i * width)
                    for i in range(AHEAD):
                        if at + i * depth < stop:
                            for j in range(width):
                                g = passed(gradients[i * width + j], outputs[i * width + j])
                                masked[j] = g
                                chunk_sum[j] += g
                                chunk_product[j] += g * ((values[i * width + j] - near[j]) - rest[j])
                            store(dresidual, index((at + i * depth) * channels + channel), masked)
                    at = index(at + AHEAD * depth)
                for j in range(width):
                    sums[j * BLOCK + thread] += chunk_sum[j]
                    products[j * BLOCK + thread] += chunk_product[j]

        add_block(thread, row, sums, products)
        if row == 0 and channel < channels:
            place = cuda.blockIdx.x * channels + channel
            for j in range(width):
                chunk_sum[j] = sums[j * BLOCK + thread]
                chunk_product[j] = products[j * BLOCK + thread]
            store(partial, index(place), chunk_sum)
            store(partial, index(cuda.gridDim.x * channels + place), chunk_product)

    return Launch(
        mask_and_sum_gradients,
        BLOCK,
        lambda rows, span: (blocks_for(rows, span), across),
        lambda rows, span: Cost(
            12 * rows * channels + 8 * channels,
            4 * rows * channels + 8 * blocks_for(rows, span) * channels,
            5 * rows * channels,
        ),
    )


@kernel(
    traffic="x, dy, shift, delta, inv_std, gamma, beta -> partial",
    examples=[
        (1, True, False, uint32),
        (17, True, True, uint32),
        (64, False, True, uint32),
        (513, False, False, int64),
    ],
)
def batchnorm_sum_gradients_scalar(channels: int, affine: bool, relu: bool, index: Any) -> Launch:
    """Sums of g and g * centred over each block's rows, partial (2, blocks, c); one channel a thread."""
    return _sum_gradients(channels, affine, relu, index, 1)


@kernel(
    traffic="x, dy, shift, delta, inv_std, gamma, beta -> partial",
    instructions=("LDG.E.128", "STG.E.128"),
    registers=96,  # eight loads of four floats are under way
    examples=[(4, True, False, uint32), (64, True, True, uint32), (512, False, True, int64)],
)
def batchnorm_sum_gradients_vector(channels: int, affine: bool, relu: bool, index: Any) -> Launch:
    """The same with four channels a thread, read as 16 bytes. All arrays aligned to 16."""
    return _sum_gradients(channels, affine, relu, index, 4)


@kernel(traffic="x, y, dy, shift, delta -> dresidual, partial", examples=[(1, uint32), (17, uint32), (513, int64)])
def batchnorm_mask_and_sum_gradients_scalar(channels: int, index: Any) -> Launch:
    """The same with the mask of a ReLU whose output was y; dresidual = g. One channel a thread."""
    return _mask_and_sum_gradients(channels, index, 1)


@kernel(
    traffic="x, y, dy, shift, delta -> dresidual, partial",
    instructions=("LDG.E.128", "STG.E.128"),
    registers=112,  # twelve loads of four floats are under way
    examples=[(4, uint32), (64, uint32), (512, int64)],
)
def batchnorm_mask_and_sum_gradients_vector(channels: int, index: Any) -> Launch:
    """The same with four channels a thread. All arrays aligned to 16."""
    return _mask_and_sum_gradients(channels, index, 4)


@kernel(traffic="partial, inv_std -> dgamma, dbeta, mean_g, slope", registers=40, examples=[()])
def batchnorm_finish_gradients() -> Launch:
    """From what `blocks` blocks found: dgamma, dbeta and what dx subtracts, mean(g) and slope * centred."""
    add_blocks = blocks_adder(LANES, DEPTH)

    def finish_gradients(
        partial: Floats, inv_std: Floats, dgamma: Floats, dbeta: Floats, mean_g: Floats, slope: Floats,
        blocks: Int64, channels: Int64, rows: Int64,
    ):  # fmt: skip
        sums = cuda.shared.array(BLOCK, float32)
        products = cuda.shared.array(BLOCK, float32)
        thread = cuda.threadIdx.x
        row = thread // LANES
        channel = cuda.blockIdx.x * LANES + thread % LANES
        add_blocks(partial, inv_std, dgamma, dbeta, True, blocks, channels, rows, thread, row, channel, sums, products)
        if row == 0 and channel < channels:
            mean_g[channel] = sums[thread]
            slope[channel] = products[thread]

    return Launch(
        finish_gradients,
        BLOCK,
        lambda channels: blocks_for(channels, LANES),
        lambda blocks, channels: Cost(8 * blocks * channels + 4 * channels, 16 * channels, 2 * blocks * channels),
    )
