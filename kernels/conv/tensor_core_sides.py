"""The factors of a convolution's three products, and the places of its input gradient, for the tensor-core kernels.

What a pixel and what a tap contribute to an address is found apart from each other and added: a pixel's part once for
all taps, a tap's part once for all pixels of a thread. With a kernel of 1x1 and no padding all of it folds to a row
times c_in: a plain matrix product.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from numba import float32, uint32

from kernels.conv.geometry import Geometry
from kernels.device import inlined
from kernels.launch import blocks_for
from kernels.matmul.tensor_copies import Arrival, Side, on_both
from kernels.matmul.tensor_tiles import FAR
from kernels.storage import FLOAT32, Storage


def _window(geometry: Geometry, index: Any) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """Make the parts of `Side` for the windows of x: of a pixel, of a tap, and whether both meet within the image."""
    h, w, c_in, _, kw, _, sh, sw, ph, pw = geometry
    ho, wo = geometry.ho, geometry.wo
    is_matrix = geometry.kh == kw == sh == sw == 1 and ph == pw == 0
    is_padded = ph > 0 or pw > 0

    @inlined
    def pixel(source, row):  # noqa: ARG001
        if is_matrix:
            return 0, 0, index(row * c_in)
        line, column = row // wo % ho * sh - ph, row % wo * sw - pw
        return line, column, index(((row // (ho * wo) * h + line) * w + column) * c_in)

    @inlined
    def tap(source, step):  # noqa: ARG001
        if is_matrix:
            return 0, 0, index(step)
        i, j = step // (kw * c_in), step // c_in % kw
        return i, j, index((i * w + j) * c_in + step % c_in)

    @inlined
    def inside(line_u, line_v, step_u, step_v):
        if is_padded:
            return uint32(line_u + step_u) < h and uint32(line_v + step_v) < w
        return uint32(line_u + step_u) < FAR

    return pixel, tap, inside


def windows_by_pixel(geometry: Geometry, index: Any, arrival: Arrival | None = None) -> Side:
    """The windows of x: a line is a pixel of y, a step a tap."""
    pixel, tap, inside = _window(geometry, index)
    return Side(pixel, tap, inside, True, arrival)


def windows_by_tap(geometry: Geometry, index: Any, arrival: Arrival | None = None) -> Side:
    """The same transposed."""
    pixel, tap, inside = _window(geometry, index)
    return Side(tap, pixel, inside, False, arrival)


def matrix(columns: int, index: Any, arrival: Arrival | None = None) -> Side:
    """A factor (depth, columns) as it is stored."""

    @inlined
    def of_line(source, line):  # noqa: ARG001
        return 0, 0, index(line)

    @inlined
    def of_step(source, step):  # noqa: ARG001
        return 0, 0, index(step * columns)

    return Side(of_line, of_step, on_both, False, arrival)


class InputGradient(NamedTuple):
    """Of the product dx = dy around each pixel @ w, transposed, for one of the sh*sw phases; the source is the phase.

    There row (image, t, u) is the pixel (t*sh + .., u*sw + ..) of x, and step (a, b, k) is channel k of the dy that
    meets it by tap (a*sh + .., b*sw + ..). Phases are of one size, the largest.
    """

    dy: Side
    w: Side
    find: Callable[..., Any]  # (phase, row, c, part, n) -> whether the phase has such a pixel, and its place in dx
    again: Callable[..., Any]  # (dy, w, phase, row, c, first, last, element) -> dx, of what there is alone


def input_gradient(
    geometry: Geometry, index: Any, arrival: Arrival | None = None, storage: Storage = FLOAT32
) -> InputGradient:
    """Make them; `storage` is that of w.

    `again` is for a sum that is NaN: perhaps of a zero, in place of a dy that does not exist, times a weight that is
    not finite, and the definition has no such product. It sums once more, in float32 and without them. An element of dy
    is what `element(dy, place, channel)` gives.
    """
    h, w_in, c_in, kh, kw, c_out, sh, sw, ph, pw = geometry
    ho, wo = geometry.ho, geometry.wo
    lines, columns = blocks_for(h, sh), blocks_for(w_in, sw)
    load = storage.load
    taps_right = blocks_for(kw, sw)
    _, rows_of_image, _ = geometry.input_products()

    @inlined
    def of_pixel(phase, row):
        """The dy that meets a pixel of x by the phase's first tap."""
        p = row // columns % lines - (phase // sw - ph) // sh
        q = row % columns - (phase % sw - pw) // sw
        return p, q, index(((row // rows_of_image * ho + p) * wo + q) * c_out)

    @inlined
    def steps(phase, step):
        """(a, b, tap exists, its weights' offset): a and b count taps of the phase."""
        a, b = step // (taps_right * c_out), step // c_out % taps_right
        i, j = phase // sw + sh * a, phase % sw + sw * b
        return a, b, i < kh and j < kw, index((i * kw + j) * (c_in * c_out) + step % c_out)

    @inlined
    def of_tap(phase, step):
        a, b, exists, _ = steps(phase, step)
        return -a if exists else -2 * FAR, -b, index(step % c_out - (a * wo + b) * c_out)

    @inlined
    def within(line_u, line_v, step_u, step_v):
        return uint32(line_u + step_u) < ho and uint32(line_v + step_v) < wo

    @inlined
    def of_channel(phase, c):  # noqa: ARG001
        return 0, 0, index(c * c_out)

    @inlined
    def of_weights(phase, step):
        _, _, exists, offset = steps(phase, step)
        return 0 if exists else 1, 0, offset

    @inlined
    def find(phase, row, c, part, n):
        """Whether the phase has such a pixel, and its place."""
        line = row // columns % lines * sh + (phase // sw - ph) % sh
        column = row % columns * sw + (phase % sw - pw) % sw
        image = part * n + row // rows_of_image
        return line < h and column < w_in, index(((image * h + line) * w_in + column) * c_in + c)

    @inlined
    def again(dy, w, phase, row, c, first, last, element):
        line_u, line_v, offset = of_pixel(phase, row)
        value = float32(0)
        for k in range(first, last):
            step_u, step_v, step_offset = of_tap(phase, index(k))
            if within(line_u, line_v, step_u, step_v):
                _, _, weight = of_weights(phase, index(k))
                given = element(dy, index(offset + step_offset), index(k) % c_out)
                value += given * load(w, index(c * c_out + weight))
        return value

    dy_side = Side(of_pixel, of_tap, within, True, arrival)
    return InputGradient(dy_side, Side(of_channel, of_weights, on_both, True), find, again)
