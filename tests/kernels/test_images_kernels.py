import numpy as np
import pytest
from emulated import RUN, blank, figures, launched, placed
from numba import int64, uint32
from numpy.testing import assert_allclose, assert_array_equal

from kernels.errors import ShapeError
from kernels.images import (
    gather_images,
    gather_images_reference,
    gather_images_scalar,
    gather_labels,
    gather_labels_reference,
    gather_labels_scalar,
)


def batch(rng: np.random.Generator, images: tuple[int, ...], n: int, reach: int, offset: int = 0) -> list[np.ndarray]:
    c = images[-1]
    return [
        placed(rng.integers(0, 256, images), offset, np.uint8),
        placed(rng.integers(0, images[0], n), offset, np.int64),
        placed(rng.integers(-reach, reach + 1, (n, 2)), offset, np.int32),
        placed(rng.integers(0, 2, n), offset, np.bool_),
        placed(rng.integers(0, images[1:3], (n, 2)), offset, np.int32),
        placed(rng.uniform(0, 255, c), offset),
        placed(rng.uniform(1, 100, c), offset),
    ]


def wide(arrays: list[np.ndarray]) -> list[np.ndarray]:
    return [*arrays[:5], *(array.astype(np.float64) for array in arrays[5:])]


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize(
    ("images", "n", "reach", "cutout"),
    [
        ((1, 1, 1, 1), 1, 0, 0),
        ((1, 1, 1, 1), 3, 1, 1),
        ((3, 5, 4, 3), 0, 2, 2),
        ((4, 7, 5, 3), 17, 2, 0),
        ((4, 7, 5, 3), 17, 2, 3),
        ((5, 8, 8, 1), 129, 3, 4),
        ((2, 3, 5, 2), 33, 9, 0),  # images moved out of sight altogether
        ((2, 3, 5, 2), 33, 1, 2**31),  # and images of which nothing is left
        ((11, 32, 32, 3), 20, 4, 16),
    ],
)
def test_gather_images(rng, images, n: int, reach: int, cutout: int, offset: int) -> None:
    arrays = batch(rng, images, n, reach, offset)
    out = blank((n, *images[1:]), offset)
    gather_images(RUN, *arrays, out, cutout)
    # Two roundings, each of at most 2^-24 of what is rounded: the difference, and the quotient. What is cut is 0.
    assert_allclose(out, gather_images_reference(*wide(arrays), cutout), rtol=2.01 * 2**-24, atol=0)


def test_the_ends_of_an_image() -> None:
    images = placed(np.arange(1, 13).reshape(2, 2, 3, 1), dtype=np.uint8)
    index = placed([1, 1, 0, 0, 0], dtype=np.int64)
    shifts = placed([(0, 0), (1, 1), (0, -2), (-2, 0), (2**31 - 1, -(2**31))], dtype=np.int32)
    flips = placed([0, 1, 0, 0, 1], dtype=np.bool_)
    out = blank((5, 2, 3, 1))
    nowhere = placed(np.full((5, 2), 2**31 - 1), dtype=np.int32)
    gather_images(RUN, images, index, shifts, flips, nowhere, placed([0]), placed([1]), out, 2)
    assert_array_equal(
        out[..., 0],
        [[[7, 8, 9], [10, 11, 12]], [[0, 0, 0], [0, 9, 8]], [[3, 0, 0], [6, 0, 0]], *np.zeros((2, 2, 3))],
    )


def test_what_is_read(rng) -> None:
    """Without cutout no centre; and nothing else of a pixel that is cut."""
    arrays, out = batch(rng, (5, 6, 7, 3), 9, 0), blank((9, 6, 7, 3))
    none, everywhere = (figures(gather_images, *arrays, out, cutout).load_bytes for cutout in (0, 1000))
    assert none == (8 + 1 + 1 + 8 + 4 + 4) * out.size  # shifts, flip, pixel and its image's number, mean, std
    assert everywhere == 8 * out.size
    assert not out.any()


@pytest.mark.parametrize("place", [uint32, int64])
def test_both_index_types(rng, place) -> None:
    arrays = batch(rng, (5, 6, 7, 3), 9, 2)
    out = blank((9, 6, 7, 3))
    values = [*arrays[:3], arrays[3].view(np.uint8), *arrays[4:]]
    RUN(gather_images_scalar(place, 6, 7, 3, 3), *values, out, out.size)
    assert_allclose(out, gather_images_reference(*wide(arrays), 3), rtol=2.01 * 2**-24, atol=0)
    labels, index = placed([7, 8, 9], dtype=np.int64), placed([2, 0, 2, 1], dtype=np.int64)
    chosen = blank((4,), dtype=np.int64)
    RUN(gather_labels_scalar(place), labels, index, chosen, 4)
    assert_array_equal(chosen, [9, 7, 9, 8])


@pytest.mark.parametrize(("labels", "n"), [(1, 1), (5, 0), (10, 64), (70001, 1000)])
def test_gather_labels(rng, labels: int, n: int) -> None:
    values = placed(rng.integers(-(2**62), 2**62, labels), dtype=np.int64)
    index, out = placed(rng.integers(0, labels, n), dtype=np.int64), blank((n,), dtype=np.int64)
    gather_labels(RUN, values, index, out)
    assert_array_equal(out, gather_labels_reference(values, index))


def test_shapes_that_do_not_fit(rng) -> None:
    good = {
        "index": blank((2,), dtype=np.int64),
        "shifts": blank((2, 2), dtype=np.int32),
        "flips": blank((2,), dtype=np.bool_),
        "centres": blank((2, 2), dtype=np.int32),
        "mean": blank((3,)),
        "std": blank((3,)),
        "out": blank((2, 5, 4, 3)),
    }
    images = blank((7, 5, 4, 3), dtype=np.uint8)
    assert launched(gather_images, images, *good.values(), 3) == ["gather_images_scalar"]
    for name, array in good.items():
        if name != "index":  # which says how many images are wanted
            wrong = {**good, name: blank((*array.shape[:-1], 9), dtype=array.dtype)}
            with pytest.raises(ShapeError, match=f"gather_images: {name} has shape .* expected"):
                gather_images(RUN, images, *wrong.values(), 3)
    with pytest.raises(ShapeError, match=r"gather_images: images has shape \(7, 5, 4\), expected \(N, h, w, c\)"):
        gather_images(RUN, images[..., 0], *good.values(), 3)
    with pytest.raises(ValueError, match="gather_images: cutout is -3, expected a side of 0 or more pixels"):
        gather_images(RUN, images, *good.values(), -3)
    assert (good["out"] == 77).all()  # nothing was written by then
    with pytest.raises(ShapeError, match=r"gather_labels: out has shape \(3,\), expected \(2,\)"):
        gather_labels(RUN, blank((9,), dtype=np.int64), good["index"], blank((3,), dtype=np.int64))
    with pytest.raises(ShapeError, match=r"gather_labels: labels has shape \(9, 1\) and index \(2,\)"):
        gather_labels(RUN, blank((9, 1), dtype=np.int64), good["index"], blank((2,), dtype=np.int64))
