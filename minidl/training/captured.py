"""Training steps that were captured as CUDA graphs: when one is, for how long it is good, how it is replayed."""

import warnings
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from minidl.backends import Backend
from minidl.backends.protocol import Graph
from minidl.errors import ConfigError
from minidl.training.step import HostCounts, difference


class _Captured(NamedTuple):
    """A step as the device recorded it."""

    graph: Graph
    counts: list[int]  # what it adds to the host's counts


class CapturedSteps:
    """The steps of a training run that were recorded, by kind: the first of a kind goes launch by launch.

    Attributes:
        by_kind: What was recorded; None for a kind of which a step was made.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.by_kind: dict[Hashable, _Captured | None] = {}
        self._counts: HostCounts
        self._good_for: Any = None

    def begin(self, counts: HostCounts, good_for: Any) -> None:
        """Go on with what was recorded if `good_for`, all that a recording goes by, is what it was; else anew."""
        self._counts = counts
        if good_for != self._good_for:
            self.by_kind.clear()
            self._good_for = good_for

    def forget(self) -> None:
        """Record all anew."""
        self._good_for = None

    def was_made(self, kind: Hashable) -> None:
        """A step of this kind was made launch by launch, so that the next one can be recorded."""
        self.by_kind.setdefault(kind)

    def make(self, kind: Hashable, step: Callable[[], None]) -> bool:
        """Make a step of a kind that `was_made`: replay it, or make it by `step` and record it for the next ones.

        Returns:
            Whether steps can be recorded. If not, a warning says why; this step was made all the same.
        """
        captured = self.by_kind[kind]
        if captured is None:
            return self._capture(kind, step)
        captured.graph.replay()
        self._counts.add(captured.counts)
        return True

    def _capture(self, kind: Hashable, step: Callable[[], None]) -> bool:
        snapshots = []

        def noted() -> None:
            step()
            snapshots.append(self._counts.now())

        try:
            graph = self.backend.capture(noted)
        except Exception as error:
            if not snapshots:  # it is the step itself that failed
                raise
            why = " ".join(str(error).split()) or type(error).__name__
            warnings.warn(f"the training step cannot be captured, so it goes launch by launch: {why}", stacklevel=3)
            self.by_kind.clear()
            self._counts.add(difference(snapshots[0], self._counts.now()))  # the step was made, its recording was not
            return False
        made, recorded = snapshots
        self._counts.add(difference(made, recorded))
        self.by_kind[kind] = _Captured(graph, difference(recorded, made))
        return True


def require_captures(backend: Backend, graph: bool | None) -> None:
    """Raise ConfigError if steps are to be captured on a device that cannot."""
    if graph and not backend.captures:
        raise ConfigError(f"--graph needs a device that captures steps, and {backend.name} does not; leave it out")
