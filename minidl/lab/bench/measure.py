"""Operations and training steps, timed beside their peers: a row each."""

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.choice import Chosen
from kernels.errors import TechniqueError
from kernels.launch import Cost, Kernel
from minidl.backends import Backend
from minidl.lab.bench import memory
from minidl.lab.bench.clocks import Clock, Rates, Spread, interleave, ratios, spread
from minidl.lab.bench.networks import network
from minidl.lab.bench.operations import Call, Problem, problem
from minidl.lab.bench.peer import TorchPeer, apart
from minidl.lab.bench.shapes import Shape
from minidl.lab.bench.steps import CHECKED, Step, batch_of, our_captured_step, our_step, their_step

Row = dict[str, Any]
OWN = "default"  # the technique that an operation picks by itself
TOLERANCE = {
    "fp32": 1e-3,
    "winograd": 1e-3,
    "tf32": 2e-2,
    "bf16": 5e-2,
    "fp16": 2e-2,
}  # of the largest answer: only to see that both compute the same thing
# Of the largest change of a weight in a few steps.
UPDATES = {"fp32": 0.05, "winograd": 0.05, "tf32": 0.2, "bf16": 0.5, "fp16": 0.2}
IN_A_ROW = 10  # steps that a GPU is given before it is waited for
OURS = "ours"


