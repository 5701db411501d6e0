"""Convolution's host functions: each checks the shapes, picks the kernel and launches it."""

from math import prod

from kernels.choice import choose
from kernels.conv import first_layer, first_layer_gradient, first_layer_share, tensor_core_launch, wgmma_launch
from kernels.conv.direct import (
    conv2d_backward_input_direct,
    conv2d_backward_weight_direct,
    conv2d_forward_direct,
)
from kernels.conv.geometry import geometry_of
from kernels.conv.implicit_gemm import (
    conv2d_backward_input_implicit_gemm,
    conv2d_backward_weight_implicit_gemm,
    conv2d_forward_implicit_gemm,
)
from kernels.device import index_type
from kernels.errors import ShapeError
from kernels.launch import Array, Runner, techniques
from kernels.matmul.tensor_tiles import NAME as TENSOR_CORE
from kernels.matmul.tiles import slices_of, span_of, tile_for
from kernels.matmul.wgmma_tiles import NAME as WGMMA
from kernels.slices import in_slices
from kernels.storage import require_float32, storage_of
from kernels.window import Pair

THREADS = 1 << 17  # that fill a GPU


@techniques("direct", "implicit_gemm", "first_layer", "tensor_core", "wgmma")
def conv2d_forward(
    run: Runner,
    x: Array,
    w: Array,
    bias: Array | None,
    y: Array,
    stride: Pair,
    padding: Pair,
    *,
    technique: str | None = None,
    precision: str = "fp32",
) -> None:
    """Make y (n, ho, wo, c_out) of x (n, h, w, c_in), w (kh, kw, c_in, c_out) and bias (c_out,) or None.

    With precision "tf32" and no technique named it is computed on tensor cores, where the channels allow it; images in
    16 bits are in any precision. x and y may be stored differently, but then it is not.

    Raises:
        ShapeError: The shapes do not agree.
        TypeError: w or bias is not float32, or an image's dtype is none of a storage.
        TechniqueError: The technique cannot take these arrays.
    """
    geometry = geometry_of("conv2d_forward", stride, padding, x=x.shape, w=w.shape, y=y.shape)
    if bias is not None and tuple(bias.shape) != (geometry.c_out,):
        raise ShapeError(f"conv2d_forward: bias has shape {tuple(bias.shape)}, expected {(geometry.c_out,)}")
    require_float32("conv2d_forward", w=w, **({} if bias is None else {"bias": bias}))
    stored = storage_of(x, "conv2d_forward: x"), storage_of(y, "conv2d_forward: y")
    tile_of_lines = first_layer.tile_of(geometry, 1) if geometry.c_in <= first_layer.CHANNELS else None
    product = wgmma_launch.forward_product(geometry, x.shape[0])
    others = tensor_core_launch.options(precision, geometry, x=x, w=w, y=y)
    others = wgmma_launch.among(run, precision, others, geometry, product, x=x, w=w, y=y)
    ways = first_layer.among(others, geometry, tile_of_lines, x)
    technique = choose(run, "conv2d_forward", technique, ways, x=x, w=w, bias=bias, y=y)
    if technique == first_layer.NAME:
        first_layer.forward(run, geometry, x, w, bias, y)
        return
    if technique == TENSOR_CORE:
        tensor_core_launch.forward(run, geometry, x, w, bias, y)
        return
    if technique == WGMMA:
        wgmma_launch.forward(run, geometry, x, w, bias, y)
        return
    n, with_bias = x.shape[0], bias is not None
    given = run.empty((0,)) if bias is None else bias
    if technique == "direct":
        index = index_type(max(x.size, w.size, y.size))
        run(conv2d_forward_direct(geometry, with_bias, index, *stored), x, w, given, y, n)
        return
    rows = n * geometry.ho * geometry.wo
    tile = tile_for(geometry.c_out)
    span = span_of(geometry.taps, tile, tile.cover(rows, geometry.c_out))
    slices = slices_of(geometry.taps, span)
    index = index_type(max(x.size, w.size, slices * y.size))
    with in_slices(run, slices, y) as target:
        kernel = conv2d_forward_implicit_gemm(tile, geometry, with_bias, index, stored[0], storage_of(target))
        run(kernel, x, w, given, target, n, span)


