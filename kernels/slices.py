"""Where the slices of a product's depth write, and how they become the result.

Where a product has few tiles and much depth, the depth is cut into slices (kernels/matmul/tiles.py). Each writes a
result of its own into scratch memory, and kernels/columns.py adds these in a fixed order, in float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from kernels.columns import sum_columns
from kernels.launch import Array, Runner
from kernels.rounded import round_to
from kernels.storage import FLOAT32, storage_of


@contextmanager
def in_slices(run: Runner, slices: int, result: Array) -> Iterator[Array]:
    """What the `with` block's launch writes: `result` itself, or float32 (slices, ...), which then become it.

    A result in 16 bits is rounded once, from the sum of its slices.
    """
    if slices == 1:
        yield result
        return
    parts = run.empty((slices, *result.shape))
    yield parts
    if storage_of(result) is FLOAT32:
        sum_columns(run, parts, result)
        return
    total = run.empty(tuple(result.shape))
    sum_columns(run, parts, total)
    round_to(run, total, result)
