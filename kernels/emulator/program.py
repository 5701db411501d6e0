"""Translation of a kernel with the device functions that it calls."""

import ast
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import kernels.emulator.instructions  # noqa: F401  (registers what numba.cuda offers)
from kernels.emulator import types
from kernels.emulator.lanes import Partial, join
from kernels.emulator.libdevice import float_power
from kernels.emulator.loops import Loops
from kernels.emulator.machine import choose
from kernels.emulator.source import Source, assigned, parse
from kernels.emulator.translation import UNKNOWN, Binding, Program, RefusedError, Value, variable


def translate_kernel(function: Callable[..., Any], name: str, kinds: Mapping[str, types.Type], counts: bool) -> Program:
    """A kernel translated for parameters of these types.

    Raises:
        RefusedError: It has something in it that the emulator does not do.
    """
    program = Program(name, counts, function)
    program.namespace.update(_HELPERS)
    given = {
        parameter: Value(kind, variable(parameter), origin=parameter if types.is_array(kind) else "")
        for parameter, kind in kinds.items()
    }
    entry, result, _ = _translate(program, function, given, None, False)
    if result != types.NONE:
        source = parse(function)
        raise RefusedError("a kernel that returns a value", source.file, source.tree.lineno)
    program.entry = program.namespace[entry]
    return program


class Function(Loops):
    """Translates a function."""

    def translated(
        self, function: Callable[..., Any], given: dict[str, Value], inlined: bool
    ) -> tuple[str, types.Type, str]:
        """A device function translated for these arguments."""
        return _translate(self.program, function, given, self, inlined)

    def whole_body(self, nodes: list[ast.stmt]) -> tuple[types.Type, str]:
        """Translate the function's body. Returns the type of its result, and the parameter that that is."""
        *rest, last = nodes
        simple = isinstance(last, ast.Return) and not any(
            isinstance(inner, ast.Return) for node in rest for inner in ast.walk(node)
        )
        if simple and isinstance(last, ast.Return):
            self.body(rest)
            self.line = last.lineno
            value = self.constant(None) if last.value is None else self.expression(last.value)
            if value.type is None:
                self.refuse("returning something that is no number")
            self.emit(f"return {value.text}")
            return value.type, value.origin
        self.emit("E0, R = L, []")
        ended = self.body(nodes)
        kinds = {value.type for value in self.returns} | (set() if ended else {types.NONE})
        if kinds == {types.NONE}:
            return types.NONE, ""
        result = self.returns[0].type
        for kind in kinds:
            result = None if result is None else types.unify(result, kind)
        if result is None or types.NONE in kinds:
            self.refuse(f"a function that returns {' or '.join(sorted(str(kind) for kind in kinds))}")
        self.note_promotion("the result", sorted(kinds, key=str), [result])
        self.emit(f"return join(E0, R, {self.program.constant((self.spec(result),))})[1]")
        origins = {value.origin for value in self.returns}
        return result, origins.pop() if len(origins) == 1 else ""


def _translate(
    program: Program, function: Callable[..., Any], given: dict[str, Value], caller: Function | None, inlined: bool
) -> tuple[str, types.Type, str]:
    key: tuple[Any, ...] = (function, inlined, *((name, *_key(value)) for name, value in given.items()))
    if inlined and caller is not None:
        identity: tuple[Any, ...] = (function, caller.identity, caller.place)
    else:
        # Numba compiles it once for these types, with one shared array for all calls
        kinds = (_key(value) if value.type is None else value.type for value in given.values())
        identity = (function, *kinds)
    found = program.functions.get((key, identity) if key in program.by_call else key)
    if found is not None:
        program.shared_arrays += key in program.by_call
        return found
    arrays = program.shared_arrays
    try:
        source = parse(function)
    except (OSError, SyntaxError) as error:
        if caller is None:
            raise RefusedError(f"{function.__name__}, whose source cannot be read: {error}", "", 0) from error
        caller.refuse(f"{function.__name__}, whose source cannot be read: {error}")
    if function in program.translating and caller is not None:
        caller.refuse(f"{function.__name__} calling itself")
    program.translating.append(function)
    name = f"{function.__name__}_{len(program.functions)}_{len(program.translating)}"
    while name in program.listing:
        name += "_"
    program.listing[name] = ""
    if caller is not None and getattr(function, "is_access", False):
        program.accesses.add(name)
    translator = _begin(program, function, source, given, identity)
    kind, origin = translator.whole_body(source.tree.body)
    own = sorted(translator.variables - set(given))
    body = [(0, " = ".join(variable(one) for one in own) + " = None", source.tree.lineno)] if own else []
    body += translator.out
    if not body:
        body = [(0, "pass", source.tree.lineno)]
    program.compile(name, [variable(parameter) for parameter in given], body, source.file)
    program.translating.pop()
    if not inlined:
        program.shared_arrays = arrays
    elif program.shared_arrays > arrays:
        program.by_call.add(key)
        key = (key, identity)
    program.functions[key] = (name, kind, origin)
    return name, kind, origin


