"""What this process compiles before it can compute: seconds, where nothing is kept from an earlier run.

A backend tells of it here; whoever shows a run to somebody, or measures one, asks.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator


class Compilation:
    """Functions compiled so far, by whichever thread.

    Attributes:
        functions: How many. What was taken from a cache is not among them.
        seconds: How long it took; what two threads compile at a time counts once.
        problem: Why the last one that could not be kept was not; None where there was no such one.
    """

    def __init__(self) -> None:
        self.functions, self.seconds = 0, 0.0
        self.problem: str | None = None
        self._listeners: list[Callable[[], None]] = []
        self._under_way, self._began = 0, 0.0
        self._lock = threading.Lock()

    def begin(self) -> None:
        """A function begins to be compiled; others may be within it."""
        with self._lock:
            self._under_way += 1
            if self._under_way > 1:
                return
            self._began = time.perf_counter()
        for listener in self._listeners[:]:
            listener()

    def end(self) -> None:
        """The last one that began is done."""
        with self._lock:
            self.functions += 1
            self._under_way -= 1
            if not self._under_way:
                self.seconds += time.perf_counter() - self._began

    @contextlib.contextmanager
    def watched(self, listener: Callable[[], None]) -> Iterator[None]:
        """Inside, `listener` is called before anything is compiled, by the thread that is to do it."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)


COMPILATION = Compilation()
