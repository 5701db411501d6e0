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
from kernels.launch import Array, Cost, Floats, Int32s, Int64, Launch, Runner, blocks_for, kernel, techniques
from kernels.pooling.extremes import LOWEST, first_real, wins
from kernels.pooling.geometry import Geometry, geometry_of, places
from kernels.pooling.maximum_tiled import max_pool2d_backward_tiled, max_pool2d_forward_tiled
from kernels.pooling.tile import NAME as TILED
from kernels.pooling.tile import backward_option, choice, forward_option
from kernels.window import Pair

BLOCK = 256
EXAMPLES = [
    (uint32, Geometry(28, 28, 32, (2, 2), (2, 2), (0, 0))),
    (uint32, Geometry(32, 32, 64, (3, 3), (2, 2), (1, 1))),
    (int64, Geometry(7, 11, 4, (5, 3), (1, 2), (2, 1))),
    (uint32, Geometry(32, 32, 64, (3, 3), (2, 2), (1, 1), (2, 3), True)),
]
WIDE = "LDG.E.128", "STG.E.128"


@kernel(traffic="x -> y, place", registers=48, examples=EXAMPLES)
def max_pool2d_forward_scalar(index: Any, geometry: Geometry) -> Launch:
    """One output a thread; neighbours have neighbouring channels."""
    height, width, c, (kh, kw), (sh, sw), (ph, pw), (dh, dw), _ = geometry
    output = places(index, *geometry.output, c)

    def max_pool2d_forward(x: Floats, y: Floats, place: Int32s, n: Int64):
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
                        value = x[index((image * (height * width) + here) * c + channel)]
                        if wins(value, best):
                            best, where = value, here
            y[i] = best
            place[i] = where

    return Launch(max_pool2d_forward, BLOCK, lambda n: blocks_for(n, BLOCK), _forward_cost(geometry))


@kernel(traffic="x -> y, place", registers=48, instructions=WIDE, examples=EXAMPLES)
def max_pool2d_forward_vector(index: Any, geometry: Geometry) -> Launch:
    """Four channels a thread, in loads and stores of 16 bytes. c is a multiple of 4."""
    height, width, c, (kh, kw), (sh, sw), (ph, pw), (dh, dw), _ = geometry
    output = places(index, *geometry.output, c)

    def max_pool2d_forward(x: Floats, y: Floats, place: Int32s, n: Int64):
        i = index(4 * (cuda.blockIdx.x * BLOCK + cuda.threadIdx.x))
        if i < n:
            image, window_row, window_column, channel = output(i)
            top, left = int32(window_row * sh - ph), int32(window_column * sw - pw)
            best0 = best1 = best2 = best3 = float32(LOWEST)
            where0 = where1 = where2 = where3 = int32(first_real(top, dh) * width + first_real(left, dw))
            for down in range(kh):
                row = top + down * dh
                for across in range(kw):
                    column = left + across * dw
                    if 0 <= row < height and 0 <= column < width:
                        here = int32(row * width + column)
                        a, b, c_, d = load4(x, index((image * (height * width) + here) * c + channel))
                        if wins(a, best0):
                            best0, where0 = a, here
                        if wins(b, best1):
                            best1, where1 = b, here
                        if wins(c_, best2):
                            best2, where2 = c_, here
                        if wins(d, best3):
                            best3, where3 = d, here
            store4(y, i, best0, best1, best2, best3)
            store4(place, i, where0, where1, where2, where3)

    return Launch(max_pool2d_forward, BLOCK, lambda n: blocks_for(n, 4 * BLOCK), _forward_cost(geometry))


@kernel(traffic="dy, place -> dx", registers=48, examples=EXAMPLES)
def max_pool2d_backward_scalar(index: Any, geometry: Geometry) -> Launch:
    """One element of dx a thread; of the windows that hold it, it takes dy of those whose maximum it is."""
    height, width, c, _, (sh, sw), (ph, pw), _, _ = geometry
    (ho, wo), (windows_down, windows_across) = geometry.output, geometry.overlap
    input_place = places(index, height, width, c)

    def max_pool2d_backward(dy: Floats, place: Int32s, dx: Floats, n: Int64):
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
                            total += dy[j]
            dx[i] = total

    return Launch(max_pool2d_backward, BLOCK, lambda n: blocks_for(n, BLOCK), _backward_cost(geometry))


