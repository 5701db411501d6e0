"""The machine and the versions behind a result, as env.json records them. Nothing heavy is imported to find out."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from minidl.version import __version__

PACKAGES = (
    "numpy",
    "numba",
    "llvmlite",
    "numba-cuda",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "cuda-core",
    "cuda-bindings",
    "safetensors",
    "threadpoolctl",
    "matplotlib",
    "pillow",
    "click",
    "rich",
)


def environment() -> dict[str, Any]:
    """Python, platform, processor, BLAS, GPU with driver, versions and commit; None for what cannot be found out.

    `cores` counts the machine's logical cores, `cores_allowed` those that this process may run on. `commit` ends in
    "-dirty" where tracked files differ from it. Packages that are not installed are left out of `versions`.
    """
    allowed = getattr(os, "sched_getaffinity", None)  # Linux only
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "cores_allowed": len(allowed(0)) if allowed else os.cpu_count(),
        "blas": _blas(),
        "gpu": _gpu(),
        "versions": {"minidl": __version__} | _versions(),
        "commit": commit(Path(__file__).resolve().parents[2]),
    }


def commit(root: Path) -> str | None:
    """The Git commit checked out at `root`; None where `root` is not the top of a checkout or Git cannot tell."""
    if not (root / ".git").exists():  # an installed package may well lie inside somebody else's repository
        return None
    command = ["git", "--no-optional-locks", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(command, cwd=root, env=inherited, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _cpu() -> str | None:
    """The processor's name as sold."""
    try:
        if sys.platform == "linux":
            with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
                return next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), None)
        if sys.platform == "darwin":
            command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return platform.processor() or None


def _blas() -> str | None:
    """The BLAS that NumPy was built with, and its version."""
    blas = (np.show_config(mode="dicts") or {}).get("Build Dependencies", {}).get("blas", {})
    return f"{blas.get('name')} {blas.get('version')}" if blas.get("name") else None


def _gpu() -> str | None:
    """The first GPU's name, its driver and its memory, as nvidia-smi tells them."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    fields = [field.strip() for field in done.stdout.partition("\n")[0].split(",")]
    return f"{fields[0]}, driver {fields[1]}, {fields[2]}" if len(fields) == 3 else None


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
