"""What a warp takes of a slab in shared memory, as fragments of TF32, and the product of two of them.

What lies along the depth (tensor_copies.py) is read by ldmatrix, which gives fragments as the product takes
them: to it a tf32 is two elements of 16 bits that stay together. What lies across the depth is read word by word:
thread (group, part) of a warp reads from bank 8 part + group, all different. (ldmatrix cannot transpose elements of 32
bits.) Every factor is rounded to TF32, to nearest, on its way from shared memory to the product.

Elements of 16 bits are multiplied as they are, 16 steps of depth at once. Those are 32 bytes of a line, as 8 steps of
floats: along the depth the same loads bring them. Across the depth ldmatrix.trans does.

Source   NVIDIA, "PTX ISA" 9.0, ldmatrix, mma.
"""

from collections.abc import Callable
from typing import Any

from numba import cuda, uint32, uint64

from kernels.device import WARP, inlined
from kernels.matmul.tensor_tiles import DEPTH, PADDING, narrow_chunk
from kernels.storage import BFLOAT16, FLOAT32, Storage
from kernels.tensor_core import ldmatrix_x4, ldmatrix_x4_trans, mma_bf16, mma_f16, mma_tf32, to_tf32

STEPS = 8  # of depth, in one product of floats: a quarter of a slab, whatever the element
ROWS, COLUMNS = 16, 8  # of one product


def multiplier(storage: Storage = FLOAT32) -> Callable[..., Any]:
    """Make the device function multiply_fragments(a, b, sums, i, j): sums[i, j] += fragments a[i] @ b[j]."""
    mma: Any = mma_tf32 if storage is FLOAT32 else mma_bf16 if storage is BFLOAT16 else mma_f16

    @inlined
    def multiply_fragments(a, b, sums, i, j):
        product = mma(
            (a[i, 0], a[i, 1], a[i, 2], a[i, 3]),
            (b[j, 0], b[j, 1]),
            (sums[i, j, 0], sums[i, j, 1], sums[i, j, 2], sums[i, j, 3]),
        )
        for part in range(4):
            sums[i, j, part] = product[part]

    return multiply_fragments


@inlined
def _as_it_is(word):
    return word


def _transposed(count: int, lines: int, is_a: bool) -> Callable[..., Any]:
    """`fragments_of` for elements of 16 bits that lie across the depth."""
    registers = 4 if is_a else 2
    loads = count * registers // 4
    place_of = narrow_chunk(lines)

    @inlined
    def by_transposing(result, memory, base, address, first, k):  # noqa: ARG001
        lane = uint32(cuda.threadIdx.x) % WARP
        # Of the four matrices of 8 steps each, a fragment of a has the second 8 lines further on, and two of b have it
        # 8 steps deeper.
        if is_a:
            step, chunk = lane % 8 + lane // 16 * 8, lane // 8 % 2
        else:
            step, chunk = lane % 8 + lane // 8 % 2 * 8, lane // 16
        for i in range(loads):
            place = place_of(16 * k + step, first // 8 + chunk + 2 * i)
            four = ldmatrix_x4_trans(uint32(address + place * 16))
            for part in range(4):
                result[4 * i // registers + part // registers, part % registers] = four[part]

    return by_transposing


def fragments_of(
    along_depth: bool, count: int, lines: int, is_a: bool, storage: Storage = FLOAT32
) -> Callable[..., Any]:
    """Make the device function fragments(result, memory, base, address, first, k) for a quarter of a slab.

    It fills result (count, 4 or 2) with what the products of `count` fragments take, floats rounded to TF32. The slab
    begins at memory[base], which is at the shared `address`, and the warp's lines with `first`.
    """
    registers = 4 if is_a else 2
    height = 16 if is_a else 8  # lines of a fragment
    pitch = lines + PADDING
    convert: Any = to_tf32 if storage is FLOAT32 else _as_it_is
    if storage is not FLOAT32 and not along_depth:
        return _transposed(count, lines, is_a)
    if along_depth:
        loads = count * registers // 4

        @inlined
        def by_ldmatrix(result, memory, base, address, first, k):  # noqa: ARG001
            lane = uint32(cuda.threadIdx.x) % WARP
            # The four matrices are those of a 16x8 fragment of a, or of two 8x8 fragments of b.
            if is_a:
                line, half = lane % 16, lane // 16
            else:
                line, half = lane % 8 + lane // 16 * 8, lane // 8 % 2
            place = address + (first + line) * (DEPTH * 4) + ((2 * k + half) ^ lane % 8) * 16
            for i in range(loads):
                four = ldmatrix_x4(uint32(place + i * (16 * DEPTH * 4)))
                for part in range(4):
                    result[4 * i // registers + part // registers, part % registers] = convert(four[part])

        return by_ldmatrix

    @inlined
    def by_words(result, memory, base, address, first, k):  # noqa: ARG001
        lane = uint32(cuda.threadIdx.x) % WARP
        place = uint32(base + (8 * k + lane % 4) * pitch + first + lane // 4)
        for i in range(count):
            for part in range(registers):
                if is_a:
                    word = place + i * height + part % 2 * 8 + part // 2 * (4 * pitch)
                else:
                    word = place + i * height + part * (4 * pitch)
                result[i, part] = to_tf32(memory[uint64(word)])  # uncut, so that the compiler sees what is constant

    return by_words
