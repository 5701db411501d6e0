import numpy as np
import pytest
from numpy.testing import assert_array_equal

from kernels.errors import ShapeError
from kernels.linear import (
    linear_backward_input,
    linear_backward_input_reference,
    linear_backward_weight,
    linear_backward_weight_reference,
    linear_forward,
    linear_forward_reference,
)
from kernels.run_emulated import EmulatorRunner

TECHNIQUES = ("plain", "tiled", None)
SIZES = [  # n, c_in, c_out
    (1, 1, 1), (2, 1, 3), (7, 5, 1), (17, 33, 16), (33, 16, 15), (33, 64, 10), (64, 3, 65), (65, 64, 63),
    (129, 15, 130), (300, 17, 33), (5, 784, 10), (0, 5, 3), (0, 8, 3), (3, 0, 2), (3, 4, 0),
]  # fmt: skip


def whole(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-3, 4, shape).astype(np.float32)


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_products_of_whole_numbers_are_exact(rng, size, technique: str | None) -> None:
    n, c_in, c_out = size
    x, w, bias, dy = whole(rng, n, c_in), whole(rng, c_out, c_in), whole(rng, c_out), whole(rng, n, c_out)
    y, dx, dw = np.empty_like(dy), np.empty_like(x), np.empty_like(w)
    run = EmulatorRunner()
    linear_forward(run, x, w, None, y, technique=technique)
    assert_array_equal(y, linear_forward_reference(x, w, None))
    linear_forward(run, x, w, bias, y, technique=technique)
    assert_array_equal(y, linear_forward_reference(x, w, bias))
    linear_backward_input(run, dy, w, dx, technique=technique)
    assert_array_equal(dx, linear_backward_input_reference(dy, w))
    linear_backward_weight(run, x, dy, dw, technique=technique)
    assert_array_equal(dw, linear_backward_weight_reference(x, dy))


def test_layers_of_all_sizes_share_their_kernels(rng) -> None:
    run = EmulatorRunner(counts=True)
    for c_in, c_out in ((40, 50), (41, 60)):
        y = np.empty((64, c_out), np.float32)
        linear_forward(run, whole(rng, 64, c_in), whole(rng, c_out, c_in), None, y)
    first, second = (launched.kernel for launched in run.launched)
    assert first is second


def test_shapes_that_do_not_fit_are_refused() -> None:
    run = EmulatorRunner()
    x, w, y = (np.zeros(shape, np.float32) for shape in ((4, 3), (2, 3), (4, 2)))
    with pytest.raises(ShapeError, match=r"forward: w has shape \(3, 2\), expected \(c_out, 3\) as x is \(4, 3\)"):
        linear_forward(run, x, np.zeros((3, 2), np.float32), None, y)
    with pytest.raises(ShapeError, match=r"linear_forward: x has shape \(4, 3, 1\), expected \(n, c_in\)"):
        linear_forward(run, x[..., None], w, None, y)
    with pytest.raises(ShapeError, match=r"linear_forward: bias has shape \(3,\), expected \(2,\)"):
        linear_forward(run, x, w, np.zeros(3, np.float32), y)
    with pytest.raises(ShapeError, match=r"backward_input: dy has shape \(5, 2\), expected \(4, 2\) for dx \(4, 3\)"):
        linear_backward_input(run, np.zeros((5, 2), np.float32), w, x)
    with pytest.raises(ShapeError, match=r"backward_weight: dy has shape \(4, 3\), expected \(4, 2\) for x \(4, 3\)"):
        linear_backward_weight(run, x, x, w)
