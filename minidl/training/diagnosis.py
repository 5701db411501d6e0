"""Where a network stopped being finite."""

import contextlib
from collections.abc import Iterator

from minidl.backends import Array
from minidl.nn import Module
from minidl.nn.fusion import unfused


class _FoundError(Exception):
    """Carries the name of the first layer whose output is not finite."""


def first_nonfinite(model: Module, x: Array = None) -> str | None:
    """The first array of the model that holds NaN or infinity: a parameter, a buffer, or a layer's output for `x`.

    With `x` the model is run forward once more; its running statistics may change, so it is for a run that stops here.
    Returns a phrase for a message, such as "weight of conv2 (Conv2d)", or None if all is finite.
    """
    finite = model.backend.all_finite
    for path, module in model.named_modules():
        arrays = {name: parameter.value for name, parameter in module._parameters.items()}
        if x is None:  # otherwise the forward pass that failed has spoiled the running statistics already
            arrays |= module._buffers
        for name, array in arrays.items():
            if not finite(array):
                return f"{name} of {_title(path, module)}, after the last update"
    if x is None:
        return None
    if not finite(x):
        return "the input images"
    with unfused(model), contextlib.ExitStack() as watches:
        for path, module in model.named_modules():
            watches.enter_context(_watched(path, module))
        try:
            model.forward(x)
        except _FoundError as found:
            return str(found)
    return "the loss itself: every layer's output is finite"


def first_nonfinite_gradient(model: Module) -> str:
    """The first gradient that holds NaN or infinity, or that there is none (a sum of them was beyond float32)."""
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter.grad is not None and not model.backend.all_finite(parameter.grad):
                return f"the gradient of {name} of {_title(path, module)}"
    return "none; every gradient is finite, and their norm is beyond float32"


@contextlib.contextmanager
def _watched(path: str, module: Module) -> Iterator[None]:
    """Inside, the layer's forward raises _FoundError if its output is not finite."""
    forward = module.forward

    def checked(x: Array) -> Array:
        y = forward(x)
        if not module.backend.all_finite(y):
            raise _FoundError(f"the output of {_title(path, module)}")
        return y

    module.forward = checked  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.forward


def _title(path: str, module: Module) -> str:
    return f"{path} ({type(module).__name__})" if path else type(module).__name__
