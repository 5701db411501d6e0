"""The memory that a training step takes on the CPU, each side in a process of its own.

    python -m minidl.lab.bench.memory ours small-cnn 128 2       # or eager, channels-last; batch, threads

Prints JSON: `peak`, the most that the process had resident meanwhile, and `step`, how much more than before the first
batch of that size: what it takes to have the libraries and their code is not in it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

STEPS = 3
_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


def peak_of(side: str, model: str, batch: int, threads: int) -> dict[str, int] | None:
    """What such a process prints; None where it cannot be had (the kernel does not tell, or it failed)."""
    if not _STATUS.exists():
        return None
    command = [sys.executable, "-m", "minidl.lab.bench.memory", side, model, str(batch), str(threads)]
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = dict(os.environ, PYTHONPATH=paths, OMP_NUM_THREADS=str(threads))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return None
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(side: str, model: str, batch: int, threads: int) -> dict[str, int]:
    """In this process: a step of two images, which loads everything, then steps of `batch`."""
    from minidl.backends import get_backend
    from minidl.lab.bench.networks import network
    from minidl.lab.bench.peer import TorchPeer
    from minidl.lab.bench.steps import batch_of, our_step, their_step

    chosen = network(model)
    peer = None if side == "ours" else TorchPeer("cpu", threads)

    def steps(images: int, count: int) -> None:
        given = batch_of(chosen, images)
        if peer is None:
            made = our_step(get_backend("cpu", threads), chosen, given)
        else:
            made = their_step(peer, side, chosen, given)
        for _ in range(count):
            made.call.run()

    def both() -> tuple[int, int]:
        steps(2, 1)
        _RESET.write_text("5", encoding="ascii")  # the peak from here on
        before = _kibibytes("VmRSS")
        steps(batch, STEPS)
        return before, _kibibytes("VmHWM")

    if peer is None:
        before, peak = both()
    else:
        with peer.running():
            before, peak = both()
    return {"peak": peak * 1024, "step": (peak - before) * 1024}


def _kibibytes(name: str) -> int:
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def main(arguments: list[str]) -> dict[str, Any]:
    """What is printed."""
    side, model, batch, threads = arguments
    return measure(side, model, int(batch), int(threads))


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
