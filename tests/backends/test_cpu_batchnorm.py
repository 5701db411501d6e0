"""Batch normalization from end to end in one call: the bits of its steps one by one, however many threads."""

import numpy as np
import pytest

from kernels.batch_statistics import BatchStatistics, GradientSums, Normalization, PendingGradient
from minidl.backends.cpu import CpuBackend
from minidl.backends.cpu.batchnorm_frame import AROUND, SCATTERED, place, plan, work
from minidl.backends.cpu.batchnorm_vectors import work_address
from minidl.backends.cpu.passes import NORMALIZE, NORMALIZE_AROUND, SUM_SHIFTED

Array = np.ndarray
EPS = 1e-5
SHAPES = [
    *((2, 1, 1, 3), (1, 1, 2, 1), (5, 3, 3, 17), (7, 9, 9, 33), (9, 33, 31, 64), (2, 20, 20, 130), (4, 14, 14, 1024)),
    (40, 8, 8, 256),  # large enough to be fetched in order
    (70, 12, 12, 64),  # large enough to be written around the caches
]
assert SCATTERED <= 4 * 40 * 8 * 8 * 256
assert AROUND <= 4 * 70 * 12 * 12 * 64


def empty_statistics(channels: int) -> BatchStatistics:
    return BatchStatistics(*(np.full(channels, -7, np.float32) for _ in range(4)))


def of(backend: CpuBackend, values: Array) -> Array:
    made = backend.empty(values.shape)
    made[...] = values
    return made


def in_steps(backend: CpuBackend, x: Array, dy: Array, gamma: Array, beta: Array, relu: bool) -> list[Array]:
    found, (dgamma, dbeta, mean_g, slope) = empty_statistics(len(gamma)), empty_statistics(len(gamma))
    y, dx = backend.empty(x.shape), backend.empty(x.shape)
    backend.batchnorm_statistics(x, EPS, found)
    backend.batchnorm_apply(x, found, gamma, beta, y, relu)
    normalization, sums = Normalization(found, gamma, beta, relu), GradientSums(dgamma, dbeta, mean_g, slope)
    backend.batchnorm_gradient_sums(x, dy, normalization, sums)
    backend.batchnorm_pending_gradient(PendingGradient(dy, x, normalization, sums), dx)
    return [*found, y, dgamma, dbeta, dx]


def at_once(backend: CpuBackend, x: Array, dy: Array, gamma: Array, beta: Array, relu: bool) -> list[Array]:
    found, (dgamma, dbeta, *_) = empty_statistics(len(gamma)), empty_statistics(len(gamma))
    y, dx = backend.empty(x.shape), backend.empty(x.shape)
    backend.batchnorm_forward(x, gamma, beta, EPS, found, y, relu)
    backend.batchnorm_forward(dy, beta, gamma, EPS, empty_statistics(len(gamma)), dx, relu)  # leaves nothing behind
    backend.batchnorm_backward(x, dy, found, gamma, beta, dx, dgamma, dbeta, training=True, relu=relu)
    return [*found, y, dgamma, dbeta, dx]


@pytest.mark.parametrize("kind", ["ordinary", "outliers", "not finite"])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_call_has_the_bits_of_the_steps(shape: tuple[int, ...], kind: str) -> None:
    rng = np.random.default_rng(1)
    one = CpuBackend(1)
    x, dy = (of(one, rng.standard_normal(shape) + mean) for mean in (5, 0))
    if kind == "outliers":
        x.flat[x.size // 3], x.flat[x.size // 2] = 1e8, -3e7  # their chunks are summed again
    elif kind == "not finite":
        x.flat[x.size // 3], x.flat[0] = np.nan, np.inf
    gamma, beta = (rng.standard_normal(shape[-1]).astype(np.float32) for _ in range(2))
    for relu in (False, True):
        wanted = in_steps(one, x, dy, gamma, beta, relu)
        for threads in (1, 2, 3, 5):
            for got, want in zip(at_once(CpuBackend(threads), x, dy, gamma, beta, relu), wanted, strict=True):
                np.testing.assert_array_equal(got, want)


def test_without_scale_offset_and_gradients_of_them() -> None:
    rng, backend = np.random.default_rng(2), CpuBackend(2)
    x, dy = (rng.standard_normal((6, 7, 7, 24)).astype(np.float32) for _ in range(2))
    ones, zeros = np.ones(24, np.float32), np.zeros(24, np.float32)
    found, y, dx = empty_statistics(24), np.empty_like(x), np.empty_like(x)
    backend.batchnorm_forward(x, None, None, EPS, found, y, True)
    backend.batchnorm_backward(x, dy, found, None, None, dx, None, None, training=True, relu=True)
    wanted = at_once(backend, x, dy, ones, zeros, True)
    for got, want in zip((*found, y, dx), (*wanted[:5], wanted[7]), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("offset", [1, 3, 16])
def test_a_large_result_may_begin_anywhere(offset: int) -> None:
    """Around the caches only where whole vectors lie on their boundaries; nothing beside it is written."""
    rng, backend = np.random.default_rng(3), CpuBackend(2)
    shape = (70, 12, 12, 64)
    x = of(backend, rng.standard_normal(shape))
    memory = backend.empty((x.size + 64,))
    memory[:] = -5
    y, wanted = memory[offset : offset + x.size].reshape(shape), backend.empty(shape)
    for into in (y, wanted):
        backend.batchnorm_forward(x, None, None, EPS, empty_statistics(64), into, False)
    np.testing.assert_array_equal(y, wanted)
    assert (memory[:offset] == -5).all()
    assert (memory[offset + x.size :] == -5).all()


def test_a_thread_that_comes_late_finds_nothing_to_do() -> None:
    x = np.random.default_rng(4).standard_normal(600 * 8).astype(np.float32)
    made = plan(x.size, 8, EPS, (SUM_SHIFTED, NORMALIZE, NORMALIZE_AROUND))
    frame, scratch, y = made.frame.copy(), np.empty(made.scratch, np.float32), np.empty_like(x)
    found = empty_statistics(8)
    place(frame, x, x, x, x, y, made.ones, made.zeros, *found, scratch, scratch, scratch)
    work(0, 1, work_address(True), frame)
    np.testing.assert_allclose(y.reshape(-1, 8).std(axis=0), 1, rtol=1e-3)
    y[:] = found.shift[:] = -1
    work(0, 1, work_address(True), frame)
    assert (y == -1).all()
    assert (found.shift == -1).all()


def test_what_is_not_contiguous_is_refused_and_not_misread() -> None:
    backend, x = CpuBackend(1), np.ones((4, 2, 2, 3), np.float32)
    gamma = np.ones(6, np.float32)[::2]
    with pytest.raises(Exception, match="not contiguous"):
        backend.batchnorm_forward(x, gamma, None, EPS, empty_statistics(3), np.empty_like(x), False)


def test_an_empty_batch_writes_nothing_and_ends() -> None:
    backend, x = CpuBackend(2), np.empty((0, 4, 4, 3), np.float32)
    with np.errstate(all="ignore"):
        backend.batchnorm_forward(x, None, None, EPS, empty_statistics(3), x.copy(), True)
    sums = np.ones(3, np.float32), np.ones(3, np.float32)
    backend.batchnorm_backward(x, x, empty_statistics(3), None, None, x.copy(), *sums, training=True, relu=True)
    assert not sums[0].any()
    assert not sums[1].any()
