"""How activations are stored: rounding on the host and in kernels, what kernels see, what is refused."""

import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from emulated import RUN, blank, figures, placed
from numba import cuda, float32
from numpy.testing import assert_array_equal

from kernels.activation import relu_forward
from kernels.emulator import MisalignedAccess, OutOfBounds, UninitialisedRead, emulate
from kernels.launch import Int64
from kernels.storage import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    STORAGES,
    Storage,
    common_storage,
    require_float32,
    storage_of,
)

NARROW = BFLOAT16, FLOAT16
ALL_BITS = np.arange(2**16, dtype=np.uint32).astype(np.uint16)
each_narrow = pytest.mark.parametrize("storage", NARROW, ids=repr)
each = pytest.mark.parametrize("storage", STORAGES, ids=repr)


def all_numbers(storage: Storage) -> np.ndarray:
    """Every number of 16 bits, NaNs among them."""
    return ALL_BITS.view(storage.dtype).copy()


def nearest_even(storage: Storage, value: float) -> int:
    """The bits of a positive finite number, rounded by the definition, in exact arithmetic."""
    finite = storage.decode(ALL_BITS[: 2**15].view(storage.dtype))
    finite = finite[np.isfinite(finite)]
    below = int(np.searchsorted(finite, value, side="right")) - 1
    if below == len(finite) - 1:
        return below + (value >= storage.overflow)
    low, high, exact = Fraction(float(finite[below])), Fraction(float(finite[below + 1])), Fraction(value)
    return below + (exact - low > high - exact or (exact - low == high - exact and below % 2 == 1))


def test_what_the_storages_are() -> None:
    assert [(one.name, one.dtype, one.bytes, one.wide) for one in STORAGES] == [
        ("float32", np.float32, 4, 4),
        ("bfloat16", np.uint16, 2, 8),
        ("float16", np.float16, 2, 8),
    ]
    assert repr(STORAGES) == "(float32, bfloat16, float16)"  # what kernels are called by
    info = np.finfo(np.float16)
    assert (FLOAT16.fraction, 2.0**FLOAT16.least, FLOAT16.decode(info.max)) == (info.nmant, info.smallest_normal, 65504)
    assert (FLOAT16.overflow, BFLOAT16.overflow) == (65520, 2.0**128 - 2.0**119)


@np.errstate(invalid="ignore")  # signalling NaNs
@each_narrow
def test_all_numbers_come_back_as_they_went(storage: Storage) -> None:
    numbers = all_numbers(storage)
    values = storage.decode(numbers)
    again = storage.encode(values)
    assert_array_equal(np.isnan(storage.decode(again)), np.isnan(values))
    there = ~np.isnan(values)
    assert_array_equal(again.view(np.uint16)[there], ALL_BITS[there])
    assert_array_equal(storage.encode(values.astype(np.float64))[there], again[there])


@each_narrow
def test_the_host_rounds_once_and_to_nearest_even(storage: Storage, rng) -> None:
    middle = storage.decode(ALL_BITS[: 2**15].view(storage.dtype))
    middle = middle[np.isfinite(middle)].astype(np.float64)
    ties = (middle[:-1] + middle[1:]) / 2
    chosen = rng.choice(ties, 300)
    values = np.concatenate(
        [chosen, chosen * (1 + 2.0**-50), chosen * (1 - 2.0**-50), rng.choice(middle, 100) * rng.uniform(0.9, 1.1, 100)]
    )
    values = np.concatenate([values, [0.0, 2.0**-160, storage.overflow, np.nextafter(storage.overflow, 0), 1e300]])
    expected = [nearest_even(storage, float(value)) for value in values]
    assert_array_equal(storage.encode(values).view(np.uint16), expected)
    assert_array_equal(storage.encode(-values).view(np.uint16), np.array(expected) + 2**15)


@each_narrow
def test_a_float64_is_not_rounded_twice(storage: Storage) -> None:
    tie = 1 + 2.0 ** -(storage.fraction + 1)
    for value, up in ((tie, 0), (tie + 2.0**-40, 1), (tie - 2.0**-40, 0), (-tie - 2.0**-40, 1)):
        assert abs(storage.rounded(np.float64(value))) == 1 + up * 2.0**-storage.fraction


