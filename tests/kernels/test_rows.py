"""Rows times a number each: the definition, and the kernel in the emulator."""

import numpy as np
import pytest
from emulated import RUN, Recorder, blank, placed
from numba import int64, uint32
from numpy.testing import assert_array_equal

from kernels.errors import ShapeError
from kernels.rows import scale_rows, scale_rows_elements, scale_rows_reference


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (5, 1), (1, 7), (127, 10), (2, 259)], ids=str)
def test_each_row_has_its_factor(rng, shape: tuple[int, int], offset: int) -> None:
    x, factors = rng.standard_normal(shape).astype(np.float32), rng.standard_normal(shape[0]).astype(np.float32)
    y = blank(shape, offset)
    scale_rows(RUN, placed(x, offset), placed(factors, offset), y)
    assert_array_equal(y, x * factors[:, None])  # one rounding: the same bits
    assert_array_equal(scale_rows_reference(x, factors), y)


@pytest.mark.parametrize("index", [uint32, int64])
def test_both_index_types(rng, index) -> None:
    x, factors, y = placed(rng.standard_normal((9, 70))), placed(rng.standard_normal(9)), blank((9, 70))
    RUN(scale_rows_elements(index, 70), x, factors, y, x.size)
    assert_array_equal(y, x * factors[:, None])


def test_indices_are_32_bits_wide_where_that_is_enough() -> None:
    recorder = Recorder()
    for rows in (2**21, 2**21 + 1):  # memory that is never touched costs nothing
        scale_rows(
            recorder, np.empty((rows, 1024), np.float32), np.empty(rows, np.float32), np.empty((rows, 1024), np.float32)
        )
    assert [kernel.arguments[0] for kernel in recorder.kernels] == [uint32, int64]


def test_shapes_that_do_not_fit() -> None:
    x, factors = blank((4, 3)), blank((4,))
    for arguments, message in (
        ((blank((4,)), factors, x), r"x has shape \(4,\), expected \(n, c\)"),
        ((x, blank((3,)), x), r"factors has shape \(3,\), expected \(4,\)"),
        ((x, factors, blank((3, 3))), r"y has shape \(3, 3\), expected \(4, 3\) as x has"),
    ):
        with pytest.raises(ShapeError, match=f"scale_rows: {message}"):
            scale_rows(RUN, *arguments)
