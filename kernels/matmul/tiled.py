"""Matrix product: c = a @ b + bias, either factor also transposed.

Shapes   a (m, k), or (k, m) where it is transposed; b (k, n), or (n, k); bias (n,); c (m, n). float32, C-contiguous.
Work     2 * m * n * k floating-point operations.
Traffic  reads a and b and writes c once, by the definition. The plain kernel asks for an element of a n times and for
         one of b m times; the tiled one, through shared memory, for every tile's width or height less often.
Edges    NaN and infinity follow the sums. With k = 0, c is the bias, or 0.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda, float32, int64, uint32
from numpy.typing import NDArray

from kernels.arrays import address, wide
from kernels.choice import Option, choose
from kernels.device import index_type, inlined
from kernels.errors import ShapeError
from kernels.launch import Array as DeviceArray
from kernels.launch import Cost, Floats, Int64, Launch, Runner, blocks_for, kernel, techniques
from kernels.matmul import tensor_tiles
from kernels.matmul.tensor_core import matmul_tensor_core
from kernels.matmul.tensor_tiles import CHUNK, in_order
from kernels.matmul.tensor_tiles import NAME as TENSOR_CORE
from kernels.matmul.tiles import LARGE, SMALL, TALL, Tile, place_of, slices_of, span_of, tile_for, tile_product
from kernels.slices import in_slices

Array = NDArray[Any]
BLOCK = 256


@np.errstate(invalid="ignore", over="ignore")
def matmul_reference(a: Array, b: Array) -> Array:
    """The product c (m, n)."""
    return a @ b


def _cost(m: int, n: int, k: int, slices: int = 1) -> Cost:
    return Cost(4 * (m * k + k * n), 4 * slices * m * n, 2 * m * n * k)


def _element(transposed: bool, index: Any) -> Any:
    """Make a device function: element (i, j) of a matrix whose lines, columns if transposed, are `line` long."""
    if transposed:

        @inlined
        def element(matrix, i, j, line):
            return matrix[index(j * line + i)]

    else:

        @inlined
        def element(matrix, i, j, line):
            return matrix[index(i * line + j)]

    return element


@kernel(
    traffic="a, b, bias -> c",
    registers=40,
    examples=[(False, False, False, uint32), (False, True, True, uint32), (True, False, False, int64)],
)
def matmul_plain(a_transposed: bool, b_transposed: bool, with_bias: bool, index: Any) -> Launch:
    """One element of c a thread."""
    a_element, b_element = _element(a_transposed, index), _element(b_transposed, index)

    def matmul(a: Floats, b: Floats, bias: Floats, c: Floats, m: Int64, n: Int64, k: Int64):
        i = index(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if i < m * n:
            row, column = i // index(n), i % index(n)
            a_line, b_line = m if a_transposed else k, k if b_transposed else n
            total = float32(0)
            for step in range(k):
                total += a_element(a, row, step, a_line) * b_element(b, step, column, b_line)
            if with_bias:
                total += bias[column]
            c[i] = total

    return Launch(matmul, BLOCK, lambda m, n: blocks_for(m * n, BLOCK), lambda m, n, k: _cost(m, n, k))


@kernel(
    traffic="a, b, bias -> c",
    registers=64,
    examples=[
        (LARGE, False, False, False, uint32),
        (LARGE, False, True, True, int64),
        (TALL, False, True, True, uint32),
        (SMALL, True, False, False, uint32),
    ],
)
def matmul_tiled(tile: Tile, a_transposed: bool, b_transposed: bool, with_bias: bool, index: Any) -> Launch:
    """One tile of c a block, or of a slice of it: c is (slices, m, n), a slice the sum over `span` steps of k."""
    a_element, b_element = _element(a_transposed, index), _element(b_transposed, index)
    place_of_block = place_of(tile)

    @inlined
    def load_a(a, row, step):
        matrix, line = a
        return a_element(matrix, row, step, line)

    @inlined
    def load_b(b, step, column):
        matrix, line = b
        return b_element(matrix, step, column, line)

    @inlined
    def store(c, row, column, value):
        matrix, bias, part, m, n = c
        if with_bias and part == 0:
            value += bias[column]
        matrix[index((part * m + row) * n + column)] = value

    multiply = tile_product(tile, index, load_a, load_b, store, not a_transposed, b_transposed)

    def matmul(a: Floats, b: Floats, bias: Floats, c: Floats, m: Int64, n: Int64, k: Int64, span: Int64):
        part, row, column = place_of_block(m, n)
        a_line, b_line = m if a_transposed else k, k if b_transposed else n
        first = part * span
        multiply((a, a_line), (b, b_line), (c, bias, part, m, n), m, n, row, column, first, min(first + span, k))

    return Launch(
        matmul,
        block=tile.threads,
        grid=lambda m, n, k, span: tile.cover(m, n) * slices_of(k, span),
        cost=lambda m, n, k, span: _cost(m, n, k, slices_of(k, span)),
    )


def product(
    run: Runner,
    a: DeviceArray,
    b: DeviceArray,
    bias: DeviceArray | None,
    c: DeviceArray,
    a_transposed: bool = False,
    b_transposed: bool = False,
    technique: str | None = None,
    precision: str = "fp32",
    operation: str = "matmul",
    names: tuple[str, str, str] = ("a", "b", "c"),
    another: tuple[Option, Callable[[], None]] | None = None,
) -> None:
    """Launch c = a @ b + bias on `run`, with either factor transposed first. The shapes are the caller's to check.

    `operation` has the factors and the result by these `names`. It may have `another` technique that it takes before
    the ones here where it can, and that does it all when it is called. Raises TechniqueError.
    """
    m, n = c.shape
    k = a.shape[0] if a_transposed else a.shape[1]
    options = a_transposed, b_transposed, bias is not None
    given = run.empty((0,)) if bias is None else bias
    arrays = dict(zip(names, (a, b, c), strict=True))
    reason = _why_no_tensor_core(dict(zip(names, (a, b), strict=False)))
    ways = in_order(precision, (TENSOR_CORE, not reason, reason or "lines in fours, aligned"), ("tiled", True, ""))
    first = () if another is None else (another[0],)
    technique = choose(run, operation, technique, (*first, *ways, ("plain", True, "")), **arrays)
    if another is not None and technique == another[0][0]:
        another[1]()
        return
    if technique == TENSOR_CORE:
        _on_tensor_cores(run, a, b, given, c, (m, n, k), options)
        return
    if technique == "plain":
        run(matmul_plain(*options, index_type(max(m * k, k * n, m * n))), a, b, given, c, m, n, k)
        return
    tile = tile_for(n, m)
    span = span_of(k, tile, tile.cover(m, n))
    slices = slices_of(k, span)
    tiled = matmul_tiled(tile, *options, index_type(max(m * k, k * n, slices * m * n)))
    with in_slices(run, slices, c) as target:
        run(tiled, a, b, given, target, m, n, k, span)


def _why_no_tensor_core(factors: dict[str, DeviceArray]) -> str:
    """Why these factors cannot be multiplied on tensor cores, in words; empty where they can."""
    for name, factor in factors.items():
        if factor.shape[1] % CHUNK:
            return f"{name} has lines of {factor.shape[1]}, no multiple of {CHUNK}"
        if not wide(factor):
            return f"{name} starts at no multiple of 16 bytes"
    return ""


def _on_tensor_cores(
    run: Runner,
    a: DeviceArray,
    b: DeviceArray,
    bias: DeviceArray,
    c: DeviceArray,
    sizes: tuple[int, int, int],
    options: tuple[bool, bool, bool],
) -> None:
    m, n, k = sizes
    tile = tensor_tiles.tile_for(m, n)
    span = tensor_tiles.span_of(k, tile.cover(m, n))
    slices = slices_of(k, span)
    with in_slices(run, slices, c) as target:
        at_once = next(some for some in (4, 2, 1) if n % some == 0 and address(target) % (4 * some) == 0)
        index = index_type(max(a.size, b.size, slices * c.size))
        run(matmul_tensor_core(tile, *options, at_once, index), a, b, bias, target, m, n, k, span)


@techniques("plain", "tiled", "tensor_core")
def matmul(
    run: Runner,
    a: DeviceArray,
    b: DeviceArray,
    c: DeviceArray,
    *,
    technique: str | None = None,
    precision: str = "fp32",
) -> None:
    """Launch c = a @ b on `run`; precision "tf32" takes tensor cores where the factors' lines allow it.

    Raises:
        ShapeError: Unless a is (m, k), b (k, n) and c (m, n).
        TechniqueError: The technique cannot take these arrays.
    """
    if not (a.ndim == b.ndim == 2 and a.shape[1] == b.shape[0] and tuple(c.shape) == (a.shape[0], b.shape[1])):
        given = ", ".join(f"{name} {tuple(array.shape)}" for name, array in {"a": a, "b": b, "c": c}.items())
        raise ShapeError(f"matmul: got {given}, expected a (m, k), b (k, n) and c (m, n)")
    product(run, a, b, None, c, technique=technique, precision=precision)