def test_bfloat16_is_pytorchs(torch, rng) -> None:
    bits = rng.integers(0, 2**32, 20000, dtype=np.uint32)
    values = bits.view(np.float32)[np.isfinite(bits.view(np.float32))]
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    assert_array_equal(BFLOAT16.encode(values), expected)
    assert_array_equal(
        FLOAT16.encode(values).view(np.uint16),
        torch.from_numpy(values).to(torch.float16).view(torch.int16).numpy().view(np.uint16),
    )


def test_special_numbers() -> None:
    given = np.array([np.nan, np.inf, -np.inf, -0.0, 1e39, 1e-50])
    for storage in NARROW:
        for values in (given, given.astype(np.float64), np.float32([np.nan, np.inf, -np.inf, -0.0, 3.4e38, 1e-45])):
            assert_array_equal(storage.rounded(values), [np.nan, np.inf, -np.inf, 0, np.inf, 0])
            assert np.signbit(storage.rounded(values)[3])
    assert BFLOAT16.encode(np.uint32(0x7F800001).view(np.float32)) == 0x7FFF  # by its upper half it would be infinity


def test_an_array_of_another_dtype_is_not_decoded() -> None:
    with pytest.raises(TypeError, match="decode: an array of dtype float32, expected uint16, as bfloat16 is stored"):
        BFLOAT16.decode(np.zeros(3, np.float32))


# In kernels.


def one_by_one(source: Storage, target: Storage) -> Any:
    x_stored: Any = source.pointer
    y_stored: Any = target.pointer
    load, store = source.load, target.store

    def kernel(x: x_stored, y: y_stored, n: Int64):
        i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        if i < n:
            store(y, i, load(x, i))

    return kernel


def by_vectors(storage: Storage) -> Any:
    stored: Any = storage.pointer
    load_wide, store_wide, wide = storage.load_wide, storage.store_wide, storage.wide

    def kernel(x: stored, y: stored, n: Int64):
        first = wide * (cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x)
        if first < n:
            values = cuda.local.array(wide, float32)
            load_wide(x, first, values)
            for k in range(wide):
                values[k] = values[k] + float32(k)
            store_wide(y, first, values)

    return kernel


def copies(storage: Storage) -> Any:
    stored: Any = storage.pointer
    copy, copy_wide, wide = storage.copy, storage.copy_wide, storage.wide

    def kernel(x: stored, y: stored, n: Int64):
        i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        if i < n:
            copy(x, n - 1 - i, y, i)
        if wide * i < n:
            copy_wide(x, wide * i, y, n + wide * i)

    return kernel


