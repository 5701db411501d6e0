"""Loops: while and for over ranges, with break and continue; over tuples, unrolled.

A loop goes on as long as a lane is in it. Lanes that leave are kept with the variables that are live after the loop,
and joined when the last one has left.
"""

import ast
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from kernels.emulator import types
from kernels.emulator.branches import Branches, Env
from kernels.emulator.source import Names, assigned, leaves, loop_names, used
from kernels.emulator.translation import Binding, Line, UnassignedError, Value, listed, variable

LONGEST = 1 << 22  # trips of a while loop: it takes minutes, or waits for what lanes that left will do


@dataclass
class Loop:
    """The loop around a statement: names of its parts, variables that its exits carry, what they are there."""

    number: int
    at_break: list[str]
    at_continue: list[str]
    breaks: list[Env] = field(default_factory=list)
    continues: list[Env] = field(default_factory=list)
    left_out: list[UnassignedError] = field(default_factory=list)  # statements, since what they read has no type yet


class Loops(Branches):
    """Translates loops."""

    def _on_while(self, node: ast.While) -> bool:
        if node.orelse:
            self.refuse("else after while")

        def head(loop: "_LoopFrame") -> None:
            self.emit(f"W{loop.loop.number} += 1")
            self.emit(f"if W{loop.loop.number} > {LONGEST}: M.endless()")
            condition = self.truth(self.expression(node.test))
            if condition.is_known:
                if not condition.known:
                    self.emit("break")
                loop.start()
                return
            if not condition.text.isidentifier():
                condition = self.temporary(types.BOOLEAN, condition.text)
            self._observe_branch(condition)
            with self.block(f"if type({condition.text}) is ndarray:"):
                loop.split(condition.text)
            with self.block(f"elif not {condition.text}:"):
                self.emit("break")
            loop.start()

        return self._loop(node, head, used([node.test]))

    def _on_for(self, node: ast.For) -> bool:
        if node.orelse:
            self.refuse("else after for")
        call = node.iter
        if not isinstance(call, ast.Call) or self.expression(call.func).known is not range:
            return self._unrolled(node)
        kind, step = self._trips(node, call)
        following, left = loop_names(node)
        self.env[following] = Binding(kind)
        self.env[left] = Binding(types.INT64)

        def head(loop: "_LoopFrame") -> None:
            self.line = node.lineno
            count = variable(left)
            if self.program.counts:
                self._observe_branch(Value(types.BOOLEAN, f"({count} > 0)"))
            with self.block(f"if type({count}) is ndarray:"):
                loop.split(f"({count} > 0)")
            with self.block(f"elif {count} <= 0:"):
                self.emit("break")
            loop.start()
            self.emit(f"{count} = {count} - 1")
            self.assign(node.target, Value(kind, variable(following)))
            self.emit(f"{variable(following)} = {variable(following)} + {step}")

        return self._loop(node, head, frozenset([following, left]))

    def _unrolled(self, node: ast.For) -> bool:
        """A loop over a tuple: its body, once an item."""
        what = f"a loop over {ast.unparse(node.iter)}"
        if isinstance(node.iter, ast.List):
            self.refuse(f"{what}, a list")
        value = self._settled(self.expression(node.iter))
        if not types.is_tuple(value.type) and not (value.is_known and isinstance(value.known, tuple)):
            self.refuse(f"{what}: only ranges and tuples are known")
        if leaves(node.body):
            self.refuse(f"{what} with break, continue or return in it")
        for item in self.items_of(value):
            self.assign(node.target, item)
            self.body(node.body)
        return False

    def _trips(self, node: ast.For, call: ast.Call) -> tuple[types.Type, str]:
        if call.keywords:
            self.refuse("keyword arguments of range")
        values = [self.expression(argument) for argument in call.args]
        self.line = node.lineno
        if not 1 <= len(values) <= 3 or not all(types.is_integer(value.type) for value in values):
            self.refuse(f"range({', '.join(str(value.type) for value in values)})")
        _, state = self.signature(range, tuple(value.type for value in values), "range")
        kind = state.dtype
        values = [self.cast(value, kind) for value in values]
        zero, one = (self.constant(number, kind) for number in (0, 1))
        start, stop, step = ([zero, *values, one] if len(values) == 1 else [*values, one])[:3]
        following, left = (variable(name) for name in loop_names(node))
        if not step.is_known:
            # the step must not change with the lanes: it is no variable of the loop
            step = self.temporary(kind, f"M.uniform({step.text}, 'the step of a range')")
        self.emit(f"{following} = {start.text}")
        self.emit(f"{left} = M.trips({following}, {stop.text}, {step.text})")
        return kind, step.text

    def _loop(self, node: ast.While | ast.For, head: Callable[["_LoopFrame"], None], read: Names) -> bool:
        k = self.number()
        entry = dict(self.env)
        changed = assigned([node])
        live_out = self.live.after[node]
        types_at_head = self._widened(entry, changed)
        for _ in range(20):
            self.env = dict(types_at_head)
            frame = _LoopFrame(self, node, k, changed, live_out, read)
            self.loops.append(frame.loop)
            with self.captured() as lines:
                head(frame)
                ended = self.body(node.body)
            back_env = self.env
            self.loops.pop()
            back = ([] if ended else [back_env]) + frame.loop.continues
            grown = self._at_head(types_at_head, self._merged([types_at_head, *back], self.live.head[node]), changed)
            stable = all(
                name in types_at_head and grown[name].type == types_at_head[name].type
                for name in grown
                if name in self.live.head[node]
            )
            types_at_head = grown
            if stable:
                break
        else:
            self.refuse("a loop whose variables have no types")
        if frame.loop.left_out:
            if not self.loops:
                raise frame.loop.left_out[0]
            self.loops[-1].left_out += frame.loop.left_out  # the loop around may have the assignment
        if not ended:
            lines += self._casts(back_env, types_at_head)
        self.out += [(depth + self.depth, text, line) for depth, text, line in self._casts(entry, types_at_head)]
        frame.emit(lines, types_at_head, self._merged([types_at_head, *frame.loop.breaks], live_out))
        return False

    def _at_head(self, before: Env, merged: Env, changed: Names) -> Env:
        """Variables at a loop's head: one that only the body assigns is not assigned in the first trip."""
        first = {name: name in before and before[name].definite for name in merged}
        return self._widened(
            {
                name: one if one.definite == first[name] else replace(one, definite=first[name])
                for name, one in merged.items()
            },
            changed,
        )

    def _on_break(self, _: ast.Break) -> bool:
        loop = self.loops[-1]
        loop.breaks.append(dict(self.env))
        self.emit(f"X{loop.number}.append((L, {listed(loop.at_break)}))")
        self.emit("L = None")
        return True

    def _on_continue(self, _: ast.Continue) -> bool:
        loop = self.loops[-1]
        loop.continues.append(dict(self.env))
        self.emit(f"C{loop.number}.append((L, {listed(loop.at_continue)}))")
        self.emit("L = None")
        return True


