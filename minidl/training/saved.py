"""A trained model, back from its checkpoint."""

from pathlib import Path
from typing import Any, NamedTuple

from minidl import models
from minidl.backends import Backend
from minidl.errors import CheckpointError
from minidl.nn import Module, fuse
from minidl.training import checkpoint
from minidl.training.runs import RunFolder


class SavedModel(NamedTuple):
    """A model, what its checkpoint says of it, and the checkpoint."""

    model: Module
    metadata: dict[str, Any]
    file: Path


def load_model(path: str | Path, backend: Backend, which: str = "best") -> SavedModel:
    """The model of a run folder or of a checkpoint file, ready to evaluate.

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
        height, width, channels = spec.pop("image_shape")
        model = models.build(image_shape=(height, width, channels), **spec)
        weights = {k.removeprefix("model."): v for k, v in saved.tensors.items() if k.startswith("model.")}
        model.load_state_dict(weights)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: the checkpoint does not fit the model it names: {error}") from None
    fuse(model)
    return SavedModel(model.to(backend).eval(), saved.metadata, file)
