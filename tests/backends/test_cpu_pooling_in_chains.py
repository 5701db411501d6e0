"""Max pooling at the end of a chain on the CPU: the bits of its parts, whatever the windows, channels and numbers."""

from typing import Any, NamedTuple

import numpy as np
import pytest

from kernels.batch_statistics import BatchStatistics, GradientSums, Normalization
from kernels.window import pooled_size
from minidl.backends.cpu import CpuBackend
from minidl.backends.cpu.machine_code import LANES
from minidl.backends.cpu.threads import Workers

CHANNELS = sorted({1, 3, LANES - 1, LANES, 2 * LANES, 2 * LANES + 1, 3 * LANES, 5 * LANES + 2})
HOSTILE = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 2.0**-126, 1e30, -1e30], np.float32)
GUARD = np.float32(-12345)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


class Backwards(Workers):
    """Each piece by itself, the last one first."""

    def run(self, function: Any, count: int, grain: int, *args: Any, elements: int | None = None) -> None:
        for first in reversed(range(0, count, grain)):
            function(first, min(first + grain, count), *args)


class Window(NamedTuple):
    """Of images of that size."""

    image: tuple[int, int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False

    @property
    def pooled(self) -> tuple[int, int, int]:
        ho, wo = (pooled_size(*axis, self.ceil_mode) for axis in zip(self.image[1:], *self[1:5], strict=True))
        return self.image[0], ho, wo


APART = [
    Window((3, 6, 8), (2, 2), (2, 2)),
    Window((2, 7, 9), (2, 2), (2, 2)),  # a line and a column that are in no window
    Window((2, 11, 11), (2, 2), (3, 3)),  # some between windows; the last one ends with the image
    Window((2, 10, 12), (3, 2), (4, 5)),
    Window((2, 9, 6), (1, 3), (2, 3)),
    Window((1, 3, 301), (2, 2), (2, 2)),  # a line is several chunks
    Window((1, 2, 300), (2, 130), (2, 150)),  # windows larger than a chunk
    Window((2, 1, 4), (1, 1), (1, 1)),
]
OTHER = [
    Window((3, 7, 9), (3, 3), (2, 2), (1, 1)),
    Window((2, 9, 11), (3, 2), (1, 2), (1, 1), (2, 3)),
    Window((2, 7, 9), (2, 2), (2, 2), ceil_mode=True),
    Window((1, 6, 6), (4, 4), (1, 3), (2, 2)),
    Window((2, 2, 3), (3, 5), (2, 3), (0, 2), ceil_mode=True),
    Window((1, 9, 3), (5, 5), (1, 1), (2, 2)),
]


def guarded(shape: tuple[int, ...], dtype: Any = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """An array, and the memory around it."""
    size = int(np.prod(shape))
    memory = np.full(size + 80, GUARD).view(dtype)
    return memory[40 : 40 + size].reshape(shape), memory


def is_whole(memory: np.ndarray) -> bool:
    around = memory.view(np.float32)
    return bool((around[:40] == GUARD).all() and (around[-40:] == GUARD).all())


def numbers(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    if kind == "whole":
        return rng.integers(-2, 3, shape).astype(np.float32)  # full of ties
    x = rng.standard_normal(shape).astype(np.float32)
    if kind == "hostile":
        some = rng.random(shape) < 0.1
        x[some] = rng.choice(HOSTILE, int(some.sum()))
    return x


def normalization(rng: np.random.Generator, c: int, relu: bool) -> Normalization:
    shift, delta, inv_std, gamma, beta = (rng.standard_normal(c).astype(np.float32) for _ in range(5))
    statistics = BatchStatistics(shift, delta / 1000, np.ones(c, np.float32), np.abs(inv_std))
    return Normalization(statistics, gamma, beta, relu)


@pytest.mark.parametrize("kind", ["ordinary", "whole", "hostile"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("window", [*APART, *OTHER], ids=str)
def test_it_has_the_bits_of_its_parts(window: Window, relu: bool, kind: str, rng) -> None:
    cpu = CpuBackend(1)
    for c in CHANNELS:
        shape, pooled = (*window.image, c), (*window.pooled, c)
        x, dy, before = numbers(rng, kind, shape), numbers(rng, kind, pooled), normalization(rng, c, relu)
        activation, right, place = np.empty(shape, np.float32), np.empty(pooled, np.float32), np.empty(pooled, np.int32)
        cpu.batchnorm_apply(x, before.statistics, before.gamma, before.beta, activation, relu)
        cpu.max_pool2d_forward(activation, right, place, *window[1:])
        (y, y_memory), (index, index_memory) = guarded(pooled), guarded(pooled, np.int32)
        cpu.max_pool2d_normalized_forward(x, before, y, index, *window[1:])
        assert y.tobytes() == right.tobytes()
        assert index.tobytes() == place.tobytes()

        expected = np.empty(shape, np.float32)
        cpu.max_pool2d_backward(dy, index, expected, *window[1:])
        if relu:
            expected[activation <= 0] = 0
        dx, dx_memory = guarded(shape)
        sums, alone = (GradientSums(*(np.empty(c, np.float32) for _ in range(4))) for _ in range(2))
        cpu.max_pool2d_normalized_backward(dy, index, dx, *window[1:], x, before, sums)
        assert dx.tobytes() == expected.tobytes()
        assert all(is_whole(memory) for memory in (y_memory, index_memory, dx_memory))
        cpu.batchnorm_gradient_sums(x, dx, before._replace(relu=False), alone)
        for found, of_parts in zip(sums, alone, strict=True):
            finite = np.isfinite(of_parts)
            assert (finite == np.isfinite(found)).all()
            if kind != "hostile":
                np.testing.assert_allclose(found, of_parts, rtol=2e-5, atol=2e-5 * np.abs(of_parts).max())


@pytest.mark.parametrize("window", APART, ids=str)
def test_whole_numbers_have_exact_sums(window: Window, rng) -> None:
    """In whatever order they are added: nothing is lost at the chunks' ends."""
    cpu, c = CpuBackend(1), 5
    shape, pooled = (*window.image, c), (*window.pooled, c)
    x, dy = numbers(rng, "whole", shape), numbers(rng, "whole", pooled)
    zeros, ones = np.zeros(c, np.float32), np.ones(c, np.float32)
    before = Normalization(BatchStatistics(ones, zeros, ones, ones), None, None, relu=True)
    y, index, dx = np.empty(pooled, np.float32), np.empty(pooled, np.int32), np.empty(shape, np.float32)
    cpu.max_pool2d_normalized_forward(x, before, y, index, *window[1:])
    sums = GradientSums(*(np.empty(c, np.float32) for _ in range(4)))
    cpu.max_pool2d_normalized_backward(dy, index, dx, *window[1:], x, before, sums)
    axes = (0, 1, 2)
    assert sums.dbeta.tolist() == dx.sum(axis=axes).tolist() == np.where(y > 0, dy, 0).sum(axis=axes).tolist()
    assert sums.dgamma.tolist() == (dx * (x - 1)).sum(axis=axes).tolist()


@pytest.mark.parametrize("window", [APART[0], APART[5], OTHER[0]], ids=str)
def test_bits_do_not_depend_on_threads_nor_on_the_order_of_pieces(window: Window, rng, monkeypatch) -> None:
    for module in ("batchnorm", "pooling_normalized", "pooling"):
        monkeypatch.setattr(f"minidl.backends.cpu.{module}.GRAIN_ELEMENTS", 64)
    c, found = 7, []
    x, before = numbers(rng, "ordinary", (*window.image, c)), normalization(rng, c, relu=True)
    dy = numbers(rng, "ordinary", (*window.pooled, c))
    for workers in (Workers(1), Workers(3), Backwards(1)):
        cpu = CpuBackend(1)
        cpu.workers = workers
        y, index, dx = np.empty(dy.shape, np.float32), np.empty(dy.shape, np.int32), np.empty(x.shape, np.float32)
        sums = GradientSums(*(np.empty(c, np.float32) for _ in range(4)))
        cpu.max_pool2d_normalized_forward(x, before, y, index, *window[1:])
        cpu.max_pool2d_normalized_backward(dy, index, dx, *window[1:], x, before, sums)
        found.append([array.tobytes() for array in (y, index, dx, *sums)])
    assert found[0] == found[1] == found[2]


def test_nothing_is_written_beyond_a_line_that_ends_with_a_window(rng) -> None:
    """Of windows that are further apart than they are large: max_pool2d_backward, alone."""
    window, c = APART[2], 3
    dy = numbers(rng, "ordinary", (*window.pooled, c))
    index = np.zeros(dy.shape, np.int32)
    dx, memory = guarded((*window.image, c))
    CpuBackend(1).max_pool2d_backward(dy, index, dx, *window[1:])
    assert is_whole(memory)
