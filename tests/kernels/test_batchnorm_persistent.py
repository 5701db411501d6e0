"""Batch normalization in one launch, with the batch on the chip: numbers, bits, traffic, machine code, its choice."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from emulated import Recorder, blank, placed
from numba import uint32
from numpy.testing import assert_allclose, assert_array_equal

from kernels import batchnorm
from kernels.batchnorm import BatchStatistics
from kernels.batchnorm.persistent import batchnorm_forward_persistent_vector
from kernels.batchnorm.persistent_backward import batchnorm_backward_persistent_vector
from kernels.batchnorm.residency import residency, resident
from kernels.chip import HOPPER, Chip
from kernels.compile import ToolkitError
from kernels.errors import ShapeError, TechniqueError
from kernels.run_emulated import EmulatorRunner
from kernels.storage import FLOAT32
from minidl.lab.machine_code import examine

Array = np.ndarray
SMALL = HOPPER._replace(multiprocessors=4)
# Registers alone and shared memory too (85 and 42 rows a thread), one line of channels and several, by four and by one.
FORWARD = ((300, 64), (4700, 64), (20000, 4), (129, 17), (40000, 3), (65, 100))
BACKWARD = ((300, 64), (2300, 64), (9000, 4), (129, 17), (20000, 3))


def a_run(chip: Chip | None = SMALL, counts: bool = False) -> EmulatorRunner:
    run = EmulatorRunner(counts=counts)
    run.chip = chip
    return run


def forward(run: Any, x: Array, *given: Any, **options: Any) -> tuple[Array, BatchStatistics]:
    """y and the statistics."""
    out, y = BatchStatistics(*(blank(x.shape[-1:]) for _ in range(4))), blank(x.shape)
    batchnorm.batchnorm_forward(run, x, *given[:2], 1e-5, out, y, *given[2:], **options)
    return y, out


def numbers(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Array, ...]:
    """Two arrays of that shape, gamma and beta."""
    return tuple(placed(rng.standard_normal(s)) for s in (shape, shape, shape[-1:], shape[-1:]))


def wide(*arrays: Any) -> Any:
    return [np.asarray(array, np.float64) for array in arrays]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", FORWARD, ids=str)
def test_forward(rng, shape, relu: bool) -> None:
    x, residual, gamma, beta = numbers(rng, shape)
    x += 100
    added = residual if relu and shape[0] % 2 else None
    y, out = forward(a_run(), x, gamma, beta, relu, added, technique="persistent")
    of_x, expected = batchnorm.batchnorm_forward_reference(*wide(x, gamma, beta), 1e-5, relu, added)
    assert_allclose(out.shift + out.delta.astype(np.float64), of_x.shift, atol=1e-6)
    assert_allclose(out.var, of_x.var, rtol=2e-6)
    assert_allclose(y, expected, atol=2e-5)
    again, same = forward(a_run(), x, gamma, beta, relu, added, technique="persistent")
    for one, other in ((y, again), *zip(out, same, strict=True)):
        assert_array_equal(one, other)  # the same bits


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", BACKWARD, ids=str)
def test_backward(rng, shape, training: bool) -> None:
    x, dy, gamma, beta = numbers(rng, shape)
    statistics = BatchStatistics(*wide(*batchnorm.batchnorm_statistics_reference(x.astype(np.float64), 1e-5)))
    given = BatchStatistics(*(placed(part) for part in statistics))
    answers = [blank(shape), blank(shape[-1:]), blank(shape[-1:])]
    modes = training, shape[0] != 300
    batchnorm.batchnorm_backward(a_run(), x, dy, given, gamma, beta, *answers, *modes, technique="persistent")
    right = batchnorm.batchnorm_backward_reference(*wide(x, dy), statistics, *wide(gamma, beta), *modes)
    of_sums = 2e-8 * len(x)  # of as many terms about as large as 1: a third of a rounding each
    for got, expected, error in zip(answers, right, (5e-6, of_sums, of_sums), strict=True):
        assert expected is not None
        assert_allclose(got, expected, atol=error)


@pytest.mark.parametrize("family", ["constant", "far", "nan"])
def test_hostile_numbers_on_registers_and_shared_memory(rng, family: str) -> None:
    x = placed(rng.standard_normal((4700, 8)))
    x[:, 2] = {"constant": 12345.678, "far": 1e4 + 1e-2 * x[:, 2], "nan": x[:, 2]}[family]
    if family == "nan":
        x[4650, 2] = np.nan  # which is in shared memory
    y, out = forward(a_run(HOPPER._replace(multiprocessors=1)), x, None, None, False, technique="persistent")
    of_x, expected = batchnorm.batchnorm_forward_reference(x.astype(np.float64), None, None, 1e-5, False)
    if family == "constant":
        assert out.var[2] == 0
        assert not y[:, 2].any()
    assert np.isnan(y[:, 2]).all() == (family == "nan")
    assert np.isfinite(np.delete(y, 2, axis=1)).all()
    assert_allclose(y, expected, atol=1e-5)
    assert_allclose(out.inv_std, of_x.inv_std, rtol=1e-6)


def test_the_sign_of_y_near_0_is_the_same_in_forward_and_backward(rng) -> None:
    x = placed(rng.integers(-2, 3, (512, 8)))
    gamma, beta = placed(np.ones(8)), placed(np.zeros(8))
    y, out = forward(a_run(), x, gamma, beta, True, technique="persistent")
    dx, dgamma, dbeta = blank(x.shape), blank((8,)), blank((8,))
    ones, gradients = placed(np.ones(x.shape)), (dx, dgamma, dbeta)
    batchnorm.batchnorm_backward(a_run(), x, ones, out, gamma, beta, *gradients, True, True, technique="persistent")
    assert_array_equal(dbeta, (y > 0).sum(axis=0))


def test_x_is_read_once_and_y_written_once(rng) -> None:
    x, residual, gamma, beta = numbers(rng, (4700, 64))  # 29 KB of registers and shared memory a row of threads
    for added, passes in ((None, 2), (residual, 3)):
        run = a_run(counts=True)
        forward(run, x, gamma, beta, True, added)
        (one,) = run.launched
        total = one.report.counts.total
        assert one.kernel.arguments[4] > 0  # rows in shared memory
        assert passes <= total.bytes_moved / x.nbytes <= 1.02 * passes
        assert total.bytes_asked >= 0.95 * total.bytes_moved
        assert total.bank_conflicts == 0


def test_backward_reads_x_and_dy_once_and_writes_dx_once(rng) -> None:
    x, dy, gamma, beta = numbers(rng, (2300, 64))
    _, out = forward(a_run(), x, gamma, beta, True)
    run = a_run(counts=True)
    gradients = blank(x.shape), blank((64,)), blank((64,))
    batchnorm.batchnorm_backward(run, x, dy, out, gamma, beta, *gradients, True, True)
    (one,) = run.launched
    total = one.report.counts.total
    assert 3 <= total.bytes_moved / x.nbytes <= 1.04 * 3
    assert total.bytes_asked >= 0.95 * total.bytes_moved
    assert total.bank_conflicts == 0


def chosen(run: Any, shape: tuple[int, ...], **options: Any) -> list[str]:
    x, parameter = np.empty(shape, np.float32), np.empty(shape[-1:], np.float32)
    run.kernels.clear()
    batchnorm.batchnorm_forward(
        run, x, parameter, parameter, 1e-5, BatchStatistics(*[parameter] * 4), x, True, **options
    )
    gradients = x, parameter, parameter
    given = x, x, BatchStatistics(*[parameter] * 4), parameter, parameter
    batchnorm.batchnorm_backward(run, *given, *gradients, True, True)
    return [kernel.name.removeprefix("batchnorm_") for kernel in run.kernels]


FORWARD_IN_TWO = ["sum_shifted_vector", "finish_statistics", "apply_vector"]
BACKWARD_IN_TWO = ["sum_gradients_vector", "finish_gradients", "backward_vector"]
PERSISTENT = ["forward_persistent_vector", "backward_persistent_vector"]


def test_the_size_decides() -> None:
    run = Recorder()
    assert chosen(run, (128, 32, 32, 64)) == FORWARD_IN_TWO + BACKWARD_IN_TWO  # nothing is known of a GPU
    run.chip = HOPPER
    assert chosen(run, (128, 4, 4, 512)) == PERSISTENT
    assert chosen(run, (128, 16, 16, 128)) == PERSISTENT  # 16.8 MB each
    assert chosen(run, (128, 32, 32, 64)) == PERSISTENT[:1] + BACKWARD_IN_TWO  # 33.6 MB each
    assert chosen(run, (512, 32, 32, 64)) == FORWARD_IN_TWO + BACKWARD_IN_TWO
    assert chosen(run, (128, 32, 32, 64), technique="two_pass") == FORWARD_IN_TWO + BACKWARD_IN_TWO
    run.chip = Chip(multiprocessors=132, shared_bytes=48 << 10, registers=65536)
    assert chosen(run, (128, 32, 32, 64))[:3] == FORWARD_IN_TWO
    run.chip = Chip(multiprocessors=132, shared_bytes=227 << 10, registers=32768)
    assert chosen(run, (128, 4, 4, 512)) == FORWARD_IN_TWO + BACKWARD_IN_TWO


def test_a_batch_size_nearby_compiles_nothing_new() -> None:
    run = Recorder()
    run.chip = HOPPER
    for images in (128, 127, 113):
        chosen(run, (images, 32, 32, 64))
    assert {kernel.name: 1 for kernel in run.kernels} == {kernel.name: 1 for kernel in set(run.kernels)}


@pytest.mark.parametrize("tensors", [1, 2])
@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("groups", [1, 3, 8, 9, 130])
def test_all_rows_have_a_place_and_all_blocks_are_resident(groups: int, width: int, tensors: int) -> None:
    for rows in (1, 100, 5000, 123456):
        found = residency(HOPPER, groups * width, width, rows, tensors, FLOAT32)
        if found is None:
            continue
        parts, kept, span = found
        blocks = -(-rows // span)
        assert blocks * parts.across <= HOPPER.multiprocessors
        assert -(-span // parts.depth) <= {1: 32, 2: 16}[tensors] + kept
        merging = 4 * 256 * (4 * width + 1)
        assert merging + 4 * 256 * width * kept * tensors <= HOPPER.shared_bytes - 1024
    sizes = [residency(HOPPER, 64, 4, rows, tensors, FLOAT32) is not None for rows in range(1000, 400_000, 1000)]
    assert all(a or not b for a, b in pairwise(sizes))  # what fits, fits with fewer rows
    assert (sizes.count(True) * 1000 * 64 * 4) / 1e6 > {1: 42, 2: 21}[tensors]


def test_what_does_not_fit_is_refused_by_name() -> None:
    run = Recorder()
    run.chip = SMALL
    x, c = np.empty((90_000, 64), np.float32), np.empty(64, np.float32)
    known = BatchStatistics(c, c, c, c)
    with pytest.raises(
        TechniqueError, match=r"technique 'persistent': x of 90,000 rows and 64 channels do not fit on 4"
    ):
        batchnorm.batchnorm_forward(run, x, c, c, 1e-5, known, x, True, technique="persistent")
    with pytest.raises(TechniqueError, match=r"x and dy of 90,000 rows and .* vector or scalar can take it"):
        batchnorm.batchnorm_backward(run, x, x, known, c, c, x, c, c, True, True, technique="persistent")
    assert not run.kernels


def test_wrong_arguments_are_refused() -> None:
    run, x, c = Recorder(), blank((5, 8)), blank((8,))
    known = BatchStatistics(c, c, c, c)
    host = batchnorm.batchnorm_forward
    with pytest.raises(ShapeError, match=r"batchnorm_forward: residual has shape \(4, 8\), expected \(5, 8\)"):
        host(run, x, c, c, 1e-5, known, x, True, blank((4, 8)))
    with pytest.raises(ShapeError, match=r"batchnorm_forward: x has shape \(0, 8\), expected at least one row"):
        host(run, blank((0, 8)), c, c, 1e-5, known, blank((0, 8)), True)
    with pytest.raises(ShapeError, match=r"batchnorm_forward: inv_std has shape \(7,\)"):
        host(run, x, c, c, 1e-5, known._replace(inv_std=blank((7,))), x, True)
    with pytest.raises(TypeError, match="gamma and beta are given together"):
        host(run, x, c, None, 1e-5, known, x, True)
    with pytest.raises(ValueError, match="batchnorm_forward: a residual is added before a ReLU; give relu=True"):
        host(run, x, c, c, 1e-5, known, x, False, x)
    assert not run.kernels


def test_it_is_replayed_in_a_graph(rng) -> None:
    run, (x, _, gamma, beta) = a_run(), numbers(rng, (300, 64))
    out, y = BatchStatistics(*(blank((64,)) for _ in range(4))), blank(x.shape)
    graph = run.capture(lambda: batchnorm.batchnorm_forward(run, x, gamma, beta, 1e-5, out, y, True))
    before = y.copy()
    x *= 2
    x += 1
    for _ in range(2):
        y[...] = 77
        graph.replay()
        assert_allclose(y, before, atol=1e-4)  # normalized, the same


def test_all_that_a_hopper_holds_is_in_registers_and_shared_memory() -> None:
    x = np.empty((128 * 32 * 32, 64), np.float32)
    of_one, of_two = resident(Recorder(), FLOAT32, x, tensors=1), resident(Recorder(), FLOAT32, x[:60000], tensors=2)
    assert of_one is not None
    assert of_two is not None
    kernels = [
        batchnorm_forward_persistent_vector(64, True, True, True, of_one.kept, uint32, FLOAT32),
        batchnorm_backward_persistent_vector(64, True, True, True, of_two.kept, uint32, FLOAT32),
    ]
    try:
        found = examine(kernels, "sm_90")
    except ToolkitError as error:
        pytest.skip(f"no CUDA compiler here: {error}")
    for code in found:
        assert not code.problems
        assert code.local == 0
        assert code.registers <= 255
        assert code.static_shared + code.dynamic_shared <= HOPPER.shared_bytes
