"""Counts of what a launch does: memory traffic, bank conflicts, divergence, arithmetic, by line of the source.

Memory is counted as the hardware serves a warp (NVIDIA, "CUDA C++ Programming Guide", Compute Capability 5.x):

    global   One request an instruction of a warp; it moves each sector of 32 bytes once that any of its lanes touches.
    shared   32 banks of 4 bytes. A pass serves each bank one word, which any number of lanes may read. The lanes of a
             warp go together where each moves at most 4 bytes, as two halves with 8 bytes and four quarters with 16.
             A part that needs p passes has p - 1 conflicts. Atomics serve one lane and bank a pass.

Nothing is known here of caches, and copies that a compiler keeps in registers are counted where the source loads them.
"""

import linecache
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.emulator.context import WARP, Place

Vector = NDArray[Any]
SECTOR = 32  # bytes
BANKS = 32
BANK_WIDTH = 4  # bytes
_TENSOR_CORE = "mma_"  # what precedes the type in the name of an operation
_MOVES = ("neg", "abs", "min", "max", "fabs", "fmin", "fmax", "copysign", "ceil", "floor", "trunc", "rint", "round",
          "nearbyint", "nextafter", "selp", "int_as_float", "longlong_as_double")  # fmt: skip
_FLOPS = dict.fromkeys([*_MOVES, *(f"{name}f" for name in _MOVES)], 0)  # of an operation on floats; 1 for any other
_FLOPS |= dict.fromkeys(["fma", "fmaf", *(f"fmaf_{mode}" for mode in ("rn", "rz", "rd", "ru"))], 2)


def warps_of(lanes: Vector, threads: int) -> Vector:
    """The warp of each lane, numbered over all blocks: block after block, the last of each perhaps not full."""
    blocks, thread = np.divmod(lanes, threads)
    return blocks * -(-threads // WARP) + thread // WARP


def runs(ascending: Vector) -> Vector:
    """Where each run of equal values starts."""
    return np.flatnonzero(np.concatenate(([True], ascending[1:] != ascending[:-1])))


def count_sectors(addresses: Vector, warps: Vector) -> int:
    """Sectors that the warps move, each warp on its own.

    Args:
        addresses: One a lane; aligned to the lane's width, so that no access crosses a sector.
        warps: Of each lane, ascending.
    """
    sectors = np.asarray(addresses, np.uint64) // np.uint64(SECTOR)
    order = np.lexsort((sectors, warps))
    sectors, warps = sectors[order], warps[order]
    return 1 + int(np.count_nonzero((sectors[1:] != sectors[:-1]) | (warps[1:] != warps[:-1])))


def count_passes(addresses: Vector, width: int, lanes: Vector, warps: Vector, atomic: bool = False) -> tuple[int, int]:
    """Passes over the banks that an instruction takes, and how many it would take without conflicts.

    Args:
        addresses: Of bytes in shared memory, one a lane; multiples of `width`.
        width: Bytes a lane moves, 1 to 16.
        lanes: Of the warp, 0 to 31.
        warps: Of each lane, ascending.
        atomic: Lanes that name the same word take turns, too.
    """
    words_each = max(1, width // BANK_WIDTH)
    together = WARP // words_each  # lanes that are served at once
    parts = warps * words_each + lanes // together
    starts = runs(parts)
    part = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(parts))))
    words = np.asarray(addresses, np.int64)[:, None] // BANK_WIDTH + np.arange(words_each)
    accesses = (part[:, None] << 32 | words).ravel()
    if not atomic:
        accesses = np.unique(accesses)
    load = np.bincount((accesses >> 32) * BANKS + accesses % BANKS, minlength=len(starts) * BANKS)
    return int(load.reshape(-1, BANKS).max(axis=1).sum()), len(starts)


def count_divergent(taken: Vector, warps: Vector) -> int:
    """Warps of which some lanes take a branch and some do not.

    Args:
        taken: One boolean a lane.
        warps: Of each lane, ascending.
    """
    starts = runs(warps)
    votes = np.add.reduceat(taken.astype(np.int64), starts)
    sizes = np.diff(np.append(starts, len(warps)))
    return int(np.count_nonzero((votes > 0) & (votes < sizes)))


@dataclass
class Figures:
    """What one line of a kernel's source, or all of them, did."""

    statements: int = 0  # reached by a warp, or part of one
    lanes: int = 0  # that were active there
    load_requests: int = 0  # of global memory
    load_bytes: int = 0  # asked for by the lanes
    load_sectors: int = 0
    store_requests: int = 0
    store_bytes: int = 0
    store_sectors: int = 0
    shared_requests: int = 0
    shared_bytes: int = 0
    shared_passes: int = 0
    bank_conflicts: int = 0  # passes beyond those that the width asks for
    branches: int = 0  # conditional, by warps
    divergent_branches: int = 0
    barriers: int = 0  # of a block, a warp or the grid
    flops: Counter[str] = field(default_factory=Counter)  # by type
    operations: Counter[str] = field(default_factory=Counter)  # on integers, by type

    @property
    def bytes_asked(self) -> int:
        """Of global memory, by lanes."""
        return self.load_bytes + self.store_bytes

    @property
    def bytes_moved(self) -> int:
        """Between global memory, or a cache, and the multiprocessors: whole sectors."""
        return SECTOR * (self.load_sectors + self.store_sectors)

    @property
    def active_share(self) -> float:
        """Of the lanes of all warps that reached a statement, those that were active; 1 where there was none."""
        return self.lanes / (WARP * self.statements) if self.statements else 1.0

    def add(self, other: "Figures") -> None:
        """Add another line's."""
        for one in fields(self):
            mine, its = getattr(self, one.name), getattr(other, one.name)
            if isinstance(mine, Counter):
                mine.update(its)
            else:
                setattr(self, one.name, mine + its)


