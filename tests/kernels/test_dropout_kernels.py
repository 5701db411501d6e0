import numpy as np
import pytest
from emulated import RUN, blank, launched, number, placed, run_by
from numba import int64, uint32
from numpy.testing import assert_array_equal

from kernels.device import inlined
from kernels.dropout import dropout, dropout_reference, dropout_scalar, dropout_vector
from kernels.errors import ShapeError
from kernels.launch import Cost, Launch, UInt32s, kernel
from kernels.random import dropout_keep_reference, keep_threshold, philox4x32, seed_words, uniform_reference
from kernels.storage import FLOAT32

NUMBERS = [(0, 0, 0), (2**32 - 1, 1, 2), (2**40 + 17, 2**31 - 1, 2**32 - 1), (2**64 - 1, 2**32 - 1, 70000), (-1, 3, 5)]


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("technique", [None, "scalar", "vector"])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (2,), (3,), (5, 3), (127, 17), (4099,)])
def test_dropout(rng, shape, p: float, technique, offset: int) -> None:
    x, y = rng.standard_normal(shape).astype(np.float32), blank(shape, offset)
    run_by(technique, offset == 0 or y.size == 0, dropout, RUN, placed(x, offset), y, p, 6, 1, number(9))
    assert_array_equal(y, dropout_reference(x, p, 6, 1, 9))  # the factor is one number: products are equal


@pytest.mark.parametrize("technique", ["scalar", "vector"])
@pytest.mark.parametrize("numbers", NUMBERS)
def test_the_mask_has_the_references_bits(numbers, technique: str) -> None:
    shape = (33, 71)
    y = blank(shape)
    dropout(RUN, placed(np.ones(shape)), y, 0.3, *numbers[:2], number(numbers[2]), technique=technique)
    assert_array_equal(y != 0, dropout_keep_reference(shape, 0.3, *numbers))


@pytest.mark.parametrize("technique", ["scalar", "vector"])
@pytest.mark.parametrize("element", [0, 5, 10, 15])
def test_a_uniform_number_that_equals_p_is_kept(element: int, technique: str) -> None:
    p = float(uniform_reference(17, 6, 1, 9)[element])
    x, y = placed(np.ones(17)), blank((17,))
    dropout(RUN, x, y, p, 6, 1, number(9), technique=technique)
    assert y[element] == np.float32(1 / (1 - p))


@pytest.mark.parametrize("technique", ["scalar", "vector"])
def test_the_call_is_read_when_the_kernel_runs(technique: str) -> None:
    x, y, call = placed(np.ones(1001)), blank((1001,)), number(4)
    graph = RUN.capture(lambda: dropout(RUN, x, y, 0.5, 1, 2, call, technique=technique))
    for now in (7, 2**32 - 1):
        call[...] = now
        graph.replay()
        assert_array_equal(y, dropout_reference(x, 0.5, 1, 2, now))


@pytest.mark.parametrize("technique", ["scalar", "vector"])
def test_what_is_dropped_is_zero_even_if_it_was_nan(technique: str) -> None:
    x, y = placed(np.repeat([np.nan, np.inf, -np.inf], 400)), blank((1200,))
    dropout(RUN, x, y, 0.5, 0, 0, number(0), technique=technique)
    assert_array_equal(y, dropout_reference(x, 0.5, 0, 0, number(0)))
    assert 400 < (y == 0).sum() < 800


@pytest.mark.parametrize("technique", ["scalar", "vector"])
def test_in_place(rng, technique: str) -> None:
    x = rng.standard_normal(1003).astype(np.float32)
    y = placed(x)
    dropout(RUN, y, y, 0.5, 0, 0, number(0), technique=technique)
    assert_array_equal(y, dropout_reference(x, 0.5, 0, 0, number(0)))


@pytest.mark.parametrize("index", [uint32, int64])
def test_both_index_types(rng, index) -> None:
    x = placed(rng.standard_normal(1003))
    for factory in (dropout_scalar, dropout_vector):
        y = blank(x.shape)
        RUN(factory(index, FLOAT32), x, number(3), y, x.size, keep_threshold(0.25), 1 / 0.75, 2, *seed_words(1))
        assert_array_equal(y, dropout_reference(x, 0.25, 1, 2, 3))


KNOWN_ANSWERS = [  # counter, key -> words: Random123's kat_vectors
    ((0, 0, 0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 6, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
_philox = inlined(philox4x32)


@kernel(traffic="numbers -> words", examples=[()])
def philox_in_a_kernel() -> Launch:
    def philox(numbers: UInt32s, words: UInt32s):
        a, b, c, d = _philox(numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5])
        words[0] = a
        words[1] = b
        words[2] = c
        words[3] = d

    return Launch(philox, 1, lambda: 1, lambda: Cost(24, 16))


@pytest.mark.parametrize(("numbers", "expected"), KNOWN_ANSWERS)
def test_known_answers_of_the_generator(numbers, expected) -> None:
    words = blank((4,), dtype=np.uint32)
    RUN(philox_in_a_kernel(), placed(numbers, dtype=np.uint32), words)
    assert tuple(words) == expected


def test_vectors_where_all_arrays_are_aligned() -> None:
    aligned, shifted = blank((8,)), blank((8,), offset=1)
    numbers = 0.5, 0, 0, number(0)
    assert launched(dropout, aligned, aligned, *numbers) == ["dropout_vector"]
    assert launched(dropout, aligned, aligned, *numbers, technique="scalar") == ["dropout_scalar"]
    assert launched(dropout, shifted, aligned, *numbers) == ["dropout_scalar"]
    assert launched(dropout, aligned, shifted, *numbers) == ["dropout_scalar"]


def test_arguments_that_do_not_fit() -> None:
    x = blank((2, 3))
    with pytest.raises(ShapeError, match=r"dropout: y has shape \(3, 2\), expected \(2, 3\)"):
        dropout(RUN, x, blank((3, 2)), 0.5, 0, 0, number(0))
    with pytest.raises(ShapeError, match=r"dropout: call has shape \(1,\), expected \(\)"):
        dropout(RUN, x, x, 0.5, 0, 0, number([0]))
    with pytest.raises(ValueError, match=r"dropout: p = 1\.5 is not a probability"):
        dropout(RUN, x, x, 1.5, 0, 0, number(0))
