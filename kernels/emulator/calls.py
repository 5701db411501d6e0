"""Calls: device functions, intrinsics by their twins, types as conversions, and what Numba knows by name."""

import ast
import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda
from numba.core import types as numba_types

from kernels.emulator import types
from kernels.emulator.access import Access
from kernels.emulator.source import python_function
from kernels.emulator.translation import ADDRESS, LOCAL, Value

Arguments = list[Value]


class Calls(Access):
    """Translates calls."""

    def _on_call(self, node: ast.Call) -> Value:
        target = self.expression(node.func)
        if not target.is_known or target.type is not None:
            self.refuse(f"calling {ast.unparse(node.func)}")
        if any(isinstance(argument, ast.Starred) for argument in node.args) or any(
            k.arg is None for k in node.keywords
        ):
            self.refuse("arguments by * or **")
        arguments = [self.expression(argument) for argument in node.args]
        keywords = {keyword.arg or "": self.expression(keyword.value) for keyword in node.keywords}
        self.line = node.lineno
        self.place = (node.lineno, node.col_offset)
        return self.call(target.known, arguments, keywords)

    def call(self, target: Any, arguments: Arguments, keywords: dict[str, Value]) -> Value:
        """Call something known while translating."""
        kind = _number_type(target)
        if kind is not None:
            if len(arguments) != 1 or keywords:
                self.refuse(f"{target} of {len(arguments)} arguments")
            return self.cast(arguments[0], kind)
        handler = _find(HANDLERS, target)
        if handler is not None:
            return handler(self, arguments, **keywords)
        twin = _twins().get(target) if _hashable(target) else None
        if twin is not None:
            return self._intrinsic(target, twin, arguments, keywords)
        function = _find(_scalar_functions(), target)
        if function is not None and not keywords:
            return self.scalar_function(target, function, arguments)
        source = python_function(target)
        if source is not None and not _belongs_to_numba(source):
            return self.device_function(source, arguments, keywords, _is_inlined(target))
        name = getattr(target, "__qualname__", None) or getattr(target, "__name__", None) or repr(target)
        module = getattr(target, "__module__", "")
        return self.refuse(f"calling {module + '.' if module else ''}{name}")

    def device_function(
        self, function: Callable[..., Any], arguments: Arguments, keywords: dict[str, Value], inlined: bool
    ) -> Value:
        """Call a Python function, translated for these arguments."""
        try:
            bound = inspect.signature(function).bind(*(arguments), **keywords)
        except TypeError as error:
            self.refuse(f"calling {function.__name__}: {error}")
        bound.apply_defaults()
        given = {
            name: value if isinstance(value, Value) else self.constant(value) for name, value in bound.arguments.items()
        }
        name, kind, origin = self.translated(function, given, inlined)
        texts = [value.text for value in given.values()]
        result = f"{name}({', '.join(['M', 'L', *texts])})"
        if kind == types.NONE:
            self.emit(result)
            return self.constant(None)
        return self.temporary(kind, result, origin)

    def translated(
        self, function: Callable[..., Any], given: dict[str, Value], inlined: bool
    ) -> tuple[str, types.Type, str]:
        """A function translated for these arguments: its name, the type of its result, the parameter that that is."""
        raise NotImplementedError

    def atomic(self, operation: str, array: Value, index: Value, values: Arguments) -> Value:
        """Update an array's element. The value is what was there."""
        if array.origin == LOCAL:
            self.refuse("an atomic operation on a local array")
        self.program.reads.add(array.origin)
        self.program.writes.add(array.origin)
        kind = array.type.dtype
        texts = "".join(self.cast(value, kind).text + ", " for value in values)
        index = self.index_of(array, index)
        return self.temporary(kind, f"{array.text}.atomic(L, {operation!r}, {index.text}, ({texts}))")

    def _intrinsic(self, target: Any, twin: Any, arguments: Arguments, keywords: dict[str, Value]) -> Value:
        if keywords:
            self.refuse(f"keyword arguments of {target}")
        if any(argument.type is None for argument in arguments):
            self.refuse(f"an argument of {target} that is no number")
        name = getattr(target, "_name", None) or getattr(target, "__name__", None) or repr(target)
        kinds = tuple(_literal(argument) for argument in arguments)
        given, result = self.signature(target, kinds, name)
        from kernels.emulator.bulk_copy import IN_PROXY
        from kernels.emulator.twins import ONLY_READ, ONLY_WRITE

        self.program.async_proxy |= target in IN_PROXY
        for argument in arguments:
            if types.is_array(argument.type) and target not in ONLY_WRITE:
                self.program.reads.add(argument.origin)
            if types.is_array(argument.type) and target not in ONLY_READ:
                self.program.writes.add(argument.origin)
        values = [
            self.cast(value, kind) if types.is_number(kind) else value
            for value, kind in zip(arguments, given, strict=True)
        ]
        function = self.program.constant(twin)
        text = f"{function}({', '.join(['M.context(L)', *(value.text for value in values)])})"
        if result in (types.NONE, numba_types.void):
            self.emit(text)
            return self.constant(None)
        return self.temporary(result, text, ADDRESS if types.is_pointer(result) else "")

    def scalar_function(self, target: Any, function: Any, arguments: Arguments) -> Value:
        """Call a function of numbers, typed by Numba."""
        name = getattr(target, "__name__", repr(target))
        if any(argument.type is None for argument in arguments):
            self.refuse(f"{name} of something that is no number")
        given, result = self.signature(target, tuple(argument.type for argument in arguments), name)
        self.note_promotion(name, [argument.type for argument in arguments], [*given, result])
        values = [self.cast(value, kind) for value, kind in zip(arguments, given, strict=True)]
        self.count(name, result)
        text = f"{self.program.constant(function)}({', '.join(value.text for value in values)})"
        if types.is_tuple(result):
            return self.temporary(result, text)
        dtype = self.program.constant(types.dtype_of(result))
        return self.temporary(result, f"convert({text}, {dtype})")

    def numbers(self, name: str, arguments: Arguments, count: int) -> None:
        """Refuse any number of arguments but `count`."""
        if len(arguments) != count:
            self.refuse(f"{name} with {len(arguments)} arguments")


