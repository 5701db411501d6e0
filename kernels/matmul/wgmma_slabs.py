"""What brings slabs of a factor from global to shared memory for kernels/matmul/wgmma_product.py, by way of registers.

The tensor cores do not look at the low 13 bits of a TF32, so what is not rounded is cut off, and sums of it are too
small by up to a part in 1,024, all in one direction. Between global and shared memory it can be rounded for nothing but
the instructions: a thread loads the next slab's elements into registers while this one is multiplied, and stores them,
rounded to nearest, when it has arrived itself. (cp.async would go past the registers, and rounding in place read and
write shared memory once more: the way that is scarce here.)

What is contiguous along the depth is stored as it comes, 16 bytes at a time. What is contiguous across the depth is
turned on the way: a thread has 4 neighbouring lines of one step and stores 4 words. Eight lanes' 16-byte chunks of a
line, and the words of 16 steps of 2 times 4 lines, are all in different banks (swizzle: kernels/wgmma.py). Of such a
factor a warp loads 32 bytes from each of 16 steps: whole sectors. So neither factor of a weight gradient needs a pass
over memory that turns it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from numba import cuda, uint32, uint64

from kernels.device import WARP, inlined
from kernels.guarded_load import load4_where
from kernels.intrinsics import store4
from kernels.matmul.tensor_copies import Side
from kernels.matmul.tensor_tiles import CHUNK, DEPTH, FAR
from kernels.matmul.wgmma_tiles import WgmmaTile
from kernels.tensor_core import to_tf32

PART = 16  # steps of a warp, of a factor that is turned
EIGHT = 8  # chunks of a line, lines of an atom


class Slabs(NamedTuple):
    """Device functions of one factor; a thread keeps coordinates u, v and offsets of `lines` of them, or fours."""

    lines: int
    prepare: Callable[..., Any]  # (source, u, v, offsets, lines, first_line): fill them in
    fetch: Callable[..., Any]  # (values, source, x, u, v, offsets, start, last): load a slab's elements
    put: Callable[..., Any]  # (memory, base, values): store them, rounded, in the slab at memory[base]


def slabs_of(tile: WgmmaTile, lines: int, side: Side, index: Any) -> Slabs:
    """Make them for a factor of which a tile has so many lines. `values` is a local array (count, 4) of float32."""
    threads, along_depth = tile.threads, side.along_depth
    of_line, of_step, inside = side.of_line, side.of_step, side.inside
    apart = threads // EIGHT  # lines from one of a thread's to the next
    count = lines // apart

    @inlined
    def own():
        """The first line, and the step, of a thread."""
        thread = uint32(cuda.threadIdx.x)
        if along_depth:
            return thread // EIGHT, thread % EIGHT * CHUNK
        warp, lane = thread // WARP, thread % WARP
        return warp // 2 * EIGHT + lane % 2 * CHUNK, warp % 2 * PART + lane // 2

    @inlined
    def prepare(source, u, v, offsets, lines, first_line):
        line, _ = own()
        for i in range(count):
            u[i], v[i], offsets[i] = FAR, 0, 0
            if first_line + line + i * apart < lines:
                u[i], v[i], offsets[i] = of_line(source, index(first_line + line + i * apart))

    @inlined
    def fetch(values, source, x, u, v, offsets, start, last):
        _, own_step = own()
        step = index(start + own_step)
        step_u, step_v, offset = of_step(source, step)
        for i in range(count):
            there = step < last and inside(u[i], v[i], step_u, step_v)
            four = load4_where(x, index(offsets[i] + offset) if there else index(0), there)
            for part in range(CHUNK):
                values[i, part] = four[part]

    @inlined
    def put(memory, base, values):
        line, step = own()
        for i in range(count):
            a, b = to_tf32(values[i, 0]), to_tf32(values[i, 1])
            c, d = to_tf32(values[i, 2]), to_tf32(values[i, 3])
            place = uint32(base + (line + i * apart) * DEPTH)
            if along_depth:
                store4(memory, uint32(place + (step // CHUNK ^ line % EIGHT) * CHUNK), a, b, c, d)
            else:
                place, chunk, first = uint32(place + step % CHUNK), step // CHUNK, line % EIGHT
                memory[uint64(place + (chunk ^ first) * CHUNK)] = a
                memory[uint64(place + DEPTH + (chunk ^ first + 1) * CHUNK)] = b
                memory[uint64(place + 2 * DEPTH + (chunk ^ first + 2) * CHUNK)] = c
                memory[uint64(place + 3 * DEPTH + (chunk ^ first + 3) * CHUNK)] = d

    return Slabs(count, prepare, fetch, put)
