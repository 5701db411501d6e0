"""The source of a kernel or device function: its syntax tree, what it closes over, where which variables are live."""

import ast
import builtins
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

Names = frozenset[str]
EMPTY: Names = frozenset()


@dataclass(frozen=True)
class Source:
    """A function as parsed, shared by all closures that have its code."""

    tree: ast.FunctionDef
    file: str
    parameters: tuple[str, ...]
    live: "Liveness"


def python_function(function: Any) -> Callable[..., Any] | None:
    """The Python function that Numba compiles, or None where there is none."""
    function = getattr(function, "py_func", function)
    return function if inspect.isfunction(function) else None


def parse(function: Callable[..., Any]) -> Source:
    """The source of a function.

    Raises:
        OSError: It has none (it was typed into an interpreter, say).
        SyntaxError: It is a lambda, or stands in a larger expression.
    """
    return _parse(function.__code__)


@functools.cache
def _parse(code: Any) -> Source:
    lines, first = inspect.getsourcelines(code)
    tree = ast.parse(textwrap.dedent("".join(lines)))
    ast.increment_lineno(tree, first - 1)
    definition = tree.body[0]
    if not isinstance(definition, ast.FunctionDef):
        raise SyntaxError("not a def statement")  # noqa: TRY004
    parameters = tuple(argument.arg for argument in definition.args.args)
    return Source(definition, code.co_filename, parameters, Liveness(definition))


def captured(function: Callable[..., Any], name: str) -> Any:
    """What a free name of a function means: from the functions around it, its module, the builtins.

    Raises:
        NameError: It has no value yet.
    """
    code = function.__code__
    if name in code.co_freevars and function.__closure__ is not None:
        try:
            return function.__closure__[code.co_freevars.index(name)].cell_contents
        except ValueError:
            raise NameError(name) from None
    if name in function.__globals__:
        return function.__globals__[name]
    if hasattr(builtins, name):
        return getattr(builtins, name)
    raise NameError(name)


def _free(function: Callable[..., Any]) -> list[Any]:
    """What the names mean that a function finds in the functions around it and in its module."""
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # not assigned yet
            found.append(None)
    known = function.__globals__
    found += [known[name] for name in function.__code__.co_names if name in known]
    return found


class Same:
    """An object as part of a key, by its identity."""

    __slots__ = ("one",)

    def __init__(self, one: Any) -> None:
        self.one = one

    def __hash__(self) -> int:
        return id(self.one)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.one is other.one


def meanings(function: Callable[..., Any]) -> tuple[Same, ...]:
    """What the names mean that a kernel, and the device functions that it calls, find around them."""
    found: list[Same] = []
    seen: set[int] = set()
    waiting: list[Any] = [function]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        for meaning in _free(one):
            found.append(Same(meaning))
            inner = python_function(meaning)
            if inner is not None and not (inner.__module__ or "").startswith("numba"):
                waiting.append(inner)
    return tuple(found)


def assigned(nodes: Iterable[ast.AST]) -> Names:
    """Variables to which these statements assign."""
    found = set()
    for node in nodes:
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                found.add(inner.id)
            if isinstance(inner, ast.For):
                found.update(loop_names(inner))
    return frozenset(found)


def used(nodes: Iterable[ast.AST]) -> Names:
    """Names that these statements or expressions read."""
    found = set()
    for node in nodes:
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Load):
                found.add(inner.id)
            if isinstance(inner, ast.AugAssign) and isinstance(inner.target, ast.Name):
                found.add(inner.target.id)
            if isinstance(inner, ast.For):
                found.update(loop_names(inner))
    return frozenset(found)


def loop_names(node: ast.For) -> tuple[str, str]:
    """Hidden variables of a for loop: the next value and the number of trips left."""
    return f"{node.lineno}_{node.col_offset}.next", f"{node.lineno}_{node.col_offset}.left"


def leaves(nodes: Iterable[ast.stmt], in_loop: bool = False) -> bool:
    """Whether lanes may leave these statements other than at their end."""
    for node in nodes:
        if isinstance(node, ast.Return) or (isinstance(node, ast.Break | ast.Continue) and not in_loop):
            return True
        if isinstance(node, ast.If) and leaves([*node.body, *node.orelse], in_loop):
            return True
        if isinstance(node, ast.For | ast.While) and leaves(node.body, True):
            return True
    return False


@dataclass
class _Exits:
    """Live variables where break and continue lead."""

    at_break: Names = EMPTY
    at_continue: Names = EMPTY


@dataclass
class Liveness:
    """Which variables are read later: by statement, before and after it, at the head of a loop."""

    definition: ast.FunctionDef
    before: dict[ast.AST, Names] = field(default_factory=dict)
    after: dict[ast.AST, Names] = field(default_factory=dict)
    head: dict[ast.AST, Names] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.block(self.definition.body, EMPTY, _Exits())

    def entry(self, nodes: list[ast.stmt], otherwise: Names) -> Names:
        """Live before a list of statements that may be empty."""
        return self.before[nodes[0]] if nodes else otherwise

    def block(self, nodes: list[ast.stmt], live: Names, exits: _Exits) -> Names:
        """Live before statements, from what is live after them and where they lead to."""
        for node in reversed(nodes):
            self.after[node] = live
            live = self.before[node] = self._statement(node, live, exits)
        return live

    def _statement(self, node: ast.stmt, live: Names, exits: _Exits) -> Names:
        match node:
            case ast.Return():
                return used([node])
            case ast.Break():
                return exits.at_break
            case ast.Continue():
                return exits.at_continue
            case ast.If():
                body, orelse = (self.block(part, live, exits) for part in (node.body, node.orelse))
                return body | orelse | used([node.test])
            case ast.While():
                return self._loop(node, used([node.test]), EMPTY, live)
            case ast.For():
                hidden = frozenset(loop_names(node))
                inside = self._loop(node, hidden, assigned([node.target]), live)
                return (inside - hidden) | used([node.iter])
            case _:
                names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
                return (live - names) | used([node])

    def _loop(self, node: ast.While | ast.For, read: Names, written: Names, live: Names) -> Names:
        # what is live at the head includes what is live there in the next trip: up to the fixed point
        head = live | read
        while True:
            body = self.block(node.body, head, _Exits(live, head))
            grown = head | (body - written)
            if grown == head:
                self.head[node] = head
                return head
            head = grown
