"""How often a layer was called, where that decides what it computes."""

from typing import Any

import numpy as np

from minidl.backends import Array, Backend


class Count:
    """A count of calls, on the host and, once it is drawn from, on the device too.

    A captured step is replayed without the layer being asked: then the device counts by itself, and whoever replays
    calls `skip`.
    """

    def __init__(self, value: int = 0) -> None:
        self._value = value
        self._here: Array | None = None  # () uint32
        self._backend: Backend | None = None

    @property
    def value(self) -> int:
        """Calls so far; to assign it sets the device's count too."""
        return self._value

    @value.setter
    def value(self, value: int) -> None:
        self._value = value
        if self._here is not None and self._backend is not None:
            self._backend.copy(self._on(self._backend), self._here)

    def draw(self, backend: Backend) -> Array:
        """The calls before this one, () uint32 on the device, where no later call changes them; and count this one."""
        if self._here is None or self._backend is not backend:
            self._here, self._backend = self._on(backend), backend
        call = backend.empty((), np.uint32)
        backend.count_call(self._here, call)
        self._value += 1
        return call

    def skip(self, calls: int) -> None:
        """Count calls that the device has counted by itself, or that it need not know of."""
        self._value += calls

    def _on(self, backend: Backend) -> Array:
        return backend.array(np.array(self._value % 2**32), np.uint32)

    def __reduce__(self) -> tuple[Any, ...]:
        return Count, (self._value,)  # a copy counts for itself
