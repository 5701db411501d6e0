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
from kernels.storage import Storage, require_float32

BLOCK = 256
LANES = 64  # at most, unless said otherwise
AHEAD = 4  # rows that a thread loads before it uses the first, so that their latencies overlap
ENOUGH = 384  # blocks to sum with: three on each multiprocessor of a large GPU, as their registers allow
WIDEST = 8  # channels of a thread, in 16 bits
ENOUGH_WIDE = 256  # blocks of such threads, which have more registers: two on each multiprocessor
CHUNK = 32  # rows that a thread sums in one accumulator


class Split(NamedTuple):
    """Of c channels into groups of `width`: 1, or what 16 bytes hold (where c is a multiple of it), 4 or 8."""

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

    @property
    def enough(self) -> int:
        """Blocks to sum with: as many as run at once on a large GPU."""
        return ENOUGH if self.width < WIDEST else ENOUGH_WIDE

    def span(self, rows: int, blocks: int, most: int) -> int:
        """Rows of a block: so many that about `blocks` make up the grid, and at most `most` for each thread."""
        per_thread = blocks_for(rows * self.across, self.depth * blocks)
        return self.depth * max(AHEAD, min(per_thread, most))

    def way_back(self, rows: int, blocks: int, most: int) -> tuple[int, int]:
        """How a second pass goes back over the rows that `enough` blocks have summed: (stretch, groups).

        Each of those blocks has read a stretch of rows from its start to its end, all at the same time, so the ends are
        what is still in L2. The second pass has a block for each of them in grid x, and in grid z for each piece of a
        stretch, which start in this order: the last pieces of all stretches first. A block goes through its piece from
        the end too, in `groups` groups of AHEAD rows a thread; so many that about `blocks` make up the grid, and at
        most `most` rows for each thread.
        """
        stretch = self.span(rows, self.enough, rows)
        per_thread = blocks_for(rows * self.across, self.depth * blocks)
        return stretch, max(1, blocks_for(min(per_thread, most, stretch // self.depth), AHEAD))

    def grid_back(self, rows: int, stretch: int, groups: int) -> tuple[int, int, int]:
        """The grid of that second pass."""
        return blocks_for(rows, stretch), self.across, blocks_for(stretch, groups * AHEAD * self.depth)


def split(
    run: Runner, operation: str, technique: str | None, storage: Storage, x: Array, **others: Array | None
) -> Split:
    """The split for x (..., c): by 16 bytes of channels where they, x and `others` allow it, or as `technique` says.

    Raises:
        TechniqueError: technique is "vector", and they do not.
    """
    channels = int(x.shape[-1])
    vector = vectors(run, operation, technique, {"channels": channels}, storage.wide, x=x, **others)
    return Split(channels, storage.wide if vector else 1)


def require_channels(operation: str, x: Array, **arrays: Array | None) -> int:
    """The number of rows of x (..., c). `arrays` that are None are left out.

    Raises:
        ShapeError: x has no channels, or one of `arrays` not the shape (c,).
        TypeError: One of them is not float32.
    """
    if x.ndim < 1 or x.shape[-1] == 0:
        raise ShapeError(f"{operation}: x has shape {tuple(x.shape)}, expected (..., c) with at least one channel")
    for name, array in arrays.items():
        if array is not None:
            require_shape(operation, name, array, (int(x.shape[-1]),))
            require_float32(operation, **{name: array})
    return int(x.size // x.shape[-1])


def largest_power_below(depth: int) -> int:
    """The largest power of 2 below `depth`, 0 for 1: where a tree over `depth` rows starts."""
    return 1 << ((depth - 1).bit_length() - 1) if depth > 1 else 0


def loader(width: int) -> Any:
    """A device function: values[at : at + width] = x[i : i + width], in float32."""

    def load_one(x, i, values, at):
        values[at] = x[i]

    def load_four(x, i, values, at):
        a, b, c, d = load4(x, i)
        values[at] = a
        values[at + 1] = b
        values[at + 2] = c
        values[at + 3] = d

    def load_eight(x, i, values, at):
        values[at], values[at + 1], values[at + 2], values[at + 3] = load4(x, i)
        values[at + 4], values[at + 5], values[at + 6], values[at + 7] = load4(x, i + 4)

    return inlined({1: load_one, 4: load_four, 8: load_eight}[width])


def storer(width: int) -> Any:
    """A device function: y[i : i + width] = values[:width], in float32."""

    def store_one(y, i, values):
        y[i] = values[0]

    def store_four(y, i, values):
        store4(y, i, values[0], values[1], values[2], values[3])

    def store_eight(y, i, values):
        store4(y, i, values[0], values[1], values[2], values[3])
        store4(y, i + 4, values[4], values[5], values[6], values[7])

    return inlined({1: store_one, 4: store_four, 8: store_eight}[width])
