"""The operations that are timed, each as minidl does it and as PyTorch does."""

from collections.abc import Callable

import numpy as np

from minidl.lab.bench.operations.convolution import convolution, linear
from minidl.lab.bench.operations.layers import cross_entropy, global_average, max_pool, relu
from minidl.lab.bench.operations.normalization import batchnorm
from minidl.lab.bench.operations.optimizers import optimizer
from minidl.lab.bench.operations.problem import Answers, Arrays, Call, Input, Problem, Role
from minidl.lab.bench.shapes import Shape

_FAMILIES: dict[str, Callable[[str, Shape, np.random.Generator], Problem]] = {
    "conv2d": convolution,
    "batchnorm": batchnorm,
    "relu": relu,
    "max_pool2d": max_pool,
    "global_avg_pool2d": global_average,
    "linear": linear,
    "cross_entropy": cross_entropy,
    "optimizer": optimizer,
}


def problem(operation: str, shape: Shape, seed: int = 0) -> Problem:
    """An operation on a shape of its family, with inputs that are the same for the same seed."""
    return _FAMILIES[shape.family](operation, shape, np.random.default_rng(seed))


__all__ = ["Answers", "Arrays", "Call", "Input", "Problem", "Role", "problem"]
