"""Weights as the tensor cores want them: in slabs, once a launch, for kernels/conv/wgmma.py.

The copy engine moves bytes as they are, so the weights are put into scratch memory as a tile's slabs are to lie in
shared memory: for each column of tiles, for each 32 steps of depth, `columns` lines of 128 bytes with wgmma's swizzle,
rounded to TF32; zeros where there is no such column or step. So a slab is brought by one instruction of one thread, and
no thread of the product spends a register or an address on weights.

    forward         lines are c_out, steps the taps of a window           w is turned
    input gradient  lines are c_in, steps taps of a phase times c_out     one part for each phase

Traffic  reads w once (forward) or once for each phase (stride 2: 4 phases, a quarter of w each), writes as much.

A thread makes one chunk of 16 bytes. Two lanes make both chunks of a sector of 32 bytes, 16 pairs of them 16 lines, so
that what a warp reads of w, 16 neighbours of two rows or 32 bytes of 16, is whole sectors as well.
"""

from collections.abc import Callable
from typing import Any

from numba import cuda, float32, int64, uint32

from kernels.conv.geometry import Geometry
from kernels.conv.tensor_core import POINTS, STAGE, STRIDED
from kernels.conv.tensor_core_sides import input_gradient
from kernels.device import inlined
from kernels.guarded_load import load4_where
from kernels.intrinsics import store4
from kernels.launch import Cost, Floats, Launch, UInt32s, blocks_for, kernel
from kernels.matmul.tensor_tiles import CHUNK, DEPTH
from kernels.matmul.wgmma_tiles import LARGE, LOW, NARROW, WgmmaTile
from kernels.tensor_core import to_tf32

BLOCK = 256
CHUNKS = DEPTH // CHUNK  # of a line


def slabs_shape(tile: WgmmaTile, columns: int, depth: int, phases: int = 1) -> tuple[int, int, int, int, int]:
    """Of the packed weights: phases, columns of tiles, slabs, lines, floats of a line."""
    return phases, blocks_for(columns, tile.columns), blocks_for(depth, DEPTH), tile.columns, DEPTH


def _place(tile: WgmmaTile, columns: int, depth: int) -> Callable[..., Any]:
    """Make a device function: phase, line and first step of a thread's chunk, and where it goes, in floats."""
    _, across, slabs, lines, _ = slabs_shape(tile, columns, depth)

    @inlined
    def place():
        number = int64(cuda.blockIdx.x) * BLOCK + cuda.threadIdx.x
        chunk = uint32(number % 2 + number // 32 % (CHUNKS // 2) * 2)
        part = number // (16 * CHUNKS)  # 16 lines of a slab
        line = uint32(number // 2 % 16 + part % (lines // 16) * 16)
        slab = part // (lines // 16)
        column = uint32(slab // slabs % across * lines + line)
        target = (slab * lines + line) * DEPTH + (chunk ^ line % 8) * CHUNK
        return uint32(slab // (slabs * across)), column, uint32(slab % slabs * DEPTH + chunk * CHUNK), target

    return place


def _launch(
    function: Callable[..., None], tile: WgmmaTile, geometry: Geometry, columns: int, depth: int, phases: int
) -> Launch:
    shape = slabs_shape(tile, columns, depth, phases)
    chunks = shape[0] * shape[1] * shape[2] * shape[3] * CHUNKS
    return Launch(
        function,
        block=BLOCK,
        grid=lambda: blocks_for(chunks, BLOCK),
        cost=lambda: Cost(4 * geometry.w_size, 16 * chunks),
    )


@kernel(
    traffic="w -> packed",
    registers=48,
    instructions=("STG.E.128",),
    examples=[(LARGE, STAGE), (LOW, STRIDED), (NARROW, POINTS)],
)
def conv2d_forward_pack_wgmma(tile: WgmmaTile, geometry: Geometry) -> Launch:
    """Weights (taps, c_out) as slabs of lines c_out."""
    c_out, taps = geometry.c_out, geometry.taps
    place = _place(tile, c_out, taps)

    def conv2d_forward_pack(w: Floats, packed: UInt32s):
        _, k, tap, target = place()
        a = b = c = d = float32(0)
        if k < c_out and tap < taps:  # taps are a multiple of 4
            first = int64(tap) * c_out + k
            a, b, c, d = w[first], w[first + c_out], w[first + 2 * c_out], w[first + 3 * c_out]
        store4(packed, target, to_tf32(a), to_tf32(b), to_tf32(c), to_tf32(d))

    return _launch(conv2d_forward_pack, tile, geometry, c_out, taps, 1)


@kernel(
    traffic="w -> packed",
    registers=48,
    instructions=("LDG.E.128", "STG.E.128"),
    examples=[(LARGE, STAGE), (LOW, STRIDED), (NARROW, POINTS)],
)
def conv2d_backward_input_pack_wgmma(tile: WgmmaTile, geometry: Geometry) -> Launch:
    """Weights (taps, c_out) as slabs of lines c_in, for each phase."""
    c_in = geometry.c_in
    phases, _, depth = geometry.input_products()
    place = _place(tile, c_in, depth)
    of_line, of_step, inside, _, _ = input_gradient(geometry, int64).w

    def conv2d_backward_input_pack(w: Floats, packed: UInt32s):
        phase, c, step, target = place()
        there, first = False, int64(0)
        if c < c_in and step < depth:
            u, v, of_c = of_line(phase, c)
            step_u, step_v, of_tap = of_step(phase, step)
            there = inside(u, v, step_u, step_v)
            first = of_c + of_tap if there else int64(0)
        a, b, c, d = load4_where(w, first, there)
        store4(packed, target, to_tf32(a), to_tf32(b), to_tf32(c), to_tf32(d))

    return _launch(conv2d_backward_input_pack, tile, geometry, c_in, depth, phases)
