"""Statements: assignments to names, elements and several of them; expressions; return."""

import ast
from typing import Any

from kernels.emulator import types
from kernels.emulator.calls import Calls
from kernels.emulator.source import assigned, leaves
from kernels.emulator.translation import UnassignedError, Value, variable


class Statements(Calls):
    """Translates statements."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.loops: list[Any] = []  # around the statement, as `loops` has them
        self.returns: list[Value] = []
        self.live = self.source.live

    def body(self, nodes: list[ast.stmt]) -> bool:
        """Translate statements. Returns whether no lane comes out at their end, whatever happens."""
        depth = self.depth
        try:
            for k, node in enumerate(nodes):
                if self._typed(node):
                    return True
                if leaves([node]) and k + 1 < len(nodes):
                    self.emit("if L is not None:")
                    self.depth += 1
                    self.emit("pass")
            return False
        finally:
            self.depth = depth

    def _typed(self, node: ast.stmt) -> bool:
        """Translate a statement, or leave it for the next pass over the loop around it.

        A variable may be assigned further down in a loop and read in the next trip. While no type of it is known, the
        statements that read it are left out, as are then those that read what they would have assigned.
        """
        loops, depth = len(self.loops), self.depth
        try:
            return self.statement(node)
        except UnassignedError as error:
            del self.loops[loops:]
            self.depth = depth
            if error.translator is not self or not self.loops:
                raise
            self.loops[-1].left_out.append(error)
            for name in assigned([node]):
                self.env.pop(name, None)
            return False

    def statement(self, node: ast.stmt) -> bool:
        """Translate a statement. Returns whether no lane comes out at its end, whatever happens."""
        self.line = node.lineno
        method = getattr(self, f"_on_{type(node).__name__.lower()}", None)
        if method is None:
            self.refuse(f"the statement {ast.unparse(node).splitlines()[0]!r} ({type(node).__name__})")
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if self.program.counts and not docstring and not isinstance(node, ast.Pass):
            self.emit(f"M.observer.statement({self.here()!r}, L.ids, M.threads)")
        return bool(method(node))

    def _on_pass(self, node: ast.Pass) -> None:
        pass

    def _on_expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):
            self.expression(node.value)

    # assignments

    def _on_assign(self, node: ast.Assign) -> None:
        if len(node.targets) > 1:
            value = self._settled(self.expression(node.value))
            for target in node.targets:
                self.assign(target, value)
            return
        target = node.targets[0]
        self.target = ast.unparse(target) if isinstance(target, ast.Name) else ""
        value = self.expression(node.value)
        self.target = ""
        self.assign(target, value)

    def _on_annassign(self, node: ast.AnnAssign) -> None:
        if node.value is None:
            self.refuse("a declaration without a value")
        self.assign(node.target, self.expression(node.value))

    def _settled(self, value: Value) -> Value:
        if value.is_known or value.type is None or value.text.isidentifier():
            return value
        return self.temporary(value.type, value.text, value.origin)

    def assign(self, target: ast.expr, value: Value) -> None:
        """Assign a value to a name, an element, or several of them."""
        if isinstance(target, ast.Name):
            self._set(target.id, value)
        elif isinstance(target, ast.Subscript):
            self._set_element(target, value)
        elif isinstance(target, ast.Tuple | ast.List):
            # all items are computed before any is assigned
            if value.text.startswith("(") and not value.is_known:
                value = self.temporary(value.type, value.text)
            items = self.items_of(value)
            if len(items) != len(target.elts):
                self.refuse(f"unpacking {len(items)} items to {len(target.elts)}")
            for inner, item in zip(target.elts, items, strict=True):
                self.assign(inner, item)
        else:
            self.refuse(f"assigning to {ast.unparse(target)}")

    def _set(self, name: str, value: Value) -> None:
        if value.type is not None:
            self.emit(f"{variable(name)} = {value.text}")
        elif self.loops and name in self.env and self.env[name].type is not None:
            self.refuse(f"the variable {name}, which is a number and something else")
        self.bind(name, value)

    def _set_element(self, target: ast.Subscript, value: Value) -> None:
        value = self._settled(value)
        base = self.expression(target.value)
        if not types.is_array(base.type):
            self.refuse(f"assigning to an item of {base.type}")
        index = self.index(base, target.slice)
        self.line = target.lineno
        self.store(base, index, value)

    def _on_augassign(self, node: ast.AugAssign) -> None:
        target = node.target
        if isinstance(target, ast.Name):
            read = ast.copy_location(ast.Name(target.id, ast.Load()), target)
            value = self.expression(node.value)
            old = self.expression(read)
            self.line = node.lineno
            self._set(target.id, self.binary(type(node.op), old, value))
            return
        if not isinstance(target, ast.Subscript):
            self.refuse(f"assigning to {ast.unparse(target)}")
        base = self.expression(target.value)
        if not types.is_array(base.type):
            self.refuse(f"assigning to an item of {base.type}")
        index = self.index(base, target.slice)
        if not index.is_known and not index.text.isidentifier():
            index = self.temporary(index.type, index.text)
        self.line = node.lineno
        old = self.load(base, index)
        value = self.expression(node.value)
        self.line = node.lineno
        self.store(base, index, self.binary(type(node.op), old, value))

    def _on_return(self, node: ast.Return) -> bool:
        value = self.constant(None) if node.value is None else self.expression(node.value)
        if value.type is None:
            self.refuse("returning something that is no number")
        self.line = node.lineno
        self.returns.append(value)
        if value.type != types.NONE:
            self.emit(f"R.append((L, ({value.text},)))")
        self.emit("L = None")
        return True
