"""Adam and AdamW."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from kernels.optimizer_numbers import adam_numbers, adam_still
from minidl.backends import Array
from minidl.nn import Parameter
from minidl.optim.optimizer import Group, Optimizer


class Adam(Optimizer):
    """Kingma and Ba 2015 (arXiv:1412.6980); weight decay is added to the gradient."""

    slots = ("first_moment", "second_moment")
    decoupled = False

    def __init__(
        self,
        params: Iterable[Parameter] | Sequence[Group],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def numbers(self, group: Group, count: int) -> np.ndarray:
        """See `Optimizer.numbers`."""
        beta1, beta2 = group["betas"]
        return adam_numbers(count, group["lr"], beta1, beta2, group["eps"], group["weight_decay"], self.decoupled)

    def still(self) -> np.ndarray:
        """See `Optimizer.still`."""
        return adam_still()

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
        del rule
        self.backend.adam(values, grads, slots[0], slots[1], numbers, rows)


class AdamW(Adam):
    """Adam with weight decay apart from the gradient (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

    decoupled = True

    def __init__(
        self,
        params: Iterable[Parameter] | Sequence[Group],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)
