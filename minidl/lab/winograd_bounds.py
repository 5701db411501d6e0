"""How far off a convolution by Winograd's F(2x2, 3x3) may be.

What is multiplied are sums of what a tile holds, and of the weights, and the results are sums of the products. So what
is lost is in proportion to the same sums of absolute values, which are those of a whole tile: for numbers of one size
some seven times as much as a window's own, and far more where a number beside the window is large. Each number goes
through a few roundings of the transforms and through those of one float32 accumulator over the channels, where the
definition has one over channels and taps.

Source  as of minidl/backends/cpu/winograd.py; N. Higham, "Accuracy and stability of numerical algorithms", 2nd ed.,
        SIAM 2002, section 3.1.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from minidl.lab.budget import TINY, rounding

Host = NDArray[Any]
Pair = tuple[int, int]

# The absolute values of the matrices.
_B = np.array([[1, 0, 0, 0], [0, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 1]], np.float64)
_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [0, 0, 1]], np.float64)
_A = np.array([[1, 0], [1, 1], [1, 1], [0, 1]], np.float64)
TRANSFORMS = 10  # roundings of an input, a weight and an output: two, four and four


def forward(x: Host, w: Host, padding: Pair) -> Host:
    """Of y, from the absolute values of x (n, h, w, c_in) and of w (3, 3, c_in, c_out)."""
    n, height, width, c = x.shape
    size = height + 2 * padding[0] - 2, width + 2 * padding[1] - 2
    taken = _both(_B.T, _tiles(x, size, padding, 4), (3, 4))
    weights = _both(_G, w, (0, 1))
    made = np.einsum("nijrsc,rscd->nijrsd", taken, weights, optimize=True)
    # Of a product half of TINY is lost, of a weight that is halved twice another, for each number that it meets.
    underflow = (taken + 1).sum(axis=-1, keepdims=True) * 2 * TINY
    lost = rounding(c + 1 + TRANSFORMS) * made + underflow * (made > 0)
    y = _both(_A.T, lost, (3, 4)).transpose(0, 1, 3, 2, 4, 5)
    _, rows, _, columns, _, c_out = y.shape
    return y.reshape(n, 2 * rows, 2 * columns, c_out)[:, : size[0], : size[1]]


def backward_input(dy: Host, w: Host, padding: Pair) -> Host:
    """Of dx, which is `forward` of dy with the weights turned round."""
    return forward(dy, w[::-1, ::-1].transpose(0, 1, 3, 2), (2 - padding[0], 2 - padding[1]))


def backward_weight(x: Host, dy: Host, padding: Pair) -> Host:
    """Of dw, from the absolute values of x (n, h, w, c_in) and of dy (n, ho, wo, c_out)."""
    size = dy.shape[1:3]
    taken = _both(_B.T, _tiles(x, size, padding, 4), (3, 4))
    gradients = _both(_A, _tiles(dy, size, (0, 0), 2), (3, 4))
    made = np.einsum("nijrsc,nijrsd->rscd", taken, gradients, optimize=True)
    terms = int(np.prod(taken.shape[:3]))
    lost = rounding(terms + TRANSFORMS) * made + 2 * TINY * (terms + 1) * (made > 0)
    return _both(_G.T, lost, (0, 1))


def _tiles(x: Host, size: Pair, padding: Pair, side: int) -> Host:
    """(n, lines, columns, side, side, c): what each tile of 2x2 of `size` outputs reads, zeros beyond x."""
    n, height, width, c = x.shape
    lines, columns = -(-size[0] // 2), -(-size[1] // 2)
    tiles = np.zeros((n, lines, columns, side, side, c))
    for i in range(lines):
        for j in range(columns):
            top, left = 2 * i - padding[0], 2 * j - padding[1]
            t, u = max(top, 0), max(left, 0)
            part = x[:, t : max(min(top + side, height), t), u : max(min(left + side, width), u)]
            tiles[:, i, j, t - top :, u - left :][:, : part.shape[1], : part.shape[2]] = part
    return tiles


def _both(matrix: Host, array: Host, axes: Pair) -> Host:
    """`matrix` times the array along both axes."""
    for axis in axes:
        array = np.moveaxis(np.tensordot(matrix, array, (1, axis)), 0, axis)
    return array
