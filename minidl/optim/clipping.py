"""Gradient clipping by the norm of all gradients together (Pascanu et al. 2013, arXiv:1211.5063)."""

import math
from collections.abc import Iterable
from numbers import Real
from typing import Any

from minidl.backends import Array
from minidl.nn import Module, Parameter


def clip_grad_norm(
    parameters: Parameter | Iterable[Parameter], max_norm: float, error_if_nonfinite: bool = False
) -> Array:
    """Scale all gradients by min(1, max_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_ does.

    The norm is that of all gradients as one vector. It neither overflows nor underflows where it is a float32 number,
    and stays on the device, so that the host need not wait for it.

    Args:
        parameters: One or more; those without a gradient take no part.
        max_norm: 0 or more; infinity only measures.
        error_if_nonfinite: Look at the norm, and raise if it is NaN or infinite. Without, a norm of NaN makes all
            gradients NaN, and an infinite one makes them 0, or NaN where they are infinite.

    Returns:
        The norm before clipping, of shape (); `float(norm)` brings it to the host. A 0 of Python if there is no
        gradient.

    Raises:
        FloatingPointError: The norm is not finite, and `error_if_nonfinite`; no gradient was changed.
        TypeError: `parameters` is a model, or `max_norm` no number.
        ValueError: `max_norm` is negative or NaN, or the parameters are on different devices.
    """
    if isinstance(parameters, Module):
        raise TypeError("clip_grad_norm: parameters is a model; give model.parameters()")
    if not _is_number(max_norm):
        raise TypeError(f"clip_grad_norm: max_norm must be a number, got {max_norm!r}")
    if not max_norm >= 0:
        raise ValueError(f"clip_grad_norm: max_norm must be 0 or more, got {max_norm}")
    chosen = [parameters] if isinstance(parameters, Parameter) else list(parameters)
    chosen = [parameter for parameter in chosen if parameter.grad is not None]
    if not chosen:
        return 0.0
    backend = chosen[0].backend
    if any(parameter.backend is not backend for parameter in chosen):
        raise ValueError("clip_grad_norm: the parameters are on different devices; clip those of one at a time")
    grads, norm = [parameter.grad for parameter in chosen], backend.empty(())
    backend.global_norm(grads, norm)
    if error_if_nonfinite and not math.isfinite(float(norm)):
        raise FloatingPointError(f"clip_grad_norm: the norm of the gradients is {float(norm)}; they were not clipped")
    if max_norm != math.inf:
        backend.clip_by_norm(grads, norm, float(max_norm))
    return norm


def _is_number(value: Any) -> bool:
    return isinstance(value, Real)