@dataclass
class Bench:
    """What measures.

    Attributes:
        backend: minidl's device.
        clock: Its clock.
        peer: PyTorch, or None.
        repeats: Timings of each side.
        precision: The backend's.
        rates: What the device reaches; see `open_bench`.
    """

    backend: Backend
    clock: Clock
    peer: TorchPeer | None
    repeats: int
    precision: str
    rates: Rates

    def operation(self, operation: str, shape: Shape, technique: str = OWN) -> Row:
        """One operation on one shape by one technique, beside the peer's variants."""
        made = problem(operation, shape)
        row: Row = {"kind": "operation", "operation": operation, "shape": shape.label, "technique": technique}
        row |= {"family": shape.family, "precision": self.precision, "repeats": self.repeats}
        gc.collect()
        with _technique(self.backend, made.uses, technique):
            arrays = {name: self.backend.array(given.value, given.value.dtype) for name, given in made.inputs.items()}
            call = made.ours(self.backend, arrays)
            try:
                answers, cost, launches, choices = self._first(call, made)
            except TechniqueError as error:
                return row | {"problem": "", "left_out": {OURS: str(error)}}
            # A kernel that is asked for by name may round as tensor cores do.
            rounds = technique != OWN and self.backend.name != "cpu"
            tolerance = TOLERANCE["tf32" if rounds else self.precision]
            calls, left_out, wrong = self._peers(made, answers, tolerance)
            row |= {"left_out": left_out, "problem": wrong}
            if wrong:
                return row
            samples = interleave(self.clock.time, {OURS: call, **calls}, self.repeats)
        row |= _times(samples, OURS)
        seconds = row["seconds"]["median"]
        moved = cost.reads + cost.writes
        row |= {"bytes": moved, "flops": cost.flops, "launches": launches, "choices": choices}
        row |= {"bandwidth": moved / seconds, "rate": cost.flops / seconds}
        return row | {
            "share_of_copy": row["bandwidth"] / self.rates.copy,
            "share_of_matrix": row["rate"] / self.rates.matrix,
            "rates": self.rates._asdict(),
        }

    def _first(self, call: Call, made: Problem) -> tuple[dict[str, np.ndarray], Cost, int | None, list[dict[str, str]]]:
        """The answers of a first call on the host, what it moves and computes; on a GPU its launches and choices.

        Of kernels, what each must move by its promise is added up, so that one that holds on chip what others read
        twice has fewer bytes.
        """
        call.prepare()
        with _counting(self.backend) as (launched, choices):
            found = call.run()
        answers = {name: self.backend.numpy(found[name]) for name in made.outputs}
        if not launched:
            return answers, made.cost, None, choices
        reads, writes = (sum(cost[i] for cost in launched) for i in range(2))
        return answers, Cost(reads, writes, made.cost.flops), len(launched), choices

    def _peers(
        self, made: Problem, answers: Mapping[str, np.ndarray], tolerance: float
    ) -> tuple[dict[str, Call], dict[str, str], str]:
        """The variants' calls, why others are left out, and what differs from our answers, if anything does."""
        calls: dict[str, Call] = {}
        left_out: dict[str, str] = {}
        for variant, why in (self.peer.variants(made) if self.peer is not None else {}).items():
            assert self.peer is not None
            if why:
                left_out[variant] = why
                continue
            try:
                call = self.peer.call(made, variant)
                call.prepare()
                found = call.run()
                theirs = {name: self.peer.host(found[name], role) for name, role in made.outputs.items()}
            except Exception as error:  # whatever the peer cannot do: the others can
                left_out[variant] = _line(error)
                continue
            wrong = apart(answers, theirs, tolerance)
            if wrong:
                return {}, left_out, f"the answers differ from PyTorch's ({variant}): {wrong}"
            calls[variant] = call
        return calls, left_out, ""

    def step(self, name: str, images: int, measures_memory: bool = True) -> list[Row]:
        """A training step of a model: a row for plain launches and, where there are CUDA graphs, one for a graph."""
        chosen = network(name)
        batch = batch_of(chosen, images)
        head: Row = {"kind": "step", "model": name, "batch": images, "precision": self.precision}
        head |= {"image": list(chosen.image_shape), "repeats": self.repeats, "problem": ""}
        memory_of: dict[str, Any] = {}
        gc.collect()
        ours, trail = self._checked(lambda: our_step(self.backend, chosen, batch), OURS, memory_of)
        sides: dict[str, Step] = {OURS: ours}
        left_out = self._add_graph(sides, lambda: our_captured_step(self.backend, chosen, batch))
        for variant, why in (self.peer.step_variants() if self.peer is not None else {}).items():
            peer = self.peer
            assert peer is not None
            if why:
                left_out[variant] = why
                continue
            try:
                make = functools.partial(their_step, peer, variant, chosen, batch)
                side, theirs = self._checked(make, variant, memory_of)
            except Exception as error:
                left_out[variant] = _line(error)
                continue
            wrong = "" if variant.startswith("graph") else _astray(trail, theirs, self.precision)
            if wrong:
                wrong = f"the training steps differ from PyTorch's ({variant}): {wrong}"
                return [head | {"technique": "launches", "left_out": left_out, "problem": wrong}]
            sides[variant] = side
        if measures_memory and self.backend.name == "cpu":
            threads = _threads(self.backend)
            for side_name in (OURS, *(v for v in ("eager", "channels-last") if v in sides)):
                memory_of[side_name] = memory.peak_of(side_name, name, images, threads)
        count = IN_A_ROW if self.backend.name == "cuda" else 1
        calls = {key: side.call for key, side in sides.items()}
        samples = interleave(lambda call: self.clock.time_steps(call, count), calls, self.repeats)
        rows = []
        for key, technique in ((OURS, "launches"), (f"{OURS}-graph", "graph")):
            if key in sides:
                row = head | {"technique": technique, "left_out": left_out} | _times(samples, key)
                rows.append(row | {"images_per_second": images / row["seconds"]["median"], "memory": memory_of})
        return rows

    def _add_graph(self, sides: dict[str, Step], make: Callable[[], Step]) -> dict[str, str]:
        """Our step as a CUDA graph, where there are such; the emulator's tells no time."""
        if self.backend.name != "cuda":
            return {}
        try:
            sides[f"{OURS}-graph"] = make()
        except Exception as error:
            return {f"{OURS}-graph": _line(error)}
        return {}

    def _checked(
        self, make: Callable[[], Step], side: str, memory_of: dict[str, Any]
    ) -> tuple[Step, dict[str, np.ndarray]]:
        """A side's step after a few real ones; the losses of these, and what they changed. On a GPU also its memory."""
        with _device_memory(self.backend, self.peer, side, memory_of):
            step = make()
            before = {name: np.array(value) for name, value in step.state().items()}
            losses = []
            for _ in range(CHECKED):
                loss = step.call.run()["loss"]
                losses.append(float(loss))
        after = step.state()
        trail = {
            name: np.asarray(after[name], np.float64) - value
            for name, value in before.items()
            if name.rpartition(".")[2] != "num_batches_tracked"
        }
        return step, {"": np.array(losses), **trail}


