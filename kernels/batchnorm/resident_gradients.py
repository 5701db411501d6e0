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
from kernels.batchnorm.residency import HELD
from kernels.batchnorm.split import BLOCK, Split, loader, storer
from kernels.device import inlined
from kernels.grid_barrier import grid_barrier

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


def finisher(parts: Split, training: bool, relu: bool, index: Any) -> Any:
    """A device function: dx of the `mine` rows of a thread, the first of which starts at `at`.

    Where `relu`, g in shared memory is still dy, and is masked once more. `total` and `product` are mean_g and slope.
    """
    width, load, store = parts.width, loader(parts.width), storer(parts.width)
    size, step = width * BLOCK, parts.depth * parts.channels
    pair = 2 * size  # floats of a row of x and of g in shared memory

    @inlined
    def finish(
        dx, mine, at, beyond, held, gradients, values, others, near, rest, scale, offset, total, product, result
    ):
        if mine > 0:
            for i in range(IN_REGISTERS):
                if i < mine:
                    for j in range(width):
                        g = gradients[i * width + j]
                        if training:
                            centred = (held[i * width + j] - near[j]) - rest[j]
                            g = (g - total[j]) - centred * product[j]
                        result[j] = scale[j] * g
                    store(dx, index(at + i * step), result)
            for k in range(IN_REGISTERS, mine):
                slot = (k - IN_REGISTERS) * pair + cuda.threadIdx.x * width
                load(beyond, slot, values, 0)
                load(beyond, slot + size, others, 0)
                for j in range(width):
                    g = others[j]
                    if relu:
                        g = passed(g, normalized(values[j], near[j], rest[j], scale[j], offset[j]))
                    if training:
                        g = (g - total[j]) - ((values[j] - near[j]) - rest[j]) * product[j]
                    result[j] = scale[j] * g
                store(dx, index(at + k * step), result)

    return finish
