"""How the matrix (rows, c) that batch normalization sees is shared out among threads.

A thread keeps to `width` neighbouring channels, so what it knows of them it reads once, and walks down the rows. A
block takes `lanes` such groups of channels side by side, `depth` rows at once and `span` rows in all: neighbouring
threads read neighbouring addresses, whatever c is. As many blocks as the rows need stand in grid x, and in grid y as
many as the channels do. All of it follows from the shape alone, and so do the order of every sum and its bits.
"""

from typing import Any, NamedTuple

from kernels.choice import vectors
from kernels.device import inlined
from kernels.errors import ShapeError, require_shape
from kernels.intrinsics import load4, store4
from kernels.launch import Array, Runner, blocks_for

BLOCK = 256
LANES = 64  # at most, unless said otherwise
AHEAD = 4  # rows that a thread loads before it uses the first, so that their latencies overlap
ENOUGH = 384  # blocks to sum with: three on each multiprocessor of a large GPU, as their registers allow
CHUNK = 32  # rows that a thread sums in one accumulator


class Split(NamedTuple):
    """Of c channels into groups of `width`: 1, or 4 (where c is a multiple of it) for accesses of 16 bytes."""

    channels: int
    width: int
    most: int = LANES  # groups side by side in a block

    @property
    def across(self) -> int:
        """Blocks side by side."""
        return blocks_for(self.channels, self.width * self.most)

    @property
    def lanes(self) -> int:
        """Groups of channels in a block; the blocks share them out evenly."""
        return blocks_for(self.channels, self.width * self.across)

    @property
    def depth(self) -> int:
        """Rows that a block takes at once."""
        return BLOCK // self.lanes

    def span(self, rows: int, blocks: int, most: int) -> int:
        """Rows of a block: so many that about `blocks` make up the grid, and at most `most` for each thread."""
        per_thread = blocks_for(rows * self.across, self.depth * blocks)
        return self.depth * max(AHEAD, min(per_thread, most))

    def way_back(self, rows: int, blocks: int, most: int) -> tuple[int, int]:
        """How a second pass goes back over the rows that `ENOUGH` blocks have summed: (stretch, groups).

        Each of those blocks has read a stretch of rows from its start to its end, all at the same time, so the ends are
        what is still in L2. The second pass has a block for each of them in grid x, and in grid z for each piece of a
        stretch, which start in this order: the last pieces of all stretches first. A block goes through its piece from
        the end too, in `groups` groups of AHEAD rows a thread; so many that about `blocks` make up the grid, and at
        most `most` rows for each thread.
        """
        stretch = self.span(rows, ENOUGH, rows)
        per_thread = blocks_for(rows * self.across, self.depth * blocks)
        return stretch, max(1, blocks_for(min(per_thread, most, stretch // self.depth), AHEAD))

    def grid_back(self, rows: int, stretch: int, groups: int) -> tuple[int, int, int]:
        """The grid of that second pass."""
        return blocks_for(rows, stretch), self.across, blocks_for(stretch, groups * AHEAD * self.depth)


def split(run: Runner, operation: str, technique: str | None, x: Array, **others: Array | None) -> Split:
    """The split for x (..., c): by four channels where they, x and `others` allow it, or as `technique` says.

    Raises:
        TechniqueError: technique is "vector", and they do not.
    """
    channels = int(x.shape[-1])
    vector = vectors(run, operation, technique, {"channels": channels}, x=x, **others)
    return Split(channels, 4 if vector else 1)


def require_channels(operation: str, x: Array, **arrays: Array | None) -> int:
    """The number of rows of x (..., c). Raises ShapeError unless all `arrays` but None have the shape (c,)."""
    if x.ndim < 1 or x.shape[-1] == 0:
        raise ShapeError(f"{operation}: x has shape {tuple(x.shape)}, expected (..., c) with at least one channel")
    for name, array in arrays.items():
        if array is not None:
            require_shape(operation, name, array, (int(x.shape[-1]),))
    return int(x.size // x.shape[-1])


def largest_power_below(depth: int) -> int:
    """The largest power of 2 below `depth`, 0 for 1: where a tree over `depth` rows starts."""
    return 1 << ((depth - 1).bit_length() - 1) if depth > 1 else 0


def loader(width: int) -> Any:
    """A device function: values[at : at + width] = x[i : i + width]."""

    def load_one(x, i, values, at):
        values[at] = x[i]

    def load_four(x, i, values, at):
        a, b, c, d = load4(x, i)
        values[at] = a
        values[at + 1] = b
        values[at + 2] = c
        values[at + 3] = d

    return inlined(load_four if width == 4 else load_one)


def storer(width: int) -> Any:
    """A device function: y[i : i + width] = values[:width]."""

    def store_one(y, i, values):
        y[i] = values[0]

    def store_four(y, i, values):
        store4(y, i, values[0], values[1], values[2], values[3])

    return inlined(store_four if width == 4 else store_one)
