"""Bench on a GPU, without one: the emulator in its place, stand-ins for what CuPy measures and PyTorch records."""

import contextlib
import types
from collections import Counter
from typing import Any

import numpy as np
import pytest

from kernels.run_emulated import EmulatorRunner
from minidl.backends import get_backend
from minidl.backends.emulated import EmulatorBackend
from minidl.lab.bench import batchnorm_accuracy, open_bench, plan, provenance, run
from minidl.lab.bench import clocks as clocks_module
from minidl.lab.bench import measure as measure_module
from minidl.lab.bench import steps as steps_module
from minidl.lab.bench.networks import network
from minidl.lab.bench.operations import problem
from minidl.lab.bench.shapes import shape
from minidl.lab.bench.steps import OPTIMIZERS, OurStep, _replayed, batch_of, our_captured_step, our_step


class Stream:
    ptr = 7

    def __init__(self, non_blocking: bool = False) -> None:
        self.waits = 0

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: Any) -> None:
        pass

    def synchronize(self) -> None:
        self.waits += 1


class Memory(types.SimpleNamespace):
    """An array that is swept or copied, and never looked at."""

    def fill(self, value: int) -> None:
        self.value = value


class CupyThatTimes:
    """As much of CuPy as the clock and the measuring of memory use. Each pair of events is 1 ms apart."""

    float32 = np.float32

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.stream = Stream()
        self.random = types.SimpleNamespace(standard_normal=lambda shape, dtype: np.ones((2, 2), dtype))
        self.cuda = types.SimpleNamespace(
            Device=lambda: types.SimpleNamespace(id=0),
            Event=lambda: types.SimpleNamespace(record=lambda _: None, synchronize=lambda: None),
            Stream=Stream,
            get_current_stream=lambda: self.stream,
            get_elapsed_time=lambda start, end: self.note("times") or 1.0,
            runtime=types.SimpleNamespace(getDeviceProperties=lambda _: {"l2CacheSize": 50 << 20}),
        )

    def note(self, what: str) -> None:
        self.calls[what] += 1

    def zeros(self, size: int, dtype: Any) -> Memory:
        return Memory(nbytes=4 * size)

    ones = zeros

    def zeros_like(self, other: Any) -> Memory:
        return Memory(nbytes=other.nbytes)

    def copyto(self, target: Any, source: Any) -> None:
        self.note("copies")

    def matmul(self, a: Any, b: Any) -> Any:
        return a @ b

    def get_default_memory_pool(self) -> Any:
        return types.SimpleNamespace(
            free_all_blocks=lambda: self.note("frees"), total_bytes=lambda: 1000 * self.calls["frees"]
        )


class PretendGpu(EmulatorBackend):
    name = "cuda"

    def __init__(self) -> None:
        super().__init__(EmulatorRunner(checks=False))
        self.cupy = CupyThatTimes()

    def describe(self) -> str:
        return "cuda, a pretence"


@pytest.fixture
def gpu(monkeypatch) -> PretendGpu:
    monkeypatch.setattr(measure_module, "IN_A_ROW", 1)
    return PretendGpu()


def test_every_family_by_every_technique(gpu, tiny, monkeypatch) -> None:
    monkeypatch.setattr(clocks_module, "WARM_UPS", 0)
    tasks = plan("cuda", shapes=tiny, techniques=["all"], backend=gpu)
    with open_bench(gpu, repeats=1) as bench:
        assert bench.rates.copy == pytest.approx(2 * (256 << 20) * 4 / 1e-3)
        shared = provenance(gpu, None)
        rows = [row | shared for _, found in run(bench, tasks) for row in found]
    assert gpu.checks_targets
    assert {row["operation"] for row in rows} == {name for one in tiny for name in one.operations}
    assert [row["problem"] for row in rows] == [""] * len(rows)
    timed = [row for row in rows if "seconds" in row]
    assert all(row["left_out"] for row in rows if row not in timed)  # a technique that cannot take the shape
    assert {row["operation"] for row in timed} == {row["operation"] for row in rows}
    for row in timed:
        assert (row["device"], row["machine"]) == ("gpu", "cuda, a pretence")
        assert row["seconds"]["median"] == pytest.approx(1e-3)
        assert row["launches"] >= 1


