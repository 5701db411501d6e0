"""Rows of an image as a thread holds them between their load and their use: as they are stored.

In 16 bits two numbers share a register until they are used, so the 8 channels of a thread take the four registers that
4 channels take in float32: as many loads are under way, and twice as many numbers stay on the chip.

A thread's `width` channels of a row are `places` neighbours in a local array of `dtype`, from `at` on:

    load(x, i, held, at)            x[i], ..., x[i + width - 1]
    number(held, at, j)             the j-th of them, float32
    keep(values, held, at)          values[0], ..., values[width - 1], rounded, in their place
    store(y, i, values)             y[i], ..., y[i + width - 1] = values, rounded: one number or 16 bytes
    copy(shared, slot, x, i)        start to copy them to shared memory, an array of `kept_dtype`; they are there after
                                    cp_async_wait, for this thread
"""

from typing import Any, NamedTuple

from numba import float32, uint16, uint32

from kernels.batchnorm.split import loader, storer
from kernels.device import inlined
from kernels.intrinsics import cp_async_4, cp_async_16, shared_address
from kernels.packed import load_bits, load_words, unpack_bf16, unpack_f16
from kernels.storage import BFLOAT16, FLOAT32, Storage
from kernels.tensor_core import pack_bf16, pack_f16


class Held(NamedTuple):
    """How a thread of a certain width holds what is stored so; see the module."""

    dtype: Any
    places: int
    kept_dtype: Any
    load: Any
    number: Any
    keep: Any
    store: Any
    copy: Any


def held_rows(storage: Storage, width: int) -> Held:
    """For `width` channels a thread: 1, or as many as 16 bytes hold."""
    if storage is FLOAT32:
        copy = _copy_wide if width == 4 else _copy_one
        return Held(float32, width, float32, loader(width), _number, _keeper(width), storer(width), copy)
    places = max(1, width // 2)
    load, copy = (_load_words, _copy_wide) if width == 8 else (_load_bits, _copier_of_one(storage))
    unpack, pack = (unpack_bf16, pack_bf16) if storage is BFLOAT16 else (unpack_f16, pack_f16)
    keep, store = _packer(pack, width), _narrow_storer(storage, width)
    return Held(uint32, places, uint16, load, _half(unpack), keep, store, copy)


@inlined
def _number(held, at, j):
    return held[at + j]


def _keeper(width: int) -> Any:
    @inlined
    def keep(values, held, at):
        for j in range(width):
            held[at + j] = values[j]

    return keep


@inlined
def _load_words(x, i, held, at):
    a, b, c, d = load_words(x, i)
    held[at] = a
    held[at + 1] = b
    held[at + 2] = c
    held[at + 3] = d


@inlined
def _load_bits(x, i, held, at):
    held[at] = load_bits(x, i)


def _half(unpack: Any) -> Any:
    @inlined
    def number(held, at, j):
        # Shifted, not chosen: with a branch for each number the compiler would unroll fewer loops.
        low, _ = unpack(uint32(held[at + (j >> 1)] >> uint32((j & 1) << 4)))
        return low

    return number


def _packer(pack: Any, width: int) -> Any:
    @inlined
    def keep_pairs(values, held, at):
        for k in range(width // 2):
            held[at + k] = pack(values[2 * k], values[2 * k + 1])

    @inlined
    def keep_one(values, held, at):
        held[at] = pack(values[0], values[0])

    return keep_pairs if width > 1 else keep_one


def _narrow_storer(storage: Storage, width: int) -> Any:
    store, store_wide = storage.store, storage.store_wide

    @inlined
    def store_one(y, i, values):
        store(y, i, values[0])

    return store_wide if width == 8 else store_one


@inlined
def _copy_one(shared, slot, x, i):
    cp_async_4(shared_address(shared, slot), x, i)


@inlined
def _copy_wide(shared, slot, x, i):
    cp_async_16(shared_address(shared, slot), x, i)


def _copier_of_one(storage: Storage) -> Any:
    """No asynchronous copy is of 2 bytes."""
    copy = storage.copy

    @inlined
    def copy_one(shared, slot, x, i):
        copy(x, i, shared, slot)

    return copy_one
