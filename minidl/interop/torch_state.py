"""PyTorch's state dicts as safetensors: what `safetensors.torch.save_model` writes and `load_model` reads.

Nothing is ever unpickled: a .pt or .pth file is refused. PyTorch saves a model for minidl, or takes one from it, by

    safetensors.torch.save_model(model, "model.safetensors")
    safetensors.torch.load_model(model, "model.safetensors")

Numbers    float32 as they are; float16 and bfloat16 widened, which is exact; float64 rounded. Each is noted.
Refused    names, shapes or kinds of numbers that are not the model's; NaN and infinity; a negative running variance.
           Nothing of the model is changed then.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from minidl.errors import InteropError
from minidl.interop.messages import one_line, shown
from minidl.nn import Module
from minidl.training.atomic import write_atomically
from minidl.training.checkpoint import plain_array

_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8"}
_COUNTER = "num_batches_tracked"  # PyTorch, too, lets files leave it out: those from before version 0.4.1 lack it
_SHOWN = 3  # names in a message


class Entry(NamedTuple):
    """What a file's header says of a tensor; dtype by safetensors' names."""

    dtype: str
    shape: tuple[int, ...]


def save_torch(model: Module, path: str | Path) -> None:
    """Write the model's state for PyTorch: its names, layouts and dtypes, whole or not at all.

    Raises:
        InteropError: The file cannot be written. An older file at `path` is left as it was.
    """
    arrays = {name: plain_array(name, value) for name, value in model.state_dict().items()}
    data = safetensors.numpy.save(arrays)
    written = safetensors.numpy.load(data)
    for name, array in arrays.items():  # safetensors 0.8.0 has written wrong bytes without a word; see plain_array
        if array.tobytes() != written[name].tobytes():
            raise InteropError(f"{path}: safetensors does not give back what it was given ({name}); nothing is written")
    try:
        write_atomically(Path(path), data)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL byte
        raise InteropError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}") from None


def load_torch(model: Module, path: str | Path, strict: bool = True) -> list[str]:
    """Give `model` the state in a file of PyTorch's.

    Args:
        model: The same architecture by the same names, on any device.
        path: The safetensors file.
        strict: Whether every name must be there, and no other. Otherwise what is there is taken, and the rest noted.

    Returns:
        Lines worth knowing: which numbers were converted, which names were left.

    Raises:
        InteropError: The file is missing, damaged or not a safetensors file, or does not fit the model.
    """
    path = Path(path)
    return take_state(model, path, _header(path), lambda entries: _numbers(path, entries), strict)


def load_state_of(model: Module, other: Module, origin: str | Path) -> list[str]:
    """Give `model` the state of another model that was read from the file `origin`; as `load_torch`."""
    state = other.state_dict()
    dtypes = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
    entries = {name: Entry(dtypes[array.dtype], array.shape) for name, array in state.items()}
    return take_state(model, Path(origin), entries, lambda common: {name: state[name] for name in common}, True)


def take_state(
    model: Module,
    path: Path,
    entries: Mapping[str, Entry],
    read: Callable[[Mapping[str, Entry]], dict[str, np.ndarray]],
    strict: bool,
) -> list[str]:
    """Check what the file at `path` says it holds, then `read` what is the model's; as `load_torch`."""
    ours = model.state_dict()
    missing = [name for name in ours if name not in entries]
    uncounted = [name for name in missing if name.rpartition(".")[2] == _COUNTER]
    missing = [name for name in missing if name not in uncounted]
    unexpected = [name for name in entries if name not in ours]
    notes = [f"{path}: has no {_COUNTER}; they stay as they are"] if uncounted else []
    for names, words in ((missing, "missing"), (unexpected, "unexpected")):
        if names and not strict:
            notes.append(f"{path}: {words} and left alone: {_few(names)}")
    faults = [f"it lacks {_few(missing)}"] if missing and strict else []
    faults += [f"it also has {_few(unexpected)}"] if unexpected and strict else []
    common = {name: entry for name, entry in entries.items() if name in ours}
    if not common:
        raise InteropError(f"{path}: none of its names is the model's{_hint(entries, ours)} (it has {_few(entries)})")
    faults += _misfits(common, ours)
    if faults:
        raise InteropError(f"{path}: does not fit the model: {'; '.join(faults)}{_hint(entries, ours)}")
    state = read(common)
    floats = {entry.dtype for name, entry in common.items() if ours[name].dtype.kind == "f"}
    wanted = model.backend.dtype
    for dtype in sorted(floats - {"F32" if wanted == np.float32 else "F64"}):
        how = f"rounded to {wanted}" if dtype == "F64" else f"widened to {wanted}, which changes none"
        notes.append(f"{path}: holds {_FLOATS[dtype]} numbers; {how}")
    with np.errstate(over="ignore"):
        state = {name: array.astype(ours[name].dtype) for name, array in state.items()}
    _require_good_numbers(path, state)
    try:
        model.load_state_dict(state, strict=False)
    except ValueError as error:
        raise InteropError(f"{path}: {error}") from None
    return notes


