"""Workers: every piece once, whoever does it; errors arrive; scratch is each thread's own."""

import contextlib
import gc
import itertools
import os
import queue
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator

import numpy as np
import pytest

from minidl.backends.cpu.threads import BLAS, MAX_THREADS, Workers, _Job, available_cores
from minidl.errors import ConfigError
from minidl.training.config import TrainConfig, validate


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize(("count", "grain"), [(0, 4), (1, 4), (4, 4), (5, 4), (64, 1), (1000, 7), (7, 1000)])
def test_ranges_cover_everything_once(threads: int, count: int, grain: int) -> None:
    workers = Workers(threads)
    times = np.zeros(count, np.int64)
    ranges: list[tuple[int, int]] = []

    def function(first: int, last: int, array: np.ndarray, step: int) -> None:
        ranges.append((first, last))
        for i in range(first, last):
            array[i] += step

    for _ in range(5):
        workers.run(function, count, grain, times, 2)
    assert (times == 10).all()
    assert all(0 <= first < last <= count for first, last in ranges)
    assert all(first % grain == 0 for first, _ in ranges)


def test_all_threads_take_part() -> None:
    """Each piece waits for the others: with fewer threads than pieces they would never meet."""
    workers = Workers(3)
    meeting = threading.Barrier(3, timeout=30)
    names: set[int] = set()

    def function(first: int, last: int) -> None:
        meeting.wait()
        names.add(threading.get_ident())

    workers.run(function, 3, 1)
    assert len(names) == 3
    assert threading.get_ident() in names  # the caller is one of them


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("bad", [0, 17, 39])
def test_an_error_in_any_piece_reaches_the_caller(threads: int, bad: int) -> None:
    workers = Workers(threads)

    def function(first: int, last: int) -> None:
        if first <= bad < last:
            raise LookupError(f"piece {bad}")

    for _ in range(3):
        with pytest.raises(LookupError, match=f"piece {bad}"):
            workers.run(function, 40, 1)
    done: list[int] = []
    workers.run(lambda first, last: done.extend(range(first, last)), 40, 1)  # and they go on working
    assert sorted(done) == list(range(40))


def test_an_error_of_a_helper_reaches_the_caller() -> None:
    workers = Workers(2)
    caller, meeting = threading.get_ident(), threading.Barrier(2, timeout=30)

    def function(first: int, last: int) -> None:
        meeting.wait()
        if threading.get_ident() != caller:
            raise LookupError("in the helper")

    with pytest.raises(LookupError, match="in the helper"):
        workers.run(function, 2, 1)


def test_when_run_returns_or_raises_nobody_is_still_at_work() -> None:
    workers = Workers(3)
    busy = [0]
    lock = threading.Lock()

    def function(first: int, last: int) -> None:
        with lock:
            busy[0] += 1
        time.sleep(0.002)
        with lock:
            busy[0] -= 1
        if first == 4:
            raise LookupError

    for _ in range(5):
        with pytest.raises(LookupError):
            workers.run(function, 12, 1)
        assert busy == [0]


def test_helpers_hold_no_arguments_between_jobs() -> None:
    workers = Workers(3)
    array = np.zeros(64)
    workers.run(lambda first, last, array: array[first:last].fill(1), 64, 1, array)
    for _ in range(100):  # a helper lets go just after it has reported
        if sys.getrefcount(array) == 2:
            break
        time.sleep(0.01)
    assert sys.getrefcount(array) == 2  # this name and the call's


