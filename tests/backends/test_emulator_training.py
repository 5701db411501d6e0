"""The small CNN learns on the emulator what it learns on the CPU.

How far may two float32 runs be apart? Of K products of size p and either sign, added one by one, the k-th partial sum
is of size sqrt(k) p and its addition is off by U of that: altogether U p sqrt(1 + 2 + ... + K), or U p K / sqrt(2).
Changing each weight by s of itself, up or down at random, puts the same sum off by s p sqrt(K). With s = U sqrt(K / 2)
both are equal: so the float64 reference is trained several times with its weights changed so before every step, and how
much its losses scatter is what rounding can do to them, with all that grows from step to step. A run may be LAMBDA
times the scatter away from the unchanged reference, and two runs twice that from each other.
"""

from typing import Any

import numpy as np
import pytest

from minidl import models, nn, optim
from minidl.backends import Backend, get_backend
from minidl.data import load
from minidl.lab.budget import LAMBDA, U
from minidl.nn.init import manual_seed
from minidl.training.evaluation import ImageSource

SAMPLES = 6
LR, MOMENTUM = 0.01, 0.9


def train(backend: Backend, steps: int, batch: int, *, scatter: int | None = None, lr: float = LR) -> np.ndarray:
    """The loss of each step. With `scatter`, a seed, each weight is off by one rounding of its layer's products."""
    data = load("digits")
    manual_seed(11)
    model = models.build("small-cnn", data.image_shape, data.classes).to(backend)
    nn.fuse(model)
    source = ImageSource(data.train_images, data.train_labels, data.mean, data.std, backend)
    loss, sgd = nn.CrossEntropyLoss(device=backend), optim.SGD(model.parameters(), lr=lr, momentum=MOMENTUM)
    order = np.random.default_rng(5).permutation(len(source))
    rng = None if scatter is None else np.random.default_rng(scatter)
    losses = []
    for step in range(steps):
        if rng is not None:
            for parameter in model.parameters():
                host = backend.numpy(parameter.value)
                terms = host.size // host.shape[0 if host.ndim == 2 else -1]  # of a product that makes one output
                host *= 1 + U * np.sqrt(terms / 2) * rng.choice((-1, 1), host.shape)
                backend.copy(backend.array(host), parameter.value)
        x, targets = source.batch(order[step * batch : (step + 1) * batch])
        sgd.zero_grad()
        losses.append(float(loss.forward(model.forward(x), targets)))
        model.backward(loss.backward())
        sgd.step()
    return np.array(losses)


def budget(steps: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """The reference's losses, and how far a float32 run may be from each."""
    reference = get_backend("reference")
    exact = train(reference, steps, batch)
    samples = [train(reference, steps, batch, scatter=seed) - exact for seed in range(SAMPLES)]
    return exact, LAMBDA * np.sqrt(np.mean(np.square(samples), axis=0))


@pytest.mark.parametrize(("steps", "batch"), [(3, 5), (20, 8)])
def test_losses_are_those_of_the_cpu(steps: int, batch: int) -> None:
    exact, allowed = budget(steps, batch)
    cpu, emulator = (train(get_backend(name), steps, batch) for name in ("cpu", "emulator"))
    assert (np.abs(cpu - exact) <= allowed).all(), np.abs(cpu - exact) / allowed
    assert (np.abs(emulator - exact) <= allowed).all(), np.abs(emulator - exact) / allowed
    assert (np.abs(emulator - cpu) <= 2 * allowed).all()


def test_the_budget_is_small_enough_to_see_a_wrong_step() -> None:
    """A learning rate that is off by one percent leaves it at the second loss."""
    exact, allowed = budget(3, 5)
    wrong: Any = train(get_backend("cpu"), 3, 5, lr=1.01 * LR)
    assert (np.abs(wrong - exact) > 2 * allowed)[1:].all()
