"""The matrix product on tensor cores that convolution and linear share: one skeleton, other loads and stores.

As in kernels/tiles.py a block makes one tile of the result and walks along the depth, slab by slab. What differs:

    Copies     A slab goes from global to shared memory by cp.async, 16 bytes at a time and past the registers. Up to
               `stages` slabs are there or under way: while one is multiplied, the next ones arrive, and a slab takes
               one barrier, not two. Where a factor has no element (padding, depth beyond the last step), zeros arrive.
    Product    A warp owns `warp_rows` x `warp_columns` of the tile, as products m16n8k8 of TF32 with float32 sums in
               registers. Every factor is rounded to TF32, to nearest, on its way from shared memory to the product.
    Layouts    What is contiguous along the depth lies in lines of 32 floats, of which 16-byte chunk j of line i is kept
               at chunk j ^ (i % 8): so neither the copies, eight chunks of a line at once, nor ldmatrix, chunk j of
               eight lines at once, meet in a bank. ldmatrix then gives fragments as the product takes them: to it a
               tf32 is two elements of 16 bits that stay together. What is contiguous across the depth lies as it is, a
               step of depth after the other, each followed by 8 floats: thread (group, part) of a warp reads from bank
               8 part + group, all different. (ldmatrix cannot transpose elements of 32 bits.)
    Epilogue   A thread holds pairs of neighbouring columns: 8 bytes a store, and a full sector of 32 bytes a row.

How large a tile is. Each warp reads what it needs of a slab and rounds it: for a product m16n8k8, a warp of 64x64 takes
1 pass over the banks and 2 instructions to round, one of 64x32 1.5 and 3, one of 32x32 2 and 4. So warps are as large
as the result allows. LARGE is for results wide and tall: four warps of 64x64, 128 sums a thread and up to 248
registers, two blocks on a multiprocessor. WIDE is for 64 channels; NARROW for 32 or fewer; MEDIUM and SMALL for 64 rows
or fewer. Where tiles are too few to fill a GPU the depth is cut into slices, as in kernels/tiles.py.

Accuracy. A factor loses up to 2^-11 of itself. The tensor core cuts sums off rather than rounding them (kernels/
emulator/tensor.py): each product m16n8k8 in a chain loses up to 2^-23 of the running sum, half of that on average and
always downwards. DEEPEST ends a chain while this is, on average, 2^-14 of the sum: what the factors lost is more.

Source   NVIDIA, "PTX ISA" 9.0, ldmatrix, mma, cp.async; NVIDIA, "CUTLASS", documentation: efficient GEMM in CUDA
         (hierarchy of tiles, swizzled shared memory, stages).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from numba import cuda, float32, int32, uint32, uint64

from kernels import tiles
from kernels.choice import Option
from kernels.device import WARP, inlined
from kernels.intrinsics import cp_async_16_zero_fill, cp_async_commit, cp_async_wait, shared_address
from kernels.launch import blocks_for
from kernels.tensor_core import ldmatrix_x4, mma_tf32, to_tf32

NAME = "tensor_core"  # of the technique
PRECISIONS = ("fp32", "tf32")
DEPTH = 32  # steps of a slab: 128 bytes of a line
CHUNK = 4  # floats in 16 bytes
PADDING = 8  # floats after each step of a slab that is contiguous across the depth
FAR = 1 << 30  # a coordinate that is inside of nothing
ENOUGH = 264  # blocks: two on each multiprocessor of an H100 or H200
LEAST = 256  # steps of depth below which a slice is not worth its sum
DEEPEST = 8192  # steps of depth in one sum, see above


class TensorTile(NamedTuple):
    """What a block makes, and what each of its warps does: 64x64, 64x32, 32x32 or 32x16 of it."""

    rows: int
    columns: int
    warp_rows: int
    warp_columns: int
    stages: int

    @property
    def threads(self) -> int:
        """In a block."""
        return self.rows // self.warp_rows * (self.columns // self.warp_columns) * WARP

    def cover(self, rows: int, columns: int) -> int:
        """Tiles that cover a result."""
        return blocks_for(rows, self.rows) * blocks_for(columns, self.columns)

    def shared_bytes(self, a_along_depth: bool, b_along_depth: bool) -> int:
        """Of all stages."""
        return 4 * self.stages * (slab_floats(self.rows, a_along_depth) + slab_floats(self.columns, b_along_depth))


LARGE = TensorTile(128, 128, 64, 64, 3)
WIDE = TensorTile(128, 64, 64, 32, 3)
MEDIUM = TensorTile(64, 64, 32, 32, 3)
NARROW = TensorTile(128, 32, 32, 32, 3)
SMALL = TensorTile(64, 32, 32, 16, 3)
TILES = (LARGE, WIDE, MEDIUM, NARROW, SMALL)


class Side(NamedTuple):
    """One factor: a matrix of lines (rows of a, columns of b) and steps of depth, of which 4 neighbours come at once.

    An element is the sum of two parts, one of its line and one of its step, each found once for all that share it:
    (u, v, offset). It exists where `inside(line's u, v, step's u, v)`, and then has the index that the offsets add up
    to. `of_line` is asked for lines within the matrix alone; others have u = FAR, with which `inside` must not hold.
    u and v are held in 32 bits. All are inlined device functions; `source` is what the kernel passes for the factor.
    """

    of_line: Callable[..., Any]  # (source, line) -> u, v, offset
    of_step: Callable[..., Any]  # (source, step) -> u, v, offset
    inside: Callable[..., Any]  # (line_u, line_v, step_u, step_v) -> bool
    along_depth: bool  # whether neighbours in memory are neighbours in depth rather than lines


@inlined
def on_both(line_u, line_v, step_u, step_v):  # noqa: ARG001
    """`Side.inside` where every line has every step, and u is 0 for those that there are."""
    return line_u == 0 and step_u == 0


@inlined
def at_zero(c, column):  # noqa: ARG001
    """Sums begin with 0."""
    return float32(0), float32(0)


def slab_floats(lines: int, along_depth: bool) -> int:
    """Of one stage of a factor."""
    return lines * DEPTH if along_depth else DEPTH * (lines + PADDING)


def tile_for(rows: int, columns: int) -> TensorTile:
    """The tile for a result of so many rows and columns."""
    if columns <= 32:
        return NARROW if rows > 64 else SMALL
    if rows <= 64:
        return MEDIUM
    return WIDE if columns <= 64 else LARGE


def place_of(tile: TensorTile) -> Callable[..., Any]:
    """As `kernels.tiles.place_of`: make a device function that gives a block's part, first row and first column."""
    return tiles.place_of(tiles.Tile(tile.rows, tile.columns, DEPTH, 1, 1))


