"""Noise after batch normalization on the CPU; see kernels/noise.py."""

import numpy as np

from kernels.noise import require_noise
from kernels.random import philox4x32, seed_words, uniform_reference
from minidl.backends.cpu.compile import compiled, inlined
from minidl.backends.cpu.device import CpuDevice

GRAIN = 1 << 14  # blocks of four elements in a piece of work

_philox = inlined(philox4x32)


@inlined
def _centred(word):
    """From a word a number in [-1, 1); exact."""
    return np.float32(word >> 8) * np.float32(2**-23) - np.float32(1)


@compiled
def _forward(first, last, x, y, factors, terms, jitter, stream, call, seed_low, seed_high):
    """Blocks first to last of four elements, two blocks of random words each."""
    channels = factors.size
    for block in range(first, last):
        low, high = block & 0xFFFFFFFF, block >> 32
        of_factor = _philox(low, high, call, stream + 2, seed_low, seed_high)
        of_term = _philox(low, high, call, stream + 3, seed_low, seed_high)
        for lane in range(min(4, x.size - 4 * block)):
            i = 4 * block + lane
            c = i % channels
            factor = factors[c] + jitter * _centred(of_factor[lane])
            y[i] = factor * x[i] + (terms[c] + jitter * _centred(of_term[lane]))


@compiled
def _backward(first, last, dy, dx, factors, jitter, stream, call, seed_low, seed_high):
    """The same with the factors alone."""
    channels = factors.size
    for block in range(first, last):
        words = _philox(block & 0xFFFFFFFF, block >> 32, call, stream + 2, seed_low, seed_high)
        for lane in range(min(4, dy.size - 4 * block)):
            i = 4 * block + lane
            dx[i] = (factors[i % channels] + jitter * _centred(words[lane])) * dy[i]


class NoiseOps(CpuDevice):
    """The noise part of the CPU backend; see `Backend` for the operations."""

    def noise_forward(
        self,
        x: np.ndarray,
        y: np.ndarray,
        offset: float,
        scale: float,
        jitter: float,
        seed: int,
        stream: int,
        call: np.ndarray,
    ) -> None:
        require_noise(offset, scale, jitter)
        now = int(call)
        factors = _of_channels(x.shape[-1], scale, seed, stream, now)
        centres = 2 * uniform_reference(x.shape[-1], seed, stream + 1, now) - 1
        terms = (offset * centres).astype(np.float32)
        given = x.reshape(-1), y.reshape(-1), factors, terms, np.float32(jitter), stream, now, *seed_words(seed)
        self.workers.run(_forward, -(-x.size // 4), GRAIN, *given)

    def noise_backward(
        self, dy: np.ndarray, dx: np.ndarray, scale: float, jitter: float, seed: int, stream: int, call: np.ndarray
    ) -> None:
        require_noise(0, scale, jitter)
        now = int(call)
        factors = _of_channels(dy.shape[-1], scale, seed, stream, now)
        given = dy.reshape(-1), dx.reshape(-1), factors, np.float32(jitter), stream, now, *seed_words(seed)
        self.workers.run(_backward, -(-dy.size // 4), GRAIN, *given)


def _of_channels(channels: int, scale: float, seed: int, stream: int, call: int) -> np.ndarray:
    """The factor that each channel draws."""
    return (1 + (scale - 1) * uniform_reference(channels, seed, stream, call)).astype(np.float32)
