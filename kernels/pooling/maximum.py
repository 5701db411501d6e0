"""Max pooling on the device: y and the index of each maximum; backward collects dy by that index.

Traffic  forward reads x at least once (as often as windows overlap, but then from a cache) and writes y and index;
         backward reads dy and index alike and writes dx once. It gathers: a thread owns an element of dx and looks at
         the windows that hold it. So no two threads add to one element, and the sum has one order. By tiles
         (maximum_tiled.py) each passes about once.
For maths, shapes and edges see reference.py.
"""

from typing import Any

from numba import cuda, float32, int32, int64, uint32

from kernels.device import index_type
from kernels.intrinsics import load4, store4
from kernels.launch import Array, Cost, Int32s, Int64, Launch, Runner, blocks_for, kernel, techniques
from kernels.pooling.extremes import LOWEST, first_real, wins
from kernels.pooling.geometry import Geometry, geometry_of, places
from kernels.pooling.maximum_tiled import max_pool2d_backward_tiled, max_pool2d_forward_tiled
from kernels.pooling.places import store_places
from kernels.pooling.tile_choice import NAME as TILED
from kernels.pooling.tile_choice import backward_option, choice, forward_option
from kernels.storage import BFLOAT16, FLOAT16, FLOAT32, Storage, common_storage
from kernels.window import Pair

BLOCK = 256
EXAMPLES = [
    (uint32, Geometry(28, 28, 32, (2, 2), (2, 2), (0, 0)), FLOAT32),
    (uint32, Geometry(32, 32, 64, (3, 3), (2, 2), (1, 1)), FLOAT32),
    (int64, Geometry(7, 11, 4, (5, 3), (1, 2), (2, 1)), FLOAT32),
    (uint32, Geometry(32, 32, 64, (3, 3), (2, 2), (1, 1), (2, 3), True), FLOAT32),
    (uint32, Geometry(32, 32, 64, (3, 3), (2, 2), (1, 1)), BFLOAT16),
    (int64, Geometry(7, 11, 8, (5, 3), (1, 2), (2, 1)), FLOAT16),
]
WIDE = "LDG.E.128", "STG.E.128"


