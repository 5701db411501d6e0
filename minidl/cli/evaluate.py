"""`minidl eval`."""

import json
from pathlib import Path
from typing import Any

import click
import numpy as np

from minidl import training
from minidl.backends import choose
from minidl.cli import layout, options
from minidl.data import load
from minidl.errors import ConfigError
from minidl.nn import Folded, Module, fold
from minidl.nn.folding import reasons
from minidl.nn.statistics import Method
from minidl.training import ImageSource, checkpoint, evaluate, load_model
from minidl.training.assembly import require_norm_for
from minidl.training.runs import latest

SHOWN = 4  # layers that are named where there are more


@click.command("eval")
@click.argument("run", required=False)
@options.which
@click.option("--data", metavar="NAME|FILE.npz", help="Another data set with the same shape and classes.")
@options.data_dir
@click.option("--split", type=click.Choice(("test", "train")), default="test", show_default=True, help="Which images.")
@click.option("--batch-size", type=click.IntRange(min=1), metavar="N", default=256, show_default=True)
@click.option(
    "--fold",
    "folding",
    is_flag=True,
    help="Fold batch normalization into the convolutions and linear layers beside it first, and say what was folded.",
)
@click.option(
    "--reestimate",
    type=click.Choice(("precise", "cumulative")),
    help="Compute running statistics anew over the training images first: their true mean and variance, or the mean of "
    "the batches', as PyTorch's update_bn. The checkpoint stays as it is.",
)
@options.device
@options.threads
@options.precision
@options.out
@options.as_json
def command(
    run: str | None,
    which: str,
    data: str | None,
    data_dir: str | None,
    split: str,
    batch_size: int,
    folding: bool,
    reestimate: Method | None,
    device: str | None,
    threads: int | None,
    precision: str | None,
    out: str,
    as_json: bool,
) -> None:
    """Loss and accuracy of a trained network.

    RUN is a run folder or a checkpoint file; without it, the newest run in --out.
    """
    choice = choose(device or "auto", threads, precision)
    options.warn_of_threads(choice.backend)
    path = run or str(latest(out).path)
    model, metadata, file = load_model(path, choice.backend, which)
    require_norm_for(choice.backend, metadata["model"]["norm"])
    trained = metadata["data"]
    dataset = load(data or metadata["config"]["data"], data_dir or metadata["config"]["data_dir"])
    expected = tuple(metadata["model"]["image_shape"]), metadata["model"]["classes"]
    if (dataset.image_shape, dataset.classes) != expected:
        raise ConfigError(
            f"--data {dataset.name} has images of {dataset.image_shape} in {dataset.classes} classes; "
            f"{path} was trained on {expected[0]} in {expected[1]} classes"
        )
    images, labels = (
        (dataset.test_images, dataset.test_labels) if split == "test" else (dataset.train_images, dataset.train_labels)
    )
    # Normalized as in training, whatever the statistics of these images.
    mean, std = np.array(trained["mean"]), np.array(trained["std"])
    source = ImageSource(images, labels, mean, std, choice.backend)
    if reestimate is not None:
        learned = ImageSource(dataset.train_images, dataset.train_labels, mean, std, choice.backend)
        if not training.reestimate(model, learned, batch_size, reestimate):
            raise ConfigError(f"--reestimate: {file} has no batch normalization with running statistics")
    folded = _folded(model, file) if folding else None
    result = evaluate(model if folded is None else folded.model, source, batch_size)
    if as_json:
        epoch, _ = _progress(metadata)
        summary: dict[str, Any] = {
            "run": path,
            "checkpoint": str(file),
            "epoch": epoch,
            "data": dataset.name,
            "split": split,
        }
        summary |= {"images": len(source), "reestimate": reestimate}
        if folded is not None:
            summary |= {"folded": folded.folded, "left": folded.left}
        summary |= {"device": choice.backend.name, "precision": choice.backend.precision}
        click.echo(json.dumps(summary | result._asdict()))
        return
    click.echo(f"device: {choice.backend.describe()} ({choice.why})")
    if reestimate is not None:
        click.echo(f"running statistics: {reestimate}, over {len(dataset.train_images):,} training images")
    if folded is not None:
        _say(folded)
    click.echo(
        f"{file}{_origin(file.name, metadata)}: {dataset.name} {split}, {len(source):,} images: "
        f"loss {result.loss:.4f}, accuracy {result.accuracy:.2%}"
    )


def _folded(model: Module, file: Path) -> Folded:
    try:
        return fold(model)
    except ValueError as error:
        raise ConfigError(f"--fold: {file}: {str(error).removeprefix('fold: ')}") from None


def _say(folded: Folded) -> None:
    gone = [f"{norm} into {layer}" for norm, layer in folded.folded.items()]
    layout.echo(f"folded: {layout.count(len(gone), 'batch normalization')}: {_few(gone, ', ')}")
    if folded.left:
        why = _few(reasons(folded.left), "; ")
        layout.echo(f"left in place: {layout.count(len(folded.left), 'normalization')}: {why}")


def _few(texts: list[str], separator: str) -> str:
    more = f"{separator}and {len(texts) - SHOWN:,} more" if len(texts) > SHOWN else ""
    return separator.join(texts[:SHOWN]) + more


def _progress(metadata: dict[str, Any]) -> tuple[int | None, int]:
    """How many epochs the checkpoint's model was trained for, None if it does not say, and steps of the next one."""
    try:
        progress = metadata["counters"]["progress"]
        return progress["epoch"], progress["batch"]
    except (KeyError, TypeError):
        return None, 0


def _origin(name: str, metadata: dict[str, Any]) -> str:
    epoch, steps = _progress(metadata)
    if epoch is None:
        return ""
    if name == checkpoint.BEST:
        return f" (epoch {epoch}, the best by test accuracy)"
    return f" ({layout.count(steps, 'step')} after epoch {epoch})" if steps else f" (epoch {epoch})"
