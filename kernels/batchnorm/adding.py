"""How the sums of batch normalization's backward are added: threads of a block, and what blocks have stored.

What is summed is told in backward.py: of each channel s = sum g and p = sum g * centred.
"""

from typing import Any

from numba import cuda, float32

from kernels.batchnorm.split import BLOCK, Split, largest_power_below, storer
from kernels.device import inlined


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


def partial_adder(parts: Split, index: Any) -> Any:
    """A device function: what the threads of a block hold in shared memory is added and stored, in (2, blocks, c)."""
    channels, width = parts.channels, parts.width
    store, add_block = storer(width), block_adder(width, parts.lanes, parts.depth)

    @inlined
    def add_and_store(partial, row, channel, thread, sums, products, values):
        add_block(thread, row, sums, products)
        if row == 0 and channel < channels:
            place = cuda.blockIdx.x * channels + channel
            for j in range(width):
                values[j] = sums[j * BLOCK + thread]
            store(partial, index(place), values)
            for j in range(width):
                values[j] = products[j * BLOCK + thread]
            store(partial, index(cuda.gridDim.x * channels + place), values)

    return add_and_store


def blocks_walker(lanes: int, depth: int) -> Any:
    """A device function that adds what blocks `first` to `end` of `blocks` have stored, (2, blocks, c).

    `depth` rows of `lanes` threads add every depth-th block of a channel each, and then these as a tree. The thread of
    row 0 then has the sums of its channel in `sums` and `products`.
    """
    add_block = block_adder(1, lanes, depth)

    @inlined
    def walk_blocks(partial, first, end, blocks, channels, thread, row, channel, sums, products):
        s = p = float32(0)
        if row < depth and channel < channels:
            for block in range(first + row, end, depth):
                s += partial[block * channels + channel]
                p += partial[(blocks + block) * channels + channel]
        sums[thread] = s
        products[thread] = p
        add_block(thread, row, sums, products)

    return walk_blocks


def blocks_adder(lanes: int, depth: int) -> Any:
    """A device function that adds what `blocks` blocks have stored, (2, blocks, c), and stores the gradients of them.

    The thread of row 0 stores dgamma and dbeta where it `writes`; it has mean(g) in `sums` and slope in `products`.
    """
    walk_blocks = blocks_walker(lanes, depth)

    @inlined
    def add_blocks(
        partial, inv_std, dgamma, dbeta, writes, blocks, channels, rows, thread, row, channel, sums, products
    ):
        walk_blocks(partial, 0, blocks, blocks, channels, thread, row, channel, sums, products)
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
