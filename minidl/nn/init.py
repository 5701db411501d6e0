"""Random initial values, drawn on the host so that a seed means the same weights on every device."""

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from minidl.nn.module import Parameter

_generator = np.random.default_rng()
_of_noise = np.random.default_rng()


def manual_seed(seed: int) -> None:
    """Make the initial weights of the layers created from here on, and their dropout masks, a function of `seed`."""
    global _generator, _of_noise  # one generator for all layers, like torch.manual_seed
    _generator, _of_noise = np.random.default_rng(seed), np.random.default_rng([seed, 1])


def uniform(shape: tuple[int, ...], bound: float) -> np.ndarray:
    """Float32 values, uniform in [-bound, bound)."""
    return _generator.uniform(-bound, bound, shape).astype(np.float32)


def uniform_by_fan_in(shape: tuple[int, ...], fan_in: int) -> np.ndarray:
    """Uniform in ±1/sqrt(fan_in): PyTorch's default for weights and biases of Linear and Conv2d.

    That is He et al. 2015 (arXiv:1502.01852) "Kaiming uniform" with the leaky slope a = sqrt(5).
    """
    return uniform(shape, 1 / math.sqrt(max(1, fan_in)))


def normal(shape: tuple[int, ...], std: float) -> np.ndarray:
    """Float32 values, normal with mean 0 and deviation `std`."""
    return (std * _generator.standard_normal(shape)).astype(np.float32)


def kaiming_normal(parameter: "Parameter", fan: int) -> None:
    """Draw a parameter's value anew, in PyTorch's layout: normal with deviation sqrt(2 / fan).

    He et al. 2015 (arXiv:1502.01852), for layers that ReLU follows.
    """
    parameter.load(normal(parameter.state_shape(), math.sqrt(2 / max(1, fan))))


def seed_for_layer() -> int:
    """A 64-bit seed for a layer that draws random numbers itself."""
    return int(_generator.integers(0, 2**64, dtype=np.uint64))


def seed_for_noise() -> int:
    """The same, from a generator apart: a layer that takes it leaves the weights of all others as they are."""
    return int(_of_noise.integers(0, 2**64, dtype=np.uint64))
