"""The slices of a product's depth become its result."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from kernels.run_emulated import EmulatorRunner
from kernels.slices import in_slices
from kernels.storage import BFLOAT16, FLOAT16, FLOAT32, Storage


@pytest.mark.parametrize("storage", [FLOAT32, BFLOAT16, FLOAT16], ids=str)
def test_slices_are_added_in_float32_and_rounded_once(storage: Storage, rng) -> None:
    run, parts = EmulatorRunner(), rng.integers(-512, 512, (3, 5, 7)).astype(np.float32) / 1024
    result = run.empty((5, 7), storage.dtype)
    with in_slices(run, 3, result) as target:
        assert (target.shape, target.dtype) == ((3, 5, 7), np.float32)
        target[...] = parts
    expected = parts.sum(axis=0)  # exact
    assert_array_equal(result, storage.encode(expected))


def test_one_slice_is_the_result() -> None:
    run = EmulatorRunner(counts=True)
    result = run.empty((5, 7), FLOAT16.dtype)
    with in_slices(run, 1, result) as target:
        assert target is result
    assert run.launched == []


def test_a_launch_that_fails_adds_nothing() -> None:
    run = EmulatorRunner(counts=True)
    with pytest.raises(ValueError, match="no such technique"), in_slices(run, 2, run.empty((5, 7))):
        raise ValueError("no such technique")
    assert run.launched == []
