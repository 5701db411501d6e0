"""What the kernels of max pooling share: which element is the maximum of its window."""

from kernels.device import inlined

LOWEST = float("-inf")


@inlined
def wins(value, best):
    """Whether value takes the place of the best so far: the first of equals stays, but the last NaN comes through."""
    return value > best or value != value


@inlined
def first_real(start, dilation):
    """Of the taps of a window that starts there, the first that is no padding."""
    return start % dilation if start < 0 else start
