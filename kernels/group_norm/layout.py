"""How group normalization shares out its work: in pieces of rows, or in whole groups.

x is n samples of (rows, c). Two ways lead through it.

    by rows     Threads have `width` neighbouring channels and walk down rows, as in batch normalization: neighbours
                read neighbours, however few channels a group has. A block walks down a piece of the rows; where that
                stays in one sample, a thread reads what it needs to know of its groups once.
    by groups   1 to 512 threads have a group, all of it. Where a sample is one row (layer normalization of a matrix) a
                group's elements lie side by side, and nothing is left to add up afterwards.

All of it follows from the shape alone, and so do the order of every sum and its bits.
"""

from typing import Any, NamedTuple

from numba import cuda, uint32

from kernels.batch_statistics import BatchStatistics
from kernels.batchnorm.split import AHEAD, BLOCK, Split, loader
from kernels.choice import vectors
from kernels.device import WARP, inlined
from kernels.errors import ShapeError, require_shape
from kernels.launch import Array, Runner, blocks_for
from kernels.storage import require_float32

FEW_ROWS = 8  # with fewer in a sample, a block that keeps to it would be idle for the most part
MOST_THREADS = 512  # for one group: what the registers of a multiprocessor allow


class View(NamedTuple):
    """What an operation is given: x as n samples of (rows, channels)."""

    n: int
    rows: int
    channels: int
    groups: int

    @property
    def size(self) -> int:
        """Channels of a group."""
        return self.channels // self.groups

    @property
    def by_groups(self) -> bool:
        """Which way to go for sums over a group."""
        return self.rows < FEW_ROWS


class Pieces(NamedTuple):
    """Rows shared out among blocks: `sections` runs of `section` rows, each in `per` pieces of `span` or fewer."""

    sections: int
    section: int
    per: int
    span: int

    @property
    def blocks(self) -> int:
        """Pieces in all."""
        return self.sections * self.per


def view(operation: str, x: Array, groups: int, **channels: Array | None) -> View:
    """X as the operation sees it.

    Raises:
        ShapeError: x has fewer than two axes or no channels, groups does not divide them, or one of `channels` that is
            not None has not the shape (c,).
    """
    shape = tuple(int(size) for size in x.shape)
    if len(shape) < 2 or shape[-1] == 0:
        raise ShapeError(f"{operation}: x has shape {shape}, expected (n, ..., c) with at least one channel")
    if groups < 1 or shape[-1] % groups:
        raise ShapeError(
            f"{operation}: groups is {groups}, expected a divisor of the {shape[-1]} channels of x {shape}"
        )
    for name, array in channels.items():
        if array is not None:
            require_shape(operation, name, array, shape[-1:])
            require_float32(operation, **{name: array})
    require_float32(operation, x=x)  # 16 bits are not taken yet
    rows = 1
    for size in shape[1:-1]:
        rows *= size
    return View(shape[0], rows, shape[-1], int(groups))


def require_statistics(operation: str, seen: View, statistics: Any) -> None:
    """Raise ShapeError unless all four are (n, groups), TypeError unless float32."""
    for name, array in statistics._asdict().items():
        require_shape(operation, name, array, (seen.n, seen.groups))
    require_float32(operation, **statistics._asdict())


def width_of(
    run: Runner,
    operation: str,
    technique: str | None,
    seen: View,
    whole: bool,
    tables: BatchStatistics | None = None,
    **arrays: Array | None,
) -> int:
    """Channels of a thread, in all launches of the operation: 4 where it takes the vector technique, else 1.

    Args:
        run: As for `kernels.choice.vectors`.
        operation: Likewise.
        technique: Likewise.
        seen: What the operation is given.
        whole: Whether the four channels of a thread must be of one group.
        tables: Have a number for each group; where each channel is one, they are read in fours too.
        arrays: What else is read and written in fours, by name.

    Raises:
        TechniqueError: The vector technique is asked for, and cannot take these.
    """
    if tables is not None and seen.size == 1:
        arrays |= {"shift": tables.shift, "delta": tables.delta, "inv_std": tables.inv_std}
    in_fours = {"channels": seen.channels} | ({"channels of a group": seen.size} if whole else {})
    return 4 if vectors(run, operation, technique, in_fours, **arrays) else 1


