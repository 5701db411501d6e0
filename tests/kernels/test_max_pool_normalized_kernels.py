"""Max pooling at the end of a chain of normalizations: what its host functions refuse, and what they come to."""

from typing import Any

import numpy as np
import pytest

from kernels.batch_statistics import BatchStatistics, GradientSums, Normalization
from kernels.batchnorm import batchnorm_apply
from kernels.errors import ShapeError
from kernels.pooling import max_pool2d_forward, max_pool2d_normalized_backward, max_pool2d_normalized_forward
from kernels.run_dry import DryRunner
from kernels.run_emulated import EmulatorRunner
from kernels.storage import BFLOAT16

WINDOW: Any = ((2, 2), (2, 2), (0, 0), (1, 1), False)


def of(c: int) -> list[np.ndarray]:
    return [np.ones(c, np.float32) for _ in range(4)]


def normalization(c: int = 3, relu: bool = True) -> Normalization:
    return Normalization(BatchStatistics(*of(c)), *of(c)[:2], relu)


def image(size: int, c: int = 3, n: int = 2, dtype: Any = np.float32) -> np.ndarray:
    return np.ones((n, size, size, c), dtype)


def forward(run: Any, **changes: Any) -> None:
    options = {"technique": changes.pop("technique")} if "technique" in changes else {}
    given = {"x": image(4), "before": normalization(), "y": image(2), "index": image(2, dtype=np.int32)}
    max_pool2d_normalized_forward(run, *(given | changes).values(), *WINDOW, **options)


def backward(run: Any, **changes: Any) -> None:
    given = {"dy": image(2), "index": image(2, dtype=np.int32), "dx": image(4), "x": image(4)}
    given |= {"before": normalization(), "sums": GradientSums(*of(3))}
    dy, index, dx, *of_x = (given | changes).values()
    max_pool2d_normalized_backward(run, dy, index, dx, *WINDOW, *of_x)


REFUSED: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (forward, {"y": image(3)}, ShapeError, r"forward: y has shape \(2, 3, 3, 3\), expected \(2, 2, 2, 3\)"),
    (forward, {"index": image(2, 4, dtype=np.int32)}, ShapeError, r"index has shape \(2, 2, 2, 4\), expected"),
    (forward, {"before": normalization(4)}, ShapeError, r"forward: before.shift has shape \(4,\), expected \(3,\)"),
    (
        forward,
        {"before": normalization()._replace(beta=None)},
        TypeError,
        "gamma and beta of before are given",
    ),
    (forward, {"x": image(4, dtype=BFLOAT16.dtype)}, TypeError, "y is stored as float32, expected bfloat16 as x is"),
    (backward, {"dy": image(3)}, ShapeError, r"backward: dy has shape \(2, 3, 3, 3\), expected \(2, 2, 2, 3\)"),
    (backward, {"x": image(4, n=1)}, ShapeError, r"x has shape \(1, 4, 4, 3\), expected \(2, 4, 4, 3\) as dx has"),
    (backward, {"before": normalization(2)}, ShapeError, r"backward: before.shift has shape \(2,\), expected \(3,\)"),
    (backward, {"before": normalization()._replace(gamma=None)}, TypeError, "gamma and beta of before"),
    (backward, {"sums": GradientSums(*of(5))}, ShapeError, r"sums.dgamma has shape \(5,\), expected \(3,\)"),
    (backward, {"x": image(4, dtype=BFLOAT16.dtype)}, TypeError, "x is stored as bfloat16, expected float32 as dy is"),
]


@pytest.mark.parametrize(("call", "changes", "error", "words"), REFUSED)
def test_what_does_not_fit_is_refused_before_anything_is_launched(call, changes: Any, error: Any, words: str) -> None:
    run = DryRunner()
    call(run)
    assert run.launched
    run.launched.clear()
    with pytest.raises(error, match=words):
        call(run, **changes)
    assert not run.launched


def test_its_only_technique_by_name() -> None:
    run = DryRunner()
    forward(run, technique="separate")
    with pytest.raises(ValueError, match="has no technique 'fused'; its techniques are separate"):
        forward(run, technique="fused")


def test_it_is_its_parts_to_the_bit(rng) -> None:
    run = EmulatorRunner()
    x = run.upload(rng.standard_normal((2, 5, 4, 3)).astype(np.float32))
    before = Normalization(BatchStatistics(*map(run.upload, of(3))), None, None, True)
    a, shape = run.empty(x.shape), (2, 2, 2, 3)
    (y, right), (index, place) = ([run.empty(shape, dtype) for _ in range(2)] for dtype in (np.float32, np.int32))
    batchnorm_apply(run, x, before.statistics, None, None, a, True)
    max_pool2d_forward(run, a, right, place, *WINDOW)
    max_pool2d_normalized_forward(run, x, before, y, index, *WINDOW)
    assert np.asarray(y).tobytes() == np.asarray(right).tobytes()
    assert np.asarray(index).tobytes() == np.asarray(place).tobytes()


def test_no_images() -> None:
    run = EmulatorRunner()
    x, y, index = run.empty((0, 4, 4, 3)), run.empty((0, 2, 2, 3)), run.empty((0, 2, 2, 3), np.int32)
    before = Normalization(BatchStatistics(*map(run.upload, of(3))), None, None, True)
    sums = GradientSums(*map(run.upload, of(3)))
    max_pool2d_normalized_forward(run, x, before, y, index, *WINDOW)
    max_pool2d_normalized_backward(run, y, index, run.empty(x.shape), *WINDOW, x, before, sums)
    assert not any(np.asarray(part).any() for part in sums)
