"""Max pooling's gradient on the CPU: nothing beside it is written."""

import numpy as np
import pytest

from minidl.backends import get_backend


@pytest.mark.parametrize(("kernel", "stride"), [(1, 2), (1, 3), (2, 2), (2, 3), (2, 4), (3, 3), (3, 4)])
@pytest.mark.parametrize("size", [7, 8, 9, 10])
def test_windows_apart_leave_what_lies_behind_alone(kernel: int, stride: int, size: int) -> None:
    backend, images, channels = get_backend("cpu", 2), 3, 2
    out = (size - kernel) // stride + 1
    x = np.random.default_rng(0).standard_normal((images, size, size, channels)).astype(np.float32)
    y = backend.zeros((images, out, out, channels))
    index = backend.zeros(y.shape, np.int32)
    backend.max_pool2d_forward(x, y, index, (kernel, kernel), (stride, stride), (0, 0))
    memory = np.full(x.size + 100 * channels, 7, np.float32)
    dx = memory[: x.size].reshape(x.shape)
    dy = np.arange(1, y.size + 1, dtype=np.float32).reshape(y.shape)
    backend.max_pool2d_backward(dy, index, dx, (kernel, kernel), (stride, stride), (0, 0))
    assert (memory[x.size :] == 7).all()
    expected = np.zeros((images, size * size, channels), np.float32)
    places = index.reshape(images, -1, channels).astype(np.int64)
    np.put_along_axis(expected, places, dy.reshape(places.shape), axis=1)
    np.testing.assert_array_equal(dx.reshape(expected.shape), expected)
