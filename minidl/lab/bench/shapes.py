"""Shapes to measure: what a line of a list holds, and how a list is read.

A list is a file of JSON lines. Empty lines, and lines that begin with #, are skipped:

    {"op": "conv2d", "n": 128, "h": 32, "w": 32, "c_in": 64, "c_out": 64, "kernel": 3, "stride": 1, "padding": 1}
    {"op": "conv2d_forward", "n": 32, "h": 224, "w": 224, "c_in": 3, "c_out": 64, "kernel": 7, "stride": 2}
    {"op": "batchnorm", "n": 128, "h": 32, "w": 32, "c": 64}
    {"op": "max_pool2d", "n": 128, "h": 28, "w": 28, "c": 32, "kernel": 2}
    {"op": "linear", "n": 128, "c_in": 512, "c_out": 1000}
    {"op": "cross_entropy", "n": 128, "classes": 1000}
    {"op": "sgd", "model": "resnet-20"}

"op" is an operation or a family of them. A kernel, stride or padding is one number or a pair [height, width]. Where it
is not given, a stride is 1, a pool's its kernel, and padding half of the kernel, a pool's 0.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kernels.window import Pair, output_size, pair, pooled_size
from minidl.errors import ConfigError

LARGEST = 2**31 - 1
_IMAGES = ("n", "h", "w", "c")

# Families: what an entry must say, and the operations that are measured on it.
NUMBERS: dict[str, tuple[str, ...]] = {
    "conv2d": ("n", "h", "w", "c_in", "c_out"),
    "batchnorm": _IMAGES,
    "relu": _IMAGES,
    "max_pool2d": _IMAGES,
    "global_avg_pool2d": _IMAGES,
    "linear": ("n", "c_in", "c_out"),
    "cross_entropy": ("n", "classes"),
    "optimizer": (),
}
FAMILIES: dict[str, tuple[str, ...]] = {
    "conv2d": ("conv2d_forward", "conv2d_backward_input", "conv2d_backward_weight"),
    "batchnorm": (
        *("batchnorm_forward", "batchnorm_relu_forward", "batchnorm_add_relu_forward"),
        *("batchnorm_backward", "batchnorm_relu_backward", "batchnorm_add_relu_backward"),
    ),
    "relu": ("relu_forward", "relu_backward"),
    "max_pool2d": ("max_pool2d_forward", "max_pool2d_backward"),
    "global_avg_pool2d": ("global_avg_pool2d_forward", "global_avg_pool2d_backward"),
    "linear": ("linear_forward", "linear_backward_input", "linear_backward_weight"),
    "cross_entropy": ("cross_entropy",),
    "optimizer": ("sgd", "adam"),
}
_WINDOWED = ("conv2d", "max_pool2d")
_WINDOW = ("kernel", "stride", "padding")


class Shape(NamedTuple):
    """What operations of a family are measured on; `numbers` and `window` by name, `model` an optimizer's."""

    family: str
    operations: tuple[str, ...]
    numbers: Mapping[str, int]
    window: Mapping[str, Pair]
    model: str = ""

    def __getattr__(self, name: str) -> Any:  # shape.c_in, shape.stride
        for values in (self.numbers, self.window):
            if name in values:
                return values[name]
        raise AttributeError(f"a shape of {self.family} has no {name}")

    @property
    def label(self) -> str:
        """In short: 128x32x32x64 to 128, 3x3/2."""
        if self.model:
            return self.model
        numbers = dict(self.numbers)
        outputs = numbers.pop("c_out", None)
        text = "x".join(map(str, numbers.values())) + (f" to {outputs}" if outputs else "")
        if self.window:
            stride, padding = self.stride, self.padding
            text += f", {_side(self.window['kernel'], always=True)}"
            usual = self.window["kernel"] if self.family == "max_pool2d" else (1, 1)
            text += f"/{_side(stride)}" if stride != usual else ""
            text += f" pad {_side(padding)}" if padding != _padding(self.family, self.window["kernel"]) else ""
        return text


def _side(sides: Pair, always: bool = False) -> str:
    return str(sides[0]) if sides[0] == sides[1] and not always else f"{sides[0]}x{sides[1]}"


