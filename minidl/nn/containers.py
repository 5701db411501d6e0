"""Layers made of layers: one after another, side by side, around."""

from collections.abc import Iterator, Mapping
from typing import Protocol, overload

from kernels.errors import ShapeError
from minidl.backends import Array, Backend
from minidl.nn.module import Module


class Joint(Protocol):
    """One step for the end of a residual block: last layer, sum and activation."""

    def forward(self, x: Array, residual: Array) -> Array:
        """`residual` is what came around the layers."""

    def backward(self, dy: Array) -> tuple[Array, Array]:
        """The gradients of x and of residual."""


class Rewrite(Protocol):
    """How `fuse` puts steps of its own in the place of several layers."""

    def chain(self, layers: list[Module]) -> list[Module]:
        """Steps that do what `layers` do one after another."""

    def residual(self, layers: list[Module], activation: Module | None) -> tuple[list[Module], Joint | None]:
        """For a residual block: steps, and what does its last layer, the sum and activation, or None."""


class Sequential(Module):
    """Layers one after another: `Sequential(a, b)`, or with names, `Sequential({"conv": a, "bn": b})`."""

    def __init__(self, *layers: Module | Mapping[str, Module]) -> None:
        super().__init__()
        self._steps: list[Module] | None = None
        self._ran: list[Module] | None = None  # by the last forward
        self._made_for: tuple[Backend, str] | None = None  # device and precision: which steps there are is up to them
        self.rewritten_by: Rewrite | None = None
        if len(layers) == 1 and isinstance(layers[0], Mapping):
            named = dict(layers[0])
        else:
            named = {str(i): layer for i, layer in enumerate(layers)}  # type: ignore[misc]
        for name, layer in named.items():
            self.add_module(name, layer)
        self.take_childrens_device()

    def __setattr__(self, name: str, value: object) -> None:
        is_layer = isinstance(value, Module) or name in vars(self).get("_modules", ())
        super().__setattr__(name, value)
        if is_layer:
            self._steps = None

    @property
    def steps(self) -> list[Module]:
        """What runs, in order: the children, or what `rewrite` makes of them."""
        if self._is_elsewhere() or self._steps is None:
            children = [child for _, child in self.chain()]
            self._steps = children if self.rewritten_by is None else self.rewritten_by.chain(children)
        return self._steps

    def _is_elsewhere(self) -> bool:
        """Whether the device or its precision is another than when this was asked last."""
        here = self.backend, getattr(self.backend, "precision", "")
        moved, self._made_for = here != self._made_for, here
        return moved

    def chain(self) -> Iterator[tuple[str, Module]]:
        """The children that run one after another, with their names."""
        yield from self.children()

    def rewrite(self, rule: Rewrite | None) -> None:
        """Let `rule` put steps of its own in the place of several children; names and states stay the children's."""
        self.rewritten_by = rule
        self._steps = None

    def forward(self, x: Array) -> Array:
        """The last layer's output."""
        self._ran = self.steps
        for step in self._ran:
            x = step.forward(x)
        return x

    def backward(self, dy: Array) -> Array:
        """See `Module.backward`."""
        for step in reversed(self.steps if self._ran is None else self._ran):
            dy = step.backward(dy)
        return dy

    def __len__(self) -> int:
        return len(list(self.chain()))

    def __iter__(self) -> Iterator[Module]:
        return (layer for _, layer in self.chain())

    @overload
    def __getitem__(self, index: int) -> Module: ...
    @overload
    def __getitem__(self, index: slice) -> "Sequential": ...
    def __getitem__(self, index: int | slice) -> Module:
        """A layer, or for a slice a Sequential of the same layers."""
        layers = list(self.chain())
        return Sequential(dict(layers[index])) if isinstance(index, slice) else layers[index][1]

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        self._steps = None


class Residual(Sequential):
    """Layers one after another with a way around them: y = activation(layers(x) + downsample(x)).

    He et al. 2016, arXiv:1512.03385. Names are torchvision's: the layers keep their own, beside `downsample` and
    `activation`.

    Args:
        layers: As in Sequential.
        downsample: Makes x fit what the layers give; None where they keep its shape.
        activation: After the sum; None for none, as in a preactivation network.
    """

    def __init__(
        self,
        *layers: Module | Mapping[str, Module],
        downsample: Module | None = None,
        activation: Module | None = None,
    ) -> None:
        super().__init__(*layers)
        self.downsample, self.activation = downsample, activation
        self.joint: Joint | None = None
        self._joined: Joint | None = None  # by the last forward

    def chain(self) -> Iterator[tuple[str, Module]]:
        """See `Sequential.chain`."""
        yield from ((name, child) for name, child in self.children() if name not in ("downsample", "activation"))

    @property
    def steps(self) -> list[Module]:
        """See `Sequential.steps`; without the last one where a joint does its work."""
        if self._is_elsewhere() or self._steps is None:
            self.joint = None
            self._steps = [child for _, child in self.chain()]
            if self.rewritten_by is not None:
                self._steps, self.joint = self.rewritten_by.residual(self._steps, self.activation)
        return self._steps

    def forward(self, x: Array) -> Array:
        """The layers and the way around must give equal shapes; raises ShapeError if they do not."""
        main = super().forward(x)
        side = x if self.downsample is None else self.downsample.forward(x)
        if main.shape != side.shape:
            raise ShapeError(
                f"Residual: the layers give {tuple(main.shape)}, the way around {tuple(side.shape)}; they are added, "
                "so downsample must change the shape as the layers do"
            )
        self._joined = self.joint
        if self._joined is not None:
            return self._joined.forward(main, side)
        y = self.backend.empty(main.shape, main.dtype)
        self.backend.add(main, side, y)
        return y if self.activation is None else self.activation.forward(y)

    def backward(self, dy: Array) -> Array:
        """See `Module.backward`."""
        if self._joined is not None:
            dy, around = self._joined.backward(dy)
        elif self.activation is not None:
            dy = around = self.activation.backward(dy)
        else:
            around = dy
        main = super().backward(dy)
        side = around if self.downsample is None else self.downsample.backward(around)
        if main is None or side is None:
            return None  # nobody needs it; see Conv2d.input_gradient
        dx = self.backend.empty(main.shape, main.dtype)
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
        y = self.backend.empty((*parts[0].shape[:-1], sum(part.shape[-1] for part in parts)), parts[0].dtype)
        self.backend.concat(parts, y)
        self.keep([part.shape for part in parts], y.shape)
        return y

    def backward(self, dy: Array) -> Array:
        """See `Module.backward`."""
        shapes, whole = self.kept()
        dy = self.accept_gradient(dy, whole)
        gradients = [self.backend.empty(shape, dy.dtype) for shape in shapes]
        self.backend.split(dy, gradients)
        parts = [branch.backward(gradient) for branch, gradient in zip(self._modules.values(), gradients, strict=True)]
        if any(part is None for part in parts):
            return None  # nobody needs it; see Conv2d.input_gradient
        dx = self.backend.empty(parts[0].shape, parts[0].dtype)
        self.backend.copy(parts[0], dx)
        for part in parts[1:]:
            self.backend.add(dx, part, dx)
        return dx
