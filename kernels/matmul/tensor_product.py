"""The matrix product on tensor cores that convolution and linear share: one skeleton, other loads and stores.

A block makes one tile of the result (tensor_tiles.py). Up to `stages` slabs are in shared memory or under way
to it: while one is multiplied, the next ones arrive, and a slab takes one barrier, not two. What becomes of the sums is
up to the epilogue (kernels/matmul/tensor_epilogue.py), which has the slabs' memory when all are multiplied.
"""

from collections.abc import Callable
from typing import Any

from numba import cuda, float32, int32, uint16, uint32

from kernels.device import WARP, inlined
from kernels.intrinsics import cp_async_commit, cp_async_wait, shared_address
from kernels.matmul.tensor_copies import Side, copies_of
from kernels.matmul.tensor_fragments import COLUMNS, ROWS, STEPS, fragments_of, multiplier
from kernels.matmul.tensor_tiles import DEPTH, TensorTile, depth_of, slab_floats
from kernels.storage import FLOAT32, Storage


@inlined
def at_zero(c, column):  # noqa: ARG001
    """Sums begin with 0."""
    return float32(0), float32(0)


@inlined
def _floats(memory):
    return memory


@inlined
def _narrow(memory):  # noqa: ARG001
    return cuda.shared.array(0, uint16)  # the same memory


def tensor_product(
    tile: TensorTile,
    index: Any,
    a_side: Side,
    b_side: Side,
    finish: Callable[..., Any],
    begin: Callable[..., Any] = at_zero,
    storage: Storage = FLOAT32,
) -> Callable[..., Any]:
    """Make the device function of a tile: multiply(a, b, c, rows, columns, first_row, first_column, first, last).

    The product is of rows x depth and depth x columns elements; the tile that begins at (first_row, first_column) is
    summed over the depth from `first` to `last`. a and b are (pointer, source, more): the pointer starts at a multiple
    of 16 bytes, and so does whatever comes at once; `more` is what `Arrival` says, or anything where there is none; c
    is what the epilogue takes. The launch gives `tile.shared_bytes(...)` of dynamic shared memory.

    Args:
        tile: What a block makes.
        index: uint32 or int64; holds every index of an element.
        a_side: Where elements of a are: lines are rows of the result.
        b_side: Lines are columns.
        finish: The epilogue, of kernels/matmul/tensor_epilogue.py or like those.
        begin: Inlined device function (c, column) -> value, next_value: what the sums of a row begin with.
        storage: Of both factors; floats are rounded to TF32.
    """
    stages = tile.stages
    a_floats = a_side.tensors * slab_floats(tile.rows, a_side.along_depth, storage)
    floats = a_floats + b_side.tensors * slab_floats(tile.columns, b_side.along_depth, storage)
    down, across = tile.warp_rows // ROWS, tile.warp_columns // COLUMNS  # products of a warp
    warps_across = tile.columns // tile.warp_columns
    warp_rows, warp_columns = tile.warp_rows, tile.warp_columns
    a_lines, a_kept, prepare_a, copy_a, know_a, arrive_a = copies_of(tile, tile.rows, a_side, index, storage)
    b_lines, b_kept, prepare_b, copy_b, know_b, arrive_b = copies_of(tile, tile.columns, b_side, index, storage)
    a_fragments = fragments_of(a_side.along_depth, down, tile.rows, True, storage)
    b_fragments = fragments_of(b_side.along_depth, across, tile.columns, False, storage)
    multiply_fragments, slab = multiplier(storage), depth_of(storage)
    sums_shape, a_shape, b_shape = (down, across, 4), (down, 4), (across, 2)

    elements_of: Callable[..., Any] = _floats if storage is FLOAT32 else _narrow

    @inlined
    def multiply(a, b, c, rows, columns, first_row, first_column, first, last):
        memory = cuda.shared.array(0, float32)
        elements = elements_of(memory)
        sums = cuda.local.array(sums_shape, float32)
        a_values = cuda.local.array(a_shape, uint32)
        b_values = cuda.local.array(b_shape, uint32)
        a_u, a_v = cuda.local.array(a_lines, int32), cuda.local.array(a_lines, int32)
        b_u, b_v = cuda.local.array(b_lines, int32), cuda.local.array(b_lines, int32)
        a_offsets, b_offsets = cuda.local.array(a_lines, index), cuda.local.array(b_lines, index)
        a_numbers, b_numbers = cuda.local.array(a_kept, float32), cuda.local.array(b_kept, float32)
        a_pointer, a_source, a_more = a
        b_pointer, b_source, b_more = b
        prepare_a(a_source, a_u, a_v, a_offsets, rows, first_row)
        prepare_b(b_source, b_u, b_v, b_offsets, columns, first_column)
        warp, lane = uint32(cuda.threadIdx.x) // WARP, uint32(cuda.threadIdx.x) % WARP
        warp_row, warp_column = warp // warps_across * warp_rows, warp % warps_across * warp_columns
        own_column = first_column + warp_column + lane % 4 * 2
        for j in range(across):
            left = right = float32(0)
            if own_column + 8 * j < columns:
                left, right = begin(c, index(own_column + 8 * j))
            for i in range(down):
                for half in range(2):
                    sums[i, j, 2 * half], sums[i, j, 2 * half + 1] = left, right

        address = shared_address(memory, 0)
        for ahead in range(stages - 1):
            start = first + ahead * slab
            if start < last:
                place = uint32(address + ahead * (4 * floats))
                copy_a(place, a_source, a_pointer, a_more, a_u, a_v, a_offsets, start, last)
                place = uint32(place + 4 * a_floats)
                copy_b(place, b_source, b_pointer, b_more, b_u, b_v, b_offsets, start, last)
            cp_async_commit()

        stage, free = uint32(0), uint32(stages - 1)  # what is multiplied, and what the last slab but one has left
        for start in range(first, last, slab):
            base = uint32(stage * floats)
            know_a(a_more, a_numbers, start, first_row)
            know_b(b_more, b_numbers, start, first_column)
            cp_async_wait(stages - 2)  # the thread's own part of the slab has arrived
            arrive_a(elements, base, a_source, a_numbers, a_u, a_v, start, last)
            arrive_b(elements, base + a_floats, b_source, b_numbers, b_u, b_v, start, last)
            cuda.syncthreads()  # the slab has arrived for all, and all have done with the one before
            ahead = start + (stages - 1) * slab
            if ahead < last:
                place = uint32(address + free * (4 * floats))
                copy_a(place, a_source, a_pointer, a_more, a_u, a_v, a_offsets, ahead, last)
                place = uint32(place + 4 * a_floats)
                copy_b(place, b_source, b_pointer, b_more, b_u, b_v, b_offsets, ahead, last)
            cp_async_commit()
            place = uint32(address + stage * (4 * floats))
            for k in range(DEPTH // STEPS):
                a_fragments(a_values, memory, base, place, warp_row, k)
                b_fragments(b_values, memory, base + a_floats, place + 4 * a_floats, warp_column, k)
                for i in range(down):
                    for j in range(across):
                        multiply_fragments(a_values, b_values, sums, i, j)
            free = stage
            stage = uint32(stage + 1 if stage + 1 < stages else 0)

        finish(memory, sums, c, rows, columns, first_row, first_column)

    return multiply
