"""What parts of batch normalization in machine code share: the frame, and what they read in it."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from minidl.backends.cpu.machine_code import I64, LANES, POINTER, VECTOR, ZERO, number, spread
from minidl.backends.cpu.vectors import SIGNATURE, Function, Value

SLOTS = (
    *("x", "dy", "c", "g", "y"),  # of `count` numbers
    *("gamma", "beta", "shift", "delta", "var", "inv_std", "dgamma", "dbeta", "mean_g", "slope"),  # of channels
    *("found", "parameters"),  # (chunks, 3, channels), (6, width)
    *("rows", "channels", "width", "chunk", "chunks", "count", "eps"),  # eps is a float64
    *("sum", "apply", "around"),  # addresses of passes; the last, or 0, is in place of `apply` where y is aligned
    *("scattered", "scattered_after"),  # whether lines are fetched in order before a pass that takes them in another
    *("chunks_together", "piece"),  # chunks, and numbers, that are taken at once
    *("begun", "begun_ready", "taken", "done", "ready", "taken_after"),  # 0 at the beginning
    "give_way",  # the address of a function that lets another thread run, or 0
)
FRAME = len(SLOTS)
ARRAYS = SLOTS.index("rows")  # so many slots are addresses of numbers
WORK = ir.FunctionType(ir.VoidType(), [I64, I64, I64])  # two numbers that are ignored, and the frame's address

F64 = ir.DoubleType()
DOUBLES = ir.VectorType(F64, LANES)


class Stage(Function):
    """A part of the work; it finds everything in the frame."""

    def __init__(self, module: ir.Module, name: str) -> None:
        super().__init__(module, name, WORK, ("first", "last", "frame"))
        self.given |= {slot: self.number_in(slot) for slot in SLOTS[ARRAYS:]}
        for slot in SLOTS[:ARRAYS]:
            self.given[slot] = self.b.inttoptr(self.number_in(slot), POINTER)

    def slot(self, name: str, kind: Any = I64) -> Any:
        frame = self.b.inttoptr(self.given["frame"], kind.as_pointer())
        return self.b.gep(frame, [number(SLOTS.index(name))])

    def number_in(self, name: str) -> Any:
        return self.b.load(self.slot(name))

    def sum_up(self, x: Any, *others: Any) -> Any:
        for other in others:
            x = self.b.add(x, other)
        return x

    def of_chunk(self, j: int, k: Any) -> Any:
        """Where row j of chunk k's sums begins."""
        b = self.b
        return b.mul(b.add(b.mul(k, number(3)), number(j)), self.given["channels"])

    def rows_of_chunk(self, k: Any) -> Any:
        b, given = self.b, self.given
        return self.least(given["chunk"], b.sub(given["rows"], b.mul(k, given["chunk"])))

    def channels(self, body: Callable[[Any, Any], None]) -> None:
        """Body(i, mask) of the channels of each vector."""
        channels = self.given["channels"]
        self.loop(number(0), channels, number(LANES), lambda i: body(i, self.mask(self.b.sub(channels, i))))

    def repeated(self, body: Callable[[Any, Any, Any], None]) -> None:
        """Body(i, at, mask): as above, and where they stand in a row of `width`."""
        self.loop(
            *(number(0), self.given["width"], self.given["channels"]),
            lambda begin: self.channels(lambda i, mask: body(i, self.b.add(begin, i), mask)),
        )

    def doubles(self, array: str, index: Any, mask: Any) -> Any:
        return self.b.fpext(self.load(array, index, mask).value, DOUBLES)

    def put(self, array: str, index: Any, value: Any, mask: Any) -> None:
        """Of float64 or float32."""
        value = self.b.fptrunc(value, VECTOR) if value.type == DOUBLES else value
        self.store(array, index, Value(self.b, value), mask)

    def all_doubles(self, value: Any) -> Any:
        """An integer as float64, in all lanes."""
        return spread(self.b, self.b.sitofp(value, F64))

    def run_pass(self, address: Any, *given: Any) -> None:
        self.b.call(self.b.inttoptr(address, SIGNATURE.as_pointer()), given)

    def fetch(self, array: str, begin: Any, count: Any) -> None:
        """Cache lines one after the other, as memory is fastest."""
        b, word = self.b, ir.IntType(32)
        nothing = ir.FunctionType(ir.VoidType(), [word])

        def line(i: Any) -> None:
            b.asm(nothing, "", "r", [b.load(b.bitcast(self.at(array, i), word.as_pointer()))], True)

        self.loop(begin, b.add(begin, count), number(16), line)

    def at(self, array: str, index: Any) -> Any:
        return self.b.gep(self.given[array], [index])


def finite(b: ir.IRBuilder, value: Any) -> Any:
    """It, or 0 where it is not."""
    return b.select(b.fcmp_ordered("==", b.fsub(value, value), ZERO), value, ZERO)
