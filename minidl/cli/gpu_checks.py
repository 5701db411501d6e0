"""What `minidl doctor` says of a GPU. This version computes on the CPU only, so nothing here is needed or amiss."""

import shutil
import subprocess
from importlib import metadata

from minidl.cli.checks import INFO, PASS, Finding

NOTHING = "nothing; this version computes on the CPU only"
DISTRIBUTIONS = {"CuPy": ("cupy-cuda12x", "cupy-cuda13x", "cupy"), "numba-cuda": ("numba-cuda",)}


def nvidia_driver() -> Finding:
    """The GPUs and their driver, as nvidia-smi lists them."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return Finding(INFO, "none found", NOTHING)
    command = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        return Finding(INFO, f"nvidia-smi: {error}", NOTHING)
    lines = [line.strip() for line in (done.stdout or done.stderr).splitlines() if line.strip()]
    if done.returncode or not lines:
        return Finding(INFO, f"nvidia-smi: {' '.join(lines) or f'exit code {done.returncode}'}", NOTHING)
    return Finding(INFO, " | ".join(", driver ".join(line.rsplit(", ", 1)) for line in lines), NOTHING)


def package(name: str) -> Finding:
    """Whether "CuPy" or "numba-cuda" is installed."""
    installed = [f"{one.name} {one.version}" for one in map(_distribution, DISTRIBUTIONS[name]) if one]
    return Finding(INFO, ", ".join(installed) or "not installed", NOTHING)


def device() -> Finding:
    """What --device auto takes."""
    from minidl.backends import choose

    return Finding(PASS, choose("auto").backend.describe())


def _distribution(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