def _padding(family: str, kernel: Pair) -> Pair:
    return (kernel[0] // 2, kernel[1] // 2) if family == "conv2d" else (0, 0)


def shape(op: str, **values: Any) -> Shape:
    """An entry of a list. Raises ValueError, saying what is wrong with it."""
    family, operations = _find(op)
    if family == "optimizer":
        if set(values) != {"model"} or not isinstance(values["model"], str):
            raise ValueError(f"{op} needs a model by name and nothing else")
        return Shape(family, operations, {}, {}, values["model"])
    known = (*NUMBERS[family], *(_WINDOW if family in _WINDOWED else ()))
    for name in values:
        if name not in known:
            raise ValueError(f"{op} has no {name!r}{_near(name, known)}; it has {', '.join(known)}")
    missing = [name for name in NUMBERS[family] if name not in values]
    missing += ["kernel"] * (family in _WINDOWED and "kernel" not in values)
    if missing:
        raise ValueError(f"{op} lacks {', '.join(missing)}")
    numbers = {name: _whole(name, values[name], 1) for name in NUMBERS[family]}
    window: dict[str, Pair] = {}
    if family in _WINDOWED:
        kernel = _sides("kernel", values["kernel"], 1)
        stride = _sides("stride", values.get("stride", kernel if family == "max_pool2d" else 1), 1)
        padding = _sides("padding", values.get("padding", _padding(family, kernel)), 0)
        window = {"kernel": kernel, "stride": stride, "padding": padding}
        size = pooled_size if family == "max_pool2d" else output_size
        for length, axis in zip((numbers["h"], numbers["w"]), (0, 1), strict=True):
            size(length, kernel[axis], stride[axis], padding[axis], operation=op)  # a ShapeError is a ValueError
        if family == "max_pool2d" and any(2 * padding[axis] > kernel[axis] for axis in (0, 1)):
            raise ValueError(f"{op}: padding {padding} is more than half of the kernel {kernel}")
    elif family == "batchnorm" and numbers["n"] * numbers["h"] * numbers["w"] < 2:
        raise ValueError(f"{op} needs more than one value a channel: n*h*w is 1")
    return Shape(family, operations, numbers, window)


def family_of(op: str) -> str:
    """Of an operation or a family by name. Raises ConfigError, suggesting the nearest."""
    try:
        return _find(op)[0]
    except ValueError as error:
        raise ConfigError(str(error)) from None


def operations_of(names: Sequence[str]) -> tuple[str, ...]:
    """The operations that these names, of operations and families, mean. Raises ConfigError, suggesting the nearest."""
    found: list[str] = []
    for name in names:
        family_of(name)
        found += [one for one in _find(name)[1] if one not in found]
    return tuple(found)


def read_shapes(path: str | Path) -> list[Shape]:
    """The list in a file; see the module.

    Raises:
        ConfigError: The file cannot be read or holds no shape, or a line is none: the message has its number.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"--shapes {path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--shapes {path}: is not UTF-8 text") from None
    shapes = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            shapes.append(_entry(json.loads(line)))
        except json.JSONDecodeError as error:
            raise ConfigError(f"--shapes {path}:{number}: is not JSON: {error.msg} at column {error.colno}") from None
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"--shapes {path}:{number}: {error}") from None
    if not shapes:
        raise ConfigError(f"--shapes {path}: holds no shape; it has one JSON object a line")
    return shapes


def _entry(entry: Any) -> Shape:
    if not isinstance(entry, dict) or not isinstance(entry.get("op"), str):
        example = '{"op": "batchnorm", "n": 8, "h": 4, "w": 4, "c": 2}'
        raise ValueError(f'expected an object with "op", as {example}')  # noqa: TRY004  # all that is wrong is one kind
    return shape(**entry)


def _find(op: str) -> tuple[str, tuple[str, ...]]:
    for family, operations in FAMILIES.items():
        if op == family:
            return family, operations
        if op in operations:
            return family, (op,)
    names = [*FAMILIES, *(name for operations in FAMILIES.values() for name in operations)]
    raise ValueError(f"there is no operation '{op}'{_near(op, names)}; known: {', '.join(FAMILIES)}")


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _whole(name: str, value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= LARGEST:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {json.dumps(value)}")
    return value


def _sides(name: str, value: Any, least: int) -> Pair:
    sides = value if isinstance(value, list | tuple) else (value, value)
    if len(sides) != 2:
        raise ValueError(f"{name} must be a number or two, [height, width], not {json.dumps(value)}")
    return pair((_whole(name, sides[0], least), _whole(name, sides[1], least)))