@kernel(traffic="dy, place -> dx", registers=48, instructions=WIDE, examples=EXAMPLES)
def max_pool2d_backward_vector(index: Any, geometry: Geometry) -> Launch:
    """Four channels a thread, in loads and stores of 16 bytes. c is a multiple of 4."""
    height, width, c, _, (sh, sw), (ph, pw), _, _ = geometry
    (ho, wo), (windows_down, windows_across) = geometry.output, geometry.overlap
    input_place = places(index, height, width, c)

    def max_pool2d_backward(dy: Floats, place: Int32s, dx: Floats, n: Int64):
        i = index(4 * (cuda.blockIdx.x * BLOCK + cuda.threadIdx.x))
        if i < n:
            image, row, column, channel = input_place(i)
            here = int32(row * width + column)
            last, right = int32((row + ph) // sh), int32((column + pw) // sw)
            total0 = total1 = total2 = total3 = float32(0)
            for up in range(windows_down):
                window_row = last - up
                for back in range(windows_across):
                    window_column = right - back
                    if 0 <= window_row < ho and 0 <= window_column < wo:
                        j = index((image * (ho * wo) + (window_row * wo + window_column)) * c + channel)
                        place0, place1, place2, place3 = load4(place, j)
                        dy0, dy1, dy2, dy3 = load4(dy, j)
                        total0 += dy0 if place0 == here else float32(0)
                        total1 += dy1 if place1 == here else float32(0)
                        total2 += dy2 if place2 == here else float32(0)
                        total3 += dy3 if place3 == here else float32(0)
            store4(dx, i, total0, total1, total2, total3)

    return Launch(max_pool2d_backward, BLOCK, lambda n: blocks_for(n, 4 * BLOCK), _backward_cost(geometry))


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
    """Launch on `run`. Raises ShapeError where shapes do not fit.

    The techniques but "scalar" take arrays that start at multiples of 16 bytes, with channels in multiples of 4, and
    "tiled" windows that overlap; asked for others they raise TechniqueError.
    """
    pooled, window = {"y": y, "index": index}, (kernel, stride, padding, dilation, ceil_mode)
    geometry = geometry_of("max_pool2d_forward", ("x", x), pooled, *window)
    arrays, of_tile = {"x": x, "y": y, "index": index}, forward_option(geometry)
    technique = choice(run, "max_pool2d_forward", technique, geometry.c, of_tile, **arrays)
    if y.size == 0:
        return
    index_kind = index_type(max(x.size, y.size))
    if technique == TILED:
        run(max_pool2d_forward_tiled(index_kind, geometry), x, y, index, x.shape[0])
    else:
        factory = max_pool2d_forward_vector if technique == "vector" else max_pool2d_forward_scalar
        run(factory(index_kind, geometry), x, y, index, y.size)


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
    """Launch on `run`; `index` is forward's. Errors and techniques as in `max_pool2d_forward`.

    "tiled" takes windows that do not overlap too, if they are no more than 9 elements apart.
    """
    pooled, window = {"dy": dy, "index": index}, (kernel, stride, padding, dilation, ceil_mode)
    geometry = geometry_of("max_pool2d_backward", ("dx", dx), pooled, *window)
    arrays, of_tile = {"dy": dy, "index": index, "dx": dx}, backward_option(geometry, 2)
    technique = choice(run, "max_pool2d_backward", technique, geometry.c, of_tile, **arrays)
    if dx.size == 0:
        return
    index_kind = index_type(max(dx.size, dy.size))
    if technique == TILED:
        run(max_pool2d_backward_tiled(index_kind, geometry), dy, index, dx, dx.shape[0])
    else:
        factory = max_pool2d_backward_vector if technique == "vector" else max_pool2d_backward_scalar
        run(factory(index_kind, geometry), dy, index, dx, dx.size)


def _forward_cost(geometry: Geometry) -> Any:
    """Each input once, two arrays of outputs; a comparison a tap."""
    (ho, wo), (kh, kw) = geometry.output, geometry.kernel
    size = geometry.height * geometry.width
    return lambda n: Cost(4 * n // (ho * wo) * size, 8 * n, n * kh * kw)


def _backward_cost(geometry: Geometry) -> Any:
    (ho, wo), size = geometry.output, geometry.height * geometry.width
    return lambda n: Cost(8 * n // size * (ho * wo), 4 * n, n // size * (ho * wo))
