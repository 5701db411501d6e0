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
    graph       two epochs of training, each step replayed from a CUDA graph: the same bits as launch by launch
    train       `minidl train --device cuda`: digits, five seeds; Fashion-MNIST, 5 and 15 epochs
    bench       operations and training steps beside PyTorch's, batch normalization's errors beside PyTorch's; 6 minutes

A part that fails is recorded as failed, and the exit code is 1. A row replaces the one of the same part; a line is
written as soon as its part is done. What was timed goes to docs/results/bench.jsonl, a row each; what there was no time
for is named. `python scripts/update_tables.py` then rewrites the tables.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kernels.errors import TechniqueError  # noqa: E402
from minidl import nn, optim  # noqa: E402
from minidl.backends import Backend, get_backend  # noqa: E402
from minidl.data import Augmentation, Dataset, load  # noqa: E402
from minidl.errors import MinidlError  # noqa: E402
from minidl.lab import bench, twin  # noqa: E402
from minidl.lab.operations import answers, check_operation  # noqa: E402
from minidl.lab.verify import Task, plan, summaries, using, verify  # noqa: E402
from minidl.models import build  # noqa: E402
from minidl.schedule import cosine  # noqa: E402
from minidl.training import Trainer  # noqa: E402
from minidl.training.environment import environment  # noqa: E402

RESULTS = ROOT / "docs" / "results" / "gpu.jsonl"
RUNS = 20
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
TRAININGS: dict[str, tuple[list[str], range]] = {
    "digits": ([], range(5)),
    "fashion-mnist-5": (["--data", "fashion-mnist", "--epochs", "5"], range(1)),
    "fashion-mnist-15": (["--data", "fashion-mnist", "--epochs", "15"], range(1)),
}

# What is timed, in this order, each for so many seconds, and whether torch.compile is, which takes seconds a shape.
TIMED: tuple[tuple[tuple[str, ...], float, bool], ...] = (
    (("batchnorm_relu_forward", "batchnorm_relu_backward"), 100, True),
    (("conv2d",), 80, False),
    (bench.MODELS, 110, True),
    (("batchnorm", "relu", "max_pool2d", "global_avg_pool2d", "linear", "cross_entropy", "optimizer"), 50, False),
)

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
                try:
                    bits = {_bits(answers(device, task.operation, case)) for _ in range(RUNS)}
                except TechniqueError:  # a case for others
                    continue
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
                with contextlib.suppress(TechniqueError):  # a case for others
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
                with contextlib.suppress(TechniqueError):  # a case for others
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
    """small-cnn on digits, two epochs in two sizes of batch, with and without the graph: everything that training has.

    Gradients are clipped and weights averaged, images augmented.
    """
    del pattern
    if not device.captures:
        return {"passed": False, "failures": [f"{device.name} has no CUDA graphs"]}
    trainers = [_small_trainer(device, graph) for graph in (False, True)]
    rows = [[trainer.train_epoch() for _ in range(2)] for trainer in trainers]
    plain, replayed = (trainer.tensors() for trainer in trainers)
    different = [name for name in plain if plain[name].tobytes() != replayed[name].tobytes()]
    failures = [f"different: {', '.join(different)}"] * bool(different)
    if not trainers[1].graph:
        failures.append("the step was not captured")
    losses = [[row and row["train_loss"] for row in of_trainer] for of_trainer in rows]
    if losses[0] != losses[1]:
        failures.append(f"losses {losses[0]} without the graph, {losses[1]} with it")
    return {
        "passed": not failures,
        "arrays": len(plain),
        "steps": trainers[1].progress.step,
        "failures": failures,
    }


def _small_trainer(device: Backend, graph: bool) -> Trainer:
    digits = load("digits")
    nn.manual_seed(0)
    model = build("small-cnn", digits.image_shape, digits.classes)
    model.to(device)
    nn.fuse(model)
    optimizer = optim.AdamW(optim.decay_groups(model, 1e-2), 1e-3)
    return Trainer(
        model,
        digits if device.name == "cuda" else _few(digits),
        optimizer,
        cosine(1e-3, 200),
        batch_size=64 if device.name == "cuda" else 8,
        augmentation=Augmentation(crop_padding=1),
        clip=1.0,
        average=optim.WeightAverage(model, 0.99),
        graph=graph,
    )


def _few(dataset: Dataset) -> Dataset:
    """For a try on the emulator: three batches and a short one."""
    return replace(
        dataset,
        train_images=dataset.train_images[:28],
        train_labels=dataset.train_labels[:28],
        test_images=dataset.test_images[:8],
        test_labels=dataset.test_labels[:8],
    )


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


def record_bench(device: Backend, pattern: str | None) -> Result:
    """Times and errors beside PyTorch's. It passes if answers agree and no error on hostile input is larger."""
    rows: list[Result] = []
    late: list[str] = []
    measured: list[bench.Task] = []
    for names, seconds, compiles in TIMED:
        chosen = {"models": names} if names == bench.MODELS else {"operations": names}
        tasks = [
            task for task in bench.plan(device.name, **chosen) if task not in measured and (pattern or "") in task.name
        ]
        variants = bench.chosen_variants(("torch",))
        if not compiles:
            variants = tuple(variant for variant in variants if variant != "compile")
        if not tasks:
            continue
        with bench.open_bench(device, variants) as opened:
            shared = bench.provenance(device, opened.peer)
            for task, found in bench.run(opened, tasks, seconds):
                rows += [row | shared for row in found]
                late += [] if found else [f"{task.name} {task.shape.label if task.shape else task.batch}"]
                measured.append(task)
    with bench.open_bench(device, bench.chosen_variants(("torch",))) as opened:
        rows += [row | shared for row in bench.batchnorm_accuracy(device, opened.peer)]
    failures = [f"{row.get('operation', row.get('model'))}: {row['problem']}" for row in rows if row.get("problem")]
    hostile = [row for row in rows if row["kind"] == "accuracy" and row["family"] != "ordinary"]
    failures += [f"batch normalization, {row['family']}: {row['errors']}" for row in hostile if not row["smaller"]]
    return {
        "passed": not failures,
        "timed": sum("seconds" in row for row in rows),
        "late": late,
        "failures": failures[:20],
        "bench": rows,
    }


PARTS: dict[str, Callable[[Backend, str | None], Result]] = {
    "verify": record_verify,
    "same-bits": record_same_bits,
    "emulator": record_emulator,
    "sanitizer": record_sanitizer,
    "twin": record_twin,
    "graph": record_graph,
    "train": record_train,
    "bench": record_bench,
}


def take(rows: list[Result]) -> None:
    """Put rows in their places in docs/results/gpu.jsonl, and what was timed in bench.jsonl; the rest stays."""
    timed = [one for row in rows for one in row.pop("bench", [])]
    if timed:
        bench.record([one for one in timed if not one.get("problem")])
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
        for one in result.get("bench", []):
            one["environment"] = {**one["environment"], "commit": machine["commit"]}
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
