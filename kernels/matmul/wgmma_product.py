"""The matrix product by wgmma that convolutions share: one skeleton, other loads and stores.

As in tensor_product.py a block makes one tile and walks along the depth, slab by slab; three are in shared
memory. In the turn of slab i

    1  each thread stores its part of slab i, which it has begun to load in the turn before
    2  it shows the tensor cores what it stored (fence_proxy_async), and waits until the copy engine has brought b's
       part of slab i; a barrier makes that true of all threads
    3  one thread has the copy engine bring b's part of slab i + 1
    4  each warpgroup starts the four products of slab i; its threads begin to load their parts of slab i + 1
    5  it waits for the products of slab i - 1

so the tensor cores have work while the threads load, store and wait. (Loads come after the fence, which may wait for
what is under way.) A stage is stored to again three turns after it
was multiplied: that product was waited for two turns before, and a barrier came since; the copy engine is started
behind one more barrier, which is why it may come one turn earlier.

The second factor comes in one of two ways. Weights are brought by the copy engine, whole slabs at once, out of scratch
memory where a kernel of their own has put them as they are to lie in shared memory: rounded, swizzled, with zeros
beyond the edges (`kernels.conv.wgmma_pack`). Any other factor comes as the first one does (wgmma_slabs.py).

Accuracy is that of tensor_product.py: the same factors, rounded to TF32, in the same products of 8 steps, so
the same bits where slices are the same.
"""

from collections.abc import Callable
from typing import Any

from numba import cuda, float32, int32, uint32, uint64

from kernels.bulk_copy import MBARRIER, copy_bulk, fence_proxy_async, mbarrier_expect, mbarrier_init, mbarrier_wait
from kernels.device import WARP, inlined
from kernels.intrinsics import shared_address
from kernels.matmul.tensor_copies import Side
from kernels.matmul.tensor_tiles import DEPTH
from kernels.matmul.wgmma_slabs import slabs_of
from kernels.matmul.wgmma_tiles import WgmmaTile
from kernels.wgmma import (
    ATOM,
    GROUP,
    LINE,
    NEXT,
    ROWS,
    STEPS,
    WGMMA_RESULTS,
    WGMMA_TF32,
    descriptor,
    wgmma_commit,
    wgmma_fence,
    wgmma_wait,
)


