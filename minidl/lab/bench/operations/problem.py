"""What is timed: one operation on one shape, as minidl does it and as PyTorch does."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from kernels.launch import Cost
from minidl.backends import Array, Backend

Role = Literal["activation", "weight", "plain"]
# activation: NHWC here, NCHW in PyTorch whatever the layout in memory; weight: (kh, kw, in, out) and (out, in, kh, kw);
# plain: the same in both.
Answers = Mapping[str, Any]
Arrays = Mapping[str, Array]
Compiled = Callable[[Callable[..., Any]], Callable[..., Any]]


def nothing() -> None:
    """There is nothing to prepare."""


class Call(NamedTuple):
    """What is done again and again: `run` is timed, `prepare` goes before it and is not."""

    run: Callable[[], Answers]
    prepare: Callable[[], None] = nothing


class Input(NamedTuple):
    """An array that both sides start from, in minidl's layout."""

    value: np.ndarray
    role: Role = "plain"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """An operation on a shape.

    Attributes:
        inputs: By name.
        ours: The call, of arrays that hold the inputs on a backend.
        theirs: The call, of PyTorch, of tensors with the inputs, and of what compiles a function (or leaves it alone).
        outputs: What both answer by name, and how it lies in memory.
        cost: By the definition. What has to be known before it is used is read twice: batch normalization reads x for
            its statistics and again to normalize it.
        uses: The operations of the backend behind it, whose techniques it has.
        has_layout: Whether NCHW and channels last differ.
        gains_by_compiling: Whether `torch.compile` has anything to fuse; else it calls what eager calls.
    """

    inputs: Mapping[str, Input]
    ours: Callable[[Backend, Arrays], Call]
    theirs: Callable[[Any, Mapping[str, Any], Compiled], Call]
    outputs: Mapping[str, Role]
    cost: Cost
    uses: tuple[str, ...]
    has_layout: bool = True
    gains_by_compiling: bool = True


def normal(rng: np.random.Generator, shape: tuple[int, ...], scale: float = 1.0) -> np.ndarray:
    """Gaussian float32, none of them denormal: arithmetic on those is slow, and not what is to be timed."""
    values = rng.standard_normal(shape, dtype=np.float32)
    if scale != 1:
        values *= np.float32(scale)
    values[np.abs(values) < np.finfo(np.float32).tiny] = 0
    return values


def without_gradients(torch: Any, function: Callable[..., Any], arguments: tuple[Any, ...], name: str = "y") -> Call:
    """The call of a function of PyTorch's that autograd does not follow."""

    def run() -> Answers:
        with torch.no_grad():
            return {name: function(*arguments)}

    return Call(run)


def gradients(
    torch: Any, function: Callable[..., Any], arguments: tuple[Any, ...], dy: Any, wanted: Mapping[str, Any]
) -> Call:
    """The call of autograd's way back through a function; the way forward is gone before, and not timed.

    Args:
        torch: PyTorch.
        function: Of `arguments`.
        arguments: Tensors.
        dy: The gradient of what it returns.
        wanted: The arguments whose gradients are the answers, by the answers' names.
    """
    for tensor in wanted.values():
        tensor.requires_grad_()
    forward: dict[str, Any] = {}

    def prepare() -> None:
        forward["y"] = function(*arguments)

    def run() -> Answers:
        found = torch.autograd.grad(forward.pop("y"), list(wanted.values()), dy)
        return dict(zip(wanted, found, strict=True))

    return Call(run, prepare)
