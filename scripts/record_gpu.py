"""Record what a GPU shows: all of it in one go, with provenance, in docs/results/gpu.jsonl.

    python scripts/record_gpu.py                          # every part, one after the other; about 20 minutes
    python scripts/record_gpu.py verify same-bits         # these parts
    python scripts/record_gpu.py --into rows.jsonl        # write elsewhere, on a machine that is only lent
    python scripts/record_gpu.py --take rows.jsonl        # take such rows into docs/results/

Parts, each one row:

    verify      every operation and technique against the float64 reference
    same-bits   the same bits over 20 runs
    emulator    the emulator's answers against the GPU's, within the bound of one of them
    sanitizer   compute-sanitizer's memcheck, racecheck, initcheck and synccheck over small cases of every operation
    twin        100 steps of training with the float64 reference in lockstep
    graph       forward and backward captured as a CUDA graph: replayed on new images, the same bits as launch by launch
    train       `minidl train --device cuda`: digits, five seeds; Fashion-MNIST, 5 and 15 epochs

A part that fails is recorded as failed, and the exit code is 1. A row replaces the one of the same part; a line is
written as soon as its part is done. `python scripts/update_tables.py` then rewrites the tables.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from minidl import nn  # noqa: E402
from minidl.backends import Backend, get_backend  # noqa: E402
from minidl.data import load  # noqa: E402
from minidl.errors import MinidlError  # noqa: E402
from minidl.lab import twin  # noqa: E402
from minidl.lab.operations import answers, check_operation  # noqa: E402
from minidl.lab.verify import Task, plan, summaries, using, verify  # noqa: E402
from minidl.models import build  # noqa: E402
from minidl.training import ImageSource  # noqa: E402
from minidl.training.environment import environment  # noqa: E402

RESULTS = ROOT / "docs" / "results" / "gpu.jsonl"
RUNS = 20
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
TRAININGS: dict[str, tuple[list[str], range]] = {
    "digits": ([], range(5)),
    "fashion-mnist-5": (["--data", "fashion-mnist", "--epochs", "5"], range(1)),
    "fashion-mnist-15": (["--data", "fashion-mnist", "--epochs", "15"], range(1)),
}

Result = dict[str, Any]


def record_verify(device: Backend, pattern: str | None) -> Result:
    """Every operation and technique, every case."""
    rows = verify(device, plan(device, pattern=pattern))
    failures = [str(row) for row in rows if not row.passed]
    table = [
        {
            "operation": summary.operation,
            "technique": summary.technique,
            "cases": summary.cases,
            "worst_ratio": summary.worst.ratio if np.isfinite(summary.worst.ratio) else None,
            "worst_case": summary.worst.case,
            "worst_output": summary.worst.output,
            "failed": summary.failed,
        }
        for summary in summaries(rows)
    ]
    return {"passed": not failures, "rows": len(rows), "operations": table, "failures": failures[:20]}


def record_same_bits(device: Backend, pattern: str | None) -> Result:
    """The largest ordinary case of every operation and technique, and one in twenty of the others."""
    checked, different = 0, []
    for task in plan(device, pattern=pattern):
        with using(device, task.operation, task.technique):
            for case in task.cases[::20]:
                bits = {_bits(answers(device, task.operation, case)) for _ in range(RUNS)}
                checked += 1
                if len(bits) > 1:
                    different.append(f"{task.operation}, {task.technique}, {case}: {len(bits)} different answers")
    return {"passed": not different, "runs": RUNS, "cases": checked, "failures": different[:20]}


def _bits(found: Any) -> bytes:
    return b"".join(value.tobytes() for value in found.values())


def record_emulator(device: Backend, pattern: str | None) -> Result:
    """One case in ten: both do the same arithmetic, so they differ by less than one of them may err."""
    emulator = get_backend("emulator")
    rows = []
    for task in plan(device, pattern=pattern):
        with using(device, task.operation, task.technique), using(emulator, task.operation, task.technique):
            for case in task.cases[::10]:
                theirs = answers(emulator, task.operation, case)
                rows += check_operation(device, task.operation, case, 0, task.technique, against=theirs)
    return {
        "passed": all(row.passed for row in rows),
        "answers": len(rows),
        "equal": sum(row.ratio == 0 for row in rows),
        "worst_ratio": max((row.ratio for row in rows if row.passed), default=0.0),
        "failures": [str(row) for row in rows if not row.passed][:20],
    }


def record_sanitizer(device: Backend, pattern: str | None) -> Result:
    """NVIDIA's own checkers over small cases. They find what the emulator looks for, on the compiled code."""
    del pattern
    program = shutil.which("compute-sanitizer") or _sanitizer_of_pip()
    if program is None:
        return {"passed": False, "failures": ["compute-sanitizer is not here: pip install nvidia-cuda-sanitizer-api"]}
    found: Result = {"passed": True, "tools": {}}
    for tool in TOOLS:
        command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, __file__, "--small", device.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        lines = [line for line in done.stdout.splitlines() if line.startswith("=========")]
        found["tools"][tool] = {"exit": done.returncode, "said": lines[-1] if lines else done.stderr[-300:]}
        found["passed"] &= done.returncode == 0
        if done.returncode:
            found.setdefault("failures", []).append(f"{tool}: " + " | ".join(lines[:8]))
    return found


