"""Lines of pooling."""

import numpy as np

from kernels import pooling
from kernels.run_emulated import EmulatorRunner
from kernels.storage import BFLOAT16, FLOAT32, Storage
from minidl.lab.access_lines.line import Call, Line, ones

OVERLAP = "windows overlap: what they share is read once for each, here by a technique that others are better than"
SHARED_DY = "a pixel's dy, and the maximum's place, is read once for each pixel of its window; the same"
HALO = "what a tile needs beyond its edge is read again"


def _pool(
    x: tuple[int, ...],
    kernel: int,
    stride: int,
    padding: int,
    technique: str | None = None,
    storage: Storage = FLOAT32,
) -> Call:
    """Of the maximum and of the average; backward, and forward too where windows overlap or no technique is named."""
    down, across = ((size + 2 * padding - kernel) // stride + 1 for size in x[1:3])
    window = (kernel, kernel), (stride, stride), (padding, padding)

    def call(run: EmulatorRunner) -> None:
        image, y = ones(*x, dtype=storage.dtype), ones(x[0], down, across, x[3], dtype=storage.dtype)
        place = ones(*y.shape, dtype=np.int32)
        pooling.max_pool2d_backward(run, y, place, image, *window, technique=technique)
        pooling.avg_pool2d_backward(run, y, image, *window, True, technique=technique)
        if kernel > stride or technique is None:
            pooling.max_pool2d_forward(run, image, y, place, *window, technique=technique)
            pooling.avg_pool2d_forward(run, image, y, *window, True, technique=technique)

    return call


def _global_pool(run: EmulatorRunner) -> None:
    pooling.global_avg_pool2d_forward(run, ones(4, 8, 8, 64), ones(4, 64))
    pooling.global_avg_pool2d_backward(run, ones(4, 64), ones(4, 8, 8, 64))


def _global_pool_stored(run: EmulatorRunner) -> None:
    image = ones(4, 8, 8, 64, dtype=BFLOAT16.dtype)
    pooling.global_avg_pool2d_forward(run, image, ones(4, 64))
    pooling.global_avg_pool2d_backward(run, ones(4, 64), image)


FOUR, LARGE = (4, 16, 16, 32), (1, 32, 32, 64)
HALVING, OVERLAPPING, TILES_OF_IMAGE = _pool(FOUR, 2, 2, 0), _pool(FOUR, 3, 2, 1), _pool(LARGE, 3, 2, 1)
BY_VECTORS = _pool(FOUR, 3, 2, 1, "vector")
POOLS = tuple(f"{kind}_pool2d_{direction}" for kind in ("max", "avg") for direction in ("forward", "backward"))
OF_16 = (4, 16, 16, 64)
HALVING_16 = _pool(OF_16, 2, 2, 0, storage=BFLOAT16)
OVERLAPPING_16 = _pool(OF_16, 3, 2, 1, storage=BFLOAT16)
EIGHT_MEANS = "eight float32 of dy are two loads of a thread, each of half of its sector; a cache joins them"
LINES = (
    *(
        Line(f"{name}_{'vector' if name.endswith('forward') else 'tiled'}", "4x16x16x32, 2x2", HALVING)
        for name in POOLS
    ),
    *(Line(f"{name}_tiled", "4x16x16x32, 3x3, stride 2", OVERLAPPING) for name in POOLS),
    *(Line(f"{name}_tiled", "1x32x32x64, 3x3, stride 2", TILES_OF_IMAGE, 1.1, HALO) for name in POOLS),
    Line("max_pool2d_forward_vector", "4x16x16x32, 3x3, stride 2", BY_VECTORS, 1.8, OVERLAP),
    Line("max_pool2d_backward_vector", "4x16x16x32, 3x3, stride 2", BY_VECTORS, 4.2, SHARED_DY),
    Line("avg_pool2d_forward_vector", "4x16x16x32, 3x3, stride 2", BY_VECTORS, 2.0, OVERLAP),
    Line("avg_pool2d_backward_vector", "4x16x16x32, 3x3, stride 2", BY_VECTORS, 2.7, SHARED_DY),
    Line("global_avg_pool2d_forward_shared", "4x8x8x64", _global_pool),
    Line("global_avg_pool2d_backward_vector", "4x8x8x64", _global_pool),
    *(
        Line(f"{name}_{'vector' if name.endswith('forward') else 'tiled'}", "4x16x16x64, 2x2, bfloat16", HALVING_16)
        for name in POOLS
    ),
    *(Line(f"{name}_tiled", "4x16x16x64, 3x3, stride 2, bfloat16", OVERLAPPING_16) for name in POOLS),
    Line("global_avg_pool2d_forward_shared", "4x8x8x64, bfloat16", _global_pool_stored),
    Line("global_avg_pool2d_backward_vector", "4x8x8x64, bfloat16", _global_pool_stored, 1.1, EIGHT_MEANS),
)
