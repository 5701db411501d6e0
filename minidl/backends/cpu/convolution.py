"""Convolution on the CPU: tiles copied to where they stay in the cache, multiplied by blocks of registers.

The plan is in convolution_plan.py, the loops are in convolution_windows.py and convolution_gradients.py, and the
innermost one is in blocks.py.
"""

from typing import NamedTuple

import numpy as np

from minidl.backends.cpu import convolution_gradients, convolution_windows
from minidl.backends.cpu.blocks import WIDTH, block_table
from minidl.backends.cpu.compile import compiled
from minidl.backends.cpu.convolution_plan import Plan, forward_plan, input_gradient_plan, weight_gradient_plan
from minidl.backends.cpu.convolution_scatter import ScatteredOps
from minidl.backends.cpu.machine_code import SUMS
from minidl.backends.cpu.passes import COPY, pass_table
from minidl.backends.cpu.threads import QUIET
from minidl.backends.protocol import Pair

FEW = 4  # input channels, for which the gradient of the input is better scattered than gathered

NOTHING = np.empty(0, np.float32)
NO_PARAMETERS = np.empty((6, 1 << 12), np.float32)  # of passes that read none, but go by their width
PACKED = 1 << 15  # weights that a thread packs or adds up at a time
DISPATCHES = 64  # times that threads go for pieces; more would cost more than waiting for the last one


class Source(NamedTuple):
    """Where the numbers of a factor come from: `how` of the passes, the arrays it reads, and `parameters`."""

    how: int
    x: np.ndarray
    dy: np.ndarray
    parameters: np.ndarray


class After(NamedTuple):
    """What `multiply_windows` does after a tile, from `after` to `sums`."""

    what: int
    before: np.ndarray
    of_before: np.ndarray
    width: int
    starts: np.ndarray
    firsts: np.ndarray
    sums: np.ndarray


NO_CHUNKS = np.empty(0, np.int64)
NO_SUMS = After(convolution_windows.NO_PASS, NOTHING, NOTHING, 0, NO_CHUNKS, NO_CHUNKS, np.empty((3, 0, 0), np.float32))


def as_it_is(x: np.ndarray) -> Source:
    """An array that holds the numbers themselves."""
    return Source(COPY, x, NOTHING, NO_PARAMETERS)


@compiled
def _sum_rows(first, last, dy, chunk, sums):
    for k in range(first, last):
        s = sums[k]
        s[:] = np.float32(0)
        for row in range(k * chunk, min((k + 1) * chunk, dy.shape[0])):
            for c in range(dy.shape[1]):
                s[c] += dy[row, c]


class ConvolutionOps(ScatteredOps):
    """The convolution part of the CPU backend; see `Backend` for the operations."""

    def conv2d_forward(
        self, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, y: np.ndarray, stride: Pair, padding: Pair
    ) -> None:
        plan = forward_plan(x.shape, w.shape[:2], y.shape, stride, padding)
        self._multiply_windows(plan, as_it_is(x), w, False, is_finite(w), bias, y)

    def conv2d_backward_input(self, dy: np.ndarray, w: np.ndarray, dx: np.ndarray, stride: Pair, padding: Pair) -> None:
        if dx.shape[3] > FEW and is_finite(w):
            plan = input_gradient_plan(dy.shape, w.shape[:2], dx.shape, stride, padding)
            self._multiply_windows(plan, as_it_is(dy), w, True, True, None, dx)
        else:  # gathering would multiply such weights by zeros where there is no dy
            self.scatter_gradient(dy, w, dx, stride, padding)

    def conv2d_backward_weight(
        self, x: np.ndarray, dy: np.ndarray, dw: np.ndarray, stride: Pair, padding: Pair
    ) -> None:
        self._multiply_gradients(as_it_is(x), as_it_is(dy), dw, stride, padding)

    def bias_backward(self, dy: np.ndarray, db: np.ndarray) -> None:
        matrix = dy.reshape(-1, dy.shape[-1])
        chunk = 128
        chunks = -(-len(matrix) // chunk)
        sums = self.empty((chunks, matrix.shape[1]))
        self.workers.run(_sum_rows, chunks, 32, matrix, chunk, sums)
        with np.errstate(**QUIET):
            db[:] = sums.sum(axis=0, dtype=np.float64)

    def _multiply_windows(
        self,
        plan: Plan,
        source: Source,
        w: np.ndarray,
        turned: bool,
        clips: bool,
        bias: np.ndarray | None,
        y: np.ndarray,
        after: After = NO_SUMS,
    ) -> None:
        packed = self.workers.scratch("packed", plan.weights)
        count = len(plan.phases) * -(-y.shape[3] // WIDTH)
        self.workers.run(
            convolution_windows.pack_weights,
            count,
            max(1, PACKED * count // max(1, plan.weights)),
            w,
            turned,
            plan.phases,
            packed,
        )
        how, x, dy, parameters = source
        blocks, flat, added = block_table(), y.reshape(-1), NOTHING if bias is None else bias
        arrays = x.reshape(-1), dy.reshape(-1), parameters.reshape(-1), parameters.shape[1], packed, added, flat, *after

        def tiles(first: int, last: int) -> None:
            slab = self.workers.scratch("slab", plan.slab)
            edge = self.workers.scratch("edge", SUMS * WIDTH)
            convolution_windows.multiply_windows(
                first, last, blocks, pass_table(), plan.numbers, plan.phases, clips, how, *arrays, slab, edge
            )

        self.workers.run(tiles, plan.pieces, max(1, plan.pieces // DISPATCHES))

    def _multiply_gradients(self, x: Source, dy: Source, dw: np.ndarray, stride: Pair, padding: Pair) -> None:
        plan, shares = weight_gradient_plan(x.x.shape, dw.shape, dy.x.shape, stride, padding)
        partial = self.workers.scratch("partial", shares.groups * shares.size)
        of_x = x.how, x.x.reshape(-1), x.parameters.reshape(-1), x.parameters.shape[1]
        of_dy = dy.how, dy.x.reshape(-1), dy.dy.reshape(-1), dy.parameters.reshape(-1), dy.parameters.shape[1]
        flat, rows = dw.reshape(-1), dw.size // max(1, dw.shape[3])
        tables = block_table(), pass_table(), plan.numbers, shares.kernel

        def work(first: int, last: int) -> None:
            slabs = self.workers.scratch("slab", plan.slab), self.workers.scratch("slab_dy", shares.slab_dy)
            convolution_gradients.multiply_gradients(
                first, last, *tables, clips, shares.table, *of_x, *of_dy, partial, *slabs
            )

        for clips in (True, False) if shares.clips else (False,):
            self.workers.run(work, len(shares.table), 1)
            given = partial, shares.groups, shares.size, dw.shape[3], flat
            self.workers.run(convolution_gradients.sum_shares, rows, max(1, PACKED // dw.shape[3]), *given)
            if not clips or is_finite(dw):  # else a NaN of dy could be missing where it meets the padding's zeros
                return


def is_finite(w: np.ndarray) -> bool:
    """All of it."""
    return not w.size or bool(np.isfinite(w.min()) and np.isfinite(w.max()))  # both of a NaN are NaN
