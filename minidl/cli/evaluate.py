"""`minidl eval`."""

import json
from typing import Any

import click
import numpy as np

from minidl.backends import choose
from minidl.cli import layout, options
from minidl.data import load
from minidl.errors import ConfigError
from minidl.training import ImageSource, checkpoint, evaluate, load_model
from minidl.training.runs import latest


@click.command("eval")
@click.argument("run", required=False)
@options.which
@click.option("--data", metavar="NAME|FILE.npz", help="Another data set with the same shape and classes.")
@options.data_dir
@click.option("--split", type=click.Choice(("test", "train")), default="test", show_default=True, help="Which images.")
@click.option("--batch-size", type=click.IntRange(min=1), metavar="N", default=256, show_default=True)
@options.device
@options.threads
@options.out
@options.as_json
def command(
    run: str | None,
    which: str,
    data: str | None,
    data_dir: str | None,
    split: str,
    batch_size: int,
    device: str | None,
    threads: int | None,
    out: str,
    as_json: bool,
) -> None:
    """Loss and accuracy of a trained network.

    RUN is a run folder or a checkpoint file; without it, the newest run in --out.
    """
    choice = choose(device or "auto", threads)
    path = run or str(latest(out).path)
    model, metadata, file = load_model(path, choice.backend, which)
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
    source = ImageSource(images, labels, np.array(trained["mean"]), np.array(trained["std"]), choice.backend)
    result = evaluate(model, source, batch_size)
    if as_json:
        epoch, _ = _progress(metadata)
        summary = {"run": path, "checkpoint": str(file), "epoch": epoch, "data": dataset.name, "split": split}
        summary |= {"images": len(source)}
        click.echo(json.dumps(summary | {"device": choice.backend.name, **result._asdict()}))
        return
    click.echo(f"device: {choice.backend.describe()} ({choice.why})")
    click.echo(
        f"{file}{_origin(file.name, metadata)}: {dataset.name} {split}, {len(source):,} images: "
        f"loss {result.loss:.4f}, accuracy {result.accuracy:.2%}"
    )


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
