"""What both persistent backward kernels do with a batch that is on the chip: exchange sums, and make dx of it.

A thread has summed g and g * centred (backward.py) over its rows. Every block stores what its threads have found; after
a barrier of the grid it adds what all have found of its channels, in the same order as all others.

Of its rows a thread holds the first IN_REGISTERS of x and of g in arrays of its own; of the others, x and g lie one
after the other in shared memory.
"""

from typing import Any

from numba import cuda

from kernels.activation import passed
from kernels.batchnorm.adding import block_adder, blocks_adder
from kernels.batchnorm.apply import normalized
from kernels.batchnorm.held import held_rows
from kernels.batchnorm.residency import HELD, rows_at_once
from kernels.batchnorm.split import BLOCK, Split, storer
from kernels.device import inlined
from kernels.grid_barrier import grid_barrier
from kernels.storage import Storage

IN_REGISTERS = HELD[2]


def exchanger(parts: Split, index: Any) -> Any:
    """A device function: what a thread's channels sum to over its rows becomes mean_g and slope over all rows.

    `total` and `product`, of the thread's own `width` channels, are replaced; block x = 0 stores dgamma and dbeta.
    sums and products are the block's, in shared memory; partial (2, blocks, c) lies in global memory.
    """
    channels, width, lanes = parts.channels, parts.width, parts.lanes
    line = lanes * width  # channels of a block
    store, add_block = storer(width), block_adder(width, lanes, parts.depth)
    add_blocks = blocks_adder(line, BLOCK // line)

    @inlined
    def exchange(partial, state, inv_std, dgamma, dbeta, rows, row, channel, sums, products, total, product, result):
        thread = cuda.threadIdx.x
        for j in range(width):
            sums[j * BLOCK + thread] = total[j]
            products[j * BLOCK + thread] = product[j]
        add_block(thread, row, sums, products)
        if row == 0 and channel < channels:
            place = cuda.blockIdx.x * channels + channel
            for j in range(width):
                result[j] = sums[j * BLOCK + thread]
            store(partial, index(place), result)
            for j in range(width):
                result[j] = products[j * BLOCK + thread]
            store(partial, index(cuda.gridDim.x * channels + place), result)

        grid_barrier(state)

        own = cuda.blockIdx.y * line + thread % line  # the channel of which this thread adds what blocks found
        writes = cuda.blockIdx.x == 0
        blocks = cuda.gridDim.x
        add_blocks(
            partial, inv_std, dgamma, dbeta, writes, blocks, channels, rows, thread, thread // line, own, sums, products
        )
        cuda.syncthreads()
        for j in range(width):
            lane = thread % lanes * width + j
            total[j] = sums[lane]
            product[j] = products[lane]

    return exchange


def finisher(parts: Split, training: bool, relu: bool, index: Any, storage: Storage) -> Any:
    """A device function: dx of the `mine` rows of a thread, the first of which starts at `at`.

    Where `relu`, g in shared memory is still dy, and is masked once more. `total` and `product` are mean_g and slope.
    """
    width, form = parts.width, held_rows(storage, parts.width)
    places, take, number, store = form.places, form.load, form.number, form.store
    size, step = width * BLOCK, parts.depth * parts.channels
    pair = 2 * size  # elements of a row of x and of g in shared memory

    once = rows_at_once(IN_REGISTERS, width)
    several = once < IN_REGISTERS

    @inlined
    def finish_held(first, dx, mine, at, held, gradients, near, rest, scale, total, product, result):
        for i in range(once):
            if first + i < mine:
                for j in range(width):
                    g = number(gradients, (first + i) * places, j)
                    if training:
                        centred = (number(held, (first + i) * places, j) - near[j]) - rest[j]
                        g = (g - total[j]) - centred * product[j]
                    result[j] = scale[j] * g
                store(dx, index(at + (first + i) * step), result)

    @inlined
    def finish(
        dx, mine, at, beyond, held, gradients, values, others, near, rest, scale, offset, total, product, result
    ):
        if mine > 0:
            finish_held(0, dx, mine, at, held, gradients, near, rest, scale, total, product, result)
            if several:
                finish_held(once, dx, mine, at, held, gradients, near, rest, scale, total, product, result)
                finish_held(2 * once, dx, mine, at, held, gradients, near, rest, scale, total, product, result)
                finish_held(3 * once, dx, mine, at, held, gradients, near, rest, scale, total, product, result)
            for k in range(IN_REGISTERS, mine):
                slot = (k - IN_REGISTERS) * pair + cuda.threadIdx.x * width
                take(beyond, slot, values, 0)
                take(beyond, slot + size, others, 0)
                for j in range(width):
                    g = number(others, 0, j)
                    if relu:
                        g = passed(g, normalized(number(values, 0, j), near[j], rest[j], scale[j], offset[j]))
                    if training:
                        g = (g - total[j]) - ((number(values, 0, j) - near[j]) - rest[j]) * product[j]
                    result[j] = scale[j] * g
                store(dx, index(at + k * step), result)

    return finish
