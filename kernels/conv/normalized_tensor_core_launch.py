"""Convolutions that normalize, on tensor cores: whether one can take that technique, and its launches.

Sums over rows are found in the epilogue where a tile has the whole depth. Where the depth is cut into slices no block
has a whole sum; then the slices are added, and the rows summed as batch normalization does it by itself: of y as it is
stored then, where that has 16 bits.
"""

from kernels import batchnorm
from kernels.activation import relu_backward
from kernels.batch_statistics import BatchStatistics, GradientSums, Normalization, PendingGradient
from kernels.batchnorm.apply import mean_and_scale
from kernels.choice import Option
from kernels.conv.geometry import Geometry
from kernels.conv.normalized_arrival import Kind
from kernels.conv.normalized_narrow import (
    conv2d_normalized_backward_input_narrow_tensor_core,
    conv2d_normalized_backward_weight_narrow_tensor_core,
    conv2d_normalized_forward_narrow_tensor_core,
)
from kernels.conv.normalized_tensor_core import (
    conv2d_normalized_backward_input_tensor_core,
    conv2d_normalized_backward_weight_tensor_core,
    conv2d_normalized_forward_tensor_core,
)
from kernels.conv.tensor_core_launch import COUNTED, why_not
from kernels.device import index_type
from kernels.launch import Array, Runner, blocks_for
from kernels.matmul.tensor_tiles import NAME, depth_of, in_order, span_of, tile_for
from kernels.matmul.tiles import slices_of
from kernels.rounded import in_storage
from kernels.slices import in_slices
from kernels.storage import FLOAT32, storage_of

Five = tuple[Array, Array, Array, Array, Array]


def options(
    precision: str,
    geometry: Geometry,
    before: Normalization | None,
    dy: PendingGradient | None = None,
    **arrays: Array | None,
) -> tuple[Option, ...]:
    """This technique and "separate", for `choose`. Raises ValueError for an unknown precision."""
    if before is not None:
        arrays.update(_named("before", before))
    if dy is not None:
        arrays.update({"dy.dy": dy.dy, "dy.x": dy.x, "dy.mean_g": dy.sums.mean_g, "dy.slope": dy.sums.slope})
        arrays.update(_named("dy", dy.normalization))
    given = {name: array for name, array in arrays.items() if array is not None}
    reason = why_not(geometry, given)
    chunk = max(storage_of(array).wide for array in given.values())
    own = NAME, not reason, reason or f"channels in {COUNTED[chunk]} and aligned arrays"
    if chunk != FLOAT32.wide:
        in_order(precision, own, own)  # it must be known
        return own, ("separate", True, "")
    return in_order(precision, own, ("separate", True, f"precision {precision}" if precision == "fp32" else ""))


def forward(
    run: Runner,
    geometry: Geometry,
    x: Array,
    before: Normalization | None,
    w: Array,
    y: Array,
    eps: float,
    out: BatchStatistics | None,
) -> None:
    """Launch y on `run`, and its statistics where `out` is not None."""
    n, c_out = x.shape[0], geometry.c_out
    rows = n * geometry.ho * geometry.wo
    storage = storage_of(x)
    tile = tile_for(rows, c_out)
    span = span_of(geometry.taps, tile.cover(rows, c_out), depth_of(storage))
    slices = slices_of(geometry.taps, span)
    index = index_type(max(x.size, w.size, slices * y.size))
    here = out is not None and slices == 1
    partial = run.empty((3, blocks_for(rows, tile.rows) if here else 0, c_out))
    options = tile, geometry, _kind(before), here, index
    with in_slices(run, slices, y) as target:
        if storage is FLOAT32:
            chosen = conv2d_normalized_forward_tensor_core(*options)
        else:
            chosen = conv2d_normalized_forward_narrow_tensor_core(*options, storage, storage_of(target))
        run(chosen, x, *_known(before, w), in_storage(run, w, storage), target, partial, n, span)
    if out is not None and here:
        batchnorm.merge_statistics(run, partial, out, rows, tile.rows, eps)
    elif out is not None:
        batchnorm.batchnorm_statistics(run, y, eps, out)


