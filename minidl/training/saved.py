"""A trained model, back from its checkpoint."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minidl import models
from minidl.backends import Backend
from minidl.errors import CheckpointError
from minidl.nn import Module, fuse
from minidl.training import checkpoint
from minidl.training.runs import RunFolder

AVERAGES = "average.module."  # before the names of the averaged weights in a checkpoint


class SavedModel(NamedTuple):
    """A model, what its checkpoint says of it, and the checkpoint."""

    model: Module
    metadata: dict[str, Any]
    file: Path


def weights(saved: checkpoint.Checkpoint) -> dict[str, np.ndarray]:
    """The state of the model that was evaluated in training: the averages (--ema) where there are any."""
    averaged = any(name.startswith(AVERAGES) for name in saved.tensors)
    prefix = AVERAGES if averaged else "model."
    return {name.removeprefix(prefix): value for name, value in saved.tensors.items() if name.startswith(prefix)}


def load_model(path: str | Path, backend: Backend, which: str = "best") -> SavedModel:
    """The model of a run folder or of a checkpoint file, ready to evaluate; with averaged weights if it has them.

    Args:
        path: A run folder (then `which` of its checkpoints, "best" or "last"; last if there is no best yet) or a file.
        backend: Where the model is put.
        which: See `path`.

    Raises:
        CheckpointError: The file is missing, damaged or does not fit the model that it names.
    """
    file = Path(path)
    if not file.is_file():
        run = RunFolder.open(path)
        file = run.checkpoints / (checkpoint.BEST if which == "best" else checkpoint.LAST)
        if not file.exists() and which == "best":
            file = run.checkpoints / checkpoint.LAST
    saved = checkpoint.load(file)
    try:
        spec, _, _ = (saved.metadata[part] for part in ("model", "data", "config"))
        height, width, channels = spec["image_shape"]
        model = models.build(**spec | {"image_shape": (height, width, channels)})
        model.load_state_dict(weights(saved))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: the checkpoint does not fit the model it names: {error}") from None
    fuse(model)
    return SavedModel(model.to(backend).eval(), saved.metadata, file)
