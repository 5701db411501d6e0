"""Optimizers as kernels, in the emulator: many tensors in one launch, numbers that a captured step reads anew."""

import re
from typing import Any

import numpy as np
import pytest

from kernels.errors import ShapeError
from kernels.optimizer import adam, adam_reference, sgd, sgd_reference
from kernels.optimizer_numbers import adam_numbers, sgd_numbers
from kernels.run_emulated import EmulatorRunner
from kernels.updates import CHUNK

SHAPES = ((1,), (3, 5), (0, 4), (CHUNK,), (CHUNK + 6,), (2 * CHUNK - 1,), (64, 9))
TECHNIQUES = "scalar", "vector"
SGD = {"plain": (0.1, 0.0, 5e-4, False), "momentum": (0.1, 0.9, 5e-4, False), "nesterov": (0.1, 0.9, 5e-4, True)}
ADAM = {"adam": (3, 1e-2, 0.9, 0.99, 1e-8, 0.01, False), "adamw": (3, 1e-2, 0.9, 0.99, 1e-8, 0.01, True)}


def step_of_sgd(run: Any, *lists: Any, rule: str = "plain", **options: Any) -> None:
    *numbers, nesterov = SGD[rule]
    sgd(run, *lists, in_a_row(run, sgd_numbers(*numbers)), [0] * len(lists[0]), nesterov, **options)


def step_of_adam(run: Any, *lists: Any, rule: str = "adam", **options: Any) -> None:
    adam(run, *lists, in_a_row(run, adam_numbers(*ADAM[rule])), [0] * len(lists[0]), **options)


def in_a_row(run: Any, *rows: np.ndarray) -> np.ndarray:
    return run.upload(np.array(rows).astype(np.float32))


@pytest.fixture
def run() -> EmulatorRunner:
    return EmulatorRunner(counts=True)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def aligned(host: Any, offset: int = 0) -> np.ndarray:
    """A float32 copy that starts `offset` elements after a multiple of 16 bytes."""
    host = np.asarray(host, np.float32)
    whole = np.empty(host.size + 8, np.float32)
    start = -(whole.ctypes.data // 4) % 4 + offset
    array = whole[start : start + host.size].reshape(host.shape)
    array[...] = host
    return array


def tensors(
    rng: np.random.Generator, shapes: Any = SHAPES, offset: int = 0, positive: bool = False
) -> list[np.ndarray]:
    arrays = [rng.standard_normal(shape) for shape in shapes]
    return [aligned(np.abs(array) if positive else array, offset) for array in arrays]


def copies(*lists: list[np.ndarray]) -> list[list[np.ndarray]]:
    return [[array.astype(np.float64) for array in arrays] for arrays in lists]


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("rule", SGD)
def test_sgd_updates_every_element_of_every_tensor(run, rng, technique: str, rule: str) -> None:
    options = SGD[rule]
    values, grads = tensors(rng), tensors(rng)
    velocities = tensors(rng) if options[1] else []
    before = copies(values, grads, velocities or values)
    step_of_sgd(run, values, grads, velocities, rule=rule, technique=technique)
    for i, (value, grad, velocity) in enumerate(zip(*before, strict=True)):
        expected, after = sgd_reference(value, grad, velocity if velocities else None, *options)
        np.testing.assert_allclose(values[i], expected, rtol=1e-6, atol=1e-6)
        assert np.array_equal(grads[i], grad)
        if velocities:
            np.testing.assert_allclose(velocities[i], after, rtol=1e-6, atol=1e-6)
    assert [launched.grid for launched in run.launched] == [(8, 1, 1)]  # one launch, a chunk a block


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("rule", ADAM)
def test_adam_updates_every_element_of_every_tensor(run, rng, technique: str, rule: str) -> None:
    values, grads, firsts, seconds = tensors(rng), tensors(rng), tensors(rng), tensors(rng, positive=True)
    before = copies(values, grads, firsts, seconds)
    step_of_adam(run, values, grads, firsts, seconds, rule=rule, technique=technique)
    for i, arrays in enumerate(zip(*before, strict=True)):
        for got, expected in zip((values[i], firsts[i], seconds[i]), adam_reference(*arrays, *ADAM[rule]), strict=True):
            np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-6)
        assert np.array_equal(grads[i], arrays[1])
    assert len(run.launched) == 1


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_groups_go_by_numbers_of_their_own_in_one_launch(run, rng, technique: str) -> None:
    steps = (
        (3, 1e-2, 0.9, 0.99, 1e-8, 0.01, False),
        (7, 0.1, 0.8, 0.95, 1e-6, 0.2, True),
        (1, 0.3, 0, 0.5, 1e-3, 0, True),
    )
    numbers, rows = in_a_row(run, *(adam_numbers(*step) for step in steps)), [2, 0, 1, 1, 0, 2, 1]
    values, grads, firsts, seconds = tensors(rng), tensors(rng), tensors(rng), tensors(rng, positive=True)
    before = copies(values, grads, firsts, seconds)
    adam(run, values, grads, firsts, seconds, numbers, rows, technique=technique)
    for i, (row, *arrays) in enumerate(zip(rows, *before, strict=True)):
        expected = adam_reference(*arrays, *steps[row])
        for got, wanted in zip((values[i], firsts[i], seconds[i]), expected, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=1e-6)
    options = (0.1, 0.9, 5e-4), (0.01, 0.5, 0.1), (0.3, 0.0, 0.0)
    before = copies(values, grads, firsts)
    numbers = in_a_row(run, *(sgd_numbers(*one) for one in options))
    sgd(run, values, grads, firsts, numbers, rows, True, technique=technique)
    for i, (row, *arrays) in enumerate(zip(rows, *before, strict=True)):
        for got, wanted in zip((values[i], firsts[i]), sgd_reference(*arrays, *options[row], True), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=1e-6)
    assert len(run.launched) == 2


