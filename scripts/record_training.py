"""Train what the documentation reports and record it in docs/results/training.jsonl, with provenance.

    python scripts/record_training.py                  # everything; about an hour on two cores
    python scripts/record_training.py digits           # this experiment, or several

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

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "training.jsonl"

# Name, options, seeds. "cold" runs begin without compiled kernels, as the first run on a machine does.
EXPERIMENTS: dict[str, tuple[list[str], range]] = {
    "digits": ([], range(5)),
    "digits-cold": ([], range(1)),
    "digits-no-bn": (["--norm", "none"], range(5)),
    "fashion-mnist-5": (["--data", "fashion-mnist", "--epochs", "5"], range(1)),
    "fashion-mnist-5-no-bn": (["--data", "fashion-mnist", "--epochs", "5", "--norm", "none"], range(1)),
    "fashion-mnist-15": (["--data", "fashion-mnist", "--epochs", "15"], range(1)),
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
        summary = json.loads(done.stdout)
        path = Path(summary.pop("run"))
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        machine = json.loads((path / "env.json").read_text(encoding="utf-8"))
    return {
        "experiment": name,
        "command": " ".join(["python -m minidl train", *options, "--seed", str(seed)]),
        "date": datetime.now(UTC).date().isoformat(),
        "wall_seconds": wall,
        "summary": summary,
        "environment": machine,
        "metrics": rows,
    }


def record(row: dict[str, Any]) -> None:
    """Put the row in its place in the file; the rest stays."""
    rows = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()] if RESULTS.exists() else []

    def key(entry: dict[str, Any]) -> tuple[int, int]:
        return list(EXPERIMENTS).index(entry["experiment"]), entry["summary"]["seed"]

    rows = sorted([entry for entry in rows if key(entry) != key(row)] + [row], key=key)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text("".join(json.dumps(entry) + "\n" for entry in rows), encoding="utf-8")


def main() -> None:
    """Run and record the experiments that the arguments name, or all."""
    wanted = sys.argv[1:] or list(EXPERIMENTS)
    unknown = [name for name in wanted if name not in EXPERIMENTS]
    if unknown:
        sys.exit(f"there is no experiment '{unknown[0]}'; there are {', '.join(EXPERIMENTS)}")
    for name in wanted:
        options, seeds = EXPERIMENTS[name]
        for seed in seeds:
            row = run(name, options, seed)
            record(row)
            print(
                f"{name}, seed {seed}: test accuracy {row['summary']['test_accuracy']:.2%}, {row['wall_seconds']:.1f} s"
            )


if __name__ == "__main__":
    main()