class _LoopFrame:
    """The lines around a loop's body."""

    def __init__(
        self, t: Loops, node: ast.While | ast.For, number: int, changed: Names, live_out: Names, read: Names
    ) -> None:
        self._t = t
        self._node = node
        self._changed = changed
        self._live_out = live_out
        self.losing = any(isinstance(inner, ast.Return) for inner in ast.walk(node))
        head = t.live.head[node]
        self._into = t._narrowing(node.body, read | changed, head)
        exits = live_out if self.losing else live_out & changed
        self.loop = Loop(number, t.runtime_names(exits), t.runtime_names(head))
        self._has = {kind: _own(node.body, kind) for kind in (ast.Break, ast.Continue)}

    def start(self) -> None:
        """Keep the lanes that make this trip, for those that continue to meet again."""
        if self._has[ast.Continue]:
            self._t.emit(f"B{self.loop.number} = L")

    def split(self, condition: str) -> None:
        """Let lanes for which the condition does not hold leave."""
        t, k = self._t, self.loop.number
        t.emit(f"T{k}, F{k} = L.split({condition})")
        with t.block(f"if F{k} is not None:"):
            t.emit(f"if T{k} is None: break")
            exits, into = listed(self.loop.at_break), listed(t.runtime_names(self._into))
            t.emit(f"X{k}.append((F{k}, F{k}.gather{exits}))" if exits != "()" else f"X{k}.append((F{k}, ()))")
            if into != "()":
                t.emit(f"{into} = T{k}.gather{into}")
            t.emit(f"L = T{k}")

    def emit(self, lines: list[Line], at_head: Env, after: Env) -> None:
        """Put the loop in place; variables are of the given types at its head and after it."""
        t, k, node = self._t, self.loop.number, self._node
        t.line = node.lineno
        kept = (
            listed(t.runtime_names((frozenset(self._into) | self._live_out) - self._changed))
            if not self.losing
            else "()"
        )
        t.emit(f"E{k}, X{k} = L, []")
        if isinstance(node, ast.While):
            t.emit(f"W{k} = 0")
        if kept != "()":
            t.emit(f"S{k} = {kept}")
        with t.block("while True:"):
            if self._has[ast.Continue]:
                t.emit(f"C{k} = []")
            t.env = at_head
            t.paste(lines)
            t.line = node.lineno
            if self._has[ast.Continue]:
                names = self.loop.at_continue
                with t.block(f"if C{k}:"):
                    parts = f"(*C{k}, (L, {listed(names)}))"
                    t.emit(f"{t._joined(names)} = join(B{k}, {parts}, {t._specs(names)})")
            if leaves(node.body):
                t.emit("if L is None: break")
        names = self.loop.at_break
        t.env = after
        with t.block(f"if X{k}:"):
            parts = f"(*X{k}, (L, {listed(names)}))"
            t.emit(f"{t._joined(names)} = join(E{k}, {parts}, {t._specs(names)})")
            if kept != "()":
                t.emit(f"{kept} = S{k}")
        casts = t._casts(at_head, after)
        if casts:
            with t.block("else:"):
                t.paste(casts)


def _own(nodes: list[ast.stmt], kind: type[ast.AST]) -> bool:
    """Whether these statements have a break or continue of their own loop."""
    for node in nodes:
        if isinstance(node, kind):
            return True
        if isinstance(node, ast.If) and _own([*node.body, *node.orelse], kind):
            return True
    return False
