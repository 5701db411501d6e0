"""Winograd's minimal filtering F(2x2, 3x3): the transforms around its 16 matrix products.

    y = A^T [(G g G^T) * (B^T d B)] A          of 2x2 outputs, from a window d of 4x4 and weights g of 3x3
    g' = G^T [sum over tiles (B^T d B) * (A e A^T)] G, of the gradient e of such outputs

where * is by elements, and a product of matrices over channels at each of the 16 positions: 16 multiplications where
the definition takes 36. The transforms add and subtract vectors of channels, a line of tiles at a time, and keep in
registers what neighbouring tiles share. What a tile holds is added up before it is multiplied, so an error is in
proportion to the largest numbers of the tile and not of the window.

Source  A. Lavin, S. Gray, "Fast algorithms for convolutional neural networks", CVPR 2016, arXiv:1509.09308, with the
        last row of B^T and the last column of A^T negated; B. Barabasz et al., "Error analysis and improving the
        accuracy of Winograd convolution for deep neural networks", ACM TOMS 46, 2020, arXiv:1803.10986.
"""

import ctypes
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from minidl.backends.cpu.machine_code import I64, LANES, POINTER, VECTOR, ZERO, built, caller, number, once, vector_at

POSITIONS = 16
(INPUTS, GRADIENTS, WEIGHTS, OUTPUTS, WEIGHT_GRADIENTS) = range(5)

_TAKES = {
    "x": POINTER,
    **dict.fromkeys(("x_line", "x_column", "x_tile"), I64),
    "v": POINTER,
    **dict.fromkeys(("v_position", "v_tile", "tiles"), I64),
}
_GIVES = {
    "m": POINTER,
    **dict.fromkeys(("m_position", "m_tile"), I64),
    "y": POINTER,
    **dict.fromkeys(("y_line", "y_column", "y_tile", "tiles"), I64),
    "check": POINTER,
}
_TAKES_TYPE = ir.FunctionType(ir.VoidType(), list(_TAKES.values()))
_GIVES_TYPE = ir.FunctionType(ir.VoidType(), list(_GIVES.values()))
_FMA = f"llvm.fmuladd.v{LANES}f32"
_HALF = ir.Constant(VECTOR, [0.5] * LANES)

Vectors = list[Any]
Transform = Callable[[ir.IRBuilder, Sequence[Any]], Vectors]


def _of_window(b: ir.IRBuilder, d: Sequence[Any]) -> Vectors:
    """B^T of a column of four, or a row."""
    return [b.fsub(d[0], d[2]), b.fadd(d[1], d[2]), b.fsub(d[2], d[1]), b.fsub(d[3], d[1])]


def _of_gradient(b: ir.IRBuilder, e: Sequence[Any]) -> Vectors:
    """A of a column of two, or a row."""
    return [e[0], b.fadd(e[0], e[1]), b.fsub(e[0], e[1]), e[1]]


def _of_weights(b: ir.IRBuilder, g: Sequence[Any]) -> Vectors:
    """G of a column of three, or a row."""
    outer = b.fadd(g[0], g[2])
    return [g[0], b.fmul(_HALF, b.fadd(outer, g[1])), b.fmul(_HALF, b.fsub(outer, g[1])), g[2]]


def _to_outputs(b: ir.IRBuilder, m: Sequence[Any]) -> Vectors:
    """A^T of a column of four, or a row."""
    return [b.fadd(b.fadd(m[0], m[1]), m[2]), b.fadd(b.fsub(m[1], m[2]), m[3])]


def _to_weights(b: ir.IRBuilder, m: Sequence[Any]) -> Vectors:
    """G^T of a column of four, or a row."""
    middle = b.fmul(_HALF, b.fadd(m[1], m[2]))
    return [b.fadd(m[0], middle), b.fmul(_HALF, b.fsub(m[1], m[2])), b.fadd(middle, m[3])]