@dataclass(frozen=True)
class Counts:
    """Of a launch.

    Attributes:
        total: Over all lines.
        lines: By file and line of the source, of the kernel and of the device functions that it calls.
    """

    total: Figures
    lines: dict[Place, Figures]

    def __str__(self) -> str:
        total = self.total
        flops = ", ".join(f"{number:,} {kind}" for kind, number in sorted(total.flops.items())) or "none"
        return "\n".join(
            [
                f"global memory   {total.load_requests:,} loads of {total.load_sectors:,} sectors, "
                f"{total.store_requests:,} stores of {total.store_sectors:,} sectors; "
                f"{total.bytes_asked:,} bytes asked, {total.bytes_moved:,} moved",
                f"shared memory   {total.shared_requests:,} accesses in {total.shared_passes:,} passes, "
                f"{total.bank_conflicts:,} of them bank conflicts",
                f"branches        {total.branches:,} by warps, {total.divergent_branches:,} divergent; "
                f"{100 * total.active_share:.1f} % of lanes active",
                f"barriers        {total.barriers:,}",
                f"FLOPs           {flops}",
                *self._table(),
            ]
        )

    def _table(self) -> list[str]:
        columns: dict[str, Callable[[Figures], int]] = {
            "requests": lambda f: f.load_requests + f.store_requests,
            "sectors": lambda f: f.load_sectors + f.store_sectors,
            "asked": lambda f: f.bytes_asked,
            "moved": lambda f: f.bytes_moved,
            "passes": lambda f: f.shared_passes,
            "conflicts": lambda f: f.bank_conflicts,
            "branches": lambda f: f.branches,
            "divergent": lambda f: f.divergent_branches,
            "FLOPs": lambda f: f.flops.total(),
        }
        rows = {
            (file, line): [
                str(line),
                *(f"{value(figures):,}" if value(figures) else "" for value in columns.values()),
                f"{100 * figures.active_share:.0f} %",
            ]
            for (file, line), figures in sorted(self.lines.items())
        }
        titles = ["line", *columns, "active"]
        widths = [max(map(len, column)) for column in zip(titles, *rows.values(), strict=True)]
        text = []
        last = None
        for (file, line), row in rows.items():
            if file != last:
                text += ["", Path(file).name, "  ".join(map(str.rjust, titles, widths))]
                last = file
            text.append("  ".join([*map(str.rjust, row, widths), linecache.getline(file, line).rstrip()]))
        return text


class CountingObserver:
    """Counts what a launch does; `kernels.emulator.context.Observer` documents the calls."""

    def __init__(self) -> None:
        self._lines: defaultdict[Place, Figures] = defaultdict(Figures)

    def counts(self) -> Counts:
        """What was counted so far."""
        total = Figures()
        for figures in self._lines.values():
            total.add(figures)
        return Counts(total, dict(self._lines))

    def memory(
        self,
        place: Place,
        kind: str,
        space: str,
        name: str,  # noqa: ARG002
        addresses: Vector,
        width: int,
        lanes: Vector,
        threads: int,
    ) -> None:
        """Count an access to global or shared memory."""
        if not len(lanes) or space == "local":
            return
        figures = self._lines[place]
        warps = warps_of(lanes, threads)
        addresses = np.broadcast_to(addresses, lanes.shape)
        requests, asked = len(runs(warps)), width * len(lanes)
        if space == "shared":
            passes, ideal = count_passes(addresses, width, lanes % threads % WARP, warps, kind == "atomic")
            figures.shared_requests += requests
            figures.shared_bytes += asked
            figures.shared_passes += passes
            figures.bank_conflicts += passes - ideal
            return
        sectors = count_sectors(addresses, warps)
        if kind in ("load", "atomic"):
            figures.load_requests += requests
            figures.load_bytes += asked
            figures.load_sectors += sectors
        if kind in ("store", "atomic"):
            figures.store_requests += requests
            figures.store_bytes += asked
            figures.store_sectors += sectors

    def branch(self, place: Place, taken: Vector | bool, lanes: Vector, threads: int) -> None:
        """Count a conditional jump."""
        if not len(lanes):
            return
        warps = warps_of(lanes, threads)
        figures = self._lines[place]
        figures.branches += len(runs(warps))
        if np.ndim(taken):
            figures.divergent_branches += count_divergent(np.asarray(taken), warps)

    def barrier(self, place: Place, kind: str, lanes: Vector, threads: int) -> None:
        """Count a barrier: once a block, warp or grid."""
        if len(lanes):
            groups = {"block": lanes // threads, "warp": warps_of(lanes, threads), "grid": lanes[:1]}[kind]
            self._lines[place].barriers += len(runs(groups))

    def arithmetic(self, place: Place, operation: str, dtype: np.dtype[Any], lanes: int) -> None:
        """Count operations; those of tensor cores ("mma_tf32") by their inputs' type."""
        figures = self._lines[place]
        dtype = np.dtype(dtype)
        if operation.startswith(_TENSOR_CORE):
            figures.flops[operation.removeprefix(_TENSOR_CORE)] += lanes
        elif dtype.kind == "f":
            figures.flops[dtype.name] += lanes * _FLOPS.get(operation, 1)
        else:
            figures.operations[dtype.name] += lanes

    def statement(self, place: Place, lanes: Vector, threads: int) -> None:
        """Count the warps that reach a statement, and their active lanes."""
        if len(lanes):
            figures = self._lines[place]
            figures.statements += len(runs(warps_of(lanes, threads)))
            figures.lanes += len(lanes)
