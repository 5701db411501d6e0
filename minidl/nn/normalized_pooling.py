"""Max pooling at the end of a chain of convolutions and normalizations: the last activation is not stored either."""

from minidl.backends import Array, PendingGradient
from minidl.nn.module import Module
from minidl.nn.pending import PendingActivation
from minidl.nn.pooling import MaxPool2d


class NormalizedPooling(Module):
    """The end of a chain. Borrows its layer, and runs it as outside of a chain where what comes is not pending."""

    def __init__(self, pool: MaxPool2d) -> None:
        super().__init__(pool.backend)
        object.__setattr__(self, "pool", pool)  # not registered: it is the Sequential's child already
        self.pool: MaxPool2d
        self._pass = 0  # of the layer: which one the last forward pass was

    def forward(self, x: Array | PendingActivation) -> Array:
        """(n, h, w, c) -> (n, ho, wo, c)."""
        y = self.pool.forward_in_chain(x) if isinstance(x, PendingActivation) else self.pool.forward(x)
        self._pass = self.pool.passes
        return y

    def backward(self, dy: Array) -> Array | PendingGradient:
        """See `Module.backward`; pending where what forward was given was.

        Raises:
            RuntimeError: The layer has run since, elsewhere: in another Sequential, say, that shares it.
        """
        if self._pass != self.pool.passes:
            raise RuntimeError(
                "backward: a max-pool that ends a chain has run last outside of it, as part of another model perhaps; "
                "go back through what ran last, or run both without fusion (minidl.nn.fusion.unfused)"
            )
        return self.pool.backward_in_chain(dy)
