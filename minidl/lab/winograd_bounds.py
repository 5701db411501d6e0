"""How far off a convolution by Winograd's F(4x4, 3x3) may be.

What is multiplied are sums of what a tile holds, and of the weights, and the results are sums of the products. So what
is lost is in proportion to the same sums of absolute values, which are those of a whole tile: for numbers of one size
a good many times as much as a window's own, and far more where a number beside the window is large. Each number goes
through a few roundings of the transforms and through those of one float32 accumulator over the channels, where the
definition has one over channels and taps.

Source  as of minidl/backends/cpu/winograd.py; N. Higham, "Accuracy and stability of numerical algorithms", 2nd ed.,
        SIAM 2002, section 3.1.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from minidl.backends.cpu.winograd import SIDE, TILE_SIDE, matrices
from minidl.lab.budget import TINY, rounding

Host = NDArray[Any]
Pair = tuple[int, int]

# The absolute values of the matrices.
_B, _G, _A = (np.abs(matrix) for matrix in matrices())
# Roundings of an input, a weight (or a gradient) and an output, along both axes, where no multiplication is fused with
# an addition; G's entries are rounded themselves.
TRANSFORMS = 8 + 10 + 8
TRANSFORMS_OF_WEIGHTS = 8 + 8 + 12
# In units of TINY: what an input, a weight, a gradient or a result may lose to underflow in its transform.
_INPUT, _WEIGHT, _GRADIENT, _RESULT = 11, 6, 16, 20


def forward(x: Host, w: Host, padding: Pair) -> Host:
    """Of y, from the absolute values of x (n, h, w, c_in) and of w (3, 3, c_in, c_out)."""
    n, height, width, c = x.shape
    size = height + 2 * padding[0] - 2, width + 2 * padding[1] - 2
    taken = _both(_B, _tiles(x, size, padding, SIDE), (3, 4))
    weights = _both(_G, w, (0, 1))
    made = np.einsum("nijrsc,rscd->nijrsd", taken, weights, optimize=True)
    meets = _WEIGHT * taken.sum(axis=-1, keepdims=True) + _INPUT * weights.sum(axis=2) + c + 1
    lost = rounding(c + 1 + TRANSFORMS) * made + TINY * meets * (made > 0)
    y = (_both(_A, lost, (3, 4)) + _RESULT * TINY).transpose(0, 1, 3, 2, 4, 5)
    _, lines, _, columns, _, c_out = y.shape
    return y.reshape(n, TILE_SIDE * lines, TILE_SIDE * columns, c_out)[:, : size[0], : size[1]]


def backward_input(dy: Host, w: Host, padding: Pair) -> Host:
    """Of dx, which is `forward` of dy with the weights turned round."""
    return forward(dy, w[::-1, ::-1].transpose(0, 1, 3, 2), (2 - padding[0], 2 - padding[1]))


def backward_weight(x: Host, dy: Host, padding: Pair) -> Host:
    """Of dw, from the absolute values of x (n, h, w, c_in) and of dy (n, ho, wo, c_out)."""
    size = dy.shape[1:3]
    taken = _both(_B, _tiles(x, size, padding, SIDE), (3, 4))
    gradients = _both(_A.T, _tiles(dy, size, (0, 0), TILE_SIDE), (3, 4))
    made = np.einsum("nijrsc,nijrsd->rscd", taken, gradients, optimize=True)
    terms = int(np.prod(taken.shape[:3]))
    sums = (array.sum(axis=(0, 1, 2)) for array in (taken, gradients))
    meets = _GRADIENT * next(sums)[..., None] + _INPUT * next(sums)[:, :, None] + terms + 1
    lost = rounding(terms + TRANSFORMS_OF_WEIGHTS) * made + TINY * meets * (made > 0)
    return _both(_G.T, lost, (0, 1)) + _RESULT * TINY


def _tiles(x: Host, size: Pair, padding: Pair, side: int) -> Host:
    """(n, lines, columns, side, side, c): what each tile of 4x4 of `size` outputs reads, zeros beyond x."""
    n, height, width, c = x.shape
    lines, columns = -(-size[0] // TILE_SIDE), -(-size[1] // TILE_SIDE)
    tiles = np.zeros((n, lines, columns, side, side, c))
    for i in range(lines):
        for j in range(columns):
            top, left = TILE_SIDE * i - padding[0], TILE_SIDE * j - padding[1]
            t, u = max(top, 0), max(left, 0)
            part = x[:, t : max(min(top + side, height), t), u : max(min(left + side, width), u)]
            tiles[:, i, j, t - top :, u - left :][:, : part.shape[1], : part.shape[2]] = part
    return tiles


def _both(matrix: Host, array: Host, axes: Pair) -> Host:
    """`matrix` times the array along both axes."""
    for axis in axes:
        array = np.moveaxis(np.tensordot(matrix, array, (1, axis)), 0, axis)
    return array
