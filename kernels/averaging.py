"""Weight averaging: an exponential moving average of what training visits, updated in place.

    average = average + weight * (value - average)                  weight = 1 - decay

Shapes   average, value: equal shapes, any number of axes. The host function takes lists of such arrays, float32 and
         C-contiguous; its kernels are in kernels/updates.py. weight ().
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

from kernels.choice import vectors
from kernels.errors import require_shape
from kernels.launch import Array as DeviceArray
from kernels.launch import Runner, techniques
from kernels.updates import require_lists, update_tensors

Array = NDArray[Any]


@np.errstate(invalid="ignore", over="ignore")
def moving_average_reference(average: Array, value: Array, weight: Any) -> Array:
    """The next average; `weight`, that of the new value, is 1 - decay."""
    return average + weight * (value - average)


@techniques("scalar", "vector")
def moving_average(
    run: Runner,
    averages: Sequence[DeviceArray],
    values: Sequence[DeviceArray],
    weight: DeviceArray,
    *,
    technique: str | None = None,
) -> None:
    """Launch on `run`. The weight of the new values lies in device memory, where a captured step reads it anew.

    Raises:
        ShapeError: The lists do not fit each other, or `weight` is not ().
        TechniqueError: As for `sgd`.
    """
    require_lists("moving_average", {"averages": averages, "values": values})
    require_shape("moving_average", "weight", weight, ())
    vector = vectors(run, "moving_average", technique, {}, averages=averages, values=values)
    update_tensors(run, [averages, values], "average", weight, vector)
