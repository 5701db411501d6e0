"""Convolution by wgmma: whether a convolution can take that technique, whether it is taken unasked, its launches."""

from kernels.choice import Option
from kernels.conv.geometry import Geometry
from kernels.conv.tensor_core_launch import why_not
from kernels.conv.wgmma import conv2d_backward_input_wgmma, conv2d_backward_weight_wgmma, conv2d_forward_wgmma
from kernels.conv.wgmma_pack import conv2d_backward_input_pack_wgmma, conv2d_forward_pack_wgmma, slabs_shape
from kernels.device import index_type
from kernels.launch import Array, Runner
from kernels.matmul.tensor_tiles import LEAST, span_of
from kernels.matmul.tiles import slices_of
from kernels.matmul.wgmma_tiles import LARGE, NAME, NARROW, tile_for, why_lacking
from kernels.slices import in_slices
from kernels.storage import FLOAT32, storage_of

# Whether this technique may be taken without being asked for. It has run in the emulator alone: that its descriptors,
# fences and copies are what the hardware takes them for has not been seen on any GPU, and whether training is right
# must not hang on that. To be set once `verify` has passed on compute capability 9.0 and it was faster there.
UNASKED = False

Product = tuple[int, int, int]  # rows and columns of the result, depth


def forward_product(geometry: Geometry, n: int) -> Product:
    """That of n images."""
    return n * geometry.ho * geometry.wo, geometry.c_out, geometry.taps


def input_product(geometry: Geometry, n: int) -> Product:
    """That of a phase of the input gradient."""
    _, rows, depth = geometry.input_products()
    return n * rows, geometry.c_in, depth


def weight_product(geometry: Geometry, n: int) -> Product:
    """That of the weight gradient."""
    return geometry.taps, geometry.c_out, n * geometry.ho * geometry.wo


def among(
    run: Runner, precision: str, others: tuple[Option, ...], geometry: Geometry, product: Product, **arrays: Array
) -> tuple[Option, ...]:
    """This technique and the others: before them where it may be taken unasked and should win, else after them."""
    chip = getattr(run, "chip", None)
    reason = why_lacking(chip) or _why_not_stored(arrays) or why_not(geometry, arrays)
    rows, columns, depth = product
    size = f"a product of {rows:,} x {columns:,} x {depth:,}"
    pays = rows >= LARGE.rows and columns > NARROW.columns and depth >= LEAST
    if UNASKED and precision != "fp32" and chip is not None and chip.capability is not None and pays:
        return (NAME, not reason, reason or f"{size} fills wgmma's tiles"), *others
    return *others, (NAME, not reason, reason or f"{size}")


def _why_not_stored(arrays: dict[str, Array]) -> str:
    for name, array in arrays.items():
        if storage_of(array) is not FLOAT32:
            return f"{name} is stored as {storage_of(array)}, expected float32"
    return ""


def forward(run: Runner, geometry: Geometry, x: Array, w: Array, bias: Array | None, y: Array) -> None:
    """Launch y = the convolution of x with w, and bias or None, on `run`."""
    n = x.shape[0]
    rows, columns, depth = forward_product(geometry, n)
    tile = tile_for(rows, columns)
    span = span_of(depth, tile.cover(rows, columns))
    slices = slices_of(depth, span)
    packed = run.empty(slabs_shape(tile, columns, depth), "uint32")
    index = index_type(max(x.size, packed.size, slices * y.size))
    given = run.empty((0,)) if bias is None else bias
    run(conv2d_forward_pack_wgmma(tile, geometry), w, packed)
    with in_slices(run, slices, y) as target:
        run(conv2d_forward_wgmma(tile, geometry, bias is not None, index), x, packed, given, target, n, span)


def backward_input(run: Runner, geometry: Geometry, dy: Array, w: Array, dx: Array) -> None:
    """Launch dx of dy and w on `run`."""
    n = dx.shape[0]
    phases, _, _ = geometry.input_products()
    rows, columns, depth = input_product(geometry, n)
    tile = tile_for(rows, columns)
    span = span_of(depth, phases * tile.cover(rows, columns))
    slices = slices_of(depth, span)
    packed = run.empty(slabs_shape(tile, columns, depth, phases), "uint32")
    index = index_type(max(slices * dx.size, w.size, packed.size, dy.size))
    run(conv2d_backward_input_pack_wgmma(tile, geometry), w, packed)
    with in_slices(run, slices, dx) as target:
        run(conv2d_backward_input_wgmma(tile, geometry, index), dy, packed, w, target, n, span)


def backward_weight(run: Runner, geometry: Geometry, x: Array, dy: Array, dw: Array) -> None:
    """Launch dw of x and dy on `run`."""
    n = x.shape[0]
    rows, columns, depth = weight_product(geometry, n)
    tile = tile_for(rows, columns)
    span = span_of(depth, tile.cover(rows, columns))
    slices = slices_of(depth, span)
    index = index_type(max(x.size, dy.size, slices * dw.size))
    with in_slices(run, slices, dw) as target:
        run(conv2d_backward_weight_wgmma(tile, geometry, index), x, dy, target, n, span)
