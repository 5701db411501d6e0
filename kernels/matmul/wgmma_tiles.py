"""Tiles of the matrix product by wgmma: their sizes, and which to take.

A block makes `groups` times 64 rows and `columns` columns of the result, each warpgroup 64 of the rows. A slab is 32
steps of depth of both factors, in lines of 128 bytes with wgmma's swizzle (kernels/wgmma.py).

How large a tile is. One product of 64 x n x 8 keeps the tensor cores of a multiprocessor of Hopper busy for n / 2
cycles, and reads 2,048 bytes of a and 32 n of b from shared memory, which gives 128 bytes a cycle: of these it takes
64 + 4096 / n. So tiles are as wide as the result allows, and n = 32 is for results that have no more columns. A slab of
128 x 128 is written in 256 cycles and multiplied in 512, during which its reads take 384: shared memory is what limits
it, to 80 % of the tensor cores' rate, by this count, which no GPU has confirmed yet. 256 columns, 128 sums a thread,
would be the way on, for one block a multiprocessor instead of two.
"""

from typing import NamedTuple

from kernels.bulk_copy import MBARRIER
from kernels.chip import Chip
from kernels.launch import blocks_for
from kernels.matmul.tensor_tiles import DEPTH
from kernels.wgmma import ATOM, CAPABILITY, GROUP, LINE, ROWS

NAME = "wgmma"  # of the technique


class WgmmaTile(NamedTuple):
    """What a block makes."""

    groups: int  # warpgroups
    columns: int
    stages: int  # slabs in shared memory: one that is multiplied, one before it, one that comes

    @property
    def rows(self) -> int:
        """Of the tile."""
        return self.groups * ROWS

    @property
    def threads(self) -> int:
        """In a block."""
        return self.groups * GROUP

    @property
    def stage_bytes(self) -> int:
        """Of both factors."""
        return (self.rows + self.columns) * LINE

    @property
    def shared_bytes(self) -> int:
        """Of all stages and their mbarriers, and to begin at a multiple of ATOM."""
        return ATOM + self.stages * (self.stage_bytes + MBARRIER)

    @property
    def slab_floats(self) -> int:
        """Of the second factor, which are brought at once."""
        return self.columns * DEPTH

    def cover(self, rows: int, columns: int) -> int:
        """Tiles that cover a result."""
        return blocks_for(rows, self.rows) * blocks_for(columns, self.columns)


LARGE = WgmmaTile(2, 128, 3)
WIDE = WgmmaTile(2, 64, 3)
NARROW = WgmmaTile(2, 32, 3)
LOW = WgmmaTile(1, 64, 3)
TILES = (LARGE, WIDE, NARROW, LOW)


def why_lacking(chip: Chip | None) -> str:
    """In words, why a GPU has no wgmma; empty where it has, or where nothing is known of it, as in the emulator."""
    if chip is None or chip.capability is None or chip.capability[0] == CAPABILITY:
        return ""
    return f"the GPU has compute capability {'.'.join(map(str, chip.capability))}, only {CAPABILITY}.0 has wgmma"


def tile_for(rows: int, columns: int) -> WgmmaTile:
    """The tile for a result of so many rows and columns."""
    if columns <= 32:
        return NARROW
    if rows <= ROWS:
        return LOW
    return WIDE if columns <= 64 else LARGE
