"""Verify: every operation of a device, by every technique it has, on every case, against the float64 reference.

One row a case and answer comes from `minidl.lab.operations`; here they are gathered over all of them, on several
processes where the device is the emulator, and summed up: a line a technique with its worst ratio and where that was.

A technique refuses arrays that it cannot take (kernels/choice.py). Such a case is counted, as neither passed nor
failed. A case that the last technique of an operation refuses, its fastest, is run once more with none asked for: the
choice left to the operation, as in training, where parts of one call may go different ways. One that takes no case of
its operation at all has failed.
"""

import contextlib
import difflib
import fnmatch
import math
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

from kernels.errors import TechniqueError
from kernels.matmul.wgmma_tiles import NAME as WGMMA
from kernels.matmul.wgmma_tiles import why_lacking
from minidl.backends import Backend, get_backend, in_precision
from minidl.errors import ConfigError, ProcessDiedError
from minidl.lab.operations import Row, cases, check_operation, operations

DEFAULT = "default"  # of an operation that has one technique, or the choice left to it
ALL = "all of them"  # the case of a row that says that a technique takes none
CHUNK = 24  # cases a task: enough to be worth sending, few enough to share out evenly


class Task(NamedTuple):
    """Some cases of an operation, by one technique."""

    operation: str
    technique: str
    cases: tuple[str, ...]


class Refusal(NamedTuple):
    """A case that a technique does not take."""

    operation: str
    technique: str
    device: str
    case: str
    why: str


class Found(NamedTuple):
    """What came of a task, or of many."""

    rows: list[Row]
    refused: list[Refusal]


class Summary(NamedTuple):
    """What became of an operation by one technique."""

    operation: str
    technique: str
    cases: int  # that it took
    worst: Row
    failed: int  # rows
    refused: int = 0  # cases that it does not take

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
        chosen = [case for case in cases(name, backend) if pattern is None or _fits(case, pattern)]
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
    found = known(operation) if known else ()
    if WGMMA in found and why_lacking(getattr(getattr(backend, "run", None), "chip", None)):
        found = tuple(technique for technique in found if technique != WGMMA)
    return found or (DEFAULT,)


@contextlib.contextmanager
def using(backend: Backend, operation: str, technique: str) -> Iterator[None]:
    """Inside, `backend` takes that technique for that operation; what it chooses by itself is exact float32."""
    if technique == DEFAULT:
        with in_precision(backend, "fp32"):
            yield
        return
    chooser: Any = backend
    chooser.use(operation, technique)
    try:
        yield
    finally:
        chooser.use(operation, None)


def run(task: Task, backend: Backend, seed: int) -> Found:
    """The rows of a task, and what it could not take."""
    found = Found([], [])
    fastest = techniques(backend, task.operation)[-1]
    for case in task.cases:
        try:
            found.rows.extend(_check(task, case, backend, seed, task.technique))
        except TechniqueError as error:
            found.refused.append(Refusal(task.operation, task.technique, backend.name, case, error.why))
            if task.technique == fastest:
                found.rows.extend(_check(task, case, backend, seed, DEFAULT))
    return found


def _check(task: Task, case: str, backend: Backend, seed: int, technique: str) -> list[Row]:
    with using(backend, task.operation, technique):
        return check_operation(backend, task.operation, case, seed, technique)


def verify(
    backend: Backend,
    tasks: Sequence[Task],
    seed: int = 0,
    *,
    processes: int | None = None,
    done: Callable[[Task], None] | None = None,
    refused: Callable[[Refusal], None] | None = None,
) -> list[Row]:
    """All rows of `tasks`, in their order; and one that has failed for each technique that takes no case.

    Args:
        backend: The device; the CPU and the emulator are run in `processes` processes, one a core by default.
        tasks: Of `plan`.
        seed: Of the inputs.
        processes: See `backend`.
        done: Told of each task that is finished.
        refused: Told, at the end, of each case that a technique does not take.

    Raises:
        ProcessDiedError: One of the processes was killed.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = min(processes or cores, len(tasks)) if backend.name in ("cpu", "emulator") else 1
    results = [Found([], []) for _ in tasks]
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
    refusals = [refusal for found in results for refusal in found.refused]
    if refused is not None:
        for refusal in refusals:
            refused(refusal)
    rows = [row for found in results for row in found.rows]
    return rows + [_of_no_use(of_technique) for of_technique in _all_refused(refusals, backend)]


def _all_refused(refusals: Sequence[Refusal], backend: Backend) -> Iterator[list[Refusal]]:
    """Of each technique that takes no case of its operation, its refusals."""
    groups: dict[tuple[str, str], list[Refusal]] = {}
    for refusal in refusals:
        groups.setdefault((refusal.operation, refusal.technique), []).append(refusal)
    for (operation, _), group in groups.items():
        if {refusal.case for refusal in group} == set(cases(operation, backend)):
            yield group


def _of_no_use(refusals: Sequence[Refusal]) -> Row:
    first = refusals[0]
    what = f"technique '{first.technique}' takes none of the {len(refusals)} cases: {first.why}"
    worst = math.nan, math.nan, math.inf, 0.0, math.inf
    return Row(first.operation, first.technique, first.device, ALL, "", (), *worst, passed=False, fault=what)


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


def _run_there(task: Task, device: str, seed: int) -> Found:
    """In another process, which has one core to itself."""
    return run(task, get_backend(device, 1) if device == "cpu" else get_backend(device), seed)


def summaries(rows: Sequence[Row], refused: Sequence[Refusal] = ()) -> Iterator[Summary]:
    """One for each operation and technique that has rows, in their order."""
    not_taken = Counter((refusal.operation, refusal.technique) for refusal in refused)
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.op, row.variant), []).append(row)
    for (operation, technique), group in groups.items():
        worst = max(group, key=lambda row: row.ratio)
        failed = sum(not row.passed for row in group)
        ran = len({row.case for row in group} - {ALL})
        yield Summary(operation, technique, ran, worst, failed, not_taken[operation, technique])


def as_json(rows: Sequence[Row], refused: Sequence[Refusal] = ()) -> list[dict[str, Any]]:
    """The rows for a file: {op, variant, device, case, error, bound, ratio, passed, ...}; what is infinite is null.

    A case that a technique does not take is a row of its own, without an answer: `passed` is null, and `refused` says
    why.
    """
    answered = [{name: _json(value) for name, value in row.as_dict().items()} for row in rows]
    return answered + [
        {"op": operation, "variant": technique, "device": device, "case": case, "passed": None, "refused": why}
        for operation, technique, device, case, why in refused
    ]


def _json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _fits(case: str, pattern: str) -> bool:
    return pattern in case or fnmatch.fnmatchcase(case, pattern)
