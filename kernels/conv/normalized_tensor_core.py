"""Convolutions that normalize as they load and sum as they store, on tensor cores: tensor_core.py, fused.

The maths is in normalized_reference.py, the products are those of tensor_core.py. What is worked out on the way in is
told in normalized_arrival.py, what is found on the way out in normalized_epilogue.py.

    forward          x is normalized in shared memory; partial statistics of each tile of y
    weight gradient  so is x, and dy is worked out of two tensors
    input gradient   dy likewise; g is masked as it is stored; partial sums of each tile of g

Traffic  As tensor_core.py's, and a pending gradient is read as two tensors; the masked input gradient reads x once.
         Written are three or two numbers a channel of each tile besides: with 128 rows, 3/128 or 2/128 of the result.
Memory   With two tensors of a factor a slab is half as large again, so there are two stages where three would leave
         no room for a second block on a multiprocessor (`TensorTile.with_room`).
"""

from typing import Any

from numba import int64, uint32

from kernels.conv.direct import EXAMPLE
from kernels.conv.geometry import Geometry
from kernels.conv.normalized_arrival import Kind, activation, one_pending, pending_gradient
from kernels.conv.normalized_epilogue import with_gradient_sums, with_statistics
from kernels.conv.tensor_core import INSTRUCTIONS, POINTS, REGISTERS, STAGE, STRIDED, WITH_LDMATRIX
from kernels.conv.tensor_core_sides import input_gradient, matrix, windows_by_pixel, windows_by_tap
from kernels.device import inlined
from kernels.launch import Cost, Floats, Int64, Launch, blocks_for, kernel
from kernels.matmul.tensor_epilogue import in_chunks
from kernels.matmul.tensor_product import tensor_product
from kernels.matmul.tensor_tiles import LARGE, MEDIUM, NARROW, SMALL, WIDE, TensorTile, place_of
from kernels.matmul.tiles import slices_of
from kernels.storage import FLOAT32, Storage

FULL, PLAIN = Kind(True, True), Kind(False, False)
IN_CHUNKS = "LDG.E.128", "LDS.128", "STS.128"


def _plus(cost: Cost, reads: int, writes: int) -> Cost:
    """The cost of a product, and bytes besides."""
    return Cost(cost.reads + reads, cost.writes + writes, cost.flops)