def test_both_techniques_give_the_same_bits(rng) -> None:
    run, host = EmulatorRunner(), [tensors(rng, positive=slot == 3) for slot in range(4)]
    found = []
    for technique in TECHNIQUES:
        values, grads, firsts, seconds = ([aligned(array) for array in arrays] for arrays in host)
        step_of_adam(run, values, grads, firsts, seconds, technique=technique)
        step_of_sgd(run, values, grads, firsts, rule="nesterov", technique=technique)
        found.append([*values, *firsts, *seconds])
    assert all(same_bits(a, b) for a, b in zip(*found, strict=True))


def test_one_tensor_that_is_not_aligned_makes_it_scalar(run, rng) -> None:
    values, grads = tensors(rng), tensors(rng)
    step_of_sgd(run, values, grads, [])
    grads[1] = aligned(grads[1], offset=1)
    step_of_sgd(run, values, grads, [])
    names = [launched.kernel.name for launched in run.launched]
    assert names == ["update_tensors_vector", "update_tensors_scalar"]


def test_the_numbers_are_formed_in_float64_and_rounded_once() -> None:
    assert sgd_numbers(0.1, 0.9, 5e-4).tolist() == [0.1, 0.9, 5e-4]
    numbers = adam_numbers(5, 1e-3, 0.9, 0.999, 1e-8, 0.01, True)
    exact = 0.0, 1 - 1e-5, 0.9, 1 - 0.9, 0.999, 1 - 0.999, 1e-3 / (1 - 0.9**5), (1 - 0.999**5) ** -0.5, 1e-8
    assert numbers.dtype == np.float64
    assert numbers.tolist() == list(exact)
    assert adam_numbers(5, 1e-3, 0.9, 0.999, 1e-8, 0.01, False)[:2].tolist() == [0.01, 1]


def test_the_numbers_are_read_when_the_kernel_runs(rng) -> None:
    """As in a captured step."""
    run = EmulatorRunner()
    host = [tensors(rng, ((7,),), positive=slot == 3) for slot in range(4)]
    first, second = ([[aligned(array) for array in arrays] for arrays in host] for _ in range(2))
    numbers = run.upload(np.zeros((2, 9), np.float32))
    graph = run.capture(lambda: adam(run, *second, numbers, [1]), warm_up=0)
    for step in (ADAM["adam"], (9, 5e-4, 0.9, 0.99, 1e-8, 0.02, False)):
        now = adam_numbers(*step).astype(np.float32)
        adam(run, *first, run.upload(now[np.newaxis]), [0])
        numbers[1] = now
        graph.replay()
    assert all(same_bits(a[0], b[0]) for a, b in zip(first, second, strict=True))


def test_nothing_to_update_launches_nothing(run) -> None:
    empty = [np.zeros((0, 3), np.float32)]
    step_of_sgd(run, [], [], [])
    step_of_sgd(run, empty, empty, [])
    step_of_adam(run, empty, empty, empty, empty)
    assert run.launched == []


def test_a_nan_stays_in_its_element(run) -> None:
    for technique in TECHNIQUES:
        values, grads = [aligned(np.ones(13))], [aligned(np.ones(13))]
        grads[0][6] = np.nan
        step_of_sgd(run, values, grads, [], technique=technique)
        assert np.isnan(values[0]).nonzero()[0].tolist() == [6]


def test_lists_that_do_not_fit_are_refused_before_anything_is_written(run, rng) -> None:
    values, grads, others = tensors(rng), tensors(rng), tensors(rng)
    before = [value.copy() for value in values]
    with pytest.raises(ShapeError, match=r"^sgd: grads has 6 arrays, expected 7 as values has$"):
        step_of_sgd(run, values, grads[1:], [])
    with pytest.raises(ShapeError, match=r"^adam: second_moments has 0 arrays, expected 7 as values has$"):
        step_of_adam(run, values, grads, others, [])
    everything = values, grads, [], in_a_row(run, sgd_numbers(0.1, 0, 0), sgd_numbers(0.1, 0, 0))
    for rows, message in (
        ([0] * 6, r"rows has 6 numbers, expected 7, one a tensor"),
        ([0, 1, 2, 0, 0, 0, 0], r"rows has 0 to 2, expected 0 to 1 as numbers has rows"),
        ([0, 1, -1, 0, 0, 0, 0], r"rows has -1 to 1, expected 0 to 1 as numbers has rows"),
    ):
        with pytest.raises(ShapeError, match=f"^sgd: {message}$"):
            sgd(run, *everything, rows, False)
    with pytest.raises(ShapeError, match=r"^adam: numbers has shape \(2, 3\), expected \(k, 9\), a row a group$"):
        adam(run, values, grads, others, others, everything[-1], [0] * 7)
    with pytest.raises(ShapeError, match=r"^sgd: numbers has shape \(3,\), expected \(k, 3\), a row a group$"):
        sgd(run, values, grads, [], everything[-1][0], [0] * 7, False)
    grads[1] = grads[1].T
    with pytest.raises(ShapeError, match=re.escape("sgd: grads[1] has shape (5, 3), expected (3, 5) as values[1] has")):
        step_of_sgd(run, values, grads, [])
    grads[1] = np.zeros((3, 5))
    with pytest.raises(TypeError, match="dtype float64, expected float32"):
        step_of_sgd(run, values, grads, [])
    grads[1] = np.zeros((3, 10), np.float32)[:, ::2]
    with pytest.raises(ValueError, match="not C-contiguous"):
        step_of_sgd(run, values, grads, [])
    assert all(np.array_equal(a, b) for a, b in zip(values, before, strict=True))
