"""What was measured, kept with where, when and by what: docs/results/bench.jsonl, a row a line."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from minidl.backends import Backend
from minidl.errors import ConfigError, DataError
from minidl.lab.bench.peer import TorchPeer
from minidl.training.atomic import write_atomically
from minidl.training.environment import environment

RECORD = Path(__file__).resolve().parents[3] / "docs" / "results" / "bench.jsonl"
Row = dict[str, Any]
# What makes two rows the same measurement; the later one takes the place of the earlier.
_KEY = ("kind", "device", "machine", "operation", "shape", "model", "batch", "family", "technique", "precision")


def provenance(backend: Backend, peer: TorchPeer | None, commit: str | None = None) -> Row:
    """What all rows of a run share: device, machine, date, environment with the peer's versions."""
    around = environment()
    around["commit"] = commit or around["commit"]
    if peer is not None:
        around["versions"] = around["versions"] | peer.versions()
    device = "cpu" if backend.name == "cpu" else "gpu"
    name = around["cpu"] if device == "cpu" else backend.describe()
    threads = getattr(getattr(backend, "workers", None), "threads", None)
    machine = f"{name}, {threads} thread{'s' if threads != 1 else ''}" if threads else str(name)
    date = datetime.now(UTC).date().isoformat()
    return {"device": device, "machine": machine, "threads": threads, "date": date, "environment": around}


def require_recordable(path: Path = RECORD) -> None:
    """Raise ConfigError, before anything is measured, where nothing can be recorded."""
    if not path.parent.is_dir():
        raise ConfigError(f"--record: there is no folder {path.parent}; it comes with minidl's source, so record there")


def record(rows: Sequence[Row], path: Path = RECORD) -> None:
    """Put rows in the file: each in the place of the one that it repeats, or at the end.

    Raises:
        ConfigError: The file cannot be written.
        DataError: What is in it is no record.
    """
    kept = {_key(row): row for row in read(path)}
    kept.update({_key(row): row for row in rows})
    text = "".join(json.dumps(row) + "\n" for row in kept.values())
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise ConfigError(f"--record: {path} cannot be written: {error.strerror or error}") from None


def read(path: Path = RECORD) -> list[Row]:
    """All rows; none where there is no file yet. Raises DataError for a file that is no record."""
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        row = _parsed(line)
        if not isinstance(row, dict) or "kind" not in row:
            raise DataError(f"{path}:{number}: is no row of a record; restore the file, or delete the line")
        rows.append(row)
    return rows


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _key(row: Row) -> tuple[str, ...]:
    return tuple(json.dumps(row.get(name)) for name in _KEY)