def forward_launch(
    tile: TensorTile,
    geometry: Geometry,
    before: Kind | None,
    statistics: bool,
    index: Any,
    storage: Storage,
    y_storage: Storage,
) -> Launch:
    """Make it, for factors of this storage."""
    c_in, c_out, taps, pixels = geometry.c_in, geometry.c_out, geometry.taps, geometry.ho * geometry.wo
    place_of_block, tile_rows, put = place_of(tile), tile.rows, y_storage.store_wide
    stored: Any = storage.pointer
    of_y: Any = y_storage.pointer
    size, y_size, width = storage.bytes, y_storage.bytes, storage.wide

    @inlined
    def store(target, row, k, values):
        y, _, part, rows = target
        put(y, index((part * rows + row) * c_out + k), values)

    @inlined
    def keep(target, k, shift, total, square):
        _, (partial, number), _, rows = target
        tiles = (rows + tile_rows - 1) // tile_rows
        partial[index(number * c_out + k)] = shift
        partial[index((tiles + number) * c_out + k)] = total
        partial[index((2 * tiles + number) * c_out + k)] = square

    x_side = windows_by_pixel(geometry, index, None if before is None else activation(before, c_in, width))
    if statistics:
        finish = with_statistics(tile, index, y_storage, store, keep)
    else:
        finish = in_chunks(tile, index, y_storage, store)
    multiply = tensor_product(tile, index, x_side, matrix(c_out, index), finish, storage=storage)

    def conv2d_normalized_forward(
        x: stored, shift: Floats, delta: Floats, inv_std: Floats, gamma: Floats, beta: Floats, w: stored,
        y: of_y, partial: Floats, n: Int64, span: Int64,
    ):  # fmt: skip
        rows = n * pixels
        part, row, k = place_of_block(rows, c_out)
        first = part * span
        known = shift, delta, inv_std, gamma, beta
        target = y, (partial, row // tile_rows), part, rows
        multiply((x, 0, (x, known)), (w, 0, 0), target, rows, c_out, row, k, first, min(first + span, taps))

    known, found = 0 if before is None else 20 * c_in, 12 * c_out if statistics else 0
    return Launch(
        conv2d_normalized_forward,
        block=tile.threads,
        grid=lambda n, span: tile.cover(n * pixels, c_out) * slices_of(taps, span),
        cost=lambda n, span: _plus(
            geometry.forward_cost(n, slices_of(taps, span), size, size, y_size),
            known,
            found * blocks_for(n * pixels, tile_rows),
        ),
        shared_bytes=tile.shared_bytes(True, False, storage=storage),
    )


def backward_weight_launch(
    tile: TensorTile, geometry: Geometry, before: Kind | None, behind: Kind, index: Any, storage: Storage
) -> Launch:
    """Make it, for factors of this storage."""
    c_in, c_out, taps, pixels = geometry.c_in, geometry.c_out, geometry.taps, geometry.ho * geometry.wo
    place_of_block, put = place_of(tile), FLOAT32.store_wide
    stored: Any = storage.pointer
    size, width = storage.bytes, storage.wide

    @inlined
    def store(target, row, k, values):
        dw, part = target
        put(dw, index((part * taps + row) * c_out + k), values)

    x_side = windows_by_tap(geometry, index, None if before is None else activation(before, c_in, width))
    dy_side = matrix(c_out, index, pending_gradient(behind, c_out, width))
    finish = in_chunks(tile, index, FLOAT32, store)
    multiply = tensor_product(tile, index, x_side, dy_side, finish, storage=storage)

    def conv2d_normalized_backward_weight(
        x: stored, shift: Floats, delta: Floats, inv_std: Floats, gamma: Floats, beta: Floats,
        dy: stored, raw: stored, dy_shift: Floats, dy_delta: Floats, dy_inv_std: Floats, dy_gamma: Floats,
        dy_beta: Floats, mean_g: Floats, slope: Floats, dw: Floats, n: Int64, span: Int64,
    ):  # fmt: skip
        part, row, k = place_of_block(taps, c_out)
        first = part * span
        last = min(first + span, n * pixels)
        known = shift, delta, inv_std, gamma, beta
        dy_known = (dy_shift, dy_delta, dy_inv_std, dy_gamma, dy_beta), mean_g, slope
        multiply((x, 0, (x, known)), (dy, 0, (raw, dy_known)), (dw, part), taps, c_out, row, k, first, last)

    known = 28 * c_out + (0 if before is None else 20 * c_in)
    return Launch(
        conv2d_normalized_backward_weight,
        block=tile.threads,
        grid=lambda n, span: tile.cover(taps, c_out) * slices_of(n * pixels, span),
        cost=lambda n, span: _plus(
            geometry.backward_weight_cost(n, slices_of(n * pixels, span), size, size),
            known + size * n * geometry.y_size,
            0,
        ),
        shared_bytes=tile.shared_bytes(False, False, 1, 2, storage),
    )


def backward_input_launch(
    tile: TensorTile,
    geometry: Geometry,
    behind: Kind,
    before: Kind | None,
    index: Any,
    storage: Storage,
    dx_storage: Storage,
) -> Launch:
    """Make it, for factors of this storage."""
    c_in, c_out = geometry.c_in, geometry.c_out
    phases, rows_of_image, depth = geometry.input_products()
    place_of_block, tile_rows, put = place_of(tile), tile.rows, dx_storage.store_wide
    stored: Any = storage.pointer
    of_dx: Any = dx_storage.pointer
    size, dx_size = storage.bytes, dx_storage.bytes
    arrival = pending_gradient(behind, c_out, storage.wide)
    dy_side, w_side, find, again = input_gradient(geometry, index, arrival, storage)
    element = one_pending(behind, storage)

    @inlined
    def find_element(target, row, c):
        _, (_, phase, part, n, _, _, _, _) = target
        return find(phase, row, c, part, n)

    @inlined
    def mend(target, row, c, value):
        _, (_, phase, part, n, sources, w, first, last) = target
        exists, _ = find(phase, row, c, part, n)
        return again(sources, w, phase, row, c, first, last, element) if exists else value

    @inlined
    def store(target, row, channel, values):
        (dx, _, _), _ = target
        exists, place = find_element(target, row, channel)
        if exists:
            put(dx, place, values)

    @inlined
    def keep(target, c, total, product):
        _, ((partial, number, tiles), _, _, _, _, _, _, _) = target
        partial[index(number * c_in + c)] = total
        partial[index((tiles + number) * c_in + c)] = product

    if before is None:
        finish = in_chunks(tile, index, dx_storage, store, mend)
    else:
        finish = with_gradient_sums(tile, index, dx_storage, before, find_element, keep, mend)
    multiply = tensor_product(tile, index, dy_side, w_side, finish, storage=storage)

    def conv2d_normalized_backward_input(
        dy: stored, raw: stored, dy_shift: Floats, dy_delta: Floats, dy_inv_std: Floats, dy_gamma: Floats,
        dy_beta: Floats, mean_g: Floats, slope: Floats, w: stored, x: stored, shift: Floats, delta: Floats,
        inv_std: Floats, gamma: Floats, beta: Floats, dx: of_dx, partial: Floats, n: Int64, span: Int64,
    ):  # fmt: skip
        rows = n * rows_of_image
        number, row, c = place_of_block(rows, c_in)
        part, phase = number // phases, number % phases
        first = part * span
        last = min(first + span, depth)
        dy_known = (dy_shift, dy_delta, dy_inv_std, dy_gamma, dy_beta), mean_g, slope
        down = (rows + tile_rows - 1) // tile_rows
        kept = partial, phase * down + row // tile_rows, phases * down
        target = (
            (dx, x, (shift, delta, inv_std, gamma, beta)),
            (kept, phase, part, n, (dy, raw, dy_known), w, first, last),
        )
        multiply((dy, phase, (raw, dy_known)), (w, phase, 0), target, rows, c_in, row, c, first, last)

    def cost(n: int, span: int) -> Cost:
        reads, found = 28 * c_out + size * n * geometry.y_size, 0
        if before is not None:
            reads += 20 * c_in + size * n * geometry.x_size
            found = 8 * c_in * phases * blocks_for(n * rows_of_image, tile_rows)
        return _plus(geometry.backward_input_cost(n, slices_of(depth, span), size, size, dx_size), reads, found)

    return Launch(
        conv2d_normalized_backward_input,
        block=tile.threads,
        grid=lambda n, span: tile.cover(n * rows_of_image, c_in) * phases * slices_of(depth, span),
        cost=cost,
        shared_bytes=tile.shared_bytes(True, True, 2, 1, storage),
    )


PAIRED = [one.with_room(False, False, 1, 2) for one in (LARGE, WIDE, MEDIUM, NARROW, SMALL)]
TURNED = [one.with_room(True, True, 2, 1) for one in (LARGE, WIDE, MEDIUM, NARROW, SMALL)]


@kernel(
    traffic="x, shift, delta, inv_std, gamma, beta, w -> y, partial",
    registers=REGISTERS,
    instructions=(*WITH_LDMATRIX, *IN_CHUNKS[1:]),
    examples=[
        (LARGE, STAGE, FULL, True, uint32),
        (WIDE, POINTS, FULL, True, uint32),
        (MEDIUM, STAGE, FULL, True, uint32),
        (NARROW, EXAMPLE, FULL, False, uint32),
        (SMALL, STRIDED, PLAIN, True, uint32),
        (LARGE, STAGE, None, True, uint32),
        (LARGE, STAGE, FULL, True, int64),
    ],
)
def conv2d_normalized_forward_tensor_core(
    tile: TensorTile, geometry: Geometry, before: Kind | None, statistics: bool, index: Any
) -> Launch:
    """One tile a block of y (slices, n, ho, wo, c_out), partial (3, tiles down, c_out) where there is one slice."""
    return forward_launch(tile, geometry, before, statistics, index, FLOAT32, FLOAT32)


@kernel(
    traffic="x, shift, delta, inv_std, gamma, beta, dy, raw, dy_shift, dy_delta, dy_inv_std, dy_gamma, dy_beta, "
    "mean_g, slope -> dw",
    registers=REGISTERS,
    instructions=(*INSTRUCTIONS, *IN_CHUNKS),
    examples=[
        (PAIRED[0], STAGE, FULL, FULL, uint32),
        (PAIRED[1], POINTS, FULL, FULL, uint32),
        (PAIRED[2], STAGE, FULL, PLAIN, uint32),
        (PAIRED[3], EXAMPLE, None, FULL, uint32),
        (PAIRED[4], STRIDED, PLAIN, FULL, uint32),
        (PAIRED[0], STAGE, FULL, FULL, int64),
    ],
)
def conv2d_normalized_backward_weight_tensor_core(
    tile: TensorTile, geometry: Geometry, before: Kind | None, behind: Kind, index: Any
) -> Launch:
    """One tile a block of dw (slices, kh, kw, c_in, c_out); a slice is the sum over `span` pixels of dy."""
    return backward_weight_launch(tile, geometry, before, behind, index, FLOAT32)


@kernel(
    traffic="dy, raw, dy_shift, dy_delta, dy_inv_std, dy_gamma, dy_beta, mean_g, slope, w, x, shift, delta, inv_std, "
    "gamma, beta -> dx, partial",
    registers=REGISTERS,
    instructions=(*WITH_LDMATRIX, *IN_CHUNKS),
    examples=[
        (TURNED[0], STAGE, FULL, FULL, uint32),
        (TURNED[1], POINTS, FULL, FULL, uint32),
        (TURNED[2], STAGE, PLAIN, FULL, uint32),
        (TURNED[3], EXAMPLE, FULL, None, uint32),
        (TURNED[4], STRIDED, FULL, PLAIN, uint32),
        (TURNED[0], STAGE, FULL, FULL, int64),
    ],
)
def conv2d_normalized_backward_input_tensor_core(
    tile: TensorTile, geometry: Geometry, behind: Kind, before: Kind | None, index: Any
) -> Launch:
    """One tile a block of dx (slices, n, h, w, c_in), for one of the phases; a slice is the sum over `span` steps.

    With `before` there is one slice: dx is g, and partial (2, phases * tiles down, c_in).
    """
    return backward_input_launch(tile, geometry, behind, before, index, FLOAT32, FLOAT32)
