"""`minidl export`."""

from pathlib import Path
from typing import Any

import click

from minidl.backends import get_backend
from minidl.cli import layout, options
from minidl.errors import ConfigError, InteropError
from minidl.interop import save_torch
from minidl.interop.onnx_export import to_onnx, write_onnx
from minidl.interop.onnx_package import OPSET
from minidl.nn import Module
from minidl.nn.folding import fold as fold_model
from minidl.training import load_model
from minidl.training.runs import latest


@click.command("export")
@click.argument("run", required=False)
@options.which
@click.option("--torch", "torch_file", metavar="FILE", type=click.Path(path_type=Path), help="Safetensors for PyTorch.")
@click.option("--onnx", "onnx_file", metavar="FILE", type=click.Path(path_type=Path), help="ONNX, for inference.")
@click.option("--fold", is_flag=True, help="Fold batch normalization into the layers beside it first; with --onnx.")
@options.out
def command(run: str | None, which: str, torch_file: Path | None, onnx_file: Path | None, fold: bool, out: str) -> None:
    """Write a trained network for other programs.

    RUN is a run folder or a checkpoint file; without it, the newest run in --out. A PyTorch file holds the state by
    PyTorch's names (safetensors.torch.load_model reads it), an ONNX file the whole network. At least one is asked for.
    """
    files = [file for file in (torch_file, onnx_file) if file is not None]
    if not files:
        raise ConfigError("export needs a file to write: give --torch FILE, --onnx FILE or both")
    if torch_file is not None and torch_file == onnx_file:
        raise ConfigError(f"--torch and --onnx are both {torch_file}; give each a file of its own")
    if fold and onnx_file is None:
        raise ConfigError("--fold goes with --onnx; a PyTorch file keeps the layers apart, as PyTorch's own does")
    path = run or str(latest(out).path)
    model, metadata, checkpoint = load_model(path, get_backend("cpu"), which)
    for file in files:
        if file.absolute().parent.resolve() == checkpoint.absolute().parent.resolve():
            raise ConfigError(f"{file} lies among the run's checkpoints; give another file")
        if file.is_dir() or not file.absolute().parent.is_dir():
            what = "is a folder" if file.is_dir() else "its folder does not exist"
            raise ConfigError(f"{file}: cannot be written: {what}; nothing was exported")
    name, shape = metadata["model"]["name"], tuple(metadata["model"]["image_shape"])
    click.echo(f"model: {name}, norm {metadata['model']['norm']}, from {checkpoint}")
    if onnx_file is not None:
        proto = to_onnx(_folded(model) if fold else model, shape, name=name, metadata=_metadata(metadata))
        write_onnx(proto, onnx_file)
        height, width, channels = shape
        layout.echo(
            f"{onnx_file}: ONNX opset {OPSET}, input (N, {channels}, {height}, {width}) float32, (pixel - mean) / std "
            f"with mean {_numbers(metadata['data']['mean'])} and std {_numbers(metadata['data']['std'])}"
        )
    if torch_file is not None:
        save_torch(model, torch_file)
        layout.echo(f"{torch_file}: in PyTorch, safetensors.torch.load_model(model, {str(torch_file)!r})")


def _metadata(saved: dict[str, Any]) -> dict[str, Any]:
    """What an ONNX file says of the model: enough to prepare an image for it and to name its answer."""
    data = saved["data"]
    return {
        "model": saved["model"]["name"],
        "norm": saved["model"]["norm"],
        "data": data["name"],
        "class_names": data["class_names"],
        "mean": data["mean"],
        "std": data["std"],
        "brightest_pixel": data["white"],
    }


def _folded(model: Module) -> Module:
    try:
        result = fold_model(model)
    except ValueError as error:
        raise InteropError(f"--fold: {error}") from None
    for name, reason in result.left.items():
        click.echo(f"not folded: {name}: {reason}")
    click.echo(f"folded: {layout.count(len(result.folded), 'layer')} of batch normalization")
    return result.model


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)
