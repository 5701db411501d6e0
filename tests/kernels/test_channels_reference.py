import numpy as np
from numpy.testing import assert_array_equal

from kernels.channels import concat_reference, split_reference
from minidl.lab.gradcheck import check_gradient


def test_concat_and_split_are_inverse(rng) -> None:
    parts = [rng.standard_normal((2, 3, 5, c)) for c in (1, 4, 2)]
    whole = concat_reference(parts)
    assert_array_equal(whole[1, 2, 4], np.concatenate([part[1, 2, 4] for part in parts]))
    again = split_reference(whole, [1, 4, 2])
    for part, back in zip(parts, again, strict=True):
        assert_array_equal(part, back)
        assert back.flags.c_contiguous
    assert [part.shape for part in split_reference(np.zeros((0, 3)), [1, 2])] == [(0, 1), (0, 2)]


def test_gradients(rng) -> None:
    x, z = rng.standard_normal((2, 2, 3, 5, 4))
    whole = rng.standard_normal((2, 3, 5, 8))
    da, db = split_reference(whole, [4, 4])
    check_gradient("concat", lambda a, b: concat_reference([a, b]), {"a": x, "b": z}, {"a": da, "b": db}, whole)
