"""How long something takes, on the CPU and on a GPU, and how fast the machine copies and multiplies.

Before each timing the caches are swept, so that every side finds its data where the rest of a training step would have
left it. On the CPU the other side's threads, which look out for more work for a while, are given time to go to sleep
first: else they have a core that is wanted.
"""

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from threadpoolctl import threadpool_limits

from minidl.backends.cpu.threads import Workers
from minidl.lab.bench.operations.problem import Call

WARM_UPS = 3
# Seconds to wait for threads; of them, what little they may work; how often in turn; times, at most.
REST, AWAKE, IN_TURN, RESTS = 2e-3, 0.1, 2, 100
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_MIB = 1 << 20


class Spread(NamedTuple):
    """Median and quartiles of what was measured."""

    median: float
    lower: float
    upper: float


class Rates(NamedTuple):
    """What the machine reaches, measured in the same run: bytes and float operations a second."""

    copy: float  # bytes read and written
    matrix: float
    matrix_of: str  # whose product, in which precision


class Clock(Protocol):
    """Times calls on one device."""

    def running(self) -> contextlib.AbstractContextManager[None]:
        """Around everything that is timed."""

    def time(self, call: Call) -> float:
        """Seconds of `call.run()`, with swept caches."""

    def time_steps(self, call: Call, count: int) -> float:
        """Seconds of each of `count` runs one after another, with all that the host does."""

    def rates(self, precision: str) -> Rates:
        """What the machine reaches."""


def spread(samples: Sequence[float]) -> Spread:
    """Median and quartiles; of one sample, itself."""
    if len(samples) == 1:
        return Spread(samples[0], samples[0], samples[0])
    lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return Spread(median, lower, upper)


