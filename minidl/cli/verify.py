"""`minidl verify`."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from minidl.backends import choose
from minidl.cli import layout, options
from minidl.errors import ConfigError
from minidl.lab import twin
from minidl.lab.verify import Refusal, Summary, as_json, plan, summaries, verify

SHOWN = 20  # failures in full


@click.command("verify")
@options.device
@click.option("--op", "names", metavar="NAME", multiple=True, help="Only this operation; may be given repeatedly.")
@click.option("--case", "pattern", metavar="PATTERN", help="Only cases whose name has this in it; * and ? match.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Of the inputs.")
@click.option("--json", "file", metavar="FILE", help="Write a row for each answer; - is stdout.")
@click.option(
    "--twin",
    "steps",
    type=click.IntRange(min=1),
    metavar="STEPS",
    help="Train so many steps beside the float64 reference instead, and compare each layer's arrays.",
)
@options.threads
@click.pass_context
def command(
    ctx: click.Context,
    device: str | None,
    names: tuple[str, ...],
    pattern: str | None,
    seed: int,
    file: str | None,
    steps: int | None,
    threads: int | None,
) -> None:
    """Hold every operation of a device against its float64 definition.

    Each technique of each operation runs on every case: shapes around the edges of tiles, hostile numbers, inputs with
    exact answers, unaligned arrays. An error is given as a share of its bound, which is derived from the number of
    terms, the technique's precision and the inputs; above 1 it fails, and the exit code is 1. A case that a technique
    cannot take is counted as such. "default" is the choice left to the operation, on what its last technique refuses.
    """
    choice = choose(device or "auto", threads)
    options.warn_of_threads(choice.backend)
    to_stderr = file == "-"
    click.echo(f"device: {choice.backend.describe()} ({choice.why})", err=to_stderr)
    if steps is not None:
        if names or pattern or file:
            raise ConfigError("--twin trains a network as a whole; it does not go with --op, --case or --json")
        departure = twin.run(choice.backend, steps, seed, said=click.echo)
        if departure is not None:
            click.echo(str(departure))
            ctx.exit(1)
        return
    tasks = [task for name in names or (None,) for task in plan(choice.backend, name, pattern)]
    _require_writable(file)
    refused: list[Refusal] = []
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as bar:
        shown = bar.add_task("verify", total=len(tasks))
        rows = verify(
            choice.backend,
            tasks,
            seed,
            done=lambda task: bar.update(shown, advance=1, description=task.operation),
            refused=refused.append,
        )
    for line in table(list(summaries(rows, refused)), refused):
        click.echo(line, err=to_stderr)
    failures = [row for row in rows if not row.passed]
    for row in failures[:SHOWN]:
        click.echo(f"FAILED {row.variant}: {row}", err=to_stderr)
    if len(failures) > SHOWN:
        click.echo(f"and {layout.count(len(failures) - SHOWN, 'more failure')}", err=to_stderr)
    cases = len({(row.op, row.variant, row.case) for row in rows})
    not_taken = f", {len(refused):,} not taken by their technique" if refused else ""
    click.echo(f"{layout.count(cases, 'case')}, {layout.count(len(failures), 'failure')}{not_taken}", err=to_stderr)
    if file is not None:
        _write(file, as_json(rows, refused))
    if failures:
        ctx.exit(1)


def table(found: list[Summary], refused: Sequence[Refusal] = ()) -> list[str]:
    """Lines: operation, technique, cases, those that it does not take, worst error / bound and where."""
    rows = [("operation", "technique", "cases", "not taken", "worst error/bound", "where")]
    for summary in found:
        worst = summary.worst
        place = worst.output + (f"[{', '.join(map(str, worst.index))}]" if worst.index else "")
        where = f"{place} of {worst.case}" if worst.ratio > 0 else "exact"
        ratio = f"{worst.ratio:.3f}{'' if summary.passed else '  FAILED'}"
        not_taken = str(summary.refused) if summary.refused else ""
        rows.append((summary.operation, summary.technique, str(summary.cases), not_taken, ratio, where))
    ran = {(summary.operation, summary.technique) for summary in found}
    idle = Counter((one.operation, one.technique) for one in refused if (one.operation, one.technique) not in ran)
    rows += [(operation, technique, "0", str(number), "", "") for (operation, technique), number in idle.items()]
    return layout.table(rows, "<<>>><")


def _require_writable(file: str | None) -> None:
    """Before anything is run, for that may take minutes."""
    if file is None or file == "-":
        return
    try:
        with Path(file).open("a", encoding="utf-8"):
            pass
    except OSError as error:
        raise ConfigError(f"--json {file or repr(file)}: cannot be written ({error.strerror})") from None


def _write(file: str, rows: list[dict[str, Any]]) -> None:
    text = json.dumps(rows, indent=1)
    if file == "-":
        click.echo(text)
        return
    try:
        Path(file).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--json {file}: cannot be written ({error.strerror})") from None
