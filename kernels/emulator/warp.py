"""Warp functions: shuffles, votes, and the barrier of a warp."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kernels.emulator.context import WARP
from kernels.emulator.faults import DivergentBarrier, UnsupportedFeature
from kernels.emulator.lanes import Lanes

if TYPE_CHECKING:
    from kernels.emulator.machine import Machine

Vector = NDArray[Any]
FULL = 0xFFFFFFFF


class Warps:
    """What the lanes of a warp do together. All lanes that a mask names must be there."""

    def __init__(self, machine: "Machine") -> None:
        self._machine = machine

    def sync(self, lanes: Lanes, mask: Any) -> None:
        """Order memory accesses within each warp."""
        self.require(lanes, mask, "cuda.syncwarp")
        self._machine.warp_barrier(lanes)

    def require(self, lanes: Lanes, mask: Any, what: str) -> None:
        """Fault unless the mask names whole warps, and all of their lanes are active."""
        machine = self._machine
        given = np.asarray(mask).astype(np.int64) & FULL
        size = machine.threads
        tail = size % WARP
        if np.any(given != FULL):
            # a last warp that is not full may name the lanes that exist
            exists = lanes.thread // WARP * WARP + WARP <= size
            expected = np.where(exists, FULL, (1 << tail) - 1) if tail else np.full(lanes.n, FULL)
            if np.any(given != expected):
                machine.fault(UnsupportedFeature, f"{what} with a mask other than that of a full warp")
        if lanes.full:
            return
        present = np.bincount(lanes.warp, minlength=lanes.batch.count * lanes.batch.warps)
        whole = np.full(lanes.batch.warps, WARP)
        if tail:
            whole[-1] = tail
        bad = (present > 0) & (present != np.tile(whole, lanes.batch.count))
        if bad.any():
            k = int(np.isin(lanes.warp, bad.nonzero()[0]).argmax())
            count = int(present[bad.argmax()])
            machine.fault(
                DivergentBarrier, f"{what} is reached by {count} lanes of this warp only", code=int(lanes.code[k])
            )

    def rows(self, lanes: Lanes, value: Any) -> Vector:
        """A value as (warps, 32); of a last warp that is not full the lanes beyond hold zeros."""
        vector = np.ascontiguousarray(lanes.vector(value))
        tail = self._machine.threads % WARP
        if not tail:
            return vector.reshape(-1, WARP)
        warps, where = np.unique(lanes.warp, return_inverse=True)
        out = np.zeros((len(warps), WARP), vector.dtype)
        out[where, lanes.lane] = vector
        return out

    def back(self, lanes: Lanes, rows: Vector) -> Vector:
        """(warps, 32) as one element a lane."""
        tail = self._machine.threads % WARP
        if not tail:
            return np.ascontiguousarray(np.broadcast_to(rows, (lanes.n // WARP, WARP))).ravel()
        _, where = np.unique(lanes.warp, return_inverse=True)
        full = np.broadcast_to(rows, (int(where.max()) + 1, WARP))
        return full[where, lanes.lane]

    def shuffle(self, lanes: Lanes, kind: str, mask: Any, value: Any, by: Any) -> Any:
        """The value of another lane of the warp: an absolute one (""), or one "_up", "_down", "_xor" from here."""
        self.require(lanes, mask, f"cuda.shfl{kind}_sync")
        tail = self._machine.threads % WARP
        if type(value) is not np.ndarray and not tail:
            return value
        rows = self.rows(lanes, value)
        # the instruction takes the low 5 bits
        steps = (self.rows(lanes, by).astype(np.int64) if type(by) is np.ndarray else int(by)) & (WARP - 1)
        lane = np.arange(WARP)
        source = {"": lambda: steps + 0 * lane, "_up": lambda: lane - steps, "_down": lambda: lane + steps,
                  "_xor": lambda: lane ^ steps}[kind]()  # fmt: skip
        # beyond the warp a lane gets its own value back
        source = np.where((source >= 0) & (source < WARP), source, lane)
        source = np.broadcast_to(source, rows.shape)
        if tail:
            self._require_existing(lanes, self.back(lanes, source), kind)
        if type(value) is not np.ndarray:
            return value
        return self.back(lanes, np.take_along_axis(rows, source, axis=1))

    def _require_existing(self, lanes: Lanes, source: Vector, kind: str) -> None:
        missing = lanes.thread // WARP * WARP + source >= self._machine.threads
        if missing.any():
            k = int(missing.argmax())
            what = f"cuda.shfl{kind}_sync reads lane {source[k]}, which this warp does not have"
            self._machine.fault(DivergentBarrier, what, code=int(lanes.code[k]))

    def vote(self, lanes: Lanes, kind: str, mask: Any, predicate: Any) -> Any:
        """What the lanes of a warp say: "ballot" (a bit a lane), "all", "any", "eq"."""
        self.require(lanes, mask, f"cuda.{kind}_sync")
        rows = self.rows(lanes, predicate)
        there = self.rows(lanes, np.True_)
        if kind == "ballot":
            bits = np.where(rows, np.uint32(1) << np.arange(WARP, dtype=np.uint32), np.uint32(0))
            result = np.bitwise_or.reduce(bits, axis=1).view(np.int32)
        elif kind == "any":
            result = rows.any(axis=1)
        elif kind == "all":
            result = (rows | ~there).all(axis=1)
        else:
            result = (rows | ~there).all(axis=1) | ~rows.any(axis=1)
        return self.back(lanes, result[:, None])

    def match(self, lanes: Lanes, mask: Any, value: Any) -> Vector:
        """A bit for each lane of the warp that has the same value."""
        self.require(lanes, mask, "cuda.match_any_sync")
        rows, there = self.rows(lanes, value), self.rows(lanes, np.True_)
        same = (rows[:, :, None] == rows[:, None, :]) & there[:, None, :]
        bits = np.where(same, np.uint32(1) << np.arange(WARP, dtype=np.uint32), np.uint32(0))
        return self.back(lanes, np.bitwise_or.reduce(bits, axis=2).view(np.int32))

    def active(self, lanes: Lanes) -> Vector:
        """A bit for each active lane of the warp."""
        bits = np.zeros(lanes.batch.count * lanes.batch.warps, np.uint32)
        np.bitwise_or.at(bits, lanes.warp, np.uint32(1) << lanes.lane.astype(np.uint32))
        return bits.take(lanes.warp).view(np.int32)

    def lower_lanes(self, lanes: Lanes) -> Vector:
        """A bit for each lane below this one."""
        return ((np.uint32(1) << lanes.lane.astype(np.uint32)) - np.uint32(1)).view(np.int32)