@kernel(traffic="x -> y, place", registers=48, examples=EXAMPLES)
def max_pool2d_forward_scalar(index: Any, geometry: Geometry, storage: Storage) -> Launch:
    """One output a thread; neighbours have neighbouring channels."""
    stored: Any = storage.pointer
    load, store = storage.load, storage.store
    height, width, c, (kh, kw), (sh, sw), (ph, pw), (dh, dw), _ = geometry
    output = places(index, *geometry.output, c)

    def max_pool2d_forward(x: stored, y: stored, place: Int32s, n: Int64):
        i = index(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if i < n:
            image, window_row, window_column, channel = output(i)
            top, left = int32(window_row * sh - ph), int32(window_column * sw - pw)
            best = float32(LOWEST)
            where = int32(first_real(top, dh) * width + first_real(left, dw))  # in case all are -inf
            for down in range(kh):
                row = top + down * dh
                for across in range(kw):
                    column = left + across * dw
                    if 0 <= row < height and 0 <= column < width:
                        here = int32(row * width + column)
                        value = load(x, index((image * (height * width) + here) * c + channel))
                        if wins(value, best):
                            best, where = value, here
            store(y, i, best)
            place[i] = where

    return Launch(max_pool2d_forward, BLOCK, lambda n: blocks_for(n, BLOCK), _forward_cost(geometry, storage))


@kernel(traffic="x -> y, place", registers=48, instructions=WIDE, examples=EXAMPLES)
def max_pool2d_forward_vector(index: Any, geometry: Geometry, storage: Storage) -> Launch:
    """As many channels a thread as 16 bytes hold, in loads and stores of 16 bytes. c is a multiple of that."""
    stored: Any = storage.pointer
    load_wide, store_wide, wide = storage.load_wide, storage.store_wide, storage.wide
    in_pairs = wide == 8
    height, width, c, (kh, kw), (sh, sw), (ph, pw), (dh, dw), _ = geometry
    output = places(index, *geometry.output, c)

    def max_pool2d_forward(x: stored, y: stored, place: Int32s, n: Int64):
        i = index(wide * (cuda.blockIdx.x * BLOCK + cuda.threadIdx.x))
        best = cuda.local.array(wide, float32)
        where = cuda.local.array(wide, int32)
        values = cuda.local.array(wide, float32)
        if in_pairs:
            for k in range(wide):
                where[k] = 0
        if i < n:
            image, window_row, window_column, channel = output(i)
            top, left = int32(window_row * sh - ph), int32(window_column * sw - pw)
            first = int32(first_real(top, dh) * width + first_real(left, dw))
            for k in range(wide):
                best[k] = float32(LOWEST)
                where[k] = first
            for down in range(kh):
                row = top + down * dh
                for across in range(kw):
                    column = left + across * dw
                    if 0 <= row < height and 0 <= column < width:
                        here = int32(row * width + column)
                        load_wide(x, index((image * (height * width) + here) * c + channel), values)
                        for k in range(wide):
                            if wins(values[k], best[k]):
                                best[k] = values[k]
                                where[k] = here
            store_wide(y, i, best)
            if not in_pairs:
                for k in range(0, wide, 4):
                    store4(place, i + k, where[k], where[k + 1], where[k + 2], where[k + 3])
        if in_pairs:
            even = int64(i) - 8 * (cuda.threadIdx.x & 1)
            store_places(place, int64(i), even < n, even + 8 < n, where)

    return Launch(max_pool2d_forward, BLOCK, lambda n: blocks_for(n, wide * BLOCK), _forward_cost(geometry, storage))


@kernel(traffic="dy, place -> dx", registers=48, examples=EXAMPLES)
def max_pool2d_backward_scalar(index: Any, geometry: Geometry, storage: Storage) -> Launch:
    """One element of dx a thread; of the windows that hold it, it takes dy of those whose maximum it is."""
    stored: Any = storage.pointer
    load, store = storage.load, storage.store
    height, width, c, _, (sh, sw), (ph, pw), _, _ = geometry
    (ho, wo), (windows_down, windows_across) = geometry.output, geometry.overlap
    input_place = places(index, height, width, c)

    def max_pool2d_backward(dy: stored, place: Int32s, dx: stored, n: Int64):
        i = index(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if i < n:
            image, row, column, channel = input_place(i)
            here = int32(row * width + column)
            last, right = int32((row + ph) // sh), int32((column + pw) // sw)  # of the windows that hold it
            total = float32(0)
            for up in range(windows_down):
                window_row = last - up
                for back in range(windows_across):
                    window_column = right - back
                    if 0 <= window_row < ho and 0 <= window_column < wo:
                        j = index((image * (ho * wo) + (window_row * wo + window_column)) * c + channel)
                        if place[j] == here:
                            total += load(dy, j)
            store(dx, i, total)

    return Launch(max_pool2d_backward, BLOCK, lambda n: blocks_for(n, BLOCK), _backward_cost(geometry, storage))


@kernel(traffic="dy, place -> dx", registers=48, instructions=WIDE, examples=EXAMPLES)
def max_pool2d_backward_vector(index: Any, geometry: Geometry, storage: Storage) -> Launch:
    """As many channels a thread as 16 bytes hold, in loads and stores of 16 bytes. c is a multiple of that.

    In 16 bits a thread loads its eight places in two halves, of half a sector each (76 % of the bytes moved are asked
    for, and a cache joins them): neighbours may be of different windows, so they cannot do it together as tiles do.
    """
    stored: Any = storage.pointer
    load_wide, store_wide, wide = storage.load_wide, storage.store_wide, storage.wide
    height, width, c, _, (sh, sw), (ph, pw), _, _ = geometry
    (ho, wo), (windows_down, windows_across) = geometry.output, geometry.overlap
    input_place = places(index, height, width, c)

    def max_pool2d_backward(dy: stored, place: Int32s, dx: stored, n: Int64):
        i = index(wide * (cuda.blockIdx.x * BLOCK + cuda.threadIdx.x))
        if i < n:
            totals = cuda.local.array(wide, float32)
            gradients = cuda.local.array(wide, float32)
            for k in range(wide):
                totals[k] = float32(0)
            image, row, column, channel = input_place(i)
            here = int32(row * width + column)
            last, right = int32((row + ph) // sh), int32((column + pw) // sw)
            for up in range(windows_down):
                window_row = last - up
                for back in range(windows_across):
                    window_column = right - back
                    if 0 <= window_row < ho and 0 <= window_column < wo:
                        j = index((image * (ho * wo) + (window_row * wo + window_column)) * c + channel)
                        load_wide(dy, j, gradients)
                        for k in range(0, wide, 4):
                            place0, place1, place2, place3 = load4(place, j + k)
                            totals[k] += gradients[k] if place0 == here else float32(0)
                            totals[k + 1] += gradients[k + 1] if place1 == here else float32(0)
                            totals[k + 2] += gradients[k + 2] if place2 == here else float32(0)
                            totals[k + 3] += gradients[k + 3] if place3 == here else float32(0)
            store_wide(dx, i, totals)

    return Launch(max_pool2d_backward, BLOCK, lambda n: blocks_for(n, wide * BLOCK), _backward_cost(geometry, storage))


@techniques("scalar", "vector", "tiled")
def max_pool2d_forward(
    run: Runner,
    x: Array,
    y: Array,
    index: Array,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair = (1, 1),
    ceil_mode: bool = False,
    *,
    technique: str | None = None,
) -> None:
    """Launch on `run`. Raises ShapeError where shapes do not fit, TypeError unless x and y have one storage.

    The techniques but "scalar" take arrays that start at multiples of 16 bytes, with channels in multiples of as many
    as 16 bytes hold, and "tiled" windows that overlap; asked for others they raise TechniqueError.
    """
    pooled, window = {"y": y, "index": index}, (kernel, stride, padding, dilation, ceil_mode)
    geometry = geometry_of("max_pool2d_forward", ("x", x), pooled, *window)
    storage = common_storage("max_pool2d_forward", x=x, y=y)
    arrays, of_tile = {"x": x, "y": y, "index": index}, forward_option(geometry, storage.wide)
    technique = choice(run, "max_pool2d_forward", technique, geometry.c, of_tile, storage.wide, **arrays)
    if y.size == 0:
        return
    index_kind = index_type(max(x.size, y.size))
    if technique == TILED:
        run(max_pool2d_forward_tiled(index_kind, geometry, storage), x, y, index, x.shape[0])
    else:
        factory = max_pool2d_forward_vector if technique == "vector" else max_pool2d_forward_scalar
        run(factory(index_kind, geometry, storage), x, y, index, y.size)


@techniques("scalar", "vector", "tiled")
def max_pool2d_backward(
    run: Runner,
    dy: Array,
    index: Array,
    dx: Array,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair = (1, 1),
    ceil_mode: bool = False,
    *,
    technique: str | None = None,
) -> None:
    """Launch on `run`; `index` is forward's. Errors and techniques as in `max_pool2d_forward`, with dy and dx.

    What is summed for an element of dx are elements of dy as they are stored, in float32; the sum is rounded once.
    "tiled" takes windows that do not overlap too, if they are no more than 9 elements apart.
    """
    pooled, window = {"dy": dy, "index": index}, (kernel, stride, padding, dilation, ceil_mode)
    geometry = geometry_of("max_pool2d_backward", ("dx", dx), pooled, *window)
    storage = common_storage("max_pool2d_backward", dy=dy, dx=dx)
    arrays, of_tile = {"dy": dy, "index": index, "dx": dx}, backward_option(geometry, 2, storage.wide)
    technique = choice(run, "max_pool2d_backward", technique, geometry.c, of_tile, storage.wide, **arrays)
    if dx.size == 0:
        return
    index_kind = index_type(max(dx.size, dy.size))
    if technique == TILED:
        run(max_pool2d_backward_tiled(index_kind, geometry, storage), dy, index, dx, dx.shape[0])
    else:
        factory = max_pool2d_backward_vector if technique == "vector" else max_pool2d_backward_scalar
        run(factory(index_kind, geometry, storage), dy, index, dx, dx.size)


def _forward_cost(geometry: Geometry, storage: Storage) -> Any:
    """Each input once, two arrays of outputs; a comparison a tap."""
    (ho, wo), (kh, kw) = geometry.output, geometry.kernel
    size, of_one = geometry.height * geometry.width, storage.bytes
    return lambda n: Cost(of_one * n // (ho * wo) * size, (of_one + 4) * n, n * kh * kw)


def _backward_cost(geometry: Geometry, storage: Storage) -> Any:
    (ho, wo), size, of_one = geometry.output, geometry.height * geometry.width, storage.bytes
    return lambda n: Cost((of_one + 4) * n // size * (ho * wo), of_one * n, n // size * (ho * wo))
