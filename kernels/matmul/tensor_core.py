"""Matrix product on tensor cores, in TF32: c = a @ b + bias, either factor also transposed.

The product of tiled.py by tensor_product.py: maths, shapes and edges are those of the former, tiles
and accuracy those of tensor_tiles.py. Four neighbours in memory are copied at once, so the lines of a and of b
are multiples of 4 long, and both start at multiples of 16 bytes. c may be of any shape; four neighbours of it are
stored at once where its lines are such too, or two, or one.
"""

from collections.abc import Callable
from typing import Any

from numba import float32, int64, uint32

from kernels.device import inlined
from kernels.intrinsics import store2, store4
from kernels.launch import Cost, Floats, Int64, Launch, kernel
from kernels.matmul.tensor_copies import Side, on_both
from kernels.matmul.tensor_epilogue import in_fours, in_pairs
from kernels.matmul.tensor_product import tensor_product
from kernels.matmul.tensor_tiles import LARGE, MEDIUM, NARROW, SMALL, WIDE, TensorTile, place_of
from kernels.matmul.tiles import slices_of


def _side(along_depth: bool, index: Any) -> Side:
    """A factor that is stored line after line (`along_depth`), or step after step; the source is how long those are."""

    @inlined
    def each(source, number):
        return 0, 0, index(number * source)

    @inlined
    def next_to(source, number):  # noqa: ARG001
        return 0, 0, index(number)

    of_line: Callable[..., Any] = each if along_depth else next_to
    of_step: Callable[..., Any] = next_to if along_depth else each
    return Side(of_line, of_step, on_both, along_depth)


@kernel(
    traffic="a, b, bias -> c",
    registers=232,
    instructions=("HMMA.1688.F32.TF32", "LDGSTS.E.BYPASS.128"),
    examples=[
        (LARGE, False, False, False, 4, uint32),
        (LARGE, True, True, True, 4, int64),
        (WIDE, False, True, True, 4, uint32),
        (MEDIUM, True, False, False, 4, uint32),
        (NARROW, False, True, True, 2, uint32),
        (SMALL, False, True, True, 1, uint32),
    ],
)
def matmul_tensor_core(
    tile: TensorTile, a_transposed: bool, b_transposed: bool, with_bias: bool, at_once: int, index: Any
) -> Launch:
    """One tile of c a block, or of a slice of it: c is (slices, m, n), a slice the sum over `span` steps of k."""
    place_of_block = place_of(tile)

    @inlined
    def begin(c, column):
        _, bias, part, _, n = c
        if with_bias and part == 0:
            left = right = bias[column]
            if column + 1 < n:
                right = bias[column + 1]
            return left, right
        return float32(0), float32(0)

    @inlined
    def store_four(c, row, column, x0, x1, x2, x3):
        matrix, _, part, m, n = c
        store4(matrix, index((part * m + row) * n + column), x0, x1, x2, x3)

    @inlined
    def store_pair(c, row, column, left, right):
        matrix, _, part, m, n = c
        place = index((part * m + row) * n + column)
        if at_once == 2:
            store2(matrix, place, left, right)
        else:
            matrix[place] = left
            if column + 1 < n:
                matrix[index(place + 1)] = right

    a_side, b_side = _side(not a_transposed, index), _side(b_transposed, index)
    finish = in_fours(tile, index, store_four) if at_once == 4 else in_pairs(tile, index, store_pair)
    multiply = tensor_product(tile, index, a_side, b_side, finish, begin)

    def matmul(a: Floats, b: Floats, bias: Floats, c: Floats, m: Int64, n: Int64, k: Int64, span: Int64):
        part, row, column = place_of_block(m, n)
        a_line, b_line = m if a_transposed else k, k if b_transposed else n
        first = part * span
        target = c, bias, part, m, n
        multiply((a, a_line, 0), (b, b_line, 0), target, m, n, row, column, first, min(first + span, k))

    return Launch(
        matmul,
        block=tile.threads,
        grid=lambda m, n, k, span: tile.cover(m, n) * slices_of(k, span),
        cost=lambda m, n, k, span: Cost(4 * (m * k + k * n), 4 * slices_of(k, span) * m * n, 2 * m * n * k),
        shared_bytes=tile.shared_bytes(not a_transposed, b_transposed),
    )
