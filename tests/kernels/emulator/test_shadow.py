"""Races, against a search through all pairs of accesses."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.random import Generator

from kernels.emulator.shadow import ATOMIC, READ, WRITE, Access, Clock, OwnerShadow, Record, SharedShadow, WriterShadow

BLOCKS, THREADS, WARPS, SIZE = 2, 64, 2, 3


class FoundError(Exception):
    """A race."""


def race(*_: Any) -> Any:
    raise FoundError


class History:
    """Random accesses and barriers of two blocks of two warps, one thread at a time or several at once."""

    def __init__(self, rng: Generator, kinds: list[str], barriers: list[str]) -> None:
        self.events: list[tuple[str, Any]] = []
        for _ in range(rng.integers(2, 12)):
            if barriers and rng.random() < 0.4:
                kind = str(rng.choice(barriers))
                self.events.append((kind, int(rng.integers(BLOCKS * WARPS if kind == "warp" else BLOCKS))))
                continue
            n = int(rng.integers(1, 4))
            codes = np.sort(rng.choice([0, 1, 33, 64, 65, 100], n, replace=False))
            elements = rng.integers(0, SIZE, n)
            self.events.append((str(rng.choice(kinds)), (elements, codes)))

    def has_race(self) -> bool:
        accesses = [
            (step, kind, int(element), int(code))
            for step, (kind, what) in enumerate(self.events)
            if kind in (READ, WRITE, ATOMIC)
            for element, code in zip(*what, strict=True)
        ]
        for k, one in enumerate(accesses):
            for other in accesses[k + 1 :]:
                plain = {one[1], other[1]}
                conflict = one[2] == other[2] and one[3] != other[3] and plain != {READ} and plain != {ATOMIC}
                if conflict and not self._ordered(one, other):
                    return True
        return False

    def _ordered(self, one: Any, other: Any) -> bool:
        for kind, which in self.events[one[0] : other[0]]:
            blocks = {one[3] // THREADS, other[3] // THREADS}
            warps = {code // THREADS * WARPS + code % THREADS // 32 for code in (one[3], other[3])}
            if kind == "grid" or (kind == "block" and blocks == {which}) or (kind == "warp" and warps == {which}):
                return True
        return False

    def found_by(self, shadow: Any, shared: bool = False) -> bool:
        clock = Clock(0, np.zeros(BLOCKS, np.int64), np.zeros(BLOCKS * WARPS, np.int64), 0, THREADS, WARPS)
        try:
            for kind, what in self.events:
                if kind in (READ, WRITE, ATOMIC):
                    access = Access(kind, what[0], what[1], clock, ("", 0), "x")
                    shadow.access("x", access) if shared else shadow.access(access)
                    continue
                now = clock.now + 1
                blocks, warps, grid = clock.blocks.copy(), clock.warps.copy(), clock.grid
                if kind == "warp":
                    warps[what] = now
                elif kind == "block":
                    blocks[what] = now
                    if shared:
                        shadow.barrier(np.arange(BLOCKS) == what)
                else:
                    grid = now
                clock = clock._replace(now=now, blocks=blocks, warps=warps, grid=grid)
            if shared:
                shadow.barrier(None)
        except FoundError:
            return True
        return False


@pytest.mark.parametrize("make", [Record, OwnerShadow])
@pytest.mark.parametrize("kinds", [[READ, WRITE], [READ, WRITE, ATOMIC]], ids=["plain", "atomic"])
def test_global_memory(make: Any, kinds: list[str]) -> None:
    rng = np.random.default_rng(0)
    verdicts = []
    for _ in range(1500):
        history = History(rng, kinds, ["block", "warp", "grid"])
        verdicts.append(history.has_race())
        assert history.found_by(make(SIZE, race)) == verdicts[-1], history.events
    assert 0.2 < np.mean(verdicts) < 0.8


def test_memory_that_is_only_written() -> None:
    rng = np.random.default_rng(1)
    verdicts = []
    for _ in range(1500):
        history = History(rng, [WRITE], ["block", "grid", "warp"])
        verdicts.append(history.has_race())
        assert history.found_by(WriterShadow(SIZE, race)) == verdicts[-1], history.events
    assert 0.1 < np.mean(verdicts) < 0.9


@pytest.mark.parametrize("kinds", [[READ, WRITE], [READ, WRITE, ATOMIC]], ids=["plain", "atomic"])
@pytest.mark.parametrize("barriers", [["block"], ["block", "warp"]], ids=["blocks", "warps"])
def test_shared_memory(kinds: list[str], barriers: list[str]) -> None:
    rng = np.random.default_rng(2)
    verdicts = []
    for _ in range(1500):
        history = History(rng, kinds, barriers)
        # each block has its own elements
        history.events = [
            (kind, (what[0] + SIZE * (what[1] // THREADS), what[1])) if kind in (READ, WRITE, ATOMIC) else (kind, what)
            for kind, what in history.events
        ]
        verdicts.append(history.has_race())
        shadow = SharedShadow(SIZE * BLOCKS, SIZE, THREADS * BLOCKS, race)
        assert history.found_by(shadow, shared=True) == verdicts[-1], history.events
    assert 0.15 < np.mean(verdicts) < 0.85


def test_a_long_log_is_folded_without_losing_the_race(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(0, np.zeros(1, np.int64), np.zeros(0, np.int64), 0, THREADS, 0)
    codes = np.arange(THREADS)

    def access(kind: str, elements: Any) -> Access:
        return Access(kind, elements, codes, clock, ("", 0), "x")

    monkeypatch.setattr("kernels.emulator.shadow.LONG", 200)
    for last, expected in ((codes, False), (codes[::-1].copy(), True)):
        shadow = SharedShadow(THREADS, THREADS, THREADS, race)
        history = [access(WRITE, codes)] + [access(READ, codes)] * 8 + [access(READ, last)]
        found = False
        try:
            for one, _ in pairwise([*history, history[0]]):
                shadow.access("x", one)
            shadow.barrier(None)
        except FoundError:
            found = True
        assert found == expected
