"""`minidl predict`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from minidl.backends import choose
from minidl.cli import layout, options
from minidl.data.picture import Prepared, open_picture, prepare
from minidl.errors import CheckpointError, DataError, NonFiniteError
from minidl.nn import Module, inference
from minidl.training import load_model
from minidl.training.assembly import require_norm_for
from minidl.training.runs import latest


class Guess(NamedTuple):
    """A class and how likely the model thinks it is."""

    number: int
    name: str
    probability: float


@click.command("predict")
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--run", metavar="RUN", help="A run folder or a checkpoint file.  [default: the newest run in --out]")
@options.out
@options.which
@click.option("--top", type=click.IntRange(min=1), metavar="K", default=3, show_default=True, help="Classes to show.")
@click.option(
    "--invert/--no-invert",
    default=None,
    help="Swap black and white.  [default: if that makes its background like the data's]",
)
@options.device
@options.threads
@options.precision
@options.as_json
@click.pass_context
def command(
    ctx: click.Context,
    images: tuple[Path, ...],
    run: str | None,
    out: str,
    which: str,
    top: int,
    invert: bool | None,
    device: str | None,
    threads: int | None,
    precision: str | None,
    as_json: bool,
) -> None:
    """Classify pictures with a trained network.

    Each IMAGE is fitted to what the network was trained on, in channels, size and background, and a line says how. It
    is not cropped: let its subject fill the frame as it does in the training images. With --json, each picture gives
    one line of JSON. One that cannot be read is reported and does not hold up the others.
    """
    path = run or str(latest(out).path)
    choice = choose(device or "auto", threads, precision)
    options.warn_of_threads(choice.backend)
    model, metadata, file = load_model(path, choice.backend, which)
    require_norm_for(choice.backend, metadata["model"]["norm"])
    trained = _Trained(str(file), metadata)
    if not as_json:
        layout.echo(f"device: {choice.backend.describe()} ({choice.why})")
        layout.echo(f"model: {metadata['model']['name']} trained on {trained.data_name}, from {file}")
    failed = False
    for image in images:
        try:
            prepared = trained.prepare(image, invert)
        except DataError as error:
            click.echo(f"Error: {error}", err=True)
            failed = True
            continue
        guesses = list(_guesses(model, trained, prepared))[:top]
        if as_json:
            _print_json(image, path, file, prepared, guesses)
        else:
            _print(image, prepared, guesses)
    if failed:
        ctx.exit(DataError.exit_code)


class _Trained:
    """What a checkpoint says of the images that its model knows."""

    def __init__(self, path: str, metadata: dict[str, Any]) -> None:
        try:
            data, self.shape = metadata["data"], tuple(metadata["model"]["image_shape"])
            self.data_name, self.class_names = data["name"], data["class_names"]
            self.mean, self.std = np.array(data["mean"], float), np.array(data["std"], float)
            self.white, self.background = float(data["white"]), float(data["background"])
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(f"{path}: the checkpoint does not say what its model was trained on") from None

    def prepare(self, image: Path, invert: bool | None) -> Prepared:
        return prepare(open_picture(image), self.shape, self.white, self.background, invert)


def _guesses(model: Module, trained: _Trained, prepared: Prepared) -> Iterator[Guess]:
    """All classes, likeliest first."""
    backend = model.backend
    x = ((prepared.pixels - trained.mean) / trained.std).astype(backend.dtype)[np.newaxis]
    with inference():
        logits = backend.numpy(model.forward(backend.array(x)))[0].astype(np.float64)
    if not np.isfinite(logits).all():
        raise NonFiniteError("the model's output is not finite; train again with a smaller --lr")
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    for number in np.argsort(-probabilities, kind="stable").tolist():
        yield Guess(number, trained.class_names[number], float(probabilities[number]))


def _print(image: Path, prepared: Prepared, guesses: list[Guess]) -> None:
    click.echo(f"\n{click.format_filename(image)}")
    layout.echo(f"prepared: {prepared.description}", indent=2)
    for line in layout.table([(f"{guess.probability:.2%}", guess.name) for guess in guesses], "><"):
        click.echo(f"  {line}")


def _print_json(image: Path, run: str, checkpoint: Path, prepared: Prepared, guesses: list[Guess]) -> None:
    top = [{"class": guess.number, "name": guess.name, "probability": guess.probability} for guess in guesses]
    origin = {"image": str(image), "run": run, "checkpoint": str(checkpoint), "prepared": prepared.description}
    click.echo(json.dumps(origin | {"top": top}))
