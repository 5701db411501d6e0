"""Softmax and its logarithm as kernels, in the emulator: what the checks of whole operations do not look at."""

import numpy as np
import pytest
from emulated import RUN, Recorder, blank, figures, launched, placed
from numba import int64, uint32
from numpy.testing import assert_allclose, assert_array_equal

from kernels import softmax
from kernels.errors import ShapeError
from minidl.lab.budget import compare
from minidl.lab.operations import softmax as bounds

NAN, INF = np.nan, np.inf
SHAPES = [(1, 1), (2, 31), (9, 32), (3, 33), (17, 2), (2, 3, 5), (6,), (1, 1025)]


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("kind", "forward_bounds", "backward_bounds"),
    [("softmax", bounds.forward, bounds.backward), ("log_softmax", bounds.log_forward, bounds.log_backward)],
)
def test_within_the_error_budget(rng, kind: str, forward_bounds, backward_bounds, shape, offset: int) -> None:
    x, dy = (4 * rng.standard_normal(shape)).astype(np.float32), rng.standard_normal(shape).astype(np.float32)
    y, dx = blank(shape, offset), blank(shape, offset)
    getattr(softmax, f"{kind}_forward")(RUN, placed(x, offset), y)
    found = compare(y, getattr(softmax, f"{kind}_forward_reference")(x.astype(np.float64)), forward_bounds(x)["y"])
    assert found.passed, found
    getattr(softmax, f"{kind}_backward")(RUN, placed(dy, offset), y, dx)
    expected = getattr(softmax, f"{kind}_backward_reference")(dy.astype(np.float64), y.astype(np.float64))
    found = compare(dx, expected, backward_bounds(dy, y)["dx"])
    assert found.passed, found


@pytest.mark.parametrize("kind", ["softmax", "log_softmax"])
def test_hostile_rows_follow_the_reference(rng, kind: str) -> None:
    x = placed([[-INF, 1, 2], [-INF, -INF, 2], [-INF] * 3, [INF, 0, 0], [NAN, 0, 0], [0, NAN, 1], [3e38, -3e38, 0]])
    y, dx, dy = blank(x.shape), blank(x.shape), placed(rng.standard_normal(x.shape))
    getattr(softmax, f"{kind}_forward")(RUN, x, y)
    assert_allclose(y, getattr(softmax, f"{kind}_forward_reference")(x), rtol=1e-6)
    dy[0, 1], dy[1, 2] = NAN, INF
    getattr(softmax, f"{kind}_backward")(RUN, dy, y, dx)
    assert_allclose(dx, getattr(softmax, f"{kind}_backward_reference")(dy, y), rtol=1e-6, atol=1e-7)


def test_huge_logits_are_exact() -> None:
    x = placed([[1e4, -1e4], [1e30, 1e30]])
    y = blank(x.shape)
    softmax.softmax_forward(RUN, x, y)
    assert_array_equal(y, [[1, 0], [0.5, 0.5]])
    softmax.log_softmax_forward(RUN, x, y)
    assert_array_equal(y, np.array([[0, -2e4], [-np.log(2)] * 2], np.float32))


def test_a_long_row_loses_no_accuracy() -> None:
    """Added one by one in float32, 2000 terms a lane would be off by parts in 100,000."""
    dy, y, dx = placed(np.full((1, 65537), 0.1)), placed(np.full((1, 65537), -np.log(65537))), blank((1, 65537))
    softmax.log_softmax_backward(RUN, dy, y, dx)
    expected = softmax.log_softmax_backward_reference(dy.astype(np.float64), y.astype(np.float64))
    assert np.abs(dx - expected).max() < 1e-7


@pytest.mark.parametrize("log", [False, True])
def test_both_index_types_give_the_same_bits(rng, log: bool) -> None:
    x, dy = placed(rng.standard_normal((9, 37))), placed(rng.standard_normal((9, 37)))
    found = []
    for index in (uint32, int64):
        y, dx = blank(x.shape), blank(x.shape)
        RUN(softmax.softmax_forward_rows(index, 37, log), x, y, 9)
        RUN(softmax.softmax_backward_rows(index, 37, log), dy, y, dx, 9)
        found.append((y.tobytes(), dx.tobytes()))
    assert found[0] == found[1]


def test_indices_are_32_bits_wide_where_that_is_enough() -> None:
    recorder = Recorder()
    for rows in (2**21, 2**21 + 1):  # memory that is never touched costs nothing
        x = np.empty((rows, 1024), np.float32)
        softmax.softmax_forward(recorder, x, x)
        softmax.log_softmax_backward(recorder, x, x, x)
    assert [kernel.arguments[0] for kernel in recorder.kernels] == [uint32, uint32, int64, int64]


def test_the_lanes_of_a_warp_read_neighbours() -> None:
    for columns, looks in ((128, 1), (softmax.HELD, 1), (1024, 3)):  # of a long row, two are at what the cache has
        x, y = blank((16, columns)), blank((16, columns))
        found = figures(softmax.softmax_forward, x, y)
        assert found.store_sectors == y.nbytes // 32
        assert found.load_sectors == looks * x.nbytes // 32
        assert found.load_requests == looks * x.size // 32
        found = figures(softmax.log_softmax_backward, x, x, y)
        assert found.load_sectors == (2 if looks == 1 else 3) * x.nbytes // 32  # y only where it is needed


def test_nothing_is_launched_for_nothing() -> None:
    for shape in ((0, 3), (3, 0)):
        assert not launched(softmax.softmax_forward, blank(shape), blank(shape))
        assert not launched(softmax.log_softmax_backward, blank(shape), blank(shape), blank(shape))


def test_shapes_that_do_not_fit() -> None:
    x, other = blank((4, 3)), blank((3, 4))
    for name in ("softmax", "log_softmax"):
        forward, backward = getattr(softmax, f"{name}_forward"), getattr(softmax, f"{name}_backward")
        with pytest.raises(ShapeError, match=rf"^{name}_forward: y has shape \(3, 4\), expected \(4, 3\) as x has"):
            forward(RUN, x, other)
        with pytest.raises(ShapeError, match=rf"^{name}_backward: dx has shape \(3, 4\), expected \(4, 3\) as dy has"):
            backward(RUN, x, x, other)
        with pytest.raises(ShapeError, match=rf"^{name}_forward: x has shape \(\), expected \(..., c\)"):
            forward(RUN, blank(()), blank(()))
