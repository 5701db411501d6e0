"""Arrays of more than 2^32 elements, in sparse files; of each launch only the last blocks run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated import blank, number, placed
from numpy.testing import assert_allclose, assert_array_equal

import kernels.emulator.launch
from kernels import pooling
from kernels.activation import relu_backward, relu_forward
from kernels.channel_order import channels_first, channels_last
from kernels.channels import concat, split
from kernels.dropout import dropout
from kernels.elementwise import add
from kernels.images import gather_images, gather_labels
from kernels.noise import noise_backward
from kernels.random import keep_threshold, philox4x32
from kernels.run_emulated import EmulatorRunner
from kernels.scale import scale_backward, scale_forward
from kernels.storage import BFLOAT16

Array = np.ndarray
RUN = EmulatorRunner(checks=False)  # which would need as much memory again
SIZE = 2**32 + 1027
BLOCKS = 3  # that run


@pytest.fixture(autouse=True)
def last_blocks(monkeypatch) -> None:
    def run(machine: Any, given: list[Any]) -> None:
        count = min(BLOCKS, machine.blocks)
        batch = kernels.emulator.launch.Batch(machine.grid, machine.block, machine.blocks - count, count)
        with np.errstate(all="ignore"):
            machine.program.entry(machine, machine.start(batch), *given)
            machine.finish()

    monkeypatch.setattr(kernels.emulator.launch, "_run", run)


@pytest.fixture
def sparse(tmp_path: Path) -> Iterator[Any]:
    """Makes zeros of any size."""
    names = iter(range(99))

    def make(*shape: int, dtype: Any = np.float32) -> Array:
        path = tmp_path / str(next(names))
        try:
            memory = np.memmap(path, dtype, "w+", shape=shape)
        except OSError as error:
            pytest.skip(f"no sparse file of {np.prod(shape, dtype=float):.0f} elements here: {error}")
        path.unlink()
        return np.asarray(memory)

    return make


def ends(rng: np.random.Generator, *arrays: Array, count: int = 600) -> list[Array]:
    """Random numbers into the last `count` rows of each, and nowhere else; they are returned."""
    for array in arrays:
        array[-count:] = rng.standard_normal((min(count, len(array)), *array.shape[1:]))
    return [array[-count:].copy() for array in arrays]


@pytest.mark.parametrize("technique", ["scalar", "vector"])
def test_elementwise(rng, sparse, technique: str) -> None:
    a, b, out = sparse(SIZE), sparse(SIZE), sparse(SIZE)
    a_end, b_end = ends(rng, a, b)
    add(RUN, a, b, out, technique=technique)
    assert_array_equal(out[-500:], (a_end + b_end)[-500:])
    relu_forward(RUN, a, out, technique=technique)
    assert_array_equal(out[-500:], np.maximum(a_end, 0)[-500:])
    relu_backward(RUN, b, a, out, technique=technique)
    assert_array_equal(out[-500:], np.where(a_end > 0, b_end, 0)[-500:])
    for array in (a, b, out):
        assert not array[: 2**20].any()


@pytest.mark.parametrize("technique", ["scalar", "vector"])
def test_in_16_bits(rng, sparse, technique: str) -> None:
    x, out = sparse(SIZE, dtype=np.uint16), sparse(SIZE, dtype=np.uint16)
    x[-600:] = BFLOAT16.encode(rng.standard_normal(600))
    end = BFLOAT16.decode(x[-500:])
    add(RUN, x, x, out, technique=technique)
    assert_array_equal(BFLOAT16.decode(out[-500:]), 2 * end)
    relu_forward(RUN, x, out, technique=technique)
    assert_array_equal(BFLOAT16.decode(out[-500:]), np.maximum(end, 0))
    scale_forward(RUN, x, placed(-0.5), out, technique=technique)
    assert_array_equal(BFLOAT16.decode(out[-500:]), -0.5 * end)
    rows = SIZE // 8
    parts, whole = [x[: 8 * rows].reshape(rows, 8)] * 2, sparse(rows, 16, dtype=np.uint16)
    concat(RUN, parts, whole, technique=technique)
    assert_array_equal(whole[-50:], np.concatenate([part[-50:] for part in parts], axis=1))
    for array in (out, whole):
        assert not array[: 2**18].any()


@pytest.mark.parametrize("technique", ["scalar", "vector"])
def test_scale(rng, sparse, technique: str) -> None:
    x, dy, out = sparse(SIZE), sparse(SIZE), sparse(SIZE)
    x_end, dy_end = ends(rng, x, dy)
    factor, dfactor = placed(0.5), blank(())
    scale_forward(RUN, x, factor, out, technique=technique)
    assert_array_equal(out[-500:], 0.5 * x_end[-500:])
    scale_backward(RUN, x, dy, factor, out, dfactor, technique=technique)
    assert_array_equal(out[-500:], 0.5 * dy_end[-500:])
    for array in (x, dy, out):
        assert not array[: 2**20].any()


@pytest.mark.parametrize("technique", ["scalar", "vector"])
def test_dropout_where_the_blocks_number_has_a_high_word(sparse, technique: str) -> None:
    size = 2**34 + 1027
    x, y = sparse(size), sparse(size)
    x[-500:] = 1
    dropout(RUN, x, y, 0.5, 11, 2, number(3), technique=technique)
    block = np.arange(size // 4 - 200, size // 4 + 1, dtype=np.uint64)
    assert (block >> 32).all()
    words = np.stack(philox4x32(block & 0xFFFFFFFF, block >> 32, 3, 2, 11, 0), axis=-1).reshape(-1)
    kept = words[: -(-size % 4)] >> 8 >= keep_threshold(0.5)
    assert_array_equal(y[-500:], 2 * kept[-500:])


@pytest.mark.parametrize(("technique", "channels"), [("scalar", 3), ("vector", 4)])
def test_noise_where_the_blocks_number_has_a_high_word(sparse, technique: str, channels: int) -> None:
    rows = 2**34 // channels + 1027
    x, y = sparse(rows, channels), sparse(rows, channels)
    x[-200:] = 1
    noise_backward(RUN, x, y, 1.0, 0.5, 11, 2, number(3), technique=technique)
    element = np.arange((rows - 100) * channels, rows * channels, dtype=np.uint64)
    assert (element >> 34).all()
    words = np.array(philox4x32((element >> 2) & 0xFFFFFFFF, element >> 34, 3, 4, 11, 0))
    uniform = np.choose((element & 3).astype(np.int64), words >> 8) * 2.0**-24
    assert_allclose(y[-100:].reshape(-1), 1 + 0.5 * (2 * uniform - 1), rtol=2.0**-22)


@pytest.mark.parametrize(("technique", "widths"), [("scalar", (5, 3)), ("vector", (4, 8))])
def test_concat_and_split(rng, sparse, technique: str, widths) -> None:
    rows = SIZE // min(widths)
    whole, parts = sparse(rows, sum(widths)), [sparse(rows, width) for width in widths]
    expected = np.concatenate(ends(rng, *parts), axis=1)
    concat(RUN, parts, whole, technique=technique)
    assert_array_equal(whole[-50:], expected[-50:])
    again = [sparse(rows, width) for width in widths]
    split(RUN, whole, again, technique=technique)
    for part, back in zip(parts, again, strict=True):
        assert_array_equal(back[-50:], part[-50:])
        assert not back[: 2**20].any()


@pytest.mark.parametrize("technique", ["plain", "tiled"])
def test_channels(rng, sparse, technique: str) -> None:
    shape = 2**22 + 3, 32, 1, 32
    x, y, back = sparse(*shape), sparse(shape[0], 1024), sparse(*shape)
    (end,) = ends(rng, x, count=3)
    channels_first(RUN, x, y, technique=technique)
    seen = 512  # of the last image, what three blocks move at the least
    assert_array_equal(y[-1, -seen:], end[-1].transpose(2, 0, 1).reshape(-1)[-seen:])
    y[-1] = end[-1].transpose(2, 0, 1).reshape(-1)
    channels_last(RUN, y, back, technique=technique)
    assert_array_equal(back[-1].reshape(-1)[-seen:], end[-1].reshape(-1)[-seen:])


@pytest.mark.parametrize(("technique", "seen"), [("scalar", 10), ("vector", 10), ("tiled", 3)])
def test_pooling(rng, sparse, technique: str, seen: int) -> None:
    """Of the last images, as many as three blocks make at the least."""
    n, window = SIZE // 36 + 1, ((3, 3), (1, 1), (1, 1))
    x, y, place = sparse(n, 3, 3, 4), sparse(n, 3, 3, 4), sparse(n, 3, 3, 4, dtype=np.int32)
    x_end, dy_end = ends(rng, x, y, count=30)
    options = *window, False
    dx = sparse(n, 3, 3, 4)
    pooling.avg_pool2d_backward(RUN, y, dx, *options, technique=technique)
    expected = pooling.avg_pool2d_backward_reference(dy_end, dy_end.shape, *options)
    assert_allclose(dx[-seen:], expected[-seen:], rtol=1e-5, atol=1e-5)
    pooling.avg_pool2d_forward(RUN, x, y, *options, technique=technique)
    expected = pooling.avg_pool2d_forward_reference(x_end, *options)
    assert_allclose(y[-seen:], expected[-seen:], rtol=1e-5, atol=1e-5)

    pooling.max_pool2d_forward(RUN, x, y, place, *window, technique=technique)
    expected, index = pooling.max_pool2d_forward_reference(x_end, *window)
    assert_array_equal(y[-seen:], expected[-seen:])
    assert_array_equal(place[-seen:], index[-seen:])
    place[-30:], y[-30:] = index, dy_end
    pooling.max_pool2d_backward(RUN, y, place, dx, *window, technique=technique)
    expected = pooling.max_pool2d_backward_reference(dy_end, index, dy_end.shape, *window)
    assert_allclose(dx[-seen:], expected[-seen:], rtol=1e-5, atol=1e-5)
    for array in (y, place, dx):
        assert not array[: 2**15].any()


@pytest.mark.parametrize(("forward", "backward"), [("serial", "scalar"), ("shared", "vector")])
def test_global_average(rng, sparse, forward: str, backward: str) -> None:
    n = SIZE // 36 + 1
    x, y = sparse(n, 3, 3, 4), sparse(n, 4)
    (end,) = ends(rng, x, count=300)
    pooling.global_avg_pool2d_forward(RUN, x, y, technique=forward)
    assert_allclose(y[-3:], end.mean(axis=(1, 2))[-3:], rtol=1e-5, atol=1e-6)
    (end,) = ends(rng, y, count=300)
    pooling.global_avg_pool2d_backward(RUN, y, x, technique=backward)
    assert_allclose(x[-3:], np.broadcast_to(end[-3:, None, None] / 9, (3, 3, 3, 4)), rtol=1e-6)


def test_images_and_labels(rng, sparse) -> None:
    images = sparse(2**22 + 3, 32, 32, 1, dtype=np.uint8)
    images[-1] = rng.integers(0, 256, (32, 32, 1))
    labels = sparse(2**32 + 9, dtype=np.int64)
    labels[-1] = 2**40 + 1
    out = blank((1, 32, 32, 1))
    index, still = placed([len(images) - 1], dtype=np.int64), placed([(0, 0)], dtype=np.int32)
    gather_images(RUN, images, index, still, placed([0], dtype=np.bool_), still, placed([0]), placed([1]), out, 0)
    assert_array_equal(out[0, -24:], images[-1, -24:])  # three blocks of the four
    chosen = blank((1,), dtype=np.int64)
    gather_labels(RUN, labels, placed([len(labels) - 1], dtype=np.int64), chosen)
    assert chosen.item() == 2**40 + 1
    index, chosen = sparse(2**32 + 9, dtype=np.int64), sparse(2**32 + 9, dtype=np.int64)
    index[-1] = len(labels) - 1
    gather_labels(RUN, labels, index, chosen)
    assert chosen[-1] == 2**40 + 1

    n = 2**22 + 3
    batch, many = sparse(n, 32, 32, 1), sparse(n, dtype=np.int64)
    flips, shifts, centres = sparse(n, dtype=np.bool_), sparse(n, 2, dtype=np.int32), sparse(n, 2, dtype=np.int32)
    many[-1], flips[-1] = len(images) - 1, True
    gather_images(RUN, images, many, shifts, flips, centres, placed([0]), placed([1]), batch, 0)
    assert_array_equal(batch[-1, -24:], images[-1, -24:, ::-1])
    batch[-1], centres[-1] = 0, (31, 31)
    gather_images(RUN, images, many, shifts, flips, centres, placed([0]), placed([1]), batch, 4)
    expected = images[-1, -24:, ::-1].copy()
    expected[-3:, -3:] = 0
    assert_array_equal(batch[-1, -24:], expected)
