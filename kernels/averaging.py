"""Weight averaging: an exponential moving average of what training visits, updated in place.

    average = average + (1 - decay) * (value - average)

Shapes   average, value: equal shapes, any number of axes. The host function takes lists of such arrays, float32 and
         C-contiguous; its kernels are in kernels/updates.py.
Traffic  reads value and average once and writes average once.
Edges    A NaN or an infinity stays in its own element.
Source   B. Polyak, A. Juditsky, "Acceleration of stochastic approximation by averaging", SIAM J. Control Optim. 30,
         1992, who take the plain mean; the exponential one is that of torch.optim.swa_utils.get_ema_multi_avg_fn and
         timm's ModelEmaV2.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.launch import Array as DeviceArray
from kernels.launch import Runner, techniques
from kernels.updates import average_numbers, require_lists, update_tensors

Array = NDArray[Any]


@np.errstate(invalid="ignore", over="ignore")
def moving_average_reference(average: Array, value: Array, decay: float) -> Array:
    """The next average."""
    return average + (1 - decay) * (value - average)


@techniques("scalar", "vector")
def moving_average(
    run: Runner,
    averages: Sequence[DeviceArray],
    values: Sequence[DeviceArray],
    decay: float,
    *,
    numbers: DeviceArray | None = None,
    technique: str | None = None,
) -> None:
    """Launch on `run`; `numbers`, `average_numbers` in device memory, takes the place of `decay`, as for `sgd`.

    Raises:
        ShapeError: The lists do not fit each other.
        ValueError: `decay` is not from 0 to 1.
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"moving_average: decay is {decay}, expected a number from 0 to 1")
    require_lists("moving_average", {"averages": averages, "values": values})
    update_tensors(run, [averages, values], "average", average_numbers(decay), numbers, technique)