@techniques("direct", "implicit_gemm", "tensor_core", "wgmma")
def conv2d_backward_input(
    run: Runner,
    dy: Array,
    w: Array,
    dx: Array,
    stride: Pair,
    padding: Pair,
    *,
    technique: str | None = None,
    precision: str = "fp32",
) -> None:
    """Make dx (n, h, w, c_in) of dy (n, ho, wo, c_out) and w (kh, kw, c_in, c_out).

    With precision "tf32" and no technique named it is computed on tensor cores, where the channels allow it; images in
    16 bits are in any precision. dy and dx may be stored differently, but then it is not.

    Raises:
        ShapeError: The shapes do not agree.
        TypeError: w is not float32, or an image's dtype is none of a storage.
        TechniqueError: The technique cannot take these arrays.
    """
    geometry = geometry_of("conv2d_backward_input", stride, padding, dx=dx.shape, w=w.shape, dy=dy.shape)
    require_float32("conv2d_backward_input", w=w)
    stored = storage_of(dx, "conv2d_backward_input: dx"), storage_of(dy, "conv2d_backward_input: dy")
    product = wgmma_launch.input_product(geometry, dx.shape[0])
    ways = tensor_core_launch.options(precision, geometry, dy=dy, w=w, dx=dx)
    ways = wgmma_launch.among(run, precision, ways, geometry, product, dy=dy, w=w, dx=dx)
    technique = choose(run, "conv2d_backward_input", technique, ways, dy=dy, w=w, dx=dx)
    if technique == TENSOR_CORE:
        tensor_core_launch.backward_input(run, geometry, dy, w, dx)
        return
    if technique == WGMMA:
        wgmma_launch.backward_input(run, geometry, dy, w, dx)
        return
    n = dx.shape[0]
    if technique == "direct":
        index = index_type(max(dx.size, w.size, dy.size))
        run(conv2d_backward_input_direct(geometry, index, *stored), dy, w, dx, n)
        return
    phases, rows, depth = geometry.input_products()
    tile = tile_for(geometry.c_in)
    span = span_of(depth, tile, phases * tile.cover(n * rows, geometry.c_in))
    slices = slices_of(depth, span)
    index = index_type(max(slices * dx.size, w.size, dy.size))
    with in_slices(run, slices, dx) as target:
        kernel = conv2d_backward_input_implicit_gemm(tile, geometry, index, storage_of(target), stored[1])
        run(kernel, dy, w, target, n, span)


@techniques("direct", "implicit_gemm", "first_layer", "tensor_core", "wgmma")
def conv2d_backward_weight(
    run: Runner,
    x: Array,
    dy: Array,
    dw: Array,
    stride: Pair,
    padding: Pair,
    *,
    technique: str | None = None,
    precision: str = "fp32",
) -> None:
    """Make dw (kh, kw, c_in, c_out) of x (n, h, w, c_in) and dy (n, ho, wo, c_out).

    With precision "tf32" and no technique named it is computed on tensor cores, where the channels allow it; images in
    16 bits are in any precision. x and dy may be stored differently, but then it is not.

    Raises:
        ShapeError: The shapes do not agree.
        TypeError: dw is not float32, or an image's dtype is none of a storage.
        TechniqueError: The technique cannot take these arrays.
    """
    geometry = geometry_of("conv2d_backward_weight", stride, padding, x=x.shape, dw=dw.shape, dy=dy.shape)
    require_float32("conv2d_backward_weight", dw=dw)
    stored = storage_of(x, "conv2d_backward_weight: x"), storage_of(dy, "conv2d_backward_weight: dy")
    share = first_layer_share.share_of(geometry, 1) if geometry.c_in <= first_layer.CHANNELS else None
    product = wgmma_launch.weight_product(geometry, x.shape[0])
    others = tensor_core_launch.options(precision, geometry, x=x, dy=dy, dw=dw)
    others = wgmma_launch.among(run, precision, others, geometry, product, x=x, dy=dy, dw=dw)
    ways = first_layer.among(others, geometry, share, x)
    technique = choose(run, "conv2d_backward_weight", technique, ways, x=x, dy=dy, dw=dw)
    if technique == first_layer.NAME:
        first_layer_gradient.backward_weight(run, geometry, x, dy, dw)
        return
    if technique == TENSOR_CORE:
        tensor_core_launch.backward_weight(run, geometry, x, dy, dw)
        return
    if technique == WGMMA:
        wgmma_launch.backward_weight(run, geometry, x, dy, dw)
        return
    n = x.shape[0]
    rows = prod(dy.shape[:3])
    tile = tile_for(geometry.c_out, geometry.taps)
    if technique == "direct":
        span = max(64, -(-rows * dw.size // THREADS))
    else:
        span = span_of(rows, tile, tile.cover(geometry.taps, geometry.c_out))
    slices = slices_of(rows, span)
    index = index_type(max(x.size, dy.size, slices * dw.size))
    with in_slices(run, slices, dw) as target:
        if technique == "direct":
            run(conv2d_backward_weight_direct(geometry, index, *stored), x, dy, target, n, span, slices)
        else:
            run(conv2d_backward_weight_implicit_gemm(tile, geometry, index, *stored), x, dy, target, n, span)
