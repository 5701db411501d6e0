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
    """

    name: str
    reads: str
    expression: Callable[[Numbers], tuple[Value | None, Sequence[Value]]]
    sums: bool = False


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

    def store(self, array: str, index: Any, value: Value, mask: Any) -> None:
        place = vector_at(self.b, self.given[array], index)
        if mask is None:
            self.b.store(value.value, place, align=4)
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
        self.made = made

    def numbers(self, place: Any, index: Any, mask: Any) -> Numbers:
        """At element `place` of the arrays and `index` of a row of parameters."""

        def parameters(row: int) -> Value:
            at = self.b.add(self.b.mul(number(row), self.given["width"]), index)
            return self.load("parameters", at, mask)

        nothing = Value(self.b, ZERO)
        a, b, c = (self.load(name, place, mask) if name in self.made.reads else nothing for name in "abc")
        return Numbers(a, b, c, parameters)


def define(module: ir.Module, made: Pass) -> None:
    """Add the function to the module."""
    function = _PassFunction(module, made)
    if made.sums:
        _define_sums(function)
    else:
        _define_elementwise(function)
    function.b.ret_void()


def _define_elementwise(f: _PassFunction) -> None:
    """Row by row of `width`, the last one shorter; in it by vectors, the last one masked."""
    lanes = number(LANES)

    def vector(begin: Any, i: Any, mask: Any) -> None:
        place = f.b.add(begin, i)
        result, _ = f.made.expression(f.numbers(place, i, mask))
        assert result is not None
        f.store("y", place, result, mask)

    def row(begin: Any) -> None:
        many = f.least(f.given["width"], f.b.sub(f.given["count"], begin))
        whole = f.b.and_(many, number(-LANES))
        f.loop(number(0), whole, lanes, lambda i: vector(begin, i, None))
        f.loop(whole, many, lanes, lambda i: vector(begin, i, f.mask(f.b.sub(many, i))))

    f.loop(number(0), f.given["count"], f.given["width"], row)


def _define_sums(f: _PassFunction) -> None:
    """A few vectors of a row, and of all rows: their sums stay in registers."""
    width = f.given["width"]
    whole = f.b.and_(width, number(-LANES * TOGETHER))
    f.loop(number(0), whole, number(LANES * TOGETHER), lambda i: _sum_columns(f, i, TOGETHER, None))
    f.loop(whole, width, number(LANES), lambda i: _sum_columns(f, i, 1, f.mask(f.b.sub(width, i))))


def _sum_columns(f: _PassFunction, i: Any, vectors: int, mask: Any) -> None:
    """Of the columns from i on: rows that are whole, and what the last one has."""
    b, width, count = f.b, f.given["width"], f.given["count"]
    columns = [b.add(i, number(v * LANES)) for v in range(vectors)]

    def added(place: Any, v: int, sums: list[Any], here: Any) -> list[Any]:
        """The two sums of a vector, with what is at `place`; what is stored there is."""
        stored, terms = f.made.expression(f.numbers(place, columns[v], here))
        if stored is not None:
            f.store("y", place, stored, here)
        return [b.fadd(total, term.value) for total, term in zip(sums, terms, strict=True)]

    def row(place: Any, values: list[Any]) -> list[Any]:
        following = [b.add(place, width)]
        for v in range(vectors):
            following += added(b.add(place, number(v * LANES)), v, values[1 + 2 * v : 3 + 2 * v], mask)
        return following

    across = number(LANES * vectors) if mask is None else b.sub(width, i)  # numbers of a row that are in these columns
    end = b.add(b.sub(count, across), number(1))
    place, *sums = f.fold(i, end, width, [i, *[ZERO] * (2 * vectors)], row)
    for v in range(vectors):
        at, before = b.add(place, number(v * LANES)), sums[2 * v : 2 * v + 2]
        here = f.mask(b.sub(count, at)) if mask is None else b.and_(mask, f.mask(b.sub(count, at)))
        for j, (total, other) in enumerate(zip(before, added(at, v, before, here), strict=True)):
            f.store("z", b.add(b.mul(number(j), width), columns[v]), Value(b, b.select(here, other, total)), mask)
