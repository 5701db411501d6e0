"""Linear layers of few outputs: whether one can take that technique, and its launches. The kernels are in skinny.py."""

from kernels.arrays import wide
from kernels.choice import Option
from kernels.device import index_type
from kernels.launch import Array, Runner, blocks_for
from kernels.matmul.skinny import (
    ACROSS,
    MANY_ROWS,
    STEP,
    WARPS,
    linear_backward_input_skinny,
    linear_backward_weight_skinny,
    linear_forward_skinny,
    rows_of,
)
from kernels.matmul.tiles import slices_of
from kernels.slices import in_slices

NAME = "skinny"
MOST = 16  # outputs
CHAIN = 256  # products that a thread adds to one sum, at most
ENOUGH = 264  # blocks: two on each multiprocessor of an H100 or H200
LEAST = 256  # steps of depth below which a slice is not worth its sum
FEW_ROWS = 32  # of dy that a block takes, at the least


def option(c_out: int, c_in: int, **moved: Array) -> Option:
    """This technique among those to choose from; `moved` are, by name, the arrays whose lines are c_in long."""
    if not 1 <= c_out <= MOST:
        return NAME, False, f"{c_out:,} outputs, {NAME} takes 1 to {MOST}"
    if c_in % 4:
        return NAME, False, f"{' and '.join(moved)} have lines of {c_in:,}, no multiple of 4"
    off = [name for name, array in moved.items() if not wide(array)]
    if off:
        return NAME, False, f"{' and '.join(off)} {'start' if off[1:] else 'starts'} at no multiple of 16 bytes"
    return NAME, True, f"{c_out} output{'s' if c_out > 1 else ''}: all of them in a thread's registers"


def forward(run: Runner, x: Array, w: Array, bias: Array | None, y: Array) -> None:
    """Launch y = x @ w.T + bias on `run`, where `option` says that it can."""
    (n, c_in), c_out = x.shape, w.shape[0]
    blocks = blocks_for(n, WARPS * rows_of(c_out))
    slices = max(1, min(ENOUGH // max(1, blocks), c_in // LEAST))
    span = max(1, min(blocks_for(c_in, slices * STEP), CHAIN // 4)) * STEP
    slices = slices_of(c_in, span)
    index = index_type(max(x.size, w.size, slices * y.size))
    given = w[:0] if bias is None else bias
    with in_slices(run, slices, y) as target:
        run(linear_forward_skinny(c_out, bias is not None, index), x, w, given, target, n, c_in, span)


def backward_input(run: Runner, dy: Array, w: Array, dx: Array) -> None:
    """Launch dx = dy @ w on `run`, where `option` says that it can."""
    (n, c_in), c_out = dx.shape, w.shape[0]
    across = blocks_for(c_in, 4 * ACROSS)
    span = min(MANY_ROWS, max(FEW_ROWS, blocks_for(n * across, 2 * ENOUGH)))
    run(linear_backward_input_skinny(c_out, index_type(max(dx.size, w.size, dy.size))), dy, w, dx, n, c_in, span)


def backward_weight(run: Runner, x: Array, dy: Array, dw: Array) -> None:
    """Launch dw = dy.T @ x on `run`, where `option` says that it can."""
    (n, c_in), c_out = x.shape, dw.shape[0]
    across = blocks_for(c_in, STEP)
    slices = max(1, min(ENOUGH // max(1, across), n // STEP))
    span = max(1, min(blocks_for(n, slices * STEP), WARPS * CHAIN // STEP)) * STEP
    slices = slices_of(n, span)
    index = index_type(max(x.size, dy.size, slices * dw.size))
    with in_slices(run, slices, dw) as target:
        run(linear_backward_weight_skinny(c_out, index), x, dy, target, n, c_in, span)
