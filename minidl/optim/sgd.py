"""Stochastic gradient descent."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from kernels.optimizer_numbers import sgd_numbers, sgd_still
from minidl.backends import Array
from minidl.nn import Parameter
from minidl.optim.optimizer import Group, Optimizer


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, Nesterov's form of it, and weight decay added to the gradient."""

    def __init__(
        self,
        params: Iterable[Parameter] | Sequence[Group],
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        super().__init__(params, defaults)
        if any(group["nesterov"] and group["momentum"] == 0 for group in self.groups):
            raise ValueError("SGD: nesterov needs a momentum greater than 0")

    def slots_of(self, group: Group) -> tuple[str, ...]:
        """A velocity, if there is momentum."""
        return ("velocity",) if group["momentum"] else ()

    def numbers(self, group: Group, count: int) -> np.ndarray:
        """See `Optimizer.numbers`."""
        del count
        return sgd_numbers(group["lr"], group["momentum"], group["weight_decay"])

    def still(self) -> np.ndarray:
        """See `Optimizer.still`."""
        return sgd_still()

    def rule(self, group: Group) -> Any:
        """See `Optimizer.rule`."""
        return bool(group["momentum"]), bool(group["nesterov"])

    def update(
        self,
        rule: Any,
        numbers: Array,
        rows: list[int],
        values: list[Array],
        grads: list[Array],
        slots: list[list[Array]],
    ) -> None:
        """See `Optimizer.update`."""
        _, nesterov = rule
        self.backend.sgd(values, grads, slots[0] if slots else [], numbers, rows, nesterov)
