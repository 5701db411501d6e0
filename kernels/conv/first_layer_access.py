"""How a first layer's threads move their channels: 1, or what 16 bytes of y hold, 4 floats or 8 elements of 16 bits.

Eight channels are float32 in shared memory, which moves four of them at once. There the two halves of such a row of
eight change places in every other four rows: then threads that load the first, or the second, half of rows that follow
one another meet in no bank, and neither do those that move half after half. Of weights, which are read most, the first
halves of a tap come first. From and to global memory arrays of float32 are moved in halves, all of a tap at once: the
accesses of a warp take whole sectors.
"""

from typing import Any

from numba import cuda, float32, uint32

from kernels.batchnorm.split import loader, storer
from kernels.device import inlined
from kernels.intrinsics import load4, store4
from kernels.storage import FLOAT32, Storage

EIGHT = 8


def stored_loader(width: int, storage: Storage) -> Any:
    """A device function: values[at : at + width] = x[i : i + width], of an image; width is 1 or storage.wide."""
    if storage is FLOAT32:
        return loader(width)
    load, load_wide = storage.load, storage.load_wide

    def load_one(x, i, values, at):
        values[at] = load(x, i)

    def load_eight(x, i, values, at):
        eight = cuda.local.array(width, float32)
        load_wide(x, i, eight)
        for k in range(width):
            values[at + k] = eight[k]

    return inlined(load_one if width == 1 else load_eight)


def stored_storer(width: int, storage: Storage) -> Any:
    """A device function: y[i : i + width] = values[:width], of an image; width is 1 or storage.wide."""
    if storage is FLOAT32:
        return storer(width)
    store, store_wide = storage.store, storage.store_wide

    def store_one(y, i, values):
        store(y, i, values[0])

    def store_eight(y, i, values):
        store_wide(y, i, values)

    return inlined(store_one if width == 1 else store_eight)


def halves(width: int) -> int:
    """Accesses of 16 bytes that move so many channels in shared memory."""
    return 2 if width == EIGHT else 1


def shared_loader(width: int) -> Any:
    """A device function: values[at : at + width] = what `shared_storer` has stored at i, in shared memory."""
    if width != EIGHT:
        return loader(width)

    @inlined
    def load_halves(memory, i, values, at):
        first = _half_at(i)
        values[at], values[at + 1], values[at + 2], values[at + 3] = load4(memory, first)
        second = uint32(first ^ 4)
        values[at + 4], values[at + 5], values[at + 6], values[at + 7] = load4(memory, second)

    return load_halves


def shared_storer(width: int) -> Any:
    """A device function: put values[:width] at i, a multiple of the width, in shared memory."""
    if width != EIGHT:
        return storer(width)

    @inlined
    def store_halves(memory, i, values):
        first = _half_at(i)
        store4(memory, first, values[0], values[1], values[2], values[3])
        store4(memory, uint32(first ^ 4), values[4], values[5], values[6], values[7])

    return store_halves


def half_loader(width: int) -> Any:
    """As `shared_loader`, of a half: i is a multiple of width / halves(width), and so many are loaded."""
    if width != EIGHT:
        return loader(width)

    @inlined
    def load_half(memory, i, values, at):
        values[at], values[at + 1], values[at + 2], values[at + 3] = load4(memory, _half_at(i))

    return load_half


def tap_loader(width: int, lanes: int) -> Any:
    """A device function: values[at : at + width] = weights of a tap in shared memory, of thread i / width % lanes.

    There the first halves of all `lanes` threads are followed by their second halves.
    """
    if width != EIGHT:
        return loader(width)

    @inlined
    def load_halves(memory, i, values, at):
        first = uint32(i - i // 8 % lanes * 4)
        values[at], values[at + 1], values[at + 2], values[at + 3] = load4(memory, first)
        second = uint32(first + lanes * 4)
        values[at + 4], values[at + 5], values[at + 6], values[at + 7] = load4(memory, second)

    return load_halves


def part_of_tap(width: int, lanes: int) -> Any:
    """A device function: the first channel of the part of that number, as `tap_loader` takes them."""

    def whole(part):
        return part * width

    def half(part):
        return part % lanes * width + part // lanes * 4

    return inlined(half if width == EIGHT else whole)


@inlined
def _half_at(i):
    return uint32(i ^ i >> 3 & 4)


def half_of(row: Any) -> Any:
    """Where the first half of these rows of eight channels lies, in units of 16 bytes."""
    return 2 * row + (row >> 2 & 1)
