"""Convolution of images of 1 to 3 channels, as in a network's first layer: forward. The gradient is in its own file.

There is next to nothing to read and little to compute, but a large y to write. A block keeps the weights in shared
memory, and there the lines of one image that its lines of y need, the halo among them: whole lines, so that what it
loads is one contiguous piece of x and the padding on both sides is written once. A thread makes a strip of neighbouring
pixels, `width` channels of each: what it takes of a line of the patch serves all taps of a line of the kernel, and what
it takes of the weights all pixels of the strip.

Traffic  x once and a halo of kh - sh lines more for each block's lines, w once a block, y once, in stores of 16 bytes.
Order    A sum runs over the taps of a window one after another, in float32.
Storage  The image, the weights and the bias are float32; y may be in 16 bits, and then a thread makes eight channels of
         half as many pixels.
For maths, shapes and edges see reference.py.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import cuda, float32, int64, uint32

from kernels.arrays import wide
from kernels.banks import passes
from kernels.batchnorm.split import loader, storer
from kernels.choice import Option
from kernels.conv.first_layer_access import EIGHT, halves, part_of_tap, stored_storer, tap_loader
from kernels.conv.geometry import Geometry
from kernels.device import index_type
from kernels.launch import Array, Floats, Int64, Launch, Runner, blocks_for, kernel
from kernels.storage import BFLOAT16, FLOAT16, FLOAT32, Storage, storage_of

NAME = "first_layer"
BLOCK = 256
CHANNELS = 3  # of x, at most
FEW = 8  # channels of x up to which it may be an image, as with transparency or infrared
TAPS = 256  # of a window, at most: terms of one accumulator
BLOCKS = 2048  # beyond these, a block makes several tiles with the weights that it has
SHARED = 48 << 8  # floats that a block may have in arrays of fixed size
MARGIN = 32  # floats by which a line of the patch may be longer than it need be, at most
REACH = 24  # columns of x that a thread holds in registers, at most
ROUNDS = 2  # strips of a thread in a tile: few, so that small batches too make many blocks
MNIST = Geometry(h=28, w=28, c_in=1, kh=3, kw=3, c_out=32, sh=1, sw=1, ph=1, pw=1)
CIFAR = Geometry(h=32, w=32, c_in=3, kh=3, kw=3, c_out=64, sh=1, sw=1, ph=1, pw=1)
FIVE = Geometry(h=28, w=28, c_in=1, kh=5, kw=5, c_out=20, sh=1, sw=1, ph=0, pw=0)
SEVEN = Geometry(h=64, w=64, c_in=3, kh=7, kw=7, c_out=64, sh=2, sw=2, ph=3, pw=3)
ODD = Geometry(h=13, w=11, c_in=3, kh=5, kw=3, c_out=7, sh=2, sw=3, ph=2, pw=1)


class Tile(NamedTuple):
    """What a block makes at once: `lines` lines of y, in strips, of lanes * width channels."""

    width: int  # channels of a thread
    lanes: int  # threads side by side along the channels; a power of 2
    lines: int
    strips: int  # of a line
    pixels: int  # of a strip
    pitch: int  # floats from a line of the patch to the next
    lines_first: bool  # neighbouring groups of lanes have neighbouring lines, not strips

    @property
    def groups(self) -> int:
        """Of lanes; each makes one strip at a time."""
        return BLOCK // self.lanes

    @property
    def rounds(self) -> int:
        """Strips of a group."""
        return blocks_for(self.lines * self.strips, self.groups)


def patch_lines(geometry: Geometry, lines: int) -> int:
    """Lines of x that `lines` lines of y need."""
    return (lines - 1) * geometry.sh + geometry.kh


def patch_columns(geometry: Geometry, pixels: int) -> int:
    """Columns of the padded x that strips of `pixels` need, those beyond the last pixel of a line among them."""
    return (blocks_for(geometry.wo, pixels) * pixels - 1) * geometry.sw + geometry.kw


def strip_of(geometry: Geometry, sizes: tuple[int, ...]) -> int:
    """Pixels of a strip: of those sizes that reach not too far, the best: long, few pixels beyond a line's end."""
    fits = [size for size in sizes if (size - 1) * geometry.sw + geometry.kw <= REACH] or [1]
    return min(fits, key=lambda size: blocks_for(geometry.wo, size) * (size + 1))


