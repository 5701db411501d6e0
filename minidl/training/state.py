"""What of a training run goes on from a checkpoint, but for its progress."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from minidl.nn import Module
from minidl.optim import Optimizer, WeightAverage
from minidl.training.loss_scale import LossScale


class State(NamedTuple):
    """All that a step changes on the device."""

    model: Module
    optimizer: Optimizer
    average: WeightAverage | None
    loss_scale: LossScale | None

    def tensors(self) -> dict[str, np.ndarray]:
        """Weights, buffers, the optimizer's state and the averages: "model.NAME", "optimizer.NAME", "average.NAME".

        With loss scaling "loss_scale.state", too.
        """
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors.update({f"optimizer.{name}": value for name, value in self.optimizer.state_dict().items()})
        if self.average is not None:
            tensors.update({f"average.{name}": value for name, value in self.average.state_dict().items()})
        if self.loss_scale is not None:
            tensors["loss_scale.state"] = self.loss_scale.backend.numpy(self.loss_scale.state)
        return tensors

    def load(self, tensors: Mapping[str, np.ndarray]) -> None:
        """The inverse of `tensors`. Raises ValueError if they are of another model or optimizer."""
        self.model.load_state_dict(_part(tensors, "model."))
        self.optimizer.load_state_dict(_part(tensors, "optimizer."))
        if self.average is not None:
            self.average.load_state_dict(_part(tensors, "average."))
        if self.loss_scale is not None and "loss_scale.state" in tensors:  # not of a run in another precision
            self.loss_scale.load(tensors["loss_scale.state"])

    def calls(self) -> dict[str, Any]:
        """Of each layer whose random numbers depend on a count of calls (dropout, noise), that count."""
        return {name: layer.calls for name, layer in self._drawing()}

    def load_calls(self, calls: Mapping[str, Any]) -> None:
        """The inverse of `calls`."""
        for name, layer in self._drawing():
            layer.calls = calls[name]

    def _drawing(self) -> list[tuple[str, Any]]:
        return [(name, module) for name, module in self.model.named_modules() if hasattr(module, "calls")]


def _part(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
