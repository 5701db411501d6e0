"""What kernels that claim to be fast do with memory, counted in the emulator: whole sectors, one pass, few conflicts.

A line of `minidl.lab.access_lines` is a small launch that stands for a kernel as it is meant to be used: arrays that
are aligned, whole tiles, channels that fill warps. Of it three numbers must hold:

    share      of the bytes that global memory moves, in sectors of 32, those that somebody asked for: at least SHARE.
               What lanes of a warp read of one place counts once, as far as that makes up for what nobody asked for.
    conflicts  of the passes over the banks of shared memory, those that conflicts add: at most CONFLICTS.
    passes     bytes moved over those of the kernel's cost, in which each array passes once: at most the line's limit,
               which says why where it is more than one pass.

Nothing is known here of caches: what a block reads again costs a GPU less than a first read, but never nothing.
"""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from kernels.launch import Cost, Kernel, factories
from kernels.run_emulated import EmulatorRunner
from minidl.errors import ConfigError
from minidl.lab.access_lines import LINES, Call, Line

SHARE = 0.95
CONFLICTS = 0.05


class Measured(NamedTuple):
    """What a line's launches of its kernel did, all of them together."""

    line: Line
    launches: int
    requests: int  # of global memory, by warps
    sectors: int  # that they moved
    asked: int  # bytes
    moved: int  # bytes
    share: float  # of the bytes moved that were asked for
    conflicts: float  # share of the passes over shared memory
    passes: float  # bytes moved, over those of the cost

    @property
    def problems(self) -> Iterator[str]:
        """What of the three does not hold."""
        if not self.launches:
            yield "is not launched"
            return
        if self.share < SHARE:
            yield f"{100 * self.share:.1f} % of the bytes moved are asked for, expected at least {100 * SHARE:.0f} %"
        if self.conflicts > CONFLICTS:
            conflicts = f"{100 * self.conflicts:.1f} % of the passes over shared memory are bank conflicts"
            yield f"{conflicts}, expected at most {100 * CONFLICTS:.0f} %"
        if self.passes > self.line.limit:
            yield f"moves {self.passes:.2f} times the bytes of its cost, expected at most {self.line.limit:.2f}"


class _Noting(EmulatorRunner):
    """Counts, and notes what each launch must move."""

    def __init__(self) -> None:
        super().__init__(checks=False, counts=True)  # `verify` checks them
        self.costs: list[Cost] = []

    def __call__(self, kernel: Kernel, *values: Any) -> None:
        before = len(self.launched)
        super().__call__(kernel, *values)
        if len(self.launched) > before:
            self.costs.append(kernel.cost(values))


def measure(lines: Sequence[Line]) -> list[Measured]:
    """Run lines in the emulator; a call that several of them share is run once."""
    runs: dict[Call, _Noting] = {}
    for line in lines:
        if line.call not in runs:
            runs[line.call] = _Noting()
            line.call(runs[line.call])
    return [_measured(line, runs[line.call]) for line in lines]


def _measured(line: Line, run: _Noting) -> Measured:
    requests = sectors = asked = moved = used = passes = conflicts = cost = launches = 0
    for launched, needed in zip(run.launched, run.costs, strict=True):
        if launched.kernel.name != line.kernel or launched.report.counts is None:
            continue
        total = launched.report.counts.total
        launches += 1
        requests += total.load_requests + total.store_requests
        sectors += total.load_sectors + total.store_sectors
        asked += total.bytes_asked
        moved += total.bytes_moved
        used += sum(min(one.bytes_asked, one.bytes_moved) for one in launched.report.counts.lines.values())
        passes += total.shared_passes
        conflicts += total.bank_conflicts
        cost += needed.reads + needed.writes
    share, of_cost = used / moved if moved else 1.0, moved / cost if cost else 0.0
    return Measured(
        line, launches, requests, sectors, asked, moved, share, conflicts / passes if passes else 0.0, of_cost
    )


def lines_of(names: Iterable[str] = ()) -> list[Line]:
    """The lines of these kernels, of all by default. Raises ConfigError for a name that is none, or has no line."""
    chosen = sorted(set(names))
    lines = [line for line in LINES if not chosen or line.kernel in chosen]
    for name in chosen:
        if name not in {line.kernel for line in lines}:
            known = sorted({line.kernel for line in LINES})
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are lines for {', '.join(known)}"
            what = "has no line in the table of counts" if name in factories() else "is no kernel"
            raise ConfigError(f"'{name}' {what}; {hint}")
    return lines


def missing() -> list[str]:
    """Kernels that promise instructions, wide accesses or others, and have no line: each needs one."""
    counted = {line.kernel for line in LINES}
    return [name for name, factory in factories().items() if factory.promises.instructions and name not in counted]
