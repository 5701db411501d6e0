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

Shapes   value, grad, velocity, first_moment, second_moment: equal shapes, any number of axes.
Edges    A NaN or an infinity of the gradient stays in its own element.
Sources  I. Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML 2013, in the
         form of torch.optim.SGD, which multiplies the velocity, not the gradient, by lr; D. Kingma, J. Ba, "Adam",
         2015, arXiv:1412.6980, algorithm 1; I. Loshchilov, F. Hutter, "Decoupled Weight Decay Regularization", 2019,
         arXiv:1711.05101.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

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
