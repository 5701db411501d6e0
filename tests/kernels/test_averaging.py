"""The moving average: its definition, and its kernels in the emulator."""

import re

import numpy as np
import pytest
from emulated import RUN, launched, number, placed
from numpy.testing import assert_allclose, assert_array_equal

from kernels.averaging import moving_average, moving_average_reference
from kernels.errors import ShapeError
from kernels.run_emulated import EmulatorRunner
from kernels.updates import CHUNK

SHAPES = ((), (1,), (3, 5), (0, 4), (CHUNK,), (CHUNK + 6,), (2 * CHUNK - 1,))


def test_an_average_by_hand() -> None:
    assert_array_equal(moving_average_reference(np.array([1.0, -2.0]), np.array([3.0, 2.0]), 0.25), [1.5, -1.0])
    assert_array_equal(moving_average_reference(np.array([1.0]), np.array([3.0]), 0.0), [1])
    assert_array_equal(moving_average_reference(np.array([1.0]), np.array([3.0]), 1.0), [3])


def test_an_average_agrees_with_pytorch(torch, rng) -> None:
    from torch.optim.swa_utils import get_ema_multi_avg_fn

    ours = [rng.standard_normal(shape) for shape in ((3, 4), (7,))]
    theirs = [torch.tensor(array) for array in ours]
    for step in range(5):
        values = [rng.standard_normal(array.shape) for array in ours]
        ours = [moving_average_reference(array, value, 1 - 0.9) for array, value in zip(ours, values, strict=True)]
        get_ema_multi_avg_fn(0.9)(theirs, [torch.tensor(value) for value in values], step)
        for our, their in zip(ours, theirs, strict=True):
            assert_allclose(our, their.numpy(), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("technique", ["scalar", "vector"])
@pytest.mark.parametrize("weight", [0.0, 1e-4, 0.1, 1.0])
def test_every_element_of_every_tensor(rng, technique: str, weight: float) -> None:
    averages = [placed(rng.standard_normal(shape)) for shape in SHAPES]
    values = [placed(rng.standard_normal(shape)) for shape in SHAPES]
    before = [array.astype(np.float64) for array in averages]
    moving_average(RUN, averages, values, number(weight, np.float32), technique=technique)
    for average, value, old in zip(averages, values, before, strict=True):
        assert_allclose(average, moving_average_reference(old, value, weight), rtol=1e-6, atol=1e-6)


def test_it_is_one_launch_for_all_tensors(rng) -> None:
    averages, values = ([placed(rng.standard_normal(shape)) for shape in SHAPES] for _ in range(2))

    run = EmulatorRunner(counts=True)
    moving_average(run, averages, values, number(0.1, np.float32))
    assert [launched.kernel.name for launched in run.launched] == ["update_tensors_vector"]
    assert launched(moving_average, [], [], number(0.1, np.float32)) == []


def test_the_weight_is_read_when_the_kernel_runs(rng) -> None:
    value, weight = placed(rng.standard_normal(7)), number(0.5, np.float32)
    ours, captured = placed(np.zeros(7)), placed(np.zeros(7))
    graph = RUN.capture(lambda: moving_average(RUN, [captured], [value], weight), warm_up=0)
    for now in (0.5, 0.1):
        moving_average(RUN, [ours], [value], number(now, np.float32))
        weight[...] = now
        graph.replay()
    assert_array_equal(ours, captured)


def test_a_nan_stays_in_its_element() -> None:
    for technique in ("scalar", "vector"):
        average, value = placed(np.ones(13)), placed(np.ones(13))
        value[6] = np.nan
        moving_average(RUN, [average], [value], number(0.5, np.float32), technique=technique)
        assert np.isnan(average).nonzero()[0].tolist() == [6]


def test_what_does_not_fit_is_refused_before_anything_is_written() -> None:
    average, value = placed(np.zeros((3, 5))), placed(np.ones((3, 5)))
    with pytest.raises(ShapeError, match=r"^moving_average: values has 2 arrays, expected 1 as averages has$"):
        moving_average(RUN, [average], [value, value], number(0.5, np.float32))
    with pytest.raises(ShapeError, match=re.escape("values[0] has shape (5, 3), expected (3, 5) as averages[0] has")):
        moving_average(RUN, [average], [value.T], number(0.5, np.float32))
    with pytest.raises(ShapeError, match=r"^moving_average: weight has shape \(1,\), expected \(\)$"):
        moving_average(RUN, [average], [value], number([0.5], np.float32))
    assert not average.any()
