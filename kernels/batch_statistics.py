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


class Normalization(NamedTuple):
    """How a convolution's output x becomes an activation, wherever that is done.

    y = ((x - shift) - delta) * inv_std * gamma + beta, and max(y, 0) where `relu`.
    """

    statistics: BatchStatistics
    gamma: Any  # (c,), or both None
    beta: Any
    relu: bool


class GradientSums(NamedTuple):
    """What backward of a normalization finds of each channel in a first pass; (c,) arrays, dgamma and dbeta or None.

    With g the gradient of y (dy where a ReLU passed it) and centred = (x - shift) - delta: dbeta = sum g, dgamma =
    inv_std * sum(g * centred), mean_g = dbeta / rows, slope = inv_std * dgamma / rows.
    """

    dgamma: Any
    dbeta: Any
    mean_g: Any
    slope: Any


class PendingGradient(NamedTuple):
    """The gradient dx of a normalization's input x, as what it is worked out from wherever it is read.

    dx = inv_std * gamma * ((g - mean_g) - centred * slope), of g and centred as in `GradientSums`.
    """

    dy: Any  # of the normalization's output, behind the ReLU if it has one; (n, h, w, c) like x
    x: Any  # what was normalized
    normalization: Normalization
    sums: GradientSums
