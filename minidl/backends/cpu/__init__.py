"""The CPU backend: float32, channels last; Numba for what moves data, BLAS for matrix products.

An implementation of its own, written to be fast; it is not the emulator of the GPU kernels.
"""

from minidl.backends.cpu.convolution_normalized import NormalizedConvolutionOps
from minidl.backends.cpu.gradient_norm import GradientNormOps
from minidl.backends.cpu.group_norm import GroupNormOps
from minidl.backends.cpu.images import ImageOps
from minidl.backends.cpu.linear import LinearOps
from minidl.backends.cpu.loss import LossOps
from minidl.backends.cpu.noise import NoiseOps
from minidl.backends.cpu.optimizer import OptimizerOps
from minidl.backends.cpu.pooling_normalized import NormalizedPoolingOps
from minidl.backends.cpu.scale import ScaleOps
from minidl.backends.cpu.steps import StepOps
from minidl.backends.host import HostLossScale


class CpuBackend(
    GradientNormOps,
    GroupNormOps,
    ImageOps,
    LinearOps,
    LossOps,
    HostLossScale,
    NoiseOps,
    NormalizedConvolutionOps,
    NormalizedPoolingOps,
    OptimizerOps,
    ScaleOps,
    StepOps,
):
    """`Backend` on the CPU; each base holds one group of operations."""


__all__ = ["CpuBackend"]
