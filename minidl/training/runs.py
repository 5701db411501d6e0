"""A run's folder: PARENT/NAME-NNN and the files that a training run leaves in it.

config.toml                     the configuration; `minidl train --config` repeats the run
metrics.jsonl, metrics.csv      one row an epoch, the same columns; the first is the record, the second its copy
summary.json, env.json          the result; the machine and the versions behind it
curves.svg                      loss and accuracy against epoch
monitor.jsonl, monitor.svg      what --monitor measured (monitor/record.py), and what `minidl monitor` drew of it
events/                         the same for TensorBoard
checkpoints/                    last.safetensors, previous.safetensors, best.safetensors
.lock                           while a process trains the run (lock.py)

JSON is Python's: NaN and infinities stand as NaN, Infinity and -Infinity.
"""

import contextlib
import csv
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minidl.errors import ConfigError, DataError
from minidl.training.atomic import write_atomically
from minidl.training.environment import environment
from minidl.training.metrics import read_rows


@dataclass(frozen=True)
class RunFolder:
    """An existing run folder. Its methods raise ConfigError where the disk refuses a write."""

    path: Path

    @property
    def config(self) -> Path:
        """The configuration; a folder without it is not a run."""
        return self.path / "config.toml"

    @property
    def checkpoints(self) -> Path:
        """The folder that `checkpoint.save_last` and `checkpoint.load_latest` take."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON object an epoch."""
        return self.path / "metrics.jsonl"

    @property
    def metrics_csv(self) -> Path:
        """The same rows as a table."""
        return self.path / "metrics.csv"

    @property
    def summary(self) -> Path:
        """The result of the run."""
        return self.path / "summary.json"

    @property
    def environment(self) -> Path:
        """Machine and versions."""
        return self.path / "env.json"

    @property
    def curves(self) -> Path:
        """The plot of the metrics."""
        return self.path / "curves.svg"

    @property
    def monitor(self) -> Path:
        """What the monitor measured."""
        return self.path / "monitor.jsonl"

    @classmethod
    def create(cls, parent: str | Path, name: str) -> "RunFolder":
        """Make PARENT/NAME-NNN, where NNN is one more than the largest number there; safe beside other processes.

        The caller writes `config` next: only then is it a run that `open` and `latest` find.

        Raises:
            ConfigError: `name` cannot be part of a folder's name, or the folder cannot be made.
        """
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise ConfigError(f"a run's name must be letters, digits and any of _.+-, not {name!r}")
        parent = Path(parent)
        try:
            parent.mkdir(parents=True, exist_ok=True)
            number = 1 + max((_number(p.name) for p in parent.iterdir() if _stem(p.name) == name), default=0)
            while True:
                path = parent / f"{name}-{number:03d}"
                try:
                    path.mkdir()
                    break
                except FileExistsError:  # another process was faster, or the file system ignores case
                    number += 1
            run = cls(path)
            run.checkpoints.mkdir()
        except (OSError, ValueError) as error:  # ValueError: a NUL byte
            reason = "it is a file" if isinstance(error, FileExistsError) else _reason(error)
            raise ConfigError(
                f"{_shown(parent)}: cannot make a run folder there: {reason}; name another folder with --out DIR"
            ) from None
        return run

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """An existing run, by its folder or by a path inside it such as checkpoints/last.safetensors.

        Raises:
            ConfigError: `path` does not exist or is not a run's.
        """
        path = Path(path)
        try:
            exists = path.exists()
        except OSError:  # a name that is too long, a folder that may not be entered
            exists = False
        if not exists:
            raise ConfigError(f"{_shown(path)}: no such run")
        for candidate in (path, path.absolute().parent, path.absolute().parent.parent):
            if _is_run(candidate):
                return cls(candidate)
        raise ConfigError(f"{_shown(path)}: is not a run folder (it has no config.toml and checkpoints){_newest(path)}")

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one epoch to metrics.jsonl and metrics.csv; it is on the disk when this returns.

        Args:
            row: Column names and numbers, with `epoch`; the columns are those of the rows before.
        """
        plain = {name: _plain(value) for name, value in row.items()}
        if not isinstance(plain.get("epoch"), int):
            raise TypeError(f"a row of metrics needs an integer 'epoch': {row}")
        with _writing(self.metrics_csv):
            new = not self.metrics_csv.exists()
            if not new:
                with self.metrics_csv.open(encoding="utf-8", newline="") as file:
                    columns = next(csv.reader(file), [])
                if columns != list(plain):
                    raise ValueError(f"a row of metrics has columns {list(plain)}, the rows before it {columns}")
        with _writing(self.metrics):
            _append(self.metrics, json.dumps(plain) + "\n")
        with _writing(self.metrics_csv):
            _append(self.metrics_csv, _csv([plain], header=new))

    def read_metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; empty where there is none yet.

        Raises:
            DataError: A line is not a row. (A last line without its end is left out: the run was killed as it wrote.)
        """
        return [row for _, row in read_rows(self.metrics)]

    def require_metrics(self, columns: Sequence[str], epoch: int) -> str | None:
        """Raise DataError unless a run that has finished `epoch` epochs can go on with the metrics that are here.

        Every row must have a number in each of `columns`, and in no other. A table without its record is refused, as
        going on would remove it.

        Returns:
            One line for the user where epochs have no row, else None.
        """
        rows = read_rows(self.metrics, columns)
        if epoch and self.metrics_csv.exists() and not self.metrics.exists():
            raise DataError(
                f"{self.metrics}: is missing, but {self.metrics_csv.name} is there; put it back, or move the other away"
            )
        missing = sorted(set(range(1, epoch + 1)) - {row["epoch"] for _, row in rows})
        if not missing:
            return None
        epochs = (
            f"epoch {missing[0]}" if len(missing) == 1 else f"{len(missing)} epochs, the first of them {missing[0]}"
        )
        return f"{self.metrics}: has no row of {epochs}; the curves will have a gap"

    def truncate_metrics(self, epoch: int) -> None:
        """Drop the rows of epochs after `epoch`, which a resumed run will write again."""
        kept = [(line, row) for line, row in read_rows(self.metrics) if row["epoch"] <= epoch]
        with _writing(self.metrics):
            if kept:
                write_atomically(self.metrics, "".join(line + "\n" for line, _ in kept).encode())
                write_atomically(self.metrics_csv, _csv([row for _, row in kept], header=True).encode())
            else:
                self.metrics_csv.unlink(missing_ok=True)
                self.metrics.unlink(missing_ok=True)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json."""
        _write_json(self.summary, summary)

    def write_environment(self) -> None:
        """Write env.json."""
        _write_json(self.environment, environment())


def latest(parent: str | Path) -> RunFolder:
    """The run in `parent` whose config.toml is newest; of equals, the one with the larger number.

    Raises:
        ConfigError: There is no run in `parent`.
    """
    parent = Path(parent)
    try:
        runs = [(p / "config.toml", p) for p in parent.iterdir() if _is_run(p)]
        return RunFolder(max((c.stat().st_mtime_ns, _number(p.name), p.name, p) for c, p in runs)[-1])
    except (OSError, ValueError):  # ValueError: max of nothing, or a NUL byte
        out = "" if str(parent) == "runs" else f" --out {_shown(parent)}"
        raise ConfigError(
            f"{_shown(parent)}: there is no run in this folder; train first: python -m minidl train{out}"
        ) from None


def _is_run(path: Path) -> bool:
    try:
        return (path / "config.toml").is_file() and (path / "checkpoints").is_dir()
    except OSError:  # a folder that may not be entered
        return False


def _newest(path: Path) -> str:
    """The end of a message to someone who named the folder of runs for one of them."""
    with contextlib.suppress(ConfigError):
        return f"; the newest run in it is {latest(path).path}"
    return ""


def _stem(folder: str) -> str | None:
    """NAME of NAME-NNN."""
    match = re.fullmatch(r"(.*)-\d{3,}", folder)
    return match[1] if match else None


def _number(folder: str) -> int:
    """NNN of NAME-NNN, else -1."""
    return int(folder.rpartition("-")[2]) if _stem(folder) is not None else -1


def _append(path: Path, text: str) -> None:
    with path.open("ab") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def _csv(rows: list[dict[str, Any]], header: bool) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(rows[0])
    writer.writerows(row.values() for row in rows)
    return text.getvalue()


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    text = json.dumps(values, indent=2, default=_plain)
    with _writing(path):
        write_atomically(path, (text + "\n").encode())


def _plain(value: Any) -> Any:
    """A NumPy scalar as Python's own."""
    return value.item() if isinstance(value, np.generic) else value


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {_reason(error)}") from None


def _shown(path: Path) -> str:
    """A path for a message of one line."""
    return str(path) if str(path).isprintable() else repr(str(path))


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
