"""Convolution on tensor cores: whether a convolution can take that technique, and its launches."""

from kernels.arrays import wide
from kernels.choice import Option
from kernels.conv.geometry import Geometry
from kernels.conv.tensor_core import (
    conv2d_backward_input_narrow_tensor_core,
    conv2d_backward_input_tensor_core,
    conv2d_backward_weight_narrow_tensor_core,
    conv2d_backward_weight_tensor_core,
    conv2d_forward_narrow_tensor_core,
    conv2d_forward_tensor_core,
)
from kernels.device import index_type
from kernels.launch import Array, Runner
from kernels.matmul.tensor_tiles import FAR, NAME, depth_of, in_order, span_of, tile_for
from kernels.matmul.tiles import slices_of
from kernels.rounded import in_storage
from kernels.slices import in_slices
from kernels.storage import FLOAT32, storage_of

COUNTED = {4: "fours", 8: "eights"}


def options(precision: str, geometry: Geometry, **arrays: Array) -> tuple[Option, ...]:
    """All techniques but that of the first layer, for `choose`. Raises ValueError for an unknown precision.

    Where images are stored in 16 bits this one comes first, whatever the precision.
    """
    reason = why_not(geometry, arrays)
    chunk = max(storage_of(array).wide for array in arrays.values())
    own = NAME, not reason, reason or f"channels in {COUNTED[chunk]} and aligned arrays"
    if chunk != FLOAT32.wide:
        in_order(precision, own, own)  # it must be known
        return own, ("implicit_gemm", True, ""), ("direct", True, "")
    exact = "implicit_gemm", True, f"precision {precision}" if precision == "fp32" else ""
    return (*in_order(precision, own, exact), ("direct", True, ""))


def why_not(geometry: Geometry, arrays: dict[str, Array]) -> str:
    """Why a convolution cannot take it, in words; empty where it can; `is_parameter` tells images apart."""
    images = {name: storage_of(array) for name, array in arrays.items() if not is_parameter(name)}
    first = next(iter(images))
    for name, storage in images.items():
        if storage is not images[first]:
            return f"{first} is stored as {images[first]} and {name} as {storage}"
    chunk = images[first].wide
    for name, number in (("c_in", geometry.c_in), ("c_out", geometry.c_out)):
        if number % chunk:
            return f"{name} {number} is no multiple of {chunk}"
    if max(geometry.h + 2 * geometry.ph, geometry.w + 2 * geometry.pw) >= FAR:
        return f"an axis of the image is longer than {FAR:,}"
    for name, array in arrays.items():
        if not wide(array):
            return f"{name} starts at no multiple of 16 bytes"
    return ""


def is_parameter(name: str) -> bool:
    """Whether an array of this name belongs to channels or weights, and so is float32, rather than an image."""
    return name.split(".")[-1] not in ("x", "y", "dx", "dy")


def forward(run: Runner, geometry: Geometry, x: Array, w: Array, bias: Array | None, y: Array) -> None:
    """Launch y = the convolution of x with w, and bias or None, on `run`."""
    n = x.shape[0]
    rows = n * geometry.ho * geometry.wo
    storage = storage_of(x)
    tile = tile_for(rows, geometry.c_out)
    span = span_of(geometry.taps, tile.cover(rows, geometry.c_out), depth_of(storage))
    slices = slices_of(geometry.taps, span)
    index = index_type(max(x.size, w.size, slices * y.size))
    given = run.empty((0,)) if bias is None else bias
    options = tile, geometry, bias is not None, index
    with in_slices(run, slices, y) as target:
        if storage is FLOAT32:
            kernel = conv2d_forward_tensor_core(*options)
        else:
            kernel = conv2d_forward_narrow_tensor_core(*options, storage, storage_of(target))
        run(kernel, x, in_storage(run, w, storage), given, target, n, span)


def backward_input(run: Runner, geometry: Geometry, dy: Array, w: Array, dx: Array) -> None:
    """Launch dx of dy and w on `run`."""
    n = dx.shape[0]
    phases, rows_of_image, depth = geometry.input_products()
    rows = n * rows_of_image
    storage = storage_of(dy)
    tile = tile_for(rows, geometry.c_in)
    span = span_of(depth, phases * tile.cover(rows, geometry.c_in), depth_of(storage))
    slices = slices_of(depth, span)
    index = index_type(max(slices * dx.size, w.size, dy.size))
    with in_slices(run, slices, dx) as target:
        if storage is FLOAT32:
            kernel = conv2d_backward_input_tensor_core(tile, geometry, index)
        else:
            kernel = conv2d_backward_input_narrow_tensor_core(tile, geometry, index, storage, storage_of(target))
        run(kernel, dy, in_storage(run, w, storage), target, n, span)


def backward_weight(run: Runner, geometry: Geometry, x: Array, dy: Array, dw: Array) -> None:
    """Launch dw of x and dy on `run`."""
    n = x.shape[0]
    pixels = n * geometry.ho * geometry.wo
    storage = storage_of(x)
    tile = tile_for(geometry.taps, geometry.c_out)
    span = span_of(pixels, tile.cover(geometry.taps, geometry.c_out), depth_of(storage))
    slices = slices_of(pixels, span)
    index = index_type(max(x.size, dy.size, slices * dw.size))
    if storage is FLOAT32:
        kernel = conv2d_backward_weight_tensor_core(tile, geometry, index)
    else:
        kernel = conv2d_backward_weight_narrow_tensor_core(tile, geometry, index, storage)
    with in_slices(run, slices, dw) as target:
        run(kernel, x, dy, target, n, span)