@functools.cache
def tile_of(geometry: Geometry, width: int) -> Tile | None:
    """The tile that moves the fewest bytes for each image, idle threads counted as if they wrote; None where none fits.

    None fits where not even the patch of one line goes into shared memory beside the weights of a few channels.
    """
    pixels = strip_of(geometry, (4, 3, 2) if width == EIGHT else (8, 7, 6, 5, 4, 3, 2))
    sector = 16 if width == EIGHT else 8  # elements of y
    strips, least = blocks_for(geometry.wo, pixels), patch_columns(geometry, pixels) * geometry.c_in
    best: tuple[int, Tile] | None = None
    for lanes in (16, 8, 4, 2, 1) if width > 1 else (32, 16, 8, 4, 2, 1):
        channels = lanes * width
        partly = max(1, sector // channels)  # a store moves whole sectors
        for lines in range(1, geometry.ho + 1):
            tile = Tile(width, lanes, lines, strips, pixels, least + MARGIN, True)
            taken = patch_lines(geometry, lines)
            if taken * tile.pitch + geometry.taps * channels > SHARED or (lines > 1 and tile.rounds > ROUNDS):
                break
            written = tile.rounds * tile.groups * pixels * channels * partly * 8 // sector  # in floats
            blocks = blocks_for(geometry.ho, lines) * blocks_for(geometry.c_out, channels)
            moved = blocks * (taken * geometry.w * geometry.c_in + geometry.taps * channels + written)
            if best is None or moved < best[0]:
                best = moved, tile
    return _without_conflicts(best[1], geometry, least) if best else None


def _without_conflicts(tile: Tile, geometry: Geometry, least: int) -> Tile:
    """The tile with the pitch, and the order of groups, by which the lanes of a warp meet in the fewest banks."""
    group, row = np.arange(BLOCK) // tile.lanes, geometry.w * geometry.c_in
    element = np.arange(patch_lines(geometry, tile.lines) * row)
    reads = tile.rounds * geometry.kh * geometry.c_in * ((tile.pixels - 1) * geometry.sw + geometry.kw)

    def conflicts(one: Tile) -> int:
        line, strip = place_in(one.lines_first, one.lines, one.strips, group)
        read = line * geometry.sh * one.pitch + strip * one.pixels * geometry.sw * geometry.c_in
        return reads * passes(read) + passes(element // row * one.pitch + element % row)

    pitches = range(least, least + MARGIN + 1)
    return min((tile._replace(pitch=p, lines_first=f) for p in pitches for f in (True, False)), key=conflicts)


def place_in(lines_first: bool, lines: int, strips: int, group: Any) -> Any:
    """(line, strip) of a group."""
    return (group % lines, group // lines) if lines_first else (group // strips, group % strips)


def _forward(tile: Tile, geometry: Geometry, with_bias: bool, index: Any, storage: Storage) -> Launch:
    h, w_in, c_in, kh, kw, c_out, sh, sw, ph, pw = geometry
    ho, wo, taps = geometry.ho, geometry.wo, geometry.taps
    width, lanes, lines, strips, pixels, pitch, lines_first = tile
    groups, rounds = tile.groups, tile.rounds
    row, depth = w_in * c_in, patch_lines(geometry, lines)
    used = max(0, min(row, (patch_columns(geometry, pixels) - pw) * c_in))  # of a line of x: what some window holds
    left, step, reach = pw * c_in, pixels * sw * c_in, (pixels - 1) * sw + kw
    parts = lanes * halves(width)  # of the channels of a tap, 16 bytes each
    part = lanes * width // parts
    loads, clears, fills = (blocks_for(size, BLOCK) for size in (depth * row, depth * pitch, taps * parts))
    down, across = blocks_for(ho, lines), blocks_for(c_out, lanes * width)
    of_y: Any = storage.pointer
    load, store, size = loader(width), stored_storer(width, storage), storage.bytes
    load_part, store_part, channel_of = loader(part), storer(part), part_of_tap(width, lanes)
    load_tap = tap_loader(width, lanes)
    patch_size, weights_size, sums_size = depth * pitch, taps * lanes * width, pixels * width
    exact = strips * pixels == wo and groups * rounds == lines * strips

    def conv2d_forward(x: Floats, w: Floats, bias: Floats, y: of_y, n: Int64, span: Int64):
        weights = cuda.shared.array(weights_size, float32, alignment=16)
        patch = cuda.shared.array(patch_size, float32)
        sums = cuda.local.array(sums_size, float32)
        values = cuda.local.array(reach, float32)
        factors = cuda.local.array(width, float32)
        offset = cuda.local.array(width, float32)
        thread = uint32(cuda.threadIdx.x)
        lane, group = uint32(thread % lanes), uint32(thread // lanes)
        first_channel = uint32(cuda.blockIdx.y * (lanes * width))
        channel = uint32(first_channel + lane * width)
        for k in range(width):
            offset[k] = float32(0)
        if with_bias and channel < c_out:
            load(bias, channel, offset, 0)
        for k in range(clears):  # the padding stays as it is
            e = uint32(k * BLOCK + thread)
            if e < patch_size:
                patch[e] = float32(0)
        for k in range(fills):
            e = uint32(k * BLOCK + thread)
            if e < taps * parts and first_channel + channel_of(e % parts) < c_out:
                load_part(w, index(e // parts * c_out + first_channel + channel_of(e % parts)), factors, 0)
                store_part(weights, uint32(e * part), factors)

        for number in range(cuda.blockIdx.x * span, min((cuda.blockIdx.x + 1) * span, n * down)):
            image, top = index(number // down), number % down * lines
            cuda.syncthreads()
            for k in range(loads):
                e = uint32(k * BLOCK + thread)
                line, place = uint32(e // row), uint32(e % row)
                real = top * sh - ph + int64(line)
                if line < depth and place < used:
                    value = float32(0)
                    if 0 <= real < h:
                        value = x[index((image * h + real) * row + place)]
                    patch[uint32(line * pitch + left + place)] = value
            cuda.syncthreads()
            for turn in range(rounds):
                which = uint32(turn * groups + group)
                if lines_first:
                    line, strip = uint32(which % lines), uint32(which // lines)
                else:
                    line, strip = uint32(which // strips), uint32(which % strips)
                if (exact or (line < lines and strip < strips)) and top + int64(line) < ho and channel < c_out:
                    for p in range(pixels):
                        for k in range(width):
                            sums[p * width + k] = offset[k]
                    for i in range(kh):
                        for c in range(c_in):
                            at = uint32((line * sh + i) * pitch + strip * step + c)
                            for e in range(reach):
                                values[e] = patch[uint32(at + e * c_in)]
                            for j in range(kw):
                                tap = ((i * kw + j) * c_in + c) * lanes
                                load_tap(weights, uint32((tap + lane) * width), factors, 0)
                                for p in range(pixels):
                                    for k in range(width):
                                        sums[p * width + k] += values[p * sw + j] * factors[k]
                    pixel = (image * ho + top + int64(line)) * wo + strip * pixels
                    for p in range(pixels):
                        if exact or strip * pixels + p < wo:
                            for k in range(width):
                                factors[k] = sums[p * width + k]
                            store(y, index((pixel + p) * c_out + channel), factors)

    return Launch(
        conv2d_forward,
        BLOCK,
        grid=lambda n, span: (blocks_for(n * down, span), across),
        cost=lambda n: geometry.forward_cost(n, 1, 4, 4, size),
    )


def examples(width: int, *given: tuple[Geometry, bool, Any, Storage]) -> list[tuple[Any, ...]]:
    """Arguments of the kernels here for these geometries."""
    return [(tile_of(one[0], width), *one) for one in given]


@kernel(
    traffic="x, w, bias -> y",
    registers=64,
    examples=examples(
        1,
        (ODD, False, uint32, FLOAT32),
        (ODD, True, uint32, FLOAT32),
        (ODD, True, int64, FLOAT32),
        (ODD, True, uint32, FLOAT16),
    ),
)
def conv2d_forward_scalar_first_layer(
    tile: Tile, geometry: Geometry, with_bias: bool, index: Any, storage: Storage
) -> Launch:
    """One channel of a strip a thread."""
    return _forward(tile, geometry, with_bias, index, storage)


@kernel(
    traffic="x, w, bias -> y",
    registers=128,  # on sm_80, and fewer on sm_90: room for two blocks on a multiprocessor
    instructions=("LDG.E.128", "STG.E.128", "LDS.128"),
    examples=[
        *examples(
            4, (MNIST, True, uint32, FLOAT32), (CIFAR, False, uint32, FLOAT32), (FIVE, True, uint32, FLOAT32),
            (SEVEN, False, uint32, FLOAT32), (CIFAR, False, int64, FLOAT32),
        ),
        *examples(
            8, (MNIST, True, uint32, BFLOAT16), (CIFAR, False, uint32, FLOAT16), (SEVEN, False, uint32, BFLOAT16),
            (CIFAR, False, int64, BFLOAT16),
        ),
    ],
)  # fmt: skip
def conv2d_forward_vector_first_layer(
    tile: Tile, geometry: Geometry, with_bias: bool, index: Any, storage: Storage
) -> Launch:
    """Four or eight channels of a strip a thread: 16 bytes for four products a pixel. w, bias and y aligned to 16."""
    return _forward(tile, geometry, with_bias, index, storage)


def option(geometry: Geometry, tile: Any, x: Array) -> Option:
    """Technique "first_layer" among those to choose from; `tile` is None where it needs too much shared memory."""
    if storage_of(x) is not FLOAT32:
        return NAME, False, f"x is stored as {storage_of(x)}, a first layer's image is float32"
    if geometry.c_in > CHANNELS:
        return NAME, False, f"x has {geometry.c_in} channels, a first layer's kernel takes at most {CHANNELS}"
    if geometry.taps > TAPS:
        return NAME, False, f"a window has {geometry.taps} elements, a first layer's kernel takes at most {TAPS}"
    if tile is None:
        lines = f"{geometry.kh} lines of {geometry.w} pixels"
        return NAME, False, lambda: f"{lines} and the weights of a first layer exceed a block's shared memory"
    return NAME, True, lambda: f"x has c_in = {geometry.c_in}: whole lines of it in shared memory"


def among(others: Sequence[Option], geometry: Geometry, tile: Any, x: Array) -> Sequence[Option]:
    """All techniques to choose from: this one first for what may be a first layer, so that it says why it is not taken.

    Of images with many channels nobody expects it: there it comes last, and what is chosen says nothing of it.
    """
    own = option(geometry, tile, x)
    return (own, *others) if geometry.c_in <= FEW else (*others, own)


def forward(run: Runner, geometry: Geometry, x: Array, w: Array, bias: Array | None, y: Array) -> None:
    """Launch y = the convolution of x with w, and bias or None, on `run`, where `option` says that it can.

    Accesses are scalar where c_out is no multiple of what 16 bytes of y hold, or w, bias or y is not aligned to them.
    """
    given = w[:0] if bias is None else bias
    storage = storage_of(y)
    vector = geometry.c_out % storage.wide == 0 and wide(w, given, y)
    tile = tile_of(geometry, storage.wide) if vector else None
    factory = conv2d_forward_vector_first_layer if tile else conv2d_forward_scalar_first_layer
    tile = tile or tile_of(geometry, 1)
    chosen = factory(tile, geometry, bias is not None, index_type(max(x.size, w.size, y.size)), storage)
    tiles = x.shape[0] * blocks_for(geometry.ho, tile.lines)  # type: ignore[union-attr]  # there is one
    run(chosen, x, w, given, y, x.shape[0], max(1, blocks_for(tiles, BLOCKS)))