def _sanitizer_of_pip() -> str | None:
    try:
        files = metadata.files("nvidia-cuda-sanitizer-api") or []
    except metadata.PackageNotFoundError:
        return None
    place = next((file for file in files if file.name == "compute-sanitizer"), None)
    return str(place.locate()) if place else None


def run_small(device: Backend) -> None:
    """For the sanitizer: one ordinary case of every operation and technique, answers unread."""
    for task in _first_of_each(plan(device, pattern="ordinary")):
        with using(device, task.operation, task.technique):
            for case in task.cases[1:4]:
                answers(device, task.operation, case)


def _first_of_each(tasks: list[Task]) -> Iterator[Task]:
    seen = set()
    for task in tasks:
        if (task.operation, task.technique) not in seen:
            seen.add((task.operation, task.technique))
            yield task


def record_twin(device: Backend, pattern: str | None) -> Result:
    """100 steps in lockstep with float64."""
    del pattern
    lines: list[str] = []
    departure = twin.run(device, 100, 0, said=lines.append)
    return {"passed": departure is None, "last": lines[-1], "failures": [str(departure)] if departure else []}


def record_graph(device: Backend, pattern: str | None) -> Result:
    """small-cnn on digits: loss and all gradients of a second batch, which lies where the captured one did."""
    del pattern
    gpu: Any = device
    if not hasattr(gpu.run, "capture"):
        return {"passed": False, "failures": [f"{device.name} has no CUDA graphs"]}
    digits = load("digits")
    nn.manual_seed(0)
    model = build("small-cnn", digits.image_shape, digits.classes)
    model.to(device)
    nn.fuse(model)
    criterion = nn.CrossEntropyLoss(device=device)
    source = ImageSource(digits.train_images, digits.train_labels, digits.mean, digits.std, device)
    batches = [source.batch(np.arange(first, first + 64)) for first in (0, 64)]
    x, targets = source.batch(np.arange(64))
    kept: dict[str, Any] = {}

    def step() -> None:
        model.zero_grad()
        kept["loss"] = criterion.forward(model.forward(x), targets)
        model.backward(criterion.backward())
        kept.update((name, parameter.grad) for name, parameter in model.named_parameters())

    def bits() -> dict[str, bytes]:
        return {name: device.numpy(array).tobytes() for name, array in kept.items()}

    gpu.checks_targets = False
    try:
        device.copy(batches[1][0], x)
        device.copy(batches[1][1], targets)
        step()
        eager = bits()
        device.copy(batches[0][0], x)
        device.copy(batches[0][1], targets)
        graph = gpu.run.capture(step)
        device.copy(batches[1][0], x)
        device.copy(batches[1][1], targets)
        graph.replay()
        gpu.run.synchronize()
        replayed = bits()
    finally:
        gpu.checks_targets = True
    different = [name for name in eager if eager[name] != replayed[name]]
    return {
        "passed": not different,
        "arrays": len(eager),
        "failures": [f"different: {', '.join(different)}"] * bool(different),
    }