def walks_across(seen: View) -> bool:
    """Whether blocks that walk down all rows do so across samples: one alone would not keep a block busy.

    A thread's four channels are of one group then.
    """
    return seen.rows < Split(seen.channels, 4).depth


def within_samples(seen: View, parts: Split, blocks: int, most: int) -> Pieces:
    """Pieces that each stay in one sample; about `blocks` in the grid, and at most `most` rows for each thread."""
    wanted = max(1, blocks_for(blocks, max(seen.n * parts.across, 1)))  # pieces of a sample
    per_thread = blocks_for(seen.rows, parts.depth * wanted)
    span = parts.depth * max(AHEAD, min(per_thread, most))
    return Pieces(seen.n, seen.rows, blocks_for(seen.rows, span), span)


def across_samples(seen: View, parts: Split, blocks: int, most: int) -> Pieces:
    """The same of all rows, whichever sample they belong to."""
    rows = seen.n * seen.rows
    span = parts.span(rows, blocks, most)
    return Pieces(1, rows, blocks_for(rows, span), span)


def threads_of(elements: int, width: int) -> int:
    """Threads for a group of so many elements, `width` of them a load: a power of two.

    As few as have AHEAD loads each, but so many that a row of them reads whole sectors; up to a warp, which adds up by
    itself, and beyond what it can do in a few rounds a block.
    """
    loads = blocks_for(elements, width)
    few = _power_from(blocks_for(loads, AHEAD))
    if loads <= 16 * WARP:
        return min(WARP, max(few, min(8, _power_from(loads))))
    return BLOCK if loads <= 32 * BLOCK else MOST_THREADS


def _power_from(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()


def placer(channels: int, groups: int, single: bool) -> Any:
    """A device function: where element e of a group lies in x. Each sample is a `single` row, or has `rows`."""
    size = channels // groups

    @inlined
    def place(which, e, rows):
        if single:
            return which * size + e
        return (which // groups * rows + e // size) * channels + which % groups * size + e % size

    return place


def reader(size: int, width: int) -> Any:
    """A device function: out[at : at + kept(size, width)] = what a table (n, groups) has for `width` channels.

    `base` is the sample's first place in the table. Channels of one group share one place of `out`; where each is a
    group, they are read together, and a table must be aligned as x is.
    """
    places, load = kept(size, width), loader(width)

    @inlined
    def read_together(table, base, channel, out, at):
        load(table, base + channel, out, at)

    @inlined
    def read(table, base, channel, out, at):
        for j in range(places):
            out[at + j] = table[base + (channel + j) // size]

    return read_together if size == 1 else read


def kept(size: int, width: int) -> int:
    """Numbers that a thread with `width` channels keeps of a table with one for each group of `size` channels."""
    return 1 if size % width == 0 else width


def piece_of(across: int) -> Any:
    """A device function: which of the `across` parts of the channels a block has, its section, and its rows' bounds."""

    @inlined
    def piece(section, per, span):
        block = uint32(cuda.blockIdx.x)
        number = uint32(block // across)
        which = uint32(number // uint32(per))
        first = which * section + (number - which * per) * span
        return uint32(block % across), which, first, min((which + 1) * section, first + span)

    return piece


class Team(NamedTuple):
    """The threads that finish a group of `size` channels: its part of a table with a row of channels for each piece.

    The lanes of a warp are at neighbouring channels, so a block has teams for `side` neighbouring groups where they are
    small. What a team's threads found is put together down the rows of the block first, and then along the lanes.
    """

    size: int

    @property
    def together(self) -> int:
        """Lanes of a team."""
        return min(self.size, WARP)

    @property
    def side(self) -> int:
        """Teams side by side."""
        return WARP // self.together

    @property
    def lanes(self) -> int:
        """Of a row of the block; no more than a warp, so the first row is a part of the first warp."""
        return self.together * self.side

    @property
    def depth(self) -> int:
        """Rows of the block."""
        return BLOCK // self.lanes

    @property
    def threads(self) -> int:
        """Of a team."""
        return self.depth * self.together
