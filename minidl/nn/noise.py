"""Noisy batch normalization, for the study of why batch normalization helps (Santurkar et al. 2018, arXiv:1805.11604).

If it helped by keeping the distribution of activations still, noise of another mean and scale in every step would undo
that.
"""

import math

from minidl.backends import Array, Backend
from minidl.nn.arguments import real_number
from minidl.nn.batchnorm import BatchNorm
from minidl.nn.counts import Count
from minidl.nn.init import seed_for_noise


class NoisyBatchNorm(BatchNorm):
    """What NoisyBatchNorm1d and NoisyBatchNorm2d share; they differ in the shapes they take.

    Batch normalization, and in training y = s x + m after it: in every step each channel draws sigma ~ U(1, scale) and
    mu ~ U(-offset, offset), and then each of its elements s ~ U(sigma - jitter, sigma + jitter) and m ~ U(mu - jitter,
    mu + jitter). The defaults are the paper's (appendix A). Running statistics are those of the input, as always: noise
    is in nothing but the output.

    Args:
        num_features: Channels.
        eps: As in BatchNorm.
        momentum: As in BatchNorm.
        affine: As in BatchNorm.
        track_running_stats: As in BatchNorm.
        offset: Of the noise, at least 0.
        scale: Of the noise, at least 1.
        jitter: Of the noise, at least 0.
        device: Where it computes; the CPU unless given.

    Attributes:
        seed: Drawn when the layer is made (see `manual_seed`), without an effect on what other layers draw: so a
            network with noise starts with the weights of the one without.
        calls: Forward passes in training so far; a run that continues another sets it.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        offset: float = 0.5,
        scale: float = 1.25,
        jitter: float = 0.1,
        device: str | Backend | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device)
        for name, value, least in (("offset", offset, 0), ("scale", scale, 1), ("jitter", jitter, 0)):
            if not least <= real_number(self, name, value) < math.inf:
                raise ValueError(f"{type(self).__name__}: {name} must be at least {least} and finite, got {value}")
        self.offset, self.scale, self.jitter = offset, scale, jitter
        self.seed, self._count = seed_for_noise(), Count()
        self._call: Array | None = None  # of the last forward pass; None where it had no noise

    @property
    def calls(self) -> int:
        """See the class."""
        return self._count.value

    @calls.setter
    def calls(self, calls: int) -> None:
        self._count.value = calls

    def forward(self, x: Array) -> Array:
        """Normalize x, and in training add the noise; the output has its shape. Raises as BatchNorm does."""
        y = super().forward(x)
        self._call = None
        if self.training:
            noise = self.offset, self.scale, self.jitter
            self._call = self._count.draw(self.backend)
            self.backend.noise_forward(y, y, *noise, self.seed, 0, self._call)
        return y

    def backward(self, dy: Array) -> Array:
        """See `Module.backward`."""
        x, parts, of_batch, relu = self.kept()
        dy = self.accept_gradient(dy, x.shape)
        if self._call is not None:
            noisy, dy = dy, self.backend.empty(x.shape, dy.dtype)
            self.backend.noise_backward(noisy, dy, self.scale, self.jitter, self.seed, 0, self._call)
        return self._back(x, parts, of_batch, relu, dy)

    def extra_repr(self) -> str:
        """The arguments, as BatchNorm prints them."""
        return f"{super().extra_repr()}, offset={self.offset}, scale={self.scale}, jitter={self.jitter}"


class NoisyBatchNorm1d(NoisyBatchNorm):
    """Noisy batch normalization of (n, c), or of (n, length, c) with channels last."""

    forms = ("n c", "n l c")


class NoisyBatchNorm2d(NoisyBatchNorm):
    """Noisy batch normalization of (n, h, w, c) over n, h and w."""

    forms = ("n h w c",)
