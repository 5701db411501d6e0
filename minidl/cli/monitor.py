"""`minidl monitor`."""

import json
from pathlib import Path

import click

from minidl.cli import layout, options
from minidl.errors import ConfigError
from minidl.training.monitor import PERCENTILES, Record, draw, read_records
from minidl.training.runs import RunFolder, latest


@click.command("monitor")
@click.argument("run", required=False)
@click.option("--picture", metavar="FILE.svg", help="What to draw into.  [default: monitor.svg in the run's folder]")
@click.option(
    "--step", type=click.IntRange(min=0), metavar="N", help="Whose numbers to list.  [default: the last step]"
)
@options.out
@options.as_json
def command(run: str | None, picture: str | None, step: int | None, out: str, as_json: bool) -> None:
    """Draw what `train --monitor` measured, and list the numbers of one step.

    RUN is a run folder; without it, the newest run in --out.
    """
    if picture and Path(picture).suffix.lower() != ".svg":
        raise ConfigError(f"--picture {picture}: pictures are SVG; give a name that ends in .svg")
    folder = RunFolder.open(run) if run else latest(out)
    records = read_records(folder.monitor)
    if not records:
        raise ConfigError(f"{folder.path}: nothing was measured; train with --monitor (a run can be resumed with it)")
    record = _at(records, step, folder.path)
    target = Path(picture) if picture else folder.path / "monitor.svg"
    draw(records, target, f"{folder.path.name}, steps {records[0]['step']:,} to {records[-1]['step']:,}")
    if as_json:
        summary = {"run": str(folder.path), "picture": str(target), "steps": [r["step"] for r in records]}
        click.echo(json.dumps(summary | {"record": record}))
        return
    click.echo(
        f"step {record['step']:,}, after {layout.count(record['epoch'], 'epoch')}; learning rate {record['lr']:.3g}"
    )
    for title, rows in _tables(record):
        click.echo(f"\n{title}")
        for line in layout.table(rows, "<" + ">" * (len(rows[0]) - 1)):
            click.echo(line)
    click.echo(f"\n{layout.count(len(records), 'measured step')}, drawn in {target}")


def _at(records: list[Record], step: int | None, path: Path) -> Record:
    if step is None:
        return records[-1]
    found = {record["step"]: record for record in records}
    if step not in found:
        near = min(found, key=lambda other: abs(other - step))
        raise ConfigError(f"--step {step}: {path} has no measurement of that step; the nearest is {near}")
    return found[step]


def _tables(record: Record) -> list[tuple[str, list[list[str]]]]:
    """Title and rows, the first of them the heads of the columns; without those that would be empty."""
    outputs = [["layer", *(f"{p}%" for p in PERCENTILES), "dead"]]
    for name, values in record["activations"].items():
        dead = "" if values["dead"] is None else f"{values['dead']:.1%}"
        outputs.append([name, *map(_number, values["percentiles"]), dead])
    statistics = [["layer", "mean shift", "variance ratio"]]
    for name, values in record["statistics"].items():
        statistics.append([name, _number(values["mean_shift"]), _number(values["variance_ratio"])])
    affine = [["layer", "gamma: least", "mean", "largest", "beta: least", "mean", "largest"]]
    for name, values in record["affine"].items():
        affine.append([name, *(_number(v) for part in ("gamma", "beta") for v in values.get(part, [None] * 3))])
    weights = [["weight", "norm", "gradient", "update/weight", "effective lr"]]
    for name, values in record["weights"].items():
        columns = ("norm", "gradient_norm", "update_ratio", "effective_lr")
        weights.append([name, *(_number(values[column]) for column in columns)])
    tables = [
        ("outputs: percentiles, and channels that are dead after ReLU", outputs),
        ("batch against running statistics", statistics),
        ("scales and offsets", affine),
        ("weights: Euclidean norms", weights),
    ]
    return [(title, rows) for title, rows in tables if len(rows) > 1]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
