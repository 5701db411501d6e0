"""The norm of many tensors taken as one vector, and clipping by it: what gradient clipping is made of.

    norm   = sqrt(sum over all elements of all arrays of  x²)
    factor = min(1, max_norm / (norm + 1e-6))
    clip:    x = factor * x, in place

Shapes   arrays: any number of any shapes, float32 and C-contiguous; norm () in device memory, where clipping reads it:
         the host never waits.
Range    Squares neither overflow nor underflow: elements below 2^-60 are summed times 2^90, those above 2^46 times
         2^-80, the others as they are, and the three sums are put together at the end. So the norm is accurate whenever
         it is a float32 number, denormal ones included; beyond, it is infinite.
Traffic  norm: reads every array once; clip: reads and writes every array once.
Order    A thread adds 16 squares, a block its threads' sums as a tree, one block the blocks' sums with what they lost.
         All of it follows from the sizes alone, and so do the bits.
Edges    A NaN anywhere makes the norm NaN, else an infinity makes it infinite. By a norm of NaN all elements become
         NaN, by an infinite one 0 (and infinities NaN): PyTorch's rules. No elements: the norm is 0.
Source   R. Pascanu et al., "On the difficulty of training recurrent neural networks", ICML 2013, arXiv:1211.5063, in
         the form of torch.nn.utils.clip_grad_norm_; the three sums are those of J. Blue, "A Portable Fortran Program to
         Find the Euclidean Norm of a Vector", ACM TOMS 4, 1978.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import cuda, float32, int64, uint32
from numpy.typing import NDArray

from kernels.choice import vectors
from kernels.device import index_type, inlined
from kernels.errors import require_shape
from kernels.intrinsics import load4, pointer_to_float32
from kernels.launch import Addresses, Cost, Float, Floats, Int64, Int64s, Launch, Runner, kernel, techniques
from kernels.launch import Array as DeviceArray
from kernels.sums import BLOCK, add_threads, sum_by_block
from kernels.updates import CHUNK, chunks_of, update_tensors

Array = NDArray[Any]
EPS = 1e-6  # PyTorch's

SMALL, LARGE = np.float32(2.0**-60), np.float32(2.0**46)
RAISED, LOWERED = np.float32(2.0**90), np.float32(2.0**-80)
RAISED_BACK, LOWERED_BACK = np.float32(2.0**-90), np.float32(2.0**80)


@np.errstate(invalid="ignore", over="ignore")
def global_norm_reference(arrays: Sequence[Array]) -> Any:
    """The norm of all elements together; float64 has the range of float32's squares."""
    return np.sqrt(sum(np.square(array).sum() for array in arrays))


@np.errstate(invalid="ignore", over="ignore")
def clip_by_norm_reference(array: Array, norm: Any, max_norm: float) -> Array:
    """The array, scaled down to its share of a norm of `max_norm` where `norm` is larger."""
    return np.asarray(array * np.minimum(1, max_norm / (norm + EPS)))


# Three sums of squares: of the elements that are small, of those between and of those that are large.


@inlined
def _add_square(small, middle, large, value):
    size = abs(value)
    is_small, is_large = size < SMALL, size > LARGE
    scaled = size * (RAISED if is_small else LOWERED if is_large else float32(1))
    square = scaled * scaled
    small += square if is_small else float32(0)
    large += square if is_large else float32(0)
    middle += float32(0) if is_small or is_large else square  # a NaN is neither
    return small, middle, large


def _cost(total: int, blocks: int) -> Cost:
    return Cost(4 * total, 12 * blocks, 3 * total)


