"""Average pooling on the device, forward and backward.

Traffic  forward reads x (as often as windows overlap, but then from a cache) and writes y once; backward reads dy alike
         and writes dx once. It gathers: a thread owns an element of dx and adds the shares of the windows that hold it.
         By tiles (average_tiled.py) each passes about once.
For maths, shapes and edges see reference.py.
"""

from typing import Any

from numba import cuda, float32, int32, int64, uint32

from kernels.device import index_type
from kernels.launch import Array, Cost, Int64, Launch, Runner, blocks_for, kernel, techniques
from kernels.pooling.average_tiled import avg_pool2d_backward_tiled, avg_pool2d_forward_tiled
from kernels.pooling.divisor import divisor_of
from kernels.pooling.geometry import Geometry, geometry_of, places
from kernels.pooling.tile_choice import NAME as TILED
from kernels.pooling.tile_choice import backward_option, choice, forward_option
from kernels.storage import BFLOAT16, FLOAT16, FLOAT32, Storage, common_storage
from kernels.window import Pair

BLOCK = 256
EXAMPLES = [
    (uint32, Geometry(28, 28, 32, (2, 2), (2, 2), (0, 0)), True, FLOAT32),
    (uint32, Geometry(32, 32, 64, (3, 3), (1, 1), (1, 1)), False, FLOAT32),
    (int64, Geometry(7, 11, 4, (5, 3), (1, 2), (2, 1)), False, FLOAT32),
    (uint32, Geometry(32, 32, 64, (3, 3), (2, 2), (1, 1), ceil_mode=True), True, FLOAT32),
    (uint32, Geometry(32, 32, 64, (3, 3), (1, 1), (1, 1)), False, BFLOAT16),
    (int64, Geometry(7, 11, 8, (5, 3), (1, 2), (2, 1)), False, FLOAT16),
]
WIDE = "LDG.E.128", "STG.E.128"


