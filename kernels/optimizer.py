"""Optimizers: one step of SGD, Adam or AdamW for one tensor, by PyTorch's rules.

SGD, with gradient g, weight decay d, momentum m and learning rate lr (velocity v starts at 0):

    g = g + d * value
    v = m * v + g
    value = value - lr * v                      Nesterov: value - lr * (g + m * v); without momentum: value - lr * g

Adam at step t = 1, 2, ... (moments m1, m2 start at 0), where AdamW decays the value instead of the gradient:

    Adam:  g = g + d * value                    AdamW:  value = value - lr * d * value
    m1 = beta1 * m1 + (1 - beta1) * g
    m2 = beta2 * m2 + (1 - beta2) * g²
    value = value - lr / (1 - beta1^t) * m1 / (sqrt(m2 / (1 - beta2^t)) + eps)

Shapes   value, grad, velocity, first_moment, second_moment: equal shapes, any number of axes. The host functions take
         lists of such arrays, float32 and C-contiguous; their kernels are in kernels/updates.py.
Edges    A NaN or an infinity of the gradient stays in its own element.
Sources  I. Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML 2013, in the
         form of torch.optim.SGD, which multiplies the velocity, not the gradient, by lr; D. Kingma, J. Ba, "Adam",
         2015, arXiv:1412.6980, algorithm 1; I. Loshchilov, F. Hutter, "Decoupled Weight Decay Regularization", 2019,
         arXiv:1711.05101.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.launch import Array as DeviceArray
from kernels.launch import Runner, techniques
from kernels.updates import adam_numbers, require_lists, sgd_numbers, update_tensors

Array = NDArray[Any]


@np.errstate(invalid="ignore", over="ignore")
def sgd_reference(
    value: Array,
    grad: Array,
    velocity: Array | None,
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
) -> tuple[Array, Array | None]:
    """The next (value, velocity). `velocity` is None when momentum is 0, and then stays so."""
    grad = grad + weight_decay * value
    if velocity is None:
        return value - lr * grad, None
    velocity = momentum * velocity + grad
    direction = grad + momentum * velocity if nesterov else velocity
    return value - lr * direction, velocity


@np.errstate(invalid="ignore", over="ignore", divide="ignore")
def adam_reference(
    value: Array,
    grad: Array,
    first_moment: Array,
    second_moment: Array,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> tuple[Array, Array, Array]:
    """The next (value, first_moment, second_moment). `step` counts from 1; `decoupled` is AdamW's weight decay."""
    if decoupled:
        value = value - lr * weight_decay * value
    else:
        grad = grad + weight_decay * value
    first_moment = beta1 * first_moment + (1 - beta1) * grad
    second_moment = beta2 * second_moment + (1 - beta2) * grad**2
    mean = first_moment / (1 - beta1**step)
    mean_square = second_moment / (1 - beta2**step)
    return value - lr * mean / (np.sqrt(mean_square) + eps), first_moment, second_moment


@techniques("scalar", "vector")
def sgd(
    run: Runner,
    values: Sequence[DeviceArray],
    grads: Sequence[DeviceArray],
    velocities: Sequence[DeviceArray],
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
    *,
    numbers: DeviceArray | None = None,
    technique: str | None = None,
) -> None:
    """Launch on `run`; `velocities` is empty when momentum is 0.

    With `numbers`, `sgd_numbers` in device memory, lr, momentum and weight_decay are read from there when the kernel
    runs, so a captured step sees what was copied into it last. The vector technique falls back on the scalar one where
    an array does not start at a multiple of 16 bytes.

    Raises:
        ShapeError: The lists do not fit each other.
        ValueError: There is momentum and no velocities.
    """
    if momentum and values and not len(velocities):
        raise ValueError(f"sgd: momentum is {momentum} and velocities is empty; give one for each of values")
    lists = {"values": values, "grads": grads} | ({"velocities": velocities} if len(velocities) else {})
    host = sgd_numbers(lr, momentum, weight_decay)
    rule = "sgd" if not len(velocities) else "nesterov" if nesterov else "momentum"
    require_lists("sgd", lists)
    update_tensors(run, list(lists.values()), rule, host, numbers, technique)


@techniques("scalar", "vector")
def adam(
    run: Runner,
    values: Sequence[DeviceArray],
    grads: Sequence[DeviceArray],
    first_moments: Sequence[DeviceArray],
    second_moments: Sequence[DeviceArray],
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    *,
    numbers: DeviceArray | None = None,
    technique: str | None = None,
) -> None:
    """Launch on `run`; `numbers`, `adam_numbers` in device memory, takes the place of all from `step` on, as for `sgd`.

    Raises:
        ShapeError: The lists do not fit each other.
        ValueError: `step` is not at least 1, or a beta not in [0, 1).
    """
    if step < 1 or not (0 <= beta1 < 1 and 0 <= beta2 < 1):
        raise ValueError(f"adam: step {step}, beta1 {beta1}, beta2 {beta2}; expected a step from 1, betas in [0, 1)")
    lists = {"values": values, "grads": grads, "first_moments": first_moments, "second_moments": second_moments}
    host = adam_numbers(step, lr, beta1, beta2, eps, weight_decay, decoupled)
    require_lists("adam", lists)
    update_tensors(run, list(lists.values()), "adam", host, numbers, technique)
