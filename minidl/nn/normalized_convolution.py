"""Convolution, batch normalization and ReLU as a step of a chain in which no activation is stored.

    forward    the convolution reads the output of the one before it and normalizes that as it loads; beside its own
               output it gives the statistics of that, and both are handed on: a `PendingActivation`
    backward   it reads what the gradient of its output is made of (`PendingGradient`) and works that out as it loads;
               beside the gradient of what was handed to it, it gives the sums that backward of that needs

At a chain's end the last normalization is applied, so that what follows reads a plain activation.
"""

from minidl.backends import Array, PendingGradient
from minidl.nn.batchnorm import BatchNorm
from minidl.nn.linear import Conv2d
from minidl.nn.module import Module
from minidl.nn.pending import PendingActivation


class NormalizedConvolution(Module):
    """One step of a chain. Borrows its layers: parameters and buffers stay there, under their names.

    In each pass it decides what can be done so: not in evaluation, with frozen statistics, while an observer watches,
    for less than two values a channel or if the convolution has been given a bias. Then the layers run as they do
    outside of a chain, and read and give plain arrays.

    Args:
        convolution: Without a bias.
        batchnorm: Of its output.
        relu: Whether ReLU follows.
        fused: Whether the device's fused operations take this convolution; where not, statistics are found by
            themselves, and the gradient is written out for it.
        hands_on: Whether the next step takes a `PendingActivation`.
        joined: Whether that is the end of a residual block, which does the normalization.
    """

    def __init__(
        self, convolution: Conv2d, batchnorm: BatchNorm, relu: bool, *, fused: bool, hands_on: bool, joined: bool
    ) -> None:
        super().__init__(convolution.backend)
        for name, layer in (("convolution", convolution), ("batchnorm", batchnorm)):
            object.__setattr__(self, name, layer)  # not registered: it is the Sequential's child already
        self.convolution: Conv2d
        self.batchnorm: BatchNorm
        self.relu, self.fused, self.hands_on, self.joined = relu, fused, hands_on, joined
        self._in_parts = False  # as the last forward pass was
        self._pass = 0  # of the convolution: which one that was

    def forward(self, x: Array | PendingActivation) -> Array | PendingActivation:
        """What its layers make of x, pending if the next step takes it so."""
        y = self._forward(x)
        self._pass = self.convolution.passes
        return y

    def _forward(self, x: Array | PendingActivation) -> Array | PendingActivation:
        convolution, batchnorm = self.convolution, self.batchnorm
        shape = convolution.output_shape(x.shape)
        self._in_parts = convolution.bias is None and batchnorm.goes_in_parts(shape)
        if not self._in_parts:
            y = convolution.forward(_plain(x))
            return y if self.joined else batchnorm.normalize(y, self.relu)
        if self.fused:
            statistics = batchnorm.empty_statistics()
            y = convolution.forward_in_chain(x, batchnorm.eps, statistics)
        else:
            y = convolution.forward(_plain(x))
            statistics = batchnorm.find_statistics(y)
        pending = PendingActivation(y, batchnorm.normalization(statistics, self.relu), batchnorm)
        if not self.joined:
            batchnorm.take_statistics(pending)
        return pending if self.hands_on else pending.written()

    def output_of_convolution(self, y: Array | PendingActivation) -> Array:
        """What the last forward pass, which gave `y`, has normalized or left to be; not within `inference`."""
        if isinstance(y, PendingActivation):
            return y.x
        return y if self.joined else self.batchnorm.kept()[0]

    def backward(self, dy: Array | PendingGradient) -> Array | PendingGradient:
        """See `Module.backward`; pending where what forward was given was.

        Raises:
            RuntimeError: Its layers have run since, elsewhere: in another Sequential, say, that shares them.
        """
        if self._pass != self.convolution.passes:
            raise RuntimeError(
                "backward: layers of this chain have run last outside of it, as part of another model perhaps; go back "
                "through what ran last, or run both without fusion (minidl.nn.fusion.unfused)"
            )
        if not self._in_parts:
            return self.convolution.backward(dy if self.joined else self.batchnorm.backward(dy))
        pending = self.batchnorm.take_gradient(dy)
        if self.fused:
            return self.convolution.backward_in_chain(pending)
        return self.convolution.backward(self.batchnorm.write_gradient(pending))


def _plain(x: Array | PendingActivation) -> Array:
    return x.written() if isinstance(x, PendingActivation) else x
