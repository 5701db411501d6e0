"""What `minidl doctor` looks at for a GPU. Without one minidl trains on the CPU, so none of this is a failure."""

import ctypes
import importlib
import shutil
import subprocess
import sys
from importlib import metadata

from minidl.cli.checks import INFO, PASS, WARN, Finding


def nvidia_driver() -> Finding:
    """The GPUs and their driver, by nvidia-smi and by the driver's library."""
    listed, works = _nvidia_smi()
    cuda = _cuda_version()
    if cuda is None and listed is None:
        return Finding(INFO, "none found", "nothing, unless there is an NVIDIA GPU: then install its driver")
    if cuda is None or not works:
        found = listed or "no nvidia-smi"
        found += "" if cuda else "; the driver's library (libcuda) cannot be loaded"
        return Finding(WARN, found, "reinstall the driver; give a container access to the GPU (docker run --gpus all)")
    return Finding(PASS, f"{listed or 'GPU unknown, there is no nvidia-smi'}; CUDA {cuda[0]}.{cuda[1]}")


def package(name: str) -> Finding:
    """Whether "cupy" or "numba-cuda" is installed and, where there is a driver, can be imported."""
    cuda = _cuda_version()
    distributions = ("cupy-cuda12x", "cupy-cuda13x", "cupy") if name == "cupy" else (name,)
    installed = [f"{one} {version}" for one in distributions if (version := _version(one)) is not None]
    if installed:
        if cuda is not None:
            importlib.import_module("numba_cuda" if name == "numba-cuda" else name)
        return Finding(PASS, ", ".join(installed))
    major = 12 if cuda is not None and cuda < (13, 0) else 13
    wanted = f"cupy-cuda{major}x" if name == "cupy" else f"numba-cuda[cu{major}]"
    when = "with an NVIDIA GPU, " if cuda is None else ""
    return Finding(INFO if cuda is None else WARN, "not installed", f'{when}run `python -m pip install "{wanted}"`')


def device() -> Finding:
    """What --device auto takes."""
    from minidl.backends import choose

    choice = choose("auto")
    found = choice.backend.describe()
    if choice.backend.name == "cuda":
        return Finding(PASS, found)
    status = INFO if _cuda_version() is None else WARN
    return Finding(status, f"{found}: {choice.why}", "nothing; training on the CPU works")


def _nvidia_smi() -> tuple[str | None, bool]:
    """What nvidia-smi lists (None without it), and whether it works."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None, True
    command = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi: {error}", False
    lines = [line.strip() for line in (done.stdout or done.stderr).splitlines() if line.strip()]
    if done.returncode or not lines:
        return f"nvidia-smi: {' '.join(lines) or f'exit code {done.returncode}'}", False
    return " | ".join(", driver ".join(line.rsplit(", ", 1)) for line in lines), True


def _cuda_version() -> tuple[int, int] | None:
    """The newest CUDA that the driver runs; None where its library cannot be loaded."""
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
