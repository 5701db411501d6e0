"""Which technique each operation of a training step takes, and why.

A step of forward, loss, backward and stochastic gradient descent is gone through on a device that runs nothing
(kernels/run_dry.py): every host function checks its arrays and chooses as it would, so what is told is what training
does, for a network of any size, in seconds and without a GPU.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kernels.choice import Chosen
from kernels.run_dry import DryRunner
from minidl import nn, optim
from minidl.backends import Backend
from minidl.backends.device import DeviceBackend
from minidl.backends.host import HostMemory
from minidl.nn import Module

ONLY = "the only one"
LOSS, OPTIMIZER = "(loss)", "(optimizer)"
METHODS = (  # of layers, by which fused steps ask them for operations
    *("forward", "backward", "normalize", "normalize_add_relu", "backward_add_relu"),
    *("forward_in_chain", "backward_in_chain", "find_statistics", "take_statistics", "write", "write_add_relu"),
    *("take_gradient", "split_gradient", "write_gradient"),
)


class Explained(NamedTuple):
    """An operation of a training step.

    Attributes:
        layer: The layer that asked for it, by its dotted name; "(loss)" and "(optimizer)" for those.
        operation: The method of `Backend`.
        technique: What is taken; "" where there is one way to compute it.
        why: In words.
        shapes: Of its arrays by name, where it has a choice; a list for a list of arrays.
    """

    layer: str
    operation: str
    technique: str
    why: str
    shapes: dict[str, Any]


class DryBackend(HostMemory, DeviceBackend):
    """`Backend` that runs nothing, and notes which technique each operation takes for which layer."""

    name = "dry"
    run: DryRunner

    def __init__(self, precision: str, chip: Any = None) -> None:
        super().__init__(DryRunner(chip), precision)
        self.checks_targets = False  # there is nothing to look at
        self.layers: list[str] = []  # that are running, the innermost last
        self.explained: list[Explained] = []

    def zeros(self, shape: tuple[int, ...], dtype: Any = None) -> np.ndarray:
        """Memory that is 0 without being touched."""
        return np.zeros(shape, self.dtype if dtype is None else dtype)

    def describe(self) -> str:
        """See `Backend`."""
        return f"dry, nothing is run, precision {self.precision}"

    def _launch(self, host: Callable[..., Any], *args: Any, **options: Any) -> Any:
        self.run.chosen.clear()
        self.run.launched.clear()
        answer = super()._launch(host, *args, **options)
        layer = self.layers[-1] if self.layers else ""
        heard = {one[:3]: one for one in self.run.chosen}  # it may be made of others, and ask for each launch
        chosen = list(heard.values()) or [Chosen(host.__name__, "", ONLY, {})]
        self.explained += [Explained(layer, *one) for one in chosen]
        return answer

    def watch(self, name: str, module: Any) -> None:
        """Know `module` by name while it runs."""
        for method in METHODS:
            if hasattr(module, method):
                object.__setattr__(module, method, self._within(name, getattr(module, method)))

    def _within(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def running(*arguments: Any, **options: Any) -> Any:
            self.layers.append(name)
            try:
                return method(*arguments, **options)
            finally:
                self.layers.pop()

        return running


def explain(model: Module, image_shape: tuple[int, int, int], batch_size: int, device: Backend) -> list[Explained]:
    """What a training step of `model` takes on `device`, by layers: forward and backward of each, in its order.

    Args:
        model: It is put on another device, and used up by that.
        image_shape: (height, width, channels).
        batch_size: Images.
        device: A `DeviceBackend`, whose precision and chip decide.

    Raises:
        ShapeError: The images do not fit the model.
        ValueError: They are too few or too small for it to train on.
    """
    runner = getattr(device, "run", None)
    backend = DryBackend(device.precision, getattr(runner, "chip", None))
    model.to(backend)
    model.train()
    if isinstance(model, nn.Sequential) and isinstance(model[0], nn.Conv2d | nn.Linear):
        model[0].input_gradient = False  # as in training: nobody learns from the images' gradient
    for name, module in model.named_modules():
        if name:
            backend.watch(name, module)
    x, targets = backend.empty((batch_size, *image_shape)), backend.zeros((batch_size,), np.int64)
    loss = nn.CrossEntropyLoss(device=backend)
    backend.watch(LOSS, loss)
    optimizer = optim.SGD(optim.decay_groups(model, 5e-4), 0.1, momentum=0.9, nesterov=True)
    step: Any = backend._within(OPTIMIZER, optimizer.step)
    with np.errstate(all="ignore"):  # memory may hold anything
        loss.forward(model.forward(x), targets)
        model.backward(loss.backward())
        step()
    layers = dict.fromkeys([*(name for name, _ in model.named_modules()), LOSS, OPTIMIZER])
    return [one for layer in layers for one in backend.explained if one.layer == layer]