def _header(path: Path) -> dict[str, Entry]:
    """Names, dtypes and shapes, without the numbers: a large foreign file is not read whole to be refused."""
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            what = "is not a regular file" if path.exists() else "no such file"
            raise InteropError(f"{path}: {'is a folder, not a file' if path.is_dir() else what}")
        with path.open("rb") as file:
            start = file.read(9)
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
            entries = {name: Entry(part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (OSError, ValueError) as error:
        raise InteropError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except safetensors.SafetensorError as error:
        if start.startswith((b"PK\x03\x04", b"\x80")):
            raise InteropError(
                f"{path}: is a PyTorch or pickle file, which minidl never opens; "
                "in PyTorch, write it with safetensors.torch.save_model"
            ) from None
        raise InteropError(f"{path}: is not a safetensors file, or is damaged: {one_line(error)}") from None
    if "checkpoint" in metadata and any(name.startswith("model.") for name in entries):
        raise InteropError(f"{path}: is a checkpoint of minidl's own; --resume, eval and export read those")
    return entries


def _misfits(entries: Mapping[str, Entry], ours: Mapping[str, np.ndarray]) -> list[str]:
    """Shapes and kinds of numbers that are not the model's, in words; the first few."""
    faults = []
    for name, (dtype, shape) in entries.items():
        expected = ours[name]
        if shape != expected.shape:
            faults.append(f"{name} has shape {shape}, expected {expected.shape}")
        elif expected.dtype.kind == "f" and dtype not in _FLOATS:
            faults.append(f"{name} has dtype {dtype}, expected one of {', '.join(_FLOATS)}")
        elif expected.dtype.kind != "f" and dtype != "I64":
            faults.append(f"{name} has dtype {dtype}, expected I64")
    more = f"{len(faults) - _SHOWN} more such" if len(faults) > _SHOWN else ""
    return faults[:_SHOWN] + ([more] if more else [])


def _numbers(path: Path, entries: Mapping[str, Entry]) -> dict[str, np.ndarray]:
    """The tensors of those names; `entries` has their dtypes and shapes."""
    try:
        deserialize: Any = safetensors.deserialize  # untyped; unlike safetensors.numpy it passes bfloat16 on
        tensors = dict(deserialize(path.read_bytes()))
        return {name: _array(tensors[name]["data"], *entry) for name, entry in entries.items()}
    except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
        raise InteropError(f"{path}: cannot be read: {one_line(error)}") from None


def _array(data: Any, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    if dtype == "BF16":  # the upper half of a float32; NumPy has no such type
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    return np.frombuffer(data, _DTYPES[dtype]).reshape(shape)


def _require_good_numbers(path: Path, state: Mapping[str, np.ndarray]) -> None:
    for name, array in state.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InteropError(f"{path}: {name} holds NaN or infinity (or numbers beyond {array.dtype}'s)")
        if name.rpartition(".")[2] == "running_var" and (array < 0).any():
            raise InteropError(f"{path}: {name} is negative in places; a variance cannot be")


def _hint(entries: Iterable[str], ours: Iterable[str]) -> str:
    """The end of a message, where names differ by what a wrapper puts before each."""
    known, names = set(ours), list(entries)
    for prefix in ("module.", "_orig_mod.", "model."):
        if any(name.startswith(prefix) and name.removeprefix(prefix) in known for name in names):
            return f"; its names begin with '{prefix}', as a wrapper's do: save the model inside"
    return ""


def _few(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(shown(name) for name in names[:_SHOWN]) + more
