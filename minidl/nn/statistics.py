"""Re-estimated running statistics: those of a whole data set under the weights as they are now.

The running estimates of training lag behind the weights, and remember some batches more than others. Once training is
over (or after averaging weights, which no estimate belongs to) they can be computed anew. Two ways:

    precise      mean and unbiased variance over all rows of all batches together, whatever their sizes: the moments of
                 each are merged in float64 (T. Chan, G. Golub, R. LeVeque, "Algorithms for computing the sample
                 variance", 1983). fvcore's `update_bn_stats` does this by the difference E[x²] - E[x]², and biased
                 (Y. Wu, J. Johnson, "Rethinking 'Batch' in BatchNorm", 2021, arXiv:2105.07576, section 3).
    cumulative   the mean over the batches of their means and unbiased variances, each batch counting alike: PyTorch's
                 `swa_utils.update_bn` (momentum = None), algorithm 2 of arXiv:1502.03167, and fvcore before 2021. What
                 the batches' means differ by is missing from the variance.

All layers are estimated in one pass, each under batch statistics in the layers before it, as with both of those. So
prefer large batches: the layers before a layer then behave as in evaluation. (PyTorch's runs the whole model in
training mode, dropout included; fvcore's in the modes that it finds it in.)
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from minidl.backends import Array, Backend
from minidl.nn.batchnorm import BatchNorm, Part
from minidl.nn.module import Module, inference

Method = Literal["precise", "cumulative"]
METHODS = ("precise", "cumulative")
Vector = NDArray[np.float64]


class _Moments:
    """What one layer has seen so far."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.rows = self.batches = 0
        self.mean: Vector = np.zeros(())
        self.square: Vector = np.zeros(())  # the sum of squared deviations from the mean
        self.mean_of_means: Vector = np.zeros(())
        self.mean_of_variances: Vector = np.zeros(())  # unbiased ones

    @np.errstate(invalid="ignore", over="ignore")  # NaN and infinity are values here
    def see(self, parts: Sequence[Part], rows: int) -> None:
        """The parts of a batch, of so many rows each."""
        for _, statistics in parts:
            shift, delta, var = (
                self.backend.numpy(array).astype(np.float64)
                for array in (statistics.shift, statistics.delta, statistics.var)
            )
            mean, total = shift + delta, self.rows + rows
            distance = mean - self.mean
            self.mean = self.mean + distance * (rows / total)
            self.square = self.square + var * rows + distance**2 * (self.rows * rows / total)
            self.rows, self.batches = total, self.batches + 1
            self.mean_of_means = self.mean_of_means + (mean - self.mean_of_means) / self.batches
            unbiased = var * (rows / (rows - 1))
            self.mean_of_variances = self.mean_of_variances + (unbiased - self.mean_of_variances) / self.batches

    def estimates(self, method: Method) -> tuple[Vector, Vector]:
        """The mean and the unbiased variance."""
        if method == "precise":
            return self.mean, self.square / (self.rows - 1)
        return self.mean_of_means, self.mean_of_variances


def reestimate_statistics(
    model: Module, batches: Iterable[Array | Sequence[Array]], method: Method = "precise"
) -> list[str]:
    """Compute the running statistics of all batch normalization layers anew, with the weights as they are.

    Meanwhile all else is as in evaluation: dropout and noise, which evaluation will not see, are off, and ghost batches
    are whole ones. Layers without running statistics, and those whose statistics are frozen, go on as they are. After
    it num_batches_tracked is the number of batches, as after PyTorch's `update_bn`; everything else is as it was.

    Args:
        model: With any layers. A NaN or an infinity in a batch becomes one in the statistics of its channel.
        batches: Inputs of the model, on its device, or tuples whose first element is one, such as `ImageSource.batch`
            gives. Without the augmentation of training, if there is any. It is not looked at if there is nothing to do.
        method: "precise" or "cumulative"; see above.

    Returns:
        The names of the layers whose statistics were computed. One that no batch went through keeps its own.

    Raises:
        ValueError: There is no such method; there is no batch, or none with rows; or a batch has one value for each
            channel of a layer. Nothing is changed, here or if `batches` raises.
    """
    if method not in METHODS:
        raise ValueError(f"reestimate_statistics: method is '{method}', expected one of {', '.join(METHODS)}")
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, BatchNorm) and layer.track_running_stats and not layer.statistics_frozen
    }
    if not layers:
        return []
    moments = {name: _Moments(layer.backend) for name, layer in layers.items()}
    modes = [(module, module.training) for _, module in model.named_modules()]
    try:
        model.eval()
        for name, layer in layers.items():
            layer.observer = moments[name].see
        with inference():
            for batch in batches:
                model.forward(_input(batch))
    finally:
        for layer in layers.values():
            layer.observer = None
        for module, training in modes:
            module.training = training
    seen = {name: layer for name, layer in layers.items() if moments[name].batches}
    if not seen:
        raise ValueError("reestimate_statistics: batches has no batch with images; give at least one")
    for name, layer in seen.items():
        backend = layer.backend
        with np.errstate(over="ignore"):  # where float32 ends
            mean, variance = (backend.array(estimate) for estimate in moments[name].estimates(method))
        backend.copy(mean, layer.running_mean)
        backend.copy(variance, layer.running_var)
        layer.num_batches_tracked = moments[name].batches
    return list(seen)


def _input(batch: Any) -> Array:
    return batch[0] if isinstance(batch, tuple | list) else batch
