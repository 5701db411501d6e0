"""`minidl models`."""

import json
import re
from collections.abc import Sequence
from typing import Any

import click

from minidl import nn
from minidl.backends import Choice, choose
from minidl.backends.device import DeviceBackend
from minidl.cli import layout, options
from minidl.errors import ConfigError
from minidl.lab.explain import Explained, explain
from minidl.models import FAMILIES, NAMES, build, family_of, require_that_it_trains
from minidl.models.cost import Cost, LayerCost, cost
from minidl.training.assembly import require_norm_for

Image = tuple[int, int, int]

LARGEST = (256, 256, 4)  # beyond it a number is a slip, and the linear layers of some models would fill the memory
MOST_CLASSES = 1000
BATCH_SIZE = 64  # of a training step that is explained
UNITS = ("", " k", " M", " G", " T")
HEADS = ("parameters", "FLOPs", "kept")


def _image(_ctx: click.Context, _parameter: click.Parameter, text: str) -> Image:
    sides = [int(side) for side in re.findall(r"[0-9]{1,9}", text)]
    if re.fullmatch(r"[0-9]{1,9}(x[0-9]{1,9}){1,2}", text):
        height, width, channels = sides if len(sides) == 3 else (*sides, 1)
        if all(1 <= side <= most for side, most in zip((height, width, channels), LARGEST, strict=True)):
            return height, width, channels
    largest = "x".join(map(str, LARGEST))
    raise ConfigError(f"--image must be HEIGHTxWIDTHxCHANNELS, as 28x28x1, and at most {largest}, not {text!r}")


def _classes(_ctx: click.Context, _parameter: click.Parameter, classes: int) -> int:
    if not 1 <= classes <= MOST_CLASSES:
        raise ConfigError(f"--classes must be a whole number from 1 to {MOST_CLASSES}, not {classes}")
    return classes


@click.command("models")
@click.option("--model", "name", metavar="NAME", help="One model.  [default: all that have a name here]")
@click.option("--summary", is_flag=True, help="Its layers; needs --model.")
@click.option("--image", callback=_image, default="28x28x1", show_default=True, metavar="HxWxC", help="Of images.")
@click.option("--classes", type=int, callback=_classes, default=10, show_default=True, metavar="N", help="Outputs.")
@click.option("--norm", default="batch", show_default=True, metavar="NAME", help="As for `minidl train`.")
@click.option(
    "--explain",
    "explaining",
    is_flag=True,
    help="The kernel technique that each operation of a training step takes on --device, and why; needs --model.",
)
@options.device
@options.precision
@click.option("--batch-size", type=click.IntRange(min=1), metavar="N", help=f"For --explain.  [default: {BATCH_SIZE}]")
@options.as_json
def command(
    name: str | None,
    summary: bool,
    image: Image,
    classes: int,
    norm: str,
    explaining: bool,
    device: str | None,
    precision: str | None,
    batch_size: int | None,
    as_json: bool,
) -> None:
    """List the networks, with parameters, FLOPs and the memory that training them takes.

    FLOPs are those of a forward pass of one image: a multiply-add counts as two, and only those of convolutions and
    linear layers count. "kept" is what a training step keeps of each image from forward to backward, in float32.
    """
    _require_together(
        name, summary, explaining, {"--device": device, "--precision": precision, "--batch-size": batch_size}
    )
    if name is not None and explaining:
        _explain(
            name, image, classes, norm, choose(device or "auto", None, precision), batch_size or BATCH_SIZE, as_json
        )
        return
    if name is None:
        if summary:
            raise ConfigError("--summary needs --model NAME: it shows the layers of one model")
        _list(image, classes, norm, as_json)
        return
    found = _cost(name, image, classes, norm)
    facts = _facts(name, image, classes, norm, found)
    if as_json:
        layers = {"layers": [layer._asdict() for layer in found.layers if layer.name]}
        click.echo(json.dumps(facts | layers if summary else facts))
    elif summary:
        _print(_layers(found.layers), "<<>>>>")
        click.echo()
        layout.echo(_conditions(image, classes, norm))
    else:
        _print([("model", *HEADS), (name, *_numbers(found))], "<>>>")
        click.echo()
        layout.echo(_conditions(image, classes, norm))


def _require_together(name: str | None, summary: bool, explaining: bool, of_explain: dict[str, Any]) -> None:
    """Raise ConfigError where options do not go together."""
    if explaining and name is None:
        raise ConfigError("--explain needs --model NAME: it goes through a training step of one model")
    if explaining and summary:
        raise ConfigError("--explain and --summary are two tables; ask for one at a time")
    alone = [option for option, value in of_explain.items() if value is not None]
    if alone and not explaining:
        raise ConfigError(f"{alone[0]} goes with --explain: nothing else here depends on it")


