"""What tests of the emulator share: a kernel run as one block of n threads, for what it writes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.emulator import emulate

Array = NDArray[Any]


def run(kernel: Any, n: int, *given: Any, dtype: Any = np.int64, **options: Any) -> Array:
    y = np.zeros(n, dtype)
    emulate(kernel, 1, n, y, *given, **options)
    return y
