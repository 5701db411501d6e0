"""Batch normalization of images in 16 bits: what float32 gives of the same numbers, rounded once; and what it costs."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from emulated import Recorder, blank, launched, placed
from numpy.testing import assert_allclose, assert_array_equal

from kernels import batchnorm, group_norm
from kernels.batch_statistics import BatchStatistics, GradientSums, Normalization, PendingGradient
from kernels.batchnorm.residency import residency, resident
from kernels.batchnorm.split import Split
from kernels.chip import HOPPER
from kernels.errors import TechniqueError
from kernels.run_emulated import EmulatorRunner
from kernels.storage import BFLOAT16, FLOAT16, FLOAT32, Storage
from minidl.lab.budget import U

Array = np.ndarray
NARROW = BFLOAT16, FLOAT16
SMALL = HOPPER._replace(multiprocessors=2)
# One channel a thread and eight; rows of all tails; on SMALL in registers alone (the first), and shared memory too.
FORWARD = [(3, 3), (131, 8), (1100, 17), (4500, 32)]
BACKWARD = [(131, 8), (600, 17), (2300, 32)]
each_narrow = pytest.mark.parametrize("storage", NARROW, ids=repr)


def a_run() -> EmulatorRunner:
    run = EmulatorRunner()
    run.chip = SMALL
    return run


def image(rng: np.random.Generator, shape: tuple[int, ...], storage: Storage, mean: float = 0.0) -> Array:
    return placed(storage.encode(mean + rng.standard_normal(shape)), 0, storage.dtype)


def known(c: int) -> BatchStatistics:
    return BatchStatistics(*(blank((c,)) for _ in range(4)))


def assert_rounded(got: Array, storage: Storage, expected: Array, error: float) -> None:
    """`got` is what `expected`, float64 and off by that much, rounds to."""
    low, high = storage.rounded(expected - error), storage.rounded(expected + error)
    values = storage.decode(got)
    assert (low <= values).all()
    assert (values <= high).all()


@pytest.mark.parametrize("technique", ["two_pass", "persistent"])
@pytest.mark.parametrize("shape", FORWARD, ids=str)
@each_narrow
def test_forward(rng, storage: Storage, shape, technique: str) -> None:
    x, residual, c = image(rng, shape, storage, 3), image(rng, shape, storage), shape[-1]
    gamma, beta, out = placed(rng.uniform(0.5, 2, c)), placed(rng.standard_normal(c)), known(c)
    of_x = storage.decode(x).astype(np.float64)
    right = batchnorm.batchnorm_statistics_reference(of_x, 1e-3)
    y = batchnorm.batchnorm_apply_reference(of_x, right, gamma, beta, relu=False)
    for added in (None, residual):
        got = blank(shape, 0, storage.dtype)
        batchnorm.batchnorm_forward(a_run(), x, gamma, beta, 1e-3, out, got, True, added, technique=technique)
        # As exact as in float32: a sum of rounded numbers would be off by 2e-3.
        error = np.abs((out.shift.astype(np.float64) - right.shift) + out.delta)
        assert (error <= 8 * U * np.sqrt(right.var) + 4 * U * (right.var == 0)).all()
        assert_allclose(out.var, right.var, rtol=8 * U)
        assert_allclose(out.inv_std, right.inv_std, rtol=8 * U)
        expected = y if added is None else y + storage.decode(added)
        assert_rounded(got, storage, np.maximum(expected, 0), 1e-5)


@pytest.mark.parametrize("technique", ["scalar", "vector", "persistent"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", BACKWARD, ids=str)
@each_narrow
def test_backward(rng, storage: Storage, shape, relu: bool, technique: str) -> None:
    x, dy, c = image(rng, shape, storage, 3), image(rng, shape, storage), shape[-1]
    gamma, beta = placed(rng.uniform(0.5, 2, c)), placed(rng.standard_normal(c))
    of_x, of_dy = (storage.decode(array).astype(np.float64) for array in (x, dy))
    statistics = BatchStatistics(*(placed(part) for part in batchnorm.batchnorm_statistics_reference(of_x, 1e-3)))
    dx, dgamma, dbeta = blank(shape, 0, storage.dtype), blank((c,)), blank((c,))
    given = x, dy, statistics, gamma, beta, dx, dgamma, dbeta, True, relu
    host = batchnorm.batchnorm_backward
    if technique == "vector" and c % 8:
        with pytest.raises(TechniqueError, match=f"{c} channels are no multiple of 8"):
            host(a_run(), *given, technique=technique)
        return
    host(a_run(), *given, technique=technique)
    wide = BatchStatistics(*(part.astype(np.float64) for part in statistics))
    right = batchnorm.batchnorm_backward_reference(of_x, of_dy, wide, gamma, beta, True, relu)
    size = np.abs(of_dy).sum(axis=0).max()
    assert_rounded(dx, storage, right[0], 2e-5 * (1 + wide.inv_std.max()))
    assert_allclose(dgamma, right[1], atol=1e-6 * size * 3)
    assert_allclose(dbeta, right[2], atol=1e-6 * size)


@pytest.mark.parametrize("technique", ["scalar", "vector", "persistent"])
@pytest.mark.parametrize("shape", BACKWARD, ids=str)
@each_narrow
def test_the_end_of_a_residual_block_passes_gradients_bit_by_bit(rng, storage: Storage, shape, technique: str) -> None:
    x, y, dy, c = image(rng, shape, storage, 3), image(rng, shape, storage), image(rng, shape, storage), shape[-1]
    y.reshape(-1)[::3] = 0
    dy.reshape(-1)[1::7] = storage.encode(np.float32(np.nan))
    dy.reshape(-1)[2::5] = storage.encode(np.float32(2.0 ** (storage.least - 3)))  # below the smallest normal number
    statistics, gamma = BatchStatistics(*(placed(np.ones(c)) for _ in range(4))), placed(rng.uniform(0.5, 2, c))
    dx, dresidual, dgamma, dbeta = (*(blank(shape, 0, storage.dtype) for _ in range(2)), blank((c,)), blank((c,)))
    given = x, y, dy, statistics, gamma, dx, dresidual, dgamma, dbeta, True
    fits = technique if technique != "vector" or c % 8 == 0 else None
    batchnorm.batchnorm_add_relu_backward(a_run(), *given, technique=fits)
    closed = storage.decode(y) <= 0
    got, right = dresidual.view(np.uint16), np.where(closed, 0, dy.view(np.uint16))
    finite = ~np.isnan(storage.decode(dresidual))
    assert_array_equal(got[finite], right[finite])
    assert_array_equal(finite, closed | ~np.isnan(storage.decode(dy)))


@each_narrow
def test_a_mask_is_what_forward_saw_before_it_rounded(storage: Storage) -> None:
    """Of y = 2^-30, which float16 stores as 0, the gradient passes."""
    x, dy = (placed(storage.encode(np.ones((64, 8))), 0, storage.dtype) for _ in range(2))
    zero, one = placed(np.zeros(8)), placed(np.ones(8))
    statistics, beta = BatchStatistics(one, zero, one, one), placed(np.full(8, 2.0**-30))
    y, dx = blank((64, 8), 0, storage.dtype), blank((64, 8), 0, storage.dtype)
    batchnorm.batchnorm_apply(a_run(), x, statistics, one, beta, y, relu=True)
    assert (storage.decode(y) == (0 if storage is FLOAT16 else 2.0**-30)).all()
    batchnorm.batchnorm_backward(a_run(), x, dy, statistics, one, beta, dx, None, None, False, True)
    assert (storage.decode(dx) == 1).all()


def test_a_batch_twice_as_large_stays_on_the_chip() -> None:
    def most(storage: Storage, tensors: int) -> int:
        """Rows of 64 channels, in thousands."""
        counts = range(1000, 600_000, 1000)
        return sum(residency(HOPPER, 64, storage.wide, rows, tensors, storage) is not None for rows in counts)

    for tensors in (1, 2):
        assert most(FLOAT16, tensors) == most(BFLOAT16, tensors)
        assert 1.8 < most(BFLOAT16, tensors) / most(FLOAT32, tensors) <= 2
    for storage in NARROW:
        for channels in (8, 24, 64, 520, 17):
            found = resident(Recorder(), storage, blank((3000, channels), 0, storage.dtype), tensors=2)
            assert found is not None
            parts, kept, span = found
            assert parts.width == (8 if channels % 8 == 0 else 1)
            assert -(-3000 // span) * parts.across <= HOPPER.multiprocessors
            assert -(-span // parts.depth) <= 16 + kept
    run, c = Recorder(), placed(np.ones(64))
    run.chip = HOPPER
    for storage, chosen in ((BFLOAT16, "forward_persistent_vector"), (FLOAT32, "sum_shifted_vector")):
        x = np.empty((256 * 1024, 64), storage.dtype)
        batchnorm.batchnorm_forward(run, x, c, c, 1e-5, BatchStatistics(c, c, c, c), x, True)
        assert f"batchnorm_{chosen}" in [kernel.name for kernel in run.kernels]
        run.kernels.clear()


def test_fewer_blocks_of_threads_with_more_registers() -> None:
    assert Split(64, 8).enough < Split(64, 4).enough == Split(64, 1).enough
    for rows in (1, 1000, 300_000):
        stretch, groups = Split(64, 8).way_back(rows, 2048, 16)
        assert stretch == Split(64, 8).span(rows, 256, rows)
        assert groups >= 1


def test_eight_channels_and_aligned_arrays_make_a_vector() -> None:
    c4, c8 = (BatchStatistics(*(placed(np.ones(c)) for _ in range(4))) for c in (4, 8))

    def name(c: int, offset: int, dtype: Any, known: BatchStatistics) -> str:
        x = blank((5, c), offset, dtype)
        return launched(batchnorm.batchnorm_apply, x, known, None, None, x, False)[0].rsplit("_", 1)[1]

    assert name(4, 0, np.float32, c4) == name(8, 0, np.uint16, c8) == name(8, 0, np.float16, c8) == "vector"
    assert name(4, 0, np.uint16, c4) == name(8, 1, np.float16, c8) == "scalar"


def calls(x: Array, y: Array, c: Array) -> dict[str, Callable[[Recorder], None]]:
    """Of each operation, with an array of another storage than the rest."""
    s = BatchStatistics(c, c, c, c)
    normal, sums, bn = Normalization(s, c, c, True), GradientSums(c, c, c, c), batchnorm
    return {
        "batchnorm_apply: y": lambda run: bn.batchnorm_apply(run, x, s, c, c, y, True),
        "batchnorm_add_relu_apply: residual": lambda run: bn.batchnorm_add_relu_apply(run, x, y, s, c, c, x),
        "batchnorm_forward: y": lambda run: bn.batchnorm_forward(run, x, c, c, 1e-5, s, y, True),
        "batchnorm_forward: residual": lambda run: bn.batchnorm_forward(run, x, c, c, 1e-5, s, x, True, y),
        "batchnorm_backward: dy": lambda run: bn.batchnorm_backward(run, x, y, s, c, c, x, c, c, True, True),
        "batchnorm_backward: dx": lambda run: bn.batchnorm_backward(run, x, x, s, c, c, y, c, c, True, True),
        "batchnorm_add_relu_backward: y": lambda run: bn.batchnorm_add_relu_backward(
            run, x, y, x, s, c, x, x, c, c, True
        ),
        "batchnorm_add_relu_backward: dresidual": lambda run: bn.batchnorm_add_relu_backward(
            run, x, x, x, s, c, x, y, c, c, True
        ),
        "batchnorm_gradient_sums: dy": lambda run: bn.batchnorm_gradient_sums(run, x, y, normal, sums),
        "batchnorm_add_relu_gradient_sums: dresidual": lambda run: bn.batchnorm_add_relu_gradient_sums(
            run, x, x, x, s, y, sums
        ),
        "batchnorm_pending_gradient: dy": lambda run: bn.batchnorm_pending_gradient(
            run, PendingGradient(y, x, normal, sums), x
        ),
    }


@pytest.mark.parametrize("name", list(calls(*[blank((1, 1))] * 3)))
def test_a_mix_of_storages_is_refused_before_anything_runs(name: str) -> None:
    for one, other in ((FLOAT32, BFLOAT16), (BFLOAT16, FLOAT16), (FLOAT16, FLOAT32)):
        run = Recorder()
        x, y = blank((5, 8), 0, one.dtype), blank((5, 8), 0, other.dtype)
        with pytest.raises(TypeError, match=re.escape(f"{name} is stored as {other}, expected {one} as x is")):
            calls(x, y, blank((8,)))[name](run)
        with pytest.raises(TypeError, match=r"has dtype float16, expected float32"):
            calls(x, x, blank((8,), 0, np.float16))[name](run)
        assert not run.kernels


@each_narrow
def test_group_normalization_takes_none_of_it(storage: Storage) -> None:
    run, x, c = Recorder(), blank((3, 5, 8), 0, storage.dtype), blank((8,))
    plain, statistics = blank((3, 5, 8)), BatchStatistics(*(blank((3, 2)) for _ in range(4)))
    refused = re.escape(f"has dtype {storage.dtype}, expected float32")
    with pytest.raises(TypeError, match=f"group_norm_statistics: x {refused}"):
        group_norm.group_norm_statistics(run, x, 2, 1e-5, statistics)
    with pytest.raises(TypeError, match=f"group_norm_apply: x {refused}"):
        group_norm.group_norm_apply(run, x, statistics, 2, c, c, x)
    with pytest.raises(TypeError, match=f"group_norm_apply: y {refused}"):
        group_norm.group_norm_apply(run, plain, statistics, 2, c, c, x)
    with pytest.raises(TypeError, match=f"group_norm_backward: dy {refused}"):
        group_norm.group_norm_backward(run, plain, x, statistics, 2, c, plain, c, c)
    assert not run.kernels
