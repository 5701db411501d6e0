"""Rewrite the tables and pictures of the documentation from docs/results/. No figure in them is typed by hand.

    python scripts/update_tables.py            # rewrite
    python scripts/update_tables.py --check    # exit 1 if a page does not say what the records say

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`. What has not been recorded says so. The table of
docs/onnx.md is written by `python -m minidl.interop.onnx_nodes`.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from minidl.data import load
from minidl.lab.bench import read as read_bench
from minidl.lab.bench import tables
from minidl.lab.bench.plot import draw_ratios
from minidl.nn.conventions import page as conventions
from minidl.training.curves import draw_curves

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "docs" / "results" / "training.jsonl"
GPU_RECORDS = ROOT / "docs" / "results" / "gpu.jsonl"
PICTURE = ROOT / "docs" / "images" / "batchnorm.svg"
RESNET = ROOT / "docs" / "images" / "fashion-mnist-resnet-20.svg"
DIGIT = ROOT / "docs" / "images" / "digit.png"
CONVENTIONS = ROOT / "docs" / "batchnorm-conventions.md"
BENCH_RECORDS = ROOT / "docs" / "results" / "bench.jsonl"
PERFORMANCE = ROOT / "docs" / "performance.md"
DEVICES = {"cpu": "CPU", "gpu": "GPU"}
NOT_YET = "not yet recorded"

Record = dict[str, Any]


def read(experiment: str) -> list[Record]:
    """The recorded runs of an experiment."""
    return [row for row in _lines(RECORDS) if row["experiment"] == experiment]


def _lines(file: Path) -> list[Record]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


GPU_PARTS: dict[str, tuple[str, Callable[[Record], str]]] = {
    "verify": (
        "every operation and technique against float64",
        lambda row: (
            f"{row['rows']:,} answers, worst error/bound "
            f"{max((entry['worst_ratio'] or 0 for entry in row['operations']), default=0):.3f}"
        ),
    ),
    "same-bits": ("the same bits", lambda row: f"{row['cases']:,} cases, {row['runs']} runs each"),
    "emulator": (
        "the emulator's answers",
        lambda row: (
            f"{row['answers']:,} answers, {row['equal']:,} equal, worst difference/bound {row['worst_ratio']:.3f}"
        ),
    ),
    "sanitizer": ("compute-sanitizer", lambda row: ", ".join(row.get("tools", {}))),
    "twin": ("100 steps beside float64", lambda row: row.get("last", "")),
    "graph": ("a CUDA graph of forward and backward", lambda row: f"{row['arrays']} arrays, the same bits"),
    "train": (
        "training",
        lambda row: "; ".join(
            f"{run['experiment']}, seed {run['summary']['seed']}: {run['summary']['test_accuracy']:.2%}"
            for run in row["runs"]
        ),
    ),
    "bench": (
        "times and errors beside PyTorch's",
        lambda row: f"{row['timed']} rows in [performance.md](performance.md)",
    ),
}


def gpu_table() -> str:
    """What a GPU has shown."""
    rows = {row["part"]: row for row in _lines(GPU_RECORDS)}
    lines = ["| on a GPU | result | measured |", "|---|---|---|"]
    for part, (title, measured) in GPU_PARTS.items():
        row = rows.get(part)
        if row is None:
            lines.append(f"| {title} | {NOT_YET} |  |")
        else:
            passed = "passed" if row["passed"] else f"failed: {'; '.join(row.get('failures', []))[:200]}"
            lines.append(f"| {title} | {passed} | {measured(row) if row['passed'] else ''} |")
    for row in list(rows.values())[:1]:
        machine, versions = row["environment"], row["environment"]["versions"]
        known = ", ".join(
            f"{name} {versions[name]}" for name in ("numba", "numba-cuda", "cupy-cuda13x") if name in versions
        )
        lines += ["", f"Recorded on {row['date']}: {machine['gpu']}; {known}. Rows: [gpu.jsonl](results/gpu.jsonl)."]
    return "\n".join(lines)


def training_table() -> str:
    """What a training run reaches and takes."""
    lines = [
        "| run | test accuracy | without batch normalization | time, start to end |",
        "|---|---|---|---|",
    ]
    for title, name, plain, cold in (
        ("digits, the defaults", "digits", "digits-no-bn", "digits-cold"),
        ("Fashion-MNIST, 5 epochs", "fashion-mnist-5", "fashion-mnist-5-no-bn", None),
        ("Fashion-MNIST, 15 epochs", "fashion-mnist-15", None, None),
        ("Fashion-MNIST, resnet-20, 30 epochs", "fashion-mnist-resnet-20", None, None),
    ):
        without = _accuracy(read(plain)) if plain else ""
        seconds = f"{_seconds(read(name))}; {_seconds(read(cold))} the first time" if cold else ""
        lines.append(f"| {title} | {_accuracy(read(name))} | {without} | {seconds} |")
    rows = read("digits")
    if rows:
        machine, versions = rows[0]["environment"], rows[0]["environment"]["versions"]
        lines += [
            "",
            f"Recorded on {rows[0]['date']}: {machine['cores_allowed']} cores of {machine['cpu']}, Python "
            f"{machine['python']}, NumPy {versions['numpy']}, Numba {versions['numba']}. Rows with provenance: "
            "[docs/results/training.jsonl](docs/results/training.jsonl), by `scripts/record_training.py`. "
            "On a GPU: not yet recorded.",
        ]
    return "\n".join(lines)


def _accuracy(rows: list[Record]) -> str:
    if not rows:
        return NOT_YET
    values = [row["summary"]["test_accuracy"] for row in rows]
    if len(values) == 1:
        return f"{values[0]:.2%}"
    return f"{mean(values):.2%} (mean of {len(values)} seeds, lowest {min(values):.2%})"


def _seconds(rows: list[Record]) -> str:
    if not rows:
        return NOT_YET
    return f"{mean(row['wall_seconds'] for row in rows):.1f} s"


def bench_rows(device: str) -> list[Record]:
    """What was timed on the machine of that kind that was recorded last."""
    return tables.of_device(read_bench(BENCH_RECORDS), device)


def ratios_picture(device: str) -> Path:
    """Where the picture of a device's ratios is."""
    return ROOT / "docs" / "images" / f"performance-{device}.svg"


