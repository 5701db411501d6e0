"""The twin names the step, the layer and the array where something goes wrong, and nothing where all is well."""

import numpy as np
import pytest

from minidl import nn
from minidl.backends import BatchStatistics
from minidl.backends.cpu import CpuBackend
from minidl.lab import twin


def run(backend, steps: int = 2):
    lines: list[str] = []
    return twin.run(backend, steps, seed=0, said=lines.append), lines


def test_the_cpu_stays_within_its_budget() -> None:
    departure, lines = run(CpuBackend(1), steps=3)
    assert departure is None
    assert len(lines) == 3
    assert all("worst error/bound 0." in line for line in lines)
    # Each step: a loss that the float64 network has too, to about 1e-6.
    losses = [line.split("loss ")[1].split(" (")[0].split(", in float64 ") for line in lines]
    assert all(abs(float(ours) - float(exact)) < 1e-5 for ours, exact in losses)


class WrongInput(CpuBackend):
    """The second convolution's input gradient has one element that is off, in the second step."""

    calls = 0

    def conv2d_backward_input(self, dy, w, dx, stride, padding) -> None:
        super().conv2d_backward_input(dy, w, dx, stride, padding)
        if dx.shape[1:] == (8, 8, 32):
            self.calls += 1
            if self.calls == 2:
                dx.reshape(-1)[np.abs(dx).argmax()] *= np.float32(1.0001)


class WrongUpdate(CpuBackend):
    def sgd(self, values, *rest) -> None:
        super().sgd(values, *rest)
        values[2].reshape(-1)[0] += np.float32(1e-4)


class SharedMemory(CpuBackend):
    """An operation spoils what another one wrote: the input of the max-pool's backward pass."""

    held = None

    def max_pool2d_forward(self, x, y, index, *rest) -> None:
        super().max_pool2d_forward(x, y, index, *rest)
        self.held = index

    def cross_entropy(self, *arguments) -> None:
        super().cross_entropy(*arguments)
        self.held.reshape(-1)[0] ^= 1


class NotANumber(CpuBackend):
    def batchnorm_forward(self, x, gamma, beta, eps, out, y, relu, residual=None) -> None:
        super().batchnorm_forward(x, gamma, beta, eps, out, y, relu, residual)
        y.reshape(-1)[-1] = np.nan


@pytest.mark.parametrize(
    ("backend", "step", "layer", "array"),
    [
        (WrongInput, 2, "conv2", "dx"),
        (WrongUpdate, 1, "conv3.weight", "values[2]"),
        (SharedMemory, 1, "pool4", "index"),
        (NotANumber, 1, "bn1", "y"),
    ],
)
def test_a_departure_is_named(backend, step, layer, array) -> None:
    departure, lines = run(backend(1), steps=3)
    assert departure is not None
    assert (departure.step, departure.layer, departure.array) == (step, layer, array)
    assert len(lines) == step - 1
    assert f"step {step}, {layer}" in str(departure)


class UnmaskedResidual(CpuBackend):
    def batchnorm_add_relu_backward(self, x, y, dy, *rest) -> None:
        super().batchnorm_add_relu_backward(x, y, dy, *rest)
        rest[3][...] = dy


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_the_end_of_a_residual_block_is_held_too(affine: bool, training: bool) -> None:
    rng = np.random.default_rng(0)
    x, residual, dy = (rng.standard_normal((40, 3)).astype(np.float32) for _ in range(3))
    gamma, beta, dgamma, dbeta = np.ones((4, 3), np.float32) if affine else (None,) * 4
    statistics = BatchStatistics(*np.full((4, 3), 0.3, np.float32))
    y, dx, dresidual = (np.empty_like(x) for _ in range(3))
    backward = x, y, dy, statistics, gamma, dx, dresidual, dgamma, dbeta, training

    right = twin.Twin(CpuBackend(1))
    right.batchnorm_add_relu_apply(x, residual, statistics, gamma, beta, y)
    right.batchnorm_add_relu_backward(*backward)
    assert right.compared == (5 if affine else 3)
    assert 0 < right.worst[0] < 1
    with pytest.raises(twin.Departure, match="batchnorm_add_relu_backward: dresidual"):
        twin.Twin(UnmaskedResidual(1)).batchnorm_add_relu_backward(*backward)


def test_arrays_that_are_written_part_by_part_may_be_written_as_a_whole_later() -> None:
    backend, rng = twin.Twin(CpuBackend(1)), np.random.default_rng(0)
    layers = nn.Conv2d(2, 4, 3), nn.NoisyBatchNorm2d(4), nn.GhostBatchNorm2d(4, 2), nn.ReLU(), nn.BatchNorm2d(4)
    model = nn.Sequential(*layers).to(backend)
    model[4].freeze_statistics().freeze_affine()
    nn.fuse(model)
    for _ in range(3):
        y = model.forward(backend.array(rng.standard_normal((6, 5, 5, 2))))
        model.backward(backend.array(rng.standard_normal(y.shape)))
    assert 0 < backend.worst[0] < 1