@kernel(traffic="table, chunks -> partial", registers=48, examples=[(uint32,), (int64,)])
def sum_squares_scalar(index: Any) -> Launch:
    """The three sums, partial (3, blocks), of a chunk of one tensor a block; `table`, `chunks`: kernels/updates.py."""

    def sum_squares(
        table: Addresses,
        chunks: Int64s,
        partial: Floats,
        blocks: Int64,
        total: Int64,  # noqa: ARG001
    ):
        smalls = cuda.shared.array(BLOCK, float32)
        middles = cuda.shared.array(BLOCK, float32)
        larges = cuda.shared.array(BLOCK, float32)
        block, thread = cuda.blockIdx.x, cuda.threadIdx.x
        tensor, begin, size = chunks[block], chunks[blocks + block], chunks[2 * blocks + block]
        x = pointer_to_float32(table[tensor])
        small, middle, large = float32(0), float32(0), float32(0)
        for k in range(CHUNK // BLOCK):
            i = index(begin + k * BLOCK + thread)
            if i < size:
                small, middle, large = _add_square(small, middle, large, x[i])
        smalls[thread] = small
        middles[thread] = middle
        larges[thread] = large
        add_threads(thread, smalls)
        add_threads(thread, middles)
        add_threads(thread, larges)
        if thread == 0:
            partial[block] = smalls[0]
            partial[blocks + block] = middles[0]
            partial[2 * blocks + block] = larges[0]

    return Launch(sum_squares, BLOCK, lambda blocks: blocks, _cost)


@kernel(traffic="table, chunks -> partial", registers=64, instructions=("LDG.E.128",), examples=[(uint32,), (int64,)])
def sum_squares_vector(index: Any) -> Launch:
    """The same, four elements at a time; all tensors aligned to 16."""

    def sum_squares(
        table: Addresses,
        chunks: Int64s,
        partial: Floats,
        blocks: Int64,
        total: Int64,  # noqa: ARG001
    ):
        smalls = cuda.shared.array(BLOCK, float32)
        middles = cuda.shared.array(BLOCK, float32)
        larges = cuda.shared.array(BLOCK, float32)
        block, thread = cuda.blockIdx.x, cuda.threadIdx.x
        tensor, begin, size = chunks[block], chunks[blocks + block], chunks[2 * blocks + block]
        x = pointer_to_float32(table[tensor])
        small, middle, large = float32(0), float32(0), float32(0)
        for k in range(CHUNK // (4 * BLOCK)):
            i = index(begin + 4 * (k * BLOCK + thread))
            if i + 3 < size:
                a, b, c, d = load4(x, i)
                small, middle, large = _add_square(small, middle, large, a)
                small, middle, large = _add_square(small, middle, large, b)
                small, middle, large = _add_square(small, middle, large, c)
                small, middle, large = _add_square(small, middle, large, d)
            else:
                for j in range(i, size):  # the tail, at most three elements
                    small, middle, large = _add_square(small, middle, large, x[index(j)])
        smalls[thread] = small
        middles[thread] = middle
        larges[thread] = large
        add_threads(thread, smalls)
        add_threads(thread, middles)
        add_threads(thread, larges)
        if thread == 0:
            partial[block] = smalls[0]
            partial[blocks + block] = middles[0]
            partial[2 * blocks + block] = larges[0]

    return Launch(sum_squares, BLOCK, lambda blocks: blocks, _cost)


@kernel(traffic="partial -> norm", registers=40, examples=[()])
def norm_of_squares() -> Launch:
    """norm[0] from partial (3, n). One block."""

    def norm_of_squares(partial: Floats, norm: Floats, n: Int64):
        totals = cuda.shared.array(BLOCK, float32)
        losts = cuda.shared.array(BLOCK, float32)
        thread = cuda.threadIdx.x
        small = sum_by_block(thread, partial, 0, n, totals, losts)
        middle = sum_by_block(thread, partial, n, n, totals, losts)
        large = sum_by_block(thread, partial, 2 * n, n, totals, losts)
        if thread == 0:
            if large > float32(0):  # beside these squares, above 2^92, those of small elements are nothing
                norm[0] = math.sqrt(large + middle * LOWERED * LOWERED) * LOWERED_BACK
            elif middle == float32(0):
                norm[0] = math.sqrt(small) * RAISED_BACK
            else:
                norm[0] = math.sqrt(middle + small * RAISED_BACK * RAISED_BACK)

    return Launch(norm_of_squares, BLOCK, lambda: 1, lambda n: Cost(12 * n, 4, 3 * n))


@kernel(traffic="norm -> factor", registers=24, examples=[()])
def clip_factor() -> Launch:
    """factor[0] = min(1, max_norm / (norm + eps)). One thread."""

    def clip_factor(norm: Floats, factor: Floats, max_norm: Float):
        if cuda.threadIdx.x == 0:
            ratio = max_norm / (norm[0] + float32(EPS))
            factor[0] = float32(1) if ratio >= float32(1) else ratio  # NaN passes

    return Launch(clip_factor, 32, lambda: 1, lambda: Cost(4, 4, 2))


@techniques("scalar", "vector")
def global_norm(run: Runner, arrays: Sequence[DeviceArray], norm: DeviceArray, *, technique: str | None = None) -> None:
    """Launch on `run`. Raises ShapeError unless norm has the shape ().

    The vector technique takes arrays that start at multiples of 16 bytes; asked for others it raises TechniqueError.
    """
    require_shape("global_norm", "norm", norm, ())
    vector = vectors(run, "global_norm", technique, {}, arrays=arrays)
    sizes = tuple(int(array.size) for array in arrays)
    blocks = 0
    partial = run.empty((0,))
    if sum(sizes):
        chunks = chunks_of(run, sizes)
        blocks = chunks.shape[1]
        partial = run.empty((3 * blocks,))
        factory = sum_squares_vector if vector else sum_squares_scalar
        table = run.addresses(list(arrays))
        run(factory(index_type(max(sizes))), table, chunks, partial, blocks, sum(sizes))
    run(norm_of_squares(), partial, norm, blocks)


@techniques("scalar", "vector")
def clip_by_norm(
    run: Runner, arrays: Sequence[DeviceArray], norm: DeviceArray, max_norm: float, *, technique: str | None = None
) -> None:
    """Launch on `run`. `max_norm` is the same throughout a run; the norm is read when the kernel runs.

    Raises:
        ShapeError: norm has not the shape ().
        TechniqueError: As for `global_norm`.
        ValueError: `max_norm` is not a number of at least 0.
    """
    if not max_norm >= 0:
        raise ValueError(f"clip_by_norm: max_norm is {max_norm}, expected a number of at least 0")
    require_shape("clip_by_norm", "norm", norm, ())
    vector = vectors(run, "clip_by_norm", technique, {}, arrays=arrays)
    factor = run.empty((1,))
    run(clip_factor(), norm, factor, max_norm)
    update_tensors(run, [arrays], "scale", factor, vector)
