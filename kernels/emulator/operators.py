"""Operators, conversions and truth: typed as Numba types them, and the Python that computes them over vectors."""

import ast
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.emulator import types
from kernels.emulator.translation import Translator, Value

OPERATORS: dict[type[ast.AST], tuple[Callable[..., Any], str]] = {
    ast.Add: (operator.add, "+"),
    ast.Sub: (operator.sub, "-"),
    ast.Mult: (operator.mul, "*"),
    ast.Div: (operator.truediv, "/"),
    ast.FloorDiv: (operator.floordiv, "//"),
    ast.Mod: (operator.mod, "%"),
    ast.Pow: (operator.pow, "**"),
    ast.LShift: (operator.lshift, "<<"),
    ast.RShift: (operator.rshift, ">>"),
    ast.BitAnd: (operator.and_, "&"),
    ast.BitOr: (operator.or_, "|"),
    ast.BitXor: (operator.xor, "^"),
    ast.Lt: (operator.lt, "<"),
    ast.LtE: (operator.le, "<="),
    ast.Gt: (operator.gt, ">"),
    ast.GtE: (operator.ge, ">="),
    ast.Eq: (operator.eq, "=="),
    ast.NotEq: (operator.ne, "!="),
}
_COMPARISONS = {"<", "<=", ">", ">=", "==", "!="}
_COUNTED = {"+": "add", "-": "sub", "*": "mul", "/": "div", "//": "floordiv", "%": "mod", "**": "pow"}
UNARY_OPERATORS: dict[type[ast.unaryop], tuple[Callable[[Any], Any], str]] = {
    ast.USub: (operator.neg, "(-{})"),
    ast.UAdd: (operator.pos, "(+{})"),
    ast.Invert: (operator.invert, "(~{})"),
}


