"""`minidl data list` and `minidl data check`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from minidl.cli import layout, options
from minidl.data import Availability, Check, available, check
from minidl.errors import DataError


@click.group("data")
def command() -> None:
    """List data sets and check their files."""


@command.command("list")
@options.data_dir
@options.as_json
def list_sets(data_dir: str | None, as_json: bool) -> None:
    """Known data sets: where they lie or how to get them."""
    sets = available(data_dir)
    if as_json:
        click.echo(json.dumps([asdict(one) for one in sets]))
        return
    rows = [("name", "found", "train", "test", "image", "classes", "size"), *map(_row, sets)]
    for line in layout.table(rows, "<<>><>>"):
        click.echo(line)
    click.echo()
    indent = 2 + max(len(one.name) for one in sets)
    for one in sets:
        found = f"{one.title}, {one.where} (licence: {one.licence})"
        layout.echo(one.problem.removeprefix(f"{one.name}: ") or found, indent, first=f"{one.name:{indent}}")
    click.echo()
    arrays = "train_images, train_labels, test_images and test_labels"
    layout.echo(f"Besides these, --data takes the path of an .npz file with {arrays}.")


def _row(one: Availability) -> tuple[str, ...]:
    found = "damaged" if one.found and one.problem else "yes" if one.found else "no"
    shape = "x".join(map(str, one.image_shape)) if one.image_shape else ""
    size = "" if one.bytes is None else _size(one.bytes)
    return one.name, found, _count(one.train_count), _count(one.test_count), shape, str(one.classes), size


@command.command("check")
@click.argument("names", metavar="[NAME|FILE.npz]...", nargs=-1)
@options.data_dir
@options.as_json
@click.pass_context
def check_sets(ctx: click.Context, names: tuple[str, ...], data_dir: str | None, as_json: bool) -> None:
    """Read data sets whole; compare files with published ones.

    Without a NAME, all that `minidl data list` finds. A file that is sound but not the published one is no failure.
    """
    absent = []
    if not names:
        sets = available(data_dir)
        names = tuple(one.name for one in sets if one.found)
        absent = [one.name for one in sets if not one.found]
    results = []
    for name in names:
        try:
            result = check(name, data_dir)
        except DataError as error:
            click.echo(f"Error: {error}", err=True)
            results.append({"name": name, "ok": False, "problem": str(error)})
            continue
        results.append(_summary(name, result))
        if not as_json:
            _print(result)
    if as_json:
        click.echo(json.dumps(results))
    elif absent:
        layout.echo(f"not found: {', '.join(absent)}; `python -m minidl data list` says what to do")
    if not all(result["ok"] for result in results):
        ctx.exit(DataError.exit_code)


def _summary(name: str, result: Check) -> dict[str, Any]:
    dataset = result.dataset
    return {
        "name": name,
        "ok": True,
        "problem": "",
        "train_count": len(dataset.train_images),
        "test_count": len(dataset.test_images),
        "image_shape": list(dataset.image_shape),
        "classes": dataset.classes,
        "differs": result.differs,
        "files": [asdict(file) for file in result.files],
    }


def _print(result: Check) -> None:
    dataset = result.dataset
    layout.echo(
        f"{dataset.name}: {len(dataset.train_images):,} training and {len(dataset.test_images):,} test images of "
        f"{'x'.join(map(str, dataset.image_shape))} in {dataset.classes} classes, {dataset.source}"
    )
    for file in result.files:
        name = "" if file.file == dataset.source else f", {Path(file.file).name}"
        click.echo(f"  {file.part}{name}: {file.verdict}")
        click.echo(f"    sha256 {file.sha256}")


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"
