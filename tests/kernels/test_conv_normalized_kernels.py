"""Convolution in a chain of normalizations: what its host functions refuse, and what "separate" comes to."""

from typing import Any

import numpy as np
import pytest

from kernels.batch_statistics import BatchStatistics, GradientSums, Normalization, PendingGradient
from kernels.conv import (
    conv2d_forward,
    conv2d_normalized_backward_input,
    conv2d_normalized_backward_weight,
    conv2d_normalized_forward,
)
from kernels.errors import ShapeError, TechniqueError
from kernels.run_dry import DryRunner
from kernels.run_emulated import EmulatorRunner

WINDOW = (1, 1), (1, 1)


def of(c: int) -> list[np.ndarray]:
    return [np.ones(c, np.float32) for _ in range(4)]


def normalization(c: int = 3, relu: bool = True) -> Normalization:
    return Normalization(BatchStatistics(*of(c)), *of(c)[:2], relu)


def sums(c: int = 3) -> GradientSums:
    return GradientSums(*of(c))


def image(c: int, n: int = 2) -> np.ndarray:
    return np.ones((n, 5, 4, c), np.float32)


def pending(c: int = 6, **changes: Any) -> PendingGradient:
    return PendingGradient(image(c), image(c), normalization(c), sums(c))._replace(**changes)


W = np.ones((3, 3, 3, 6), np.float32)


def forward(run: Any, **changes: Any) -> None:
    options = {name: changes.pop(name) for name in ("technique", "precision") if name in changes}
    given = {"x": image(3), "before": normalization(), "w": W, "y": image(6), "window": WINDOW, "eps": 1e-5}
    given |= {"out": BatchStatistics(*of(6))} | changes
    x, before, w, y, window, eps, out = given.values()
    conv2d_normalized_forward(run, x, before, w, y, *window, eps, out, **options)


def backward_weight(run: Any, **changes: Any) -> None:
    x, before, dy, dw = ({"x": image(3), "before": normalization(), "dy": pending(), "dw": W} | changes).values()
    conv2d_normalized_backward_weight(run, x, before, dy, dw, *WINDOW)


def backward_input(run: Any, **changes: Any) -> None:
    given = {"dy": pending(), "w": W, "dx": image(3), "x": image(3), "before": normalization(), "sums": sums()}
    dy, w, dx, *of_x = (given | changes).values()
    conv2d_normalized_backward_input(run, dy, w, dx, *WINDOW, *of_x)


SHIFTED = Normalization(BatchStatistics(np.ones(2, np.float32), *of(3)[1:]), *of(3)[:2], True)
REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (forward, {"y": image(5)}, r"y has shape \(2, 5, 4, 5\), expected \(2, 5, 4, 6\)"),
    (forward, {"before": normalization(4)}, r"forward: before.shift has shape \(4,\), expected \(3,\)"),
    (forward, {"before": normalization()._replace(beta=of(2)[0])}, r"before.beta has shape \(2,\), expected \(3,\)"),
    (forward, {"out": BatchStatistics(*of(3))}, r"out.shift has shape \(3,\), expected \(6,\)"),
    (forward, {"x": image(3, 0), "y": image(6, 0)}, r"y has shape \(0, 5, 4, 6\), expected at least one row"),
    (backward_weight, {"before": SHIFTED}, r"weight: before.shift has shape \(2,\), expected \(3,\)"),
    (backward_weight, {"dy": pending(x=image(6, 1))}, r"dy.x has shape \(1, 5, 4, 6\), expected \(2, 5, 4, 6\)"),
    (backward_weight, {"dy": pending(sums=sums(5))}, r"dy.sums.dgamma has shape \(5,\), expected \(6,\)"),
    (backward_input, {"dy": pending(normalization=normalization(5))}, r"dy.normalization.shift has shape \(5,\)"),
    (backward_input, {"x": image(3, 1)}, r"input: x has shape \(1, 5, 4, 3\), expected \(2, 5, 4, 3\) as dx has"),
    (backward_input, {"sums": sums(4)}, r"sums.dgamma has shape \(4,\), expected \(3,\)"),
]


@pytest.mark.parametrize(("call", "changes", "words"), REFUSED)
def test_shapes_that_do_not_agree_are_refused_before_anything_is_launched(call, changes: Any, words: str) -> None:
    run = DryRunner()
    call(run)
    assert run.launched
    run.launched.clear()
    with pytest.raises(ShapeError, match=words):
        call(run, **changes)
    assert not run.launched


def test_what_belongs_together_is_given_together() -> None:
    run = DryRunner()
    with pytest.raises(TypeError, match="gamma and beta of before are given together or not at all"):
        forward(run, before=normalization()._replace(gamma=None))
    for missing in ("x", "before", "sums"):
        with pytest.raises(TypeError, match="x, before and sums are given together or not at all"):
            backward_input(run, **{missing: None})
    assert not run.launched


def test_techniques_by_name() -> None:
    run = DryRunner()
    forward(run, technique="separate")
    with pytest.raises(TechniqueError, match="'tensor_core': c_in 3 is no multiple of 4; separate can take it"):
        forward(run, technique="tensor_core")
    with pytest.raises(ValueError, match="has no technique 'fused'; its techniques are "):
        forward(run, technique="fused")


def test_without_anything_to_work_out_it_is_the_convolution(rng) -> None:
    run = EmulatorRunner()
    x, w = (run.upload(rng.standard_normal(shape).astype(np.float32)) for shape in ((2, 5, 4, 3), (3, 3, 3, 6)))
    ours, plain = run.empty((2, 5, 4, 6)), run.empty((2, 5, 4, 6))
    conv2d_normalized_forward(run, x, None, w, ours, *WINDOW, 1e-5, None)
    conv2d_forward(run, x, w, None, plain, *WINDOW)
    assert np.array_equal(np.asarray(ours), np.asarray(plain))


def test_no_images() -> None:
    run = EmulatorRunner()

    def upload(shape: tuple[int, ...]) -> np.ndarray:
        return run.upload(np.ones(shape, np.float32))

    def by_channel(c: int) -> list[np.ndarray]:
        return [upload((c,)) for _ in range(4)]

    x, y, w = upload((0, 5, 4, 3)), upload((0, 5, 4, 6)), upload(W.shape)
    before = Normalization(BatchStatistics(*by_channel(3)), None, None, True)
    behind = Normalization(BatchStatistics(*by_channel(6)), None, None, True)
    dy = PendingGradient(y, y, behind, GradientSums(None, None, *by_channel(6)[:2]))
    conv2d_normalized_forward(run, x, before, w, y, *WINDOW, 1e-5, None)
    dw, found = run.empty(W.shape), GradientSums(*(run.empty((3,)) for _ in range(4)))
    conv2d_normalized_backward_weight(run, x, before, dy, dw, *WINDOW)
    conv2d_normalized_backward_input(run, dy, w, upload((0, 5, 4, 3)), *WINDOW, x, before, found)
    assert not np.asarray(dw).any()
    assert not any(np.asarray(part).any() for part in found)
