"""Verify: every operation of a device, by every technique it has, on every case, against the float64 reference.

One row a case and answer comes from `minidl.lab.operations`; here they are gathered over all of them, on several
processes where the device is the emulator, and summed up: a line a technique with its worst ratio and where that was.
"""

import contextlib
import difflib
import fnmatch
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

from minidl.backends import Backend, get_backend
from minidl.errors import ConfigError, ProcessDiedError
from minidl.lab.operations import Row, cases, check_operation, operations

DEFAULT = "default"  # of an operation that has one technique
CHUNK = 24  # cases a task: enough to be worth sending, few enough to share out evenly


class Task(NamedTuple):
    """Some cases of an operation, by one technique."""

    operation: str
    technique: str
    cases: tuple[str, ...]


class Summary(NamedTuple):
    """What became of an operation by one technique."""

    operation: str
    technique: str
    cases: int
    worst: Row
    failed: int  # rows

    @property
    def passed(self) -> bool:
        """Whether every answer of every case was within its bound, and nothing else was wrong."""
        return not self.failed


def plan(backend: Backend, operation: str | None = None, pattern: str | None = None) -> list[Task]:
    """What there is to verify.

    Args:
        backend: The device.
        operation: Only this one.
        pattern: Only cases whose name contains it, or that it matches as a shell pattern ("mean-*", "*17x*").

    Raises:
        ConfigError: There is no such operation, or no case that fits.
    """
    names = operations()
    if operation is not None and operation not in names:
        near = difflib.get_close_matches(operation, names, n=3)
        known = f"did you mean {' or '.join(near)}?" if near else f"known operations: {', '.join(names)}"
        raise ConfigError(f"there is no operation '{operation}'; {known}")
    tasks = []
    for name in names if operation is None else [operation]:
        chosen = [case for case in cases(name) if pattern is None or _fits(case, pattern)]
        for technique in techniques(backend, name):
            tasks += [
                Task(name, technique, tuple(chosen[first : first + CHUNK])) for first in range(0, len(chosen), CHUNK)
            ]
    if not tasks:
        where = f"{operation} has" if operation else "no operation has"
        raise ConfigError(f"--case {pattern}: {where} {'no' if operation else 'a'} case of that name")
    return tasks


def techniques(backend: Backend, operation: str) -> tuple[str, ...]:
    """Those that a device has for an operation."""
    known = getattr(backend, "techniques", None)
    return (known(operation) if known else ()) or (DEFAULT,)


@contextlib.contextmanager
def using(backend: Backend, operation: str, technique: str) -> Iterator[None]:
    """Inside, `backend` takes that technique for that operation."""
    if technique == DEFAULT:
        yield
        return
    chooser: Any = backend
    chooser.use(operation, technique)
    try:
        yield
    finally:
        chooser.use(operation, None)


def run(task: Task, backend: Backend, seed: int) -> list[Row]:
    """The rows of a task."""
    with using(backend, task.operation, task.technique):
        return [
            row for case in task.cases for row in check_operation(backend, task.operation, case, seed, task.technique)
        ]


def verify(
    backend: Backend,
    tasks: Sequence[Task],
    seed: int = 0,
    *,
    processes: int | None = None,
    done: Callable[[Task], None] | None = None,
) -> list[Row]:
    """All rows of `tasks`, in their order.

    Args:
        backend: The device; the CPU and the emulator are run in `processes` processes, one a core by default.
        tasks: Of `plan`.
        seed: Of the inputs.
        processes: See `backend`.
        done: Told of each task that is finished.

    Raises:
        ProcessDiedError: One of the processes was killed.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = min(processes or cores, len(tasks)) if backend.name in ("cpu", "emulator") else 1
    results: list[list[Row]] = [[] for _ in tasks]
    if processes == 1:
        for number, task in enumerate(tasks):
            results[number] = run(task, backend, seed)
            if done:
                done(task)
    else:
        with _workers(processes) as pool:
            futures = {pool.submit(_run_there, task, backend.name, seed): number for number, task in enumerate(tasks)}
            for future in as_completed(futures):
                number = futures[future]
                results[number] = future.result()
                if done:
                    done(tasks[number])
    return [row for rows in results for row in rows]


@contextlib.contextmanager
def _workers(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end at once when the block is left by an error or Ctrl-C, and when this process dies.

    Raises:
        ProcessDiedError: One of them was killed.
    """
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_live_with_the_parent)
    try:
        yield pool
    except BaseException as error:
        for child in set(multiprocessing.active_children()) - before:
            child.kill()
        pool.shutdown(wait=False, cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise ProcessDiedError(
                "a process that verified was killed, perhaps because memory ran out; nothing can be said of the rest"
            ) from None
        raise
    pool.shutdown()


def _live_with_the_parent() -> None:
    """Leave Ctrl-C to the parent, and end when it ends, however it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_there(task: Task, device: str, seed: int) -> list[Row]:
    """In another process, which has one core to itself."""
    return run(task, get_backend(device, 1) if device == "cpu" else get_backend(device), seed)


def summaries(rows: Sequence[Row]) -> Iterator[Summary]:
    """One for each operation and technique, in the order of the rows."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.op, row.variant), []).append(row)
    for (operation, technique), group in groups.items():
        worst = max(group, key=lambda row: row.ratio)
        failed = sum(not row.passed for row in group)
        yield Summary(operation, technique, len({row.case for row in group}), worst, failed)


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows for a file: {op, variant, device, case, error, bound, ratio, passed, ...}; what is infinite is null."""
    return [{name: _json(value) for name, value in row.as_dict().items()} for row in rows]


def _json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _fits(case: str, pattern: str) -> bool:
    return pattern in case or fnmatch.fnmatchcase(case, pattern)
