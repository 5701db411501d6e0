"""Whether a GPU can be used here, and if not, what is missing and what to do about it.

The driver is asked directly, so that the answer needs none of the packages whose lack it may be about.
"""

import ctypes
import importlib
import sys
from importlib import metadata
from typing import Any, NamedTuple

OLDEST_CUDA = 12
OLDEST_CAPABILITY = 8, 0  # the oldest that the kernels are compiled and checked for
DISTRIBUTIONS = {"CuPy": ("cupy-cuda12x", "cupy-cuda13x", "cupy"), "numba-cuda": ("numba-cuda",)}
MODULES = {"CuPy": "cupy", "numba-cuda": "cuda.core"}  # what is imported of them


class Lack(NamedTuple):
    """What keeps a GPU from being used."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}: {self.remedy}" if self.remedy else self.what


class Driver(NamedTuple):
    """What the driver says."""

    cuda: tuple[int, int]  # the newest version that it supports
    capabilities: tuple[tuple[int, int], ...]  # of each GPU
    error: int = 0  # of starting it; 100 is "no GPU"


def lack() -> Lack | None:
    """What is missing for --device cuda, the first thing to mend; None where nothing is."""
    return driver_lack(driver()) or package_lack()


def driver() -> Driver | None:
    """The NVIDIA driver of this machine."""
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        error = int(library.cuInit(0))
        number = ctypes.c_int()
        library.cuDriverGetVersion(ctypes.byref(number))
        cuda = number.value // 1000, number.value % 1000 // 10
        if error:
            return Driver(cuda, (), error)
        library.cuDeviceGetCount(ctypes.byref(number))
        return Driver(cuda, tuple(_capability(library, gpu) for gpu in range(number.value)))
    except (OSError, AttributeError):
        return None


def _capability(library: Any, gpu: int) -> tuple[int, int]:
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.cuDeviceGetAttribute(ctypes.byref(major), 75, gpu)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    library.cuDeviceGetAttribute(ctypes.byref(minor), 76, gpu)
    return major.value, minor.value


def driver_lack(found: Driver | None) -> Lack | None:
    """What is wrong with the driver and its GPUs."""
    if found is None:
        return Lack("no NVIDIA driver was found on this machine", "")
    if found.error not in (0, 100):
        return Lack(f"the NVIDIA driver does not start (CUDA error {found.error})", "see what `nvidia-smi` says")
    if found.error or not found.capabilities:
        return Lack("the NVIDIA driver finds no GPU", "see what `nvidia-smi` says, and CUDA_VISIBLE_DEVICES")
    if found.cuda[0] < OLDEST_CUDA:
        return Lack(
            f"the NVIDIA driver supports CUDA {_dotted(found.cuda)}, and {OLDEST_CUDA}.0 is needed", "update the driver"
        )
    if found.capabilities[0] < OLDEST_CAPABILITY:
        return Lack(
            f"the GPU has compute capability {_dotted(found.capabilities[0])}, and {_dotted(OLDEST_CAPABILITY)} is "
            "needed",
            "use a newer GPU",
        )
    return None


def package_lack() -> Lack | None:
    """Which package is missing or does not work."""
    for package, module in MODULES.items():
        if installed(package) is None:
            return Lack(f"{package} is not installed", remedy())
        try:
            importlib.import_module(module)
        except Exception as error:  # of whatever kind: it is another program's start
            return Lack(f"{package} cannot be imported ({' '.join(str(error).split())[:200]})", remedy())
    return None


def installed(package: str) -> str | None:
    """Name and version of a package's distribution, of which there may be several."""
    for name in DISTRIBUTIONS[package]:
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return None


def remedy() -> str:
    """The command that installs what belongs to this machine's driver."""
    found = driver()
    extra = "cuda12" if found is not None and found.cuda[0] == 12 else "cuda13"
    return f'run `python -m pip install -e ".[{extra}]"`'


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
