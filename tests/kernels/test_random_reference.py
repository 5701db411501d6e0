import time

import numba
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from kernels.random import (
    dropout_keep_reference,
    keep_threshold,
    philox4x32,
    random_words_reference,
    seed_words,
    uniform_reference,
)

ONES = 0xFFFFFFFF
# counter and key -> words: the known answers of Random123 (kat_vectors, philox4x32 with 10 rounds)
KNOWN_ANSWERS = [
    ((0, 0, 0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 6, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter_and_key", "words"), KNOWN_ANSWERS)
def test_known_answers(counter_and_key, words) -> None:
    result = philox4x32(*counter_and_key)
    assert result == words
    assert {word.dtype for word in result} == {np.dtype(np.uint32)}


def test_known_answers_of_arrays() -> None:
    counters_and_keys = np.array([case for case, _ in KNOWN_ANSWERS], np.uint32)
    words = philox4x32(*counters_and_keys.T)
    assert_array_equal(np.stack(words, axis=1), [words for _, words in KNOWN_ANSWERS])
    assert {word.dtype for word in words} == {np.dtype(np.uint32)}


@pytest.mark.parametrize("word_type", [int, np.uint32, np.uint64])
def test_known_answers_compiled(word_type) -> None:
    compiled = numba.njit(philox4x32)
    for counter_and_key, words in KNOWN_ANSWERS:
        assert compiled(*(word_type(word) for word in counter_and_key)) == words
    returned = {word for signature in compiled.nopython_signatures for word in signature.return_type}
    assert returned == {numba.uint32}


def test_an_element_takes_its_lane_of_its_block() -> None:
    seed, stream, call = 0x1234567_89ABCDEF, 3, 77
    words = random_words_reference(11, seed, stream, call)
    expected = [philox4x32(i // 4, 0, call, stream, 0x89ABCDEF, 0x1234567)[i % 4] for i in range(11)]
    assert_array_equal(words, expected)
    assert words.dtype == np.uint32


def test_seed_words() -> None:
    assert seed_words(0x1234567_89ABCDEF) == (0x89ABCDEF, 0x1234567)
    assert seed_words(-1) == (ONES, ONES)


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 8])
def test_a_draw_is_the_beginning_of_a_longer_one(size: int) -> None:
    assert_array_equal(random_words_reference(size, 5, 0, 0), random_words_reference(100, 5, 0, 0)[:size])


def test_every_coordinate_tells_draws_apart() -> None:
    draws = [(0, 0, 0), (1, 0, 0), (2**32, 0, 0), (0, 1, 0), (0, 0, 1)]
    words = np.array([random_words_reference(1000, *draw) for draw in draws])
    assert np.unique(words).size > words.size - 5  # among 5,000 of 2^32 numbers, equal pairs are rare


def test_uniform_numbers_are_the_upper_24_bits() -> None:
    words, uniform = random_words_reference(1000, 9, 1, 2), uniform_reference((10, 100), 9, 1, 2)
    assert_array_equal(uniform.ravel() * 2**24, words >> 8)
    assert_array_equal(uniform.astype(np.float32), uniform)
    assert 0 <= uniform.min() < 0.01
    assert 0.99 < uniform.max() < 1


@pytest.mark.parametrize("p", [0.0, 2.0**-24, 0.1, 0.3, 0.5, 0.7, 0.999, 1 - 2.0**-25, 1.0])
def test_the_threshold_is_the_same_question_in_integers(p: float) -> None:
    keep = dropout_keep_reference(100_000, p, 1, 2, 3)
    assert_array_equal(keep, random_words_reference(100_000, 1, 2, 3) >> 8 >= keep_threshold(p))
    assert abs(keep.mean() - (1 - p)) <= 6 * np.sqrt(p * (1 - p) / keep.size)  # six standard deviations


def test_an_element_whose_number_is_p_is_kept() -> None:
    uniform = uniform_reference(100, 1, 2, 3)
    keep = dropout_keep_reference(100, float(uniform[42]), 1, 2, 3)
    assert keep[42]
    assert_array_equal(keep, uniform >= uniform[42])


def test_the_threshold_at_a_multiple_of_the_resolution() -> None:
    assert [keep_threshold(k * 2.0**-24) for k in (0, 1, 2**23, 2**24)] == [0, 1, 2**23, 2**24]
    assert keep_threshold(np.nextafter(0.5, 1)) == 2**23 + 1


@pytest.mark.parametrize("p", [-0.1, 1.5, np.nan])
def test_a_p_that_is_no_probability_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match=f"dropout: p = {p} is not a probability; give a number from 0 to 1"):
        keep_threshold(p)


def test_shape_does_not_change_the_mask() -> None:
    flat = dropout_keep_reference(60, 0.5, 4, 0, 0)
    assert_array_equal(dropout_keep_reference((3, 4, 5), 0.5, 4, 0, 0), flat.reshape(3, 4, 5))
    assert flat.dtype == np.bool_


def test_two_million_elements_take_well_under_a_second() -> None:
    start = time.process_time()
    dropout_keep_reference(2_000_000, 0.5, 0, 0, 0)
    assert time.process_time() - start < 1  # 0.1 s of one core; room for a slow machine
