"""Checks of what operations beside a normalization are given of it."""

from kernels.batch_statistics import Normalization
from kernels.errors import require_shape
from kernels.launch import Array


def check_normalization(operation: str, argument: str, normalization: Normalization | None, channels: int) -> None:
    """Raise ShapeError unless its arrays are (channels,), TypeError where only one of gamma and beta is given."""
    if normalization is None:
        return
    gamma, beta = normalization.gamma, normalization.beta
    if (gamma is None) != (beta is None):
        raise TypeError(f"{operation}: gamma and beta of {argument} are given together or not at all")
    arrays = {**normalization.statistics._asdict(), "gamma": gamma, "beta": beta}
    check_channels(operation, channels, **{f"{argument}.{name}": array for name, array in arrays.items()})


def check_channels(operation: str, channels: int, **arrays: Array | None) -> None:
    """Raise ShapeError unless all arrays but None are (channels,)."""
    for name, array in arrays.items():
        if array is not None:
            require_shape(operation, name, array, (channels,))
