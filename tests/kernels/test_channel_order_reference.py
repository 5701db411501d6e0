import numpy as np
from numpy.testing import assert_array_equal

from kernels.channel_order import channels_first_reference, channels_last_reference
from minidl.lab.gradcheck import check_gradient


def test_channels_first_is_pytorchs_flattening(torch, rng) -> None:
    x = rng.standard_normal((2, 3, 5, 7))
    y = channels_first_reference(x)
    assert_array_equal(y, torch.tensor(x).permute(0, 3, 1, 2).flatten(1))
    assert_array_equal(channels_last_reference(y, x.shape), x)
    assert channels_last_reference(y, x.shape).flags.c_contiguous


def test_channels_first_by_hand() -> None:
    x = np.arange(12).reshape(1, 2, 3, 2)
    assert_array_equal(channels_first_reference(x), [[0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11]])
    assert channels_first_reference(np.zeros((0, 2, 3, 2))).shape == (0, 12)
    assert channels_last_reference(np.zeros((0, 12)), (0, 2, 3, 2)).shape == (0, 2, 3, 2)


def test_gradient(rng) -> None:
    x, flat = rng.standard_normal((2, 3, 5, 4)), rng.standard_normal((2, 60))
    dx = channels_last_reference(flat, x.shape)
    check_gradient("channels_first", channels_first_reference, {"x": x}, {"x": dx}, flat)
