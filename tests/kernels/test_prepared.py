"""What is kept of a launch's numbers: only what every launch with equal numbers has in common."""

import numpy as np
import pytest

from kernels.launch import Cost, Factory, Float, Floats, Int32, Int64, Launch, Promises
from kernels.prepared import KEPT, Prepared


def make() -> Launch:
    def work(x: Floats, n: Int64, scale: Float, count: Int32):
        pass

    return Launch(work, 32, lambda n: n, lambda n: Cost(4 * n, 0))


@pytest.fixture
def prepared() -> Prepared:
    return Prepared(Factory(make, Promises(("x",), (), (), (), 64, True, ()))())


def ready(prepared: Prepared, *numbers):
    """As a runner asks for it."""
    values = (None, *numbers)
    try:
        return prepared.known[prepared.key(values)]
    except (KeyError, TypeError):
        return prepared.work_out(values)


def test_numbers_are_worked_out_once(prepared) -> None:
    first = ready(prepared, 7, 0.1, -3)
    assert ready(prepared, 7, 0.1, -3) is first
    assert (first.grid, first.start) == ((7, 1, 1), None)
    assert [type(one) for one in first.arguments[1:]] == [np.int64, np.float32, np.int32]
    assert first.arguments == [None, 7, np.float32(0.1), -3]
    for other in ((8, 0.1, -3), (7, 0.2, -3), (7, 0.1, 3)):
        assert ready(prepared, *other) is not first


@pytest.mark.parametrize("order", [(0.0, -0.0), (-0.0, 0.0), (0, -0.0)])
def test_a_zero_keeps_its_sign(prepared, order) -> None:
    signs = [bool(np.signbit(ready(prepared, 7, scale, 1).arguments[2])) for scale in (*order, *order)]
    assert signs == [bool(np.signbit(scale)) for scale in (*order, *order)]


@pytest.mark.parametrize("scale", [np.array(0.5), np.float64(0.5), float("nan")])
def test_numbers_of_other_kinds_are_taken_and_not_kept_for_equal_ones(prepared, scale) -> None:
    kept = len(prepared.known)
    assert ready(prepared, 7, scale, 1).arguments[2].tobytes() == np.float32(scale).tobytes()
    assert len(prepared.known) - kept == (type(scale) is float)
    assert ready(prepared, 7, 0.5, 1).arguments[2] == np.float32(0.5)


def test_a_number_that_does_not_fit_is_refused_each_time(prepared) -> None:
    for _ in range(2):
        with pytest.raises(OverflowError):
            ready(prepared, 7, 0.5, 2**31)
        with pytest.raises(TypeError):
            ready(prepared, 7, 0.5, 1.5)
    assert not prepared.known


def test_no_more_sets_of_numbers_are_kept_than_that(prepared) -> None:
    for n in range(2 * KEPT + 3):
        assert ready(prepared, n, 0.5, 1).arguments[1] == n
        assert 0 < len(prepared.known) <= KEPT