class Operators(Translator):
    """Translates operators between values."""

    def tuple_of(self, items: list[Value]) -> Value:
        """Several values as a tuple."""
        if all(item.is_known for item in items):
            known = tuple(item.known for item in items)
            kind = None if any(item.type is None for item in items) else types.tuple_of(tuple(i.type for i in items))
            return Value(kind, "(" + "".join(item.text + ", " for item in items) + ")", known)
        if any(item.type is None for item in items):
            self.refuse("a tuple of numbers and functions")
        kind = types.tuple_of(tuple(item.type for item in items))
        return Value(kind, "(" + "".join(item.text + ", " for item in items) + ")")

    def items_of(self, value: Value) -> list[Value]:
        """The items of a tuple."""
        if value.is_known:
            return [self.constant(item) for item in value.known]
        if not types.is_tuple(value.type):
            self.refuse(f"taking {value.type} apart")
        if not value.text.isidentifier():
            value = self.temporary(value.type, value.text)
        return [Value(kind, f"{value.text}[{k}]") for k, kind in enumerate(value.type)]

    def cast(self, value: Value, kind: types.Type) -> Value:
        """A number as another type."""
        if value.type == kind:
            return value
        if types.is_tuple(kind) and types.is_tuple(value.type) and len(kind) == len(value.type):
            return self.tuple_of([self.cast(i, k) for i, k in zip(self.items_of(value), kind, strict=True)])
        if not (types.is_number(value.type) and types.is_number(kind)):
            self.refuse(f"making {kind} of {value.type}")
        if value.is_known:
            return self.constant(types.convert(value.known, types.dtype_of(kind)), kind)
        dtype = self.program.constant(types.dtype_of(kind))
        return Value(kind, f"convert({value.text}, {dtype})")

    def signature(self, function: Any, arguments: tuple[types.Type, ...], what: str) -> Any:
        """Numba's signature, or a refusal."""
        try:
            return types.signature(function, arguments)
        except types.UntypedError as error:
            given = ", ".join(str(argument) for argument in arguments)
            self.refuse(f"{what} of ({given}): {error}")

    def note_promotion(self, what: str, given: list[types.Type], used_types: list[types.Type]) -> None:
        """Note arithmetic that Numba does in float64 although a float32, or no float at all, went in."""
        if types.FLOAT64 not in used_types:
            return
        if types.FLOAT32 in given:
            names = " and ".join(str(kind) for kind in given)
            self.promoted(f"{what} of {names} is done in float64")
        elif types.FLOAT64 not in given and what in _COMPARISONS:
            self.promoted(f"{what} of {given[0]} and {given[1]} is done in float64")

    def binary(self, kind: type[ast.AST], left: Value, right: Value) -> Value:
        """An operator between two values."""
        function, sign = OPERATORS.get(kind, (None, ""))
        if function is None:
            self.refuse(f"the operator {kind.__name__}")
        if left.type is None or right.type is None:
            return self._compile_time(function, sign, left, right)
        if types.is_tuple(left.type) or types.is_tuple(right.type):
            return self._of_tuples(function, sign, left, right)
        given, result = self.signature(function, (left.type, right.type), f"operator {sign}")
        self.note_promotion(sign, [left.type, right.type], [*given, result])
        if sign in _COMPARISONS:
            mixed = types.is_integer(given[0]) and types.is_integer(given[1])
            a, b = (left, right) if mixed else (self.cast(left, given[0]), self.cast(right, given[1]))
            return self.operation(result, sign, a, b, f"({{}} {sign} {{}})")
        if sign in ("<<", ">>"):
            return self._shift(sign, self.cast(left, result), right, result)
        if sign == "**":
            return self._power(left, right, given, result)
        a, b = self._operand(left, right, result), self._operand(right, left, result)
        if sign in ("//", "%"):
            return self._divide(sign, self.cast(left, result), self.cast(right, result), result)
        return self.operation(result, sign, a, b, f"({{}} {sign} {{}})")

    def _operand(self, value: Value, other: Value, result: types.Type) -> Value:
        """An operand converted to the result's type, unless NumPy does that by itself since the other one has it."""
        if value.type == result or value.is_known or not types.is_number(result):
            return self.cast(value, result)
        if other.type == result and np.promote_types(
            types.dtype_of(value.type), types.dtype_of(result)
        ) == types.dtype_of(result):
            return value
        return self.cast(value, result)

    def unary(self, kind: type[ast.unaryop], value: Value) -> Value:
        """A sign or complement of a number."""
        function, form = UNARY_OPERATORS[kind]
        _, result = self.signature(function, (value.type,), "operator " + form[1])
        # Numba computes in the operand's type and widens the result: -uint8(5) is 251
        own = value.type if types.is_number(value.type) and value.type != types.BOOLEAN else result
        value = self.cast(value, own)
        if value.is_known:
            with np.errstate(all="ignore"):
                return self.cast(self.constant(function(value.known), own), result)
        if kind is ast.USub:
            self.count("neg", own)
        return self.cast(Value(own, form.format(value.text)), result)

    def operation(self, result: types.Type, sign: str, a: Value, b: Value, form: str) -> Value:
        """Compute with two operands, at once if both are constants."""
        if a.is_known and b.is_known:
            with np.errstate(all="ignore"):
                known = eval(form.format("a", "b"), dict(self.program.namespace), {"a": a.known, "b": b.known})
            return self.constant(types.convert(np.asarray(known)[()], types.dtype_of(result)), result)
        self.count(_COUNTED.get(sign, sign), result)
        return Value(result, form.format(a.text, b.text))

    def count(self, operation: str, kind: types.Type) -> None:
        """Tell the observer of arithmetic when the kernel runs."""
        if self.program.counts and types.is_number(kind):
            dtype = self.program.constant(types.dtype_of(kind))
            self.emit(f"M.observer.arithmetic({self.here()!r}, {operation!r}, {dtype}, L.n)")

    def _compile_time(self, function: Any, sign: str, left: Value, right: Value) -> Value:
        if left.is_known and right.is_known and sign in ("==", "!="):
            return self.constant(bool(function(left.known, right.known)))
        return self.refuse(f"operator {sign} between things that are no numbers")

    def _of_tuples(self, function: Any, sign: str, left: Value, right: Value) -> Value:
        if left.is_known and right.is_known:
            return self.constant(function(left.known, right.known))
        if sign == "+" and types.is_tuple(left.type) and types.is_tuple(right.type):
            return self.tuple_of([*self.items_of(left), *self.items_of(right)])
        return self.refuse(f"operator {sign} between {left.type} and {right.type}")

    def _shift(self, sign: str, left: Value, right: Value, result: types.Type) -> Value:
        bits = types.dtype_of(result).itemsize * 8
        if right.is_known:
            if not 0 <= right.known < bits:
                self.refuse(f"a shift by {right.known} bits of a number of {bits}")
            amount = self.cast(right, result)
            return self.operation(result, sign, left, amount, f"({{}} {sign} {{}})")
        self.count(sign, result)
        return self.temporary(result, f"M.shift(L, {sign!r}, {left.text}, {right.text})")

    def _power(self, left: Value, right: Value, given: Any, result: types.Type) -> Value:
        if types.is_integer(right.type) and right.is_known and 0 <= right.known <= 64:
            base = self.cast(left, result)
            return self.operation(result, "**", base, right, f"power({{}}, {int(right.known)})")
        if types.is_integer(result):
            self.refuse("an integer power that is no constant")
        a, b = (self.cast(value, kind) for value, kind in zip((left, right), given, strict=True))
        if types.is_integer(b.type):
            b = self.cast(b, result)
        return self.operation(result, "**", a, b, "float_power({}, {})")

    def _divide(self, sign: str, a: Value, b: Value, result: types.Type) -> Value:
        if not types.is_integer(result):
            form = "np.floor_divide({}, {})" if sign == "//" else "np.remainder({}, {})"
            return self.operation(result, sign, a, b, form)
        if not b.is_known:
            self.count(_COUNTED[sign], result)
            return self.temporary(result, f"M.divide(L, {sign!r}, {a.text}, {b.text})")
        divisor = int(b.known)
        if divisor == 0:
            self.refuse("a division by zero")
        if a.is_known:
            return self.operation(result, sign, a, b, f"({{}} {sign} {{}})")
        self.count(_COUNTED[sign], result)
        if divisor > 0 and divisor & (divisor - 1) == 0:
            if sign == "%":
                return Value(result, f"({a.text} & {self.constant(divisor - 1, result).text})")
            return Value(result, f"({a.text} >> {self.constant(divisor.bit_length() - 1, result).text})")
        if sign == "//":
            return Value(result, f"({a.text} // {b.text})")
        return Value(result, f"remainder({a.text}, {b.text})")

    def truth(self, value: Value) -> Value:
        """A value as a boolean."""
        if value.type == types.BOOLEAN:
            return value
        if value.type is None or not types.is_number(value.type):
            if value.is_known:
                return self.constant(bool(value.known))
            self.refuse(f"the truth of {value.type}")
        if value.is_known:
            return self.constant(bool(value.known))
        return Value(types.BOOLEAN, f"({value.text} != 0)")

    def negated(self, value: Value) -> Value:
        """Not a boolean."""
        return self.constant(not value.known) if value.is_known else Value(types.BOOLEAN, f"(~{value.text})")
