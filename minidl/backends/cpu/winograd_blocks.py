"""Blocks of matrix products in registers (blocks.py), of all of Winograd's positions in one call.

    y[position, p, lane] (+)= sum over k of x[position, p * x_pixel + k * x_step] * w[position, k * w_step + lane]

A product is short, of as many steps as there are channels, so that a call for each would take a tenth of its time.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from minidl.backends.cpu.blocks import FMA, SIZES, VECTORS, Loop
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

_ARGUMENTS = {
    "x": POINTER,
    **dict.fromkeys(("x_position", "x_pixel", "x_step"), I64),
    "w": POINTER,
    **dict.fromkeys(("w_position", "w_step"), I64),
    **dict.fromkeys(("positions", "depth"), I64),
    "y": POINTER,
    **dict.fromkeys(("y_position", "y_pixel", "adds"), I64),
}
_FUNCTION = ir.FunctionType(ir.VoidType(), list(_ARGUMENTS.values()))
_NAMES = [f"positions_{vectors}_{pixels}" for vectors, pixels in SIZES]


def _define(module: ir.Module, name: str, pixels: int, vectors: int) -> None:
    """The function for so many pixels and vectors; `positions` and `depth` are at least 1."""
    function = ir.Function(module, _FUNCTION, name)
    given = dict(zip(_ARGUMENTS, function.args, strict=True))
    cells = [(p, v) for p in range(pixels) for v in range(vectors)]
    names = "entry", "position", "step", "finish", "add", "store", "next", "done"
    entry, head, inner, finish, add, store, after, done = (function.append_basic_block(one) for one in names)

    b = ir.IRBuilder(entry)
    b.branch(head)
    b.position_at_end(head)
    count, *places = (b.phi(kind) for kind in (I64, POINTER, POINTER, POINTER))
    x, w, y = places
    b.branch(inner)
    step = Loop(b, inner, head, x, w, dict.fromkeys(cells, ZERO))
    weights = [b.load(vector_at(b, step.w, number(v * LANES)), align=4) for v in range(vectors)]
    sums = {}
    for p in range(pixels):
        value = spread(b, b.load(b.gep(step.x, [b.mul(number(p), given["x_pixel"])]), align=4))
        for v in range(vectors):
            sums[p, v] = b.call(module.globals[FMA], [value, weights[v], step.sums[p, v]])
    step.end(inner, given["depth"], given["x_step"], given["w_step"], sums, finish)

    b.position_at_end(finish)
    targets = {(p, v): vector_at(b, y, b.add(b.mul(number(p), given["y_pixel"]), number(v * LANES))) for p, v in cells}
    b.cbranch(b.icmp_signed("!=", given["adds"], number(0)), add, store)
    b.position_at_end(add)
    for cell in cells:
        b.store(b.fadd(b.load(targets[cell], align=4), sums[cell]), targets[cell], align=4)
    b.branch(after)
    b.position_at_end(store)
    for cell in cells:
        b.store(sums[cell], targets[cell], align=4)
    b.branch(after)

    b.position_at_end(after)
    following = b.add(count, number(1))
    count.add_incoming(number(0), entry)
    count.add_incoming(following, after)
    for place, array in zip(places, "xwy", strict=True):
        place.add_incoming(given[array], entry)
        place.add_incoming(b.gep(place, [given[f"{array}_position"]]), after)
    b.cbranch(b.icmp_signed("<", following, given["positions"]), head, done)
    b.position_at_end(done)
    b.ret_void()


@built(_NAMES)
def _addresses() -> ir.Module:
    module = ir.Module("minidl.winograd_blocks")
    ir.Function(module, ir.FunctionType(VECTOR, [VECTOR] * 3), FMA)
    for name, (vectors, pixels) in zip(_NAMES, SIZES, strict=True):
        _define(module, name, pixels, vectors)
    return module


@once
def position_table() -> np.ndarray:
    """Addresses of the functions, (VECTORS + 1, SUMS + 1) int64, as `block_table`."""
    table = np.zeros((VECTORS + 1, SUMS + 1), np.int64)
    for address, (vectors, pixels) in zip(_addresses(), SIZES, strict=True):
        table[vectors, pixels] = address
    return table


@intrinsic
def multiply_positions(
    typing: Any,
    function: Any,
    x: Any,
    x_start: Any,
    x_position: Any,
    x_pixel: Any,
    x_step: Any,
    w: Any,
    w_start: Any,
    w_position: Any,
    w_step: Any,
    positions: Any,
    depth: Any,
    y: Any,
    y_start: Any,
    y_position: Any,
    y_pixel: Any,
    adds: Any,
) -> Any:
    """Call a function of the table; x, w and y are contiguous float32, whose starts count from their first elements."""
    n = types.intp
    return types.void(n, x, n, n, n, n, w, n, n, n, n, n, y, n, n, n, n), caller(_FUNCTION)
