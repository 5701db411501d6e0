"""Threads for kernels that release the GIL.

Numba's own `parallel=True` costs seconds of compilation a kernel; a plain kernel over a range of pieces, called from a
few Python threads, reaches the same speed. The pieces are fixed by the caller and never by the number of threads, so
results have the same bits however many there are. Threads sleep until they are wanted, and each has a core of its own.
"""

import contextlib
import ctypes
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from minidl.backends.arena import ALIGNMENT

WORTH = 1 << 19  # elements that a simple pass goes over: for fewer a thread is not worth waking
MAX_THREADS = 4096  # more than any machine has cores; at some ten thousand a process dies of it

# NaN and infinity are values here, wherever they come from; the training loop looks out for them.
QUIET: dict[str, Any] = {"divide": "ignore", "invalid": "ignore", "over": "ignore", "under": "ignore"}


def available_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _current_core() -> Callable[[], int] | None:
    """What says on which core the calling thread is; None where the system does not say or does not let us choose."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    try:
        function: Callable[[], int] = ctypes.CDLL(None).sched_getcpu
    except (OSError, AttributeError):
        return None
    return function if function() >= 0 else None


def _keep(thread: int | None, cores: set[int]) -> None:
    """Let a thread run on these cores alone; 0 is the calling one."""
    if thread is not None:
        with contextlib.suppress(OSError):  # not allowed in some containers
            os.sched_setaffinity(thread, cores)


class _Job:
    """Pieces of one loop, taken by whichever thread is free.

    A thread takes a while to wake. Whoever comes when the others are through is not waited for, and finds nothing.
    """

    def __init__(self, function: Callable[..., None], count: int, grain: int, args: tuple[Any, ...]) -> None:
        self.function, self.count, self.grain, self.args = function, count, grain, args
        self.pieces = itertools.count()  # next() is atomic under the GIL
        self._finished: SimpleQueue[BaseException | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._helpers = 0
        self._closed = False

    def work(self) -> None:
        for piece in self.pieces:
            start = piece * self.grain
            if start >= self.count:
                return
            self.function(start, min(start + self.grain, self.count), *self.args)

    def help(self) -> None:
        """Work on it in another thread."""
        with self._lock:
            if self._closed:
                return
            self._helpers += 1
        try:
            self.work()
        except BaseException as error:
            self._finished.put(error)
        else:
            self._finished.put(None)

    def close(self) -> BaseException | None:
        """Wait for those who help; the error of one of them. Arguments are not kept alive for who comes later."""
        with self._lock:
            self._closed = True
        error = None
        for _ in range(self._helpers):
            error = self._finished.get() or error
        del self.function, self.args
        return error


def _serve(jobs: "SimpleQueue[_Job | None]") -> None:
    while (job := jobs.get()) is not None:
        job.help()
        del job  # arguments are not kept alive until the next job


class _Blas:
    """NumPy's BLAS, whose number of threads belongs to the whole process."""

    def __init__(self) -> None:
        self.libraries = ThreadpoolController().select(user_api="blas").lib_controllers
        self._lock = threading.Lock()
        self._users: set[tuple[int, object]] = set()  # each with its thread
        self._before: list[int] | None = None  # the numbers to go back to, while they are lowered
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    @contextlib.contextmanager
    def one_thread(self) -> Iterator[None]:
        """Inside, a matrix product runs on the thread that asks for it, so that ours share out the products."""
        user = threading.get_ident(), object()
        try:
            with self._lock:
                self._users.add(user)
                if self._before is None:
                    self._before = [library.get_num_threads() for library in self.libraries]
                for library in self.libraries:
                    library.set_num_threads(1)
            yield
        finally:
            try:
                self._leave(user)
            except BaseException:  # Ctrl-C, in the middle of it
                self._leave(user)
                raise

    def _leave(self, user: tuple[int, object]) -> None:
        """The last one out sets the numbers back; may be repeated."""
        with self._lock:
            self._users.discard(user)
            if not self._users and self._before is not None:
                for library, threads in zip(self.libraries, self._before, strict=True):
                    library.set_num_threads(threads)
                self._before = None

    def _after_fork(self) -> None:
        """In a child: the other threads, and what they held and used, are not there."""
        self._lock = threading.Lock()
        self._users = {user for user in self._users if user[0] == threading.get_ident()}


BLAS = _Blas()


class Workers:
    """`threads` threads, the caller's among them."""

    def __init__(self, threads: int) -> None:
        if not 1 <= threads <= MAX_THREADS:
            raise ValueError(f"the number of threads must be from 1 to {MAX_THREADS:,}, got {threads}")
        self.threads = threads
        self._current_core = _current_core()
        self._process = 0
        self._scratch = threading.local()
        self._start()

    def _start(self) -> None:
        self._helpers: list[threading.Thread] = []  # the system may refuse some
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._kept: tuple[int, set[int]] | None = None  # the core that helpers keep off, of these
        for i in range(self.threads - 1):
            helper = threading.Thread(target=_serve, args=(self._jobs,), name=f"minidl-{i + 1}", daemon=True)
            helper.start()
            self._helpers.append(helper)
        self._process = os.getpid()  # last: in a forked child, another thread may look at it meanwhile

    def __del__(self) -> None:
        if hasattr(self, "_jobs"):
            for _ in self._helpers:
                self._jobs.put(None)

    def run(
        self, function: Callable[..., None], count: int, grain: int, *args: Any, elements: int | None = None
    ) -> None:
        """Call `function(start, stop, *args)` over ranges of `grain` that cover 0 to `count`, on all threads.

        What `function` does with a number must not depend on the range it came in. `elements`: how many a simple pass
        goes over, of which each thread is to have WORTH.
        """
        pieces = -(-count // grain)
        threads = min(self.threads, pieces, pieces if elements is None else elements // WORTH)
        if threads <= 1:
            if count > 0:
                function(0, count, *args)
            return
        if self._process != os.getpid():
            self._start()  # a fork copies no threads
        job = _Job(function, count, grain, args)
        with self._apart():
            for _ in range(threads - 1):
                self._jobs.put(job)
            error = None
            try:
                job.work()
            finally:
                error = job.close()
        if error is not None:
            raise error

    @contextlib.contextmanager
    def _apart(self) -> Iterator[None]:
        """Inside, the caller stays on its core, and the helpers stay off it.

        Linux likes to wake a thread on the core of the one that wakes it. There it would wait, for milliseconds, until
        the other is through or it is moved, while another core has nothing to do.
        """
        if self._current_core is None or len(cores := os.sched_getaffinity(0)) == 1:
            yield
            return
        core = self._current_core()
        try:
            _keep(0, {core})
            if self._kept != (core, cores):
                for helper in self._helpers:
                    _keep(helper.native_id, cores - {core})
                self._kept = core, cores
            yield
        finally:
            try:
                _keep(0, cores)
            except BaseException:  # Ctrl-C, in the middle of it
                _keep(0, cores)
                raise

    def scratch(self, name: str, size: int) -> np.ndarray:
        """At least `size` uninitialised float32, the calling thread's own, valid until it asks for `name` again.

        They begin where a cache line does.
        """
        buffers: dict[str, np.ndarray] = self._scratch.__dict__
        buffer = buffers.get(name)
        if buffer is None or buffer.size < size:
            line = ALIGNMENT // 4
            memory = np.empty(size + line, np.float32)
            buffer = buffers[name] = memory[-(memory.ctypes.data // 4) % line :][:size]
        return buffer
