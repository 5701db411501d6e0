"""What `minidl doctor` says of a GPU, of what belongs to it, and of the emulator that does without."""

import shutil
import subprocess
import time

from minidl.cli.checks import FAIL, INFO, PASS, WARN, Finding

NOTHING = "nothing; without a GPU minidl computes on the CPU, and --device emulator runs the GPU's kernels"


def nvidia_driver() -> Finding:
    """The GPUs and their driver, as nvidia-smi lists them, and what is wrong with them."""
    from minidl.backends import gpu

    found = gpu.driver()
    wrong = gpu.driver_lack(found)
    if found is None:
        return Finding(INFO, "none found", NOTHING)
    listed = _listed()
    if wrong is None:
        return Finding(PASS, listed)
    return Finding(WARN, f"{listed}; {wrong.what}", wrong.remedy)


def _listed() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return "here; there is no nvidia-smi to say more"
    command = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi: {error}"
    lines = [line.strip() for line in (done.stdout or done.stderr).splitlines() if line.strip()]
    if done.returncode or not lines:
        return f"nvidia-smi: {' '.join(lines) or f'exit code {done.returncode}'}"
    return " | ".join(", driver ".join(line.rsplit(", ", 1)) for line in lines)


def cupy() -> Finding:
    """Whether CuPy is installed. Only a GPU needs it."""
    from minidl.backends import gpu

    installed = gpu.installed("CuPy")
    if installed is not None:
        return Finding(PASS, installed)
    if gpu.driver() is None:
        return Finding(INFO, "not installed", NOTHING)
    return Finding(WARN, "not installed", gpu.remedy())


def device() -> Finding:
    """What --device auto takes; a GPU that is here and cannot be used is worth mending."""
    from minidl.backends import choose, gpu

    choice = choose("auto")
    if choice.backend.name == "cuda" or gpu.driver() is None:
        return Finding(PASS, choice.backend.describe())
    found = gpu.lack()
    remedy = found.remedy if found else ""
    return Finding(WARN, f"{choice.backend.describe()} ({found.what if found else choice.why})", remedy or NOTHING)


def emulator() -> Finding:
    """Whether the emulator runs a kernel."""
    import numpy as np

    from minidl.backends import get_backend

    began = time.perf_counter()
    backend = get_backend("emulator")
    a, b = (np.array(values, np.float32) for values in ([1, 2, 3], [0.5, -2, 4]))
    out = backend.empty((3,))
    backend.add(a, b, out)
    if out.tolist() != [1.5, 0, 7]:
        return Finding(FAIL, f"{a.tolist()} + {b.tolist()} is {out.tolist()}", "report this as a bug")
    return Finding(PASS, f"ran a kernel in {time.perf_counter() - began:.1f} s")
