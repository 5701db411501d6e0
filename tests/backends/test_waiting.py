"""Waiting for work without going to sleep ends when there is some, and by itself."""

import time

import numpy as np
import pytest

from minidl.backends.cpu import CpuBackend, threads, waiting
from minidl.backends.cpu.waiting import SECONDS, wait_for_change


def seconds(place: np.ndarray, seen: int) -> float:
    began = time.perf_counter()
    wait_for_change(place, seen)
    return time.perf_counter() - began


def test_it_ends_by_itself_and_at_once_when_there_is_a_change() -> None:
    place = np.array([7], np.int64)
    wait_for_change(place, 7)  # which finds out how long it takes
    without = min(seconds(place, 7) for _ in range(20))
    assert SECONDS / 10 < without < 10 * SECONDS
    assert min(seconds(place, 6) for _ in range(20)) < without / 5


def test_threads_look_out_for_work_only_where_each_has_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    monkeypatch.setattr(threads, "wait_for_change", lambda place, seen: looked.append(seen))
    for cores, looks in ((1, False), (2, True)):
        monkeypatch.setattr(threads, "available_cores", lambda cores=cores: cores)
        looked.clear()
        workers = CpuBackend(2).workers
        done: list[int] = []
        for _ in range(3):
            workers.run(lambda first, last: done.append(last - first), 8, 1)
        assert sum(done) == 24
        time.sleep(0.05)
        assert bool(looked) is looks


def test_the_processor_is_told_only_where_it_understands(monkeypatch: pytest.MonkeyPatch) -> None:
    made = waiting._addresses.__wrapped__  # type: ignore[attr-defined]
    assert ("pause" in str(made())) is (waiting.platform.machine().lower() in ("x86_64", "amd64"))
    monkeypatch.setattr(waiting.platform, "machine", lambda: "aarch64")
    assert "pause" not in str(made())
