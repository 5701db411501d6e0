"""Matrix product on tensor cores, in TF32: c = a @ b + bias, either factor also transposed.

The product of kernels/matmul.py by kernels/tensor_tiles.py: maths, shapes and edges are those of the former, tiles,
layouts and accuracy those of the latter. Four neighbours in memory are copied at once, so the lines of a and of b are
multiples of 4 long, and both start at multiples of 16 bytes. c may be of any shape; with an even number of columns,
pairs are stored.
"""

from collections.abc import Callable
from typing import Any

from numba import float32, int64, uint32

from kernels.device import inlined
from kernels.intrinsics import store2
from kernels.launch import Cost, Floats, Int64, Launch, kernel
from kernels.tensor_tiles import LARGE, MEDIUM, NARROW, SMALL, WIDE, Side, TensorTile, on_both, place_of, tensor_product
from kernels.tiles import slices_of


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
        (LARGE, False, False, False, True, uint32),
        (LARGE, True, True, True, True, int64),
        (WIDE, False, True, True, True, uint32),
        (MEDIUM, True, False, False, True, uint32),
        (NARROW, False, True, True, True, uint32),
        (SMALL, False, True, True, False, uint32),
    ],
)
def matmul_tensor_core(
    tile: TensorTile, a_transposed: bool, b_transposed: bool, with_bias: bool, in_pairs: bool, index: Any
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
    def store(c, row, column, left, right):
        matrix, _, part, m, n = c
        place = index((part * m + row) * n + column)
        if in_pairs:
            store2(matrix, place, left, right)
        else:
            matrix[place] = left
            if column + 1 < n:
                matrix[index(place + 1)] = right

    a_side, b_side = _side(not a_transposed, index), _side(b_transposed, index)
    multiply = tensor_product(tile, index, a_side, b_side, store, begin)

    def matmul(a: Floats, b: Floats, bias: Floats, c: Floats, m: Int64, n: Int64, k: Int64, span: Int64):
        part, row, column = place_of_block(m, n)
        a_line, b_line = m if a_transposed else k, k if b_transposed else n
        first = part * span
        multiply((a, a_line), (b, b_line), (c, bias, part, m, n), m, n, row, column, first, min(first + span, k))

    return Launch(
        matmul,
        block=tile.threads,
        grid=lambda m, n, k, span: tile.cover(m, n) * slices_of(k, span),
        cost=lambda m, n, k, span: Cost(4 * (m * k + k * n), 4 * slices_of(k, span) * m * n, 2 * m * n * k),
        shared_bytes=tile.shared_bytes(not a_transposed, b_transposed),
    )
