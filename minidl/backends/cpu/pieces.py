"""Pieces of a loop that threads take one after the other within machine code, without going back to Python for each."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core.errors import TypingError
from numba.extending import intrinsic


@intrinsic
def next_piece(typing: Any, counter: Any) -> Any:
    """The number in `counter` (1,) int64, which then is one more; no two threads are given the same.

    Raises TypingError where it is compiled for anything else.
    """
    if not (isinstance(counter, types.Array) and counter.dtype == types.int64 and counter.layout == "C"):
        raise TypingError(f"a counter is a contiguous array of int64, not {counter}")

    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, b, args[0]).data
        return b.atomic_rmw("add", data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), generate
