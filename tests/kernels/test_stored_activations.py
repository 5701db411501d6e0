"""Elementwise operations and moves with activations in 16 bits: what float32 gives, rounded once, bit by bit."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from emulated import RUN, Recorder, blank, figures, launched, number, placed, run_by
from numpy.testing import assert_array_equal

from kernels.activation import relu_backward, relu_backward_reference, relu_forward, relu_forward_reference
from kernels.channel_order import channels_first, channels_first_reference, channels_last
from kernels.channels import concat, split
from kernels.dropout import dropout, dropout_reference
from kernels.elementwise import add, add_reference
from kernels.scale import CHUNK, scale_backward, scale_forward
from kernels.storage import BFLOAT16, FLOAT16, FLOAT32, STORAGES, Storage

NARROW = BFLOAT16, FLOAT16
SHAPES = [(0,), (1,), (7,), (8,), (9,), (2047,), (2048,), (2049,), (3, 5, 7, 11)]
SPECIAL = [0.0, -0.0, np.nan, np.inf, -np.inf, 6e-8, -6e-8, 65504.0]
TECHNIQUES = [None, "scalar", "vector"]
each_narrow = pytest.mark.parametrize("storage", NARROW, ids=repr)


def values(rng: np.random.Generator, shape: tuple[int, ...], storage: Storage, offset: int = 0) -> np.ndarray:
    x = rng.standard_normal(shape)
    x.reshape(-1)[: len(SPECIAL)] = SPECIAL[: x.size]
    return placed(storage.encode(rng.permutation(x.reshape(-1)).reshape(shape)), offset, storage.dtype)


def assert_rounded(array: np.ndarray, storage: Storage, expected: Any) -> None:
    """The array holds the bits of the expected float32 numbers, rounded; any NaN is one."""
    got, right = storage.decode(array), storage.rounded(np.asarray(expected, np.float32))
    assert_array_equal(got, right)
    assert_array_equal(np.signbit(got[~np.isnan(right)]), np.signbit(right[~np.isnan(right)]))


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("shape", SHAPES)
@each_narrow
def test_elementwise(rng, storage: Storage, shape, technique, offset: int) -> None:
    def by(host: Callable[..., None], *arguments: Any) -> None:
        run_by(technique, offset == 0 or not np.prod(shape), host, RUN, *arguments)

    x, dy, out = values(rng, shape, storage, offset), values(rng, shape, storage, offset), None
    of_x, of_dy = storage.decode(x), storage.decode(dy)
    for host, arguments, expected in (
        (relu_forward, (x,), relu_forward_reference(of_x)),
        (relu_backward, (dy, x), relu_backward_reference(of_dy, of_x)),
        (add, (x, dy), add_reference(of_x, of_dy)),
    ):
        out = blank(shape, offset, storage.dtype)
        by(host, *arguments, out)
        assert_rounded(out, storage, expected)
    by(dropout, x, out, 0.3, 5, 1, number(2))
    assert_rounded(out, storage, dropout_reference(of_x, 0.3, 5, 1, 2))
    factor = placed(-2.7)
    with np.errstate(over="ignore"):
        by(scale_forward, x, factor, out)
        assert_rounded(out, storage, factor * of_x)


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("shape", [(0,), (5,), (CHUNK,), (CHUNK + 9,), (2 * CHUNK + 7,)])
@each_narrow
def test_scale_backward_sums_in_float32(rng, storage: Storage, shape, technique) -> None:
    x, dy = (placed(storage.encode(rng.standard_normal(shape)), 0, storage.dtype) for _ in range(2))
    factor, dx, dfactor = placed(-0.7), blank(shape, 0, storage.dtype), blank(())
    scale_backward(RUN, x, dy, factor, dx, dfactor, technique=technique)
    of_x, of_dy = storage.decode(x), storage.decode(dy)
    assert_rounded(dx, storage, factor * of_dy)
    products = of_x.astype(np.float64) * of_dy
    assert abs(dfactor - products.sum()) <= 2e-6 * np.abs(products).sum()  # rounded products would be off by 4e-4


@pytest.mark.parametrize("technique", ["scalar", "vector"])
@each_narrow
def test_in_place(rng, storage: Storage, technique: str) -> None:
    x, dy = values(rng, (2051,), storage), values(rng, (2051,), storage)
    expected = add_reference(storage.decode(x), storage.decode(dy))
    add(RUN, x, dy, x, technique=technique)
    assert_rounded(x, storage, expected)
    before = storage.decode(dy)
    dropout(RUN, dy, dy, 0.5, 0, 0, number(0), technique=technique)
    assert_rounded(dy, storage, dropout_reference(before, 0.5, 0, 0, number(0)))


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("channels", [(1,), (3, 5), (8, 16), (4, 12), (16, 17, 2, 61), (0, 8)])
@each_narrow
def test_concat_and_split_keep_all_bits(rng, storage: Storage, channels, technique, offset: int) -> None:
    def bits(c: int) -> np.ndarray:
        drawn = rng.integers(0, 2**16, (3, 25, c), dtype=np.uint16)
        return placed(drawn, offset, np.uint16).view(storage.dtype)

    parts, whole = [bits(c) for c in channels], blank((3, 25, sum(channels)), offset, storage.dtype)
    fits = offset == 0 and not any(c % 8 for c in channels)
    run_by(technique, fits, concat, RUN, parts, whole)
    expected = np.concatenate([part.view(np.uint16) for part in parts], axis=-1)
    assert_array_equal(whole.view(np.uint16), expected)
    again = [blank(part.shape, offset, storage.dtype) for part in parts]
    run_by(technique, fits, split, RUN, whole, again)
    for part, back in zip(parts, again, strict=True):
        assert_array_equal(part.view(np.uint16), back.view(np.uint16))


def test_parts_need_eight_channels_to_be_moved_in_vectors() -> None:
    def kernels(*channels: int, dtype: Any) -> list[str]:
        parts = [blank((5, c), 0, dtype) for c in channels]
        names = launched(concat, parts, blank((5, sum(channels)), 0, dtype))
        return [name.removeprefix("copy_columns_") for name in names]

    assert kernels(4, 12, dtype=np.float32) == ["vector", "vector"]
    assert kernels(4, 12, dtype=np.uint16) == ["scalar", "scalar"]
    assert kernels(8, 16, dtype=np.float16) == ["vector", "vector"]
    assert kernels(8, 4, 4, dtype=np.uint16) == ["vector", "scalar", "scalar"]


@pytest.mark.parametrize("technique", ["plain", "tiled"])
@pytest.mark.parametrize("shape", [(0, 2, 3, 5), (2, 3, 5, 1), (3, 7, 11, 16), (2, 28, 28, 24), (2, 16, 16, 40)])
@pytest.mark.parametrize("after", STORAGES, ids=repr)
@pytest.mark.parametrize("before", STORAGES, ids=repr)
def test_flattening_converts(rng, before: Storage, after: Storage, shape, technique: str) -> None:
    n, h, w, c = shape
    x, flat, back = values(rng, shape, before), blank((n, c * h * w), 0, after.dtype), blank(shape, 0, before.dtype)
    channels_first(RUN, x, flat, technique=technique)
    expected = channels_first_reference(before.decode(x))
    assert_rounded(flat, after, expected)
    channels_last(RUN, flat, back, technique=technique)
    assert_rounded(back, before, after.rounded(before.decode(x)))


@pytest.mark.parametrize("before", STORAGES, ids=repr)
@pytest.mark.parametrize("after", STORAGES, ids=repr)
@pytest.mark.parametrize("shape", [(2, 16, 16, 64), (1, 4, 64, 48), (1, 32, 32, 24)])
def test_tiles_share_no_sector_in_any_storage(shape, before: Storage, after: Storage) -> None:
    n, h, w, c = shape
    x, y = blank(shape, 0, before.dtype), blank((n, c * h * w), 0, after.dtype)
    total = figures(channels_first, x, y, technique="tiled")
    assert total.bytes_asked == total.bytes_moved == x.nbytes + y.nbytes
    of_floats = figures(channels_first, blank(shape), blank((n, c * h * w)), technique="tiled")
    assert total.bank_conflicts <= of_floats.bank_conflicts


CALL = np.zeros((), np.uint32)
FACTOR = np.ones((), np.float32)


def calls(x: np.ndarray, y: np.ndarray) -> dict[str, Callable[[Recorder], None]]:
    """Of each operation, with an array that is stored otherwise than the rest."""
    return {
        "relu_forward: y": lambda run: relu_forward(run, x, y),
        "relu_backward: y": lambda run: relu_backward(run, x, y, x),
        "relu_backward: dx": lambda run: relu_backward(run, x, x, y),
        "add: b": lambda run: add(run, x, y, x),
        "add: out": lambda run: add(run, x, x, y),
        "dropout: y": lambda run: dropout(run, x, y, 0.5, 0, 0, CALL),
        "scale_forward: y": lambda run: scale_forward(run, x, FACTOR, y),
        "scale_backward: dy": lambda run: scale_backward(run, x, y, FACTOR, x, FACTOR),
        "scale_backward: dx": lambda run: scale_backward(run, x, x, FACTOR, y, FACTOR),
        "concat: parts[1]": lambda run: concat(run, [x, y], blank((4, 16), 0, x.dtype)),
        "split: parts[0]": lambda run: split(run, blank((4, 16), 0, x.dtype), [y, x]),
    }


@pytest.mark.parametrize("name", list(calls(CALL, CALL)))
def test_a_mix_of_storages_is_refused_before_anything_runs(name: str) -> None:
    for x, y in ((FLOAT32, BFLOAT16), (BFLOAT16, FLOAT16), (FLOAT16, FLOAT32)):
        recorder = Recorder()
        with pytest.raises(TypeError, match=re.escape(f"{name} is stored as {y}, expected {x} as ")):
            calls(blank((4, 8), 0, x.dtype), blank((4, 8), 0, y.dtype))[name](recorder)
        assert not recorder.kernels
    with pytest.raises(TypeError, match=re.escape(f"{name} has dtype int32, expected float32, float16 or uint16")):
        calls(blank((4, 8)), blank((4, 8), 0, np.int32))[name](Recorder())


def test_what_is_never_stored_in_16_bits_is_refused_before_anything_runs() -> None:
    x, half, recorder = blank((8,), 0, np.float16), np.ones((), np.float16), Recorder()
    with pytest.raises(TypeError, match="scale_forward: factor has dtype float16, expected float32"):
        scale_forward(recorder, x, half, x)
    with pytest.raises(TypeError, match="scale_backward: dfactor has dtype float16, expected float32"):
        scale_backward(recorder, x, x, FACTOR, x, half)
    with pytest.raises(TypeError, match="channels_first: y has dtype float64, expected float32, float16 or uint16"):
        channels_first(recorder, blank((1, 2, 2, 2)), np.zeros((1, 8)))
    assert not recorder.kernels
