"""The weights of a layer with batch normalization folded in.

    behind a layer    W' = W s       b' = beta + (b - running_mean) s             s = gamma / sqrt(running_var + eps)
    before a layer    W' = W s       b' = b + sum of W t over a window            t = beta - running_mean s

computed in float64 and rounded once. s is that of each output channel behind the layer, of each input channel before
it. (The first row is what PyTorch's `torch.nn.utils.fuse_conv_bn_eval` does.)

Rounding. Where the mean of W x is far from 0, the folded layer adds two numbers as large as s |running_mean|, s W x and
b', to a y that is no larger than gamma or so. In float32 that puts y off by up to 2^-23 s |running_mean|, and one layer
cannot mend it. The largest errors of y against float64, of a linear layer on the CPU, mean 1e4, deviation 1e-2:

    W x exact in float32 (W the identity)     apart 4e-7    folded 0.14
    W x a sum of 16 products                  apart 0.64    folded 0.64     rounding W x costs as much
    the mean is that of the bias              apart 0.07    folded 8e-7     b - running_mean is taken in float64

With means that are no larger than deviations the two round alike.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minidl.nn.batchnorm import BatchNorm
from minidl.nn.linear import Conv2d, Linear
from minidl.nn.module import Parameter

Vector = NDArray[np.float64]


@dataclass
class FoldedWeights:
    """Weights of a layer in float64 that take in normalization.

    Attributes:
        w: (taps, in, out); the taps of a linear layer are one.
        b: (out,), zeros where the layer has no bias.
    """

    w: Vector
    b: Vector

    @classmethod
    def of(cls, layer: Conv2d | Linear) -> "FoldedWeights":
        """Those of `layer` itself."""
        host = layer.backend.numpy
        w = np.asarray(host(layer.weight.value), np.float64)
        w = w.reshape(-1, *w.shape[2:]) if isinstance(layer, Conv2d) else w.T[None]
        bias = np.zeros(w.shape[2]) if layer.bias is None else host(layer.bias.value)
        return cls(w, np.asarray(bias, np.float64))

    def behind(self, norm: BatchNorm) -> None:
        """Take in normalization of the output."""
        mean, s, beta = _numbers(norm)
        self.w, self.b = self.w * s, beta + (self.b - mean) * s

    def before(self, norm: BatchNorm) -> None:
        """Take in normalization of the input, of whose channels each is one input or, behind Flatten, several."""
        mean, s, beta = (np.repeat(v, self.w.shape[1] // norm.num_features) for v in _numbers(norm))
        self.b = self.b + np.einsum("kio,i->o", self.w, beta - mean * s)
        self.w = self.w * s[:, None]

    def put_into(self, layer: Conv2d | Linear) -> None:
        """Give `layer` parameters of its own with these values, rounded once."""
        w = self.w.reshape(layer.weight.shape) if isinstance(layer, Conv2d) else self.w[0].T
        weight, bias = layer.weight, layer.bias
        layer.weight = Parameter(layer.backend, w, decay=weight.decay, axes=weight.axes)
        layer.weight.trainable = weight.trainable
        layer.bias = Parameter(layer.backend, self.b, decay=False)
        layer.bias.trainable = bias is None or bias.trainable


def _numbers(norm: BatchNorm) -> tuple[Vector, Vector, Vector]:
    """(running mean, s, beta)."""
    host = norm.backend.numpy
    mean, var = (np.asarray(host(buffer), np.float64) for buffer in (norm.running_mean, norm.running_var))
    s, beta = 1 / np.sqrt(var + norm.eps), np.zeros_like(mean)
    if norm.weight is not None and norm.bias is not None:
        s, beta = host(norm.weight.value) * s, beta + host(norm.bias.value)
    return mean, s, beta
