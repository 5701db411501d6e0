"""How the threads of a block share the gradient of a first layer's weights, and where what they share lies.

The kernels are in first_layer_gradient.py.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from numba import uint32

from kernels.banks import passes
from kernels.conv.first_layer import MARGIN, SHARED, patch_columns, patch_lines, place_in, strip_of
from kernels.conv.first_layer_access import EIGHT, half_of, halves
from kernels.conv.geometry import Geometry
from kernels.device import inlined
from kernels.launch import blocks_for

THREADS = 256  # of a block, about
SUMS = 108  # of a thread, at most: they are registers
PRODUCTS = 224  # of a thread and a strip, at most: longer loops are not unrolled, and the sums are no registers then
TERMS = 256  # products that a thread adds to a sum, at most
ROUNDS = 4  # strips of a thread in a tile
ENOUGH = 528  # blocks, four on each multiprocessor of a large GPU


class Share(NamedTuple):
    """How a block's threads share the sums and the pixels; a tile is `lines` lines of dy."""

    width: int  # channels of dy that a thread has
    lanes: int  # threads side by side along the channels
    own: int  # lines of the kernel that a thread has
    sets: int  # threads that share the lines of the kernel
    groups: int  # of lanes * sets threads; each takes one strip at a time
    lines: int
    strips: int  # of a line
    pixels: int  # of a strip
    pitch: int  # floats from a line of the patch to the next
    lines_first: bool  # neighbouring groups have neighbouring lines, not strips
    apart: int  # rows of `width` floats from a line of dy to the next in shared memory

    @property
    def block(self) -> int:
        """Threads."""
        return self.lanes * self.sets * self.groups

    @property
    def rounds(self) -> int:
        """Strips of a group in a tile."""
        return blocks_for(self.lines * self.strips, self.groups)

    def shared(self, geometry: Geometry) -> int:
        """Floats in shared memory: the patch and, for several sets, dy; in the end the sums of a line of the kernel."""
        staged = self.lines * self.apart * self.width if self.sets > 1 else 0
        sums = ((geometry.kw - 1) * self.sums_apart + self.block) * self.width
        return max(staged + patch_lines(geometry, self.lines) * self.pitch, sums)

    @property
    def sums_apart(self) -> int:
        """Rows of floats from the threads' sums for a tap to those for the next, where a row has eight.

        Those that a group leaves for a tap are followed, as the banks go, by those for the next.
        """
        more = (self.sets * self.lanes - self.block) % EIGHT if self.width == EIGHT else 0
        return self.block + more

    def tiles(self, geometry: Geometry, n: int) -> int:
        """Of n images."""
        return n * blocks_for(geometry.ho, self.lines)

    def span(self, geometry: Geometry, n: int) -> int:
        """Tiles of a block: as many that `ENOUGH` blocks do, but no more than a sum's terms allow."""
        most = max(1, TERMS // (self.rounds * self.pixels))
        return max(1, min(blocks_for(self.tiles(geometry, n), ENOUGH), most))


@functools.cache
def share_of(geometry: Geometry, width: int) -> Share | None:
    """The share for a geometry, or None where what it needs does not fit into shared memory."""
    kernel_lines, sums_of_line = geometry.kh * geometry.c_in, geometry.kw * width
    sets = blocks_for(kernel_lines, max(1, (SUMS if width > 1 else SUMS // 4) // sums_of_line))
    own = blocks_for(kernel_lines, sets)
    pixels = strip_of(geometry, tuple(size for size in (5, 4, 3, 2) if own * sums_of_line * size <= PRODUCTS))
    strips, least = blocks_for(geometry.wo, pixels), patch_columns(geometry, pixels) * geometry.c_in
    quads, best = blocks_for(geometry.c_out, width), None
    sector = 16 if width == EIGHT else 8  # elements of dy
    for lanes in (16, 8, 4, 2, 1) if width > 1 else (32, 16, 8, 4, 2, 1):
        groups = max(1, (THREADS // 2 if own * sums_of_line > SUMS // 2 else THREADS) // (lanes * sets))
        across = blocks_for(quads, lanes)
        for lines in range(1, geometry.ho + 1):
            most = max(_aparts(geometry, width, lanes, sets))
            share = Share(width, lanes, own, sets, groups, lines, strips, pixels, least + MARGIN, True, most)
            if share.shared(geometry) > SHARED or share.block > 1024 or (lines > 1 and share.rounds > ROUNDS):
                break
            read = share.rounds * groups * pixels * lanes * width * max(1, sector // (lanes * width)) * 8 // sector
            patch = patch_lines(geometry, lines) * geometry.w * geometry.c_in
            moved = blocks_for(geometry.ho, lines) * across * (read + patch)
            if best is None or moved < best[0]:
                best = moved, share
    return _without_conflicts(best[1], geometry, least) if best else None


def _aparts(geometry: Geometry, width: int, lanes: int, sets: int) -> range:
    """What `Share.apart` may be."""
    least = geometry.wo * lanes
    return range(least, least + (EIGHT if width == EIGHT and sets > 1 else 1))


def _without_conflicts(share: Share, geometry: Geometry, least: int) -> Share:
    """The share with the distances, and the order of groups, by which the lanes of a warp meet in the fewest banks."""
    thread, row, step = np.arange(share.block), geometry.w * geometry.c_in, share.pixels * geometry.sw * geometry.c_in
    group, first = thread // (share.lanes * share.sets), thread // share.lanes % share.sets * share.own
    element = np.arange(patch_lines(geometry, share.lines) * row)
    reads = share.rounds * share.own * ((share.pixels - 1) * geometry.sw + geometry.kw)
    aparts = _aparts(geometry, share.width, share.lanes, share.sets)

    def conflicts(one: Share) -> int:
        line, strip = place_in(one.lines_first, one.lines, one.strips, group)
        read = (line * geometry.sh + first // geometry.c_in) * one.pitch + strip * step + first % geometry.c_in
        found = reads * passes(read) + passes(element // row * one.pitch + element % row)
        if len(aparts) == 1:
            return found
        rows = line * one.apart + strip * one.pixels * one.lanes + thread % one.lanes
        return found + 2 * one.rounds * sum(passes(half_of(rows + p * one.lanes), 4) for p in range(one.pixels))

    shares = (
        share._replace(pitch=pitch, lines_first=lines_first, apart=apart)
        for pitch in range(least, least + MARGIN + 1)
        for lines_first in (True, False)
        for apart in aparts
    )
    return min(shares, key=conflicts)


def kept_sums(share: Share, kw: int) -> tuple[Any, Any, Any]:
    """Where a thread leaves its sums for a line of the kernel, and in which order they are added up.

    Returns:
        Inlined device functions: of a thread and a tap of the line the place of a row of `width` floats; of a part of
        such a row (all of it, or one half of eight floats) its first channel, tap and set; and of a group and a part
        the place of that.
    """
    width, lanes, sets = share.width, share.lanes, share.sets
    across, apart, parts = sets * lanes, share.sums_apart, halves(width) * lanes

    def place(_thread, group, which_set, lane, j):
        return uint32((((group * sets + which_set) * kw + j) * lanes + lane) * width)

    def part(e):
        return uint32(e % lanes * width), uint32(e // lanes % kw), uint32(e // (lanes * kw))

    def place_of_part(g, e):
        return uint32((g * (sets * kw * lanes) + e) * width)

    def place_by_tap(thread, _group, _which_set, _lane, j):
        return uint32((j * apart + thread) * width)

    def part_by_tap(e):
        return uint32(e % parts * 4), uint32(e // (2 * across)), uint32(e // parts % sets)

    def place_of_part_by_tap(g, e):
        return uint32((e // (2 * across) * apart + g * across) * width + e % (2 * across) * 4)

    if width == EIGHT:
        return inlined(place_by_tap), inlined(part_by_tap), inlined(place_of_part_by_tap)
    return inlined(place), inlined(part), inlined(place_of_part)
