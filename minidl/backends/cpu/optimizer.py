"""Optimizer updates and weight averaging on the CPU: one pass over each parameter."""

from collections.abc import Sequence

import numpy as np

from minidl.backends.cpu.compile import compiled
from minidl.backends.cpu.device import CpuDevice

GRAIN = 1 << 16  # elements in a piece of work


@compiled
def _sgd(first, last, value, grad, lr, weight_decay):
    for i in range(first, last):
        value[i] -= lr * (grad[i] + weight_decay * value[i])


@compiled
def _sgd_momentum(first, last, value, grad, velocity, lr, momentum, weight_decay, nesterov):
    for i in range(first, last):
        g = grad[i] + weight_decay * value[i]
        velocity[i] = momentum * velocity[i] + g
        value[i] -= lr * (g + momentum * velocity[i] if nesterov else velocity[i])


@compiled
def _adam(
    first, last, value, grad, first_moment, second_moment, decay, shrink, beta1, new1, beta2, new2, rate, scale, eps
):
    """The numbers are those of `adam_numbers` in kernels/optimizer_numbers.py."""
    for i in range(first, last):
        v = value[i] * shrink
        g = grad[i] + decay * v
        first_moment[i] = beta1 * first_moment[i] + new1 * g
        second_moment[i] = beta2 * second_moment[i] + new2 * g * g
        value[i] = v - rate * first_moment[i] / (np.sqrt(second_moment[i]) * scale + eps)


@compiled
def _moving_average(first, last, average, value, weight):
    for i in range(first, last):
        average[i] += weight * (value[i] - average[i])


class OptimizerOps(CpuDevice):
    """The optimizer part of the CPU backend; see `Backend` for the operations."""

    def sgd(
        self,
        values: Sequence[np.ndarray],
        grads: Sequence[np.ndarray],
        velocities: Sequence[np.ndarray],
        numbers: np.ndarray,
        rows: Sequence[int],
        nesterov: bool,
    ) -> None:
        if not velocities:
            for value, grad, row in zip(values, grads, rows, strict=True):
                rate, _, decay = numbers[row]
                self.workers.run(
                    _sgd, value.size, GRAIN, value.reshape(-1), grad.reshape(-1), rate, decay, elements=value.size
                )
            return
        for value, grad, velocity, row in zip(values, grads, velocities, rows, strict=True):
            rate, momentum, decay = numbers[row]
            arrays = value.reshape(-1), grad.reshape(-1), velocity.reshape(-1)
            self.workers.run(
                _sgd_momentum, value.size, GRAIN, *arrays, rate, momentum, decay, nesterov, elements=value.size
            )

    def adam(
        self,
        values: Sequence[np.ndarray],
        grads: Sequence[np.ndarray],
        first_moments: Sequence[np.ndarray],
        second_moments: Sequence[np.ndarray],
        numbers: np.ndarray,
        rows: Sequence[int],
    ) -> None:
        for *arrays, row in zip(values, grads, first_moments, second_moments, rows, strict=True):
            flat = tuple(array.reshape(-1) for array in arrays)
            self.workers.run(_adam, flat[0].size, GRAIN, *flat, *numbers[row], elements=2 * flat[0].size)

    def moving_average(self, averages: Sequence[np.ndarray], values: Sequence[np.ndarray], weight: np.ndarray) -> None:
        share = weight[()]
        for average, value in zip(averages, values, strict=True):
            self.workers.run(
                _moving_average, value.size, GRAIN, average.reshape(-1), value.reshape(-1), share, elements=value.size
            )
