"""Winograd's minimal filtering F(4x4, 3x3): the transforms around its 36 matrix products.

    y = A^T [(G g G^T) * (B^T d B)] A          of 4x4 outputs, from a window d of 6x6 and weights g of 3x3
    g' = G^T [sum over tiles (B^T d B) * (A e A^T)] G, of the gradient e of such outputs

where * is by elements, and a product of matrices over channels at each of the 36 positions: 36 multiplications where
the definition takes 144. What is multiplied are values of polynomials, at 0, two pairs of points and infinity; the
matrices are in `matrices`. With the points +-11/16 and +-3/2 what rounding loses is some half of what it is with the
usual +-1 and +-2, and everything but G's denominators is exact in float32. The transforms take the even and the odd
part of a pair together, a line of tiles and a vector of channels at a time, and keep in registers what neighbouring
tiles share. What a tile holds is added up before it is multiplied, so an error is in proportion to the largest numbers
of the tile and not of the window.

Source  A. Lavin, S. Gray, "Fast algorithms for convolutional neural networks", CVPR 2016, arXiv:1509.09308; the
        choice of points after B. Barabasz et al., "Error analysis and improving the accuracy of Winograd convolution
        for deep neural networks", ACM TOMS 46, 2020, arXiv:1803.10986.
"""

import ctypes
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from minidl.backends.cpu.machine_code import I64, LANES, POINTER, VECTOR, ZERO, built, caller, number, once, vector_at

TILE_SIDE, TAPS = 4, 3  # outputs and weights, along an axis
SIDE = TILE_SIDE + TAPS - 1
POSITIONS = SIDE * SIDE
NEAR, FAR = 11 / 16, 3 / 2  # the pairs of points
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
Vectors = list[Any]
Transform = Callable[[ir.IRBuilder, Sequence[Any]], Vectors]


def matrices(near: float = NEAR, far: float = FAR) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """B^T (6, 6), G (6, 3) and A^T (4, 6): rows of B^T and G and columns of A^T are points, the last one infinity.

    Of a point p, B^T has the coefficients of the polynomial that is 0 at all the others, G and A^T the powers of p, and
    G the value of that polynomial at p as a denominator.
    """
    points = np.array([0, near, -near, far, -far])
    window, weights, outputs = np.zeros((SIDE, SIDE)), np.zeros((SIDE, TAPS)), np.zeros((SIDE, TILE_SIDE))
    for row, point in enumerate(points):
        others = np.poly(np.delete(points, row))
        window[row, : SIDE - 1] = others[::-1]
        weights[row] = point ** np.arange(TAPS) / np.polyval(others, point)
        outputs[row] = point ** np.arange(TILE_SIDE)
    window[-1] = np.poly(points)[::-1]
    weights[-1, -1] = outputs[-1, -1] = 1
    return window, weights, outputs.T


def _constant(value: float) -> ir.Constant:
    return ir.Constant(VECTOR, [value] * LANES)


def _add(b: ir.IRBuilder, factor: float, x: Any, y: Any) -> Any:
    """Factor times x, and y."""
    return b.call(b.module.globals[_FMA], [_constant(factor), x, y])


# G's denominators: at 0, NEAR and FAR.
_N0, _NA, _NB = NEAR**2 * FAR**2, 2 * NEAR**2 * (NEAR**2 - FAR**2), 2 * FAR**2 * (FAR**2 - NEAR**2)


def _of_window(b: ir.IRBuilder, d: Sequence[Any]) -> Vectors:
    """B^T of a column of six, or a row."""
    found = [_add(b, NEAR**2 * FAR**2, d[0], _add(b, -(NEAR**2 + FAR**2), d[2], d[4]))]
    for point, other in ((NEAR, FAR), (FAR, NEAR)):
        even, odd = (_add(b, -(other**2), low, high) for low, high in ((d[2], d[4]), (d[1], d[3])))
        found += _add(b, point, odd, even), _add(b, -point, odd, even)
    return [*found, _add(b, NEAR**2 * FAR**2, d[1], _add(b, -(NEAR**2 + FAR**2), d[3], d[5]))]


def _of_gradient(b: ir.IRBuilder, e: Sequence[Any]) -> Vectors:
    """A of a column of four, or a row."""
    found = [e[0]]
    for point in (NEAR, FAR):
        even, odd = (_add(b, point**2, high, low) for low, high in ((e[0], e[2]), (e[1], e[3])))
        found += _add(b, point, odd, even), _add(b, -point, odd, even)
    return [*found, e[3]]


