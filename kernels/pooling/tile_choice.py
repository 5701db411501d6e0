"""Whether pooling goes by tiles (tile.py): which windows can, and for which it is the best technique."""

from typing import NamedTuple

from kernels.arrays import wide as aligned
from kernels.choice import choose, vectors
from kernels.launch import Array, Runner
from kernels.pooling.geometry import Geometry
from kernels.pooling.tile import BLOCK, backward_tile, forward_tile

NAME = "tiled"
FEW = BLOCK // 4  # that a block makes, below which most of its threads would be idle
CELL = 9  # elements of a cell, at most: the channels of each are registers


class Suited(NamedTuple):
    """Whether technique "tiled" can take windows, and whether it is the best for them."""

    fits: bool
    why: str
    best: bool = False


def forward_option(geometry: Geometry, wide: int = 4) -> Suited:
    """Of these windows, with `wide` channels in 16 bytes."""
    if geometry.overlap == (1, 1):
        return Suited(False, "windows do not overlap: x passes once as it is")
    tile = forward_tile(geometry, wide)
    if geometry.c >= wide and tile is None:
        return Suited(False, "what one window needs exceeds a block's shared memory")
    return Suited(True, "windows overlap: what they share is read once", tile is not None and tile.items >= FEW)


def backward_option(geometry: Geometry, arrays: int, wide: int = 4) -> Suited:
    """The same, where so many arrays of the windows are read."""
    cell = geometry.stride[0] * geometry.stride[1]
    if cell > CELL:
        return Suited(False, f"{cell} elements from a window to the next, {NAME} takes at most {CELL}")
    tile = backward_tile(geometry, arrays, wide)
    if geometry.c >= wide and tile is None:
        return Suited(False, "windows that one element is in exceed a block's shared memory")
    why = "a window's elements are made together: what they share is read once"
    return Suited(True, why, tile is not None and tile.items >= FEW)


def choice(
    run: Runner,
    operation: str,
    technique: str | None,
    channels: int,
    suited: Suited,
    wide: int = 4,
    /,
    **arrays: Array,
) -> str:
    """The technique to take, as `kernels.choice.vectors` with a third, "tiled", for windows that it suits.

    Raises:
        TechniqueError: The technique cannot take these arrays.
        ValueError: There is no such technique.
    """
    in_groups = channels % wide == 0 and all(aligned(array) for array in arrays.values())
    if technique in ("scalar", "vector") or (technique is None and not (suited.best and in_groups)):
        vector = vectors(run, operation, technique, {"channels": channels}, wide, **arrays)
        return "vector" if vector else "scalar"
    own = NAME, suited.fits and in_groups, suited.why if in_groups else _why_not(channels, wide, arrays)
    return choose(run, operation, technique, (own, ("vector", in_groups, ""), ("scalar", True, "")), **arrays)


def _why_not(channels: int, wide: int, arrays: dict[str, Array]) -> str:
    if channels % wide:
        return f"{channels} channel{'s are' if channels > 1 else ' is'} no multiple of {wide}"
    off = [name for name, array in arrays.items() if not aligned(array)]
    return f"{' and '.join(off)} {'start' if off[1:] else 'starts'} at no multiple of 16 bytes"