def test_a_training_step_and_its_graph(gpu) -> None:
    with open_bench(gpu, repeats=1) as bench:
        plain, graph = bench.step("mlp-2", 4)
    assert [row["technique"] for row in (plain, graph)] == ["launches", "graph"]
    for row in (plain, graph):
        assert (row["problem"], row["left_out"]) == ("", {})
        assert row["images_per_second"] == pytest.approx(4 / row["seconds"]["median"])
        assert row["memory"] == {"ours": {"step": 0}}


def test_accuracy(gpu, monkeypatch) -> None:
    rows = batchnorm_accuracy(gpu, None)
    assert all(row["smaller"] for row in rows)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_captured_step_has_the_bits_of_steps_launch_by_launch(monkeypatch, optimizer) -> None:
    monkeypatch.setattr(steps_module, "PLANNED", 3)  # so that the plan is written anew on the way
    chosen = network("mlp-2")
    batch, states = batch_of(chosen, 3), []
    for make, made in ((our_step, 0), (our_captured_step, 2)):
        backend = EmulatorBackend(EmulatorRunner(checks=False))
        backend.checks_targets = False  # as in the bench
        step = make(backend, chosen, batch, optimizer)
        for _ in range(8 - made):
            step.call.run()
        states.append({name: np.array(value) for name, value in step.state().items()})
    plain, captured = states
    for name, value in plain.items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(value, captured[name])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_uploads_nothing(monkeypatch, optimizer) -> None:
    backend = EmulatorBackend(EmulatorRunner(checks=False))
    backend.checks_targets = False
    chosen = network("mlp-2")
    step = OurStep(backend, chosen, batch_of(chosen, 3), optimizer)
    step.run()
    monkeypatch.setattr(backend, "array", lambda *_: pytest.fail("numbers are uploaded within a step"))
    step.run()


@pytest.mark.parametrize("operation", ["sgd", "adam"])
def test_an_optimizers_step_is_timed_without_its_upload(monkeypatch, operation) -> None:
    cpu = get_backend("cpu", 1)
    made = problem(operation, shape("optimizer", model="mlp-2"))
    call = made.ours(cpu, {name: cpu.array(given.value) for name, given in made.inputs.items()})
    uploaded: list[Any] = []
    upload = cpu.array
    monkeypatch.setattr(cpu, "array", lambda *given: uploaded.append(given) or upload(*given))
    for steps in range(1, 4):
        call.prepare()
        assert len(uploaded) == steps
        call.run()
        assert len(uploaded) == steps


def test_pytorchs_step_is_warmed_up_aside_and_captured_once() -> None:
    log: list[str] = []

    class TorchStream:
        def __init__(self, name: str = "aside") -> None:
            self.name = name

        def wait_stream(self, other: "TorchStream") -> None:
            log.append(f"{self.name} waits for {other.name}")

    @contextlib.contextmanager
    def inside(what: str) -> Any:
        log.append(f"in {what}")
        yield
        log.append(f"out of {what}")

    cuda = types.SimpleNamespace(
        Stream=TorchStream,
        current_stream=lambda: TorchStream("current"),
        stream=lambda stream: inside(stream.name),
        CUDAGraph=lambda: types.SimpleNamespace(replay=lambda: log.append("replay")),
        graph=lambda _: inside("graph"),
    )
    replay = _replayed(types.SimpleNamespace(cuda=cuda), lambda: log.append("step") or {"loss": len(log)})
    wanted = ["aside waits for current", "in aside", "step", "step", "step", "out of aside", "current waits for aside"]
    assert log == [*wanted, "in graph", "step", "out of graph"]
    assert replay() == {"loss": 9}
    assert log[10:] == ["replay"]
