"""What every layer is: named parameters, buffers and children; forward, and backward through the last forward."""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self

import numpy as np

from kernels.errors import ShapeError
from minidl.backends import Array, Backend, get_backend


class Parameter:
    """An array that training changes, and its gradient.

    Args:
        backend: The device it lies on.
        value: Its first value, a NumPy array.
        decay: Whether weight decay is meant for it: true for weights, false for biases and normalization.
        axes: How value's axes are permuted to give PyTorch's layout, or None where the two agree.

    Attributes:
        name: For messages: the layer's type and the attribute that it was first assigned to, as in "Linear.weight".
        value: The array on the device, in the layout the operations want. One of this device, of the same shape and
            dtype, may be assigned; it is copied where it is not C-contiguous and writable.
        grad: Like value. None until a backward pass has written it; further passes add to it until `zero_grad`.
        trainable: Whether backward passes give it a gradient. A frozen one has none, and so everything that goes by
            gradients leaves it alone: optimizers (weight decay included) and gradient clipping. Setting it to False
            forgets the gradient. Like PyTorch's `requires_grad` it is no part of the state.

    Raises:
        ShapeError: On assigning a value or a gradient of another shape.
        TypeError: On assigning one of another dtype, or from another device.
        ValueError: On assigning a gradient to one that is not trainable.
    """

    def __init__(
        self, backend: Backend, value: np.ndarray, *, decay: bool, axes: tuple[int, ...] | None = None
    ) -> None:
        self.backend = backend
        self.name: str | None = None
        self._value: Array = backend.array(value)
        self._grad: Array | None = None
        self._trainable = True
        self.decay = decay
        self.axes = axes

    # Operations trust shapes and layouts, so nothing else may come in.

    @property
    def value(self) -> Array:
        """See the class."""
        return self._value

    @value.setter
    def value(self, array: Array) -> None:
        self._value = _like(self._value, array, self.backend, f"{self.name or 'a parameter'}: value")

    @property
    def grad(self) -> Array | None:
        """See the class."""
        return self._grad

    @grad.setter
    def grad(self, array: Array | None) -> None:
        if array is not None:
            array = _like(self._value, array, self.backend, f"{self.name or 'a parameter'}: grad")
            if not self._trainable:
                raise ValueError(f"{self.name or 'a parameter'}: grad is given to what is frozen; set trainable first")
        self._grad = array

    @property
    def trainable(self) -> bool:
        """See the class."""
        return self._trainable

    @trainable.setter
    def trainable(self, trainable: bool) -> None:
        self._trainable = bool(trainable)
        if not trainable:
            self._grad = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of value."""
        return tuple(self.value.shape)

    def zero_grad(self) -> None:
        """Forget the gradient."""
        self._grad = None

    @contextlib.contextmanager
    def gradient(self) -> Iterator[Array]:
        """Where a backward pass writes its gradient; a second pass before `zero_grad` is added to the first.

        What is written for a parameter that is not trainable is thrown away.
        """
        fresh = self.backend.empty(self.shape)
        yield fresh
        self.take_gradient(fresh)

    def take_gradient(self, fresh: Array) -> None:
        """What `gradient` does with what was written; `fresh` becomes the parameter's own."""
        if not self._trainable:
            return
        if self._grad is None:
            self._grad = fresh
        else:
            self.backend.add(self._grad, fresh, self._grad)

    def to(self, backend: Backend) -> None:
        """Move to another device; the gradient is forgotten."""
        self._value = backend.array(self.backend.numpy(self._value))
        self.backend, self._grad = backend, None

    def state(self) -> np.ndarray:
        """The value as a NumPy array in PyTorch's layout."""
        host = self.backend.numpy(self.value)
        return host if self.axes is None else np.array(host.transpose(self.axes), order="C")

    def state_shape(self) -> tuple[int, ...]:
        """The shape that `state` has."""
        return self.shape if self.axes is None else tuple(self.shape[axis] for axis in self.axes)

    def load(self, host: np.ndarray) -> None:
        """The inverse of `state`."""
        if self.axes is not None:
            host = host.transpose(np.argsort(self.axes))
        self.backend.copy(self.backend.array(host), self.value)


class Mismatch(NamedTuple):
    """Names that `load_state_dict(strict=False)` could not use."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class _Switch(threading.local):
    """Whether forward keeps what backward needs; each thread's own affair, like torch.no_grad."""

    remember = True


_switch = _Switch()


@contextlib.contextmanager
def inference() -> Iterator[None]:
    """Inside, forward keeps nothing for backward, so that an activation's memory is free as soon as it was read."""
    before, _switch.remember = _switch.remember, False
    try:
        yield
    finally:
        _switch.remember = before