@kernel(traffic="x -> y", registers=48, examples=EXAMPLES)
def avg_pool2d_forward_scalar(index: Any, geometry: Geometry, count_include_pad: bool, storage: Storage) -> Launch:
    """One output a thread; neighbours have neighbouring channels."""
    stored: Any = storage.pointer
    load, store = storage.load, storage.store
    height, width, c, (kh, kw), (sh, sw), (ph, pw), _, _ = geometry
    output, divisor = places(index, *geometry.output, c), divisor_of(geometry, count_include_pad)

    def avg_pool2d_forward(x: stored, y: stored, n: Int64):
        i = index(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if i < n:
            image, window_row, window_column, channel = output(i)
            top, left = int32(window_row * sh - ph), int32(window_column * sw - pw)
            total = float32(0)
            for down in range(kh):
                row = top + down
                for across in range(kw):
                    column = left + across
                    if 0 <= row < height and 0 <= column < width:
                        total += load(x, index((image * (height * width) + (row * width + column)) * c + channel))
            store(y, i, total / divisor(window_row, window_column))

    return Launch(avg_pool2d_forward, BLOCK, lambda n: blocks_for(n, BLOCK), _forward_cost(geometry, storage))


@kernel(traffic="x -> y", registers=48, instructions=WIDE, examples=EXAMPLES)
def avg_pool2d_forward_vector(index: Any, geometry: Geometry, count_include_pad: bool, storage: Storage) -> Launch:
    """As many channels a thread as 16 bytes hold, in loads and a store of 16 bytes. c is a multiple of that."""
    stored: Any = storage.pointer
    load_wide, store_wide, wide = storage.load_wide, storage.store_wide, storage.wide
    height, width, c, (kh, kw), (sh, sw), (ph, pw), _, _ = geometry
    output, divisor = places(index, *geometry.output, c), divisor_of(geometry, count_include_pad)

    def avg_pool2d_forward(x: stored, y: stored, n: Int64):
        i = index(wide * (cuda.blockIdx.x * BLOCK + cuda.threadIdx.x))
        if i < n:
            totals = cuda.local.array(wide, float32)
            values = cuda.local.array(wide, float32)
            image, window_row, window_column, channel = output(i)
            top, left = int32(window_row * sh - ph), int32(window_column * sw - pw)
            for k in range(wide):
                totals[k] = float32(0)
            for down in range(kh):
                row = top + down
                for across in range(kw):
                    column = left + across
                    if 0 <= row < height and 0 <= column < width:
                        pixel = image * (height * width) + (row * width + column)
                        load_wide(x, index(pixel * c + channel), values)
                        for k in range(wide):
                            totals[k] += values[k]
            by = divisor(window_row, window_column)
            for k in range(wide):
                totals[k] /= by
            store_wide(y, i, totals)

    return Launch(avg_pool2d_forward, BLOCK, lambda n: blocks_for(n, wide * BLOCK), _forward_cost(geometry, storage))


@kernel(traffic="dy -> dx", registers=48, examples=EXAMPLES)
def avg_pool2d_backward_scalar(index: Any, geometry: Geometry, count_include_pad: bool, storage: Storage) -> Launch:
    """One element of dx a thread; it adds the shares of the windows that hold it."""
    stored: Any = storage.pointer
    load, store = storage.load, storage.store
    height, width, c, (kh, kw), (sh, sw), (ph, pw), _, _ = geometry
    (ho, wo), (windows_down, windows_across) = geometry.output, geometry.overlap
    input_place, divisor = places(index, height, width, c), divisor_of(geometry, count_include_pad)

    def avg_pool2d_backward(dy: stored, dx: stored, n: Int64):
        i = index(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if i < n:
            image, row, column, channel = input_place(i)
            last, right = int32((row + ph) // sh), int32((column + pw) // sw)  # of the windows that begin before it
            total = float32(0)
            for up in range(windows_down):
                window_row = last - up
                for back in range(windows_across):
                    window_column = right - back
                    # A window that begins before the element may end before it too.
                    down, across = row + ph - window_row * sh, column + pw - window_column * sw
                    if 0 <= window_row < ho and 0 <= window_column < wo and down < kh and across < kw:
                        pixel = image * (ho * wo) + (window_row * wo + window_column)
                        share = float32(1) / divisor(window_row, window_column)
                        total += load(dy, index(pixel * c + channel)) * share
            store(dx, i, total)

    return Launch(avg_pool2d_backward, BLOCK, lambda n: blocks_for(n, BLOCK), _backward_cost(geometry, storage))


@kernel(traffic="dy -> dx", registers=64, instructions=WIDE, examples=EXAMPLES)
def avg_pool2d_backward_vector(index: Any, geometry: Geometry, count_include_pad: bool, storage: Storage) -> Launch:
    """As many channels a thread as 16 bytes hold, in loads and a store of 16 bytes. c is a multiple of that."""
    stored: Any = storage.pointer
    load_wide, store_wide, wide = storage.load_wide, storage.store_wide, storage.wide
    height, width, c, (kh, kw), (sh, sw), (ph, pw), _, _ = geometry
    (ho, wo), (windows_down, windows_across) = geometry.output, geometry.overlap
    input_place, divisor = places(index, height, width, c), divisor_of(geometry, count_include_pad)

    def avg_pool2d_backward(dy: stored, dx: stored, n: Int64):
        i = index(wide * (cuda.blockIdx.x * BLOCK + cuda.threadIdx.x))
        if i < n:
            totals = cuda.local.array(wide, float32)
            values = cuda.local.array(wide, float32)
            image, row, column, channel = input_place(i)
            last, right = int32((row + ph) // sh), int32((column + pw) // sw)
            for k in range(wide):
                totals[k] = float32(0)
            for up in range(windows_down):
                window_row = last - up
                for back in range(windows_across):
                    window_column = right - back
                    down, across = row + ph - window_row * sh, column + pw - window_column * sw
                    if 0 <= window_row < ho and 0 <= window_column < wo and down < kh and across < kw:
                        pixel = image * (ho * wo) + (window_row * wo + window_column)
                        load_wide(dy, index(pixel * c + channel), values)
                        share = float32(1) / divisor(window_row, window_column)
                        for k in range(wide):
                            totals[k] += values[k] * share
            store_wide(dx, i, totals)

    return Launch(avg_pool2d_backward, BLOCK, lambda n: blocks_for(n, wide * BLOCK), _backward_cost(geometry, storage))


@techniques("scalar", "vector", "tiled")
def avg_pool2d_forward(
    run: Runner,
    x: Array,
    y: Array,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    count_include_pad: bool,
    ceil_mode: bool = False,
    *,
    technique: str | None = None,
) -> None:
    """Launch on `run`. Raises ShapeError where shapes do not fit, TypeError unless x and y have one storage.

    The techniques but "scalar" take arrays that start at multiples of 16 bytes, with channels in multiples of as many
    as 16 bytes hold, and "tiled" windows that overlap; asked for others they raise TechniqueError. Sums are float32;
    what is rounded to the storage is their quotient, once.
    """
    geometry = geometry_of("avg_pool2d_forward", ("x", x), {"y": y}, kernel, stride, padding, (1, 1), ceil_mode)
    storage = common_storage("avg_pool2d_forward", x=x, y=y)
    of_tile = forward_option(geometry, storage.wide)
    technique = choice(run, "avg_pool2d_forward", technique, geometry.c, of_tile, storage.wide, x=x, y=y)
    if y.size == 0:
        return
    options = index_type(max(x.size, y.size)), geometry, bool(count_include_pad), storage
    if technique == TILED:
        run(avg_pool2d_forward_tiled(*options), x, y, x.shape[0])
    else:
        factory = avg_pool2d_forward_vector if technique == "vector" else avg_pool2d_forward_scalar
        run(factory(*options), x, y, y.size)


@techniques("scalar", "vector", "tiled")
def avg_pool2d_backward(
    run: Runner,
    dy: Array,
    dx: Array,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    count_include_pad: bool,
    ceil_mode: bool = False,
    *,
    technique: str | None = None,
) -> None:
    """Launch on `run`. Errors and techniques as in `avg_pool2d_forward`.

    "tiled" takes windows that do not overlap too, if they are no more than 9 elements apart.
    """
    geometry = geometry_of("avg_pool2d_backward", ("dx", dx), {"dy": dy}, kernel, stride, padding, (1, 1), ceil_mode)
    storage = common_storage("avg_pool2d_backward", dy=dy, dx=dx)
    of_tile = backward_option(geometry, 1, storage.wide)
    technique = choice(run, "avg_pool2d_backward", technique, geometry.c, of_tile, storage.wide, dy=dy, dx=dx)
    if dx.size == 0:
        return
    options = index_type(max(dx.size, dy.size)), geometry, bool(count_include_pad), storage
    if technique == TILED:
        run(avg_pool2d_backward_tiled(*options), dy, dx, dx.shape[0])
    else:
        factory = avg_pool2d_backward_vector if technique == "vector" else avg_pool2d_backward_scalar
        run(factory(*options), dy, dx, dx.size)


def _forward_cost(geometry: Geometry, storage: Storage) -> Any:
    """Each input once; an addition a tap."""
    (ho, wo), (kh, kw) = geometry.output, geometry.kernel
    size, of_one = geometry.height * geometry.width, storage.bytes
    return lambda n: Cost(of_one * n // (ho * wo) * size, of_one * n, n * kh * kw)


def _backward_cost(geometry: Geometry, storage: Storage) -> Any:
    (ho, wo), (kh, kw), size = geometry.output, geometry.kernel, geometry.height * geometry.width
    of_one = storage.bytes
    return lambda n: Cost(of_one * n // size * (ho * wo), of_one * n, n // size * (ho * wo) * kh * kw)
