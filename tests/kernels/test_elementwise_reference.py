import numpy as np
from numpy.testing import assert_array_equal

from kernels.elementwise import add_reference
from minidl.lab.gradcheck import check_gradient

NAN, INF = np.nan, np.inf


def test_add() -> None:
    a, b = np.array([1.0, INF, INF, NAN]), np.array([2.0, 1.0, -INF, 1.0])
    assert_array_equal(add_reference(a, b), [3, INF, NAN, NAN])


def test_gradient(rng) -> None:
    x, z, dy = rng.standard_normal((3, 2, 3, 5, 4))
    check_gradient("add", add_reference, {"a": x, "b": z}, {"a": dy, "b": dy}, dy)
