"""What the CPU backend promises of a training loop: the same bits on any number of threads, and memory that is flat."""

import threading
from typing import Any

import numpy as np
import pytest

from minidl import models, nn, optim
from minidl.backends.cpu import CpuBackend
from minidl.nn.init import manual_seed


class Run:
    """Training of small-cnn with dropout on a backend of its own, on random images."""

    def __init__(self, threads: int, image: tuple[int, int, int] = (12, 12, 2), optimizer: str = "SGD") -> None:
        manual_seed(6)
        self.backend = CpuBackend(threads)
        self.model = models.build("small-cnn", image, 10).to(self.backend)
        nn.fuse(self.model)
        self.drop = nn.Dropout(0.2, device=self.backend)
        self.loss = nn.CrossEntropyLoss(label_smoothing=0.1, device=self.backend)
        options: dict[str, Any] = {"momentum": 0.9} if optimizer == "SGD" else {}
        groups = optim.decay_groups(self.model, 1e-3)
        self.optimizer = getattr(optim, optimizer)(groups, lr=0.01, **options)
        self.rng, self.image = np.random.default_rng(1), image

    def step(self, batch: int) -> float:
        x = self.rng.standard_normal((batch, *self.image)).astype(np.float32)
        labels = self.rng.integers(0, 10, batch)
        self.model.zero_grad()
        loss = float(self.loss.forward(self.model.forward(self.drop.forward(x)), labels))
        self.drop.backward(self.model.backward(self.loss.backward()))
        self.optimizer.step()
        return loss

    def evaluate(self, batch: int) -> None:
        self.model.eval()
        with nn.inference():
            self.model.forward(np.ones((batch, *self.image), np.float32))
        self.model.train()


@pytest.fixture
def helping(monkeypatch) -> set[str]:
    """Names of the threads that did a piece of work."""
    from minidl.backends.cpu import threads

    names: set[str] = set()
    work = threads._Job.work

    def seen(self: Any) -> None:
        names.add(threading.current_thread().name)
        work(self)

    monkeypatch.setattr(threads._Job, "work", seen)
    return names


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_the_number_of_threads_does_not_change_a_bit(optimizer: str, helping: set[str], same_bits) -> None:
    def train(threads: int) -> dict[str, np.ndarray]:
        run = Run(threads, optimizer=optimizer)
        losses = np.array([run.step(batch) for batch in (48, 48, 31, 48)])
        gradients = {f"gradient of {name}": p.grad for name, p in run.model.named_parameters()}
        return {"losses": losses} | run.model.state_dict() | gradients | run.optimizer.state_dict()

    one = train(1)
    assert not helping
    for threads in (2, 3):
        many = train(threads)
        assert len(helping) == threads  # the caller and its helpers
        assert many.keys() == one.keys()
        assert [name for name in one if not same_bits(one[name], many[name])] == []
    again = train(3)
    assert [name for name in one if not same_bits(one[name], again[name])] == []


def test_memory_is_flat_after_the_second_epoch() -> None:
    """An epoch ends with a smaller batch and an evaluation in larger ones, as real ones do.

    The second one finds other blocks free at its start than the first, and may pair them up otherwise.
    """
    run = Run(2)

    def epoch() -> tuple[int, int]:
        for batch in (32, 32, 32, 19):
            run.step(batch)
        run.evaluate(64)
        return run.backend.arena.reserved_bytes, run.backend.arena.blocks

    (first, _), second = epoch(), epoch()
    assert 0 < first <= second[0] <= 1.1 * first
    assert [epoch() for _ in range(6)] == [second] * 6


def test_memory_is_flat_after_the_first_step() -> None:
    run = Run(2)
    run.step(24)
    reserved = run.backend.arena.reserved_bytes, run.backend.arena.blocks
    for _ in range(30):
        run.step(24)
    assert (run.backend.arena.reserved_bytes, run.backend.arena.blocks) == reserved


def test_batches_of_any_smaller_size_add_little_to_it() -> None:
    """A block serves sizes down to its half, so smaller batches need blocks of their own; that ends.

    With one set of blocks for each halving of the size, all of them together are at most 1 + 1/2 + 1/4 + ... = 2.
    """
    run, sizes = Run(2), np.random.default_rng(0).integers(1, 25, 120).tolist()
    run.step(24)
    first = run.backend.arena.reserved_bytes
    for size in sizes[:80]:
        run.step(size)
    settled = run.backend.arena.reserved_bytes
    assert settled <= 2 * first
    for size in sizes[80:]:
        run.step(size)
    assert run.backend.arena.reserved_bytes == settled


def test_a_result_that_is_held_stays_while_training_goes_on() -> None:
    run = Run(2)
    run.step(16)
    x = np.ones((16, *run.image), np.float32)
    y = run.model.forward(x)
    kept = [y, y[3], y.T]
    before = [array.copy() for array in kept]
    for _ in range(3):
        run.step(16)
    assert all(np.array_equal(a, b) for a, b in zip(kept, before, strict=True))


def test_threads_that_train_at_once_get_the_bits_of_one_after_the_other(same_bits) -> None:
    """Each has its own model; they share the backend, its memory and its threads."""
    backend = CpuBackend(2)
    rng = np.random.default_rng(3)
    x = rng.standard_normal((24, 12, 12, 2)).astype(np.float32)
    labels = rng.integers(0, 10, 24)

    def prepared() -> tuple[Any, ...]:
        manual_seed(4)
        model = models.build("small-cnn", (12, 12, 2), 10).to(backend)
        return (
            model,
            nn.CrossEntropyLoss(device=backend),
            optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        )

    def train(model: Any, loss: Any, sgd: Any) -> None:
        for _ in range(4):
            model.zero_grad()
            loss.forward(model.forward(x), labels)
            model.backward(loss.backward())
            sgd.step()

    alone = prepared()
    train(*alone)
    runs = [prepared() for _ in range(3)]
    threads = [threading.Thread(target=train, args=run) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    expected = alone[0].state_dict()
    for model, _, _ in runs:
        for name, value in model.state_dict().items():
            assert same_bits(value, expected[name]), name
