"""Devices: one protocol, an implementation for each.

`get_backend("cpu")` is the fast CPU, `get_backend("cuda")` the GPU, `get_backend("emulator")` the GPU's kernels run
without one; `get_backend("reference")` computes every operation by its float64 definition and is what the others are
held against.
"""

from typing import NamedTuple

from minidl.backends.protocol import Array, Backend, BatchStatistics, Pair, Shape
from minidl.errors import DeviceError

DEVICES = ("auto", "cpu", "cuda", "emulator")
_created: dict[tuple[str, int | None], Backend] = {}


def get_backend(name: str, threads: int | None = None) -> Backend:
    """The backend of that name; the same object every time. Raises DeviceError where it cannot run.

    `threads` is the CPU's.
    """
    key = name, threads if name == "cpu" else None
    if key not in _created:
        _created[key] = _create(*key)
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
    if name == "emulator":
        from minidl.backends.emulated import EmulatorBackend

        return EmulatorBackend()
    if name == "cuda":
        why = why_no_cuda()
        if why is None:
            from minidl.backends.cuda import CudaBackend

            try:
                return CudaBackend()
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


def choose(device: str, threads: int | None = None) -> Choice:
    """The backend for --device. "auto" takes a GPU where one can be used; asking for one that cannot be is an error."""
    if device != "auto":
        return Choice(get_backend(device, threads), "asked for")
    why = why_no_cuda()
    if why is None:
        try:
            return Choice(get_backend("cuda"), "the GPU that is here")
        except DeviceError as error:
            why = str(error)
    return Choice(get_backend("cpu", threads), why)


__all__ = ["DEVICES", "Array", "Backend", "BatchStatistics", "Choice", "Pair", "Shape", "choose", "get_backend"]
