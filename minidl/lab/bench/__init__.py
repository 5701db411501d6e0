"""Bench: how fast operations and training steps are, beside PyTorch, in one run, by turns.

    with open_bench(get_backend("cpu"), ("eager", "channels-last")) as bench:
        for row in run(bench, plan("cpu", ("batchnorm_relu_forward",))):
            print(row)

What a row holds is described in docs/performance.md.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from minidl.backends import Backend
from minidl.backends.device import NARROW
from minidl.errors import ConfigError, DeviceError
from minidl.lab.bench import tables
from minidl.lab.bench.accuracy import batchnorm_accuracy
from minidl.lab.bench.clocks import Clock, CpuClock, GpuClock
from minidl.lab.bench.lists import default_shapes
from minidl.lab.bench.measure import OWN, Bench, Row
from minidl.lab.bench.networks import MODELS, network
from minidl.lab.bench.peer import NAMES as PEERS
from minidl.lab.bench.peer import TorchPeer, chosen_variants
from minidl.lab.bench.records import provenance, read, record, require_recordable
from minidl.lab.bench.shapes import FAMILIES, Shape, operations_of, read_shapes

REPEATS = 20
BATCHES = {"cpu": (128,), "cuda": (128, 512)}


class Task(NamedTuple):
    """An operation on a shape by a technique; or, where `shape` is None, a training step of a model."""

    name: str
    shape: Shape | None = None
    technique: str = OWN
    batch: int = 0


def plan(
    device: str,
    operations: Sequence[str] = (),
    models: Sequence[str] = (),
    batches: Sequence[int] = (),
    shapes: Sequence[Shape] | None = None,
    techniques: Sequence[str] = (OWN,),
    backend: Any = None,
) -> list[Task]:
    """What there is to measure.

    Args:
        device: "cpu" or "cuda": each has shapes, models and batches of its own where none are given.
        operations: Names of operations and families; all, if neither these nor `models` nor `shapes` are given.
        models: Names of models; those of `MODELS`, if neither these nor `operations` nor `shapes` are given.
        batches: Images of a training step.
        shapes: A list of one's own.
        techniques: How each operation is computed; "all" for each technique that `backend` has.
        backend: See `techniques`.

    Raises:
        ConfigError: There is no such operation or model, or nothing in the list for these operations; or they are asked
            for with activations in 16 bits, for which there are training steps alone.
    """
    everything = not operations and not models and shapes is None
    wanted = operations_of(tuple(operations) or tuple(FAMILIES))
    narrow = getattr(backend, "precision", "") in NARROW
    if narrow and (operations or shapes is not None):
        raise ConfigError(
            f"--precision {backend.precision}: operations are timed on float32 alone; with activations in 16 bits "
            "there are training steps, by --model"
        )
    tasks = []
    if (everything and not narrow) or operations or shapes is not None:
        for one in default_shapes(device) if shapes is None else shapes:
            if one.model:
                network(one.model)  # or it raises
            for name in one.operations:
                if name in wanted:
                    tasks += [Task(name, one, technique) for technique in _techniques(backend, name, techniques)]
        if not tasks:
            raise ConfigError(_why_nothing(operations, techniques))
    if not models and everything:
        models = [name for name in MODELS if device != "cpu" or name != "resnet-18"]
    for name in models:
        network(name)
        tasks += [Task(name, batch=batch) for batch in batches or BATCHES[device]]
    return tasks


def _why_nothing(operations: Sequence[str], techniques: Sequence[str]) -> str:
    if tuple(techniques) != (OWN,):
        return f"--technique {' '.join(techniques)}: no operation here has it; leave it out, or give all"
    return f"--shapes: the list has nothing for {', '.join(operations)}"


def _techniques(backend: Any, operation: str, techniques: Sequence[str]) -> list[str]:
    """Those to measure an operation by; of batch normalization, which is several operations, any that one has."""
    known = getattr(backend, "techniques", lambda _: ())
    names = [operation]
    if operation.startswith("batchnorm"):
        ending = "backward" if operation.endswith("backward") else "apply"
        names = [f"batchnorm_add_relu_{ending}" if "add" in operation else f"batchnorm_{ending}"]
        names += ["batchnorm_statistics"] if ending == "apply" else []
    has = list(dict.fromkeys(technique for name in names for technique in known(name)))
    if "all" in techniques:
        return [OWN, *has]
    return [technique for technique in techniques if technique == OWN or technique in has]


@contextlib.contextmanager
def open_bench(backend: Backend, variants: Sequence[str] = (), repeats: int = REPEATS) -> Iterator[Bench]:
    """What measures on `backend`, beside these variants of PyTorch; the device's rates are measured first.

    Raises:
        DeviceError: The device tells no time, or PyTorch is not here or cannot use it.
    """
    if backend.name not in BATCHES:
        raise DeviceError(
            f"device {backend.name} tells no time: it runs kernels to check them, not as a GPU would; use --device "
            "cpu, or --device cuda on a machine with a GPU"
        )
    device: Any = backend
    threads = int(device.workers.threads) if backend.name == "cpu" else 1
    peer = TorchPeer(backend.name, threads, backend.precision, tuple(variants)) if variants else None
    if backend.name == "cpu":
        clock: Clock = CpuClock(device.workers)
    else:
        clock = GpuClock(device.cupy, peer and peer.torch)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_without_checks(device))
        if peer is not None:
            stack.enter_context(peer.running())
        stack.enter_context(clock.running())
        yield Bench(backend, clock, peer, repeats, backend.precision, clock.rates(backend.precision))


@contextlib.contextmanager
def _without_checks(device: Any) -> Iterator[None]:
    """Inside, a GPU does not wait to see whether targets are classes: PyTorch does not either."""
    if not hasattr(device, "checks_targets"):
        yield
        return
    before, device.checks_targets = device.checks_targets, False
    try:
        yield
    finally:
        device.checks_targets = before


def run(
    bench: Bench, tasks: Sequence[Task], seconds: float | None = None, measures_memory: bool = True
) -> Iterator[tuple[Task, list[Row]]]:
    """Each task and its rows; none for what there was no time for within `seconds`."""
    began = time.monotonic()
    for task in tasks:
        if seconds is not None and time.monotonic() - began > seconds:
            yield task, []
        elif task.shape is None:
            yield task, bench.step(task.name, task.batch, measures_memory)
        else:
            yield task, [bench.operation(task.name, task.shape, task.technique)]


__all__ = [
    "BATCHES",
    "MODELS",
    "OWN",
    "PEERS",
    "REPEATS",
    "Bench",
    "Row",
    "Shape",
    "Task",
    "TorchPeer",
    "batchnorm_accuracy",
    "chosen_variants",
    "default_shapes",
    "open_bench",
    "operations_of",
    "plan",
    "provenance",
    "read",
    "read_shapes",
    "record",
    "require_recordable",
    "run",
    "tables",
]
