"""The lines of metrics.jsonl: one JSON object an epoch, checked before anything is built on it."""

import contextlib
import json
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minidl.errors import DataError

Row = dict[str, Any]


def read_rows(path: Path, columns: Sequence[str] | None = None) -> list[tuple[str, Row]]:
    """Each whole line of the file and what it says; empty where there is no file.

    A row is an object of numbers (or null), its `epoch` a whole number above that of the row before, its columns those
    of the row before. A last line without its end is left out: the run was killed as it wrote.

    Args:
        path: The file.
        columns: What every row must have, with a number in each; None where that is not known.

    Raises:
        DataError: The file cannot be read, or a line is not a row; the message names it.
    """
    try:
        *lines, _unfinished = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    rows: list[tuple[str, Row]] = []
    for number, line in enumerate(lines, start=1):
        row: Any = None
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line.decode())
        fault = _fault(row, rows[-1][1] if rows else None, columns)
        if fault is not None:
            raise DataError(f"{path}: line {number} is not a row of metrics{fault}; mend or remove it")
        rows.append((line.decode(), row))
    return rows


def _fault(row: Any, before: Row | None, columns: Sequence[str] | None) -> str | None:
    """What is wrong with a row, as the end of a sentence; None where nothing is."""
    if not isinstance(row, dict) or not _is_number(row.get("epoch")) or not isinstance(row["epoch"], int):
        return ""
    epoch = row["epoch"]
    if epoch < 1 or (before is not None and epoch <= before["epoch"]):
        return f" (epoch {reprlib.repr(epoch)} after {0 if before is None else before['epoch']})"
    wrong = [name for name, value in row.items() if not _is_number(value) and (value is not None or columns)]
    if wrong:
        return f" ({reprlib.repr(wrong[0])} is {reprlib.repr(row[wrong[0]])}, expected a number)"
    expected = list(row if before is None else before) if columns is None else list(columns)
    if list(row) != expected:
        other = [name for name in (*expected, *row) if (name in row) != (name in expected)]
        named = ", ".join(map(reprlib.repr, other[:3])) or "the order of its columns"
        return f" ({named}: expected {', '.join(expected)})"
    return None


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) < 2**63
