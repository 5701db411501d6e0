"""The frame of a translation: a kernel's source becomes a Python function over vectors.

The translated function takes the machine, the active lanes and the arguments. It has the kernel's file and line
numbers, so that a fault is found at the line that is running. In it

    M, L        the machine, the lanes active now (None where all have left)
    v_name      the kernel's variable: a scalar where uniform, else a vector over L; None before it is assigned
    t1, t2      intermediate values
    c1, c2      constants and functions, which are globals
"""

import ast
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import numpy as np

from kernels.emulator import types
from kernels.emulator.faults import Float64Promotion
from kernels.emulator.source import Source

UNKNOWN: Any = object()
SHARED, LOCAL, ADDRESS = "#shared", "#local", "#address"  # origins of arrays that are no parameters
Line = tuple[int, str, int]  # depth, text, line of the source


@dataclass(frozen=True)
class Value:
    """An expression as translated.

    Attributes:
        type: Numba's type; None for what exists only while translating: functions, modules, dtypes.
        text: A Python expression without effects, of names alone.
        known: Its value, if that is a constant.
        origin: Of an array the parameter that it is; "" where that is not known.
    """

    type: types.Type
    text: str
    known: Any = UNKNOWN
    origin: str = ""

    @property
    def is_known(self) -> bool:
        """Whether the value is a constant."""
        return self.known is not UNKNOWN


@dataclass(frozen=True)
class Binding:
    """What is known of a variable at a point of the program; `definite`: every lane has assigned it."""

    type: types.Type
    known: Any = UNKNOWN
    origin: str = ""
    definite: bool = True

    def is_same_constant(self, other: "Binding") -> bool:
        """Whether both are one known number."""
        a, b = self.known, other.known
        if not (isinstance(a, np.generic) and isinstance(b, np.generic)):
            return a is b and a is not UNKNOWN
        return a.dtype == b.dtype and a.tobytes() == b.tobytes()


class RefusedError(Exception):
    """The emulator does not do this."""

    def __init__(self, what: str, file: str, line: int) -> None:
        super().__init__(what)
        self.what = what
        self.file = file
        self.line = line


class UnassignedError(RefusedError):
    """A variable is read, and no assignment to it is known so far; there may be one later in a loop."""

    def __init__(self, translator: "Translator", name: str) -> None:
        what = f"the variable {name}, read before it is assigned on some path"
        super().__init__(what, translator.source.file, translator.line)
        self.translator = translator
        self.name = name


