"""Run a problem on a backend and on the reference, and hold one against the other.

Every array lies between two strips of a pattern that are looked at afterwards: a read beyond its ends brings in a NaN,
a write is seen. Outputs are filled with the pattern, so what is not written is seen too.
"""

import math
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from kernels.emulator.faults import Float64Promotion, KernelFault
from kernels.matmul.tensor_tiles import NAME as TENSOR_CORE
from kernels.matmul.wgmma_tiles import NAME as WGMMA
from kernels.storage import Storage
from minidl.backends import Array, Backend, get_backend
from minidl.backends.techniques import WINOGRAD
from minidl.lab.budget import compare, poison, unwritten
from minidl.lab.operations.case import Answers, Case, Host, Layout, Problem, Values

DEFAULT = "default"  # as in minidl.lab.verify, which imports this: the device chooses
STRIP = 512  # elements before and after an array; keeps its alignment


@dataclass(frozen=True)
class Row:
    """What became of one answer (or input) of an operation: its worst element."""

    op: str
    variant: str
    device: str
    case: str
    output: str
    index: tuple[int, ...]
    got: float
    expected: float
    error: float
    bound: float
    ratio: float
    passed: bool
    fault: str = ""  # what is wrong apart from the value

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON; the ratio of a failure may be infinite."""
        return asdict(self)

    def __str__(self) -> str:
        place = self.output + (f"[{', '.join(str(i) for i in self.index)}]" if self.index else "")
        if self.fault:
            return f"{self.op} on {self.device}, case {self.case}: {place} {self.fault}"
        return (
            f"{self.op} on {self.device}, case {self.case}: {place} is {self.got:.9g}, expected {self.expected:.9g}; "
            f"the error {self.error:.3g} is {self.ratio:.3g} of its bound {self.bound:.3g}"
        )


def check_case(
    backend: Backend, operation: str, case: Case, seed: int, variant: str, against: Mapping[str, Host] | None = None
) -> list[Row]:
    """One row for each answer, and one for each fault.

    `against`, the answers of another device, take the place of the reference's; the bounds stay the reference's.
    """
    problem = make(operation, case, seed)
    head = operation, variant, backend.name, case.name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Float64Promotion)
            answers, faults = run(backend, problem, case.layout)
    except KernelFault as fault:
        found = Fault(fault.array or "", (), str(fault))
        return [_failed(head, found)]
    right, _ = run(get_backend("reference"), problem, "aligned")
    rows = [_failed(head, fault) for fault in faults]
    # The steps from answers to what is compared are taken in float64, so they add no error of their own.
    with np.errstate(all="ignore"):
        compared = Answers(expected=problem.derive(right), got=problem.derive(_widened(answers)))
        unasked = problem.stored and variant == DEFAULT  # of what is stored in 16 bits
        in_tf32 = problem.tf32_bounds if unasked or variant in (TENSOR_CORE, WGMMA) else None
        by_winograd = problem.winograd_bounds if variant == WINOGRAD else None
        bounds = (in_tf32 or by_winograd or problem.bounds)(compared)
        expected = compared.expected if against is None else problem.derive(_widened(against))
    for name, value in expected.items():
        worst = compare(compared.got[name], value, bounds[name])
        sizes = worst.error, worst.bound, worst.ratio
        rows.append(Row(*head, name, worst.index, worst.got, worst.expected, *sizes, passed=worst.passed))
    return rows


def _failed(head: tuple[str, str, str, str], fault: "Fault") -> Row:
    return Row(*head, fault.name, fault.place, math.nan, math.nan, math.inf, 0.0, math.inf, False, fault.what)


def make(operation: str, case: Case, seed: int) -> Problem:
    """The problem of a case; its numbers depend on nothing but its name and the seed, and its layouts share them."""
    name = case.name.removesuffix(f"/{case.layout}")
    rng = np.random.default_rng([seed, zlib.crc32(operation.encode()), zlib.crc32(name.encode())])
    with np.errstate(all="ignore"):  # NaN and infinity are meant
        return case.make(rng)


class Fault(NamedTuple):
    """Something an operation did that it must not, or did not that it must."""

    name: str
    place: tuple[int, ...]
    what: str


def run(backend: Backend, problem: Problem, layout: Layout) -> tuple[dict[str, Host], list[Fault]]:
    """The answers of a backend, as host arrays by name, and its faults."""
    # The reference computes with the numbers themselves, however a device stores them.
    stored = problem.stored if backend.dtype == np.float32 else {}
    places = {name: _Place(backend, host, layout, stored.get(name)) for name, host in problem.inputs.items()}
    contiguous: Layout = "aligned" if layout == "strided" else layout  # a layer accepts inputs, never outputs
    for name, output in problem.outputs.items():
        dtype = stored[name].dtype if name in stored else output.dtype or backend.dtype
        places[name] = _Place(backend, poison(output.shape, dtype), contiguous, stored.get(name))
    for name, host in problem.state.items():
        places[name] = _Place(backend, host, contiguous, stored.get(name))
    arrays = {name: place.array for name, place in places.items()}
    problem.call(backend, arrays)

    answers = {name: backend.numpy(arrays[name]) for name in (*problem.outputs, *problem.state)}
    faults = []
    for name, place in places.items():
        if place.written_outside(backend):
            faults.append(Fault(name, (), "was written to beyond its ends"))
        if name in problem.inputs and place.changed(backend):
            faults.append(Fault(name, (), "is an input and was changed"))
        if name in problem.outputs and (missing := unwritten(answers[name])).any():
            index = tuple(int(i) for i in np.unravel_index(missing.argmax(), missing.shape))
            faults.append(Fault(name, index, f"was not written, as {int(missing.sum())} of {missing.size} elements"))
    return {name: stored[name].decode(got) if name in stored else got for name, got in answers.items()}, faults


class _Place:
    """An array on the device, and the memory around it."""

    def __init__(self, backend: Backend, host: Host, layout: Layout, storage: Storage | None) -> None:
        host = np.asarray(host)
        if storage is not None:
            host = host if host.dtype == storage.dtype else storage.encode(host)
        elif host.dtype.kind == "f" and host.dtype != backend.dtype:
            host = host.astype(backend.dtype)
        shape, wide = host.shape, host
        strided = layout == "strided" and host.ndim > 0
        if strided:
            wide = poison((*shape[:-1], 2 * shape[-1]), host.dtype)
            wide[..., ::2] = host
        self._inside = slice(STRIP + (layout == "offset"), STRIP + (layout == "offset") + wide.size)
        self._before = poison((self._inside.stop + STRIP,), host.dtype)
        self._before[self._inside] = wide.reshape(-1)
        self._memory = backend.empty(self._before.shape, host.dtype)
        backend.copy(backend.array(self._before, host.dtype), self._memory)
        self.array: Array = self._memory[self._inside].reshape(wide.shape)
        if strided:
            self.array = backend.accept(self.array[..., ::2], "an array of the check", host.dtype)

    def written_outside(self, backend: Backend) -> bool:
        after = backend.numpy(self._memory)
        start, stop = self._inside.start, self._inside.stop
        return any(after[part].tobytes() != self._before[part].tobytes() for part in (slice(start), slice(stop, None)))

    def changed(self, backend: Backend) -> bool:
        return backend.numpy(self._memory)[self._inside].tobytes() != self._before[self._inside].tobytes()


def _widened(answers: Values) -> Values:
    return {name: value.astype(np.float64) if value.dtype.kind == "f" else value for name, value in answers.items()}
