"""Twins of the tensor-core instructions.

mma.sync. The layout of fragments is that of `kernels.tensor_core`. PTX promises float32's precision at least, in any
order and rounding. What is modelled here is what was found in Hopper (H100): products are exact; they and c are
aligned to the largest exponent among them and cut off 25 bits below it; the sum of that is exact, and cut to float32.
So a sum is never rounded up in magnitude, and may err by a unit in the last place of itself or, where terms cancel, by
some of the largest term. Ampere does the same in two halves along k, with 24 bits. Subnormals count; overflow is
infinite; a NaN is NumPy's. Of a TF32 operand the low 13 bits do not count: what was not converted is truncated.

Sources  NVIDIA, "PTX ISA" 9.0, Warp-level Matrix Instructions. M. Fasi, N. Higham, M. Mikaitis, S. Pranesh, "Numerical
behavior of NVIDIA tensor cores", PeerJ Computer Science 7, 2021. P. Xie et al., "MMA-Sim: Bit-Accurate Reference Model
of Tensor Cores and Matrix Cores", arXiv:2511.10909, 2025 (exponents, bits, order).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels import tensor_core
from kernels.emulator.context import WARP, Context
from kernels.intrinsics import TWINS

Array = NDArray[Any]
ROWS, COLUMNS = 16, 8  # of d; k is 8 times the elements in a register
KEPT_BITS = 25  # of a term below the largest exponent


def product(a: Array, b: Array, c: Array) -> Array:
    """The product a @ b + c in fragments.

    Args:
        a: (warps, 4, 32, halves) float32 or float16: of each register of each lane the elements, one of TF32 or two of
            16 bits.
        b: (warps, 2, 32, halves), likewise.
        c: (warps, 4, 32) float32.

    Returns:
        (warps, 4, 32) float32.
    """
    warps, halves = len(a), a.shape[-1]
    inner = 8 * halves
    left = a.reshape(warps, 2, 2, 8, 4, halves).transpose(0, 2, 3, 1, 4, 5).reshape(warps, ROWS, inner)
    right = b.reshape(warps, 2, 8, 4, halves).transpose(0, 2, 1, 3, 4).reshape(warps, COLUMNS, inner)
    start = c.reshape(warps, 2, 2, 8, 4).transpose(0, 1, 3, 4, 2).reshape(warps, ROWS, COLUMNS)
    d = dot_add(left, right, start)
    return d.reshape(warps, 2, 8, 4, 2).transpose(0, 1, 4, 2, 3).reshape(warps, 4, 32)


def dot_add(a: Array, b: Array, c: Array) -> Array:
    """The product a @ b.T + c, as the hardware computes it.

    Args:
        a: (..., rows, k) float32 or float16.
        b: (..., columns, k), likewise.
        c: (..., rows, columns) float32.

    Returns:
        float32, of the shape of c.
    """
    inner = a.shape[-1]
    a_exponent, b_exponent = exponents(a)[..., :, None, :], exponents(b)[..., None, :, :]
    left, right = a.astype(np.float64)[..., :, None, :], b.astype(np.float64)[..., None, :, :]
    largest = exponents(c)
    for k in range(inner):
        np.maximum(largest, a_exponent[..., k] + b_exponent[..., k], out=largest)
    with np.errstate(invalid="ignore", over="ignore"):
        scale = np.ldexp(1.0, KEPT_BITS - largest)
        total = np.trunc(c * scale)
        for k in range(inner):
            term = left[..., k] * right[..., k]
            term *= scale
            total += np.trunc(term, out=term)
        return toward_zero(total / scale)


def exponents(x: Array) -> Array:
    """floor(log2 |x|), not below the exponent of the smallest normal number; -126 of zero; int32."""
    smallest = -14 if x.dtype == np.float16 else -126
    return np.where(x == 0, -126, np.maximum(np.frexp(x)[1] - 1, smallest)).astype(np.int32)


def toward_zero(x: Array) -> Array:
    """float64 as float32, cut off; infinite from 2**128 on."""
    nearest = x.astype(np.float32)
    beyond = (np.abs(nearest.astype(np.float64)) > np.abs(x)) & (np.abs(x) < 2.0**128)
    return (nearest.view(np.int32) - beyond).astype(np.int32).view(np.float32)  # one less in magnitude, of either sign


def round_tf32(x: Array) -> Array:
    """Bits of float32 rounded to 10 bits of fraction, to nearest, ties away from zero, as uint32.

    As ptxas translates cvt.rna.tf32.f32: half a unit is added to the bits of a finite number, the rest cut off.
    """
    bits = np.asarray(x, np.float32).view(np.uint32)
    return (bits + np.where(np.isfinite(x), np.uint32(0x1000), np.uint32(0))) & np.uint32(0xFFFFE000)


def round_bf16(x: Array) -> Array:
    """Bits of float32 rounded to bfloat16, to nearest even, as uint16; a NaN becomes 0x7fff."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FFF), rounded).astype(np.uint16)


