"""The numbers that the optimizers' rules read; a file of its own, which needs no compiler.

They change from step to step. Each is formed in float64 and rounded once, on its way to the device: 1 - beta of a beta
near 1 would keep few digits in float32. The rules that read them are in kernels/updates.py.
"""

import numpy as np
from numpy.typing import NDArray


def sgd_numbers(lr: float, momentum: float, weight_decay: float) -> NDArray[np.float64]:
    """What SGD's rules read, (3,)."""
    return np.array([lr, momentum, weight_decay])


def sgd_still() -> NDArray[np.float64]:
    """Numbers by which, with a gradient of 0, nothing changes: v = 1 * v, value = value - 0 * v."""
    return np.array([0.0, 1.0, 0.0])


def adam_still() -> NDArray[np.float64]:
    """The same, of Adam: m1 = 1 * m1, m2 = 1 * m2, value = 1 * value - 0 * m1 / (sqrt(m2) + 1)."""
    return np.array([0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0])


def adam_numbers(
    step: int, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, decoupled: bool
) -> NDArray[np.float64]:
    """What Adam's rule reads, (9,). `step` counts from 1.

    Raises:
        ValueError: `step` is not at least 1, or a beta not in [0, 1).
    """
    if step < 1 or not (0 <= beta1 < 1 and 0 <= beta2 < 1):
        raise ValueError(f"adam: step {step}, beta1 {beta1}, beta2 {beta2}; expected a step from 1, betas in [0, 1)")
    decay, shrink = (0.0, 1 - lr * weight_decay) if decoupled else (weight_decay, 1.0)
    rate, scale = lr / (1 - beta1**step), (1 - beta2**step) ** -0.5
    return np.array([decay, shrink, beta1, 1 - beta1, beta2, 1 - beta2, rate, scale, eps])
