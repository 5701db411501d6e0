"""Windows times weights on the CPU: convolution forward, and the gradient of its input.

What the loops work through is laid out in convolution_plan.py.
"""

import numpy as np

from minidl.backends.cpu.batchnorm_loops import add_chunks
from minidl.backends.cpu.blocks import WIDTH, multiply_block
from minidl.backends.cpu.compile import called, compiled
from minidl.backends.cpu.convolution_plan import (
    APART_H,
    APART_W,
    C_OUT,
    COLUMN,
    COLUMNS,
    H_OUT,
    KH,
    KW,
    LEFT,
    LEFT_COLUMN,
    LINES,
    PLAIN,
    R_FIRST,
    R_STEP,
    ROW,
    S_FIRST,
    S_STEP,
    SPLITS,
    STRIDE_H,
    STRIDE_W,
    TILES,
    TOP,
    TOP_LINE,
    W_OUT,
    WEIGHTS,
    C,
    H,
)
from minidl.backends.cpu.machine_code import LANES, SUMS
from minidl.backends.cpu.passes import COPY, SUM_SHIFTED
from minidl.backends.cpu.pieces import next_piece
from minidl.backends.cpu.slab import clear, fill_tile, place_of, tile_of
from minidl.backends.cpu.winograd_loops import multiply_tiles

NO_PASS = -1  # what comes after a tile, if nothing does