class Module:
    """Base of all layers. Assigning a Parameter or a Module to an attribute registers it under that name."""

    def __init__(self, device: str | Backend | None = None) -> None:
        self._parameters: dict[str, Parameter] = {}
        self._buffers: dict[str, Array] = {}
        self._modules: dict[str, Module] = {}
        self.backend: Backend = _backend(device)
        self.training = True
        self._kept: tuple[Any, ...] | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("_parameters", "_buffers", "_modules"):
            if isinstance(value, Parameter) and value.name is None:
                value.name = f"{type(self).__name__}.{name}"
            elif name in self._buffers and value is not None:
                value = _like(self._buffers[name], value, self.backend, f"{type(self).__name__}.{name}")
            registries: tuple[tuple[dict[str, Any], bool], ...] = (
                (self._parameters, isinstance(value, Parameter)),
                (self._modules, isinstance(value, Module)),
                (self._buffers, name in self._buffers and value is not None),
            )
            for registry, belongs in registries:
                if belongs:
                    registry[name] = value
                else:
                    registry.pop(name, None)
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        for registry in (self._parameters, self._modules, self._buffers):
            registry.pop(name, None)
        object.__delattr__(self, name)

    def forward(self, x: Array) -> Array:
        """The layer's output for x."""
        raise NotImplementedError

    def backward(self, dy: Array) -> Array:
        """The gradient with respect to forward's input, given that of its output; parameters' gradients are written.

        Goes back through the last forward, once. Raises RuntimeError if there was none.
        """
        raise NotImplementedError

    def __call__(self, x: Array) -> Array:
        """Forward."""
        return self.forward(x)

    # State between forward and backward.

    def keep(self, *values: Any) -> None:
        """Remember what backward will need (unless in `inference`)."""
        self._kept = values if _switch.remember else None

    def kept(self) -> tuple[Any, ...]:
        """What forward kept. `accept_gradient` forgets it, so that its memory is free as backward goes on."""
        if self._kept is None:
            raise RuntimeError(
                f"{type(self).__name__}.backward: there is no forward pass to go back through; call forward(x) first, "
                "once for each backward, and not inside inference()"
            )
        return self._kept

    # The tree.

    def children(self) -> Iterator[tuple[str, "Module"]]:
        """Direct children by name."""
        yield from self._modules.items()

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, "Module"]]:
        """This module and all below it, with dotted names; this one's own is `prefix`."""
        yield prefix, self
        for name, child in self._modules.items():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """All parameters with dotted names, in PyTorch's order."""
        for path, module in self.named_modules():
            for name, parameter in module._parameters.items():
                yield f"{path}.{name}" if path else name, parameter

    def parameters(self) -> Iterator[Parameter]:
        """All parameters."""
        for _, parameter in self.named_parameters():
            yield parameter

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters():
            parameter.zero_grad()

    def train(self, mode: bool = True) -> Self:
        """Training behaviour for this module and all below it."""
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Evaluation behaviour for this module and all below it."""
        return self.train(False)

    def to(self, device: str | Backend) -> Self:
        """Move all parameters and buffers. Gradients are forgotten. Raises DeviceError if the device cannot be used."""
        target = _backend(device)
        for _, module in self.named_modules():
            source = module.backend
            for parameter in module._parameters.values():
                parameter.to(target)
            module.backend, module._kept = target, None
            for name, buffer in module._buffers.items():
                module.register_buffer(name, target.array(source.numpy(buffer)))
        return self

    def add_module(self, name: str, module: "Module") -> None:
        """Register a child under a name that is not known in advance.

        Raises:
            TypeError: It is not a layer.
            ValueError: The name is empty, contains a dot (which separates names in `state_dict`), or is taken.
        """
        if not isinstance(module, Module):
            raise TypeError(f"{type(self).__name__}: '{name}' is a {type(module).__name__}, expected a layer")
        if not name or "." in name or hasattr(self, name):
            raise ValueError(
                f"{type(self).__name__}: '{name}' cannot be a layer's name; give one that is not empty, has no dot and "
                "is not an attribute of the container"
            )
        setattr(self, name, module)

    def take_childrens_device(self) -> None:
        """For containers: compute where the children do."""
        for child in self._modules.values():
            self.backend = child.backend
            break

    # State dicts.

    def register_buffer(self, name: str, value: Array) -> None:
        """An array that belongs to the state but is not trained; also an attribute, checked as `Parameter.value` is."""
        self._buffers[name] = value
        setattr(self, name, value)

    def state_dict(self) -> dict[str, np.ndarray]:
        """All parameters and buffers as NumPy arrays, by PyTorch's names and in PyTorch's layouts."""
        state: dict[str, np.ndarray] = {}
        for path, module in self.named_modules():
            for name, value in module.own_state().items():
                state[f"{path}.{name}" if path else name] = value
        return state

    def own_state(self) -> dict[str, np.ndarray]:
        """This module's part of `state_dict`, without its children's."""
        state = {name: parameter.state() for name, parameter in self._parameters.items()}
        state.update({name: self.backend.numpy(buffer) for name, buffer in self._buffers.items()})
        return state

    def own_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes that `own_state` has."""
        shapes = {name: parameter.state_shape() for name, parameter in self._parameters.items()}
        shapes.update({name: tuple(buffer.shape) for name, buffer in self._buffers.items()})
        return shapes

    def own_faults(self, state: Mapping[str, np.ndarray]) -> list[str]:
        """What is wrong with the values of this module's part, beyond names, shapes and dtypes; in words for people."""
        del state
        return []

    def load_own_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Take this module's part; names that are not there keep what they hold."""
        for name, value in state.items():
            if name in self._parameters:
                self._parameters[name].load(value)
            elif name in self._buffers:
                self.backend.copy(self.backend.array(value), self._buffers[name])

    def load_state_dict(self, state: Mapping[str, np.ndarray], strict: bool = True) -> Mismatch:
        """Take values from `state`. Nothing is changed if anything is refused.

        Args:
            state: NumPy arrays by PyTorch's names, in PyTorch's layouts.
            strict: Refuse names that are missing or not expected; otherwise they are returned.

        Raises:
            ValueError: Names or shapes do not match; the message says which.
        """
        given = {name: np.asarray(value) for name, value in state.items()}
        expected = {
            f"{path}.{name}" if path else name: shape
            for path, module in self.named_modules()
            for name, shape in module.own_shapes().items()
        }
        missing = [name for name in expected if name not in given]
        unexpected = [name for name in given if name not in expected]
        faults = [
            f"{name} has dtype {given[name].dtype}, expected real numbers"
            for name in expected
            if name in given and given[name].dtype.kind not in "biuf"
        ]
        faults += [
            f"{name} has shape {given[name].shape}, expected {shape}"
            for name, shape in expected.items()
            if name in given and given[name].shape != shape
        ]
        if strict:
            faults += [f"missing: {', '.join(missing)}"] if missing else []
            faults += [f"unexpected: {', '.join(unexpected)}"] if unexpected else []
        parts, fits = [], not faults
        for path, module in self.named_modules():
            prefix = f"{path}." if path else ""
            own = {name: given[prefix + name] for name in module.own_shapes() if prefix + name in given}
            parts.append((module, own))
            faults += [prefix + fault for fault in module.own_faults(own)] if fits else []
        if faults:
            raise ValueError(f"the state does not fit this {type(self).__name__}: {'; '.join(faults)}")
        for module, own in parts:
            module.load_own_state(own)
        return Mismatch(missing, unexpected)

    # Checks.

    def accept(self, x: Array, *forms: str, **sizes: int) -> Array:
        """`x`, checked: on this layer's device, of its dtype, with one axis for each name of a form ("n h w c").

        `sizes` gives the axes whose length is fixed. Raises ShapeError or TypeError, naming layer, given and expected.
        """
        x = self.accept_stored(x, f"{type(self).__name__}: the input")
        fitting = [form.split() for form in forms if len(form.split()) == x.ndim]
        if fitting and all(sizes.get(name, size) == size for name, size in zip(fitting[0], x.shape, strict=True)):
            return x
        shown = fitting or [form.split() for form in forms]
        wanted = " or ".join(f"({', '.join(str(sizes.get(name, name)) for name in names)})" for names in shown)
        raise ShapeError(f"{type(self).__name__}: the input has shape {tuple(x.shape)}, expected {wanted}")

    def accept_stored(self, x: Array, what: str) -> Array:
        """`x`, checked to be of this device and its dtype, or, of images, stored as its activations are.

        Raises TypeError, naming it by `what`.
        """
        stored = self.backend.activations
        image = getattr(x, "ndim", 0) == 4 and x.dtype == stored
        return self.backend.accept(x, what, stored if image else None)

    def accept_gradient(self, dy: Array, shape: tuple[int, ...]) -> Array:
        """`dy`, checked to be like forward's output; if it is, what forward kept is forgotten.

        Raises ShapeError or TypeError.
        """
        dy = self.accept_stored(dy, f"{type(self).__name__}: the gradient")
        if tuple(dy.shape) != tuple(shape):
            raise ShapeError(
                f"{type(self).__name__}: the gradient has shape {tuple(dy.shape)}, expected {tuple(shape)}, "
                "that of forward's output"
            )
        self._kept = None
        return dy

    # Words.

    def extra_repr(self) -> str:
        """The arguments, for `repr`."""
        return ""

    def __repr__(self) -> str:
        head = f"{type(self).__name__}({self.extra_repr()}"
        if not self._modules:
            return head + ")"
        lines = [f"  ({name}): " + repr(child).replace("\n", "\n  ") for name, child in self._modules.items()]
        return head + "\n" + "\n".join(lines) + "\n)"


def _like(current: Array, array: Array, backend: Backend, what: str) -> Array:
    """`array`, checked to be able to take the place of `current`."""
    array = backend.accept(array, what)
    if array.shape != current.shape:
        raise ShapeError(f"{what} has shape {tuple(array.shape)}, expected {tuple(current.shape)}")
    return array


def _backend(device: str | Backend | None) -> Backend:
    if device is None:
        return get_backend("cpu")
    return get_backend(device) if isinstance(device, str) else device
