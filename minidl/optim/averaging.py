"""Weight averaging: the mean of the weights that training visits often does better than the last of them."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from minidl.backends import Array
from minidl.nn import Module, Parameter
from minidl.nn.arguments import is_count, real_number
from minidl.nn.batchnorm import BatchNorm

BUFFERS = ("average", "copy")


class _Buffer(NamedTuple):
    """A buffer of a module, which may be another array by and by."""

    module: Module
    name: str

    @property
    def value(self) -> Array:
        return getattr(self.module, self.name)


class WeightAverage:
    """An exponential moving average of a model's parameters, and of its running statistics.

        average = average + (1 - decay) * (value - average)        at the update of number t = 1, 2, ...

    (Polyak and Juditsky 1992; torch.optim.swa_utils.get_ema_multi_avg_fn, timm's ModelEmaV2.) The first update copies,
    so that no correction for a bias towards the start is needed; with `warm_up`, decay grows from there,
    min(decay, (1 + t) / (10 + t)) as in TensorFlow, and early averages forget the start quickly.

    Args:
        model: Its parameters and buffers of this moment are averaged, on its device.
        decay: From 0, which copies, to less than 1; 0.999 averages over the last thousand updates.
        warm_up: See above.
        buffers: "average" takes running statistics as it takes weights, as timm's ModelEmaV2 does: they then fit the
            averaged weights. "copy" takes the model's own, as PyTorch's AveragedModel does.

    Attributes:
        updates: How often `update` was called.

    Raises:
        TypeError, ValueError: An argument is not what is said above.
    """

    def __init__(self, model: Module, decay: float = 0.999, *, warm_up: bool = True, buffers: str = "average") -> None:
        if not isinstance(model, Module):
            raise TypeError(f"WeightAverage: model is a {type(model).__name__}, expected a layer or a container")
        if not 0 <= real_number(self, "decay", decay) < 1:
            raise ValueError(f"WeightAverage: decay must be at least 0 and less than 1, got {decay}")
        if buffers not in BUFFERS:
            raise ValueError(f"WeightAverage: buffers is {buffers!r}, expected one of {', '.join(BUFFERS)}")
        self.model, self.decay, self.warm_up, self.buffers = model, decay, warm_up, buffers
        self.backend = model.backend
        self.updates = 0
        self._sources: dict[str, Parameter | _Buffer] = dict(model.named_parameters())
        for path, module in model.named_modules():
            for name in module._buffers:
                self._sources[f"{path}.{name}" if path else name] = _Buffer(module, name)
        self._averages: dict[str, Array] = {}
        for name, source in self._sources.items():
            self._averages[name] = self.backend.empty(source.value.shape, source.value.dtype)
            self.backend.copy(source.value, self._averages[name])
        self._swapped = False

    def plan(self, steps: int) -> np.ndarray:
        """(steps, 1) float64: the weight of the new value in each of the coming updates."""
        weights = (self._weight(self.updates + t) for t in range(steps))
        return np.array(list(weights)).reshape(steps, 1)

    def _weight(self, t: int) -> float:
        """In the update after the first `t`."""
        return 1 - (min(self.decay, (1 + t) / (10 + t)) if self.warm_up else self.decay)

    def update(self, weight: Array | None = None) -> None:
        """Take the model's values into the average; call it after each step of the optimizer.

        Args:
            weight: Of the new values, () on the device: `plan`'s, for a step that is captured. By default it is
                uploaded.

        Raises:
            RuntimeError: Inside `averaged`, where the model holds the averages.
            ValueError: The model was moved to another device.
        """
        self._require_own()
        t, self.updates = self.updates, self.updates + 1
        averages, values = [], []
        for name, source in self._sources.items():
            if t == 0 or (self.buffers == "copy" and isinstance(source, _Buffer)):
                self.backend.copy(source.value, self._averages[name])
            else:
                averages.append(self._averages[name])
                values.append(source.value)
        if averages:
            weight = self.backend.array(np.array(self._weight(t))) if weight is None else weight
            self.backend.moving_average(averages, values, weight)

    def arrays(self) -> list[Array]:
        """The averages on the device, but within `averaged` the model's own."""
        return list(self._averages.values())

    @contextlib.contextmanager
    def averaged(self) -> Iterator[Module]:
        """Inside, the model holds the averages: evaluate or save it there. The values themselves come back bit for bit.

        Only references change hands, so it costs nothing. Raises as `update` does.
        """
        self._require_own()
        counters = [m for _, m in self.model.named_modules() if isinstance(m, BatchNorm)]
        counts = [module.num_batches_tracked for module in counters]
        self._swap()
        try:
            yield self.model
        finally:
            self._swap()
            for module, count in zip(counters, counts, strict=True):
                module.num_batches_tracked = count

    def _swap(self) -> None:
        self._swapped = not self._swapped
        for name, source in self._sources.items():
            ours, theirs = self._averages[name], source.value
            if isinstance(source, Parameter):
                source.value = ours
            else:
                setattr(source.module, source.name, ours)
            self._averages[name] = theirs

    def _require_own(self) -> None:
        if self._swapped:
            raise RuntimeError("WeightAverage: the model holds the averages; leave averaged() first")
        if self.model.backend is not self.backend:
            raise ValueError(
                f"WeightAverage: the model is now on {self.model.backend.describe()}, its averages on "
                f"{self.backend.describe()}; after model.to(...), make a new WeightAverage"
            )

    def state_dict(self) -> dict[str, np.ndarray]:
        """The averages as "module.NAME" by the model's names, and "n_averaged", as PyTorch's AveragedModel has them.

        Without the prefix "module.", it is a state dict of the model; counters in it are the model's own.
        """
        with self.averaged():
            state = self.model.state_dict()
        return {
            "n_averaged": np.array(self.updates, np.int64),
            **{f"module.{name}": value for name, value in state.items()},
        }

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """The inverse of `state_dict`; the model is left alone.

        Raises:
            ValueError: Names or shapes do not match; nothing is changed.
        """
        known = {"n_averaged", *(f"module.{name}" for name in self.model.state_dict())}
        if wrong := sorted(known ^ set(state)):
            raise ValueError(f"the state does not fit this WeightAverage: missing or unexpected: {', '.join(wrong)}")
        if not is_count(state["n_averaged"]):
            raise ValueError(f"n_averaged is {state['n_averaged']}, expected a whole number of at least 0")
        with self.averaged():
            self.model.load_state_dict({name: state[f"module.{name}"] for name in self._sources}, strict=False)
        self.updates = int(state["n_averaged"])