def pack_weights(first: int, last: int, w: np.ndarray, turned: bool, phases: np.ndarray, packed: np.ndarray) -> None:
    """Blocks first to last of weights (kh, kw, c_in, c_out) in the order in which they are read.

    That is phase by phase; of WIDTH outputs, tap by tap, those of each input. `turned`: outputs are the convolution's
    inputs, as for the gradient of the input. Outputs that are none have zeros.
    """
    w = w.transpose(0, 1, 3, 2) if turned else w
    inputs, outputs = w.shape[2:]
    blocks = -(-outputs // WIDTH)
    for piece in range(first, last):
        phase, block = phases[piece // blocks].tolist(), piece % blocks * WIDTH
        kh, kw, lanes = phase[KH], phase[KW], min(WIDTH, outputs - block)
        size = kh * kw * inputs
        at = phase[WEIGHTS] + block * size
        into = packed[at : at + size * WIDTH].reshape(kh, kw, inputs, WIDTH)
        rows, columns = _every(phase[R_FIRST], phase[R_STEP], kh), _every(phase[S_FIRST], phase[S_STEP], kw)
        taken = w[rows, columns, :, block : block + lanes]
        if turned:  # by way of lines that are not a power of two apart: those would meet in the cache
            apart = np.empty((kh, kw, lanes, inputs + LANES), np.float32)[..., :inputs]
            apart[...] = taken.transpose(0, 1, 3, 2)
            taken = apart.transpose(0, 1, 3, 2)
        into[..., :lanes] = taken
        into[..., lanes:] = 0


def _every(first: int, step: int, count: int) -> slice:
    """`count` indices from `first` on, which may go down to 0."""
    end = first + count * step
    return slice(first, end if end >= 0 else None, step)


@called
def _multiply_line(
    blocks, source, window, step, pitch, packed, weights, rows, depth, y, place, apart, wide, lanes, edge
):
    """`wide` outputs of a line, `lanes` channels of each: windows `step` apart, results `apart`."""
    vectors = -(-lanes // LANES)
    parts = -(-wide * vectors // SUMS)
    for part in range(parts):
        begin, end = wide * part // parts, wide * (part + 1) // parts
        function, at = blocks[vectors, end - begin], place + begin * apart
        target, goal, pitch_out = y, at, apart
        if lanes < vectors * LANES:
            target, goal, pitch_out = edge, 0, WIDTH
        multiply_block(
            *(function, source, window + begin * step, 0, step, 0, pitch, 1),
            *(packed, weights, 0, 0, depth * WIDTH, WIDTH, 1, 1, rows, depth, target, goal, 0, pitch_out, 0),
        )
        if lanes < vectors * LANES:
            for p in range(end - begin):
                for lane in range(lanes):
                    y[at + p * apart + lane] = edge[p * WIDTH + lane]


@called
def _multiply_phase(
    blocks, numbers, phase, clips, image, images, line, lines, source, in_place, packed, y, begin_out, end_out, edge
):
    """The outputs of a phase in a tile, channels begin_out to end_out."""
    start, pitch, size = place_of(numbers, image, line, lines, in_place)
    c, c_out, kh, kw = numbers[C], numbers[C_OUT], phase[KH], phase[KW]
    stride_h, apart = numbers[STRIDE_H], numbers[APART_W] * numbers[C_OUT]
    start += (phase[TOP] - numbers[TOP_LINE]) * pitch + (phase[LEFT] - numbers[LEFT_COLUMN]) * c
    for block in range(begin_out, end_out, WIDTH):
        lanes = min(WIDTH, c_out - block)
        weights = phase[WEIGHTS] + block * kh * kw * c
        for k in range(images):
            for i in range(min(lines, phase[LINES] - line)):
                line_out = (image + k) * numbers[H_OUT] + (line + i) * numbers[APART_H] + phase[ROW]
                place = (line_out * numbers[W_OUT] + phase[COLUMN]) * c_out + block
                if kh * kw == 0:
                    for p in range(phase[COLUMNS]):
                        clear(y, place + p * apart, lanes)
                    continue
                r, rows = 0, kh
                if clips:
                    above = (line + i) * stride_h + phase[TOP]
                    r = min(max(0, -above), kh - 1)
                    rows = max(min(kh, numbers[H] - above) - r, 1)
                _multiply_line(
                    *(blocks, source, start + k * size + (i * stride_h + r) * pitch, numbers[STRIDE_W] * c, pitch),
                    *(packed, weights + r * kw * c * WIDTH, rows, kw * c),
                    *(y, place, apart, phase[COLUMNS], lanes, edge),
                )


@called
def _add_bias(numbers, image, images, line, lines, bias, y, begin_out, end_out):
    """To channels begin_out to end_out of a tile."""
    begin, c_out = (image * numbers[H_OUT] + line) * numbers[W_OUT], numbers[C_OUT]
    for row in range(begin, begin + ((images - 1) * numbers[H_OUT] + lines) * numbers[W_OUT]):
        for lane in range(begin_out, end_out):
            y[row * c_out + lane] += bias[lane]


@compiled
def multiply_windows(
    counter,
    pieces,
    blocks,
    table,
    numbers,
    phases,
    clips,
    how,
    x,
    dy,
    parameters,
    width,
    packed,
    bias,
    y,
    after,
    before,
    of_before,
    width_after,
    starts,
    firsts,
    sums,
    scratch,
    slab,
    edge,
    transforms,
    few,
    taken,
    products,
    check,
):
    """Y = windows times weights, and the bias where there is one. All but tables are flat.

    Of all `pieces` those that `counter` gives (see `next_piece`); other threads do the others.

    `clips`: taps in the padding above and below are left out; the others are multiplied by its zeros. `table` has the
    passes: by `how` of them source pixels are filled in from x and dy, with `parameters` of `width`.

    What comes `after` a tile is done while it is in the cache: a pass with sums, SUM_SHIFTED over y, or one over y as
    the gradient of a normalization of `before`, whose parameters are `of_before`. Then `sums` is (3, chunks, c_out),
    and `starts` and `firsts` are the plan's chunks; a tile is one piece. `scratch` is that of `add_chunks`.

    Where `few` is not 0 it is done by Winograd (see `multiply_tiles`), which reads what comes last.
    """
    in_place = few == 0 and numbers[PLAIN] == 1 and how == COPY
    source = x if in_place else slab
    c_out, many = numbers[C_OUT], -(-numbers[C_OUT] // WIDTH)
    filled = -1
    for _ in range(pieces):
        piece = next_piece(counter)
        if piece >= pieces:
            break
        t, split = piece % numbers[TILES], piece // numbers[TILES]
        image, images, line, lines = tile_of(numbers, t)
        begin_out = many * split // numbers[SPLITS] * WIDTH
        end_out = min(many * (split + 1) // numbers[SPLITS] * WIDTH, c_out)
        if not in_place and t != filled:
            fill_tile(table, numbers, image, images, line, lines, how, x, dy, parameters, width, slab)
            filled = t
        if few > 0:
            multiply_tiles(
                *(blocks, transforms, numbers, image, images, line, lines, slab, packed, y, begin_out, end_out),
                *(few, taken, products, edge, check),
            )
        for f in range(0 if few > 0 else len(phases)):
            _multiply_phase(
                *(blocks, numbers, phases[f], clips, image, images, line, lines),
                *(source, in_place, packed, y, begin_out, end_out, edge),
            )
        if bias.size:
            _add_bias(numbers, image, images, line, lines, bias, y, begin_out, end_out)
        if after != NO_PASS:
            summed = y if after == SUM_SHIFTED else before
            add_chunks(
                *(firsts[t], firsts[t + 1], table, after, summed, y, y),
                *(c_out, width_after, starts, of_before, y, sums, scratch),
            )
