"""Linear layers of few outputs, as the last of a classifier: products with one side of at most 16.

    y = x @ w.T + bias        dx = dy @ w        dw = dy.T @ x

Shapes as in kernels/linear.py: x, dx (n, c_in); w, dw (c_out, c_in); bias (c_out,); y, dy (n, c_out); c_out at most 16.

There is little to compute for what is read: x or dx, the one large array, should pass once at the speed of memory, and
a square tile would be idle in most of its columns. So here all outputs belong to one thread, in registers.

    forward          A block has `rows` rows of x for each of its warps, and walks along the depth, 128 elements at a
                     time, 4 a lane. What all its rows need of w lies in shared memory, in two buffers by turns: so a
                     step takes one barrier. A lane has `rows` x c_out sums; in the end the lanes of a warp fold them:
                     of two lanes each takes over half of the sums, so that all are busy, and each ends up with a
                     few that are complete. Where rows are too few to fill a GPU the depth is cut into slices, which
                     `kernels.slices.in_slices` adds up.
    backward_input   A thread has 4 columns of w in registers, for all outputs, and goes down the rows; dy lies in
                     shared memory, from where a row's elements are read by all lanes at once.
    backward_weight  A warp has 128 columns of dw, 4 x c_out sums a lane, and goes down every eighth row of x; the warps
                     of a block add up what they have in turn. Of many rows each block has a slice, as above.

Traffic  x or dx once, in accesses of 16 bytes. w once for the rows of a block; dy once for its columns.
Order    No sum takes more than 256 products one after the other; partial sums are added in an order that depends on the
         shape alone, and so do the bits.
Source   tall-and-skinny products: J. Chen et al., "TSM2: optimizing tall-and-skinny matrix-matrix multiplication on
         GPUs", ICS 2019.
"""

from typing import Any

from numba import cuda, float32, int64, uint32

from kernels.device import WARP, inlined
from kernels.intrinsics import load4, store4
from kernels.launch import Cost, Floats, Int64, Launch, blocks_for, kernel
from kernels.matmul.tiles import slices_of

WARPS = 8  # of a block that shares rows among its warps
BLOCK = WARPS * WARP
STEP = 4 * WARP  # elements of a row that a warp takes at once
SUMS = 64  # of a thread, about: registers
ACROSS = 128  # threads of a block of backward_input, each with four columns
MANY_ROWS = 128  # of dy that a block takes, at most: w is read for as many
WIDE = "LDG.E.128", "STG.E.128"
EXAMPLES = [(10, uint32), (1, uint32), (16, uint32), (10, int64)]


