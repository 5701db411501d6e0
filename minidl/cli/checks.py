"""What `minidl doctor` looks at: one small function a check.

A check returns what it found. Whatever it raises is a failure too, so none of them can stop the others; for the same
reason nothing that may be broken or missing is imported before the check that needs it.
"""

import codecs
import importlib
import math
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

PASS, INFO, WARN, FAIL = "pass", "info", "warn", "fail"

PYTHON = (3, 11)
# What pyproject.toml depends on: the name to import and the oldest version that will do.
DEPENDENCIES = {
    "click": ("click", "8.2"),
    "matplotlib": ("matplotlib", "3.9"),
    "numba": ("numba", "0.61"),
    "numpy": ("numpy", "2.0"),
    "pillow": ("PIL", "11"),
    "rich": ("rich", "13.9"),
    "safetensors": ("safetensors", "0.5"),
    "threadpoolctl": ("threadpoolctl", "3.5"),
}
if sys.platform != "darwin":  # it has no macOS wheels; the emulator does with Numba alone there
    DEPENDENCIES["numba-cuda"] = ("numba_cuda", "0.30")
CGROUP = Path("/sys/fs/cgroup")  # where a Linux container finds its limits
MEMORY = Path("/proc/meminfo")


class Finding(NamedTuple):
    """What a check found.

    Attributes:
        status: PASS; INFO, which needs no action; WARN, something works less well than it could; FAIL.
        found: what is there.
        remedy: what to do, unless PASS.
    """

    status: str
    found: str
    remedy: str = ""


class Check(NamedTuple):
    """Something to look at; `remedy` is for the case that `look` raises."""

    name: str
    look: Callable[[], Finding]
    remedy: str


def run(check: Check) -> Finding:
    """The finding; an exception is a failure with its text."""
    try:
        return check.look()
    except Exception as error:
        text = " ".join(str(error).split())
        return Finding(FAIL, f"{type(error).__name__}: {text}" if text else type(error).__name__, check.remedy)


# Python and packages


def python() -> Finding:
    """The version of Python."""
    found = f"{platform.python_version()}, {sys.executable}"
    if sys.version_info < PYTHON:
        return Finding(FAIL, found, "minidl needs Python {}.{} or newer".format(*PYTHON))
    return Finding(PASS, found)


def kernels_package() -> Finding:
    """Whether `import kernels` gives minidl's package: a Hugging Face one has the same name."""
    import kernels
    import minidl

    folders = [Path(str(module.__file__)).resolve().parent for module in (kernels, minidl)]
    if getattr(kernels, "BELONGS_TO", None) != "minidl":
        return Finding(FAIL, f"another package, {folders[0]}", "run `python -m pip uninstall kernels`")
    if folders[0].parent != folders[1].parent:
        return Finding(WARN, f"{folders[0]}, of another copy than {folders[1]}", "uninstall one copy of minidl")
    return Finding(PASS, f"minidl's own, {folders[0]}")


def dependency(name: str) -> Finding:
    """Whether a package that minidl needs can be imported and is new enough."""
    module, oldest = DEPENDENCIES[name]
    importlib.import_module(module)
    version = metadata.version(name)
    if _numbers(version) < _numbers(oldest):
        return Finding(FAIL, f"{version}, {oldest} or newer is needed", f"run `python -m pip install -U {name}`")
    return Finding(PASS, version)


# The machine


def processor() -> Finding:
    """The processor, how many of its cores may be used, and how many threads minidl will start."""
    from minidl.training.environment import environment

    here = environment()
    cores = here["cores_allowed"]
    found = f"{here['cpu'] or platform.machine()}, {cores} of {here['cores']} cores, {cores} threads"
    quota = _cpu_quota()
    if quota is not None and quota < cores:
        threads = max(1, math.floor(quota))
        return Finding(WARN, f"{found}; the container may use {quota:g} at a time", f"train with --threads {threads}")
    return Finding(PASS, found)


def memory() -> Finding:
    """How much memory there is; Linux tells how much of it is free."""
    if not hasattr(os, "sysconf"):
        return Finding(INFO, "not known on this system", "nothing")
    total: float = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = total
    if MEMORY.exists():
        available = next((int(kib) * 1024 for kib in re.findall(r"MemAvailable: *(\d+)", MEMORY.read_text())), total)
    available = min(available, _memory_limit())
    found = f"{available / 2**30:.1f} GiB available of {total / 2**30:.1f}"
    if available < 2**30:
        return Finding(WARN, found, "close other programs; a larger data set may not fit")
    return Finding(PASS, found)


def blas() -> Finding:
    """The library behind matrix products, and its threads."""
    import numpy as np
    from threadpoolctl import threadpool_info

    np.ones((2, 2)) @ np.ones((2, 2))
    libraries = [library for library in threadpool_info() if library["user_api"] == "blas"]
    if not libraries:
        return Finding(
            INFO if sys.platform == "darwin" else WARN,  # macOS' own, Accelerate, is one that it does not know
            "none that threadpoolctl knows: its number of threads cannot be set",
            "on macOS nothing; elsewhere install NumPy with pip or conda, which bring OpenBLAS or MKL",
        )
    names = (
        " ".join(filter(None, (one["internal_api"], one["version"], one.get("architecture")))) for one in libraries
    )
    return Finding(PASS, ", ".join(dict.fromkeys(names)) + f", {libraries[0]['num_threads']} threads")


# Computing


