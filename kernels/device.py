"""Device functions that kernels share.

They are inlined into the kernel that calls them: so each kernel compiles without a driver, and nothing is called at
run time.
"""

from numba import cuda, float32, int64, uint32

WARP = 32


def inlined(function):
    """Make a function callable from kernels, as part of them."""
    return cuda.jit(device=True, inline="always")(function)


def access(function):
    """As `inlined`, for what stands for an access to memory: the emulator reports it at the line that calls it."""
    function.is_access = True
    return inlined(function)


def index_type(size: int):
    """The narrowest type that counts `size` elements and the threads beyond.

    64-bit arithmetic costs several times as much. Numba computes in 64 bits whatever its operands are, so an index is
    cut where it is complete, `i = index(cuda.blockIdx.x * 256 + cuda.threadIdx.x)`; the compiler then narrows what led
    to it.
    """
    return uint32 if size <= 2**31 else int64


@inlined
def positive(value):
    """max(value, 0), and NaN for NaN."""
    return float32(0) if value <= float32(0) else value