def backward_weight(
    run: Runner, geometry: Geometry, x: Array, before: Normalization | None, dy: PendingGradient, dw: Array
) -> None:
    """Launch dw on `run`."""
    n = x.shape[0]
    pixels = n * geometry.ho * geometry.wo
    storage = storage_of(x)
    tile = tile_for(geometry.taps, geometry.c_out)
    span = span_of(pixels, tile.cover(geometry.taps, geometry.c_out), depth_of(storage))
    slices = slices_of(pixels, span)
    index = index_type(max(x.size, dy.dy.size, slices * dw.size))
    options = tile.with_room(False, False, 1, 2, storage), geometry, _kind(before), Kind.of(dy.normalization), index
    if storage is FLOAT32:
        chosen = conv2d_normalized_backward_weight_tensor_core(*options)
    else:
        chosen = conv2d_normalized_backward_weight_narrow_tensor_core(*options, storage)
    with in_slices(run, slices, dw) as target:
        run(chosen, x, *_known(before, dy.sums.mean_g), *_pending(dy), target, n, span)


def backward_input(
    run: Runner,
    geometry: Geometry,
    dy: PendingGradient,
    w: Array,
    dx: Array,
    x: Array | None = None,
    before: Normalization | None = None,
    sums: GradientSums | None = None,
) -> None:
    """Launch dx on `run`; with x, before and sums it is masked, and they are found."""
    n, c_in = dx.shape[0], geometry.c_in
    phases, rows_of_image, depth = geometry.input_products()
    rows = n * rows_of_image
    storage = storage_of(dy.dy)
    tile = tile_for(rows, c_in)
    span = span_of(depth, phases * tile.cover(rows, c_in), depth_of(storage))
    slices = slices_of(depth, span)
    index = index_type(max(slices * dx.size, w.size, dy.dy.size))
    here = before if slices == 1 else None
    masks = slices > 1 and before is not None and before.relu  # only when the slices have been added
    partial = run.empty((2, phases * blocks_for(rows, tile.rows) if here else 0, c_in))
    options = tile.with_room(True, True, 2, 1, storage), geometry, Kind.of(dy.normalization), _kind(here), index
    weights = in_storage(run, w, storage)
    gradient = run.empty(dx.shape, dx.dtype) if masks else dx
    with in_slices(run, slices, gradient) as target:
        if storage is FLOAT32:
            chosen = conv2d_normalized_backward_input_tensor_core(*options)
        else:
            chosen = conv2d_normalized_backward_input_narrow_tensor_core(*options, storage, storage_of(target))
        run(chosen, *_pending(dy), weights, weights if here is None else x, *_known(here, w), target, partial, n, span)
    if x is None or before is None or sums is None:
        return
    if here:
        batchnorm.merge_gradient_sums(run, partial, before.statistics.inv_std, sums, dx.size // c_in)
        return
    if masks:
        activation = run.empty(x.shape, x.dtype)
        batchnorm.batchnorm_apply(run, x, before.statistics, before.gamma, before.beta, activation, True)
        relu_backward(run, gradient, activation, dx)
    batchnorm.batchnorm_gradient_sums(run, x, dx, before._replace(relu=False), sums)


def _kind(normalization: Normalization | None) -> Kind | None:
    return None if normalization is None else Kind.of(normalization)


def _known(normalization: Normalization | None, unread: Array) -> Five:
    """What a kernel reads of each channel; `unread` stands for what it does not read."""
    if normalization is None:
        return unread, unread, unread, unread, unread
    gamma, beta = normalization.gamma, normalization.beta
    affine = (unread, unread) if gamma is None else (gamma, beta)
    return *mean_and_scale(normalization.statistics), *affine


def _pending(dy: PendingGradient) -> tuple[Array, ...]:
    return dy.dy, dy.x, *_known(dy.normalization, dy.sums.mean_g), dy.sums.mean_g, dy.sums.slope


def _named(argument: str, normalization: Normalization) -> dict[str, Array | None]:
    names = (f"{argument}.{name}" for name in ("shift", "delta", "inv_std", "gamma", "beta"))
    arrays = *mean_and_scale(normalization.statistics), normalization.gamma, normalization.beta
    return dict(zip(names, arrays, strict=True))
