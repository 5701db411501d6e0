"""Targets of a classification: what is a class and what is not."""

import numpy as np
from numpy.typing import NDArray


def check_targets(targets: NDArray[np.int64], classes: int, ignore_index: int) -> None:
    """Raise IndexError, naming the first bad row, unless each target is in [0, classes) or is `ignore_index`."""
    bad = (targets != ignore_index) & ((targets < 0) | (targets >= classes))
    if bad.any():
        row = int(bad.argmax())
        raise no_class(int(targets[row]), row, classes, ignore_index)


def no_class(target: int, row: int, classes: int, ignore_index: int) -> IndexError:
    """The error that says so."""
    return IndexError(
        f"cross_entropy: target {target} in row {row} is not one of the {classes} classes; "
        f"give 0 to {classes - 1}, or {ignore_index} to ignore the row"
    )
