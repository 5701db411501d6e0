"""The configuration of a training run: its fields, what each may be, and the TOML file that replays it.

A file is flat: one `key = value` a line, keys as in `TrainConfig`, no tables. An option that is None is left out of the
file; it means that the recipe for the data set and optimizer decides.
"""

import difflib
import json
import reprlib
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np

from minidl import schedule
from minidl.backends import NAMES_OF_PRECISIONS
from minidl.errors import ConfigError
from minidl.training.atomic import write_atomically

REPEATS = "minidl train --config THIS_FILE repeats this run."
OPTIMIZERS = ("sgd", "adam", "adamw")


@dataclass(frozen=True)
class TrainConfig:
    """All that decides a training run; None leaves a choice to the recipe for the data set and optimizer."""

    data: str = "digits"
    data_dir: str | None = None
    model: str = "small-cnn"
    norm: str = "batch"
    zero_gamma: bool = False
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None  # the largest of the schedule
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float | None = None
    norm_decay: float = 0.0
    label_smoothing: float = 0.0
    schedule: str = "cosine"
    warmup: float | None = None  # in epochs; None for the schedule's own
    min_lr: float = 0.0
    clip: float | None = None
    accumulate: int = 1
    ema: float | None = None
    augment: bool = True
    crop_padding: int | None = None
    flip: bool | None = None
    cutout: int | None = None
    device: str = "auto"
    precision: str | None = None  # None for the device's own choice
    seed: int = 0
    threads: int | None = None
    max_steps: int | None = None
    monitor: int | None = None
    tensorboard: bool = False
    graph: bool | None = None  # None for where it gains something, on a GPU


def load_config(path: str | Path) -> dict[str, Any]:
    """Read the options that a TOML file sets, each checked as `validate` does.

    Returns:
        Field names of `TrainConfig` and their values, in the file's order; only those that the file names.

    Raises:
        ConfigError: The file is missing or not TOML, or a key or value is not one of the configuration's.
    """
    try:
        # utf-8-sig: some Windows editors begin a file with a byte order mark, which TOML forbids.
        values = tomllib.loads(Path(path).read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text, as TOML must be") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError
        raise ConfigError(f"{path}: is not TOML: {error}") from None
    return {key: _checked(path, key, value) for key, value in values.items()}


def write_config(path: str | Path, config: TrainConfig, remark: str = REPEATS) -> None:
    """Write `config` as a TOML file from which `load_config` gives back every field that is not None.

    `remark` is the comment at its head.

    Raises:
        ConfigError: The file cannot be written, or a text in `config` cannot be in TOML (it is not valid Unicode).
    """
    lines = [f"# {remark}"]
    for field in fields(config):
        value = getattr(config, field.name)
        if value is not None:
            lines.append(f"{field.name} = {_toml(field.name, value)}")
    try:
        write_atomically(Path(path), ("\n".join(lines) + "\n").encode())
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL byte
        raise ConfigError(f"{str(path)!r}: cannot be written: {getattr(error, 'strerror', None) or error}") from None


def validate(config: TrainConfig) -> None:
    """Raise ConfigError for the first field that is out of range, named as on the command line (`--batch-size`)."""
    for field in fields(config):
        validate_option(field.name, getattr(config, field.name))


def validate_option(name: str, value: Any) -> None:
    """`validate` for one field."""
    problem = _problem(name, value)
    if problem:
        raise ConfigError(f"{flag(name)} {problem}")


def flag(name: str) -> str:
    """The option of the command line that sets a field; of a switch, the form that changes its default."""
    return "--" + ("no-" if getattr(TrainConfig, name) is True else "") + name.replace("_", "-")


# What each field may be: its type from the annotation, and a range or a list of names.

_HINTS = get_type_hints(TrainConfig)
_KINDS: dict[str, type] = {name: (get_args(hint) or (hint,))[0] for name, hint in _HINTS.items()}
_OPTIONAL = {name for name, hint in _HINTS.items() if type(None) in get_args(hint)}
_MAX_FLOAT = float(np.finfo(np.float32).max)  # what the arithmetic can hold
_TYPE_WORDS = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}
_COUNT: tuple[Callable[[Any], bool], str] = (lambda v: v >= 1, "a whole number of at least 1")
_AMOUNT: tuple[Callable[[Any], bool], str] = (lambda v: 0 <= v <= _MAX_FLOAT, "a finite number of at least 0")
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "epochs": _COUNT,
    "batch_size": _COUNT,
    "threads": _COUNT,
    "max_steps": _COUNT,
    "monitor": _COUNT,
    "accumulate": _COUNT,
    "crop_padding": (lambda v: v >= 0, "a whole number of at least 0"),
    "cutout": (lambda v: v >= 0, "a whole number of at least 0"),
    "lr": (lambda v: 0 < v <= _MAX_FLOAT, "a finite number above 0"),
    "momentum": (lambda v: 0 <= v < 1, "at least 0 and less than 1"),
    "weight_decay": _AMOUNT,
    "norm_decay": _AMOUNT,
    "warmup": _AMOUNT,
    "min_lr": _AMOUNT,
    "clip": (lambda v: 0 < v <= _MAX_FLOAT, "a finite number above 0"),
    "ema": (lambda v: 0 < v < 1, "more than 0 and less than 1"),
    "label_smoothing": (lambda v: 0 <= v < 1, "at least 0 and less than 1"),
    "seed": (lambda v: 0 <= v < 2**64, "a whole number from 0 to 2**64 - 1"),
}
# Beyond these a number is a slip, and would end in an overflow or in as many threads.
_MOST = {
    "epochs": 10**9,
    "batch_size": 10**9,
    "max_steps": 10**15,
    "monitor": 10**15,
    "accumulate": 10**9,
    "warmup": 10**9,
    "threads": 4096,
    "crop_padding": 4096,
    "cutout": 4096,
}
_CHOICES = {"optimizer": OPTIMIZERS, "schedule": schedule.NAMES, "precision": NAMES_OF_PRECISIONS}


