"""Optimizers: one step of SGD, Adam or AdamW for many tensors, by PyTorch's rules.

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
         lists of such arrays, float32 and C-contiguous; their kernels are in kernels/updates.py. numbers: (k, 3) or
         (k, 9), a row for each parameter group or other share of the tensors; rows[i] is that of tensor i.
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

from kernels.choice import vectors
from kernels.launch import Array as DeviceArray
from kernels.launch import Runner, techniques
from kernels.optimizer_numbers import adam_numbers
from kernels.updates import ADAM_NUMBERS, SGD_NUMBERS, require_lists, require_rows, update_tensors

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
    """The next (value, first_moment, second_moment); step counts from 1. `decoupled` is AdamW."""
    numbers = adam_numbers(step, lr, beta1, beta2, eps, weight_decay, decoupled)
    return adam_by_numbers_reference(value, grad, first_moment, second_moment, numbers)


@np.errstate(invalid="ignore", over="ignore", divide="ignore")
def adam_by_numbers_reference(
    value: Array, grad: Array, first_moment: Array, second_moment: Array, numbers: Array
) -> tuple[Array, Array, Array]:
    """The same, given `adam_numbers`: rate is lr / (1 - beta1^t), scale 1 / sqrt(1 - beta2^t)."""
    decay, shrink, beta1, new1, beta2, new2, rate, scale, eps = numbers.tolist()
    value = value * shrink
    grad = grad + decay * value
    first_moment = beta1 * first_moment + new1 * grad
    second_moment = beta2 * second_moment + new2 * grad**2
    return value - rate * first_moment / (np.sqrt(second_moment) * scale + eps), first_moment, second_moment


@techniques("scalar", "vector")
def sgd(
    run: Runner,
    values: Sequence[DeviceArray],
    grads: Sequence[DeviceArray],
    velocities: Sequence[DeviceArray],
    numbers: DeviceArray,
    rows: Sequence[int],
    nesterov: bool,
    *,
    technique: str | None = None,
) -> None:
    """Launch on `run`, once for all tensors; `velocities` is empty when momentum is 0.

    `numbers` (k, 3) float32, each row those of `sgd_numbers`, lie in device memory: a captured step sees what was
    written there last. Tensor i goes by row `rows[i]`. The vector technique takes arrays that start at multiples of 16
    bytes.

    Raises:
        ShapeError: The lists do not fit each other, `numbers` is not (k, 3), or `rows` names none of its rows.
        TechniqueError: "vector" is asked for, and cannot take the arrays.
    """
    lists = {"values": values, "grads": grads} | ({"velocities": velocities} if len(velocities) else {})
    rule = "sgd" if not len(velocities) else "nesterov" if nesterov else "momentum"
    require_lists("sgd", lists)
    require_rows("sgd", numbers, SGD_NUMBERS, rows, len(values))
    vector = vectors(run, "sgd", technique, {}, **lists)
    update_tensors(run, list(lists.values()), rule, numbers, vector, rows)


@techniques("scalar", "vector")
def adam(
    run: Runner,
    values: Sequence[DeviceArray],
    grads: Sequence[DeviceArray],
    first_moments: Sequence[DeviceArray],
    second_moments: Sequence[DeviceArray],
    numbers: DeviceArray,
    rows: Sequence[int],
    *,
    technique: str | None = None,
) -> None:
    """Launch on `run`; `numbers` (k, 9) float32, each row those of `adam_numbers`, and `rows` are as for `sgd`.

    Raises:
        ShapeError: As for `sgd`.
        TechniqueError: As for `sgd`.
    """
    lists = {"values": values, "grads": grads, "first_moments": first_moments, "second_moments": second_moments}
    require_lists("adam", lists)
    require_rows("adam", numbers, ADAM_NUMBERS, rows, len(values))
    vector = vectors(run, "adam", technique, {}, **lists)
    update_tensors(run, list(lists.values()), "adam", numbers, vector, rows)
