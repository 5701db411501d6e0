"""Backward of a residual block's end in one launch: numbers, bits, traffic, machine code, its choice."""

from typing import Any

import numpy as np
import pytest
from emulated import Recorder, blank, placed
from numba import uint32
from numpy.testing import assert_allclose, assert_array_equal

from kernels import batchnorm
from kernels.batchnorm import BatchStatistics
from kernels.batchnorm.persistent_residual import batchnorm_add_relu_backward_persistent_vector
from kernels.batchnorm.residency import resident
from kernels.chip import HOPPER
from kernels.choice import Chosen
from kernels.compile import ToolkitError
from kernels.errors import TechniqueError
from kernels.run_emulated import EmulatorRunner
from kernels.storage import FLOAT32
from minidl.lab.machine_code import examine

Array = np.ndarray
SMALL = HOPPER._replace(multiprocessors=4)
# Registers alone and shared memory too (42 rows a thread), one line of channels and several, by four and by one.
SHAPES = ((300, 64), (2300, 64), (9000, 4), (129, 17), (20000, 3))


def a_run(counts: bool = False) -> EmulatorRunner:
    run = EmulatorRunner(counts=counts)
    run.chip = SMALL
    return run


def problem(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """x, y, dy, statistics, gamma; y says nothing of x, as where a residual decides."""
    x, y, dy = (placed(rng.standard_normal(shape)) for _ in range(3))
    statistics = batchnorm.batchnorm_statistics_reference(x.astype(np.float64), 1e-5)
    known = BatchStatistics(*(placed(part) for part in statistics))
    return x, np.maximum(y, 0), dy, known, placed(rng.standard_normal(shape[-1:]))


def answers(shape: tuple[int, ...]) -> list[Array]:
    """dx, dresidual, dgamma, dbeta."""
    return [blank(shape), blank(shape), blank(shape[-1:]), blank(shape[-1:])]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_backward(rng, shape, training: bool) -> None:
    given = problem(rng, shape)
    got, again = answers(shape), answers(shape)
    for results in (got, again):
        batchnorm.batchnorm_add_relu_backward(a_run(), *given, *results, training, technique="persistent")
    x, y, dy, statistics, gamma = given
    wide = BatchStatistics(*(part.astype(np.float64) for part in statistics))
    arrays = (array.astype(np.float64) for array in (x, y, dy))
    right = batchnorm.batchnorm_add_relu_backward_reference(*arrays, wide, gamma.astype(np.float64), training)
    of_sums = 2e-8 * len(x)  # of as many terms about as large as 1: a third of a rounding each
    for one, other, expected, error in zip(got, again, right, (5e-6, 0, of_sums, of_sums), strict=True):
        assert_allclose(one, expected, atol=error)
        assert_array_equal(one, other)  # the same bits


def test_a_nan_in_shared_memory_poisons_its_own_channel_and_no_other(rng) -> None:
    x, y, dy, statistics, gamma = problem(rng, (2300, 8))
    y[2200:2210, 2] = 1
    dy[2205, 2] = np.nan
    run, results = a_run(), answers(x.shape)
    run.chip = SMALL._replace(multiprocessors=1)
    batchnorm.batchnorm_add_relu_backward(run, x, y, dy, statistics, gamma, *results, True, technique="persistent")
    dx, dresidual, dgamma, dbeta = results
    assert np.isnan(dx[:, 2]).all()
    assert np.isnan(dgamma[2])
    assert np.isnan(dbeta[2])
    assert np.isnan(dresidual).sum() == 1
    assert np.isfinite(np.delete(dx, 2, axis=1)).all()


def test_everything_is_read_once_and_written_once(rng) -> None:
    given = problem(rng, (2300, 64))
    run = a_run(counts=True)
    batchnorm.batchnorm_add_relu_backward(run, *given, *answers((2300, 64)), True)
    (one,) = run.launched
    total = one.report.counts.total
    assert one.kernel.arguments[3] > 0  # rows in shared memory
    assert 5 <= total.bytes_moved / given[0].nbytes <= 1.03 * 5
    assert total.bytes_asked >= 0.95 * total.bytes_moved
    assert total.bank_conflicts == 0


def launches(run: Any, shape: tuple[int, ...], **options: Any) -> list[str]:
    x, c = np.empty(shape, np.float32), np.empty(shape[-1:], np.float32)
    run.kernels.clear()
    known = BatchStatistics(c, c, c, c)
    batchnorm.batchnorm_add_relu_backward(run, x, x, x, known, c, x, x, None, None, True, **options)
    return [kernel.name.removeprefix("batchnorm_") for kernel in run.kernels]


def test_the_size_decides_and_says_why() -> None:
    three = ["mask_and_sum_gradients_vector", "finish_gradients", "backward_vector"]
    one = ["add_relu_backward_persistent_vector"]
    run: Any = Recorder()
    assert launches(run, (128, 16, 16, 128)) == three  # nothing is known of a GPU
    run.chip = HOPPER
    heard: list[Chosen] = []
    run.on_choice = heard.append
    assert launches(run, (128, 16, 16, 128)) == one
    assert launches(run, (128, 32, 32, 64)) == three
    assert launches(run, (128, 16, 16, 128), technique="vector") == three
    assert launches(run, (0, 64)) == three
    fits, fits_not, by_name, _ = heard
    assert fits.technique == "persistent"
    assert fits.why == "x and dresidual fit on the chip in 132 blocks, 32 rows a thread"
    assert fits_not.technique == "vector"
    assert fits_not.why.startswith("x and dresidual of 131,072 rows and 64 channels do not fit on 132 multiprocessors")
    assert by_name.why == "asked for by name"


def test_what_does_not_fit_is_refused_by_name() -> None:
    run: Any = Recorder()
    run.chip = SMALL
    with pytest.raises(TechniqueError, match=r"x and dresidual of 90,000 rows .* vector or scalar can take it"):
        launches(run, (90_000, 64), technique="persistent")
    assert not run.kernels


def test_all_that_a_hopper_holds_is_in_registers_and_shared_memory() -> None:
    found = resident(Recorder(), FLOAT32, np.empty((60_000, 64), np.float32), tensors=2)
    assert found is not None
    kernel = batchnorm_add_relu_backward_persistent_vector(64, True, True, found.kept, uint32, FLOAT32)
    try:
        (code,) = examine([kernel], "sm_90")
    except ToolkitError as error:
        pytest.skip(f"no CUDA compiler here: {error}")
    assert not code.problems
    assert code.local == 0
    assert code.registers <= 255
    assert code.static_shared + code.dynamic_shared <= HOPPER.shared_bytes