def _of_weights(b: ir.IRBuilder, g: Sequence[Any]) -> Vectors:
    """G of a column of three, or a row."""
    found = [b.fmul(_constant(1 / _N0), g[0])]
    for point, value in ((NEAR, _NA), (FAR, _NB)):
        even = b.fmul(_constant(1 / value), _add(b, point**2, g[2], g[0]))
        found += _add(b, point / value, g[1], even), _add(b, -point / value, g[1], even)
    return [*found, g[2]]


def _pairs(b: ir.IRBuilder, m: Sequence[Any]) -> tuple[Vectors, Vectors]:
    """Sums and differences of what is at a pair of points."""
    pairs = (m[1], m[2]), (m[3], m[4])
    return [b.fadd(*pair) for pair in pairs], [b.fsub(*pair) for pair in pairs]


def _to_outputs(b: ir.IRBuilder, m: Sequence[Any]) -> Vectors:
    """A^T of a column of six, or a row."""
    sums, differences = _pairs(b, m)
    return [
        b.fadd(b.fadd(m[0], sums[0]), sums[1]),
        _add(b, NEAR, differences[0], b.fmul(_constant(FAR), differences[1])),
        _add(b, NEAR**2, sums[0], b.fmul(_constant(FAR**2), sums[1])),
        _add(b, NEAR**3, differences[0], _add(b, FAR**3, differences[1], m[5])),
    ]


def _to_weights(b: ir.IRBuilder, m: Sequence[Any]) -> Vectors:
    """G^T of a column of six, or a row."""
    sums, differences = _pairs(b, m)
    near, far = b.fmul(_constant(1 / _NA), sums[0]), b.fmul(_constant(1 / _NB), sums[1])
    return [
        _add(b, 1 / _N0, m[0], b.fadd(near, far)),
        _add(b, NEAR / _NA, differences[0], b.fmul(_constant(FAR / _NB), differences[1])),
        _add(b, NEAR**2, near, _add(b, FAR**2, far, m[5])),
    ]


def _places(b: ir.IRBuilder, base: Any, pitch: Any) -> tuple[Vectors, Vectors]:
    """Pointers to the first position of each line, and what is added to them for each column."""
    line = b.mul(pitch, number(SIDE))
    rows = [base]
    for _ in range(SIDE - 1):
        rows.append(b.gep(rows[-1], [line]))
    return rows, [b.mul(pitch, number(j)) for j in range(SIDE)]


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
    """Tiles of `size` lines and columns, of which neighbours share `shared` columns, to their 36 positions."""
    loop = _Tiles(module, name, _TAKES_TYPE, _TAKES)
    b, given = loop.b, loop.given

    def column(x: Any, j: int) -> Vectors:
        at = b.mul(given["x_column"], number(j))
        places = [b.add(at, b.mul(given["x_line"], number(i))) for i in range(size)]
        return transform(b, [b.load(vector_at(b, x, place), align=4) for place in places])

    x, v, *held = loop.begin(given["x"], given["v"], *(one for j in range(shared) for one in column(given["x"], j)))
    columns = [held[SIDE * j : SIDE * (j + 1)] for j in range(shared)] + [column(x, j) for j in range(shared, size)]
    rows, steps = _places(b, v, given["v_position"])
    for i in range(SIDE):
        for step, made in zip(steps, transform(b, [one[i] for one in columns]), strict=True):
            b.store(made, vector_at(b, rows[i], step), align=4)
    kept = [one for column in columns[size - shared :] for one in column]
    loop.end(b.gep(x, [given["x_tile"]]), b.gep(v, [given["v_tile"]]), *kept)
    b.ret_void()


def _give(module: ir.Module, name: str, transform: Transform) -> None:
    """Tiles' 36 positions to as many lines and columns as `transform` makes.

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
    _take(module, "inputs", SIDE, SIDE - TILE_SIDE, _of_window)
    _take(module, "gradients", TILE_SIDE, 0, _of_gradient)
    _take(module, "weights", TAPS, 0, _of_weights)
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
    """Vectors first to last of w (3, 3, c_in, c_out) to `packed` (36, blocks, c_in, width): c_out in blocks of `width`.

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
    """Vectors first to last of dw (3, 3, c_in, c_out) from `summed` (36, c_in, c_out); as `transform_weights`."""
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
    """Call INPUTS, GRADIENTS or WEIGHTS: a vector of each of the tiles, one at least, to its 36 positions.

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