def round_f16(x: Array) -> Array:
    """Bits of float32 rounded to float16, to nearest even, as uint16; a NaN becomes 0x7fff."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        rounded = np.asarray(x, np.float32).astype(np.float16).view(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), rounded)


def _tf32(bits: Array) -> Array:
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)[..., None]


def _bf16(bits: Array) -> Array:
    return np.stack([bits << np.uint32(16), bits & np.uint32(0xFFFF0000)], axis=-1).view(np.float32)


def _f16(bits: Array) -> Array:
    return np.stack([bits & np.uint32(0xFFFF), bits >> np.uint32(16)], axis=-1).astype(np.uint16).view(np.float16)


def _mma(kind: str, values: Callable[[Array], Array]) -> Callable[..., tuple[Array, ...]]:
    def twin(context: Context, a: Sequence[Any], b: Sequence[Any], c: Sequence[Any]) -> tuple[Array, ...]:
        def stack(registers: Sequence[Any]) -> Array:
            return np.stack([context.warps(register) for register in registers], axis=1)

        left, right = values(stack(a)), values(stack(b))
        result = product(left, right, stack(c))
        inner = 8 * left.shape[-1]
        context.count(f"mma_{kind}", np.float32, 2 * ROWS * COLUMNS * inner // 32)
        return tuple(context.unwarp(result[:, k]) for k in range(4))

    return twin


def _ldmatrix(count: int, transposed: bool) -> Callable[..., tuple[Array, ...]]:
    def twin(context: Context, address: Any) -> tuple[Array, ...]:
        rows = context.warps(address)[:, : 8 * count].ravel()  # the addresses of other threads do not count
        reading = context.within(context.lanes % context.threads % WARP < 8 * count)
        memory, index = reading.at_shared(rows, np.uint32)
        words = np.stack([reading.vector(word) for word in reading.load(memory, index, 4)], axis=-1)
        matrices = words.reshape(-1, count, 8, 4)
        if transposed:
            halves = np.ascontiguousarray(matrices).view(np.uint16)  # (warps, count, 8, 8)
            matrices = np.ascontiguousarray(halves.swapaxes(2, 3)).view(np.uint32)
        return tuple(context.unwarp(matrices[:, k].reshape(-1, 32)) for k in range(count))

    return twin


def _pack(rounded: Callable[[Array], Array]) -> Callable[..., Any]:
    def twin(context: Context, low: Any, high: Any) -> Any:  # noqa: ARG001
        return rounded(low).astype(np.uint32) | rounded(high).astype(np.uint32) << np.uint32(16)

    return twin


TWINS.update(
    {
        tensor_core.mma_tf32: _mma("tf32", _tf32),
        tensor_core.mma_bf16: _mma("bf16", _bf16),
        tensor_core.mma_f16: _mma("f16", _f16),
        tensor_core.ldmatrix_x2: _ldmatrix(2, False),
        tensor_core.ldmatrix_x4: _ldmatrix(4, False),
        tensor_core.ldmatrix_x2_trans: _ldmatrix(2, True),
        tensor_core.ldmatrix_x4_trans: _ldmatrix(4, True),
        tensor_core.to_tf32: lambda context, x: round_tf32(np.asarray(x).view(np.float32)),  # noqa: ARG005
        tensor_core.pack_bf16: _pack(round_bf16),
        tensor_core.pack_f16: _pack(round_f16),
        tensor_core.float32_bits: lambda context, x: np.asarray(x).view(np.uint32)[()],  # noqa: ARG005
    }
)
