"""Devices: one protocol, an implementation for each.

`get_backend("cpu")` is the fast CPU, `get_backend("cuda")` the GPU; `get_backend("reference")` computes every operation
by its float64 definition and is what the others are held against.
"""

import ctypes
import sys
from typing import NamedTuple

from minidl.backends.protocol import Array, Backend, BatchStatistics, Pair, Shape
from minidl.errors import DeviceError

DEVICES = ("auto", "cpu", "cuda")
_created: dict[tuple[str, int | None], Backend] = {}


def get_backend(name: str, threads: int | None = None) -> Backend:
    """The backend of that name; the same object every time. Raises DeviceError where it cannot run."""
    key = name, threads
    if key not in _created:
        _created[key] = _create(name, threads)
    return _created[key]


def _create(name: str, threads: int | None) -> Backend:
    if name == "cpu":
        from minidl.backends.cpu import CpuBackend

        try:
            return CpuBackend(threads)
        except RuntimeError as error:  # the system has its own limit
            raise DeviceError(f"--threads {threads}: that many threads cannot be had here ({error})") from None
    if name == "reference":
        from minidl.backends.reference import ReferenceBackend

        return ReferenceBackend()
    if name == "cuda":
        raise DeviceError(f"device cuda cannot be used: {why_no_cuda()}; use --device cpu (or auto, which takes it)")
    raise DeviceError(f"there is no device '{name}'; known devices: cpu, cuda, reference")


def why_no_cuda() -> str:
    """Why there is no GPU to compute on, in a few words."""
    if not _has_nvidia_driver():
        return "no NVIDIA driver was found on this machine"
    return "this version of minidl has no GPU kernels yet"


def _has_nvidia_driver() -> bool:
    """Whether the driver's library, which comes with every installation of it, can be loaded."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


class Choice(NamedTuple):
    """A device and the reason for it."""

    backend: Backend
    why: str


def choose(device: str, threads: int | None = None) -> Choice:
    """The backend for --device. "auto" takes a GPU where one can be used; asking for one that cannot be is an error."""
    if device == "auto":
        return Choice(get_backend("cpu", threads), why_no_cuda())
    return Choice(get_backend(device, threads), "asked for")


__all__ = ["DEVICES", "Array", "Backend", "BatchStatistics", "Choice", "Pair", "Shape", "choose", "get_backend"]