def numba_compiles() -> Finding:
    """Compile and run a tiny kernel."""
    import numba

    if getattr(numba.config, "DISABLE_JIT", 0):
        return Finding(FAIL, "NUMBA_DISABLE_JIT is set: kernels would run as Python", "unset NUMBA_DISABLE_JIT")

    @numba.njit
    def sum_of_squares(count: Any) -> Any:
        total = 0
        for i in range(count):
            total += i * i
        return total

    began = time.perf_counter()
    result = sum_of_squares(1000)
    seconds = time.perf_counter() - began
    if result != 332_833_500:
        return Finding(FAIL, f"a kernel computed {result} instead of 332833500", "reinstall numba and llvmlite")
    return Finding(PASS, f"compiled and ran a kernel in {seconds:.1f} s")


def numba_cache() -> Finding:
    """Where compiled kernels are kept: NUMBA_CACHE_DIR, else beside their source, else in the user's cache folder."""
    from minidl.backends.cpu.cache import kept

    found = kept()
    if found.problem is not None:
        return Finding(WARN, found.problem, found.remedy)
    return Finding(PASS, str(found.folder))


def cpu_backend() -> Finding:
    """Two losses of small-cnn, before and after a training step, on the CPU backend and by the float64 reference.

    What is compiled for that is what `train` needs, as long as it is kept.
    """
    from minidl.backends.compilation import COMPILATION
    from minidl.backends.cpu.cache import kept

    began, before = time.perf_counter(), (COMPILATION.functions, COMPILATION.seconds)
    losses = [_losses_around_a_step(name) for name in ("cpu", "reference")]
    seconds = time.perf_counter() - began
    functions, compiling = COMPILATION.functions - before[0], COMPILATION.seconds - before[1]
    apart = [abs(cpu - reference) for cpu, reference in zip(*losses, strict=True)]
    found = f"a training step of small-cnn agrees with the reference to {max(apart):.0e}, {seconds:.1f} s"
    if not all(difference <= 1e-5 for difference in apart):  # so that NaN fails too
        found = f"a training step of small-cnn gives losses {losses[0]}, the reference {losses[1]}"
        return Finding(FAIL, found, "delete Numba's cache (above) and try again; then report this as a bug")
    if not functions:
        return Finding(PASS, f"{found}; nothing had to be compiled")
    found += f"; compiled {functions} function{'' if functions == 1 else 's'} in {compiling:.1f} s"
    if COMPILATION.problem is not None:
        return Finding(WARN, f"{found}, not all kept: {COMPILATION.problem}", "make room there, or set NUMBA_CACHE_DIR")
    folder = kept().folder
    return Finding(PASS, f"{found}, " + ("not kept" if folder is None else f"kept in {folder}"))


def _losses_around_a_step(device: str) -> tuple[float, float]:
    """Of a few digits, trained on in the way of `train`: two epochs of one step, without augmentation."""
    from minidl import data
    from minidl.backends import get_backend
    from minidl.training import TrainConfig
    from minidl.training.assembly import trainer_of
    from minidl.training.recipe import resolve

    digits, few = data.load("digits"), slice(4)  # the reference takes its time
    images, labels = digits.train_images[few], digits.train_labels[few]
    digits = replace(digits, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    config = resolve(TrainConfig(epochs=2, batch_size=len(images), warmup=0, augment=False), digits)
    trainer = trainer_of(config, digits, get_backend(device))
    rows = [trainer.train_epoch() for _ in range(2)]
    first, second = (row["train_loss"] for row in rows if row is not None)
    return first, second


# Files


def data_sets(data_dir: str | None) -> Finding:
    """Which data sets are here; the digits come with minidl."""
    from minidl.data import available

    sets = available(data_dir)
    sound = [one.name for one in sets if one.found and not one.problem]
    damaged = [one.problem for one in sets if one.found and one.problem]
    missing = [one.name for one in sets if not one.found]
    see = "`python -m minidl data list`"
    if "digits" not in sound:
        return Finding(FAIL, next(one.problem for one in sets if one.name == "digits"), "reinstall minidl")
    if damaged:
        return Finding(WARN, "; ".join(damaged), f"see {see}")
    return Finding(PASS, ", ".join(sound) + (f"; not here: {', '.join(missing)}, see {see}" if missing else ""))


def runs_folder() -> Finding:
    """Whether training can write here, and how much."""
    folder = Path("runs") if Path("runs").is_dir() else Path()
    tempfile.TemporaryFile(dir=folder).close()
    free = shutil.disk_usage(folder).free
    found = f"{folder.absolute()} can be written to, {free / 1e9:,.1f} GB free"
    if free < 1e8:
        return Finding(WARN, found, "make room, or train with --out DIR on another disk")
    return Finding(PASS, found)


def stdout() -> Finding:
    """Whether every path and class name can be printed."""
    encoding = codecs.lookup(sys.stdout.encoding or "ascii").name
    if encoding != "utf-8":
        return Finding(WARN, f"{encoding}: some names cannot be printed", "set PYTHONUTF8=1")
    return Finding(PASS, encoding)


# What checks read


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: 1.2.3 of 1.2.3rc4."""
    return tuple(int(number) for number in re.findall(r"\d+", re.match(r"[\d.]*", version)[0]))  # type: ignore[index]


def _cpu_quota() -> float | None:
    """The cores' worth of time that a container may use; None where there is no such limit."""
    limit = CGROUP / "cpu.max"
    if not limit.exists():
        return None
    quota, period = limit.read_text().split()
    return None if quota == "max" else int(quota) / int(period)


def _memory_limit() -> float:
    """Bytes that a container may still use."""
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if not limit.exists() or limit.read_text().strip() == "max":
        return math.inf
    return int(limit.read_text()) - int(used.read_text())
