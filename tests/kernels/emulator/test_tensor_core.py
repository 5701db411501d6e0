"""Twins of the tensor-core instructions: layouts as PTX writes them, rounding, and whole kernels."""

import math
from fractions import Fraction

import numpy as np
import pytest
from numba import cuda, float32, uint32

from kernels.emulator import DivergentBarrier, MisalignedAccess, emulate, tensor
from kernels.intrinsics import shared_address, store2
from kernels.tensor_core import (
    float32_bits,
    ldmatrix_x2,
    ldmatrix_x2_trans,
    ldmatrix_x4,
    ldmatrix_x4_trans,
    mma_bf16,
    mma_f16,
    mma_tf32,
    pack_bf16,
    pack_f16,
    to_tf32,
)

F = np.float32


def place_a(kind: str, lane: int, i: int) -> tuple[int, int]:
    """Row and column in A of element i of a lane: PTX ISA, Matrix Fragments for mma.m16n8k8 (.tf32), .m16n8k16."""
    group, part = lane >> 2, lane % 4
    if kind == "tf32":
        return (group if i in (0, 2) else group + 8), (part if i in (0, 1) else part + 4)
    row = group if 0 <= i < 2 or 4 <= i < 6 else group + 8
    return row, part * 2 + (i & 1) + (0 if i < 4 else 8)


def place_b(kind: str, lane: int, i: int) -> tuple[int, int]:
    group, part = lane >> 2, lane % 4
    if kind == "tf32":
        return (part if i == 0 else part + 4), group
    return part * 2 + (i & 1) + (0 if i < 2 else 8), group


def place_c(lane: int, i: int) -> tuple[int, int]:
    group, part = lane >> 2, lane % 4
    return (group if i < 2 else group + 8), part * 2 + (i & 1)


DEPTH = {"tf32": 8, "bf16": 16, "f16": 16}
DECODE = {"tf32": tensor._tf32, "bf16": tensor._bf16, "f16": tensor._f16}


def bits_of(kind: str, matrix: np.ndarray) -> np.ndarray:
    if kind == "tf32":
        return matrix.astype(F).view(np.uint32)
    if kind == "bf16":
        return tensor.round_bf16(matrix.astype(F)).astype(np.uint32)
    return tensor.round_f16(matrix.astype(F)).astype(np.uint32)