def _astray(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], precision: str) -> str:
    """What two sides' losses, or the changes of their weights, differ in."""
    found = apart({"loss": ours[""]}, {"loss": theirs[""]}, TOLERANCE[precision])
    return found or apart(ours, {name: value for name, value in theirs.items() if name}, UPDATES[precision])


def _times(samples: Mapping[str, list[float]], own: str) -> Row:
    peers = {name: seconds for name, seconds in samples.items() if not name.startswith(OURS)}
    return {
        "seconds": spread(samples[own])._asdict(),
        "peers": {
            name: {"seconds": spread(seconds)._asdict(), "ratio": _ratio(seconds, samples[own])._asdict()}
            for name, seconds in peers.items()
        },
    }


def _ratio(theirs: list[float], ours: list[float]) -> Spread:
    return ratios(theirs, ours)


def _threads(backend: Any) -> int:
    return int(backend.workers.threads)


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


@contextlib.contextmanager
def _technique(backend: Any, operations: tuple[str, ...], technique: str) -> Iterator[None]:
    """Inside, those of the operations that have the technique take it."""
    chosen = [] if technique == OWN else [name for name in operations if technique in backend.techniques(name)]
    for name in chosen:
        backend.use(name, technique)
    try:
        yield
    finally:
        for name in chosen:
            backend.use(name, None)


@contextlib.contextmanager
def _counting(backend: Any) -> Iterator[tuple[list[Cost], list[dict[str, str]]]]:
    """Inside, the cost of each kernel that is launched is noted, and what was chosen; nothing where there are none."""
    launched: list[Cost] = []
    choices: list[dict[str, str]] = []

    def note(chosen: Chosen) -> None:
        found = {"operation": chosen.operation, "technique": chosen.technique, "why": chosen.why}
        if found not in choices:
            choices.append(found)

    if not hasattr(backend, "run"):
        backend.on_choice = note
        try:
            yield launched, choices
        finally:
            backend.on_choice = None
        return
    run: Any = backend.run

    class Counting:
        def __call__(self, kernel: Kernel, *values: Any) -> None:
            launched.append(kernel.cost(values))
            run(kernel, *values)

        def __getattr__(self, name: str) -> Any:
            return getattr(run, name)

        def on_choice(self, chosen: Chosen) -> None:
            note(chosen)

    backend.run = Counting()
    try:
        yield launched, choices
    finally:
        backend.run = run


@contextlib.contextmanager
def _device_memory(backend: Any, peer: TorchPeer | None, side: str, found: dict[str, Any]) -> Iterator[None]:
    """On a GPU, note the most memory that what is inside had: of CuPy's pool, or of PyTorch's."""
    if backend.name != "cuda":
        yield
        return
    if side == OURS:
        pool = backend.cupy.get_default_memory_pool()
        pool.free_all_blocks()
        before = pool.total_bytes()
        yield
        found[side] = {"step": pool.total_bytes() - before}
    else:
        assert peer is not None
        cuda = peer.torch.cuda
        cuda.empty_cache()
        cuda.reset_peak_memory_stats()
        before = cuda.memory_allocated()
        yield
        found[side] = {"step": cuda.max_memory_allocated() - before}
