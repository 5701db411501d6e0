"""What the optimizers share: parameter groups, checks, and the state of each parameter."""

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from minidl.backends import Array, Backend
from minidl.nn import Module, Parameter
from minidl.nn.arguments import is_count

Group = dict[str, Any]


class NumbersPlan(NamedTuple):
    """The numbers that an optimizer goes by in coming steps, on the host.

    Attributes:
        rows: The row of each parameter group's parameters that were updated equally often, (group, updates) so far.
        steps: (steps, rows, k) float64; in step i, a row is `Optimizer.numbers` for parameters that are updated in
            each step until then.
    """

    rows: dict[tuple[int, int], int]
    steps: np.ndarray


class Numbers(NamedTuple):
    """A step's of these, on the device: `values` (rows, k), and by (group, updates) before this step which row."""

    rows: Mapping[tuple[int, int], int]
    values: Array


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
        self._last: tuple[bytes, Array] = (b"", None)  # numbers that were uploaded
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
        """The learning rate of all groups. Raises ValueError unless it is finite and at least 0."""
        if not (_is_finite(lr) and lr >= 0):
            raise ValueError(f"{type(self).__name__}: lr must be 0 or more and finite, got {lr!r}")
        for group in self.groups:
            group["lr"] = lr

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for group in self.groups:
            for parameter in group["params"]:
                parameter.zero_grad()

    def plan(self, rates: Sequence[float]) -> NumbersPlan:
        """The numbers of the coming steps at these learning rates, for all groups."""
        counts = [(g, count) for g, updates in enumerate(self.updates) for count in sorted(set(updates))]
        steps = [
            [self.numbers({**self.groups[g], "lr": lr}, count + i) for g, count in counts]
            for i, lr in enumerate(rates, start=1)
        ]
        return NumbersPlan({key: row for row, key in enumerate(counts)}, np.array(steps))

    def step(self, numbers: Numbers | None = None) -> None:
        """Update all parameters that have a gradient, in one launch for all groups that go by the same rule.

        Args:
            numbers: On the device, as `plan` has them. A captured step must find them all there; elsewhere this
                step's are uploaded where any is missing.

        Raises:
            RuntimeError: A captured step misses numbers; nothing is updated.
            ValueError: Parameters were moved to another device, or a state array does not fit; nothing is updated.
        """
        for group, states in zip(self.groups, self.state, strict=True):
            for parameter, own in zip(group["params"], states, strict=True):
                self._check(parameter, own)
                for slot in self.slots_of(group):
                    if slot not in own:
                        raise ValueError(
                            f"{type(self).__name__}: a group now needs {slot}, which it did not when this optimizer "
                            "was made; make a new one"
                        )
        # A parameter's own count is what Adam corrects its bias by: they differ where some began later.
        ready = [
            (g, i)
            for g, group in enumerate(self.groups)
            for i, parameter in enumerate(group["params"])
            if parameter.grad is not None
        ]
        before = [(g, self.updates[g][i]) for g, i in ready]
        if numbers is None or not all(key in numbers.rows for key in before):
            numbers = self._upload(sorted(set(before)))
        self.steps += 1
        rules: dict[Any, list[tuple[int, int]]] = {}
        for g, i in ready:
            self.updates[g][i] += 1
            rules.setdefault(self.rule(self.groups[g]), []).append((g, i))
        rows = {place: numbers.rows[key] for place, key in zip(ready, before, strict=True)}
        for rule, chosen in rules.items():
            parameters = [self.groups[g]["params"][i] for g, i in chosen]
            values, grads = [one.value for one in parameters], [one.grad for one in parameters]
            names = self.slots_of(self.groups[chosen[0][0]])
            slots = [[self.state[g][i][slot] for g, i in chosen] for slot in names]
            self.update(rule, numbers.values, [rows[place] for place in chosen], values, grads, slots)

    def _upload(self, keys: Sequence[tuple[int, int]]) -> Numbers:
        """This step's numbers; while they stay as they are, they are on the device already.

        Raises RuntimeError where a step is captured: every replay would go by these.
        """
        host = np.array([self.numbers(self.groups[g], count + 1) for g, count in keys])
        if self.backend.capturing or self._last[0] != host.tobytes():
            self._last = host.tobytes(), self.backend.array(host)
        return Numbers({key: row for row, key in enumerate(keys)}, self._last[1])

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

    def still(self) -> np.ndarray:
        """The numbers of an update that, with gradients of 0, changes nothing."""
        raise NotImplementedError

    def rule(self, group: Group) -> Any:
        """What groups have in common that are updated together: equal where only their numbers differ."""
        return self.slots_of(group)

    def update(
        self,
        rule: Any,
        numbers: Array,
        rows: list[int],
        values: list[Array],
        grads: list[Array],
        slots: list[list[Array]],
    ) -> None:
        """Update parameters of groups with this rule; `slots` has a list of arrays a name.

        Parameter i goes by row `rows[i]` of `numbers` (rows, k), which are those of the method `numbers`.
        """
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