def record_train(device: Backend, pattern: str | None) -> Result:
    """What a user types; each in a process of its own, wall time from start to end."""
    del pattern
    runs: list[Result] = []
    for name, (options, seeds) in TRAININGS.items():
        for seed in seeds:
            with tempfile.TemporaryDirectory() as folder:
                command = ["train", "--device", device.name, *options, "--seed", str(seed), "--json", "--quiet"]
                began = time.perf_counter()
                done = subprocess.run(
                    [sys.executable, "-m", "minidl", *command, "--out", folder],
                    capture_output=True,
                    text=True,
                    check=False,
                    env=dict(os.environ, PYTHONPATH=str(ROOT)),
                )
                wall = time.perf_counter() - began
            if done.returncode:
                return {"passed": False, "runs": runs, "failures": [f"{name}, seed {seed}: {done.stderr[-500:]}"]}
            summary = json.loads(done.stdout)
            summary.pop("run")
            line = " ".join(["python -m minidl", *command[:-2]])
            runs.append({"experiment": name, "command": line, "wall_seconds": wall, "summary": summary})
    return {"passed": True, "runs": runs}


PARTS: dict[str, Callable[[Backend, str | None], Result]] = {
    "verify": record_verify,
    "same-bits": record_same_bits,
    "emulator": record_emulator,
    "sanitizer": record_sanitizer,
    "twin": record_twin,
    "graph": record_graph,
    "train": record_train,
}


def take(rows: list[Result]) -> None:
    """Put rows in their places in docs/results/gpu.jsonl; the rest stays."""
    known = _read(RESULTS)
    new = {row["part"] for row in rows}
    kept = [row for row in known if row["part"] not in new]
    order = list(PARTS)
    text = "".join(json.dumps(row) + "\n" for row in sorted(kept + rows, key=lambda row: order.index(row["part"])))
    RESULTS.write_text(text, encoding="utf-8")


def _read(path: Path) -> list[Result]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def main() -> None:
    """Record the parts that the arguments name, or all."""
    parser = argparse.ArgumentParser(description="Record what a GPU shows, in docs/results/gpu.jsonl.")
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--into", type=Path, help="append the rows to this file instead")
    parser.add_argument("--take", type=Path, help="take the rows of this file into docs/results/, and stop")
    parser.add_argument("--device", default="cuda", help="another device, to try the script")
    parser.add_argument("--case", help="only cases with this in their names, to try the script")
    parser.add_argument("--commit", help="of this checkout, where Git cannot tell")
    parser.add_argument("--small", metavar="DEVICE", help="run small cases once and stop; for the sanitizer")
    options = parser.parse_args()
    if options.take:
        take(_read(options.take))
        return
    try:
        device = get_backend(options.small or options.device)
    except MinidlError as error:
        sys.exit(str(error))
    if options.small:
        run_small(device)
        return
    machine = environment()
    machine["commit"] = options.commit or machine["commit"]
    failed = []
    for part in options.parts or list(PARTS):
        began = time.perf_counter()
        try:
            result = PARTS[part](device, options.case)
        except Exception as error:  # the next part may well work, and what went wrong is a result too
            result = {
                "passed": False,
                "failures": [f"{type(error).__name__}: {error}"],
                "trace": traceback.format_exc(),
            }
        seconds = time.perf_counter() - began
        date = datetime.now(UTC).date().isoformat()
        head = {"part": part, "device": device.describe(), "date": date, "seconds": seconds}
        row = {**head, **result, "environment": machine}
        if options.into:
            with options.into.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        else:
            take([row])
        failed += [] if result["passed"] else [part]
        print(f"{part}: {'passed' if result['passed'] else 'FAILED'}, {seconds:.0f} s", flush=True)
        for failure in result.get("failures", [])[:5]:
            print(f"  {failure}", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
