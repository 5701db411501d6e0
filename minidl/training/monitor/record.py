"""monitor.jsonl: one JSON object for each step that was measured.

    step, epoch, lr      steps and epochs that were finished before this one, and its learning rate
    activations          for each layer with an output of its own: `percentiles` (1, 15, 50, 85, 99), `mean`, `std`, and
                         for ReLU `dead`, the share of channels that are 0 in every place of every image of the batch
    statistics           for each batch normalization: `mean_shift`, the root mean square over channels of
                         (batch mean - running mean) / sqrt(running variance + eps), and `variance_ratio`, the geometric
                         mean over channels of (batch variance + eps) / (running variance + eps)
    affine               for each normalization: `gamma` and `beta`, each [least, mean, largest]
    weights              for each weight of a convolution or linear layer: `norm`, `gradient_norm`, `update_ratio`
                         (norm of the step's change over norm), and `effective_lr`, lr / norm^2, where normalization
                         follows, ReLU between them or not (van Laarhoven 2017, arXiv:1706.05350), else null

Norms are Euclidean. Running statistics are those before the batch entered them. Percentiles, mean and std are those of
an evenly spaced sample of at most `SAMPLE` values. A value that is not finite stands as null. Where a step has several
parts (--accumulate), activations and statistics are those of its last part, and the norms those of the step.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from minidl.errors import DataError
from minidl.training.atomic import write_atomically

Record = dict[str, Any]
FILE = "monitor.jsonl"
PERCENTILES = (1, 15, 50, 85, 99)
SAMPLE = 1 << 16
_FIELDS = {
    "activations": ("percentiles", "mean", "std", "dead"),
    "statistics": ("mean_shift", "variance_ratio"),
    "weights": ("norm", "gradient_norm", "update_ratio", "effective_lr"),
}
GROUPS = ("activations", "statistics", "affine", "weights")


def read_records(path: Path) -> list[Record]:
    """The records of a file, in the order of their steps; empty where there is none.

    A last line without its end is left out: the run was killed as it wrote.

    Raises:
        DataError: A line is not a record; the message names it.
    """
    try:
        *lines, _unfinished = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line.decode())
            good = _is_record(record)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            good = False
        if not good:
            raise DataError(f"{path}: line {number} is not a record of the monitor; mend or remove it") from None
        records.append(record)
    return records


def _is_record(record: Record) -> bool:
    """Raises TypeError or KeyError, or gives False, where it is none."""
    if not all(type(record[name]) is int for name in ("step", "epoch")) or not _is_number(record["lr"]):
        return False
    layers = [(group, values) for group in GROUPS for values in record[group].values()]
    for group, values in layers:
        numbers = list(values.items()) if group == "affine" else [(name, values[name]) for name in _FIELDS[group]]
        for name, value in numbers:
            length = {"percentiles": len(PERCENTILES), "gamma": 3, "beta": 3}.get(name)
            parts = [value] if length is None else value
            if length is not None and (not isinstance(value, list) or len(value) != length):
                return False
            if not all(_is_number(part) for part in parts):
                return False
    return True


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def append_record(path: Path, record: Record) -> None:
    """Add one line."""
    with path.open("ab") as file:
        file.write(_line(record))


def truncate_records(path: Path, step: int) -> None:
    """Drop what was measured at `step` and later, which a resumed run will measure again."""
    records = read_records(path)
    if path.exists():
        write_atomically(path, b"".join(_line(record) for record in records if record["step"] < step))


def scalars(record: Record) -> Iterable[tuple[str, float]]:
    """Each number of a record with a name such as "activations/relu1/dead"; null ones are left out."""
    for group in GROUPS:
        for name, values in record[group].items():
            for what, value in values.items():
                parts = value if isinstance(value, list) else [value]
                labels = [f"p{p}" for p in PERCENTILES] if what == "percentiles" else ["least", "mean", "largest"]
                for label, part in zip(labels, parts, strict=False):
                    if part is not None:
                        yield f"{group}/{name}/{what}{'/' + label if isinstance(value, list) else ''}", part


def _line(record: Record) -> bytes:
    return (json.dumps(_finite(record), allow_nan=False) + "\n").encode()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
