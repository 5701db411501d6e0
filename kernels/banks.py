"""How a layout of shared memory meets its banks, found out where a kernel is made: no GPU and no emulator is asked.

Shared memory has 32 banks of 4 bytes, and serves each one word at a time: lanes of a warp that want different words of
one bank wait for each other (NVIDIA, "CUDA C++ Programming Guide", Compute Capability 5.x).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.device import WARP

BANKS = 32


def passes(words: NDArray[Any], words_each: int = 1) -> int:
    """Over the banks, that warps take whose threads, one after the other, access these words of 4 bytes.

    With 4 words for each access, of 16 bytes, `words` are numbers of such fours; a quarter of a warp is served at once.
    """
    lanes, banks = WARP // words_each, BANKS // words_each
    part, word = np.divmod(np.unique(np.arange(len(words)) // lanes << 32 | words), 1 << 32)
    load = np.bincount(part * banks + word % banks, minlength=banks * (int(part[-1]) + 1))
    return int(load.reshape(-1, banks).max(axis=1).sum())
