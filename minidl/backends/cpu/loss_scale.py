"""Loss scaling on the CPU, which stores nothing in 16 bits: for whoever scales a loss all the same."""

from collections.abc import Sequence

import numpy as np

from kernels.loss_scale import settle_loss_scale_reference, unscale_reference
from minidl.backends.cpu.device import CpuDevice


class LossScaleOps(CpuDevice):
    """Loss scaling on the CPU backend; see `Backend` for the operations."""

    def settle_loss_scale(
        self,
        norm: np.ndarray,
        state: np.ndarray,
        factor: np.ndarray,
        numbers: np.ndarray,
        still: np.ndarray,
        interval: int,
    ) -> None:
        settle_loss_scale_reference(norm, state, factor, numbers, still, interval)

    def unscale(self, arrays: Sequence[np.ndarray], factor: np.ndarray) -> None:
        for array in arrays:
            array[...] = unscale_reference(array, factor)
