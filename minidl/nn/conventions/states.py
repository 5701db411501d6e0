"""The state of a batch normalization layer, from other frameworks' names and running variances to ours and back.

A running variance counts n - 1 values in some frameworks and n in others: the unbiased one is n / (n - 1) times the
biased. Evaluation takes the number as it is, whatever it counts: a state taken "as is" gives the same outputs. To go on
training, or to compare, it has to be converted, and for that one must know n, the values of each channel in a training
batch: images times height times width. No state says it.
"""

from collections.abc import Mapping
from numbers import Real
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from minidl.nn.arguments import is_count
from minidl.nn.conventions.table import convention, known

Array = NDArray[Any]
Rows = int | Literal["as is"] | None


def running_variance(var: Array, source: str, target: str, rows: Rows = None, initial: float = 0.0) -> Array:
    """The running variance of one framework as another would have it.

    Args:
        var: Of any shape; float64 comes back as float64, all else as float32.
        source: The framework that it comes from.
        target: The one that it goes to.
        rows: n, the values of each channel in a training batch, which must have been the same for all; or "as is" to
            convert nothing. It must be given where one of the two is biased and the other is not.
        initial: The weight that the first running variance, 1, still has: (1 - momentum)^steps. It never was a batch's,
            and so it is not scaled.

    Raises:
        ValueError: There is no such framework; rows must be given, or is less than 2; initial is not from 0 to 1; or
            var has numbers that no variance can be.
    """
    unbiased = convention(source).unbiased, convention(target).unbiased
    found = _vector(var, "running_variance: var")
    _require_variance(found, "running_variance: var")
    if not isinstance(initial, Real) or not 0 <= initial <= 1:
        raise ValueError(f"running_variance: initial must be from 0 to 1, got {initial!r}")
    if unbiased[0] == unbiased[1] or rows == "as is":
        return found
    if rows is None:
        one, other = ("unbiased", "biased") if unbiased[0] else ("biased", "unbiased")
        raise ValueError(
            f"running_variance: {source} keeps the {one} running variance and {target} the {other} one; give rows, the "
            "values of each channel in a training batch (images times height times width), or rows='as is'"
        )
    if isinstance(rows, bool) or not isinstance(rows, int | np.integer) or rows < 2:
        raise ValueError(f"running_variance: rows must be a whole number of at least 2, or 'as is', got {rows!r}")
    scale = (rows - 1) / rows if unbiased[0] else rows / (rows - 1)
    return (initial + (found.astype(np.float64) - initial) * scale).astype(found.dtype)


def state_from(
    name: str, state: Mapping[str, Any], rows: Rows = None, initial: float = 0.0, batches: int = 0
) -> dict[str, Array]:
    """The state of our layer, for `load_state_dict`, from that of one layer of a framework.

    Args:
        name: The framework; see `from_convention`.
        state: Arrays by the framework's names (Flax: params and batch_stats together). Without gamma and beta it is
            that of a layer with affine=False; where only one is there, the other is ones or zeros.
        rows: See `running_variance`.
        initial: See `running_variance`.
        batches: num_batches_tracked, where the framework counts no batches or `state` does not say it.

    Raises:
        ValueError: Names are missing or unknown, shapes differ, or numbers are none that can be; nothing is converted.
    """
    c = convention(name)
    names = c.names
    for given in state:
        if given not in names or not given:
            raise ValueError(
                f"{name}: '{given}' is not in the state of {c.layer} {known(str(given), filter(None, names))}"
            )
    missing = [needed for needed in (names.mean, names.var) if needed not in state]
    if missing:
        raise ValueError(f"{name}: the state of {c.layer} lacks {' and '.join(missing)}")
    vectors = {part: _flat(state[part], f"{name}: {part}") for part in names[:4] if part in state}
    sizes = {part: len(vector) for part, vector in vectors.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"{name}: channels differ: {', '.join(f'{part} has {n}' for part, n in sizes.items())}")
    _require_variance(vectors[names.var], f"{name}: {names.var}")
    count = state.get(names.batches, batches) if names.batches else batches
    if not is_count(count):
        raise ValueError(f"{name}: {names.batches or 'batches'} is {count}, expected a whole number of at least 0")
    channels = len(vectors[names.mean])
    found: dict[str, Array] = {}
    if names.gamma in vectors or names.beta in vectors:
        found["weight"] = vectors.get(names.gamma, np.ones(channels, np.float32))
        found["bias"] = vectors.get(names.beta, np.zeros(channels, np.float32))
    found["running_mean"] = vectors[names.mean]
    found["running_var"] = running_variance(vectors[names.var], name, "minidl", rows, initial)
    return found | {"num_batches_tracked": np.array(int(count), np.int64)}


def state_to(name: str, state: Mapping[str, Any], rows: Rows = None, initial: float = 0.0) -> dict[str, Array]:
    """The state of one of our layers, by a framework's names and in its shapes: the inverse of `state_from`.

    Where the framework always has gamma and beta and our layer does not, they are ones and zeros.

    Raises:
        ValueError: As in `state_from`.
    """
    c = convention(name)
    ours = state_from("minidl", state)
    variance = running_variance(ours.pop("running_var"), "minidl", name, rows, initial)
    if not any(c.switches) and "weight" not in ours:
        ours |= {"weight": np.ones(len(variance), np.float32), "bias": np.zeros(len(variance), np.float32)}
    found = {
        part: vector.reshape(c.shape)
        for part, vector in zip(
            c.names[:4],
            (ours.get("weight"), ours.get("bias"), ours["running_mean"], variance),
            strict=True,
        )
        if vector is not None
    }
    return found | ({c.names.batches: ours["num_batches_tracked"]} if c.names.batches else {})


def _flat(value: Any, what: str) -> Array:
    """A value for each channel, of shape (c,), or as cuDNN's descriptors have it (1, c, 1, 1)."""
    vector = _vector(value, what)
    if vector.ndim != 1 and vector.shape != (1, vector.size, 1, 1):
        raise ValueError(f"{what} has shape {vector.shape}, expected one number for each channel")
    return vector.reshape(-1)


def _require_variance(array: Array, what: str) -> None:
    if (array < 0).any():
        raise ValueError(f"{what} is negative in places; a variance cannot be")


def _vector(value: Any, what: str) -> Array:
    array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{what} has dtype {array.dtype}, expected real numbers")
    array = array.astype(np.float64 if array.dtype == np.float64 else np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{what} holds NaN or infinity")
    return array
