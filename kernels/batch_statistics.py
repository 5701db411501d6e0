"""What the operations of batch normalization hand to each other; a file of its own, which needs no compiler."""

from typing import Any, NamedTuple


class BatchStatistics(NamedTuple):
    """What normalization needs to know of each channel; four (c,) arrays.

    The mean is kept as the pair shift + delta: `shift` is a number of the dtype near the mean (no more than 4 standard
    deviations away), `delta` the small rest, so that (x - shift) - delta loses nothing where the mean is large beside
    the deviation: at mean 1e4, deviation 1e-2, y is right to 1e-6, where one float32 mean costs 5e-2
    (tests/lab/test_wrong_algorithms.py).
    """

    shift: Any  # arrays of the device at hand: numpy.ndarray here
    delta: Any
    var: Any  # biased: the mean of squared deviations
    inv_std: Any  # 1 / sqrt(var + eps)
