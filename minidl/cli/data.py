"""`minidl data list`, `minidl data check` and `minidl data augment`."""

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from minidl.backends import Backend, choose
from minidl.cli import layout, options
from minidl.data import NO_AUGMENTATION, Augmentation, Availability, Check, Dataset, Loader, available, check, load
from minidl.data.sheet import draw_sheet
from minidl.errors import ConfigError, DataError


@click.group("data")
def command() -> None:
    """List data sets, check their files, see what training makes of their images."""


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


@command.command("augment")
@click.argument("name", metavar="NAME|FILE.npz")
@options.data_dir
@options.crop_padding
@options.flip
@options.cutout
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of the run.")
@click.option(
    "--epoch", type=click.IntRange(1, 10**9), default=1, show_default=True, metavar="N", help="The first shown."
)
@click.option("--epochs", type=click.IntRange(1, 50), default=8, show_default=True, metavar="N", help="How many.")
@click.option("--count", type=click.IntRange(1, 100), default=8, show_default=True, metavar="N", help="Images.")
@options.device
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE.png", help="[default: NAME-augmented.png]")
def augment(
    name: str,
    data_dir: str | None,
    crop_padding: int | None,
    flip: bool | None,
    cutout: int | None,
    seed: int,
    epoch: int,
    epochs: int,
    count: int,
    device: str | None,
    out: Path | None,
) -> None:
    """Draw a picture of what training sees: images of a data set, plain and as some epochs augment them.

    They are the first COUNT images of epoch EPOCH of a run with this seed. The same options give the same picture on
    every device.
    """
    from minidl.training import TrainConfig  # here, as the other commands of this group need none of it
    from minidl.training.atomic import write_atomically
    from minidl.training.config import validate
    from minidl.training.recipe import augmentation, resolve

    config = TrainConfig(
        data=name,
        data_dir=data_dir,
        crop_padding=crop_padding,
        flip=flip,
        cutout=cutout,
        seed=seed,
        device=device or "auto",
    )
    validate(config)
    if out is not None and out.suffix.lower() != ".png":
        raise ConfigError(f"--out {out}: is not the name of a PNG file; give one that ends in .png")
    dataset = load(name, data_dir)
    chosen = augmentation(resolve(config, dataset), dataset)
    file = out or Path(f"{dataset.name}-augmented.png")
    choice = choose(config.device, None)
    shown = _augmented(dataset, choice.backend, chosen, seed, range(epoch - 1, epoch - 1 + epochs), count)
    picture = io.BytesIO()
    shown.save(picture, "PNG")
    try:
        write_atomically(file, picture.getvalue())
    except OSError as error:
        raise ConfigError(f"--out {file}: cannot be written: {error.strerror or error}") from None
    layout.echo(f"{file}: {dataset.name} with {chosen}, on {choice.backend.name}")
    if chosen == NO_AUGMENTATION:
        layout.echo(f"{dataset.name} is trained without augmentation; --crop-padding, --flip and --cutout ask for some")


def _augmented(
    dataset: Dataset, backend: Backend, augmentation: Augmentation, seed: int, epochs: range, count: int
) -> Image.Image:
    """The sheet: a row an image, a column an epoch."""
    from minidl.training import ImageSource

    count = min(count, len(dataset.train_images))
    index = Loader(len(dataset.train_images), count, seed).order(epochs[0])[:count]
    source = ImageSource(dataset.train_images, dataset.train_labels, dataset.mean, dataset.std, backend)
    batches = [source.batch(index)[0]]
    batches += [source.batch(index, augmentation, seed=seed, epoch=epoch)[0] for epoch in epochs]
    pictures = np.stack([backend.numpy(batch) for batch in batches], axis=1) * dataset.std + dataset.mean
    white = max(1, int(dataset.train_images.max()))
    names = [dataset.class_names[label] for label in dataset.train_labels[index]]
    heads = ["plain", *(f"epoch {epoch + 1}" for epoch in epochs)]
    return draw_sheet(pictures / white, heads, names, f"{dataset.name}: {augmentation}; seed {seed}")


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"
