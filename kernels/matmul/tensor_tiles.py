"""Tiles of the matrix product on tensor cores that convolution and linear share: their sizes, and which to take.

As in kernels/matmul/tiles.py a block makes one tile of the result and walks along the depth, slab by slab:

    tensor_copies.py     what brings a slab from global to shared memory
    tensor_fragments.py  what a warp takes of it for its products, and the product: all that depends on the element
    tensor_product.py    the loop over slabs
    tensor_epilogue.py   what becomes of the sums

A warp owns `warp_rows` x `warp_columns` of the tile, as products m16n8k8 of TF32 with float32 sums in registers.

Factors stored in 16 bits (kernels/storage.py) are multiplied as they are, by m16n8k16. A slab then is 64 steps deep, in
lines of the same 128 bytes; a chunk is 8 elements.

How large a tile is. Each warp reads what it needs of a slab and rounds it: for a product m16n8k8, a warp of 64x64 takes
1 pass over the banks and 2 instructions to round, one of 64x32 1.5 and 3, one of 32x32 2 and 4. So warps are as large
as the result allows. LARGE is for results wide and tall: four warps of 64x64, 128 sums a thread and up to 248
registers, two blocks on a multiprocessor. WIDE is for 64 channels; NARROW for 32 or fewer; MEDIUM and SMALL for 64 rows
or fewer. Where tiles are too few to fill a GPU the depth is cut into slices, as in kernels/matmul/tiles.py.

Accuracy. A factor loses up to 2^-11 of itself. The tensor core cuts sums off rather than rounding them (kernels/
emulator/tensor.py): each product m16n8k8 in a chain loses up to 2^-23 of the running sum, half of that on average and
always downwards. DEEPEST ends a chain while this is, on average, 2^-14 of the sum: what the factors lost is more.

Source   NVIDIA, "CUTLASS", documentation: efficient GEMM in CUDA (hierarchy of tiles, swizzled shared memory, stages).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from kernels.chip import HOPPER
from kernels.choice import Option
from kernels.device import WARP, inlined
from kernels.launch import blocks_for
from kernels.matmul import tiles
from kernels.storage import FLOAT32, Storage

NAME = "tensor_core"  # of the technique
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
DEPTH = 32  # steps of a slab of floats: 128 bytes of a line
LINE = 128  # bytes
CHUNK = 4  # floats in 16 bytes
PADDING = 8  # floats after each step of a slab that is contiguous across the depth
EIGHT = 8  # chunks of 16 bytes that the banks hold
RESERVED = 1 << 10  # bytes of shared memory that CUDA takes of each block
FAR = 1 << 30  # a coordinate that is inside of nothing
ENOUGH = 264  # blocks: two on each multiprocessor of an H100 or H200
LEAST = 256  # steps of depth below which a slice is not worth its sum
DEEPEST = 8192  # steps of depth in one sum, see above


class TensorTile(NamedTuple):
    """What a block makes, and what each of its warps does: 64x64, 64x32, 32x32 or 32x16 of it."""

    rows: int
    columns: int
    warp_rows: int
    warp_columns: int
    stages: int

    @property
    def threads(self) -> int:
        """In a block."""
        return self.rows // self.warp_rows * (self.columns // self.warp_columns) * WARP

    def cover(self, rows: int, columns: int) -> int:
        """Tiles that cover a result."""
        return blocks_for(rows, self.rows) * blocks_for(columns, self.columns)

    def shared_bytes(
        self,
        a_along_depth: bool,
        b_along_depth: bool,
        a_tensors: int = 1,
        b_tensors: int = 1,
        storage: Storage = FLOAT32,
    ) -> int:
        """Of all stages, where so many tensors arrive for each factor."""
        a = a_tensors * slab_floats(self.rows, a_along_depth, storage)
        return 4 * self.stages * (a + b_tensors * slab_floats(self.columns, b_along_depth, storage))

    def with_room(
        self,
        a_along_depth: bool,
        b_along_depth: bool,
        a_tensors: int = 1,
        b_tensors: int = 1,
        storage: Storage = FLOAT32,
    ) -> "TensorTile":
        """This tile with as many stages, from two to its own, as leave room for two blocks on a multiprocessor."""
        tile, most, sides = self, HOPPER.shared_bytes // 2 - RESERVED, (a_along_depth, b_along_depth)
        while tile.stages > 2 and tile.shared_bytes(*sides, a_tensors, b_tensors, storage) > most:
            tile = tile._replace(stages=tile.stages - 1)
        return tile


LARGE = TensorTile(128, 128, 64, 64, 3)
WIDE = TensorTile(128, 64, 64, 32, 3)
MEDIUM = TensorTile(64, 64, 32, 32, 3)
NARROW = TensorTile(128, 32, 32, 32, 3)
SMALL = TensorTile(64, 32, 32, 16, 3)
TILES = (LARGE, WIDE, MEDIUM, NARROW, SMALL)


def depth_of(storage: Storage) -> int:
    """Steps of a slab: 32 floats, or 64 elements of 16 bits."""
    return LINE // storage.bytes


def slab_floats(lines: int, along_depth: bool, storage: Storage = FLOAT32) -> int:
    """Of one stage of a factor, in units of 4 bytes."""
    padded = not along_depth and storage.wide == CHUNK
    return DEPTH * (lines + PADDING) if padded else lines * DEPTH


def narrow_chunk(lines: int) -> Callable[..., Any]:
    """Make a device function (step, chunk) -> the chunk of a slab of 16-bit elements across the depth that holds it.

    Chunk j of a step holds its lines 8 j on. Chunks are permuted so that eight steps' chunks j lie in different banks,
    and so do eight chunks that follow one another: see kernels/matmul/tensor_copies.py.
    """
    across = lines // EIGHT
    ring = min(across, EIGHT)
    fold = EIGHT // ring

    @inlined
    def place(step, chunk):
        return step * across + (chunk ^ step // fold % ring)

    return place


def tile_for(rows: int, columns: int) -> TensorTile:
    """The tile for a result of so many rows and columns."""
    if columns <= 32:
        return NARROW if rows > 64 else SMALL
    if rows <= 64:
        return MEDIUM
    return WIDE if columns <= 64 else LARGE


def place_of(tile: TensorTile) -> Callable[..., Any]:
    """As `tiles.place_of`: make a device function that gives a block's part, first row and first column."""
    return tiles.place_of(tiles.Tile(tile.rows, tile.columns, DEPTH, 1, 1))


def span_of(depth: int, tiles: int, slab: int = DEPTH) -> int:
    """Steps of depth for one slice, a multiple of a slab's and no more than DEEPEST: slices enough to fill a GPU."""
    slices = max(1, min(ENOUGH // max(1, tiles), depth // LEAST))
    return min(DEEPEST, max(1, blocks_for(depth, slices * slab)) * slab)


def in_order(precision: str, tensor_core: Option, exact: Option) -> tuple[Option, Option]:
    """Both, the one first that this precision asks for: the exact one for "fp32".

    "bf16" and "fp16" say how activations of images are stored; what is float32 is then computed as in "tf32".

    Raises:
        ValueError: It is none of PRECISIONS.
    """
    if precision not in PRECISIONS:
        known = f"{', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}"
        raise ValueError(f"precision '{precision}' is given, expected {known}")
    return (exact, tensor_core) if precision == "fp32" else (tensor_core, exact)
