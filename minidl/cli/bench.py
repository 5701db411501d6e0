"""`minidl bench`."""

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from minidl.backends import choose
from minidl.cli import layout, options
from minidl.errors import ConfigError, DeviceError
from minidl.lab import bench
from minidl.lab.bench import Row

VARIANTS = ("eager", "channels-last", "compile", "graph", "graph-channels-last")


@click.command("bench")
@click.option("--op", "operations", metavar="NAME", multiple=True, help="Only this operation or family of them.")
@click.option("--model", "models", metavar="NAME", multiple=True, help="Only a training step of this model.")
@options.device
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(min=2),
    metavar="N",
    multiple=True,
    help="Images of a training step.  [default: 128, and 512 on a GPU]",
)
@click.option(
    "--peer",
    "peers",
    metavar="NAME",
    multiple=True,
    help=f"torch, or one variant of it: {', '.join(bench.PEERS[1:])}.",
)
@click.option("--shapes", "file", metavar="FILE", help="A list of shapes, one JSON object a line.")
@click.option("--technique", "techniques", metavar="NAME", multiple=True, help="One technique; all for each by itself.")
@options.precision
@click.option("--accuracy", is_flag=True, help="Instead, batch normalization's errors against float64.")
@options.threads
@click.option(
    "--repeat", type=click.IntRange(min=1), default=bench.REPEATS, show_default=True, metavar="N", help="Of each side."
)
@click.option("--explain", is_flag=True, help="Say which techniques were taken, and why.")
@click.option("--json", "json_file", metavar="FILE", help="Write the rows; - is stdout.")
@click.option("--record", is_flag=True, help="Put the rows in docs/results/bench.jsonl.")
@click.pass_context
def command(
    ctx: click.Context,
    operations: tuple[str, ...],
    models: tuple[str, ...],
    device: str | None,
    batches: tuple[int, ...],
    peers: tuple[str, ...],
    file: str | None,
    techniques: tuple[str, ...],
    precision: str | None,
    accuracy: bool,
    threads: int | None,
    repeat: int,
    explain: bool,
    json_file: str | None,
    record: bool,
) -> None:
    """Time operations and training steps, beside PyTorch.

    Each side runs by turns, on the same inputs, after a comparison of the answers; caches are swept before each
    operation. A ratio is PyTorch's time over minidl's: above 1, minidl is faster. docs/performance.md says how to read
    the columns. Where answers differ, the exit code is 1.
    """
    if device == "emulator":
        raise DeviceError(
            "--device emulator tells no time: it checks kernels and counts what they do; use --device cpu"
        )
    variants = bench.chosen_variants(peers)
    shapes = None if file is None else bench.read_shapes(file)
    if record:
        bench.require_recordable()
    _require_writable(json_file)
    names = bench.operations_of(operations)
    choice = choose(device or "auto", threads, precision)
    options.warn_of_threads(choice.backend)
    to_stderr = json_file == "-"
    tasks = []
    if not accuracy:
        own = techniques or (bench.OWN,)
        tasks = bench.plan(choice.backend.name, names, models, batches, shapes, own, choice.backend)
    click.echo(f"device: {choice.backend.describe()} ({choice.why})", err=to_stderr)
    with bench.open_bench(choice.backend, variants, repeat) as opened:
        shared = bench.provenance(choice.backend, opened.peer)
        rates = opened.rates
        click.echo(
            f"it copies {rates.copy / 1e9:,.1f} GB/s (read and written) and multiplies {rates.matrix / 1e9:,.0f} "
            f"GFLOP/s ({rates.matrix_of})",
            err=to_stderr,
        )
        if accuracy:
            rows = [row | shared for row in bench.batchnorm_accuracy(choice.backend, opened.peer)]
            if record:
                bench.record(rows)
        else:
            rows = list(_measured(opened, tasks, shared, record))
    for line in _report(rows, explain):
        click.echo(line, err=to_stderr)
    if json_file is not None:
        _write(json_file, rows)
    if any(row.get("problem") for row in rows):
        ctx.exit(1)