def interleave(time_one: Callable[[Call], float], calls: Mapping[str, Call], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, `repeats` times: all of them by turns, so that what drifts drifts for all alike.

    Each is warmed up first: its code is loaded, its memory is there, the clocks are up.
    """
    for call in calls.values():
        for _ in range(WARM_UPS):
            time_one(call)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            samples[name].append(time_one(call))
    return samples


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> Spread:
    """How many times as long theirs takes, of each pair that ran one after the other; above 1 minidl is faster."""
    return spread([their / our for their, our in zip(theirs, ours, strict=True)])


class CpuClock:
    """The CPU's: `time.perf_counter`, collection of garbage suspended.

    Args:
        workers: minidl's threads.
    """

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self._sweep = np.ones(2 * _last_level_cache() // 8, np.int64)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """See `Clock`."""
        was_enabled = gc.isenabled()
        gc.collect()
        gc.disable()
        try:
            yield
        finally:
            if was_enabled:
                gc.enable()

    def time(self, call: Call) -> float:
        """See `Clock`."""
        call.prepare()
        self._settle()
        began = time.perf_counter()
        answers = call.run()
        seconds = time.perf_counter() - began
        del answers  # in neither side's time
        return seconds

    def time_steps(self, call: Call, count: int) -> float:
        """See `Clock`."""
        self._settle()
        began = time.perf_counter()
        for _ in range(count):
            call.run()
        return (time.perf_counter() - began) / count

    def _settle(self) -> None:
        """Wait until no thread of this process is at work, and sweep the caches."""
        quiet = 0
        for _ in range(RESTS):
            before = time.process_time()
            time.sleep(REST)
            quiet = quiet + 1 if time.process_time() - before < AWAKE * REST else 0
            if quiet == IN_TURN:
                break
        self._sweep += 1  # more than the last cache holds

    def rates(self, precision: str) -> Rates:
        """See `Clock`; the product is of BLAS, on as many threads as minidl has."""
        del precision
        source, target = np.ones(32 * _MIB, np.float32), np.zeros(32 * _MIB, np.float32)

        def part(first: int, last: int) -> None:
            np.copyto(target[first:last], source[first:last])

        def copy() -> None:
            self.workers.run(part, source.size, -(-source.size // self.workers.threads))

        a = np.random.default_rng(0).standard_normal((1536, 1536), dtype=np.float32)
        product = np.empty_like(a)
        with threadpool_limits(self.workers.threads, user_api="blas"):
            multiply = self._best(lambda: np.dot(a, a, out=product))
        bandwidth = 2 * source.nbytes / self._best(copy)
        return Rates(bandwidth, 2 * 1536**3 / multiply, "NumPy's BLAS, float32")

    def _best(self, function: Callable[[], Any], times: int = 5) -> float:
        return min(self.time_steps(Call(lambda: (function(), {})[1]), 1) for _ in range(times))


class GpuClock:
    """A GPU's: CUDA events on one stream, which both sides launch on.

    Before each timing a buffer larger than the L2 cache is written several times over. While the GPU does that, the
    host launches what is timed; so it is the GPU's time, not the host's, that lies between the events.

    Args:
        cupy: CuPy.
        torch: PyTorch, if it is the peer.
    """

    LEAD = 8  # times that the buffer is written: about half a millisecond on a large GPU

    def __init__(self, cupy: Any, torch: Any = None) -> None:
        self.cupy, self.torch = cupy, torch
        properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
        self._sweep = cupy.zeros(max(4 * int(properties.get("l2CacheSize", 0)), 256 * _MIB) // 4, cupy.float32)
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self._start, self._end = cupy.cuda.Event(), cupy.cuda.Event()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """See `Clock`."""
        self.cupy.cuda.get_current_stream().synchronize()
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.stream)
            if self.torch is not None:
                external = self.torch.cuda.ExternalStream(self.stream.ptr)
                stack.enter_context(self.torch.cuda.stream(external))
            yield
            self.stream.synchronize()

    def time(self, call: Call) -> float:
        """See `Clock`."""
        call.prepare()
        for i in range(self.LEAD):
            self._sweep.fill(i)
        self._start.record(self.stream)
        answers = call.run()
        self._end.record(self.stream)
        self._end.synchronize()
        del answers
        return float(self.cupy.cuda.get_elapsed_time(self._start, self._end)) / 1e3

    def time_steps(self, call: Call, count: int) -> float:
        """See `Clock`; the GPU is waited for after the last."""
        self.stream.synchronize()
        began = time.perf_counter()
        for _ in range(count):
            call.run()
        self.stream.synchronize()
        return (time.perf_counter() - began) / count

    def rates(self, precision: str) -> Rates:
        """See `Clock`; the product is PyTorch's in `precision` where it is here, else CuPy's in float32."""
        bandwidth = self._copy_bandwidth(256 * _MIB)
        size = 8192
        if self.torch is not None:
            dtype = getattr(self.torch, {"bf16": "bfloat16", "fp16": "float16"}.get(precision, "float32"))
            a = self.torch.randn(size, size, device="cuda", dtype=dtype)
            out = self.torch.empty_like(a)
            seconds, who = self._best(lambda: {"y": self.torch.mm(a, a, out=out)}), f"PyTorch's product, {precision}"
        else:
            b = self.cupy.random.standard_normal((size, size), dtype=self.cupy.float32)
            seconds, who = self._best(lambda: {"y": self.cupy.matmul(b, b)}), "CuPy's product, fp32"
        return Rates(bandwidth, 2 * size**3 / seconds, who)

    def _copy_bandwidth(self, size: int) -> float:
        source = self.cupy.ones(size, self.cupy.float32)
        target = self.cupy.zeros_like(source)
        return 2 * source.nbytes / self._best(lambda: self.cupy.copyto(target, source))

    def _best(self, run: Callable[[], Any], times: int = 10) -> float:
        return min(self.time(Call(run)) for _ in range(times))


def _last_level_cache() -> int:
    """Bytes; 32 MiB where it cannot be found out, and at most 256 MiB."""
    sizes = [32 * _MIB]
    with contextlib.suppress(OSError, ValueError):
        for file in _CACHES.glob("index*/size"):
            text = file.read_text(encoding="ascii").strip()
            sizes.append(int(text.rstrip("KMG")) * {"K": 1 << 10, "M": _MIB, "G": 1 << 30}.get(text[-1], 1))
    return min(max(sizes), 256 * _MIB)
