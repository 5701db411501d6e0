"""`minidl import`."""

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from minidl.cli import options
from minidl.cli.console import ConsoleReporter
from minidl.interop.torch_state import load_state_of, load_torch
from minidl.models.norms import KINDS
from minidl.nn import Module
from minidl.training import TrainConfig, begin
from minidl.training.config import load_config


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--model", metavar="NAME", help=f"The network it is; see `minidl models`.  [default: {TrainConfig.model}]"
)
@click.option("--norm", metavar="NAME", help=f"Its normalization: {', '.join(KINDS)}.  [default: {TrainConfig.norm}]")
@click.option("--data", metavar="NAME|FILE.npz", help=f"What it classifies.  [default: {TrainConfig.data}]")
@options.data_dir
@click.option(
    "--config", "config_file", metavar="FILE", help="TOML file of `minidl train`'s options; flags win over it."
)
@options.device
@options.threads
@options.out
@click.pass_context
def command(ctx: click.Context, /, file: Path, config_file: str | None, out: str, **fields: Any) -> None:
    """Make a run of weights from elsewhere.

    FILE is a safetensors file with a PyTorch state dict (safetensors.torch.save_model writes it; names as in
    torchvision), or an ONNX file (.onnx), of one of minidl's networks. The run has trained nothing yet: `eval`,
    `predict` and `export` use it, and `train --resume` goes on from it by the options in --config.
    """
    given = {name: value for name, value in fields.items() if ctx.get_parameter_source(name) != ParameterSource.DEFAULT}
    if config_file is not None:
        given = load_config(config_file) | given
    reporter = ConsoleReporter()

    def initial(model: Module) -> str:
        for note in read_weights(model, file):
            reporter.note(note)
        return f"This run began with the weights in {file.name!r}: this file alone does not repeat it."

    session = begin(TrainConfig(**given), out, reporter, initial)
    mean, std = (", ".join(f"{value:.6g}" for value in v) for v in (session.dataset.mean, session.dataset.std))
    click.echo(f"run: {session.run.path}, {session.parameters:,} parameters of {session.config.model} from {file}")
    click.echo(f"its images are normalized as (pixel - {mean}) / {std}; a network trained otherwise will answer worse")


def read_weights(model: Module, file: Path) -> list[str]:
    """Give the model the weights in a file; lines worth knowing."""
    if file.suffix.lower() == ".onnx":
        from minidl.interop import import_onnx

        return load_state_of(model, import_onnx(file), file)
    return load_torch(model, file)