def _measured(opened: bench.Bench, tasks: Sequence[bench.Task], shared: Row, record: bool) -> Iterator[Row]:
    """The rows; each is recorded as soon as it is there, so that what was stopped has not been for nothing."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    with progress as bar:
        shown = bar.add_task("bench", total=len(tasks))
        for task, rows in bench.run(opened, tasks):
            bar.update(shown, advance=1, description=task.name)
            found = [row | shared for row in rows]
            if record:
                bench.record([row for row in found if not row["problem"]])
            yield from found


def _report(rows: Sequence[Row], explain: bool) -> Iterator[str]:
    """Tables of what was measured; then what was left out, what went wrong and, where wanted, what was chosen."""
    for kind, table in (("operation", _operations), ("step", _steps), ("accuracy", _accuracy)):
        chosen = [row for row in rows if row["kind"] == kind]
        if chosen:
            yield from table(chosen)
            yield ""
    if explain:
        yield from _choices(rows)
    left_out: dict[str, list[str]] = {}
    for row in rows:
        for side, why in (row.get("left_out") or {}).items():
            left_out.setdefault(f"{side}: {why}", []).append(_name(row))
    for what, where in left_out.items():
        yield f"left out: {what} ({where[0]}{f' and {len(where) - 1} more' if len(where) > 1 else ''})"
    for row in rows:
        if row.get("problem"):
            yield f"PROBLEM {_name(row)}: {row['problem']}"


def _operations(rows: Sequence[Row]) -> list[str]:
    peers = _peers(rows)
    heads = ("operation", "shape", "technique", "ms", "quartiles", "GB/s", "of copy", "GFLOP/s", "of matrix rate")
    lines = [(*heads, *peers)]
    for row in rows:
        if "seconds" not in row:
            continue
        numbers = (
            f"{row['bandwidth'] / 1e9:,.1f}",
            f"{row['share_of_copy']:.0%}",
            f"{row['rate'] / 1e9:,.1f}",
            f"{row['share_of_matrix']:.0%}",
        )
        head = row["operation"], row["shape"], row["technique"]
        lines.append((*head, *_seconds(row), *numbers, *_ratios(row, peers)))
    return layout.table(lines, "<<<" + ">" * (len(heads) - 3 + len(peers)))


def _steps(rows: Sequence[Row]) -> list[str]:
    peers = _peers(rows)
    heads = ("training step", "batch", "launched by", "images/s", "ms", "quartiles", "memory")
    lines = [(*heads, *peers)]
    for row in rows:
        if "seconds" in row:
            head = row["model"], str(row["batch"]), row["technique"], f"{row['images_per_second']:,.0f}"
            lines.append((*head, *_seconds(row), _memory(row), *_ratios(row, peers)))
    return layout.table(lines, "<><" + ">" * (len(heads) - 3 + len(peers)))


def _accuracy(rows: Sequence[Row]) -> list[str]:
    sides = list(rows[0]["errors"]["y"])
    lines = [("input", *(f"{output} {side}" for output in rows[0]["errors"] for side in sides), "no larger")]
    for row in rows:
        errors = [_error(of.get(side)) for of in row["errors"].values() for side in sides]
        lines.append((row["family"], *errors, "yes" if row["smaller"] else "NO"))
    return layout.table(lines, "<" + ">" * (len(lines[0]) - 2) + "<")


def _choices(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        for choice in row.get("choices") or []:
            yield f"{_name(row)}: {choice['operation']} took {choice['technique']}: {choice['why']}"
        if row["kind"] == "operation" and not row.get("choices"):
            yield f"{_name(row)}: there is one technique"


def _name(row: Row) -> str:
    if row["kind"] == "operation":
        return f"{row['operation']} {row['shape']}" + (
            f" by {row['technique']}" if row["technique"] != bench.OWN else ""
        )
    return f"{row['model']}, batch {row['batch']}" if row["kind"] == "step" else row["family"]


def _peers(rows: Sequence[Row]) -> list[str]:
    return [name for name in VARIANTS if any(name in row.get("peers", ()) for row in rows)]


def _seconds(row: Row) -> tuple[str, str]:
    spread = row["seconds"]
    return f"{spread['median'] * 1e3:,.3f}", f"{spread['lower'] * 1e3:,.3f}-{spread['upper'] * 1e3:,.3f}"


def _ratios(row: Row, peers: Sequence[str]) -> list[str]:
    return [f"{row['peers'][name]['ratio']['median']:.2f}" if name in row["peers"] else "" for name in peers]


def _memory(row: Row) -> str:
    found = row["memory"].get("ours")
    return f"{found['step'] / 1e6:,.0f} MB" if found else ""


def _error(error: float | None) -> str:
    return "not finite" if error is None else f"{error:.1e}"


def _require_writable(file: str | None) -> None:
    """Before anything is measured, for that may take minutes."""
    if file is not None and file != "-":
        with _said(file), Path(file).open("a", encoding="utf-8"):
            pass


def _write(file: str, rows: Sequence[Row]) -> None:
    text = json.dumps(list(rows), indent=1)
    if file == "-":
        click.echo(text)
    else:
        with _said(file):
            Path(file).write_text(text + "\n", encoding="utf-8")


@contextlib.contextmanager
def _said(file: str) -> Iterator[Any]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"--json {file or repr(file)}: cannot be written ({error.strerror})") from None