def _begin(
    program: Program, function: Callable[..., Any], source: Source, given: dict[str, Value], identity: Any
) -> Function:
    arguments = source.tree.args
    names = frozenset(given) | assigned(source.tree.body)
    translator = Function(program, function, source, names)
    translator.identity = identity
    if arguments.vararg or arguments.kwarg:
        translator.refuse("parameters by * or **")
    if inspect.isgeneratorfunction(function):
        translator.refuse("a generator")
    for parameter, value in given.items():
        known = value.known
        translator.env[parameter] = Binding(value.type, known, value.origin)
    return translator


def _key(value: Value) -> tuple[Any, ...]:
    known = value.known
    if isinstance(known, np.generic):
        known = (known.dtype.str, known.tobytes())
    elif known is not UNKNOWN and not isinstance(known, int | str | type(None)):
        known = ("object", id(known))
    return value.type, known, value.origin


def _select(condition: Any, a: Any, b: Any) -> Any:
    if type(condition) is not np.ndarray:
        return a if condition else b
    return np.where(condition, a, b)


def _power(base: Any, exponent: int) -> Any:
    """By repeated squaring, as Numba multiplies out a constant exponent."""
    result = base.dtype.type(1)
    while exponent:
        if exponent & 1:
            result = result * base
        exponent >>= 1
        if exponent:
            base = base * base
    return result


def _remainder(a: Any, b: Any) -> Any:
    return a - (a // b) * b


def _extreme(function: Any, other: Any, zeros: Any) -> Any:
    def extreme(a: Any, b: Any) -> Any:
        if a.dtype.kind != "f":
            return other(a, b)
        result = function(a, b)
        if np.any(result == 0):  # of two zeros the sign decides; NumPy returns either
            result = np.where((a == 0) & (b == 0), zeros(a, b), result)[()]
        return result

    return extreme


def _as_type(value: Any, spec: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, Partial):
        return Partial(types.convert(value.values, spec), value.there)
    return types.convert(value, spec)


def _both_signs(a: Any, b: Any) -> Any:
    return np.where(np.signbit(a) & np.signbit(b), a, np.abs(a))


def _either_sign(a: Any, b: Any) -> Any:
    return np.where(np.signbit(a), a, b)


_HELPERS: dict[str, Any] = {
    "np": np,
    "ndarray": np.ndarray,
    "join": join,
    "choose": choose,
    "convert": types.convert,
    "as_type": _as_type,
    "select": _select,
    "power": _power,
    "float_power": float_power,
    "remainder": _remainder,
    "lesser": _extreme(np.fmin, np.minimum, _either_sign),
    "greater": _extreme(np.fmax, np.maximum, _both_signs),
}


def translate_function(function: Callable[..., Any], kinds: list[types.Type]) -> tuple[Callable[..., Any], types.Type]:
    """A device function translated for arguments of these types, and the type of its result."""
    program = Program(function.__name__, False, function)
    program.namespace.update(_HELPERS)
    names = parse(function).parameters
    given = {name: Value(kind, variable(name)) for name, kind in zip(names, kinds, strict=True)}
    translated, kind, _ = _translate(program, function, given, None, False)
    return program.namespace[translated], kind
