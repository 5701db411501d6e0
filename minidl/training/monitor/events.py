"""The monitor's records, and an epoch's metrics, as TensorBoard event files."""

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minidl.errors import ConfigError
from minidl.training.monitor.record import Record, scalars

FOLDER = "events"
REMEDY = 'tensorboardX is not installed; run `python -m pip install -e ".[tensorboard]"`, or leave --tensorboard out'


def require_tensorboard() -> None:
    """Raise ConfigError unless event files can be written here."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise ConfigError(REMEDY)


def tag(name: str) -> str:
    """The name that a scalar has in an event file: TensorBoard wants letters, digits and any of _-./ alone."""
    return re.sub(r"[^\w./-]", "_", name, flags=re.ASCII)


class Events:
    """Writes into the folder `events` of a run; `tensorboard --logdir RUN` shows them.

    Args:
        run: The run's folder.
        step: Steps that were made before; what older event files hold of later ones is marked as void.

    Raises:
        ConfigError: tensorboardX is not installed, or the folder cannot be written.
    """

    def __init__(self, run: Path, step: int = 0) -> None:
        require_tensorboard()
        from tensorboardX import SummaryWriter

        try:
            self._writer: Any = SummaryWriter(str(run / FOLDER), purge_step=step if step else None)
        except OSError as error:
            raise ConfigError(f"{run / FOLDER}: cannot be written: {error.strerror or error}") from None

    def record(self, record: Record) -> None:
        """Of one step."""
        for name, value in scalars(record):
            self._writer.add_scalar(tag(name), value, record["step"])

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Of one epoch: the columns of metrics.jsonl."""
        for name, value in row.items():
            if name not in ("epoch", "step"):
                self._writer.add_scalar(f"epoch/{name}", value, row["step"])
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
