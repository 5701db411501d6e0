"""Fused convolutions of images in 16 bits give the bits of those composed of separate operations."""

import numpy as np
import pytest
from emulated import blank, placed
from numpy.testing import assert_allclose, assert_array_equal

from kernels.batch_statistics import BatchStatistics, GradientSums, Normalization, PendingGradient
from kernels.conv import (
    conv2d_normalized_backward_input,
    conv2d_normalized_backward_weight,
    conv2d_normalized_forward,
)
from kernels.conv.geometry import Geometry
from kernels.run_emulated import EmulatorRunner
from kernels.storage import BFLOAT16, FLOAT16, Storage


def vectors(c: int, count: int = 4) -> tuple[np.ndarray, ...]:
    return tuple(blank((c,)) for _ in range(count))


def normalization(rng: np.random.Generator, c: int) -> Normalization:
    var = rng.uniform(0.5, 1.5, c)
    numbers = rng.normal(0, 0.1, c), rng.normal(0, 1e-3, c), var, 1 / np.sqrt(var)
    statistics = BatchStatistics(*(placed(one) for one in numbers))
    return Normalization(statistics, placed(rng.uniform(0.5, 1.5, c)), placed(rng.normal(0, 0.3, c)), True)


@pytest.mark.parametrize(
    ("storage", "x_shape", "kernel", "c_out", "window"),
    [
        (BFLOAT16, (2, 5, 7, 8), (3, 3), 16, ((1, 1), (1, 1))),
        (FLOAT16, (1, 9, 9, 24), (2, 3), 40, ((3, 2), (1, 2))),  # phases
        (BFLOAT16, (1, 12, 12, 72), (1, 1), 136, ((1, 1), (0, 0))),  # two tiles each way
        (FLOAT16, (1, 4, 5, 64), (3, 3), 8, ((1, 1), (1, 1))),  # slices of taps
    ],
    ids=str,
)
def test_fused_equals_separate(rng, storage: Storage, x_shape, kernel, c_out: int, window) -> None:
    geometry = Geometry(*x_shape[1:], *kernel, c_out, *window[0], *window[1])
    c_in, y_shape = x_shape[3], (x_shape[0], geometry.ho, geometry.wo, c_out)
    x, dy, raw = (
        placed(storage.encode(rng.standard_normal(shape)), 0, storage.dtype) for shape in (x_shape, y_shape, y_shape)
    )
    w, before = placed(rng.normal(0, 0.1, (*kernel, c_in, c_out))), normalization(rng, c_in)
    known = GradientSums(None, None, placed(rng.normal(0, 0.1, c_out)), placed(rng.normal(0, 0.1, c_out)))
    pending = PendingGradient(dy, raw, normalization(rng, c_out), known)
    found = {}
    for technique in ("separate", "tensor_core"):
        run, way = EmulatorRunner(), {"technique": technique}
        y, dx = blank(y_shape, 0, storage.dtype), blank(x_shape, 0, storage.dtype)
        dw, out, sums = blank(w.shape), BatchStatistics(*vectors(c_out)), GradientSums(*vectors(c_in))
        conv2d_normalized_forward(run, x, before, w, y, *window, 1e-5, out, **way)
        conv2d_normalized_backward_weight(run, x, before, pending, dw, *window, **way)
        conv2d_normalized_backward_input(run, pending, w, dx, *window, x, before, sums, **way)
        found[technique] = y, dw, dx, out, sums
    for separate, fused in zip(found["separate"][:3], found["tensor_core"][:3], strict=True):
        assert_array_equal(fused, separate)
    right, got = found["separate"][4], found["tensor_core"][4]
    for one, other in zip(got, right, strict=True):  # of g as it is stored: no more apart than float32 sums are
        assert_allclose(one, other, rtol=1e-5, atol=1e-6 * np.abs(other).max())
    unit, spread = 2.0 ** -(storage.fraction + 1), np.abs(storage.decode(found["separate"][0])).max()
    right, got = found["separate"][3], found["tensor_core"][3]  # of y before and after it is rounded
    assert_allclose(got.shift + got.delta, right.shift + right.delta, atol=unit * spread)
    assert (np.abs(np.sqrt(got.var) - np.sqrt(right.var)) <= unit * spread).all()