def _explain(name: str, image: Image, classes: int, norm: str, choice: Choice, batch_size: int, as_json: bool) -> None:
    """What the operations of a training step take."""
    device = choice.backend
    if not isinstance(device, DeviceBackend):
        if as_json:
            click.echo(json.dumps({"device": device.name, "operations": []}))
            return
        layout.echo(
            f"device {device.name} chooses only how 3x3 convolutions are done, which `bench --explain` says; "
            "--device emulator says what a GPU's kernels would be"
        )
        return
    require_norm_for(device, norm)
    model = build(name, image, classes, norm)
    try:
        require_that_it_trains(model, image, batch_size)
    except ValueError as error:
        raise ConfigError(f"--batch-size {batch_size} is too small for {name}: {error}") from None
    nn.fuse(model)
    found = explain(model, image, batch_size, device)
    if as_json:
        facts = {"device": device.name, "precision": device.precision, "batch_size": batch_size}
        click.echo(json.dumps(facts | {"operations": [one._asdict() for one in found]}))
        return
    rows: list[tuple[str, ...]] = [("layer", "operation", "arrays", "technique", "why")]
    before = ""
    for one in found:
        rows.append(
            (one.layer if one.layer != before else "", one.operation, _first_array(one), one.technique, one.why)
        )
        before = one.layer
    _print(rows, "<<<<<")
    click.echo()
    layout.echo(
        f"For a training step of {layout.count(batch_size, 'image')} of {'x'.join(map(str, image))} in "
        f"{layout.count(classes, 'class', 'classes')}, --norm {norm}, on {device.describe()}. "
        "Nothing was run to find out."
    )


def _first_array(one: Explained) -> str:
    """The first array of an operation, with its shape."""
    for name, shape in one.shapes.items():
        if isinstance(shape, list):
            return layout.count(len(shape), "tensor")
        return f"{name} {'x'.join(map(str, shape))}"
    return ""


def _list(image: Image, classes: int, norm: str, as_json: bool) -> None:
    """All models; those that cannot take such images or normalization with the reason."""
    rows: list[tuple[str, ...]] = [("model", *HEADS)]
    facts = []
    problems: dict[str, str] = {}  # one for each family
    for name in NAMES:
        try:
            found = _cost(name, image, classes, norm)
        except ConfigError as error:
            problems.setdefault(family_of(name)[0].about, str(error))
            facts.append(_facts(name, image, classes, norm, None, str(error)))
            rows.append((name, "", "", ""))
        else:
            facts.append(_facts(name, image, classes, norm, found))
            rows.append((name, *_numbers(found)))
    if all(one["problem"] for one in facts):
        raise ConfigError(facts[0]["problem"])
    if as_json:
        click.echo(json.dumps(facts))
        return
    _print(rows, "<>>>")
    for problem in problems.values():
        layout.echo(problem)
    click.echo()
    indent = 2 + max(len(_title(family)) for family in FAMILIES)
    for name, family in FAMILIES.items():
        depth = f" (N: {family.depths_in_words})" if family.depths else ""
        layout.echo(family.about + depth, indent, first=f"{_title(name):{indent}}")
    click.echo()
    layout.echo(f"{_conditions(image, classes, norm)} For the layers of one: --model NAME --summary.")


def _title(family: str) -> str:
    return f"{family}-N" if FAMILIES[family].depths else family


def _cost(name: str, image: Image, classes: int, norm: str) -> Cost:
    """Of the fused model, as `minidl train` runs it."""
    model = build(name, image, classes, norm)
    nn.fuse(model)
    return cost(model, image)


def _facts(name: str, image: Image, classes: int, norm: str, found: Cost | None, problem: str = "") -> dict[str, Any]:
    return {
        "name": name,
        "image_shape": list(image),
        "classes": classes,
        "norm": norm,
        "parameters": found and found.parameters,
        "flops": found and found.flops,
        "kept_bytes": found and found.kept_bytes,
        "problem": problem,
    }


def _layers(layers: Sequence[LayerCost]) -> list[tuple[str, ...]]:
    """The rows of the tree of layers, and all in all."""
    rows: list[tuple[str, ...]] = [("layer", "type", "output", *HEADS)]
    for layer in layers[1:]:
        *folders, own = layer.name.split(".")
        output = "x".join(map(str, layer.output))
        numbers = (
            f"{layer.parameters:,}" if layer.parameters else "",
            _scaled(layer.flops) if layer.flops else "",
            f"{_scaled(layer.kept_bytes)}B" if layer.kept_bytes else "",
        )
        rows.append((f"{'  ' * len(folders)}{own}", layer.kind, output, *numbers))
    return [*rows, ("in all", "", "", *_numbers(Cost(tuple(layers))))]


def _numbers(found: Cost) -> tuple[str, str, str]:
    return f"{found.parameters:,}", _scaled(found.flops), f"{_scaled(found.kept_bytes)}B"


def _scaled(number: float) -> str:
    """For people: 61.8 M; with a unit behind it, 1.2 MB."""
    for unit in UNITS[:-1]:
        if number < 999.95:
            return f"{number:.1f}{unit}" if unit else f"{number:.0f} "
        number /= 1000
    return f"{number:.1f}{UNITS[-1]}"


def _print(rows: Sequence[Sequence[str]], align: str) -> None:
    for line in layout.table(rows, align):
        click.echo(line)


def _conditions(image: Image, classes: int, norm: str) -> str:
    return (
        f"For images of {'x'.join(map(str, image))} in {layout.count(classes, 'class', 'classes')}, --norm {norm}. "
        "FLOPs: of a forward pass of one image, in convolutions and linear layers, a multiply-add counted as two. "
        "Kept: what a training step keeps of each image for backward."
    )
