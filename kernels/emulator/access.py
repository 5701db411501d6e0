"""Attributes and subscripts: the special registers, what arrays know of themselves, their elements, tuples' items."""

import ast
from typing import Any

import numpy as np
from numba import cuda

from kernels.emulator import types
from kernels.emulator.expressions import Expressions
from kernels.emulator.translation import UNKNOWN, Value

_AXES = {cuda.threadIdx: "thread", cuda.blockIdx: "block", cuda.blockDim: "block_size", cuda.gridDim: "grid_size"}
_REGISTERS = {cuda.laneid: "lane", cuda.warpsize: "warp_size"} if hasattr(cuda, "laneid") else {}


class Access(Expressions):
    """Translates attributes and subscripts."""

    def _on_attribute(self, node: ast.Attribute) -> Value:
        value = self.expression(node.value)
        self.line = node.lineno
        if value.type is None:
            return self._of_object(value.known, node.attr)
        if types.is_array(value.type) and not types.is_pointer(value.type):
            return self._of_array(value, node.attr)
        return self.refuse(f"the attribute {node.attr} of {value.type}")

    def _of_object(self, owner: Any, name: str) -> Value:
        kind = _AXES.get(owner) if isinstance(owner, type) else None
        if kind is not None:
            if name not in ("x", "y", "z"):
                self.refuse(f"the attribute {name} of a thread's position")
            source = f"L.{kind}_{name}" if kind in ("thread", "block") else f"M.{kind}_{name}"
            return Value(types.attribute("threadIdx.x"), source)
        try:
            found = getattr(owner, name)
        except AttributeError:
            self.refuse(f"{getattr(owner, '__name__', owner)}.{name}, which does not exist")
        return self.register(found) or self.constant(found)

    def register(self, found: Any) -> Value | None:
        """A special register that is a name by itself, such as cuda.laneid."""
        kind = _REGISTERS.get(found) if isinstance(found, type) else None
        if kind is None:
            return None
        return self.constant(np.int32(32)) if kind == "warp_size" else Value(types.attribute("laneid"), "L.lane")

    def _of_array(self, value: Value, name: str) -> Value:
        kind = value.type
        if name == "shape":
            return Value(types.tuple_of((types.INT64,) * kind.ndim), f"{value.text}.shape")
        if name == "size":
            return Value(types.INT64, f"{value.text}.size")
        if name == "ndim":
            return self.constant(kind.ndim)
        if name == "dtype":
            return self.constant(kind.dtype)
        return self.refuse(f"the attribute {name} of an array")

    def _on_subscript(self, node: ast.Subscript) -> Value:
        base = self.expression(node.value)
        if types.is_array(base.type):
            index = self.index(base, node.slice)
            return self.load(base, index)
        self.line = node.lineno
        if types.is_tuple(base.type) or (base.is_known and isinstance(base.known, tuple)):
            return self._item(base, node.slice)
        return self.refuse(f"indexing {base.type or base.known!r}")

    def _item(self, base: Value, node: ast.expr) -> Value:
        if isinstance(node, ast.Slice):
            bounds = [None if part is None else self.expression(part) for part in (node.lower, node.upper, node.step)]
            if not all(bound is None or bound.is_known for bound in bounds):
                self.refuse("a slice of a tuple by values that are no constants")
            chosen = slice(*(None if bound is None else int(bound.known) for bound in bounds))
            return self.tuple_of(self.items_of(base)[chosen])
        index = self.expression(node)
        items = self.items_of(base)
        if not types.is_integer(index.type):
            self.refuse(f"a tuple's item number {index.type}")
        if index.is_known:
            if not -len(items) <= index.known < len(items):
                self.refuse(f"item {index.known} of a tuple of {len(items)}")
            return items[int(index.known)]
        if len({item.type for item in items}) != 1 or not types.is_number(items[0].type):
            self.refuse("a tuple of several types, indexed by a value that is no constant")
        return self.temporary(items[0].type, f"M.item(L, {self.tuple_of(items).text}, {index.text})")

    def index(self, base: Value, node: ast.expr) -> Value:
        """The index of an array's element, as one number or a tuple of them."""
        nodes = node.elts if isinstance(node, ast.Tuple) else [node]
        if any(isinstance(inner, ast.Slice) for inner in nodes):
            self.refuse("a slice of an array")
        values = [self.expression(inner) for inner in nodes]
        self.line = node.lineno
        return self.index_of(base, values[0]) if len(values) == 1 else self._index_of(base, values)

    def index_of(self, base: Value, given: Value) -> Value:
        """A number or a tuple of them as the index of an array's element."""
        return self._index_of(base, self.items_of(given) if types.is_tuple(given.type) else [given])

    def _index_of(self, base: Value, values: list[Value]) -> Value:
        ndim = 1 if types.is_pointer(base.type) else base.type.ndim
        if len(values) != ndim:
            self.refuse(f"{len(values)} indices of an array of {ndim} axes")
        for axis, value in enumerate(values):
            if not types.is_integer(value.type):
                self.refuse(f"an index that is {value.type or value.known!r}")
            if value.is_known and value.known < 0 and not types.is_pointer(base.type):
                # a constant that counts from the end is meant so; computed ones are faults
                text = f"({base.text}.shape[{axis}] + {value.text})"
                values[axis] = Value(types.INT64, text)
        if len(values) == 1:
            return values[0]
        return Value(UNKNOWN, "(" + "".join(value.text + ", " for value in values) + ")")

    def load(self, base: Value, index: Value) -> Value:
        """An array's element."""
        self.program.reads.add(base.origin)
        return self.temporary(base.type.dtype, f"{base.text}.load(L, {index.text})")

    def store(self, base: Value, index: Value, value: Value) -> None:
        """Set an array's element."""
        self.program.writes.add(base.origin)
        value = self.cast(value, base.type.dtype)
        self.emit(f"{base.text}.store(L, {index.text}, {value.text})")
