"""Devices: one protocol, an implementation for each.

`get_backend("cpu")` is the fast CPU, `get_backend("cuda")` the GPU, `get_backend("emulator")` the GPU's kernels run
without one; `get_backend("reference")` computes every operation by its float64 definition and is what the others are
held against.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from minidl.backends.protocol import (
    Array,
    Backend,
    BatchStatistics,
    GradientSums,
    Normalization,
    Pair,
    PendingGradient,
    Shape,
)
from minidl.errors import ConfigError, DeviceError

DEVICES = ("auto", "cpu", "cuda", "emulator")
# What a device's convolutions and linear layers can be computed in, its own choice first. "tf32" rounds their factors
# to 10 bits of fraction, for tensor cores, and adds in float32; everything else is float32 in any. "bf16" and "fp16"
# store images' activations in 16 bits, too, and multiply those (kernels/storage.py); vectors, parameters, statistics
# and sums stay float32, and linear layers are as with "tf32".
# "winograd" is float32 throughout, but the CPU's convolutions of 3x3 multiply sums of what is in a tile: their errors
# are in proportion to the largest numbers there.
PRECISIONS = {
    "cuda": ("tf32", "fp32", "bf16", "fp16"),
    "emulator": ("fp32", "tf32", "bf16", "fp16"),
    "cpu": ("winograd", "fp32"),
    "reference": ("fp32",),
}
NAMES_OF_PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "winograd")
_created: dict[tuple[str, int | None, str], Backend] = {}


def get_backend(name: str, threads: int | None = None, precision: str | None = None) -> Backend:
    """The backend of that name; the same object every time.

    Args:
        name: Of the device.
        threads: The CPU's.
        precision: One of NAMES_OF_PRECISIONS; the device's own choice by default.

    Raises:
        ConfigError: The device has no such precision.
        DeviceError: It cannot run, or there is no such device.
    """
    key = name, threads if name == "cpu" else None, _precision(name, precision)
    if key not in _created:
        _created[key] = _create(*key)
    return _created[key]


def _precision(device: str, precision: str | None) -> str:
    known = PRECISIONS.get(device, ("fp32",))
    if precision is None:
        return known[0]
    if precision not in known:
        others = [f"device {name}" for name, has in PRECISIONS.items() if precision in has]
        there = f"; {' and '.join(others)} {'has' if len(others) == 1 else 'have'} it" if others else ""
        raise ConfigError(f"--precision {precision}: device {device} computes in {', '.join(known)} only{there}")
    return precision


def numbers(backend: Backend, activation: Array) -> np.ndarray:
    """An activation, or its gradient, in host memory: what it holds where images are stored in 16 bits, as float32.

    `Backend.numpy` gives an array as it is, and NumPy has no bfloat16: that would be its bits.
    """
    host = backend.numpy(activation)
    if host.itemsize != 2:
        return host
    from kernels.storage import storage_of  # here, as it needs Numba

    return storage_of(host, "the activation").decode(host)


@contextlib.contextmanager
def in_precision(backend: Backend, precision: str) -> Iterator[None]:
    """Inside, `backend` computes in that precision, where it has several."""
    chooser: Any = backend
    before = backend.precision
    if before == precision:
        yield
        return
    chooser.precision = precision
    try:
        yield
    finally:
        chooser.precision = before


def _create(name: str, threads: int | None, precision: str) -> Backend:
    if name == "cpu":
        from minidl.backends.cpu import CpuBackend

        try:
            return CpuBackend(threads, precision)
        except RuntimeError as error:  # the system has its own limit
            raise DeviceError(f"--threads {threads}: that many threads cannot be had here ({error})") from None
    if name == "reference":
        from minidl.backends.reference import ReferenceBackend

        return ReferenceBackend()
    if name == "emulator":
        from minidl.backends.emulated import EmulatorBackend

        return EmulatorBackend(precision=precision)
    if name == "cuda":
        why = why_no_cuda()
        if why is None:
            from minidl.backends.cuda import CudaBackend

            try:
                return CudaBackend(precision=precision)
            except (ImportError, RuntimeError) as error:
                why = str(error)
        raise DeviceError(f"device cuda cannot be used: {why}; use --device cpu (or auto, which takes it)")
    raise DeviceError(f"there is no device '{name}'; known devices: cpu, cuda, emulator, reference")


def why_no_cuda() -> str | None:
    """Why there is no GPU to compute on and what to do about it, in a few words; None where there is one."""
    from minidl.backends import gpu

    found = gpu.lack()
    return None if found is None else str(found)


class Choice(NamedTuple):
    """A device and the reason for it."""

    backend: Backend
    why: str


def choose(device: str, threads: int | None = None, precision: str | None = None) -> Choice:
    """The backend for --device. "auto" takes a GPU where one can be used; asking for one that cannot be is an error.

    So is a --precision that the device has not. Raises ConfigError and DeviceError.
    """
    if device != "auto":
        return Choice(get_backend(device, threads, precision), "asked for")
    why = why_no_cuda()
    if why is None:
        try:
            return Choice(get_backend("cuda", precision=precision), "the GPU that is here")
        except DeviceError as error:
            why = str(error)
    return Choice(get_backend("cpu", threads, precision), why)


__all__ = [
    "DEVICES",
    "NAMES_OF_PRECISIONS",
    "PRECISIONS",
    "Array",
    "Backend",
    "BatchStatistics",
    "Choice",
    "GradientSums",
    "Normalization",
    "Pair",
    "PendingGradient",
    "Shape",
    "choose",
    "get_backend",
    "in_precision",
    "numbers",
]
