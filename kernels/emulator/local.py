"""Local arrays: each thread has its own."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kernels.emulator.faults import UninitialisedRead
from kernels.emulator.lanes import Lanes, merge, narrow
from kernels.emulator.memory import Memory
from kernels.emulator.shadow import READ, WRITE

if TYPE_CHECKING:
    from kernels.emulator.machine import Machine

Vector = NDArray[Any]


class Local(Memory):
    """An array that each thread has for itself: one row an element, one column a lane.

    As long as indices are uniform, a row is a value like a variable's, replaced rather than written to. Rows are kept
    for the lanes that used the array last; those of other lanes are brought up to date when these change.
    """

    space = "local"

    def __init__(
        self, machine: "Machine", name: str, dtype: np.dtype[Any], shape: tuple[int, ...], lanes: Lanes
    ) -> None:
        super().__init__(machine, name, dtype, shape, np.empty(0, dtype), 0)
        self._home = lanes
        self._base: list[Any] = [None] * self.length  # of the lanes that made the array; None or Partial where unset
        self._lanes = lanes
        self._rows = self._base
        self._narrowed: list[bool] = []
        self._changed: set[int] = set()

    def _enter(self, lanes: Lanes) -> None:
        """Make `_rows` those of these lanes."""
        self._leave()
        if lanes is not self._home:
            self._lanes = lanes
            self._rows = [None] * self.length
            self._narrowed = [False] * self.length
            self._position = self._home.find(lanes)

    def _leave(self) -> None:
        """Write changed rows back to those of all lanes."""
        if self._lanes is self._home:
            return

        position = self._position
        rest = np.ones(self._home.n, np.bool_)
        rest[position] = False
        others = rest.nonzero()[0]
        for k in self._changed:
            old = self._base[k]
            if old is not None:
                old = narrow(old, others)
            self._base[k] = merge([self._rows[k], old], [position, others], self._home.n, self.dtype)
        self._changed.clear()
        self._lanes = self._home
        self._rows = self._base

    def _row(self, k: int) -> Any:
        if self._rows is self._base or self._narrowed[k]:
            return self._rows[k]

        self._rows[k] = narrow(self._base[k], self._position)
        self._narrowed[k] = True
        return self._rows[k]

    def load(self, lanes: Lanes, index: Any) -> Any:
        """As `Memory.load`."""
        index = self.bounded(lanes, index)
        if lanes is not self._lanes:
            self._enter(lanes)
        if self.machine.observer is not None:
            self.observe(READ, lanes, index, 1)
        if type(index) is not np.ndarray:
            row = self._row(index)
            if type(row) is np.ndarray or isinstance(row, np.generic):
                return row
            return self._unset(lanes, row, np.ones(lanes.n, np.bool_), index)
        out = np.empty(lanes.n, self.dtype)
        for k in np.unique(index).tolist():
            row, here = self._row(k), index == k
            if type(row) is np.ndarray:
                out[here] = row[here]
            elif isinstance(row, np.generic):
                out[here] = row
            else:
                out[here] = self._unset(lanes, row, here, k)[here]
        return out

    def row(self, lanes: Lanes, k: int) -> Any:
        """The lanes' values of one element: None or Partial where it is unset."""
        if lanes is not self._lanes:
            self._enter(lanes)
        return self._row(k)

    def set_row(self, lanes: Lanes, k: int, row: Any) -> None:
        """Replace them."""
        if lanes is not self._lanes:
            self._enter(lanes)
        self._set(k, row)

    def _unset(self, lanes: Lanes, row: Any, wanted: Vector, index: int) -> Any:
        missing = wanted if row is None else wanted & ~row.there
        if missing.any():
            if self.machine.checks:
                why = getattr(row, "why", "is read before anything was written there")
                what = f"{self.name}[{index}] {why}"
                self.fault(UninitialisedRead, what, lanes, int(missing.argmax()))
            return np.zeros(lanes.n, self.dtype) if row is None else row.values
        return row.values

    def store(self, lanes: Lanes, index: Any, value: Any) -> None:
        """As `Memory.store`."""
        index = self.bounded(lanes, index)
        if lanes is not self._lanes:
            self._enter(lanes)
        if self.machine.observer is not None:
            self.observe(WRITE, lanes, index, 1)
        if type(index) is not np.ndarray:
            self._set(index, value)
            return

        for k in np.unique(index).tolist():
            here, others = (index == k).nonzero()[0], (index != k).nonzero()[0]
            if len(others) == 0:
                self._set(k, value)
                continue
            parts = [narrow(value, here), narrow(self._row(k), others)]
            self._set(k, merge(parts, [here, others], lanes.n, self.dtype))

    def _set(self, k: int, row: Any) -> None:
        self._rows[k] = row
        if self._rows is not self._base:
            self._narrowed[k] = True
            self._changed.add(k)

    def load_wide(self, lanes: Lanes, index: Any, count: int) -> tuple[Any, ...]:
        """As `Memory.load_wide`."""
        return tuple(self.load(lanes, index + k) for k in range(count))

    def store_wide(self, lanes: Lanes, index: Any, values: Sequence[Any]) -> None:
        """As `Memory.store_wide`."""
        for k, value in enumerate(values):
            self.store(lanes, index + k, value)
