"""Options that several commands share."""

from typing import Any

import click

from minidl.backends import DEVICES, NAMES_OF_PRECISIONS, Backend
from minidl.cli import layout

data_dir = click.option("--data-dir", metavar="DIR", help="Where data sets lie.  [default: $MINIDL_DATA]")
device = click.option(
    "--device",
    type=click.Choice(DEVICES),
    help="auto takes a GPU where one can be used; emulator runs the GPU's kernels, slowly, without one.  "
    "[default: auto]",
)


def _validated(_ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    from minidl.training.config import validate_option  # here, as `minidl data` needs nothing of training

    validate_option(str(parameter.name), value)
    return value


threads = click.option(
    "--threads", type=int, callback=_validated, metavar="N", help="CPU threads.  [default: all cores]"
)


def warn_of_threads(backend: Backend) -> None:
    """Say on stderr if the CPU has more threads than this process may use cores: they take turns."""
    from minidl.backends.cpu.threads import available_cores

    cores, workers = available_cores(), getattr(backend, "workers", None)
    if workers is not None and workers.threads > cores:
        may_use = f"this process may use {layout.count(cores, 'core')}"
        click.echo(f"warning: --threads {workers.threads}, and {may_use}; more threads than cores are slower", err=True)


precision = click.option(
    "--precision",
    type=click.Choice(NAMES_OF_PRECISIONS),
    help="Of convolutions and linear layers: fp32 is exact float32; tf32 is for tensor cores, with factors rounded to "
    "10 bits of fraction; bf16 and fp16 also store images' activations in 16 bits, fp16 with loss scaling; winograd is "
    "float32 with fewer multiplications in 3x3 convolutions.  [default: tf32 on a GPU, winograd on the CPU]",
)
crop_padding = click.option(
    "--crop-padding",
    type=int,
    metavar="N",
    help="Pixels that an image is padded by before a random crop of its size.  [default: by data set]",
)
flip = click.option(
    "--flip/--no-flip",
    default=None,
    help="Mirror images left to right, each with probability 1/2.  [default: by data set]",
)
cutout = click.option(
    "--cutout",
    type=int,
    metavar="N",
    help="Side in pixels of a square that is cut out at a random place; 0 for none.  [default: by data set]",
)
graph = click.option(
    "--graph/--no-graph",
    default=None,
    help="Capture the training step once and replay it; the same bits either way.  [default: graph on a GPU]",
)
out = click.option("--out", metavar="DIR", default="runs", show_default=True, help="Folder of the runs.")
which = click.option(
    "--checkpoint",
    "which",
    type=click.Choice(("best", "last")),
    default="best",
    show_default=True,
    help="Of the test accuracies after each epoch the best, or the last.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