def test_several_callers_at_once_get_their_own_results() -> None:
    workers = Workers(3)
    results: dict[int, bool] = {}

    def caller(mark: int) -> None:
        good = True
        for _ in range(50):
            array = np.zeros(97, np.int64)
            workers.run(lambda first, last, array=array: array[first:last].fill(mark), 97, 5)
            good = good and bool((array == mark).all())
        results[mark] = good

    threads = [threading.Thread(target=caller, args=(mark,)) for mark in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {1: True, 2: True, 3: True, 4: True}


def test_scratch_is_each_threads_own_and_grows() -> None:
    workers = Workers(4)
    meeting = threading.Barrier(4, timeout=30)
    seen: list[np.ndarray] = []

    def function(first: int, last: int) -> None:
        outer = workers.scratch("outer", 100)
        outer[:100] = first
        inner = workers.scratch("inner", 50)  # another name: nothing to do with the first
        inner[:50] = -1
        meeting.wait()
        assert (outer[:100] == first).all()
        assert workers.scratch("outer", 10) is outer
        seen.append(outer)

    workers.run(function, 4, 1)
    addresses = {array.__array_interface__["data"][0] for array in seen}
    assert len(addresses) == 4
    assert all(array.dtype == np.float32 and array.size >= 100 for array in seen)
    assert workers.scratch("outer", 1000).size >= 1000


def test_products_run_on_one_thread_inside_and_on_as_many_as_before_outside() -> None:
    if not BLAS.libraries:
        pytest.skip("NumPy's BLAS has no threads that can be counted")

    def counts() -> list[int]:
        return [library.get_num_threads() for library in BLAS.libraries]

    before = counts()
    with BLAS.one_thread():
        assert counts() == [1] * len(before)
        with BLAS.one_thread():
            pass
        assert counts() == [1] * len(before)
    assert counts() == before
    with contextlib.suppress(LookupError), BLAS.one_thread():
        raise LookupError
    assert counts() == before


@pytest.fixture
def two_blas_threads() -> Iterator[None]:
    if not BLAS.libraries:
        pytest.skip("NumPy's BLAS has no threads that can be counted")
    before = [library.get_num_threads() for library in BLAS.libraries]
    for library in BLAS.libraries:
        library.set_num_threads(2)
    yield
    for library, threads in zip(BLAS.libraries, before, strict=True):
        library.set_num_threads(threads)


def test_two_callers_that_overlap_leave_the_number_of_blas_threads_alone(two_blas_threads: None) -> None:
    library = BLAS.libraries[0]
    first, second = BLAS.one_thread(), BLAS.one_thread()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    inside = library.get_num_threads()
    second.__exit__(None, None, None)
    assert (inside, library.get_num_threads()) == (1, 2)


def test_a_backend_that_is_dropped_lets_its_threads_end() -> None:
    before = set(threading.enumerate())
    workers = Workers(4)
    workers.run(lambda first, last: None, 8, 1)
    helpers = set(threading.enumerate()) - before
    assert len(helpers) == 3
    del workers
    for helper in helpers:
        helper.join(timeout=5)
    assert not any(helper.is_alive() for helper in helpers)


def test_there_are_as_many_cores_as_this_process_may_use() -> None:
    expected = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert available_cores() == expected >= 1


@pytest.mark.parametrize("threads", [0, -1, MAX_THREADS + 1, 10**9])
def test_a_number_of_threads_that_is_a_slip_is_refused(threads: int, monkeypatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", lambda _: pytest.fail("started one"))
    with pytest.raises(ValueError, match=f"the number of threads must be from 1 to 4,096, got {threads}"):
        Workers(threads)
    with pytest.raises(ConfigError, match="--threads must be "):  # the command line's limits are the same
        validate(TrainConfig(threads=threads))


def test_too_many_threads_leave_nothing_behind(monkeypatch) -> None:
    """The system refuses the third: the two that were started are told to end, and nobody else is told anything."""
    start, refused = threading.Thread.start, RuntimeError("can't start new thread")
    before, told = set(threading.enumerate()), []

    def limited(thread: threading.Thread) -> None:
        if len(set(threading.enumerate()) - before) == 2:
            raise refused
        start(thread)

    class Queue(queue.SimpleQueue):
        def put(self, item: object) -> None:
            told.append(item)
            super().put(item)

    monkeypatch.setattr(threading.Thread, "start", limited)
    monkeypatch.setattr("minidl.backends.cpu.threads.SimpleQueue", Queue)
    with contextlib.suppress(RuntimeError):
        Workers(1000)
    refused.__traceback__ = None  # it holds the half-made workers
    gc.collect()
    assert told == [None, None]
    limit = time.monotonic() + 10
    while set(threading.enumerate()) - before:
        assert time.monotonic() < limit
        time.sleep(0.01)


class Library:
    """Like one of threadpoolctl's; Ctrl-C comes at the call number `interrupt`, before or after it has effect."""

    def __init__(self, calls: Iterator[int], interrupt: int, late: bool) -> None:
        self.threads, self.calls, self.interrupt, self.late = 4, calls, interrupt, late

    def get_num_threads(self) -> int:
        return self._called(self.threads)

    def set_num_threads(self, threads: int) -> None:
        self._called(threads)

    def _called(self, threads: int) -> int:
        now = next(self.calls) == self.interrupt
        if not now or self.late:
            self.threads = threads
        if now:
            raise KeyboardInterrupt
        return self.threads


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("interrupt", range(6))
def test_ctrl_c_at_any_moment_leaves_the_number_of_blas_threads_alone(interrupt: int, late: bool) -> None:
    blas, calls = type(BLAS)(), itertools.count()
    blas.libraries = [Library(calls, interrupt, late) for _ in range(2)]
    with contextlib.suppress(KeyboardInterrupt), blas.one_thread():
        assert [library.threads for library in blas.libraries] == [1, 1]
    assert next(calls) > interrupt
    assert [library.threads for library in blas.libraries] == [4, 4]
    with blas.one_thread():
        assert [library.threads for library in blas.libraries] == [1, 1]
    assert [library.threads for library in blas.libraries] == [4, 4]


FORK = """
import os, threading, warnings
import numpy as np
from minidl.backends.cpu.threads import Workers
warnings.simplefilter("ignore")  # Python 3.12 warns of threads at a fork
workers = Workers(2)
done = np.zeros(8)
def fill(first, last):
    done[first:last] = 1
workers.run(fill, 8, 1)
child = os.fork()
if child == 0:
    done[:] = 0
    work = threading.Thread(target=workers.run, args=(fill, 8, 1), daemon=True)
    work.start()
    work.join(2)
    os._exit(3 if work.is_alive() else 0 if done.all() else 4)
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_can_work() -> None:
    """As in a pool of multiprocessing's, which forks on Linux before Python 3.14."""
    assert subprocess.run([sys.executable, "-c", FORK], timeout=60, check=False).returncode == 0


FORK_WHILE_OTHERS_COMPUTE = """
import os, threading, warnings
from minidl.backends.cpu import CpuBackend
from minidl.backends.cpu.threads import BLAS
warnings.simplefilter("ignore")  # Python 3.12 warns of threads at a fork
backend = CpuBackend(threads=2)
counts = lambda: [library.get_num_threads() for library in BLAS.libraries]
for library in BLAS.libraries:
    library.set_num_threads(2)
ready, over = threading.Event(), threading.Event()
def busy():
    with BLAS.one_thread(), BLAS._lock, backend.arena._lock:
        ready.set()
        over.wait()
other = threading.Thread(target=busy)
other.start()
ready.wait()
child = os.fork()
if child == 0:
    def work():
        backend.empty((8, 8))
        with BLAS.one_thread():
            pass
        backend.empty((8, 8))
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(5)
    os._exit(3 if thread.is_alive() else 0 if set(counts()) <= {2} else 4)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
over.set()
other.join()
backend.empty((8, 8))
os._exit(code or (0 if set(counts()) <= {2} else 5))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_child_forked_while_another_thread_computes_can_work() -> None:
    command = [sys.executable, "-c", FORK_WHILE_OTHERS_COMPUTE]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0


def test_a_thread_that_is_busy_elsewhere_is_not_waited_for_and_keeps_nothing_alive() -> None:
    workers, over, array = Workers(2), threading.Event(), np.zeros(8)
    begun = threading.Event()

    def elsewhere(first: int, last: int) -> None:
        del first, last
        begun.set()
        over.wait(30)

    workers._jobs.put(_Job(elsewhere, 1, 1, ()))
    begun.wait(30)
    kept, function = weakref.ref(array), _add_one
    try:
        began = time.monotonic()
        workers.run(function, 8, 1, array)  # the other thread comes to it when `over` is set
        assert time.monotonic() - began < 10
        assert (array == 1).all()
        del array
        assert kept() is None
    finally:
        over.set()
    after = np.zeros(8)
    workers.run(function, 8, 1, after)
    assert (after == 1).all()


def _add_one(first: int, last: int, array: np.ndarray) -> None:
    array[first:last] += 1


@pytest.mark.parametrize(("elements", "threads"), [(0, 1), (199, 1), (200, 2), (299, 2), (10**6, 3), (None, 3)])
def test_a_thread_is_woken_for_so_many_elements(
    monkeypatch: pytest.MonkeyPatch, elements: int | None, threads: int
) -> None:
    monkeypatch.setattr("minidl.backends.cpu.threads.WORTH", 100)
    meeting = threading.Barrier(threads, timeout=30)
    pieces: list[int] = []
    names: set[int] = set()

    def function(first: int, last: int) -> None:
        names.add(threading.get_ident())
        if last < 10:  # the caller alone has them all at once
            if first < threads:
                meeting.wait()
            time.sleep(0.01)  # a third thread would come
        pieces.extend(range(first, last))

    Workers(3).run(function, 10, 1, elements=elements)
    assert sorted(pieces) == list(range(10))
    assert len(names) == threads


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or available_cores() < 2, reason="there is no other core to keep to"
)
@pytest.mark.parametrize("fails", [False, True])
def test_helpers_keep_off_the_core_of_the_caller_who_stays_there_meanwhile(fails: bool) -> None:
    workers, before = Workers(2), os.sched_getaffinity(0)
    caller, meeting = threading.get_ident(), threading.Barrier(2, timeout=30)
    cores: dict[bool, set[int]] = {}

    def function(first: int, last: int) -> None:
        del first, last
        meeting.wait()
        cores[threading.get_ident() == caller] = os.sched_getaffinity(0)
        if fails:
            raise LookupError

    for _ in range(3):
        with pytest.raises(LookupError) if fails else contextlib.nullcontext():
            workers.run(function, 2, 1)
        assert len(cores[True]) == 1
        assert cores[False] == before - cores[True]
        assert os.sched_getaffinity(0) == before


def test_a_system_that_does_not_let_threads_choose_a_core_has_workers_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    done: list[int] = []
    Workers(2).run(lambda first, last: done.extend(range(first, last)), 40, 1)
    assert sorted(done) == list(range(40))