@dataclass(frozen=True)
class SharedSite:
    """A place in the source that asks for a shared array."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    alignment: int

    @property
    def dynamic(self) -> bool:
        """Whether it is the memory asked for at launch."""
        return self.shape == (0,)


@dataclass
class Program:
    """A kernel and all device functions that it calls, translated for certain types."""

    name: str
    counts: bool
    function: Any  # the kernel
    namespace: dict[str, Any] = field(default_factory=dict)
    functions: dict[Any, Any] = field(default_factory=dict)
    translating: list[Any] = field(default_factory=list)
    sites: dict[Any, SharedSite] = field(default_factory=dict)
    shared_arrays: int = 0  # how often the translation came by one
    by_call: set[Any] = field(default_factory=set)  # functions whose calls have shared arrays of their own
    accesses: set[str] = field(default_factory=set)  # functions that are reported at the line of their call
    reads: set[str] = field(default_factory=set)
    writes: set[str] = field(default_factory=set)
    promotions: dict[tuple[str, int], Float64Promotion] = field(default_factory=dict)
    cooperative: bool = False
    async_proxy: bool = False  # whether shared memory is used by wgmma or the copy engine
    entry: Callable[..., Any] | None = None
    listing: dict[str, str] = field(default_factory=dict)
    _constants: dict[Any, str] = field(default_factory=dict)

    def constant(self, value: Any) -> str:
        """The name of a constant in the translated functions."""
        key: Any = id(value)
        if isinstance(value, np.generic):
            key = (value.dtype, value.tobytes())
        elif isinstance(value, int | str):
            key = (type(value), value)
        if key not in self._constants:
            name = f"c{len(self._constants) + 1}"
            self._constants[key] = name
            self.namespace[name] = value  # kept alive there, so that an id stays its own
        return self._constants[key]

    def compile(self, name: str, parameters: list[str], body: list[Line], file: str) -> None:
        """Make a translated function of its lines."""
        lines = [(0, f"def {name}({', '.join(['M', 'L', *parameters])}):", body[0][2] if body else 1)]
        lines += [(depth + 1, text, line) for depth, text, line in body]
        text = "\n".join("    " * depth + text for depth, text, _ in lines)
        self.listing[name] = text
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.stmt | ast.expr | ast.arg | ast.keyword):
                node.lineno = node.end_lineno = lines[node.lineno - 1][2]
                node.col_offset = node.end_col_offset = 0
        exec(compile(tree, file, "exec"), self.namespace)


class Translator:
    """Translates one function; its parts are in `expressions`, `calls` and `statements`."""

    def __init__(
        self, program: Program, function: Callable[..., Any], source: Source, variables: frozenset[str]
    ) -> None:
        self.program = program
        self.function = function
        self.source = source
        self.variables = variables  # all names that are the function's own
        self.env: dict[str, Binding] = {}
        self.out: list[Line] = []
        self.depth = 0
        self.line = source.tree.lineno
        self.place = (0, 0)  # line and column of the call being translated
        self.target = ""  # the variable being assigned to
        self.identity: Any = None  # tells translations of one function apart
        self._numbers = 0

    def refuse(self, what: str) -> NoReturn:
        """Raise RefusedError at the current line."""
        raise RefusedError(what, self.source.file, self.line)

    def here(self) -> tuple[str, int]:
        """File and line that are being translated."""
        return self.source.file, self.line

    def number(self) -> int:
        """A number for new names."""
        self._numbers += 1
        return self._numbers

    def emit(self, text: str) -> None:
        """Append a line to the translation."""
        self.out.append((self.depth, text, self.line))

    @contextmanager
    def block(self, text: str) -> Iterator[None]:
        """Append a line, and what follows indented."""
        self.emit(text)
        self.depth += 1
        start = len(self.out)
        yield
        if len(self.out) == start:
            self.emit("pass")
        self.depth -= 1

    @contextmanager
    def captured(self) -> Iterator[list[Line]]:
        """Collect lines instead of appending them; `paste` puts them in place."""
        outer, depth = self.out, self.depth
        self.out, self.depth = [], 0
        try:
            yield self.out
        finally:
            self.out, self.depth = outer, depth

    def paste(self, lines: list[Line]) -> None:
        """Append collected lines here."""
        self.out += [(depth + self.depth, text, line) for depth, text, line in lines]

    def temporary(self, kind: types.Type, text: str, origin: str = "") -> Value:
        """Compute something here and now, for use below."""
        name = f"t{self.number()}"
        self.emit(f"{name} = {text}")
        return Value(kind, name, origin=origin)

    def constant(self, value: Any, kind: types.Type = None) -> Value:
        """A constant number or tuple, or what exists only while translating."""
        kind = types.of_constant(value) if kind is None else kind
        if kind is None:
            return Value(None, "None", known=value)
        scalar = types.constant(value, kind)
        return Value(kind, self.program.constant(scalar), known=scalar)

    def promoted(self, what: str) -> None:
        """Note arithmetic in float64 at this line."""
        key = (self.source.file, self.line)
        self.program.promotions.setdefault(
            key, Float64Promotion(what, kernel=self.program.name, line=self.line, file=self.source.file)
        )

    def bind(self, name: str, value: Value) -> None:
        """Note what a variable now is."""
        self.env[name] = Binding(value.type, value.known, value.origin)

    def runtime_names(self, names: Any) -> list[str]:
        """Of some names those of variables that exist when the kernel runs, in order."""
        return sorted(
            name for name in names if name in self.variables and not (name in self.env and self.env[name].type is None)
        )

    def spec(self, kind: types.Type) -> Any:
        """How `lanes.join` treats a variable of this type."""
        if types.is_number(kind):
            return types.dtype_of(kind)
        if types.is_tuple(kind):
            return tuple(self.spec(item) for item in kind)
        return None

    def forget(self, names: Any) -> None:
        """Forget the constant values of variables."""
        for name in names:
            if name in self.env and self.env[name].type is not None:
                self.env[name] = replace(self.env[name], known=UNKNOWN)


def variable(name: str) -> str:
    """A kernel's variable in the translated function."""
    return "v_" + name.replace(".", "_")


def listed(names: list[str]) -> str:
    """Variables as a tuple of names."""
    return "(" + "".join(variable(name) + ", " for name in names) + ")"
