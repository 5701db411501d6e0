"""Passes over float32 arrays, vector by vector, put together from expressions.

A pass is a function of this signature, which ignores what it does not need:

    f(count, width, a, b, c, parameters, y, z)

`a`, `b`, `c` and `y` are `count` numbers, from a first channel on. What belongs to channels is repeated up to `width`
numbers, so that one loop serves few channels and many: they are the rows of `parameters` (6, width). A pass with sums
writes `z` (2, width): of all numbers that share a place in a row of `width`.

Its expression is in terms of `Value`, a vector of numbers. An expression rounds the same way wherever it stands:
nothing is contracted or reordered. Sums go row by row.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llvmlite import ir

from minidl.backends.cpu.machine_code import I64, LANES, POINTER, SUMS, VECTOR, ZERO, number, spread, vector_at

#                                          count width a        b        c        parameters y        z
SIGNATURE = ir.FunctionType(ir.VoidType(), [I64, I64, POINTER, POINTER, POINTER, POINTER, POINTER, POINTER])
TOGETHER = SUMS // 2 & -4  # vectors that a pass with sums takes side by side: each has two sums
ACROSS = 128 // LANES  # those that another takes: memory is gone through in long pieces

_I32 = ir.IntType(32)
_MASK = ir.VectorType(ir.IntType(1), LANES)


class Value:
    """A vector of numbers in the function that is being put together."""

    def __init__(self, b: ir.IRBuilder, value: Any) -> None:
        self.b, self.value = b, value

    def __add__(self, other: "Value") -> "Value":
        return Value(self.b, self.b.fadd(self.value, other.value))

    def __sub__(self, other: "Value") -> "Value":
        return Value(self.b, self.b.fsub(self.value, other.value))

    def __mul__(self, other: "Value") -> "Value":
        return Value(self.b, self.b.fmul(self.value, other.value))

    def where_positive(self, other: "Value") -> "Value":
        """The other's numbers, and 0 where this one's are 0 or less; not where they are NaN."""
        stopped = self.b.fcmp_ordered("<=", self.value, ZERO)
        return Value(self.b, self.b.select(stopped, ZERO, other.value))


class Numbers(NamedTuple):
    """What an expression is made of: a vector of each array, and of each row of `parameters`."""

    a: Value
    b: Value
    c: Value
    parameters: Callable[[int], Value]


class Pass(NamedTuple):
    """A pass over arrays.

    Attributes:
        name: Of the function.
        reads: Which of "abc" it reads.
        expression: Gives what is stored into y, or None, and what is added up, nothing or two values.
        sums: Whether it adds up.
        around: Whether y is written around the caches; it begins where a vector may then, and `width` is of whole ones.
    """

    name: str
    reads: str
    expression: Callable[[Numbers], tuple[Value | None, Sequence[Value]]]
    sums: bool = False
    around: bool = False


class Function:
    """One that is being put together; `given` are its arguments by name."""

    def __init__(self, module: ir.Module, name: str, signature: ir.FunctionType, names: Sequence[str]) -> None:
        self.function = ir.Function(module, signature, name)
        self.given = dict(zip(names, self.function.args, strict=True))
        self.b = ir.IRBuilder(self.function.append_basic_block("entry"))

    def loop(self, begin: Any, end: Any, step: Any, body: Callable[[Any], None]) -> None:
        """Body(i) for i from `begin` by `step` as long as i < end."""

        def nothing(i: Any, _: list[Any]) -> list[Any]:
            body(i)
            return []

        self.fold(begin, end, step, [], nothing)

    def fold(
        self, begin: Any, end: Any, step: Any, values: Sequence[Any], body: Callable[[Any, list[Any]], Sequence[Any]]
    ) -> list[Any]:
        """What becomes of `values` as body(i, values) gives new ones, for i as in `loop`."""
        before = self.b.block
        head, inside, after = (self.function.append_basic_block(name) for name in ("head", "inside", "after"))
        self.b.branch(head)
        self.b.position_at_end(head)
        i, carried = self.b.phi(I64), [self.b.phi(value.type) for value in values]
        for phi, value in zip((i, *carried), (begin, *values), strict=True):
            phi.add_incoming(value, before)
        self.b.cbranch(self.b.icmp_signed("<", i, end), inside, after)
        self.b.position_at_end(inside)
        following = body(i, carried)
        for phi, value in zip((i, *carried), (self.b.add(i, step), *following), strict=True):
            phi.add_incoming(value, self.b.block)
        self.b.branch(head)
        self.b.position_at_end(after)
        return carried

    def least(self, x: Any, y: Any) -> Any:
        return self.b.select(self.b.icmp_signed("<", x, y), x, y)

    def load(self, array: str, index: Any, mask: Any) -> Value:
        place = vector_at(self.b, self.given[array], index)
        if mask is None:
            return Value(self.b, self.b.load(place, align=4))
        given = place, ir.Constant(_I32, 4), mask, ZERO
        kinds = [place.type, _I32, _MASK, VECTOR]
        return Value(self.b, self.b.call(self._intrinsic("load", VECTOR, kinds), given))

    def store(self, array: str, index: Any, value: Value, mask: Any, around: bool = False) -> None:
        place = vector_at(self.b, self.given[array], index)
        if mask is None:
            stored = self.b.store(value.value, place, align=4 * LANES if around else 4)
            if around:
                stored.set_metadata("nontemporal", self.function.module.add_metadata([ir.Constant(_I32, 1)]))
            return
        given = value.value, place, ir.Constant(_I32, 4), mask
        self.b.call(self._intrinsic("store", ir.VoidType(), [VECTOR, place.type, _I32, _MASK]), given)

    def _intrinsic(self, what: str, result: Any, kinds: list[Any]) -> Any:
        module = self.function.module
        name = f"llvm.masked.{what}.v{LANES}f32.p0"
        return module.globals.get(name) or ir.Function(module, ir.FunctionType(result, kinds), name)

    def mask(self, many: Any) -> Any:
        """Of the first so many lanes."""
        lanes = ir.Constant(ir.VectorType(I64, LANES), list(range(LANES)))
        return self.b.icmp_signed("<", lanes, spread(self.b, many))


class _PassFunction(Function):
    """That of a pass."""

    def __init__(self, module: ir.Module, made: Pass) -> None:
        super().__init__(module, made.name, SIGNATURE, ("count", "width", "a", "b", "c", "parameters", "y", "z"))
        self.made, self.rows = made, _rows_of(made)
        self.whole_rows = self.b.mul(self.b.udiv(self.given["count"], self.given["width"]), self.given["width"])

    def held(self, column: Any, mask: Any) -> dict[int, Value]:
        """What belongs to the channels of a vector; it stays in registers from row to row, as far as they go."""
        places = {row: self.b.add(self.b.mul(number(row), self.given["width"]), column) for row in self.rows}
        return {row: self.load("parameters", place, mask) for row, place in places.items()}

    def result(self, place: Any, held: dict[int, Value], mask: Any) -> tuple[Value | None, Sequence[Value]]:
        """What the expression gives at element `place` of the arrays."""
        nothing = Value(self.b, ZERO)
        a, b, c = (self.load(name, place, mask) if name in self.made.reads else nothing for name in "abc")
        return self.made.expression(Numbers(a, b, c, held.__getitem__))

    def side_by_side(self, many: int, several_rows: Any, columns: Callable[[Any, int, Any, Any, Any], None]) -> None:
        """Columns(i, vectors, mask, begin, end) of whole rows, `several_rows` numbers at a time: `many` vectors or one.

        Then of what the last row has.
        """
        b, width, rows = self.b, self.given["width"], self.whole_rows
        across = number(LANES * many)
        whole = b.mul(b.udiv(width, across), across)

        def several(begin: Any) -> None:
            end = self.least(b.add(begin, several_rows), rows)
            self.loop(number(0), whole, across, lambda i: columns(i, many, None, begin, end))
            self.loop(whole, width, number(LANES), lambda i: columns(i, 1, self.mask(b.sub(width, i)), begin, end))

        self.loop(number(0), rows, several_rows, several)
        count, rest = self.given["count"], b.sub(self.given["count"], rows)
        self.loop(number(0), rest, number(LANES), lambda i: columns(i, 1, self.mask(b.sub(rest, i)), rows, count))


def _rows_of(made: Pass) -> list[int]:
    """The rows of parameters that the expression asks for."""
    function = Function(ir.Module("asked"), "asked", ir.FunctionType(ir.VoidType(), []), ())
    nothing, rows = Value(function.b, ZERO), dict[int, None]()

    def parameters(row: int) -> Value:
        rows[row] = None
        return nothing

    made.expression(Numbers(nothing, nothing, nothing, parameters))
    return list(rows)


def define(module: ir.Module, made: Pass) -> None:
    """Add the function to the module."""
    function = _PassFunction(module, made)
    if made.sums:
        _define_sums(function)
    else:
        _define_elementwise(function)
    function.b.ret_void()


def _define_elementwise(f: _PassFunction) -> None:
    """A few rows at a time: for as long, what belongs to channels stays at hand."""
    b, width = f.b, f.given["width"]

    def columns(i: Any, vectors: int, mask: Any, begin: Any, end: Any) -> None:
        held = [f.held(b.add(i, number(v * LANES)), mask) for v in range(vectors)]

        def row(place: Any) -> None:
            for v in range(vectors):
                at = b.add(place, number(v * LANES))
                stored, _ = f.result(at, held[v], mask)
                assert stored is not None
                f.store("y", at, stored, mask, f.made.around)

        f.loop(b.add(begin, i), end, width, row)

    f.side_by_side(ACROSS, b.mul(width, number(16)), columns)
    if f.made.around:
        b.fence("seq_cst")


def _define_sums(f: _PassFunction) -> None:
    """As above; for as long, the sums stay in registers."""
    b, width = f.b, f.given["width"]
    both = b.add(width, width)
    f.loop(number(0), both, number(LANES), lambda i: f.store("z", i, Value(b, ZERO), f.mask(b.sub(both, i))))

    def columns(i: Any, vectors: int, mask: Any, begin: Any, end: Any) -> None:
        held = [f.held(b.add(i, number(v * LANES)), mask) for v in range(vectors)]
        places = [b.add(b.add(i, b.mul(number(j), width)), number(v * LANES)) for v in range(vectors) for j in (0, 1)]

        def row(place: Any, sums: list[Any]) -> list[Any]:
            following = []
            for v in range(vectors):
                at = b.add(place, number(v * LANES))
                stored, terms = f.result(at, held[v], mask)
                if stored is not None:
                    f.store("y", at, stored, mask)
                following += [b.fadd(sums[2 * v + j], term.value) for j, term in enumerate(terms)]
            return following

        before = [f.load("z", place, mask).value for place in places]
        for place, total in zip(places, f.fold(b.add(begin, i), end, width, before, row), strict=True):
            f.store("z", place, Value(b, total), mask)

    narrow = b.icmp_signed("<=", width, number(LANES * TOGETHER))
    f.side_by_side(TOGETHER, b.select(narrow, b.add(f.whole_rows, number(1)), b.mul(width, number(8))), columns)