def _problem(name: str, value: Any) -> str | None:
    """The end of the sentence "NAME must be ..., not ...", or None where the value is good."""
    if value is None and name in _OPTIONAL:
        return None
    kind, given = _KINDS[name], reprlib.repr(value)
    accepted: Any = (int, float) if kind is float else kind
    is_kind = isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))
    in_range, expected = _RANGES.get(name, (lambda _: True, _TYPE_WORDS[kind]))
    if not is_kind or not in_range(value):
        return f"must be {expected}, not {given}"
    if name in _MOST and value > _MOST[name]:
        return f"must be at most {_MOST[name]:,}, not {given}"
    if name in _CHOICES and value not in _CHOICES[name]:
        return f"must be one of {', '.join(_CHOICES[name])}, not {given}{_did_you_mean(value, _CHOICES[name])}"
    return None


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _checked(path: str | Path, key: str, value: Any) -> Any:
    """The value as the field's type, or ConfigError."""
    if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict) for item in value)):
        raise ConfigError(f"{path}: {key!r} is a table; options stand at the top level, without headings or dots")
    if key not in _KINDS:
        hint = _did_you_mean(key.replace("-", "_"), _KINDS) or f"; the options are {', '.join(_KINDS)}"
        raise ConfigError(f"{path}: unknown option {reprlib.repr(key)}{hint}")
    problem = _problem(key, value)
    if problem:
        raise ConfigError(f"{path}: {key} {problem}")
    return float(value) if _KINDS[key] is float else value


def _toml(name: str, value: Any) -> str:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{name}: {value!r} is not valid Unicode and cannot stand in a TOML file") from None
        # A JSON string is a TOML basic string, except that TOML wants DEL escaped and has no surrogate pairs.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(float(value) if _KINDS[name] is float else value)