def fragment(kind: str, matrix: np.ndarray, place, registers: int) -> np.ndarray:
    """(1, registers, 32) uint32."""
    halves = 1 if kind == "tf32" else 2
    bits, out = bits_of(kind, matrix), np.zeros((1, registers, 32), np.uint32)
    for lane in range(32):
        for i in range(registers * halves):
            out[0, i // halves, lane] |= bits[place(kind, lane, i)] << np.uint32(16 * (i % halves))
    return out


def product(kind: str, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a @ b + c by way of fragments."""
    start = np.zeros((1, 4, 32), F)
    for lane in range(32):
        for i in range(4):
            start[0, i, lane] = c[place_c(lane, i)]
    decode = DECODE[kind]
    d = tensor.product(decode(fragment(kind, a, place_a, 4)), decode(fragment(kind, b, place_b, 2)), start)
    out = np.full((16, 8), np.nan, F)
    for lane in range(32):
        for i in range(4):
            out[place_c(lane, i)] = d[0, i, lane]
    return out


def hardware_dot(a, b, c: float) -> float:
    """One element of the product in exact arithmetic: align to the largest exponent, cut 25 bits below, add, cut."""

    def exponent(x: float) -> int:
        return max(math.frexp(x)[1] - 1, -126) if x else -126

    terms = [(Fraction(float(x)) * Fraction(float(y)), exponent(x) + exponent(y)) for x, y in zip(a, b, strict=True)]
    terms.append((Fraction(float(c)), exponent(c)))
    unit = Fraction(2) ** (max(e for _, e in terms) - 25)
    total = sum(math.trunc(value / unit) * unit for value, _ in terms)
    if total == 0:
        return 0.0
    size = max(math.frexp(float(abs(total)))[1] - 24, -149)
    while abs(total) >= Fraction(2) ** (size + 24):
        size += 1
    while abs(total) < Fraction(2) ** (size + 23) and size > -149:
        size -= 1
    return float(math.trunc(total / Fraction(2) ** size) * Fraction(2) ** size)


@pytest.mark.parametrize("kind", ["tf32", "bf16", "f16"])
def test_products_of_integers_are_exact(rng, kind: str) -> None:
    k = DEPTH[kind]
    a, b, c = rng.integers(-32, 33, (16, k)), rng.integers(-32, 33, (k, 8)), rng.integers(-99, 99, (16, 8))
    np.testing.assert_array_equal(product(kind, a, b, c), (a @ b + c).astype(F))


@pytest.mark.parametrize("kind", ["tf32", "bf16", "f16"])
def test_every_element_goes_where_it_belongs(kind: str) -> None:
    """A one at a single place of A takes out one row of B; so for each place of A and of B."""
    k, zero = DEPTH[kind], np.zeros((16, 8))
    b = np.arange(1, 8 * k + 1).reshape(k, 8)
    a = np.arange(1, 16 * k + 1).reshape(16, k)
    for row in range(16):
        for column in range(k):
            one = np.zeros((16, k))
            one[row, column] = 1
            np.testing.assert_array_equal(product(kind, one, b, zero), one @ b)
    for row in range(k):
        for column in range(8):
            one = np.zeros((k, 8))
            one[row, column] = 1
            np.testing.assert_array_equal(product(kind, a, one, zero), a @ one)


@pytest.mark.parametrize("kind", ["tf32", "bf16", "f16"])
def test_rounding_is_that_of_the_hardware_model(rng, kind: str) -> None:
    k = DEPTH[kind]
    exponent = 6 if kind == "f16" else 40
    for _ in range(3):
        a, b, c = (
            rng.standard_normal(shape) * 2.0 ** rng.integers(-exponent, exponent, shape)
            for shape in ((16, k), (k, 8), (16, 8))
        )
        a[0], b[:, 0], c[1] = 0, 0, 0
        c = (c * rng.choice([1, 2.0**-30, 2.0**30], c.shape)).astype(F)
        a, b = (DECODE[kind](bits_of(kind, x))[..., 0] for x in (a, b))
        result = product(kind, a, b, c)
        expected = [[hardware_dot(a[i], b[:, j], c[i, j]) for j in range(8)] for i in range(16)]
        np.testing.assert_array_equal(result, np.array(expected, F))


def test_sums_are_cut_off_not_rounded() -> None:
    a, b, c = np.zeros((16, 8)), np.zeros((8, 8)), np.zeros((16, 8))
    a[:, 0], b[0] = 1, 1 + 2.0**-10
    c[:] = 2.0**-24 + 2.0**-25  # more than half a unit in the last place of the sum, and yet lost
    assert np.all(product("tf32", a, b, c) == F(1 + 2.0**-10))
    assert np.all(product("tf32", -a, b, -c) == F(-1 - 2.0**-10))


def test_terms_far_below_the_largest_are_lost() -> None:
    a, b, c = np.zeros((16, 8)), np.zeros((8, 8)), np.zeros((16, 8))
    a[:, :3] = [2.0**26, -(2.0**26), 1.0]
    b[:3] = 1
    assert np.all(product("tf32", a, b, c) == 0)  # exactly it is 1
    a[:, 2] = 2.0
    assert np.all(product("tf32", a, b, c) == 2)


def test_tf32_operands_are_truncated_unless_converted() -> None:
    x = np.full((16, 8), 1 + 2.0**-11 + 2.0**-12, F)  # beyond the middle of two TF32
    identity, zero = np.eye(8), np.zeros((16, 8))
    assert np.all(product("tf32", x, identity, zero) == 1)
    converted = tensor.round_tf32(x).view(F)
    assert np.all(product("tf32", converted, identity, zero) == F(1 + 2.0**-10))


def test_infinity_nan_and_overflow() -> None:
    a, b, c = np.ones((16, 8)), np.ones((8, 8)), np.zeros((16, 8))
    a[0, 0], a[1, 3], a[2] = np.inf, np.nan, 3e38
    a[3, :2] = np.inf, -np.inf
    a[4], b[:, 7] = [1, 1, 1, 1, 1, 1, 1, np.inf], 0
    d = product("tf32", a, b, c)
    assert np.all(d[0, :7] == np.inf)
    assert np.all(np.isnan(d[1]))
    assert np.all(d[2, :7] == np.inf)  # 8 * 3e38
    assert np.all(np.isnan(d[3]))
    assert np.isnan(d[4, 7])  # infinity times zero
    assert np.all(d[5, :7] == 8)


def test_subnormals_count() -> None:
    a, b, c = np.zeros((16, 16)), np.eye(16)[:, :8], np.full((16, 8), 2.0**-149)
    a[:, 0] = 2.0**-127
    d = product("bf16", a, b, c)
    assert np.all(d[:, 0] == F(2.0**-127 + 2.0**-149))
    assert np.all(d[:, 1:] == F(2.0**-149))


def neighbours(x: np.ndarray, drop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float32 with `drop` low bits cut off, the next one away from zero, and twice the distance to the former as a
    share of that between them, as integers."""
    bits = x.view(np.uint32).astype(np.int64)
    low = bits >> drop << drop
    return low.astype(np.uint32), (low + (1 << drop)).astype(np.uint32), 2 * (bits - low) - (1 << drop)


@pytest.fixture
def floats(rng) -> np.ndarray:
    bits = rng.integers(0, 2**32, 20000, dtype=np.uint32)
    bits[:5000] &= np.uint32(0xFFFF_8000)  # ties of bfloat16
    bits[5000:9000] = (bits[5000:9000] & np.uint32(0xFFFF_E000)) | np.uint32(0x1000)  # ties of TF32
    x = bits.view(F)
    return x[np.isfinite(x)]


def test_to_tf32_rounds_ties_away(floats) -> None:
    low, high, beyond = neighbours(floats, 13)
    np.testing.assert_array_equal(tensor.round_tf32(floats), np.where(beyond >= 0, high, low))


def test_to_bf16_rounds_ties_to_even(floats) -> None:
    low, high, beyond = neighbours(floats, 16)
    even = (low >> 16) % 2 == 0
    up = (beyond > 0) | ((beyond == 0) & ~even)
    np.testing.assert_array_equal(tensor.round_bf16(floats), np.where(up, high, low) >> 16)


def test_to_f16_rounds_ties_to_even() -> None:
    for x, expected in ((1 + 2.0**-11, 1), (1 + 3 * 2.0**-11, 1 + 2.0**-9), (65519, 65504), (65520, np.inf),
                        (2.0**-25, 0), (1.5 * 2.0**-25, 2.0**-24), (-0.0, -0.0)):  # fmt: skip
        assert tensor.round_f16(F(x)).view(np.float16) == np.float16(expected), x


def test_conversion_of_specials() -> None:
    x = np.array([np.inf, -np.inf, np.nan, 3.4028235e38, 0, -0.0], F)
    assert tensor.round_bf16(x).tolist() == [0x7F80, 0xFF80, 0x7FFF, 0x7F80, 0, 0x8000]
    assert tensor.round_f16(x).tolist() == [0x7C00, 0xFC00, 0x7FFF, 0x7C00, 0, 0x8000]
    assert np.isnan(tensor.round_tf32(x).view(F)[2])
    np.testing.assert_array_equal(tensor.round_tf32(x).view(F)[[0, 1, 3, 4, 5]], [np.inf, -np.inf, np.inf, 0, -0.0])


def test_conversions_agree_with_pytorch(floats, torch) -> None:
    given = torch.from_numpy(floats)
    for kind, rounded in ((torch.bfloat16, tensor.round_bf16), (torch.float16, tensor.round_f16)):
        expected = given.to(kind).view(torch.int16).numpy().view(np.uint16)
        np.testing.assert_array_equal(rounded(floats), expected)


# whole kernels


def tile_tf32(x, w, y, depth):
    """y = x @ w.T of (16, depth) and (8, depth), by one warp; ldmatrix takes rows of four floats."""
    a_tile = cuda.shared.array((16, 8), float32, alignment=16)
    b_tile = cuda.shared.array((8, 8), float32, alignment=16)
    t = cuda.threadIdx.x
    zero = float32(0)
    c = (zero, zero, zero, zero)
    for k in range(0, depth, 8):
        for i in range(4):
            e = t + 32 * i
            a_tile[e // 8, e % 8] = x[e // 8 * depth + k + e % 8]
            if i < 2:
                b_tile[e // 8, e % 8] = w[e // 8 * depth + k + e % 8]
        cuda.syncthreads()
        a = ldmatrix_x4(shared_address(a_tile, t % 16 * 8 + t // 16 * 4))
        b = ldmatrix_x2(shared_address(b_tile, t % 8 * 8 + t % 16 // 8 * 4))
        c = mma_tf32(a, b, c)
        cuda.syncthreads()
    group, part = t // 4, t % 4
    y[group * 8 + 2 * part] = c[0]
    y[group * 8 + 2 * part + 1] = c[1]
    y[(group + 8) * 8 + 2 * part] = c[2]
    y[(group + 8) * 8 + 2 * part + 1] = c[3]


def test_kernel_of_tf32(rng) -> None:
    x, w = (rng.integers(-9, 10, shape).astype(F) for shape in ((16, 24), (8, 24)))
    y = np.zeros((16, 8), F)
    emulate(tile_tf32, 1, 32, x.ravel(), w.ravel(), y.reshape(-1), np.int64(24), outputs=["y"])
    np.testing.assert_array_equal(y, x @ w.T)


def tile_16(product, pack):
    """y = x @ w of (16, 16) and (16, 8), by one warp; w is transposed by ldmatrix."""

    def kernel(x, w, y):
        a_tile = cuda.shared.array((16, 8), uint32, alignment=16)
        b_tile = cuda.shared.array((16, 4), uint32, alignment=16)
        t = cuda.threadIdx.x
        for i in range(4):
            e = t + 32 * i
            a_tile[e // 8, e % 8] = pack(x[2 * e], x[2 * e + 1])
            if i < 2:
                b_tile[e // 4, e % 4] = pack(w[2 * e], w[2 * e + 1])
        cuda.syncthreads()
        a = ldmatrix_x4(shared_address(a_tile, t % 16 * 8 + t // 16 * 4))
        b = ldmatrix_x2_trans(shared_address(b_tile, t % 16 * 4))
        zero = float32(0)
        c = product(a, b, (zero, zero, zero, zero))
        group, part = t // 4, t % 4
        store2(y, group * 8 + 2 * part, c[0], c[1])
        store2(y, (group + 8) * 8 + 2 * part, c[2], c[3])

    return kernel


@pytest.mark.parametrize(("instruction", "pack"), [(mma_bf16, pack_bf16), (mma_f16, pack_f16)], ids=["bf16", "f16"])
def test_kernels_of_16_bits(rng, instruction, pack) -> None:
    x, w = (rng.integers(-9, 10, shape).astype(F) for shape in ((16, 16), (16, 8)))
    y = np.zeros(16 * 8, F)
    emulate(tile_16(instruction, pack), 1, 32, x.ravel(), w.ravel(), y, outputs=["y"])
    np.testing.assert_array_equal(y.reshape(16, 8), x @ w)


def test_ldmatrix_x4_trans_transposes_each_matrix() -> None:
    def kernel(x, y):
        tile = cuda.shared.array(128, uint32, alignment=16)
        t = cuda.threadIdx.x
        for k in range(4):
            tile[4 * t + k] = x[4 * t + k]
        cuda.syncthreads()
        r = ldmatrix_x4_trans(shared_address(tile, 4 * t))
        s = ldmatrix_x2(shared_address(tile, 4 * t))
        for k in range(4):
            y[k * 32 + t] = r[k]
        y[128 + t] = s[0]
        y[160 + t] = s[1]

    halves = np.arange(256, dtype=np.uint16)
    y = np.zeros(192, np.uint32)
    emulate(kernel, 1, 32, halves.view(np.uint32), y, outputs=["y"])
    matrices = halves.reshape(4, 8, 8)
    for lane in range(32):
        group, part = lane // 4, lane % 4
        for k in range(4):
            low, high = int(matrices[k][2 * part, group]), int(matrices[k][2 * part + 1, group])
            assert y[k * 32 + lane] == low | high << 16
    expected = matrices[:2].reshape(2, 8, 4, 2).copy().view(np.uint32).reshape(2, 32)
    np.testing.assert_array_equal(y[128:].reshape(2, 32), expected)


def test_products_in_several_warps_and_blocks(rng) -> None:
    def kernel(x, y):
        i = cuda.blockIdx.x * 64 + cuda.threadIdx.x
        value = to_tf32(x[i])
        one = float32_bits(float32(1))
        zero = float32(0)
        c = mma_tf32((value, value, value, value), (one, one), (zero, zero, zero, zero))
        y[i] = c[0]

    x = rng.integers(0, 9, 192).astype(F)
    y = np.zeros(192, F)
    emulate(kernel, 3, 64, x, y, outputs=["y"])
    np.testing.assert_array_equal(y, 2 * x.reshape(-1, 4).sum(axis=1).repeat(4))


def test_part_of_a_warp_cannot_multiply() -> None:
    def kernel(x, y):
        t = cuda.threadIdx.x
        one, zero = float32_bits(float32(1)), float32(0)
        if t < 20:
            c = mma_tf32((one, one, one, one), (one, one), (zero, zero, zero, zero))
            y[t] = c[0]

    with pytest.raises(DivergentBarrier) as caught:
        emulate(kernel, 1, 32, np.zeros(32, F), np.zeros(32, F))
    assert "mma_tf32" in str(caught.value)


def test_rows_of_ldmatrix_must_be_aligned() -> None:
    def kernel(y):
        tile = cuda.shared.array(256, uint32, alignment=16)
        t = cuda.threadIdx.x
        for k in range(8):
            tile[t + 32 * k] = uint32(0)
        cuda.syncthreads()
        y[t] = ldmatrix_x4(shared_address(tile, 4 * t + 2))[0]

    with pytest.raises(MisalignedAccess):
        emulate(kernel, 1, 32, np.zeros(32, np.uint32))


def test_flops_are_counted_by_type(rng) -> None:
    x, w = np.ones(16 * 24, F), np.ones(8 * 24, F)
    report = emulate(tile_tf32, 1, 32, x, w, np.zeros(128, F), np.int64(24), counts=True)
    total = report.counts.total
    assert total.flops["tf32"] == 2 * 16 * 8 * 24
    # of each of 3 steps: 6 stores; ldmatrix of 4 and of 2 matrices, whose rows of 32 bytes meet twice in each bank
    assert (total.shared_passes, total.bank_conflicts) == (3 * (6 + 8 + 4), 3 * (4 + 2))
