"""Chains without stored activations against the same layers run one by one."""

from collections.abc import Callable
from typing import Any

import numpy as np

from minidl import nn

# What cannot go through a chain, or not as usual: something that is done to a model whose first layer is a convolution.
WAYS: dict[str, Callable[[nn.Module], Any]] = {
    "evaluation": lambda model: model.eval(),
    "frozen statistics": lambda model: nn.freeze_batchnorm(model, affine=False),
    "frozen gamma and beta": lambda model: nn.freeze_batchnorm(model, statistics=False),
    "no gradient of x": lambda model: setattr(model[0], "input_gradient", False),
}


def alike(a: Any, b: Any, what: str, share: float = 1e-12) -> None:
    """Within `share` of the array's largest element."""
    assert np.abs(a - b).max(initial=0) <= share * np.abs(b).max(initial=0), what


def compare(first: nn.Module, second: nn.Module, share: float = 1e-12) -> None:
    states = first.state_dict(), second.state_dict()
    assert list(states[0]) == list(states[1])
    for name, value in states[0].items():
        alike(value, states[1][name], name, share)


def assert_same_way(
    fused: nn.Sequential,
    plain: nn.Sequential,
    way: Callable[[nn.Module], Any],
    images: tuple[int, ...],
    rng: np.random.Generator,
) -> None:
    """What cannot go through a chain goes as it does without; what of a layer is frozen stays as it is."""
    for step in range(3):
        x, dy = rng.standard_normal(images), rng.standard_normal((images[0], 3))
        if step == 1:
            way(plain), way(fused)
        alike(fused.forward(x), plain.forward(x), "the output")
        gradients = fused.backward(dy), plain.backward(dy)
        if way is WAYS["no gradient of x"] and step:
            assert gradients == (None, None)
        else:
            alike(*gradients, "the gradient of x", 1e-11)
    for (name, a), b in zip(fused.named_parameters(), plain.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            alike(a.grad, b.grad, name, 1e-11)  # of the passes together: nothing was forgotten between them
    compare(fused, plain)
