"""Loss scaling in training, for gradients that are stored in float16 (kernels/loss_scale.py)."""

import numpy as np

from minidl.backends import Array, Backend
from minidl.nn import Module
from minidl.optim import Optimizer
from minidl.optim.optimizer import Numbers

FIRST, INTERVAL = 65536.0, 2000  # those of torch.amp.GradScaler
PRECISION = "fp16"  # the one that needs it: bfloat16 has float32's range


class LossScale:
    """The scale, on the device, where a captured step reads and changes it.

    It begins at 65536. A step whose gradients are not all finite is left out and halves it; 2000 steps without such
    double it. What is left out are the changes of weights and of the optimizer's state: running statistics and the
    average of the weights move on, and Adam's bias correction counts the step.

    Attributes:
        state: (2,): the scale, and the steps since it changed.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.state = backend.array(np.array([FIRST, 0]))
        self._factor = backend.zeros(())
        self._still: Array = None

    def prepare(self, optimizer: Optimizer, numbers: Numbers) -> None:
        """Before the steps that go by such numbers."""
        if self._still is None or self._still.shape != numbers.values.shape:
            self._still = self.backend.array(np.tile(optimizer.still(), (len(numbers.values), 1)))

    def scale(self, dlogits: Array) -> None:
        """Multiply the loss's gradient, where backward begins."""
        self.backend.scale_forward(dlogits, self.state[:1].reshape(()), dlogits)

    def settle(self, model: Module, numbers: Numbers) -> None:
        """Divide the gradients of `model` again, or have the optimizer's coming step change nothing."""
        grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        norm = self.backend.empty(())
        self.backend.global_norm(grads, norm)
        self.backend.settle_loss_scale(norm, self.state, self._factor, numbers.values, self._still, INTERVAL)
        self.backend.unscale(grads, self._factor)

    def arrays(self) -> list[Array]:
        """All that a captured step reads and writes."""
        return [self.state, self._factor, self._still]

    def load(self, state: np.ndarray) -> None:
        """The inverse of `state`, from a checkpoint. Raises ValueError unless it can be one."""
        if state.shape != (2,) or not np.isfinite(state).all() or state[0] < 1 or state[1] < 0:
            raise ValueError(f"the loss scale's state is {state.tolist()}, expected a scale of at least 1 and a count")
        self.backend.copy(self.backend.array(state), self.state)


def loss_scale_of(backend: Backend) -> LossScale | None:
    """For the device's precision; None where gradients need none."""
    return LossScale(backend) if backend.precision == PRECISION else None
