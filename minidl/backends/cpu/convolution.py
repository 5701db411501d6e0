"""Convolution on the CPU: tiles copied to where they stay in the cache, multiplied by blocks of registers.

The plan is in convolution_plan.py, the loops are in convolution_windows.py and convolution_gradients.py, and the
innermost one is in blocks.py. The technique "winograd" is in convolution_winograd.py.
"""

from typing import Any

import numpy as np

from kernels.choice import BY_NAME, Chosen
from kernels.errors import TechniqueError
from minidl.backends.cpu import convolution_gradients, convolution_windows
from minidl.backends.cpu.blocks import WIDTH, block_table
from minidl.backends.cpu.convolution_factors import NO_SUMS, NOTHING, After, Source, as_it_is, is_finite
from minidl.backends.cpu.convolution_plan import Plan, Shares, forward_plan, input_gradient_plan, weight_gradient_plan
from minidl.backends.cpu.convolution_scatter import ScatteredOps
from minidl.backends.cpu.convolution_winograd import (
    Cut,
    cut_of,
    finish_gradients,
    pays,
    products,
    shares_of,
    takes,
    transformed_weights,
)
from minidl.backends.cpu.machine_code import LANES, SUMS
from minidl.backends.cpu.passes import pass_table
from minidl.backends.cpu.threads import QUIET
from minidl.backends.cpu.winograd import transform_table
from minidl.backends.protocol import Pair
from minidl.backends.techniques import DIRECT, WINOGRAD

FEW = 4  # input channels, for which the gradient of the input is better scattered than gathered

WORTH_PRODUCTS = 1 << 23  # multiply-adds that it is worth waking a thread for
PACKED = 1 << 15  # weights that a thread packs or adds up at a time
NOT_BY_WINOGRAD: tuple[Any, ...] = np.empty(0, np.int64), 0, NOTHING, NOTHING, NOTHING


