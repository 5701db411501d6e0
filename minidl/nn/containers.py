"""Layers made of layers: one after another, side by side, around."""

from collections.abc import Callable, Iterator, Mapping
from typing import overload

from kernels.errors import ShapeError
from minidl.backends import Array
from minidl.nn.module import Module

Rewrite = Callable[[list[Module]], list[Module]]


class Sequential(Module):
    """Layers one after another: `Sequential(a, b)`, or with names, `Sequential({"conv": a, "bn": b})`."""

    def __init__(self, *layers: Module | Mapping[str, Module]) -> None:
        super().__init__()
        self._steps: list[Module] | None = None
        self.rewritten_by: Rewrite | None = None
        if len(layers) == 1 and isinstance(layers[0], Mapping):
            named = dict(layers[0])
        else:
            named = {str(i): layer for i, layer in enumerate(layers)}  # type: ignore[misc]
        for name, layer in named.items():
            self.add_module(name, layer)
        self.take_childrens_device()

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if isinstance(value, Module):
            self._steps = None

    @property
    def steps(self) -> list[Module]:
        """What runs, in order: the children, or what `rewrite` makes of them."""
        if self._steps is None:
            children = list(self)
            self._steps = children if self.rewritten_by is None else self.rewritten_by(children)
        return self._steps

    def rewrite(self, rule: "Rewrite | None") -> None:
        """Let `rule` put steps of its own in the place of several children; names and states stay the children's."""
        self.rewritten_by = rule
        self._steps = None

    def forward(self, x: Array) -> Array:
        """The last layer's output."""
        for step in self.steps:
            x = step.forward(x)
        return x

    def backward(self, dy: Array) -> Array:
        """See `Module.backward`."""
        for step in reversed(self.steps):
            dy = step.backward(dy)
        return dy

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules.values())

    @overload
    def __getitem__(self, index: int) -> Module: ...
    @overload
    def __getitem__(self, index: slice) -> "Sequential": ...
    def __getitem__(self, index: int | slice) -> Module:
        """A child, or for a slice a Sequential of the same children."""
        if isinstance(index, slice):
            return Sequential(dict(list(self._modules.items())[index]))
        return list(self._modules.values())[index]

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        self._steps = None


class Residual(Module):
    """y = branch(x) + shortcut(x); without a shortcut, branch(x) + x (He et al. 2016, arXiv:1512.03385)."""

    def __init__(self, branch: Module, shortcut: Module | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut
        self.take_childrens_device()

    def forward(self, x: Array) -> Array:
        """Branch and shortcut must give equal shapes; raises ShapeError if they do not."""
        main = self.branch.forward(x)
        side = x if self.shortcut is None else self.shortcut.forward(x)
        if main.shape != side.shape:
            raise ShapeError(
                f"Residual: the branch gives {tuple(main.shape)}, the shortcut {tuple(side.shape)}; they are added, so "
                "the shortcut must change the shape as the branch does"
            )
        y = self.backend.empty(main.shape)
        self.backend.add(main, side, y)
        return y

    def backward(self, dy: Array) -> Array:
        """See `Module.backward`."""
        main = self.branch.backward(dy)
        side = dy if self.shortcut is None else self.shortcut.backward(dy)
        if main is None or side is None:
            return None  # nobody needs it; see Conv2d.input_gradient
        dx = self.backend.empty(main.shape)
        self.backend.add(main, side, dx)
        return dx


class Concat(Module):
    """Branches side by side on the same input, their channels one after another in the output."""

    def __init__(self, *branches: Module) -> None:
        super().__init__()
        if not branches:
            raise ValueError("Concat: needs at least one branch")
        for i, branch in enumerate(branches):
            self.add_module(str(i), branch)
        self.take_childrens_device()

    def forward(self, x: Array) -> Array:
        """Outputs must agree in all axes but the last; raises ShapeError if they do not."""
        parts = [branch.forward(x) for branch in self._modules.values()]
        if len({part.shape[:-1] for part in parts}) != 1:
            shapes = ", ".join(str(tuple(part.shape)) for part in parts)
            raise ShapeError(f"Concat: the branches give {shapes}; they must agree in all axes but the last")
        y = self.backend.empty((*parts[0].shape[:-1], sum(part.shape[-1] for part in parts)))
        self.backend.concat(parts, y)
        self.keep([part.shape for part in parts], y.shape)
        return y

    def backward(self, dy: Array) -> Array:
        """See `Module.backward`."""
        shapes, whole = self.kept()
        dy = self.accept_gradient(dy, whole)
        gradients = [self.backend.empty(shape) for shape in shapes]
        self.backend.split(dy, gradients)
        parts = [branch.backward(gradient) for branch, gradient in zip(self._modules.values(), gradients, strict=True)]
        if any(part is None for part in parts):
            return None  # nobody needs it; see Conv2d.input_gradient
        dx = self.backend.empty(parts[0].shape)
        self.backend.copy(parts[0], dx)
        for part in parts[1:]:
            self.backend.add(dx, part, dx)
        return dx
