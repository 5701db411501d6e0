"""Loss scaling: what keeps gradients within the range of float16, and leaves a step out where they were not.

The loss's gradient is multiplied by a scale, so that small gradients are not lost below 2^-24, and the parameters'
gradients are divided by it. A scale that is too large makes some of them infinite or NaN, and with them their norm:
then this step changes nothing, and the scale is halved. After `interval` steps without that it is doubled.

    settle    norm finite:  factor = 1 / scale,  steps + 1; where that is `interval`, steps = 0 and scale * 2
              not finite:   factor = 0,  numbers = still,  steps = 0,  scale / 2
    unscale   x = factor * x, but 0 where the factor is

With gradients of 0 and the numbers `still` (kernels/optimizer_numbers.py) an optimizer leaves values and state as they
are. At a scale of 1 a gradient that is not finite is none of the scale's doing: the step is made, and whoever trains
finds out. The scale is at least 1 and at most 2^60.

Shapes   norm, factor (); state (2,): scale and steps; numbers, still (k,); arrays: any number of any shapes. All of it
         float32 in device memory, C-contiguous: the host need not look, and a captured step stays right.
Traffic  unscale reads and writes every array once.
Source   P. Micikevicius et al., "Mixed Precision Training", ICLR 2018, arXiv:1710.03740, section 3.2, with the numbers
         of torch.amp.GradScaler; that one's scale may fall below 1.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import cuda, float32
from numpy.typing import NDArray

from kernels.choice import vectors
from kernels.errors import require_shape
from kernels.launch import Array as DeviceArray
from kernels.launch import Cost, Floats, Int64, Launch, Runner, kernel, techniques
from kernels.updates import update_tensors

Array = NDArray[Any]
BLOCK = 256
LEAST, MOST = 1.0, 2.0**60


def settle_loss_scale_reference(
    norm: Array, state: Array, factor: Array, numbers: Array, still: Array, interval: int
) -> None:
    """In place."""
    scale, steps = state.tolist()
    if math.isfinite(norm) or scale <= LEAST:
        factor[...] = 1 / scale
        grows = steps + 1 >= interval
        state[...] = (min(2 * scale, MOST), 0) if grows else (scale, steps + 1)
    else:
        factor[...] = 0
        numbers[...] = still
        state[...] = max(scale / 2, LEAST), 0


@np.errstate(invalid="ignore", over="ignore")
def unscale_reference(array: Array, factor: Any) -> Array:
    """The array times factor; 0 where that is 0, whatever the array holds."""
    return np.asarray(array * factor if factor != 0 else np.zeros_like(array))


@kernel(
    traffic="norm, state, still -> state, factor, numbers",
    partial="numbers",
    registers=32,
    examples=[()],
)
def settle_loss_scale_of_block() -> Launch:
    """One block: all threads move numbers, one counts when all have read."""

    def settle_loss_scale(
        norm: Floats, state: Floats, factor: Floats, numbers: Floats, still: Floats, k: Int64, interval: Int64
    ):
        scale, steps = state[0], state[1]
        fits = norm[0] < float32(math.inf) or scale <= float32(LEAST)  # a NaN is not less
        if not fits:
            for i in range(cuda.threadIdx.x, k, BLOCK):
                numbers[i] = still[i]
        cuda.syncthreads()
        if cuda.threadIdx.x == 0:
            if fits:
                grows = steps + float32(1) >= float32(interval)
                factor[0] = float32(1) / scale
                state[0] = min(float32(2) * scale, float32(MOST)) if grows else scale
                state[1] = float32(0) if grows else steps + float32(1)
            else:
                factor[0] = float32(0)
                state[0] = max(float32(0.5) * scale, float32(LEAST))
                state[1] = float32(0)

    return Launch(settle_loss_scale, BLOCK, lambda: 1, lambda k: Cost(4 * k + 12, 4 * k + 12))


def settle_loss_scale(
    run: Runner,
    norm: DeviceArray,
    state: DeviceArray,
    factor: DeviceArray,
    numbers: DeviceArray,
    still: DeviceArray,
    interval: int,
) -> None:
    """Launch on `run`. `interval`, the steps after which the scale grows, is the same throughout a run.

    Raises:
        ShapeError: An array's shape is not as above.
        ValueError: `interval` is not from 1 to 2^24, beyond which float32 does not count.
    """
    if not 1 <= interval <= 1 << 24:
        raise ValueError(f"settle_loss_scale: interval is {interval}, expected 1 to 2^24 steps")
    require_shape("settle_loss_scale", "norm", norm, ())
    require_shape("settle_loss_scale", "factor", factor, ())
    require_shape("settle_loss_scale", "state", state, (2,))
    require_shape("settle_loss_scale", "still", still, tuple(numbers.shape))
    run(settle_loss_scale_of_block(), norm, state, factor, numbers, still, numbers.size, interval)


@techniques("scalar", "vector")
def unscale(run: Runner, arrays: Sequence[DeviceArray], factor: DeviceArray, *, technique: str | None = None) -> None:
    """Launch on `run`, once for all arrays. Raises ShapeError unless factor is ().

    The vector technique takes arrays that start at multiples of 16 bytes; asked for others it raises TechniqueError.
    """
    require_shape("unscale", "factor", factor, ())
    vector = vectors(run, "unscale", technique, {}, arrays=arrays)
    update_tensors(run, [arrays], "unscale", factor, vector)
