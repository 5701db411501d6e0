import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from kernels.elementwise import (
    add_reference,
    channels_first_reference,
    channels_last_reference,
    concat_reference,
    dropout_reference,
    gather_images_reference,
    gather_labels_reference,
    split_reference,
)
from kernels.random import dropout_keep_reference
from minidl.lab.gradcheck import check_gradient

NAN, INF = np.nan, np.inf


def test_add() -> None:
    a, b = np.array([1.0, INF, INF, NAN]), np.array([2.0, 1.0, -INF, 1.0])
    assert_array_equal(add_reference(a, b), [3, INF, NAN, NAN])


def test_concat_and_split_are_inverse(rng) -> None:
    parts = [rng.standard_normal((2, 3, 5, c)) for c in (1, 4, 2)]
    whole = concat_reference(parts)
    assert_array_equal(whole[1, 2, 4], np.concatenate([part[1, 2, 4] for part in parts]))
    again = split_reference(whole, [1, 4, 2])
    for part, back in zip(parts, again, strict=True):
        assert_array_equal(part, back)
        assert back.flags.c_contiguous
    assert [part.shape for part in split_reference(np.zeros((0, 3)), [1, 2])] == [(0, 1), (0, 2)]


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


@pytest.mark.parametrize("p", [0.0, 0.25, 0.9])
def test_dropout_scales_what_it_keeps(rng, p: float) -> None:
    x = rng.standard_normal((7, 11, 3))
    keep = dropout_keep_reference(x.shape, p, 6, 1, 9)
    y = dropout_reference(x, p, 6, 1, 9)
    assert_array_equal(y[keep], x[keep] * (1 / (1 - p)))
    assert_array_equal(y[~keep], 0)


def test_dropout_at_the_ends() -> None:
    x = np.array([1.0, NAN, INF, -2.0])
    assert_array_equal(dropout_reference(x, 0.0, 0, 0, 0), x)
    assert_array_equal(dropout_reference(x, 1.0, 0, 0, 0), np.zeros(4))
    assert dropout_reference(np.zeros((0, 3)), 0.5, 0, 0, 0).shape == (0, 3)
    with pytest.raises(ValueError, match=r"dropout: p = 1\.01 is not a probability"):
        dropout_reference(x, 1.01, 0, 0, 0)


def test_what_is_dropped_is_zero_even_if_it_was_nan() -> None:
    x = np.full(1000, NAN)
    keep = dropout_keep_reference(x.shape, 0.5, 0, 0, 0)
    assert_array_equal(np.isnan(dropout_reference(x, 0.5, 0, 0, 0)), keep)


def test_the_factor_is_rounded_once_to_float32() -> None:
    x, p = np.ones(1000, np.float32), 0.15  # 1 / (1 - p) in float32 throughout is another number
    y = dropout_reference(x, p, 0, 0, 0)
    assert set(y.tolist()) == {0.0, float(np.float32(1 / (1 - p)))}


def test_gradients(rng) -> None:
    x, z, dy = rng.standard_normal((3, 2, 3, 5, 4))
    check_gradient("add", add_reference, {"a": x, "b": z}, {"a": dy, "b": dy}, dy)
    check_gradient(
        "dropout",
        lambda x: dropout_reference(x, 0.4, 1, 2, 3),
        {"x": x},
        {"x": dropout_reference(dy, 0.4, 1, 2, 3)},
        dy,
    )
    whole = rng.standard_normal((2, 3, 5, 8))
    da, db = split_reference(whole, [4, 4])
    check_gradient("concat", lambda a, b: concat_reference([a, b]), {"a": x, "b": z}, {"a": da, "b": db}, whole)
    flat = rng.standard_normal((2, 60))
    dx = channels_last_reference(flat, x.shape)
    check_gradient("channels_first", channels_first_reference, {"x": x}, {"x": dx}, flat)


def gather(images, index, shifts, flips, mean=0.0, std=1.0):
    channels = images.shape[-1]
    n = len(index)
    return gather_images_reference(
        images,
        np.array(index, np.int64),
        np.broadcast_to(np.array(shifts, np.int32), (n, 2)),
        np.broadcast_to(np.array(flips, bool), n),
        np.broadcast_to(mean, channels).astype(float),
        np.broadcast_to(std, channels).astype(float),
    )


IMAGE = np.array([[1, 2, 3], [4, 5, 6]], np.uint8).reshape(1, 2, 3, 1)


@pytest.mark.parametrize(
    ("shift", "flip", "expected"),
    [
        ((0, 0), False, [[1, 2, 3], [4, 5, 6]]),
        ((1, 0), False, [[0, 0, 0], [1, 2, 3]]),
        ((-1, 0), False, [[4, 5, 6], [0, 0, 0]]),
        ((0, 1), False, [[0, 1, 2], [0, 4, 5]]),
        ((0, -2), False, [[3, 0, 0], [6, 0, 0]]),
        ((0, 0), True, [[3, 2, 1], [6, 5, 4]]),
        ((1, 1), True, [[0, 0, 0], [0, 3, 2]]),  # the flip comes first
        ((2, 0), False, [[0, 0, 0], [0, 0, 0]]),
        ((0, -7), True, [[0, 0, 0], [0, 0, 0]]),
    ],
)
def test_shift_and_flip(shift, flip: bool, expected) -> None:
    assert_array_equal(gather(IMAGE, [0], shift, flip)[0, :, :, 0], expected)


def test_what_moves_in_is_raw_zero_normalized() -> None:
    out = gather(IMAGE, [0], (1, 0), False, mean=1.0, std=2.0)
    assert_array_equal(out[0, :, :, 0], [[-0.5, -0.5, -0.5], [0, 0.5, 1]])


def test_each_image_of_the_batch_has_its_own_place_shift_flip_and_channels(rng) -> None:
    images = rng.integers(0, 256, (5, 7, 4, 3), dtype=np.uint8)
    index, shifts, flips = [3, 0, 3, 4], [(1, -1), (0, 0), (-2, 3), (6, 2)], [True, False, False, True]
    mean, std = np.array([1.0, 20.0, 130.0]), np.array([0.5, 3.0, 70.0])
    out = gather(images, index, shifts, flips, mean, std)
    for k, (down, right) in enumerate(shifts):
        raw = images[index[k]][:, ::-1] if flips[k] else images[index[k]]
        raw = np.pad(raw, ((7, 7), (4, 4), (0, 0)))[7 - down : 14 - down, 4 - right : 8 - right]
        assert_allclose(out[k], (raw - mean) / std, rtol=1e-15)


def test_an_empty_batch_of_images() -> None:
    assert gather(IMAGE, [], np.zeros((0, 2)), False).shape == (0, 2, 3, 1)


def test_labels() -> None:
    labels = gather_labels_reference(np.array([7, 8, 9]), np.array([2, 0, 2]))
    assert_array_equal(labels, [9, 7, 9])
    assert labels.dtype == np.int64
