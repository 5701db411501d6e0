"""Host functions refuse what makes no sense before anything is launched; on a GPU nothing else would notice."""

import numpy as np
import pytest

from kernels.conv import conv2d_backward_input, conv2d_forward
from kernels.errors import ShapeError
from kernels.loss import cross_entropy
from kernels.optimizer import adam, sgd
from kernels.optimizer_numbers import adam_numbers
from kernels.pooling import avg_pool2d_forward, max_pool2d_forward


class NothingRuns:
    """A runner that must not be reached."""

    name = "none"

    def __call__(self, kernel, *values) -> None:
        raise AssertionError(f"{kernel} was launched")

    def empty(self, shape, dtype=np.float32) -> np.ndarray:
        return np.empty(shape, dtype)


RUN = NothingRuns()
X, W, Y = np.zeros((1, 4, 4, 2), np.float32), np.zeros((2, 2, 2, 3), np.float32), np.zeros((1, 3, 3, 3), np.float32)


@pytest.mark.parametrize(
    ("stride", "padding"), [((0, 1), (0, 0)), ((1, -1), (0, 0)), ((1, 1), (-1, 0))], ids=["zero", "negative", "padding"]
)
def test_a_window_that_cannot_be_is_refused(stride, padding) -> None:
    with pytest.raises(ShapeError, match="conv2d_forward: a kernel of 2, stride"):
        conv2d_forward(RUN, X, W, None, Y, stride, padding)
    with pytest.raises(ShapeError, match="expected a kernel and a stride of at least 1"):
        avg_pool2d_forward(RUN, X, X, (2, 2), stride, padding, True)


def test_a_kernel_of_no_size_is_refused() -> None:
    with pytest.raises(ShapeError, match="a kernel of 0"):
        avg_pool2d_forward(RUN, X, X, (0, 2), (1, 1), (0, 0), True)
    for shape in ((2, 2, 0, 3), (2, 2, 2, 0)):
        x, y = X[..., : shape[2]].copy(), np.zeros((1, 3, 3, shape[3]), np.float32)
        with pytest.raises(ShapeError, match="expected no axis of length 0"):
            conv2d_backward_input(RUN, y, np.zeros(shape, np.float32), x, (1, 1), (0, 0))


def test_a_pooling_window_that_could_be_all_padding_is_refused() -> None:
    y = np.zeros((1, 7, 7, 2), np.float32)
    with pytest.raises(ShapeError, match=r"padding \(2, 2\) with a kernel of \(2, 2\); expected at most half"):
        max_pool2d_forward(RUN, X, y, y.astype(np.int32), (2, 2), (1, 1), (2, 2))


@pytest.mark.parametrize("smoothing", [-0.1, 1.5, float("nan")])
def test_label_smoothing_is_a_share(smoothing) -> None:
    logits, targets = np.zeros((2, 3), np.float32), np.zeros(2, np.int64)
    with pytest.raises(ValueError, match=r"label_smoothing is .* expected a number from 0 to 1"):
        cross_entropy(RUN, logits, targets, np.zeros((), np.float32), logits.copy(), smoothing, -100, "mean")


def test_optimizers_name_what_they_lack() -> None:
    value, two = [np.zeros(3, np.float32)], np.zeros(2, np.float32)
    with pytest.raises(ShapeError, match=r"sgd: numbers has shape \(2,\), expected \(k, 3\)"):
        sgd(RUN, value, value, [], two, [0], False)
    with pytest.raises(ShapeError, match=r"adam: numbers has shape \(2,\), expected \(k, 9\)"):
        adam(RUN, value, value, value, value, two, [0])
    for step, beta1 in ((0, 0.9), (-1, 0.9), (1, 1.0)):
        with pytest.raises(ValueError, match="expected a step from 1, betas in"):
            adam_numbers(step, 0.1, beta1, 0.99, 1e-8, 0.0, False)