def wgmma_product(
    tile: WgmmaTile, index: Any, a_side: Side, b_side: Side | None, store: Callable[..., Any]
) -> Callable[..., Any]:
    """Make the device function of a tile: multiply(a, b, c, rows, columns, first_row, first_column, first, last).

    As of `kernels.matmul.tensor_product.tensor_product`: the product of rows x depth and depth x columns elements, of
    which the tile that begins at (first_row, first_column) is summed over the depth from `first`, a multiple of DEPTH,
    to `last`. a and b are (pointer, source), c is what the store takes. The launch gives `tile.shared_bytes` of dynamic
    shared memory. Returns whether an element that the thread stored is NaN.

    Args:
        tile: What a block makes.
        index: uint32 or int64; holds every index of an element.
        a_side: Where elements of a are: lines are rows of the result.
        b_side: Lines are columns; None for b in slabs, (pointer, where the first one of this column of tiles begins).
        store: Inlined device function (c, row, column, value, next_value): two neighbours of a row, from an even
            column on.
    """
    stages, tile_rows, tile_columns = tile.stages, tile.rows, tile.columns
    stage_bytes, slab_floats = tile.stage_bytes, tile.slab_floats
    stage_words, b_words, slab_bytes = stage_bytes // 4, tile_rows * DEPTH, 4 * slab_floats
    in_bulk = b_side is None
    a_count, prepare_a, fetch_a, put_a = slabs_of(tile, tile_rows, a_side, index)
    b_count, prepare_b, fetch_b, put_b = slabs_of(tile, tile_columns, b_side or a_side, index)
    product, results = WGMMA_TF32[tile_columns], WGMMA_RESULTS[tile_columns]
    own, across = tile_columns // 2, tile_columns // 8
    a_shape, b_shape = (a_count, 4), (b_count, 4)

    @inlined
    def bring(b, place, barrier, start):
        """Have the copy engine bring b's slab that begins with step `start`; for one thread."""
        slabs, begin = b
        mbarrier_expect(barrier, slab_bytes)
        copy_bulk(place, slabs, index(begin + start // DEPTH * slab_floats), slab_bytes, barrier)

    @inlined
    def multiply(a, b, c, rows, columns, first_row, first_column, first, last):
        memory = cuda.shared.array(0, uint32)
        sums = cuda.local.array(own, float32)
        a_values, b_values = cuda.local.array(a_shape, float32), cuda.local.array(b_shape, float32)
        a_u, a_v, a_offsets = (
            cuda.local.array(a_count, int32),
            cuda.local.array(a_count, int32),
            cuda.local.array(a_count, index),
        )
        b_u, b_v, b_offsets = (
            cuda.local.array(b_count, int32),
            cuda.local.array(b_count, int32),
            cuda.local.array(b_count, index),
        )
        thread = uint32(cuda.threadIdx.x)
        group = thread // GROUP
        a_pointer, a_source = a
        b_pointer, b_source = b
        address = shared_address(memory, 0)
        slabs = uint32((address + (ATOM - 1)) // ATOM * ATOM)
        begin = uint32((slabs - address) // 4)
        barriers = uint32(slabs + stages * stage_bytes)
        if in_bulk:
            if thread == 0:
                for i in range(stages):
                    mbarrier_init(uint32(barriers + i * MBARRIER), 1)
                fence_proxy_async()
            cuda.syncthreads()
            if thread == 0 and first < last:
                bring(b, uint32(slabs + 4 * b_words), barriers, first)
        else:
            prepare_b(b_source, b_u, b_v, b_offsets, columns, first_column)
            fetch_b(b_values, b_source, b_pointer, b_u, b_v, b_offsets, first, last)
        prepare_a(a_source, a_u, a_v, a_offsets, rows, first_row)
        fetch_a(a_values, a_source, a_pointer, a_u, a_v, a_offsets, first, last)
        for j in range(across):
            for part in range(4):
                sums[4 * j + part] = float32(0)

        stage, parity = uint32(0), uint32(0)
        for start in range(first, last, DEPTH):
            base = uint32(begin + stage * stage_words)
            ahead = start + DEPTH
            put_a(memory, base, a_values)
            if not in_bulk:
                put_b(memory, uint32(base + b_words), b_values)
            fence_proxy_async()
            if in_bulk:
                mbarrier_wait(uint32(barriers + stage * MBARRIER), parity)
            cuda.syncthreads()  # the slab is there, and the products of the slab but one before are done
            following = uint32(stage + 1 if stage + 1 < stages else 0)
            if in_bulk and thread == 0 and ahead < last:
                place = uint32(slabs + following * stage_bytes + 4 * b_words)
                bring(b, place, uint32(barriers + following * MBARRIER), ahead)
            a_lines = descriptor(uint32(slabs + stage * stage_bytes + group * (ROWS * LINE)))
            b_lines = descriptor(uint32(slabs + stage * stage_bytes + 4 * b_words))
            wgmma_fence()
            for k in range(DEPTH // STEPS):
                product(sums, uint64(a_lines + uint64(k * NEXT)), uint64(b_lines + uint64(k * NEXT)))
            wgmma_commit()
            fetch_a(a_values, a_source, a_pointer, a_u, a_v, a_offsets, ahead, last)
            if not in_bulk:
                fetch_b(b_values, b_source, b_pointer, b_u, b_v, b_offsets, ahead, last)
            wgmma_wait(1)
            parity = uint32(parity if following > 0 else 1 - parity)
            stage = following
        results(sums)

        warp, lane = thread // WARP, thread % WARP
        own_row, own_column = first_row + warp * 16 + lane // 4, first_column + lane % 4 * 2
        has_nan = False
        for half in range(2):
            row = index(own_row + 8 * half)
            if row < rows:
                for j in range(across):
                    column = index(own_column + 8 * j)
                    if column < columns:
                        left, right = sums[4 * j + 2 * half], sums[4 * j + 2 * half + 1]
                        store(c, row, column, left, right)
                        has_nan |= left != left or right != right
        return has_nan

    return multiply
