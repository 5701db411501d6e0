"""Instructions for numbers of 16 bits: what they become, what the emulator does instead, what is refused."""

from typing import Annotated, Any

import numpy as np
import pytest
from numba import cuda, int64, types, uint16, uint32
from numba.core.errors import TypingError
from numpy.testing import assert_array_equal

from kernels.compile import ToolkitError, link, target
from kernels.emulator import MisalignedAccess, OutOfBounds, UninitialisedRead, emulate
from kernels.intrinsics import (
    TWINS,
    cp_async_4,
    cp_async_16,
    cp_async_16_zero_fill,
    cp_async_commit,
    cp_async_wait,
    load4,
    shared_address,
)
from kernels.launch import Type, UInt32s
from kernels.packed import load_bits, load_words, store_bits, store_words, unpack_bf16, unpack_f16
from minidl.lab.machine_code import disassemble

Halves = Annotated[Any, Type(np.dtype(np.uint16), True)]
HALVES, FLOAT16S, FLOATS = (types.CPointer(kind) for kind in (types.uint16, types.float16, types.float32))


def machine_code(function: Any, pointer: Any) -> str:
    try:
        ptx, _ = cuda.compile_ptx(function, types.void(pointer, FLOATS), cc=target((9, 0)))
        cubin, _ = link([ptx], (9, 0))
        return disassemble(cubin)
    except (ImportError, OSError, ToolkitError) as error:
        pytest.skip(f"no CUDA compiler here: {error}")


def one(x, y):
    store_bits(x, cuda.threadIdx.x, load_bits(x, cuda.threadIdx.x + 1))


def eight(x, y):
    i = uint32(8 * cuda.threadIdx.x)
    a, b, c, d = load_words(x, i)
    store_words(x, i, d, c, b, a)


def shared(x, y):
    tile = cuda.shared.array(1024, uint16, alignment=16)
    i = int64(8 * cuda.threadIdx.x)
    store_words(tile, i, uint32(1), uint32(2), uint32(3), uint32(4))
    cuda.syncthreads()
    a, b, c, d = load_words(tile, 1016 - i)
    store_words(x, i, d, c, b, a)


def upper(x, y):
    low, high = unpack_bf16(load_words(x, 0)[0])
    y[0], y[1] = low, high


def halves(x, y):
    low, high = unpack_f16(load_words(x, 0)[0])
    y[0], y[1] = low, high


def copied(x, y):
    tile = cuda.shared.array(1024, uint32, alignment=16)
    cp_async_16(shared_address(tile, 4 * cuda.threadIdx.x), x, 8 * cuda.threadIdx.x)
    cp_async_commit()
    cp_async_wait(0)
    y[cuda.threadIdx.x] = tile[0]


@pytest.mark.parametrize(
    ("function", "pointer", "expected"),
    [
        (one, FLOAT16S, ("LDG.E.U16", "STG.E.U16")),
        (eight, HALVES, ("LDG.E.128", "STG.E.128")),
        (eight, FLOAT16S, ("LDG.E.128", "STG.E.128")),
        (shared, HALVES, ("STS.128", "LDS.128")),
        (upper, HALVES, ("0xffff0000",)),
        (halves, FLOAT16S, ("HADD2.F32",)),
        (copied, HALVES, ("LDGSTS.E.BYPASS.128",)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_they_become(function, pointer, expected) -> None:
    code = machine_code(function, pointer)
    assert not [text for text in expected if text not in code]


def load_floats(x, y):
    load_words(y, 0)


def bits_of_floats(x, y):
    load_bits(y, 0)


def store_floats(x, y):
    store_words(x, 0, y[0], y[0], y[0], y[0])


def four_of_16_bits(x, y):
    load4(x, 0)


def float_index(x, y):
    store_bits(x, y[0], uint32(1))


@pytest.mark.parametrize("function", [load_floats, bits_of_floats, store_floats, four_of_16_bits, float_index])
def test_wrong_types_are_refused(function) -> None:
    with pytest.raises(TypingError, match="No implementation of function"):
        cuda.compile_ptx(function, types.void(HALVES, FLOATS), cc=(9, 0))


def test_every_intrinsic_has_a_twin() -> None:
    import kernels.packed
    from kernels.emulator import twins  # noqa: F401

    found = {value for value in vars(kernels.packed).values() if isinstance(value, type(load_words))}
    assert len(found) == 6
    assert set(TWINS) >= found


# In the emulator.

X = np.arange(1, 65, dtype=np.uint16)


def swap(x: Halves, y: Halves):
    i = 8 * cuda.threadIdx.x
    a, b, c, d = load_words(x, i)
    store_words(y, i, d, c, b, uint32((a >> 16) | (a << 16)))


def test_words_hold_the_first_element_below() -> None:
    y = np.zeros_like(X)
    emulate(swap, 1, 8, X, y)
    assert_array_equal(y.reshape(8, 8), X.reshape(8, 8)[:, [6, 7, 4, 5, 2, 3, 1, 0]])
    emulate(swap, 1, 8, X, y, counts=True)


def into_shared(x: Halves, y: UInt32s, first):
    tile = cuda.shared.array(32, uint32)
    t = cuda.threadIdx.x
    cp_async_16(shared_address(tile, 4 * t), x, first + 8 * t)
    cp_async_commit()
    cp_async_wait(0)
    for k in range(4):
        y[4 * t + k] = tile[4 * t + k]


def too_early(x: Halves, y: UInt32s):
    tile = cuda.shared.array(32, uint32)
    cp_async_4(shared_address(tile, cuda.threadIdx.x), x, 2 * cuda.threadIdx.x)
    y[cuda.threadIdx.x] = tile[cuda.threadIdx.x]


def with_zeros(x: Halves, y: Halves):
    tile = cuda.shared.array(64, uint16, alignment=16)
    t = cuda.threadIdx.x
    cp_async_16_zero_fill(shared_address(tile, 8 * t), x, 8 * t, uint32(4 * (t % 5)))
    cp_async_commit()
    cp_async_wait(0)
    for k in range(8):
        y[8 * t + k] = tile[8 * t + k]


def test_asynchronous_copies_of_16_bits() -> None:
    y = np.zeros(32, np.uint32)
    emulate(into_shared, 1, 8, X, y, np.int64(0))
    assert_array_equal(y.view(np.uint16), X)
    with pytest.raises(OutOfBounds, match="8 elements from index 64 is outside x"):
        emulate(into_shared, 1, 8, X, y, np.int64(8))
    with pytest.raises(MisalignedAccess, match="16-byte access to x"):
        emulate(into_shared, 1, 7, X, y, np.int64(4))
    with pytest.raises(UninitialisedRead, match=r"is read while cp\.async copies it"):
        emulate(too_early, 1, 8, X, y)
    halves = np.zeros_like(X)
    emulate(with_zeros, 1, 8, X, halves)
    there = np.arange(8) < 2 * (np.arange(8) % 5)[:, None]
    assert_array_equal(halves.reshape(8, 8), X.reshape(8, 8) * there)
