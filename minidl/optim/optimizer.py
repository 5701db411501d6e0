"""What the optimizers share: parameter groups, checks, and the state of each parameter."""

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from minidl.backends import Array, Backend
from minidl.nn import Module, Parameter
from minidl.nn.arguments import is_count

Group = dict[str, Any]


class Optimizer:
    """What the optimizers share: groups, and a state of arrays for each parameter.

    Args:
        params: Parameters, or groups of them.
        defaults: Options of the groups that do not set their own.

    Attributes:
        groups: Dicts of "params", "lr" and the other options; schedules write "lr" here.
        steps: Calls of `step` so far.
        updates: For each group, how often each parameter was updated.
    """

    slots: tuple[str, ...] = ()  # names of the state arrays that a parameter has

    def __init__(self, params: Iterable[Parameter] | Sequence[Group], defaults: Mapping[str, Any]) -> None:
        if isinstance(params, Module):
            raise TypeError(f"{type(self).__name__}: params is a model; give model.parameters()")
        if isinstance(params, Parameter | Mapping):
            raise TypeError(f"{type(self).__name__}: params is one {type(params).__name__}; give a list of them")
        entries: list[Any] = list(params)
        groups = entries if entries and isinstance(entries[0], Mapping) else [{"params": entries}]
        self.steps = 0
        self._last: dict[int, tuple[bytes, Array]] = {}  # numbers that were uploaded, by group
        self.groups: list[Group] = [self._checked(group, defaults) for group in groups]
        everything = [id(parameter) for group in self.groups for parameter in group["params"]]
        if not everything:
            raise ValueError(f"{type(self).__name__}: no parameters to optimize")
        if len(set(everything)) != len(everything):
            raise ValueError(f"{type(self).__name__}: a parameter is given twice")
        self.backend: Backend = next(parameter.backend for group in self.groups for parameter in group["params"])
        if any(parameter.backend is not self.backend for group in self.groups for parameter in group["params"]):
            raise ValueError(f"{type(self).__name__}: the parameters are on different devices; move them to one first")
        self.updates: list[list[int]] = [[0] * len(group["params"]) for group in self.groups]
        self.state: list[list[dict[str, Array]]] = [
            [
                {slot: self.backend.zeros(parameter.shape) for slot in self.slots_of(group)}
                for parameter in group["params"]
            ]
            for group in self.groups
        ]

    def _checked(self, group: Any, defaults: Mapping[str, Any]) -> Group:
        """The group with the defaults filled in. Raises ValueError or TypeError, naming what is wrong."""
        own = type(self).__name__
        if not isinstance(group, Mapping):
            raise TypeError(
                f"{own}: a parameter group is a {type(group).__name__}, expected a dict as the first one is"
            )
        if "params" not in group:
            raise ValueError(f"{own}: a parameter group lacks 'params', the list of its parameters")
        unknown = set(group) - {"params", *defaults}
        if unknown:
            raise ValueError(f"{own}: unknown option {sorted(unknown)[0]!r} in a parameter group")
        params = [group["params"]] if isinstance(group["params"], Parameter) else list(group["params"])
        merged = {**defaults, **group, "params": params}
        for parameter in params:
            if not isinstance(parameter, Parameter):
                raise TypeError(f"{own}: params holds a {type(parameter).__name__}, expected a Parameter")
        for name in ("lr", "weight_decay", "momentum", "eps"):
            if name in merged and not (_is_finite(merged[name]) and merged[name] >= 0):
                raise ValueError(f"{own}: {name} must be 0 or more and finite, got {merged[name]!r}")
        betas = merged.get("betas", (0, 0))
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise ValueError(f"{own}: betas must be two numbers, got {betas!r}")
        if not all(_is_finite(beta) and 0 <= beta < 1 for beta in betas):
            raise ValueError(f"{own}: betas must be at least 0 and less than 1, got {betas!r}")
        return merged

    def slots_of(self, group: Group) -> tuple[str, ...]:
        """State arrays of a parameter of this group."""
        del group
        return self.slots

    def set_lr(self, lr: float) -> None:
        """The learning rate of all groups."""
        for group in self.groups:
            group["lr"] = lr

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for group in self.groups:
            for parameter in group["params"]:
                parameter.zero_grad()

    def plan(self, rates: Sequence[float]) -> dict[tuple[int, int], np.ndarray]:
        """The numbers of the coming steps at these learning rates, for all groups.

        Returns:
            For each group, and each count of updates that its parameters have had so far, an array (len(rates), k) of
            float64: in row i, `numbers` for those that are updated in each step until then.
        """
        return {
            (g, count): np.stack([self.numbers({**group, "lr": lr}, count + i) for i, lr in enumerate(rates, start=1)])
            for g, (group, updates) in enumerate(zip(self.groups, self.updates, strict=True))
            for count in sorted(set(updates))
        }

    def step(self, numbers: Mapping[tuple[int, int], Array] | None = None) -> None:
        """Update all parameters that have a gradient.

        Args:
            numbers: On the device, by group and the count of updates before this step, as `plan` has them. A captured
                step finds them all there; what is missing is uploaded.

        Raises:
            ValueError: Parameters were moved to another device, or a state array does not fit; nothing is updated.
        """
        for group, states in zip(self.groups, self.state, strict=True):
            for parameter, own in zip(group["params"], states, strict=True):
                self._check(parameter, own)
        self.steps += 1
        for g, (group, updates, states) in enumerate(zip(self.groups, self.updates, self.state, strict=True)):
            ready = [i for i, parameter in enumerate(group["params"]) if parameter.grad is not None]
            for i in ready:
                updates[i] += 1
            # All of them together, unless some began later: a parameter's own count is what Adam corrects its bias by.
            for count in sorted({updates[i] for i in ready}):
                chosen = [i for i in ready if updates[i] == count]
                values = [group["params"][i].value for i in chosen]
                grads = [group["params"][i].grad for i in chosen]
                slots = [[states[i][slot] for i in chosen] for slot in self.slots_of(group)]
                known = (numbers or {}).get((g, count - 1))
                known = self._sent(g, self.numbers(group, count)) if known is None else known
                self.update(group, known, values, grads, slots)

    def _sent(self, g: int, numbers: np.ndarray) -> Array:
        """These numbers on the device; while those of a group stay as they are, they are there already."""
        host, array = self._last.get(g, (b"", None))
        if host != numbers.tobytes():
            host, array = self._last[g] = numbers.tobytes(), self.backend.array(numbers)
        return array

    def _check(self, parameter: Parameter, slots: Mapping[str, Array]) -> None:
        """Raise ValueError where an update would be lost in a copy, or reach beyond an array's end."""
        if parameter.backend is not self.backend:
            now, then = parameter.backend.describe(), self.backend.describe()
            raise ValueError(
                f"{type(self).__name__}: {parameter.name or 'a parameter'} is now on {now}, this optimizer on {then}; "
                "after model.to(...), make a new optimizer"
            )
        for name, array in slots.items():
            if array.shape != parameter.shape or array.dtype != self.backend.dtype or not array.flags.c_contiguous:
                raise ValueError(
                    f"{type(self).__name__}: {name} has shape {array.shape} and dtype {array.dtype}; expected "
                    f"{parameter.shape}, {self.backend.dtype} and C-contiguous"
                )

    def numbers(self, group: Group, count: int) -> np.ndarray:
        """What the update number `count`, from 1, of parameters of a group goes by; float64."""
        raise NotImplementedError

    def update(
        self, group: Group, numbers: Array, values: list[Array], grads: list[Array], slots: list[list[Array]]
    ) -> None:
        """An update by `numbers` of some parameters of a group; `slots` has a list of arrays a name."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, np.ndarray]:
        """State arrays by "group.parameter.slot", "group.parameter.updates" and "steps", as NumPy arrays."""
        arrays = {
            f"{g}.{i}.{slot}": self.backend.numpy(array)
            for g, states in enumerate(self.state)
            for i, slots in enumerate(states)
            for slot, array in slots.items()
        }
        counts = {
            f"{g}.{i}.updates": np.array(count, np.int64)
            for g, updates in enumerate(self.updates)
            for i, count in enumerate(updates)
        }
        return {"steps": np.array(self.steps, np.int64), **counts, **arrays}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """The inverse of `state_dict`. Raises ValueError, changing nothing, if names or shapes do not match."""
        own = self.state_dict()
        faults = [name for name in own if name not in state or np.shape(state[name]) != own[name].shape]
        faults += [name for name in state if name not in own or np.asarray(state[name]).dtype.kind not in "biuf"]
        faults += [
            f"{name} is {state[name]}, expected a whole number of at least 0"
            for name in own
            if name not in faults and own[name].dtype.kind == "i" and not is_count(state[name])
        ]
        if faults:
            raise ValueError(f"the state does not fit this {type(self).__name__}: {', '.join(faults)}")
        for g, states in enumerate(self.state):
            for i, slots in enumerate(states):
                self.updates[g][i] = int(state[f"{g}.{i}.updates"])
                for slot, array in slots.items():
                    self.backend.copy(self.backend.array(state[f"{g}.{i}.{slot}"]), array)
        self.steps = int(state["steps"])


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)