def _places(b: ir.IRBuilder, base: Any, pitch: Any) -> tuple[Vectors, Vectors]:
    """Pointers to the first position of each four, and what is added to them for each of the four."""
    rows = [base]
    for _ in range(3):
        rows.append(b.gep(rows[-1], [b.shl(pitch, number(2))]))
    return rows, [b.mul(pitch, number(j)) for j in range(4)]


class _Tiles:
    """The loop of a function over its tiles, one block; what changes from tile to tile."""

    def __init__(self, module: ir.Module, name: str, kind: Any, takes: Iterable[str]) -> None:
        self.function = ir.Function(module, kind, name)
        self.given = dict(zip(takes, self.function.args, strict=True))
        self.entry, self.head, self.done = (self.function.append_basic_block(at) for at in ("entry", "head", "done"))
        self.b = ir.IRBuilder(self.entry)

    def begin(self, *first: Any) -> Vectors:
        """From here on it is the loop's body; of each of `first`, the values before it, what it is in a tile."""
        self.b.branch(self.head)
        self.b.position_at_end(self.head)
        self.first = [number(0), *first]
        self.now = [self.b.phi(value.type) for value in self.first]
        return self.now[1:]

    def end(self, *following: Any) -> None:
        """What they are in the tile after this one."""
        b = self.b
        count = b.add(self.now[0], number(1))
        for phi, first, after in zip(self.now, self.first, [count, *following], strict=True):
            phi.add_incoming(first, self.entry)
            phi.add_incoming(after, self.head)
        b.cbranch(b.icmp_signed("<", count, self.given["tiles"]), self.head, self.done)
        b.position_at_end(self.done)


def _take(module: ir.Module, name: str, size: int, shared: int, transform: Transform) -> None:
    """Tiles of `size` lines and columns, of which neighbours share `shared` columns, to their 16 positions."""
    loop = _Tiles(module, name, _TAKES_TYPE, _TAKES)
    b, given = loop.b, loop.given

    def column(x: Any, j: int) -> Vectors:
        at = b.mul(given["x_column"], number(j))
        places = [b.add(at, b.mul(given["x_line"], number(i))) for i in range(size)]
        return transform(b, [b.load(vector_at(b, x, place), align=4) for place in places])

    x, v, *held = loop.begin(given["x"], given["v"], *(one for j in range(shared) for one in column(given["x"], j)))
    columns = [held[4 * j : 4 * j + 4] for j in range(shared)] + [column(x, j) for j in range(shared, size)]
    rows, steps = _places(b, v, given["v_position"])
    for i in range(4):
        for step, made in zip(steps, transform(b, [one[i] for one in columns]), strict=True):
            b.store(made, vector_at(b, rows[i], step), align=4)
    kept = [one for column in columns[size - shared :] for one in column]
    loop.end(b.gep(x, [given["x_tile"]]), b.gep(v, [given["v_tile"]]), *kept)
    b.ret_void()


def _give(module: ir.Module, name: str, transform: Transform) -> None:
    """Tiles' 16 positions to as many lines and columns as `transform` makes.

    `check` (LANES,) becomes NaN where one is NaN or infinite.
    """
    loop = _Tiles(module, name, _GIVES_TYPE, _GIVES)
    b, given = loop.b, loop.given
    check = vector_at(b, given["check"], number(0))
    m, y, seen = loop.begin(given["m"], given["y"], b.load(check, align=4))
    rows, steps = _places(b, m, given["m_position"])
    columns = [transform(b, [b.load(vector_at(b, row, step), align=4) for row in rows]) for step in steps]
    sees = seen
    for i in range(len(columns[0])):
        line = b.gep(y, [b.mul(given["y_line"], number(i))])
        for j, made in enumerate(transform(b, [column[i] for column in columns])):
            b.store(made, vector_at(b, line, b.mul(given["y_column"], number(j))), align=4)
            sees = b.call(module.globals[_FMA], [made, ZERO, sees])
    loop.end(b.gep(m, [given["m_tile"]]), b.gep(y, [given["y_tile"]]), sees)
    b.store(sees, check, align=4)
    b.ret_void()


