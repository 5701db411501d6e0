"""Branches: where lanes part and meet.

Where lanes part, the variables that are live are narrowed to those lanes; where they meet, joined. In between, `L` is
None for nobody, and statements are skipped. As long as all lanes agree none of that happens.
"""

import ast
from dataclasses import replace

from kernels.emulator import types
from kernels.emulator.source import Names, assigned, leaves, used
from kernels.emulator.statements import Statements
from kernels.emulator.translation import UNKNOWN, Binding, Line, Value, listed, variable

Env = dict[str, Binding]


class Branches(Statements):
    """Translates if statements."""

    def _narrowing(self, nodes: list[ast.stmt], extra: Names, live: Names) -> Names:
        """Of live variables those that must be narrowed where lanes enter these statements.

        A variable that is not live may be left over lanes that are long gone, and must not be touched.
        """
        if any(isinstance(inner, ast.Break | ast.Continue | ast.Return) for node in nodes for inner in ast.walk(node)):
            return live  # lanes that leave carry what is live where they go
        return live & (used(nodes) | assigned(nodes) | extra)

    def _on_if(self, node: ast.If) -> bool:
        condition = self.truth(self.expression(node.test))
        if condition.is_known:
            return self.body(node.body if condition.known else node.orelse)
        live_out = self.live.after[node]
        losing = leaves([node])
        env = dict(self.env)
        with self.captured() as then_lines:
            then_ends = self.body(node.body)
        then_env, self.env = self.env, dict(env)
        with self.captured() as else_lines:
            else_ends = self.body(node.orelse)
        else_env = self.env
        ends = [e for e, ended in ((then_env, then_ends), (else_env, else_ends)) if not ended]
        self.env = self._merged(ends, live_out) if ends else env
        for lines, branch_env, ended in ((then_lines, then_env, then_ends), (else_lines, else_env, else_ends)):
            if not ended:
                lines += self._casts(branch_env, self.env)
        changed = assigned([*node.body, *node.orelse])
        self._emit_if(node, condition, then_lines, else_lines, live_out, changed, losing)
        return then_ends and else_ends

    def _emit_if(
        self,
        node: ast.If,
        condition: Value,
        then_lines: list[Line],
        else_lines: list[Line],
        live_out: Names,
        changed: Names,
        losing: bool,
    ) -> None:
        k = self.number()
        self.line = node.lineno
        joined = self.runtime_names(live_out if losing else changed & live_out)
        into_then = self._narrowing(node.body, frozenset(joined), self.live.entry(node.body, live_out))
        into_else = self._narrowing(node.orelse, frozenset(joined), self.live.entry(node.orelse, live_out))
        to_then, to_else = self.runtime_names(into_then), self.runtime_names(into_else)
        kept = listed(self.runtime_names({*into_then, *into_else, *joined, *changed}))
        self._observe_branch(condition)
        self.emit(f"T{k}, F{k} = L.split({condition.text})")
        self.emit(f"P{k} = L if T{k} is not None and F{k} is not None else None")
        if kept != "()":
            with self.block(f"if P{k} is not None:"):
                self.emit(f"S{k} = {kept}")
        self._emit_branch(f"T{k}", f"P{k}", to_then, then_lines)
        with self.block(f"if P{k} is not None:"):
            self.emit(f"J{k} = (L, {listed(joined)})")
            if kept != "()":
                self.emit(f"{kept} = S{k}")
        self._emit_branch(f"F{k}", f"P{k}", to_else, else_lines)
        with self.block(f"if P{k} is not None:"):
            parts = f"(J{k}, (L, {listed(joined)}))"
            if losing:
                self.emit(f"{self._joined(joined)} = join(P{k}, {parts}, {self._specs(joined)})")
            elif joined:
                self.emit(f"V{k} = join(P{k}, {parts}, {self._specs(joined)})")
                self.emit(f"{kept} = S{k}")
                self.emit(f"{self._joined(joined)} = V{k}")
            else:
                if kept != "()":
                    self.emit(f"{kept} = S{k}")
                self.emit(f"L = P{k}")

    def _emit_branch(self, lanes: str, parent: str, narrowed: list[str], lines: list[Line]) -> None:
        with self.block(f"if {lanes} is not None:"):
            self.emit(f"L = {lanes}")
            if narrowed:
                with self.block(f"if {parent} is not None:"):
                    self.emit(f"{listed(narrowed)} = L.gather{listed(narrowed)}")
            self.paste(lines)

    def _joined(self, names: list[str]) -> str:
        return ", ".join(["L", *(variable(name) for name in names)]) + ","

    def _specs(self, names: list[str]) -> str:
        specs = tuple(self.spec(self.env[name].type) if name in self.env else None for name in names)
        return self.program.constant(specs)

    def _observe_branch(self, condition: Value) -> None:
        if self.program.counts:
            self.emit(f"M.observer.branch({self.here()!r}, {condition.text}, L.ids, M.threads)")

    def _merged(self, envs: list[Env], live: Names) -> Env:
        """What variables are where paths meet."""
        first, *rest = envs
        if not rest:
            return dict(first)
        merged: Env = {}
        for name in sorted({name for env in envs for name in env}):
            there = [env[name] for env in envs if name in env]
            binding = there[0]
            for other in there[1:]:
                binding = self._unified(name, binding, other, name in live)
            definite = len(there) == len(envs) and all(one.definite for one in there)
            if len(there) < len(envs) and binding.type is not None and binding.known is not UNKNOWN:
                binding = replace(binding, known=UNKNOWN)
            merged[name] = binding if binding.definite == definite else replace(binding, definite=definite)
        return merged

    def _unified(self, name: str, a: Binding, b: Binding, live: bool) -> Binding:
        if a is b:
            return a
        if a.type is None or b.type is None:
            if a.type is b.type and a.known is b.known:
                return a
            if live:
                self.refuse(f"the variable {name}, which is one thing or another where branches meet")
            return a
        kind = types.unify(a.type, b.type)
        if kind is None:
            if live:
                self.refuse(f"the variable {name}, which is {a.type} or {b.type} where branches meet")
            return a
        if live and types.is_array(kind) and not types.is_pointer(kind):
            self.refuse(f"the variable {name}, which is one array or another where branches meet")
        if live:
            self.note_promotion(f"the variable {name}", [a.type, b.type], [kind])
        same = a.is_same_constant(b) and a.type == b.type
        origin = a.origin if a.origin == b.origin else ""
        return Binding(kind, a.known if same else UNKNOWN, origin, a.definite and b.definite)

    def _casts(self, before: Env, after: Env) -> list[Line]:
        """Convert variables from what they are to what they shall be."""
        lines = []
        for name, binding in after.items():
            old = before.get(name)
            if old is None or old.type == binding.type or not types.is_number(binding.type):
                continue
            spec = self.program.constant(self.spec(binding.type))
            lines.append((0, f"{variable(name)} = as_type({variable(name)}, {spec})", self.line))
        return lines

    def _widened(self, env: Env, changed: Names) -> Env:
        return {
            name: replace(binding, known=UNKNOWN)
            if name in changed and binding.type is not None and binding.known is not UNKNOWN
            else binding
            for name, binding in env.items()
        }
