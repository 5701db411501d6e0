"""The launches by which kernels that claim to be fast are counted; `minidl.lab.access_counts` says what must hold.

To add a kernel, add a line to its family's file: the name of its factory, the shape for the reader, a call of its host
function with a runner and, if more than its cost is moved, how much and why. Shapes are as small as show how the kernel
is meant to run: some whole tiles. A call that launches several kernels serves a line of each.
"""

from minidl.lab.access_lines import moves, normalization, pooling, products
from minidl.lab.access_lines.line import SLACK, Call, Line

__all__ = ["LINES", "SLACK", "Call", "Line"]

LINES = (*moves.LINES, *pooling.LINES, *normalization.LINES, *products.LINES)