def _literal(value: Value) -> Any:
    if value.is_known and types.is_integer(value.type):
        return types.literal(int(value.known))
    return value.type


def _is_inlined(target: Any) -> bool:
    """Whether Numba makes a device function part of its caller, with shared arrays of its own at each call."""
    return getattr(target, "targetoptions", {}).get("inline") in ("always", True)


def _number_type(target: Any) -> types.Type:
    if types.is_number(target) if isinstance(target, numba_types.Type) else False:
        return target
    if isinstance(target, type) and issubclass(target, np.generic):
        return types.of_dtype(np.dtype(target))
    return None


def _hashable(target: Any) -> bool:
    try:
        hash(target)
    except TypeError:
        return False
    return True


def _find(table: dict[Any, Any], target: Any) -> Any:
    return table.get(target) if _hashable(target) else None


def _twins() -> dict[Any, Any]:
    import kernels.emulator.bulk_copy
    import kernels.emulator.tensor
    import kernels.emulator.twins
    import kernels.emulator.wgmma  # noqa: F401
    from kernels.intrinsics import TWINS

    return TWINS


def _scalar_functions() -> dict[Any, Any]:
    from kernels.emulator.scalar import FUNCTIONS

    return FUNCTIONS


def _belongs_to_numba(function: Callable[..., Any]) -> bool:
    module = function.__module__ or ""
    return module.split(".")[0] in ("numba", "numba_cuda", "math", "numpy")


Handler = Callable[..., Value]
HANDLERS: dict[Any, Handler] = {}


def handles(*targets: Any) -> Callable[[Handler], Handler]:
    """Register what translates calls of these objects."""

    def register(handler: Handler) -> Handler:
        for target in targets:
            if target is not None:
                HANDLERS[target] = handler
        return handler

    return register


@handles(len)
def _len(t: Calls, arguments: Arguments) -> Value:
    (value,) = arguments
    if types.is_tuple(value.type):
        return t.constant(len(value.type))
    if types.is_array(value.type) and not types.is_pointer(value.type):
        return Value(types.INT64, f"{value.text}.shape[0]")
    return t.refuse(f"len of {value.type}")


def _builtin_conversion(target: Any) -> Handler:
    def convert(t: Calls, arguments: Arguments) -> Value:
        t.numbers(target.__name__, arguments, 1)
        if target is bool:
            return t.truth(arguments[0])
        return t.cast(arguments[0], t.signature(target, (arguments[0].type,), target.__name__)[1])

    return convert


for _target in (int, float, bool):
    HANDLERS[_target] = _builtin_conversion(_target)


@handles(abs)
def _abs(t: Calls, arguments: Arguments) -> Value:
    t.numbers("abs", arguments, 1)
    _, result = t.signature(abs, (arguments[0].type,), "abs")
    t.count("abs", result)
    return Value(result, f"abs({t.cast(arguments[0], result).text})")


def _extreme(target: Any, function: str) -> Handler:
    def extreme(t: Calls, arguments: Arguments) -> Value:
        values = arguments
        if len(values) == 1 and types.is_tuple(values[0].type):
            values = t.items_of(values[0])
        if len(values) < 2:
            t.refuse(f"{target.__name__} of {len(values)} values")
        result = values[0]
        for value in values[1:]:
            given = [result.type, value.type]
            _, kind = t.signature(target, tuple(given), target.__name__)
            t.note_promotion(target.__name__, given, [kind])
            a, b = t.cast(result, kind), t.cast(value, kind)
            result = t.operation(kind, target.__name__, a, b, f"{function}({{}}, {{}})")
        return result

    return extreme


HANDLERS[min] = _extreme(min, "lesser")
HANDLERS[max] = _extreme(max, "greater")


@handles(getattr(cuda, "selp", None))
def _selp(t: Calls, arguments: Arguments) -> Value:
    t.numbers("selp", arguments, 3)
    a, b = arguments[1:]
    kind = types.unify(a.type, b.type)
    return Value(kind, f"select({t.truth(arguments[0]).text}, {t.cast(a, kind).text}, {t.cast(b, kind).text})")


@handles(round)
def _round(t: Calls, arguments: Arguments) -> Value:
    t.numbers("round", arguments, 1)
    if not types.is_float(arguments[0].type):
        t.refuse(f"round of {arguments[0].type}")
    rounded = Value(arguments[0].type, f"np.rint({arguments[0].text})")
    return t.cast(rounded, t.signature(round, (arguments[0].type,), "round")[1])


@handles(range)
def _range(t: Calls, arguments: Arguments) -> Value:
    return t.refuse(f"range of {len(arguments)} arguments, other than in a for statement")


@handles(print)
def _print(t: Calls, *_: Any, **__: Any) -> Value:
    return t.refuse("print")


def _test(name: str) -> Handler:
    def test(t: Calls, arguments: Arguments) -> Value:
        t.numbers(f"math.{name}", arguments, 1)
        return Value(types.BOOLEAN, f"np.{name}({arguments[0].text})")

    return test


for _name in ("isnan", "isinf", "isfinite"):
    HANDLERS[getattr(math, _name)] = _test(_name)