def _sum_rows(first: int, last: int, dy: np.ndarray, chunk: int, sums: np.ndarray) -> None:
    """Chunks first to last, row after row."""
    whole = min(last, len(dy) // chunk)
    with np.errstate(**QUIET):
        parts = dy[first * chunk : whole * chunk].reshape(-1, chunk, dy.shape[1])
        np.add.reduce(parts, axis=1, out=sums[first:whole])
        if whole < last:
            np.add.reduce(dy[whole * chunk :], axis=0, out=sums[whole])


class ConvolutionOps(ScatteredOps):
    """The convolution part of the CPU backend; see `Backend` for the operations."""

    def conv2d_forward(
        self, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, y: np.ndarray, stride: Pair, padding: Pair
    ) -> None:
        plan = forward_plan(x.shape, w.shape[:2], y.shape, stride, padding)
        by = self._technique("conv2d_forward", plan, w.shape[:2], stride)
        self._multiply_windows(by, plan, as_it_is(x), w, False, is_finite(w), bias, y)

    def conv2d_backward_input(self, dy: np.ndarray, w: np.ndarray, dx: np.ndarray, stride: Pair, padding: Pair) -> None:
        plan = input_gradient_plan(dy.shape, w.shape[:2], dx.shape, stride, padding)
        by = self._technique("conv2d_backward_input", plan, w.shape[:2], stride)
        if self._gathers(by, w):
            self._multiply_windows(by, plan, as_it_is(dy), w, True, True, None, dx)
        else:
            self.scatter_gradient(dy, w, dx, stride, padding)

    def conv2d_backward_weight(
        self, x: np.ndarray, dy: np.ndarray, dw: np.ndarray, stride: Pair, padding: Pair
    ) -> None:
        self._multiply_gradients("conv2d_backward_weight", as_it_is(x), as_it_is(dy), dw, stride, padding)

    def bias_backward(self, dy: np.ndarray, db: np.ndarray) -> None:
        matrix = dy.reshape(-1, dy.shape[-1])
        chunk = 128
        chunks = -(-len(matrix) // chunk)
        sums = self.empty((chunks, matrix.shape[1]))
        self.workers.run(_sum_rows, chunks, 32, matrix, chunk, sums, elements=dy.size)
        with np.errstate(**QUIET):
            db[:] = sums.sum(axis=0, dtype=np.float64)

    def _technique(
        self, operation: str, plan: Plan, kernel: tuple[int, ...], stride: Pair, of_weights: bool = False
    ) -> str:
        """DIRECT or WINOGRAD. Raises TechniqueError."""
        asked, fits = self.asked_for.get(operation), takes(kernel, stride)
        if asked == WINOGRAD and not fits:
            raise TechniqueError(operation, asked, "it takes 3x3 kernels without a stride", DIRECT)
        fast = self.precision == WINOGRAD and fits and pays(plan, of_weights)
        taken = asked or (WINOGRAD if fast else DIRECT)
        if self.on_choice is not None:
            why = "3x3 without a stride, and it pays" if fast else "the definition's sums"
            self.on_choice(Chosen(operation, taken, BY_NAME if asked else why, {}))
        return taken

    def _gathers(self, by: str, w: np.ndarray) -> bool:
        """Whether the input's gradient (..., c_in) is gathered: else such weights would meet zeros where dy is not."""
        return (w.shape[2] > FEW or by == WINOGRAD) and is_finite(w)

    def _multiply_windows(
        self,
        by: str,
        plan: Plan,
        source: Source,
        w: np.ndarray,
        turned: bool,
        clips: bool,
        bias: np.ndarray | None,
        y: np.ndarray,
        after: After = NO_SUMS,
    ) -> None:
        if by == WINOGRAD and clips:  # finite weights
            packed = transformed_weights(self.workers, w, turned)
            if self._go_through_tiles(plan, cut_of(plan), source, packed, clips, bias, y, after):
                return
        packed = self.workers.scratch("packed", plan.weights)
        count = len(plan.phases) * -(-y.shape[3] // WIDTH)
        grain = max(1, PACKED * count // max(1, plan.weights))
        self.workers.run(
            *(convolution_windows.pack_weights, count, grain, w, turned, plan.phases, packed), elements=2 * plan.weights
        )
        self._go_through_tiles(plan, None, source, packed, clips, bias, y, after)

    def _go_through_tiles(
        self,
        plan: Plan,
        cut: Cut | None,
        source: Source,
        packed: np.ndarray,
        clips: bool,
        bias: np.ndarray | None,
        y: np.ndarray,
        after: After,
    ) -> bool:
        """By Winograd with a cut; whether all of y is finite, if it is: else NaN may have spread over tiles."""
        how, x, dy, parameters = source
        added, sums = NOTHING if bias is None else bias, 3 * after.width
        arrays = x.reshape(-1), dy.reshape(-1), parameters.reshape(-1), parameters.shape[1], packed, added
        numbers, size, edges = plan.numbers, plan.slab, SUMS * WIDTH
        if cut is not None:
            numbers, size, edges = cut.numbers, cut.slab, cut.edge
        given = block_table(), pass_table(), numbers, plan.phases, clips, how, *arrays, y.reshape(-1), *after
        counter, calls = np.zeros(1, np.int64), self._calls(plan, plan.pieces, cut)
        checks = np.zeros((0 if cut is None else calls, LANES), np.float32)

        def tiles(call: int, _last: int) -> None:
            scratch = self.workers.scratch
            sums_of_chunk = scratch("sums", sums)[:sums].reshape(3, -1, max(1, y.shape[3]))
            spaces = sums_of_chunk, scratch("slab", size), scratch("edge", edges)
            of_winograd = NOT_BY_WINOGRAD
            if cut is not None:
                strips = scratch("taken", cut.taken), scratch("products", cut.products)
                of_winograd = transform_table(), cut.few, *strips, checks[call]
            convolution_windows.multiply_windows(counter, plan.pieces, *given, *spaces, *of_winograd)

        self.workers.run(tiles, calls, 1)
        return not checks.any()

    def _calls(self, plan: Plan, pieces: int, cut: Cut | None) -> int:
        """How many threads are to go through the pieces; for a few products none is worth waking."""
        made = plan.products if cut is None else products(plan)
        return max(1, min(pieces, self.workers.threads, made // WORTH_PRODUCTS))

    def _multiply_gradients(
        self, operation: str, x: Source, dy: Source, dw: np.ndarray, stride: Pair, padding: Pair
    ) -> None:
        plan, shares = weight_gradient_plan(x.x.shape, dw.shape, dy.x.shape, stride, padding)
        if self._technique(operation, plan, dw.shape[:2], stride, of_weights=True) == WINOGRAD:
            of_positions = shares_of(plan)
            partial = self._partial_gradients(plan, of_positions, cut_of(plan), x, dy, False)
            finish_gradients(self.workers, partial, of_positions, dw)
            if is_finite(dw):
                return
        flat, rows = dw.reshape(-1), dw.size // max(1, dw.shape[3])
        for clips in (True, False) if shares.clips else (False,):
            partial = self._partial_gradients(plan, shares, None, x, dy, clips)
            given = partial, shares.groups, shares.size, dw.shape[3], flat
            self.workers.run(
                convolution_gradients.sum_shares, rows, max(1, PACKED // dw.shape[3]), *given, elements=partial.size
            )
            if not clips or is_finite(dw):  # else a NaN of dy could be missing where it meets the padding's zeros
                return

    def _partial_gradients(
        self, plan: Plan, shares: Shares, cut: Cut | None, x: Source, dy: Source, clips: bool
    ) -> np.ndarray:
        """The shares' sums; by Winograd with a cut, to be transformed."""
        partial = self.workers.scratch("partial", shares.groups * shares.size)
        of_x = x.how, x.x.reshape(-1), x.parameters.reshape(-1), x.parameters.shape[1]
        of_dy = dy.how, dy.x.reshape(-1), dy.dy.reshape(-1), dy.parameters.reshape(-1), dy.parameters.shape[1]
        numbers, size = (plan.numbers, plan.slab) if cut is None else (cut.numbers, cut.slab)
        tables = np.zeros(1, np.int64), block_table(), pass_table()  # the first counts shares
        given = *tables, numbers, shares.kernel, clips, shares.table, *of_x, *of_dy, partial

        def work(_first: int, _last: int) -> None:
            scratch = self.workers.scratch
            slabs, of_winograd = (scratch("slab", size), scratch("slab_dy", shares.slab_dy)), NOT_BY_WINOGRAD
            if cut is not None:
                strips = scratch("taken", cut.taken), scratch("taken_dy", cut.taken_dy)
                of_winograd = transform_table(), cut.few, *strips
            numbers_dy = numbers if cut is None else cut.numbers_dy
            convolution_gradients.multiply_gradients(*given, *slabs, numbers_dy, *of_winograd[:4])

        self.workers.run(work, self._calls(plan, len(shares.table), cut), 1)
        return partial
