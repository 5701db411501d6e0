"""Blocks of a matrix product that stay in vector registers: the inner loop of every convolution on the CPU.

    y[p, lane] (+)= sum over image, row, k of  x[p * x_pixel + image * x_image + row * x_row + k * x_step]
                                               * w[image * w_image + row * w_row + k * w_step + lane]

for a few p and one or VECTORS vectors of lanes, SUMS vectors of sums at most. What lies side by side in memory is in
the lanes: w is read in vectors, and x one number at a time, which multiplies all lanes. A loop in Numba leaves it to
LLVM where the sums are kept, and LLVM loads and stores them at every step; here they are values of its own language,
one for each vector, so it keeps them in registers. That takes a function for each number of pixels and vectors. It may
do the same at several positions, each with an x, a w and a y of its own: where a product is short, a call costs much.

One form serves all three directions: forward and the gradient of the input have output channels in the lanes and walk
through taps and input channels; the gradient of the weights has output channels in the lanes, taps and input channels
in the place of the pixels, and walks through the pixels.

Source  K. Goto, R. van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34, 2008; E. Georganas
        et al., "Anatomy of high-performance deep learning convolutions on SIMD architectures", SC18, arXiv:1808.05567.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from minidl.backends.cpu.machine_code import (
    I64,
    LANES,
    POINTER,
    SUMS,
    VECTOR,
    ZERO,
    built,
    caller,
    number,
    once,
    spread,
    vector_at,
)

VECTORS = 2
WIDTH = VECTORS * LANES  # lanes of the widest block

_ARGUMENTS = {
    "x": POINTER,
    **dict.fromkeys(("x_position", "x_pixel", "x_image", "x_row", "x_step"), I64),
    "w": POINTER,
    **dict.fromkeys(("w_position", "w_image", "w_row", "w_step"), I64),
    **dict.fromkeys(("positions", "images", "rows", "depth"), I64),
    "y": POINTER,
    **dict.fromkeys(("y_position", "y_pixel", "adds"), I64),
}
_FMA = f"llvm.fmuladd.v{LANES}f32"  # fused where the processor can; never a call of the C library
_FUNCTION = ir.FunctionType(ir.VoidType(), list(_ARGUMENTS.values()))


def _define(module: ir.Module, name: str, pixels: int, vectors: int) -> None:
    """The function for so many pixels and vectors; `positions`, `images`, `rows` and `depth` are at least 1."""
    function = ir.Function(module, _FUNCTION, name)
    given = dict(zip(_ARGUMENTS, function.args, strict=True))
    fma = module.globals[_FMA]
    cells = [(p, v) for p in range(pixels) for v in range(vectors)]
    names = (
        "entry",
        "position",
        "image",
        "row",
        "step",
        "row_end",
        "image_end",
        "finish",
        "add",
        "store",
        "next",
        "done",
    )
    blocks = {one: function.append_basic_block(one) for one in names}
    entry, finish, add, store, done = (blocks[one] for one in ("entry", "finish", "add", "store", "done"))

    b = ir.IRBuilder(entry)
    b.branch(blocks["position"])
    b.position_at_end(blocks["position"])
    count, *places = (b.phi(kind) for kind in (I64, POINTER, POINTER, POINTER))
    x, w, y = places
    b.branch(blocks["image"])

    image = _Loop(b, blocks["image"], blocks["position"], x, w, dict.fromkeys(cells, ZERO))
    b.branch(blocks["row"])
    row = _Loop(b, blocks["row"], blocks["image"], image.x, image.w, image.sums)
    b.branch(blocks["step"])
    step = _Loop(b, blocks["step"], blocks["row"], row.x, row.w, row.sums)
    weights = [b.load(vector_at(b, step.w, number(v * LANES)), align=4) for v in range(vectors)]
    sums = {}
    for p in range(pixels):
        value = spread(b, b.load(b.gep(step.x, [b.mul(number(p), given["x_pixel"])]), align=4))
        for v in range(vectors):
            sums[p, v] = b.call(fma, [value, weights[v], step.sums[p, v]])
    step.end(blocks["step"], given["depth"], given["x_step"], given["w_step"], sums, blocks["row_end"])
    row.end(blocks["row_end"], given["rows"], given["x_row"], given["w_row"], sums, blocks["image_end"])
    image.end(blocks["image_end"], given["images"], given["x_image"], given["w_image"], sums, finish)

    b.position_at_end(finish)
    targets = {}
    for p, v in cells:
        targets[p, v] = vector_at(b, y, b.add(b.mul(number(p), given["y_pixel"]), number(v * LANES)))
    b.cbranch(b.icmp_signed("!=", given["adds"], number(0)), add, store)
    b.position_at_end(add)
    for cell in cells:
        b.store(b.fadd(b.load(targets[cell], align=4), sums[cell]), targets[cell], align=4)
    b.branch(blocks["next"])
    b.position_at_end(store)
    for cell in cells:
        b.store(sums[cell], targets[cell], align=4)
    b.branch(blocks["next"])

    b.position_at_end(blocks["next"])
    following = b.add(count, number(1))
    count.add_incoming(number(0), entry)
    count.add_incoming(following, blocks["next"])
    for place, array in zip(places, "xwy", strict=True):
        place.add_incoming(given[array], entry)
        place.add_incoming(b.gep(place, [given[f"{array}_position"]]), blocks["next"])
    b.cbranch(b.icmp_signed("<", following, given["positions"]), blocks["position"], done)
    b.position_at_end(done)
    b.ret_void()


class _Loop:
    """One of the loops inside each other: a count, where x and w have come to, and the sums."""

    def __init__(self, b: Any, head: Any, before: Any, x: Any, w: Any, sums: dict[tuple[int, int], Any]) -> None:
        """Begins in block `head`; `before` is the one that it is come from, with these values."""
        b.position_at_end(head)
        self.b, self.head = b, head
        self.count, self.x, self.w = b.phi(I64), b.phi(POINTER), b.phi(POINTER)
        self.sums = {cell: b.phi(VECTOR) for cell in sums}
        self._come(before, number(0), x, w, sums)

    def end(
        self, tail: Any, times: Any, x_step: Any, w_step: Any, sums: dict[tuple[int, int], Any], after: Any
    ) -> None:
        """In block `tail`: `times` times in all, and on to `after`."""
        b = self.b
        b.position_at_end(tail)
        count = b.add(self.count, number(1))
        self._come(tail, count, b.gep(self.x, [x_step]), b.gep(self.w, [w_step]), sums)
        b.cbranch(b.icmp_signed("<", count, times), self.head, after)

    def _come(self, block: Any, count: Any, x: Any, w: Any, sums: dict[tuple[int, int], Any]) -> None:
        for phi, value in ((self.count, count), (self.x, x), (self.w, w)):
            phi.add_incoming(value, block)
        for cell, phi in self.sums.items():
            phi.add_incoming(sums[cell], block)


_SIZES = [(vectors, pixels) for vectors in range(1, VECTORS + 1) for pixels in range(1, SUMS // vectors + 1)]
_NAMES = [f"block_{vectors}_{pixels}" for vectors, pixels in _SIZES]


@built(_NAMES)
def _addresses() -> ir.Module:
    module = ir.Module("minidl.blocks")
    ir.Function(module, ir.FunctionType(VECTOR, [VECTOR] * 3), _FMA)
    for name, (vectors, pixels) in zip(_NAMES, _SIZES, strict=True):
        _define(module, name, pixels, vectors)
    return module


@once
def block_table() -> np.ndarray:
    """Addresses of the functions, (VECTORS + 1, SUMS + 1) int64, by vectors and pixels; built at the first call.

    For as many pixels as SUMS // vectors.
    """
    table = np.zeros((VECTORS + 1, SUMS + 1), np.int64)
    for address, (vectors, pixels) in zip(_addresses(), _SIZES, strict=True):
        table[vectors, pixels] = address
    return table


@intrinsic
def multiply_block(
    typing: Any,
    function: Any,
    x: Any,
    x_start: Any,
    x_position: Any,
    x_pixel: Any,
    x_image: Any,
    x_row: Any,
    x_step: Any,
    w: Any,
    w_start: Any,
    w_position: Any,
    w_image: Any,
    w_row: Any,
    w_step: Any,
    positions: Any,
    images: Any,
    rows: Any,
    depth: Any,
    y: Any,
    y_start: Any,
    y_position: Any,
    y_pixel: Any,
    adds: Any,
) -> Any:
    """Call a function of the table; x, w and y are contiguous float32, whose starts count from their first elements."""
    n = types.intp
    return types.void(n, x, *[n] * 6, w, *[n] * 9, y, *[n] * 4), caller(_FUNCTION)
