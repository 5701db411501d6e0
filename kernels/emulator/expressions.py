"""Expressions: names, constants, comparisons and choices of which each lane evaluates only what it needs."""

import ast
from collections.abc import Callable
from typing import Any

from kernels.emulator import types
from kernels.emulator.operators import Operators
from kernels.emulator.source import captured, used
from kernels.emulator.translation import UNKNOWN, UnassignedError, Value, variable


class Expressions(Operators):
    """Translates expressions."""

    def expression(self, node: ast.expr) -> Value:
        """Translate an expression; what has effects is computed here and now."""
        self.line = node.lineno
        method = getattr(self, f"_on_{type(node).__name__.lower()}", None)
        if method is None:
            self.refuse(f"the expression {ast.unparse(node)!r} ({type(node).__name__})")
        return method(node)

    def _on_constant(self, node: ast.Constant) -> Value:
        if types.of_constant(node.value) is None and not isinstance(node.value, str):
            self.refuse(f"the constant {node.value!r}")
        return self.constant(node.value)

    def _on_name(self, node: ast.Name) -> Value:
        name = node.id
        if name not in self.variables:
            try:
                return self.constant(captured(self.function, name))
            except NameError:
                self.refuse(f"the name {name}, which has no value")
        binding = self.env.get(name)
        if binding is None:
            raise UnassignedError(self, name)
        if binding.type is None:
            return Value(None, "None", known=binding.known)
        text = variable(name)
        if not binding.definite:
            self.emit(f"{text} = M.assigned(L, {text}, {name!r})")
            self.env[name] = type(binding)(binding.type, binding.known, binding.origin)
        elif binding.known is not UNKNOWN:
            return Value(binding.type, self.program.constant(binding.known), binding.known)
        return Value(binding.type, text, binding.known, binding.origin)

    def _on_tuple(self, node: ast.Tuple) -> Value:
        return self.tuple_of([self.expression(item) for item in node.elts])

    def _on_binop(self, node: ast.BinOp) -> Value:
        left, right = self.expression(node.left), self.expression(node.right)
        self.line = node.lineno
        return self.binary(type(node.op), left, right)

    def _on_unaryop(self, node: ast.UnaryOp) -> Value:
        value = self.expression(node.operand)
        self.line = node.lineno
        if isinstance(node.op, ast.Not):
            return self.negated(self.truth(value))
        return self.unary(type(node.op), value)

    def _on_compare(self, node: ast.Compare) -> Value:
        left = self.expression(node.left)
        parts: list[tuple[type[ast.AST], ast.expr]] = [
            (type(op), right) for op, right in zip(node.ops, node.comparators, strict=True)
        ]
        return self._chain(left, parts)

    def _chain(self, left: Value, parts: list[tuple[type[ast.AST], ast.expr]]) -> Value:
        (kind, right_node), *rest = parts
        right = self.expression(right_node)
        if kind in (ast.Is, ast.IsNot):
            if not (left.is_known and right.is_known):
                if types.NONE in (left.type, right.type):
                    return self.constant(kind is ast.IsNot)
                self.refuse("is, between values that are no constants")
            first = self.constant((left.known is right.known) == (kind is ast.Is))
        else:
            first = self.truth(self.binary(kind, left, right))
        if not rest:
            return first
        if first.is_known and not first.known:
            return first
        kept = right if right.is_known or right.text.isidentifier() else self.temporary(right.type, right.text)
        shield = frozenset() if kept.is_known else frozenset([kept.text])
        names = used([node for _, node in rest])
        return self._both(first, lambda: self._chain(kept, rest), names, shield)

    def _on_boolop(self, node: ast.BoolOp) -> Value:
        return self._junction(isinstance(node.op, ast.And), node.values)

    def _junction(self, is_and: bool, nodes: list[ast.expr]) -> Value:
        value = self.expression(nodes[0])
        if len(nodes) == 1:
            if value.type != types.BOOLEAN:
                self.refuse(f"and/or between values of {value.type}: compare them first")
            return value
        if value.type != types.BOOLEAN:
            self.refuse(f"and/or between values of {value.type}: compare them first")
        if value.is_known:
            return value if bool(value.known) != is_and else self._junction(is_and, nodes[1:])
        names = used(nodes[1:])
        if is_and:
            return self._both(value, lambda: self._junction(is_and, nodes[1:]), names)
        return self.choice(value, lambda: self.constant(True), lambda: self._junction(is_and, nodes[1:]), names)

    def _both(
        self, first: Value, second: Callable[[], Value], names: frozenset[str], shield: frozenset[str] = frozenset()
    ) -> Value:
        return self.choice(first, second, lambda: self.constant(False), names, shield)

    def _on_ifexp(self, node: ast.IfExp) -> Value:
        condition = self.truth(self.expression(node.test))
        names = used([node.body, node.orelse])
        return self.choice(condition, lambda: self.expression(node.body), lambda: self.expression(node.orelse), names)

    def choice(
        self,
        condition: Value,
        yes: Callable[[], Value],
        no: Callable[[], Value],
        names: frozenset[str],
        shield: frozenset[str] = frozenset(),
    ) -> Value:
        """One of two values; each is computed by the lanes that need it only, unless neither can do harm.

        Args:
            condition: A boolean.
            yes: Translates the value where the condition holds.
            no: Translates the other one.
            names: Variables that either reads.
            shield: Intermediate values that either reads.
        """
        if condition.is_known:
            return yes() if condition.known else no()
        if not condition.text.isidentifier():
            condition = self.temporary(types.BOOLEAN, condition.text)
        env = dict(self.env)
        with self.captured() as first:
            a = yes()
        self.env = dict(env)
        with self.captured() as second:
            b = no()
        self.env = dict(env)
        if a.type is None or b.type is None:
            self.refuse("a choice between things that are no numbers")
        kind = types.unify(a.type, b.type)
        if kind is None:
            self.refuse(f"a value that is {a.type} or {b.type}")
        if types.is_array(kind) and not types.is_pointer(kind):
            self.refuse("a choice between arrays")
        self.note_promotion("choice", [a.type, b.type], [kind])
        with self.captured() as more:
            a = self.cast(a, kind)
        first += more
        with self.captured() as more:
            b = self.cast(b, kind)
        second += more
        if kind == types.BOOLEAN and not second and b.is_known and not b.known and not first:
            return Value(kind, f"({condition.text} & {a.text})")
        if kind == types.BOOLEAN and not first and a.is_known and a.known and not second:
            return Value(kind, f"({condition.text} | {b.text})")
        if not first and not second and types.is_number(kind):
            return Value(kind, f"select({condition.text}, {a.text}, {b.text})")
        return self._split_choice(condition, kind, (first, a), (second, b), names, shield)

    def _split_choice(
        self, condition: Value, kind: types.Type, yes: Any, no: Any, names: frozenset[str], shield: frozenset[str]
    ) -> Value:
        k = self.number()
        own = self.runtime_names(names)
        kept = (
            "(" + "".join([*(variable(name) + ", " for name in own), *(name + ", " for name in sorted(shield))]) + ")"
        )
        self.emit(f"T{k}, F{k} = L.split({condition.text})")
        self.emit(f"P{k} = L")
        if kept != "()":
            self.emit(f"S{k} = {kept}")
        for branch, (lines, value) in (("T", yes), ("F", no)):
            with self.block(f"if {branch}{k} is not None:"):
                self.emit(f"L = {branch}{k}")
                if kept != "()":
                    with self.block(f"if L is not P{k}:"):
                        self.emit(f"{kept} = L.gather(*S{k})")
                self.paste(lines)
                self.emit(f"{branch}r{k} = {value.text}")
        if kept != "()":
            self.emit(f"{kept} = S{k}")
        self.emit(f"L = P{k}")
        spec = self.program.constant(self.spec(kind))
        text = f"Tr{k} if F{k} is None else Fr{k} if T{k} is None else choose(L, T{k}, Tr{k}, F{k}, Fr{k}, {spec})"
        return self.temporary(kind, text)
