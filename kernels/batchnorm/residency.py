"""What of a batch stays on the chip between the two passes of batch normalization, and on how many blocks.

A multiprocessor of Hopper has 256 KB of registers and 228 KB of shared memory, 132 of them together 62 MB. One block
of 256 threads on each, with 255 registers a thread and all the shared memory that a block may have, holds its share of
the rows: a thread's first HELD rows in registers, the others in dynamic shared memory. All blocks must be resident at
once, for they wait for each other (kernels/grid_barrier.py), so there is at most one for each multiprocessor.

A block keeps to 32 channels of each row, 128 bytes, or 64 in 16 bits: the more blocks stand side by side, the fewer
share a channel, and what each of them found of it all of these read after the barrier.

What is held is as it is stored (held.py): in 16 bits nearly twice as many numbers. On Hopper 42 MB of one tensor fit,
or 21 MB of each of two. Whether they do depends on the shape, the storage and the GPU's numbers alone, and so do the
blocks, the order of every sum and its bits.
"""

from typing import Any, NamedTuple

from numba import cuda, float32, uint16, uint32

from kernels.arrays import wide
from kernels.batchnorm.split import BLOCK, Split
from kernels.chip import HOPPER, Chip
from kernels.device import inlined
from kernels.launch import Array, Runner, blocks_for
from kernels.storage import FLOAT32, Storage

LINE = 32  # channels of a block: 128 bytes of a row, 64 in 16 bits
FEW = 4  # rows of a thread, at the least, if there are so many: a barrier of fewer blocks is shorter
HELD = {1: 32, 2: 16}  # rows of a thread in registers, by tensors that are held
MOST_REGISTERS = 256  # of a thread, as they are allotted
RESERVED = 1024  # bytes of a block's shared memory that CUDA keeps to itself


def rows_at_once(held: int, width: int) -> int:
    """Of the `held` rows of a thread in registers, those that one loop goes over.

    The compiler unrolls a loop if it is not too long, and what is not unrolled cannot be in registers.
    """
    return held // 4 if width > 4 else held


class Residency(NamedTuple):
    """How (rows, c) is shared out, and where a thread keeps its rows."""

    parts: Split
    kept: int  # rows of a thread that there is room for in shared memory: 0, or as many as the GPU has
    span: int  # rows of a block


def line_split(channels: int, width: int) -> Split:
    """The split in which a block keeps to a line of each row."""
    return Split(channels, width, LINE // width)


def kept_bytes(width: int, kept: int, tensors: int, storage: Storage) -> int:
    """Of shared memory that `kept` rows of each thread take."""
    return kept * tensors * width * BLOCK * storage.bytes


def residency(chip: Chip, channels: int, width: int, rows: int, tensors: int, storage: Storage) -> Residency | None:
    """The residency of `tensors` arrays (rows, channels) on that GPU; None if they do not fit."""
    parts = line_split(channels, width)
    blocks = chip.multiprocessors // parts.across
    if not blocks or not rows or chip.registers < MOST_REGISTERS * BLOCK:
        return None
    span = max(blocks_for(rows, blocks), FEW * parts.depth)
    merging = 4 * BLOCK * (4 * width + 1)  # bytes, for what threads have summed
    room = max(0, (chip.shared_bytes - RESERVED - merging) // kept_bytes(width, 1, tensors, storage))
    beyond = blocks_for(span, parts.depth) - HELD[tensors]
    if beyond > room:
        return None
    return Residency(parts, room if beyond > 0 else 0, span)


def resident(run: Runner, storage: Storage, x: Array, *others: Array, tensors: int) -> Residency | None:
    """Where to keep what of x (..., c) and, of two tensors, of another array like it; None if they do not fit.

    `others` are all arrays but x that are moved 16 bytes at once where they can be. A GPU that has told no numbers is
    taken for a Hopper.
    """
    channels = int(x.shape[-1])
    width = storage.wide if channels % storage.wide == 0 and wide(x, *others) else 1
    return residency(numbers(run) or HOPPER, channels, width, x.size // channels, tensors, storage)


def numbers(run: Runner) -> Chip | None:
    """What is known of the GPU."""
    return getattr(run, "chip", None)


def why_resident(run: Runner, x: Array, found: Residency | None, held: str) -> str:
    """In words, whether `held` fits on the chip, and how."""
    chip, channels = numbers(run) or HOPPER, int(x.shape[-1])
    rows = x.size // channels
    if found is not None:
        return (
            f"{held} fit on the chip in {blocks_for(rows, found.span) * found.parts.across} blocks, "
            f"{blocks_for(found.span, found.parts.depth)} rows a thread"
        )
    return (
        f"{held} of {rows:,} rows and {channels:,} channels do not fit on {chip.multiprocessors} multiprocessors with "
        f"{chip.registers:,} registers and {chip.shared_bytes:,} bytes of shared memory each"
    )


def sharer(parts: Split) -> Any:
    """A device function: which rows and channels this thread has of `rows`, `span` of each block.

    Returns its row in the block, the first of its channels, how many rows it has, `depth` apart, and where the first
    of them starts in the matrix.
    """
    channels, width, lanes, depth = parts.channels, parts.width, parts.lanes, parts.depth

    @inlined
    def share(rows, span):
        row = cuda.threadIdx.x // lanes
        channel = (cuda.blockIdx.y * lanes + cuda.threadIdx.x % lanes) * width
        start = cuda.blockIdx.x * span + row
        end = min(rows, (cuda.blockIdx.x + 1) * span)
        mine = uint32(0)
        if row < depth and channel < channels and start < end:
            mine = uint32((end - start + depth - 1) // depth)
        return row, channel, mine, start * channels + channel

    return share


def room(kept: int, storage: Storage) -> Any:
    """A device function: the block's dynamic shared memory; where it has none, another shared array in its place."""

    def dynamic(other):  # noqa: ARG001
        return cuda.shared.array(0, float32)

    def none(other):
        return other

    def dynamic_bits(other):  # noqa: ARG001
        return cuda.shared.array(0, uint16)

    def no_bits(other):  # noqa: ARG001
        return cuda.shared.array(1, uint16)  # never looked at

    if storage is FLOAT32:
        return inlined(dynamic if kept else none)
    return inlined(dynamic_bits if kept else no_bits)