def run(kernel: Any, x: np.ndarray, y: np.ndarray, n: int | None = None, **options: Any) -> Any:
    return emulate(kernel, -(-x.size // 128), 128, x, y, np.int64(x.size if n is None else n), **options)


@each_narrow
def test_a_kernel_loads_exactly_and_rounds_as_the_host_does(storage: Storage, rng) -> None:
    numbers, values = all_numbers(storage), np.empty(2**16, np.float32)
    run(one_by_one(storage, FLOAT32), numbers, values)
    assert_array_equal(values, storage.decode(numbers))

    finite = values[np.isfinite(values)]
    ties = np.sort(finite).astype(np.float64)
    ties = ((ties[:-1] + ties[1:]) / 2).astype(np.float32)[::7]
    given = np.concatenate([ties, np.nextafter(ties, np.float32(np.inf)), -ties, values[::9]]).astype(np.float32)
    given = np.concatenate([given, rng.integers(0, 2**32, 2000, dtype=np.uint32).view(np.float32)])
    stored = np.empty(given.shape, storage.dtype)
    run(one_by_one(FLOAT32, storage), given, stored)
    assert_array_equal(stored.view(np.uint16), storage.encode(given).view(np.uint16))


@each
def test_wide_accesses_have_their_elements_in_order(storage: Storage, rng) -> None:
    x, y = storage.encode(rng.integers(-9, 9, 128).astype(np.float32)), np.empty(128, storage.dtype)
    run(by_vectors(storage), x, y)
    assert_array_equal(storage.decode(y), storage.decode(x) + np.arange(128) % storage.wide)


@each
def test_copies_keep_all_bits(storage: Storage) -> None:
    x = all_numbers(storage) if storage.bytes == 2 else np.float32([np.nan, -0.0, 1, np.inf])
    y = np.empty(2 * x.size, storage.dtype)
    run(copies(storage), x, y)
    bits = x.view(f"u{storage.bytes}")
    assert_array_equal(y.view(bits.dtype), np.concatenate([bits[::-1], bits]))


@each
def test_a_wide_access_is_one_request_of_whole_sectors(storage: Storage) -> None:
    x, y = placed(np.ones(1024), dtype=storage.dtype), blank((1024,), dtype=storage.dtype)
    total = figures(relu_forward, x, y, technique="vector")
    assert total.load_requests == total.store_requests == 1024 // (32 * storage.wide)
    assert total.load_sectors == total.store_sectors == 1024 * storage.bytes // 32
    assert total.bytes_asked == total.bytes_moved == 2 * 1024 * storage.bytes
    scalar = figures(relu_forward, x, y, technique="scalar")
    assert (scalar.load_requests, scalar.load_sectors) == (32, total.load_sectors)


@each_narrow
def test_the_emulator_sees_what_is_wrong_with_accesses_of_16_bits(storage: Storage) -> None:
    x, y = placed(np.ones(64), dtype=storage.dtype), blank((64,), dtype=storage.dtype)
    with pytest.raises(OutOfBounds, match="8 elements from index 56 is outside x of 60 elements"):
        run(by_vectors(storage), x[:60], y)
    with pytest.raises(MisalignedAccess, match="16-byte access to y"):
        run(by_vectors(storage), x[:56], blank((56,), 4, storage.dtype))
    with pytest.raises(OutOfBounds, match="index 60 is outside x of 60 elements"):
        run(one_by_one(storage, FLOAT32), x[:60], np.empty(64, np.float32), 64)

    stored: Any = storage.pointer
    load, store = storage.load, storage.store

    def in_turn(y: stored):
        store(y, 0, float32(1))
        store(y, 1, load(y, 2))

    with pytest.raises(UninitialisedRead, match=r"y\[2\] is read before anything was written there") as caught:
        emulate(in_turn, 1, 1, y, outputs=["y"])
    assert caught.value.file == __file__  # where it is called, not where storages are defined


# What host functions ask.


def test_the_storage_of_arrays() -> None:
    for storage in STORAGES:
        array = np.zeros(3, storage.dtype)
        assert storage_of(array) is storage
        assert common_storage("add", a=array, b=array, out=array) is storage
    x, y = np.zeros(3, np.float32), np.zeros(3, np.uint16)
    with pytest.raises(TypeError, match=re.escape("add: b is stored as bfloat16, expected float32 as a is")):
        common_storage("add", a=x, b=y)
    known = re.escape("expected float32, float16 or uint16 (the bits of bfloat16)")
    with pytest.raises(TypeError, match=f"add: b has dtype float64, {known}"):
        common_storage("add", a=x, b=np.zeros(3))
    with pytest.raises(TypeError, match=f"an array has dtype int16, {known}"):
        storage_of(np.zeros(3, np.int16))
    with pytest.raises(TypeError, match="scale_forward: factor has dtype float16, expected float32"):
        require_float32("scale_forward", x=x, factor=np.zeros((), np.float16))


def test_a_kernel_of_another_storage_refuses_the_array() -> None:
    from numba import uint32

    from kernels.activation import relu_forward_scalar

    assert repr(relu_forward_scalar(uint32, BFLOAT16)) == "relu_forward_scalar(uint32, bfloat16)"
    assert relu_forward_scalar(uint32, BFLOAT16) is relu_forward_scalar(uint32, BFLOAT16)
    with pytest.raises(TypeError, match="relu_forward_scalar: x has dtype float16, expected uint16"):
        RUN(relu_forward_scalar(uint32, BFLOAT16), np.zeros(3, np.float16), np.zeros(3, np.uint16), 3)