def span_of(depth: int, tiles: int) -> int:
    """Steps of depth for one slice, a multiple of DEPTH and no more than DEEPEST: slices enough to fill a GPU."""
    slices = max(1, min(ENOUGH // max(1, tiles), depth // LEAST))
    return min(DEEPEST, max(1, blocks_for(depth, slices * DEPTH)) * DEPTH)


def in_order(precision: str, tensor_core: Option, exact: Option) -> tuple[Option, Option]:
    """Both, the one first that this precision asks for. Raises ValueError unless it is "fp32" or "tf32"."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision '{precision}' is given, expected {' or '.join(PRECISIONS)}")
    return (tensor_core, exact) if precision == "tf32" else (exact, tensor_core)


def _copies(tile: TensorTile, lines: int, side: Side, index: Any) -> tuple[int, Callable[..., Any], Callable[..., Any]]:
    """Make the device functions that bring one factor's slabs.

    Returns how many lines a thread keeps coordinates of, prepare(source, u, v, offsets, lines, first_line), which fills
    them in, and copy(address, source, x, u, v, offsets, start, last), which starts to copy a slab to a shared address.
    """
    threads = tile.threads
    of_line, of_step, inside = side.of_line, side.of_step, side.inside
    if side.along_depth:
        across = DEPTH // CHUNK  # chunks of a line; a thread has the same of several lines
        apart = threads // across
        count = lines // apart

        @inlined
        def prepare(source, u, v, offsets, lines, first_line):
            for i in range(count):
                line = first_line + uint32(cuda.threadIdx.x) // across + i * apart
                u[i], v[i], offsets[i] = FAR, 0, 0
                if line < lines:
                    u[i], v[i], offsets[i] = of_line(source, index(line))

        @inlined
        def copy(address, source, x, u, v, offsets, start, last):
            thread = uint32(cuda.threadIdx.x)
            step = index(start + thread % across * CHUNK)
            step_u, step_v, offset = of_step(source, step)
            there = step < last
            place = address + (thread // across * across + (thread % across ^ thread // across % 8)) * 16
            for i in range(count):
                here = there and inside(u[i], v[i], step_u, step_v)
                size, first = uint32(16 if here else 0), index(offsets[i] + offset) if here else index(0)
                cp_async_16_zero_fill(uint32(place + i * (apart * DEPTH * 4)), x, first, size)

        return count, prepare, copy

    across = lines // CHUNK  # chunks of a step; a thread has the same lines in several steps
    apart = threads // across
    times = DEPTH // apart
    pitch = lines + PADDING

    @inlined
    def prepare_lines(source, u, v, offsets, lines, first_line):
        line = first_line + uint32(cuda.threadIdx.x) % across * CHUNK
        u[0], v[0], offsets[0] = FAR, 0, 0
        if line < lines:
            u[0], v[0], offsets[0] = of_line(source, index(line))

    @inlined
    def copy_steps(address, source, x, u, v, offsets, start, last):
        thread = uint32(cuda.threadIdx.x)
        place = address + (thread // across * pitch + thread % across * CHUNK) * 4
        for i in range(times):
            step = index(start + thread // across + i * apart)
            step_u, step_v, offset = of_step(source, step)
            here = step < last and inside(u[0], v[0], step_u, step_v)
            size, first = uint32(16 if here else 0), index(offsets[0] + offset) if here else index(0)
            cp_async_16_zero_fill(uint32(place + i * (apart * pitch * 4)), x, first, size)

    return 1, prepare_lines, copy_steps


def _fragments(along_depth: bool, count: int, lines: int, is_a: bool) -> Callable[..., Any]:
    """Make the device function fragments(result, memory, base, address, first, k) for 8 steps of a slab.

    It fills result (count, 4 or 2) with what the products of `count` fragments take, rounded to TF32. The slab begins
    at memory[base], which is at the shared `address`, and the warp's lines with `first`.
    """
    registers = 4 if is_a else 2
    height = 16 if is_a else 8  # lines of a fragment
    pitch = lines + PADDING
    if along_depth:
        loads = count * registers // 4

        @inlined
        def by_ldmatrix(result, memory, base, address, first, k):  # noqa: ARG001
            lane = uint32(cuda.threadIdx.x) % WARP
            # The four matrices are those of a 16x8 fragment of a, or of two 8x8 fragments of b.
            if is_a:
                line, half = lane % 16, lane // 16
            else:
                line, half = lane % 8 + lane // 16 * 8, lane // 8 % 2
            place = address + (first + line) * (DEPTH * 4) + ((2 * k + half) ^ lane % 8) * 16
            for i in range(loads):
                four = ldmatrix_x4(uint32(place + i * (16 * DEPTH * 4)))
                for part in range(4):
                    result[4 * i // registers + part // registers, part % registers] = to_tf32(four[part])

        return by_ldmatrix

    @inlined
    def by_words(result, memory, base, address, first, k):  # noqa: ARG001
        lane = uint32(cuda.threadIdx.x) % WARP
        place = uint32(base + (8 * k + lane % 4) * pitch + first + lane // 4)
        for i in range(count):
            for part in range(registers):
                if is_a:
                    word = place + i * height + part % 2 * 8 + part // 2 * (4 * pitch)
                else:
                    word = place + i * height + part * (4 * pitch)
                result[i, part] = to_tf32(memory[uint64(word)])  # uncut, so that the compiler sees what is constant

    return by_words


def tensor_product(
    tile: TensorTile,
    index: Any,
    a_side: Side,
    b_side: Side,
    store: Callable[..., Any],
    begin: Callable[..., Any] = at_zero,
) -> Callable[..., Any]:
    """Make the device function of a tile: multiply(a, b, c, rows, columns, first_row, first_column, first, last).

    The product is of rows x depth and depth x columns elements; the tile that begins at (first_row, first_column) is
    summed over the depth from `first` to `last`. a and b are (pointer, source): the pointer starts at a multiple of 16
    bytes, and so does whatever comes at once; c is what the store takes. The launch gives
    `tile.shared_bytes(...)` of dynamic shared memory. Returns whether an element that the thread stored is NaN.

    Args:
        tile: What a block makes.
        index: uint32 or int64; holds every index of an element.
        a_side: Where elements of a are: lines are rows of the result.
        b_side: Lines are columns.
        store: Inlined device function (c, row, column, value, next_value): two neighbours of a row, from an even
            column on.
        begin: Inlined device function (c, column) -> value, next_value: what the sums of a row begin with.
    """
    stages = tile.stages
    a_floats, b_floats = slab_floats(tile.rows, a_side.along_depth), slab_floats(tile.columns, b_side.along_depth)
    floats = a_floats + b_floats
    down, across = tile.warp_rows // 16, tile.warp_columns // 8  # products m16n8k8 of a warp
    warps_across = tile.columns // tile.warp_columns
    warp_rows, warp_columns = tile.warp_rows, tile.warp_columns
    a_count, prepare_a, copy_a = _copies(tile, tile.rows, a_side, index)
    b_count, prepare_b, copy_b = _copies(tile, tile.columns, b_side, index)
    a_fragments = _fragments(a_side.along_depth, down, tile.rows, True)
    b_fragments = _fragments(b_side.along_depth, across, tile.columns, False)
    sums_shape, a_shape, b_shape = (down, across, 4), (down, 4), (across, 2)

    @inlined
    def multiply(a, b, c, rows, columns, first_row, first_column, first, last):
        memory = cuda.shared.array(0, float32)
        sums = cuda.local.array(sums_shape, float32)
        a_values = cuda.local.array(a_shape, uint32)
        b_values = cuda.local.array(b_shape, uint32)
        a_u, a_v = cuda.local.array(a_count, int32), cuda.local.array(a_count, int32)
        b_u, b_v = cuda.local.array(b_count, int32), cuda.local.array(b_count, int32)
        a_offsets, b_offsets = cuda.local.array(a_count, index), cuda.local.array(b_count, index)
        a_pointer, a_source = a
        b_pointer, b_source = b
        prepare_a(a_source, a_u, a_v, a_offsets, rows, first_row)
        prepare_b(b_source, b_u, b_v, b_offsets, columns, first_column)
        warp, lane = uint32(cuda.threadIdx.x) // WARP, uint32(cuda.threadIdx.x) % WARP
        warp_row, warp_column = warp // warps_across * warp_rows, warp % warps_across * warp_columns
        own_row = first_row + warp_row + lane // 4
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
            start = first + ahead * DEPTH
            if start < last:
                place = uint32(address + ahead * (4 * floats))
                copy_a(place, a_source, a_pointer, a_u, a_v, a_offsets, start, last)
                copy_b(uint32(place + 4 * a_floats), b_source, b_pointer, b_u, b_v, b_offsets, start, last)
            cp_async_commit()

        stage, free = uint32(0), uint32(stages - 1)  # what is multiplied, and what the last slab but one has left
        for start in range(first, last, DEPTH):
            cp_async_wait(stages - 2)
            cuda.syncthreads()  # the slab has arrived for all, and all have done with the one before
            ahead = start + (stages - 1) * DEPTH
            if ahead < last:
                place = uint32(address + free * (4 * floats))
                copy_a(place, a_source, a_pointer, a_u, a_v, a_offsets, ahead, last)
                copy_b(uint32(place + 4 * a_floats), b_source, b_pointer, b_u, b_v, b_offsets, ahead, last)
            cp_async_commit()
            base = uint32(stage * floats)
            place = uint32(address + stage * (4 * floats))
            for k in range(DEPTH // 8):
                a_fragments(a_values, memory, base, place, warp_row, k)
                b_fragments(b_values, memory, base + a_floats, place + 4 * a_floats, warp_column, k)
                for i in range(down):
                    for j in range(across):
                        product = mma_tf32(
                            (a_values[i, 0], a_values[i, 1], a_values[i, 2], a_values[i, 3]),
                            (b_values[j, 0], b_values[j, 1]),
                            (sums[i, j, 0], sums[i, j, 1], sums[i, j, 2], sums[i, j, 3]),
                        )
                        for part in range(4):
                            sums[i, j, part] = product[part]
            free = stage
            stage = uint32(stage + 1 if stage + 1 < stages else 0)

        has_nan = False
        for i in range(down):
            for half in range(2):
                row = index(own_row + 16 * i + 8 * half)
                if row < rows:
                    for j in range(across):
                        column = index(own_column + 8 * j)
                        if column < columns:
                            left, right = sums[i, j, 2 * half], sums[i, j, 2 * half + 1]
                            store(c, row, column, left, right)
                            has_nan |= left != left or right != right
        return has_nan

    return multiply