def bench_summary(device: str) -> str:
    """Conditions, geometric means, and the picture."""
    rows = bench_rows(device)
    picture = f"![ratios, {DEVICES[device]}](images/performance-{device}.svg)"
    drawn = ["", picture] if any(row.get("peers") for row in rows) else []
    lines = [tables.conditions(rows), "", *tables.summary(rows)] if rows else [tables.conditions(rows)]
    return "\n".join(lines + drawn)


def bench_tables(device: str) -> dict[str, tuple[Path, Callable[[], str]]]:
    """The blocks of docs/performance.md about a device."""
    return {
        f"{device}-summary": (PERFORMANCE, lambda: bench_summary(device)),
        f"{device}-steps": (PERFORMANCE, lambda: "\n".join(tables.steps(bench_rows(device)))),
        f"{device}-shapes": (PERFORMANCE, lambda: "\n".join(tables.shapes(bench_rows(device)))),
        f"{device}-accuracy": (PERFORMANCE, lambda: "\n".join(tables.accuracy(bench_rows(device)))),
    }


def draw_picture() -> None:
    """Fashion-MNIST with and without batch normalization: test accuracy and training loss after each epoch."""
    style: Any = {"svg.hashsalt": "minidl", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}
    with rc_context(style):
        figure = Figure(figsize=(9, 3.4), layout="constrained")
        accuracy, loss = figure.subplots(1, 2)
        for name, label, colour in (
            ("fashion-mnist-5", "with batch normalization", "#0072b2"),
            ("fashion-mnist-5-no-bn", "without", "#d55e00"),
        ):
            for row in read(name)[:1]:
                epochs = [metrics["epoch"] for metrics in row["metrics"]]
                test = [100 * metrics["test_accuracy"] for metrics in row["metrics"]]
                train = [metrics["train_loss"] for metrics in row["metrics"]]
                accuracy.plot(epochs, test, "o-", color=colour, markersize=3.5, label=label)
                loss.plot(epochs, train, "o-", color=colour, markersize=3.5, label=label)
        accuracy.set(xlabel="epoch", ylabel="test accuracy, %", title="Fashion-MNIST, small-cnn")
        loss.set(xlabel="epoch", ylabel="training loss", title="same seed, same schedule")
        for axes in (accuracy, loss):
            axes.grid(alpha=0.3)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.spines[["top", "right"]].set_visible(False)
        accuracy.legend(frameon=False)
        figure.savefig(PICTURE, format="svg", metadata={"Date": None})


def draw_digit() -> None:
    """A test image of the digits, enlarged: something to predict."""
    image = load("digits").test_images[3, :, :, 0]
    grey = Image.fromarray((image.astype(float) * 255 / 16).round().astype("uint8"))
    grey.resize((128, 128), Image.Resampling.NEAREST).save(DIGIT)


TABLES = {
    "results": (ROOT / "README.md", training_table),
    "gpu": (ROOT / "docs" / "kernels.md", gpu_table),
    "frameworks": (CONVENTIONS, conventions.table),
    "notes": (CONVENTIONS, conventions.notes),
    "sources": (CONVENTIONS, conventions.sources),
    **bench_tables("cpu"),
    **bench_tables("gpu"),
}


def main() -> None:
    """Rewrite, or with --check only compare."""
    check = sys.argv[1:] == ["--check"]
    stale = []
    for name, (page, table) in TABLES.items():
        text = page.read_text(encoding="utf-8")
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, rest = text.split(begin)
        after = rest.split(end)[1]
        new = f"{before}{begin}\n{table()}\n{end}{after}"
        if new != text:
            stale.append(f"{page.relative_to(ROOT)}: {name}")
            if not check:
                page.write_text(new, encoding="utf-8")
    if check and stale:
        sys.exit(f"not what docs/results/ says: {', '.join(stale)}; run python scripts/update_tables.py")
    drawn = [ratios_picture(device) for device in DEVICES if any(row.get("peers") for row in bench_rows(device))]
    missing = [picture.name for picture in (PICTURE, RESNET, DIGIT, *drawn) if not picture.exists()]
    if check and missing:
        sys.exit(f"not drawn: {', '.join(missing)}; run python scripts/update_tables.py")
    if not check:
        PICTURE.parent.mkdir(parents=True, exist_ok=True)
        draw_digit()
        for device, title in DEVICES.items():
            draw_ratios(bench_rows(device), ratios_picture(device), f"{title}: minidl beside PyTorch")
        if read("fashion-mnist-5"):
            draw_picture()
        for row in read("fashion-mnist-resnet-20"):
            draw_curves(row["metrics"], RESNET, f"Fashion-MNIST, resnet-20: {row['summary']['test_accuracy']:.2%}")


if __name__ == "__main__":
    main()
