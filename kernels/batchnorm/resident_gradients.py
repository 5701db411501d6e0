"""What both persistent backward kernels do: load a batch and its gradients, exchange sums, and make dx.

A thread has summed g and g * centred (backward.py) over its rows. Every block stores what its threads have found; after
a barrier of the grid it adds what all have found of its channels, in the same order as all others.

Of its rows a thread holds the first IN_REGISTERS of x and of g in arrays of its own; of the others, x and g lie one
after the other in shared memory.
"""

from typing import Any

from numba import cuda, float32

from kernels.activation import passed
from kernels.batchnorm.adding import blocks_adder, partial_adder
from kernels.batchnorm.apply import normalized
from kernels.batchnorm.held import held_rows
from kernels.batchnorm.residency import HELD, rows_at_once
from kernels.batchnorm.split import BLOCK, Split, loader
from kernels.device import inlined
from kernels.grid_barrier import grid_barrier
from kernels.intrinsics import cp_async_commit
from kernels.storage import Storage

IN_REGISTERS = HELD[2]


def fetcher(parts: Split, affine: bool, relu: bool, index: Any, storage: Storage) -> Any:
    """A device function: loads the `mine` rows of a thread, the first of which starts at `at`, and its statistics.

    Rows beyond IN_REGISTERS are under way in shared memory, `beyond`, until cp_async_wait(0). near, rest and scale are
    shift, delta and gamma * inv_std; offset, where `relu`, is beta. The sums `total` and `product` are set to zero.
    """
    width, form, load = parts.width, held_rows(storage, parts.width), loader(parts.width)
    places, take, copy = form.places, form.load, form.copy
    size, step = width * BLOCK, parts.depth * parts.channels
    pair = 2 * size  # elements of a row of x and of dy in shared memory

    @inlined
    def fetch(
        x, dy, shift, delta, inv_std, gamma, beta, channel, mine, at, beyond, held, gradients,
        near, rest, scale, offset, total, product,
    ):  # fmt: skip
        for i in range(IN_REGISTERS):
            if i < mine:
                take(x, index(at + i * step), held, i * places)
                take(dy, index(at + i * step), gradients, i * places)
        for k in range(IN_REGISTERS, mine):
            slot = (k - IN_REGISTERS) * pair + cuda.threadIdx.x * width
            copy(beyond, slot, x, index(at + k * step))
            copy(beyond, slot + size, dy, index(at + k * step))
        cp_async_commit()

        for j in range(width):
            total[j] = float32(0)
            product[j] = float32(0)
        if mine > 0:
            load(shift, channel, near, 0)
            load(delta, channel, rest, 0)
            load(inv_std, channel, scale, 0)
            if relu:
                for j in range(width):
                    offset[j] = float32(0)
            if affine:
                load(gamma, channel, offset, 0)
                for j in range(width):
                    scale[j] *= offset[j]
                if relu:
                    load(beta, channel, offset, 0)

    return fetch


def exchanger(parts: Split, index: Any) -> Any:
    """A device function: what a thread's channels sum to over its rows becomes mean_g and slope over all rows.

    `total` and `product`, of the thread's own `width` channels, are replaced; block x = 0 stores dgamma and dbeta.
    sums and products are the block's, in shared memory; partial (2, blocks, c) lies in global memory.
    """
    channels, width, lanes = parts.channels, parts.width, parts.lanes
    line = lanes * width  # channels of a block
    add_and_store, add_blocks = partial_adder(parts, index), blocks_adder(line, BLOCK // line)

    @inlined
    def exchange(partial, state, inv_std, dgamma, dbeta, rows, row, channel, sums, products, total, product, result):
        thread = cuda.threadIdx.x
        for j in range(width):
            sums[j * BLOCK + thread] = total[j]
            products[j * BLOCK + thread] = product[j]
        add_and_store(partial, row, channel, thread, sums, products, result)

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
