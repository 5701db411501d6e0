"""Train what the documentation reports and record it in docs/results/training.jsonl, with provenance.

    python scripts/record_training.py                  # everything; about an hour on two cores
    python scripts/record_training.py digits           # this experiment, or several
    python scripts/record_training.py fashion-mnist-resnet-20 --run runs/fashion-mnist-resnet-20-001

The last form records a run that was made before, which may have been stopped and resumed; its configuration must be the
experiment's.
Each run is `minidl train` as a user starts it, in a process of its own, so that its time includes starting up. A run of
an experiment replaces the recorded run with the same name and seed. `python scripts/update_tables.py` then rewrites the
tables and the picture. Fashion-MNIST is looked for as always: MINIDL_DATA, or Debian's package dataset-fashion-mnist.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # from a checkout, without an install

from minidl.cli import train  # noqa: E402
from minidl.training.config import load_config  # noqa: E402
from minidl.training.runs import RunFolder  # noqa: E402

RESULTS = ROOT / "docs" / "results" / "training.jsonl"

# Name, options, seeds. "cold" runs begin without compiled kernels, as the first run on a machine does.
EXPERIMENTS: dict[str, tuple[list[str], range]] = {
    "digits": ([], range(5)),
    "digits-cold": ([], range(1)),
    "digits-no-bn": (["--norm", "none"], range(5)),
    "fashion-mnist-5": (["--data", "fashion-mnist", "--epochs", "5"], range(1)),
    "fashion-mnist-5-no-bn": (["--data", "fashion-mnist", "--epochs", "5", "--norm", "none"], range(1)),
    "fashion-mnist-15": (["--data", "fashion-mnist", "--epochs", "15"], range(1)),
    "fashion-mnist-resnet-20": (
        [
            *("--data", "fashion-mnist", "--model", "resnet-20", "--zero-gamma", "--epochs", "30", "--lr", "0.1"),
            *("--crop-padding", "2", "--batch-size", "64", "--label-smoothing", "0.1"),
        ],
        range(1),
    ),
}


def run(name: str, options: list[str], seed: int) -> dict[str, Any]:
    """Train once; the row to record."""
    command = [sys.executable, "-m", "minidl", "train", *options, "--seed", str(seed), "--json", "--quiet"]
    with tempfile.TemporaryDirectory() as folder:
        environment = dict(os.environ, PYTHONPATH=str(ROOT))
        if name.endswith("-cold"):
            environment |= {"NUMBA_CACHE_DIR": f"{folder}/numba", "MPLCONFIGDIR": f"{folder}/matplotlib"}
        began = time.perf_counter()
        done = subprocess.run(
            [*command, "--out", f"{folder}/runs"], env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        wall = time.perf_counter() - began
        return _row(name, Path(json.loads(done.stdout)["run"]), wall, time.time())


def take(name: str, path: Path) -> dict[str, Any]:
    """The row of a run that was made before. Exits where it is not the experiment's, or not complete."""
    folder = RunFolder.open(path)
    row = _row(name, folder.path, None, folder.summary.stat().st_mtime)
    options, seeds = EXPERIMENTS[name]
    wanted = options_of([*options, "--seed", str(row["summary"]["seed"])])
    other = {key: row["config"].get(key) for key, value in wanted.items() if row["config"].get(key) != value}
    if other or not row["summary"]["complete"] or row["summary"]["seed"] not in seeds:
        sys.exit(f"{path} is not a complete run of {name}: {other or row['summary']}")
    return row


def options_of(options: list[str]) -> dict[str, Any]:
    """What a command line sets, as the configuration has it."""
    with train.command.make_context("train", list(options)) as context:
        given = ParameterSource.COMMANDLINE
        return {name: value for name, value in context.params.items() if context.get_parameter_source(name) == given}


def _row(name: str, path: Path, wall: float | None, when: float) -> dict[str, Any]:
    summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    del summary["run"]
    config = load_config(path / "config.toml")
    config.pop("data_dir", None)  # a place on this machine
    return {
        "experiment": name,
        "command": " ".join(["python -m minidl train", *EXPERIMENTS[name][0], "--seed", str(summary["seed"])]),
        "date": datetime.fromtimestamp(when, UTC).date().isoformat(),
        "wall_seconds": wall,  # null where it was not one process from start to end
        "config": config,
        "summary": summary,
        "environment": json.loads((path / "env.json").read_text(encoding="utf-8")),
        "metrics": [json.loads(line) for line in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()],
    }


def record(row: dict[str, Any]) -> None:
    """Put the row in its place in the file; the rest stays."""
    rows = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()] if RESULTS.exists() else []

    def key(entry: dict[str, Any]) -> tuple[int, int]:
        return list(EXPERIMENTS).index(entry["experiment"]), entry["summary"]["seed"]

    rows = sorted([entry for entry in rows if key(entry) != key(row)] + [row], key=key)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text("".join(json.dumps(entry) + "\n" for entry in rows), encoding="utf-8")


@click.command()
@click.argument("experiments", nargs=-1, metavar="[EXPERIMENT]...")
@click.option("--run", "folder", type=Path, metavar="RUN", help="Record this run, made before, as the experiment's.")
def main(experiments: tuple[str, ...], folder: Path | None) -> None:
    """Run and record the experiments, or all."""
    for name in experiments:
        if name not in EXPERIMENTS:
            sys.exit(f"there is no experiment '{name}'; there are {', '.join(EXPERIMENTS)}")
    if folder is not None:
        if len(experiments) != 1:
            sys.exit("--run records a run as one experiment: name it")
        say(take(experiments[0], folder))
        return
    for name in experiments or EXPERIMENTS:
        options, seeds = EXPERIMENTS[name]
        for seed in seeds:
            say(run(name, options, seed))


def say(row: dict[str, Any]) -> None:
    """Record it and tell."""
    record(row)
    summary, seconds = row["summary"], row["wall_seconds"] or row["summary"]["seconds"]
    print(f"{row['experiment']}, seed {summary['seed']}: test accuracy {summary['test_accuracy']:.2%}, {seconds:.1f} s")


if __name__ == "__main__":
    main()
