"""What the kernels of average pooling share: how many elements of a window count."""

from typing import Any

from numba import float32

from kernels.device import inlined
from kernels.pooling.geometry import Geometry


def divisor_of(geometry: Geometry, count_include_pad: bool) -> Any:
    """A device function: by how much the sum of a window is divided."""
    height, width, _, (kh, kw), (sh, sw), (ph, pw), _, _ = geometry
    constant = count_include_pad or (ph == 0 and pw == 0)
    within = geometry.beyond == (0, 0)  # what lies beyond the padding never counts
    taps = kh * kw
    edge_down, edge_across = (ph, pw) if count_include_pad else (0, 0)  # that counts, around the image

    @inlined
    def counted(window, stride, padding, taps, size, edge):
        first = window * stride - padding
        return min(first + taps, size + edge) - max(first, -edge)

    @inlined
    def divisor(window_row, window_column):
        if constant and within:
            return float32(taps)
        return float32(
            counted(window_row, sh, ph, kh, height, edge_down) * counted(window_column, sw, pw, kw, width, edge_across)
        )

    return divisor