def rows_of(c_out: int) -> int:
    """Rows of x that a warp takes at once."""
    return min(8, SUMS // c_out)


def _folder(count: int) -> Any:
    """A device function that folds `count` sums of each lane (a multiple of 32) over the lanes of a warp.

    Of two lanes that are 16, 8, 4, 2, 1 apart, the lower one keeps the first half of what they have. In the end lane l
    has, in its first count / 32 places, those that were number l * count / 32 and following.
    """

    def stage(half: int, lanes: int) -> Any:
        @inlined
        def fold(sums, lane):
            upper = lane & lanes != 0
            for k in range(half):
                given, kept = sums[k] if upper else sums[k + half], sums[k + half] if upper else sums[k]
                sums[k] = kept + cuda.shfl_xor_sync(0xFFFFFFFF, given, lanes)

        return fold

    first, second, third, fourth, fifth = (stage(count >> (k + 1), WARP >> (k + 1)) for k in range(5))

    @inlined
    def fold(sums, lane):
        first(sums, lane)
        second(sums, lane)
        third(sums, lane)
        fourth(sums, lane)
        fifth(sums, lane)

    return fold


@kernel(
    traffic="x, w, bias -> y",
    registers=152,  # on sm_90 128, unless indices have 64 bits: room for two blocks on a multiprocessor
    instructions=("LDG.E.128", "LDS.128"),
    examples=[(c_out, with_bias, index) for c_out, index in EXAMPLES for with_bias in (False, True)],
)
def linear_forward_skinny(c_out: int, with_bias: bool, index: Any) -> Launch:
    """`rows_of(c_out)` rows of y a warp, of a slice of the depth: y is (slices, n, c_out)."""
    rows = rows_of(c_out)
    block_rows, held = WARPS * rows, blocks_for(rows * c_out, WARP)  # complete sums of a lane
    count, quads = held * WARP, c_out * WARP  # quads of w in a step
    fills, buffer, values_size = blocks_for(quads, BLOCK), c_out * STEP, 4 * rows
    fold = _folder(count)

    def linear_forward(x: Floats, w: Floats, bias: Floats, y: Floats, n: Int64, c_in: Int64, span: Int64):
        weights = cuda.shared.array((2, buffer), float32, alignment=16)
        sums = cuda.local.array(count, float32)
        values = cuda.local.array(values_size, float32)
        thread = uint32(cuda.threadIdx.x)
        lane, warp = uint32(thread % WARP), uint32(thread // WARP)
        across = uint32((n + block_rows - 1) // block_rows)
        part = int64(cuda.blockIdx.x // across)
        first_row = int64(cuda.blockIdx.x % across) * block_rows + int64(warp) * rows
        last = min((part + 1) * span, c_in)
        for k in range(count):
            sums[k] = float32(0)
        turn = 0
        for start in range(part * span, last, STEP):
            step = start + int64(4 * lane)
            for r in range(rows):
                a = b = c = d = float32(0)
                if first_row + r < n and step < last:
                    a, b, c, d = load4(x, index((first_row + r) * c_in + step))
                values[4 * r] = a
                values[4 * r + 1] = b
                values[4 * r + 2] = c
                values[4 * r + 3] = d
            for k in range(fills):
                e = uint32(k * BLOCK + thread)
                place = start + int64(e % WARP * 4)
                if e < quads:
                    a = b = c = d = float32(0)
                    if place < last:
                        a, b, c, d = load4(w, index(int64(e // WARP) * c_in + place))
                    store4(weights, turn * buffer + 4 * e, a, b, c, d)
            cuda.syncthreads()
            for o in range(c_out):
                a, b, c, d = load4(weights, turn * buffer + o * STEP + 4 * lane)
                for r in range(rows):
                    total = sums[r * c_out + o]
                    total += values[4 * r] * a
                    total += values[4 * r + 1] * b
                    total += values[4 * r + 2] * c
                    total += values[4 * r + 3] * d
                    sums[r * c_out + o] = total
            turn = 1 - turn
        fold(sums, lane)
        for k in range(held):
            e = uint32(lane * held + k)
            if e < rows * c_out and first_row + int64(e // c_out) < n:
                value = sums[k]
                if with_bias and part == 0:
                    value += bias[e % c_out]
                y[index((part * n + first_row) * c_out + int64(e))] = value

    return Launch(
        linear_forward,
        BLOCK,
        grid=lambda n, c_in, span: blocks_for(n, block_rows) * slices_of(c_in, span),
        cost=lambda n, c_in, span: Cost(
            4 * (n * c_in + c_out * c_in), 4 * slices_of(c_in, span) * n * c_out, 2 * n * c_in * c_out
        ),
    )


@kernel(
    traffic="dy, w -> dx",
    registers=128,
    instructions=(*WIDE, "LDS.128"),
    examples=[(10, uint32), (4, uint32), (16, uint32), (10, int64)],
)
def linear_backward_input_skinny(c_out: int, index: Any) -> Launch:
    """Four columns of `span` rows of dx a thread."""
    pitch = 4 * blocks_for(c_out, 4)
    padded, size, weights_size = pitch // 4, MANY_ROWS * pitch, 4 * c_out

    def linear_backward_input(dy: Floats, w: Floats, dx: Floats, n: Int64, c_in: Int64, span: Int64):
        gradients = cuda.shared.array(size, float32, alignment=16)
        weights = cuda.local.array(weights_size, float32)
        factors = cuda.local.array(pitch, float32)
        thread = uint32(cuda.threadIdx.x)
        columns = uint32((c_in + 4 * ACROSS - 1) // (4 * ACROSS))
        column = int64(cuda.blockIdx.x % columns) * (4 * ACROSS) + int64(4 * thread)
        first = int64(cuda.blockIdx.x // columns) * span
        rows = uint32(min(span, n - first))
        for o in range(c_out):
            a = b = c = d = float32(0)
            if column < c_in:
                a, b, c, d = load4(w, index(o * c_in + column))
            weights[4 * o] = a
            weights[4 * o + 1] = b
            weights[4 * o + 2] = c
            weights[4 * o + 3] = d
        for e in range(thread, rows * pitch, ACROSS):
            row, o = uint32(e // pitch), uint32(e % pitch)
            value = float32(0)
            if o < c_out:
                value = dy[index((first + int64(row)) * c_out + int64(o))]
            gradients[uint32(e)] = value
        cuda.syncthreads()
        if column < c_in:
            for row in range(rows):
                for k in range(padded):
                    a, b, c, d = load4(gradients, uint32(row * pitch + 4 * k))
                    factors[4 * k] = a
                    factors[4 * k + 1] = b
                    factors[4 * k + 2] = c
                    factors[4 * k + 3] = d
                a = b = c = d = float32(0)
                for o in range(c_out):
                    a += factors[o] * weights[4 * o]
                    b += factors[o] * weights[4 * o + 1]
                    c += factors[o] * weights[4 * o + 2]
                    d += factors[o] * weights[4 * o + 3]
                store4(dx, index((first + row) * c_in + column), a, b, c, d)

    return Launch(
        linear_backward_input,
        ACROSS,
        grid=lambda n, c_in, span: blocks_for(c_in, 4 * ACROSS) * blocks_for(n, span),
        cost=lambda n, c_in: Cost(4 * (n * c_out + c_out * c_in), 4 * n * c_in, 2 * n * c_in * c_out),
    )


@kernel(
    traffic="x, dy -> dw",
    registers=128,
    instructions=(*WIDE, "LDS.128"),
    examples=EXAMPLES,
)
def linear_backward_weight_skinny(c_out: int, index: Any) -> Launch:
    """128 columns of dw a block, of a slice of the rows: dw is (slices, c_out, c_in)."""
    pitch = 4 * blocks_for(c_out, 4)
    padded, size, sums_size, partial_size = pitch // 4, STEP * pitch, 4 * c_out, 4 * BLOCK

    def linear_backward_weight(x: Floats, dy: Floats, dw: Floats, n: Int64, c_in: Int64, span: Int64):
        gradients = cuda.shared.array(size, float32, alignment=16)
        partial = cuda.shared.array(partial_size, float32, alignment=16)
        sums = cuda.local.array(sums_size, float32)
        factors = cuda.local.array(pitch, float32)
        thread = uint32(cuda.threadIdx.x)
        lane, warp = uint32(thread % WARP), uint32(thread // WARP)
        columns = uint32((c_in + STEP - 1) // STEP)
        column = int64(cuda.blockIdx.x % columns) * STEP + int64(4 * lane)
        part = int64(cuda.blockIdx.x // columns)
        last = min((part + 1) * span, n)
        for k in range(sums_size):
            sums[k] = float32(0)
        for start in range(part * span, last, STEP):
            rows = uint32(min(STEP, last - start))
            cuda.syncthreads()
            for e in range(thread, rows * pitch, BLOCK):
                row, o = uint32(e // pitch), uint32(e % pitch)
                value = float32(0)
                if o < c_out:
                    value = dy[index((start + int64(row)) * c_out + int64(o))]
                gradients[uint32(e)] = value
            cuda.syncthreads()
            if column < c_in:
                for row in range(warp, rows, WARPS):
                    a, b, c, d = load4(x, index((start + row) * c_in + column))
                    for k in range(padded):
                        p, q, r, s = load4(gradients, uint32(row * pitch + 4 * k))
                        factors[4 * k] = p
                        factors[4 * k + 1] = q
                        factors[4 * k + 2] = r
                        factors[4 * k + 3] = s
                    for o in range(c_out):
                        sums[4 * o] += factors[o] * a
                        sums[4 * o + 1] += factors[o] * b
                        sums[4 * o + 2] += factors[o] * c
                        sums[4 * o + 3] += factors[o] * d
        for o in range(c_out):  # output after output, over the warps
            cuda.syncthreads()
            store4(partial, uint32(4 * thread), sums[4 * o], sums[4 * o + 1], sums[4 * o + 2], sums[4 * o + 3])
            cuda.syncthreads()
            if warp == o % WARPS and column < c_in:
                a = b = c = d = float32(0)
                for k in range(WARPS):
                    p, q, r, s = load4(partial, uint32(k * STEP + 4 * lane))
                    a += p
                    b += q
                    c += r
                    d += s
                store4(dw, index((part * c_out + o) * c_in + column), a, b, c, d)

    return Launch(
        linear_backward_weight,
        BLOCK,
        grid=lambda n, c_in, span: blocks_for(c_in, STEP) * slices_of(n, span),
        cost=lambda n, c_in, span: Cost(
            4 * (n * c_in + n * c_out), 4 * slices_of(n, span) * c_out * c_in, 2 * n * c_in * c_out
        ),
    )
