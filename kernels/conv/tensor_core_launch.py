"""Convolution on tensor cores: whether a convolution can take that technique, and its launches."""

from kernels.arrays import wide
from kernels.choice import Option
from kernels.columns import sum_columns
from kernels.conv.geometry import Geometry
from kernels.conv.tensor_core import (
    conv2d_backward_input_tensor_core,
    conv2d_backward_weight_tensor_core,
    conv2d_forward_tensor_core,
)
from kernels.device import index_type
from kernels.launch import Array, Runner
from kernels.matmul.tensor_tiles import CHUNK, FAR, NAME, in_order, span_of, tile_for
from kernels.matmul.tiles import slices_of


def options(precision: str, geometry: Geometry, **arrays: Array) -> tuple[Option, ...]:
    """All techniques but that of the first layer, for `choose`. Raises ValueError for an unknown precision."""
    reason = why_not(geometry, arrays)
    own = NAME, not reason, reason or "channels in fours and aligned arrays"
    exact = "implicit_gemm", True, "" if precision == "tf32" else f"precision {precision}"
    return (*in_order(precision, own, exact), ("direct", True, ""))


def why_not(geometry: Geometry, arrays: dict[str, Array]) -> str:
    """Why a convolution cannot take it, in words; empty where it can."""
    for name, number in (("c_in", geometry.c_in), ("c_out", geometry.c_out)):
        if number % CHUNK:
            return f"{name} {number} is no multiple of {CHUNK}"
    if max(geometry.h + 2 * geometry.ph, geometry.w + 2 * geometry.pw) >= FAR:
        return f"an axis of the image is longer than {FAR:,}"
    for name, array in arrays.items():
        if not wide(array):
            return f"{name} starts at no multiple of 16 bytes"
    return ""


def forward(run: Runner, geometry: Geometry, x: Array, w: Array, bias: Array | None, y: Array) -> None:
    """Launch y = the convolution of x with w, and bias or None, on `run`."""
    n = x.shape[0]
    rows = n * geometry.ho * geometry.wo
    tile = tile_for(rows, geometry.c_out)
    span = span_of(geometry.taps, tile.cover(rows, geometry.c_out))
    slices = slices_of(geometry.taps, span)
    index = index_type(max(x.size, w.size, slices * y.size))
    target = y if slices == 1 else run.empty((slices, *y.shape))
    given = run.empty((0,)) if bias is None else bias
    run(conv2d_forward_tensor_core(tile, geometry, bias is not None, index), x, w, given, target, n, span)
    if slices > 1:
        sum_columns(run, target, y)


def backward_input(run: Runner, geometry: Geometry, dy: Array, w: Array, dx: Array) -> None:
    """Launch dx of dy and w on `run`."""
    n = dx.shape[0]
    phases, rows_of_image, depth = geometry.input_products()
    rows = n * rows_of_image
    tile = tile_for(rows, geometry.c_in)
    span = span_of(depth, phases * tile.cover(rows, geometry.c_in))
    slices = slices_of(depth, span)
    index = index_type(max(slices * dx.size, w.size, dy.size))
    target = dx if slices == 1 else run.empty((slices, *dx.shape))
    run(conv2d_backward_input_tensor_core(tile, geometry, index), dy, w, target, n, span)
    if slices > 1:
        sum_columns(run, target, dx)


def backward_weight(run: Runner, geometry: Geometry, x: Array, dy: Array, dw: Array) -> None:
    """Launch dw of x and dy on `run`."""
    n = x.shape[0]
    pixels = n * geometry.ho * geometry.wo
    tile = tile_for(geometry.taps, geometry.c_out)
    span = span_of(pixels, tile.cover(geometry.taps, geometry.c_out))
    slices = slices_of(pixels, span)
    index = index_type(max(x.size, dy.size, slices * dw.size))
    target = dw if slices == 1 else run.empty((slices, *dw.shape))
    run(conv2d_backward_weight_tensor_core(tile, geometry, index), x, dy, target, n, span)
    if slices > 1:
        sum_columns(run, target, dw)