_LONG, _PLACE = ctypes.c_int64, ctypes.c_void_p
_OF_WEIGHTS = ctypes.CFUNCTYPE(None, _PLACE, *[_LONG] * 3, _PLACE, *[_LONG] * 3)
_TO_WEIGHTS = ctypes.CFUNCTYPE(None, _PLACE, *[_LONG] * 2, _PLACE, *[_LONG] * 4, _PLACE)


@built(("inputs", "gradients", "weights", "outputs", "weight_gradients"))
def _addresses() -> ir.Module:
    module = ir.Module("minidl.winograd")
    ir.Function(module, ir.FunctionType(VECTOR, [VECTOR] * 3), _FMA)
    _take(module, "inputs", 4, 2, _of_window)
    _take(module, "gradients", 2, 0, _of_gradient)
    _take(module, "weights", 3, 0, _of_weights)
    _give(module, "outputs", _to_outputs)
    _give(module, "weight_gradients", _to_weights)
    return module


@once
def _built() -> tuple[np.ndarray, Any, Any]:
    """The table, and the functions of weights for Python."""
    table = np.array(_addresses(), np.int64)
    return table, _OF_WEIGHTS(int(table[WEIGHTS])), _TO_WEIGHTS(int(table[WEIGHT_GRADIENTS]))


def transform_table() -> np.ndarray:
    """Addresses of the transforms, by their numbers; built at the first call."""
    return _built()[0]


def transform_weights(w: np.ndarray, packed: np.ndarray, first: int, last: int, width: int) -> None:
    """Vectors first to last of w (3, 3, c_in, c_out) to `packed` (16, blocks, c_in, width): c_out in blocks of `width`.

    Both are contiguous, c_out is a multiple of the vectors' lanes. Releases the GIL.
    """
    inputs, outputs = w.shape[2:]
    position, block = -(-outputs // width) * inputs * width, inputs * width
    x, v = w.ctypes.data, packed.ctypes.data
    for lane in range(first * LANES, last * LANES, LANES):
        place = lane // width * block + lane % width
        _built()[1](
            x + 4 * lane, 3 * inputs * outputs, inputs * outputs, outputs, v + 4 * place, position, width, inputs
        )


def transform_gradients(summed: np.ndarray, dw: np.ndarray, first: int, last: int) -> None:
    """Vectors first to last of dw (3, 3, c_in, c_out) from `summed` (16, c_in, c_out); as `transform_weights`."""
    inputs, outputs = dw.shape[2:]
    m, y, check = summed.ctypes.data, dw.ctypes.data, np.zeros(LANES, np.float32)
    for lane in range(4 * first * LANES, 4 * last * LANES, 4 * LANES):
        of = m + lane, inputs * outputs, outputs
        _built()[2](*of, y + lane, 3 * inputs * outputs, inputs * outputs, outputs, inputs, check.ctypes.data)


@intrinsic
def take_tiles(
    typing: Any,
    address: Any,
    x: Any,
    x_start: Any,
    x_line: Any,
    x_column: Any,
    x_tile: Any,
    v: Any,
    v_start: Any,
    v_position: Any,
    v_tile: Any,
    tiles: Any,
) -> Any:
    """Call INPUTS, GRADIENTS or WEIGHTS: a vector of each of the tiles, one at least, to its 16 positions.

    Arrays are contiguous float32, whose starts count from their first elements; other places are elements apart.
    """
    n = types.intp
    return types.void(n, x, n, n, n, n, v, n, n, n, n), caller(_TAKES_TYPE)


@intrinsic
def give_tiles(
    typing: Any,
    address: Any,
    m: Any,
    m_start: Any,
    m_position: Any,
    m_tile: Any,
    y: Any,
    y_start: Any,
    y_line: Any,
    y_column: Any,
    y_tile: Any,
    tiles: Any,
    check: Any,
    check_start: Any,
) -> Any:
    """Call OUTPUTS or WEIGHT_GRADIENTS, the other way; `check` (LANES,) is NaN after a number that is not finite."""
    n = types.intp
    return types.void(n, m, n, n, n, y, n, n, n, n, n, check, n), caller(_GIVES_TYPE)
