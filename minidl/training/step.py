"""What a training step finds on the device beside its model, so that it asks nothing of the host."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kernels.arrays import address
from minidl.backends import Array, Backend
from minidl.data import Loader
from minidl.nn import Module
from minidl.nn.counts import Count
from minidl.optim import Optimizer, WeightAverage
from minidl.optim.optimizer import Numbers, NumbersPlan


class Plan:
    """An epoch on the device: the order of its images, each step's numbers, and which step is next.

    It is written once an epoch. `begin_step` takes from it what a step needs, and moves on.

    Attributes:
        epoch: () uint32.
        index: (batch size,) int64: the images of the step that began last.
        size: Images of a step.
    """

    def __init__(self, backend: Backend, loader: Loader) -> None:
        self.backend, self.loader, self.size = backend, loader, loader.batch_size
        self.epoch = backend.zeros((), np.uint32)
        self.index = backend.zeros((self.size,), np.int64)
        self._order = backend.zeros((loader.images,), np.int64)
        self._step = backend.zeros((), np.int64)
        self._rows: Array = None
        self._numbers: Array = None
        self._of_optimizer: NumbersPlan
        self._steps = 0  # of the optimizer, when this was written

    def write(
        self, epoch: int, first: int, rates: Sequence[float], optimizer: Optimizer, average: WeightAverage | None
    ) -> None:
        """Plan an epoch from step number `first` on; `rates` are the learning rates of the steps that are left."""
        backend, steps = self.backend, len(self.loader)
        self._of_optimizer = optimizer.plan(rates)
        blocks = [self._of_optimizer.steps.reshape(len(rates), -1)]
        blocks += [average.plan(len(rates))] if average is not None else []
        rows = np.zeros((steps, sum(block.shape[1] for block in blocks)))
        rows[first:] = np.concatenate(blocks, axis=1)
        if self._rows is None or self._rows.shape != rows.shape:
            self._rows, self._numbers = backend.zeros(rows.shape), backend.zeros(rows.shape[1:])
        self._steps = optimizer.steps
        for host, array in (
            (self.loader.order(epoch), self._order),
            (rows, self._rows),
            (np.array(first), self._step),
            (np.array(epoch), self.epoch),
        ):
            backend.copy(backend.array(host, array.dtype), array)

    def begin_step(self, images: int) -> Array:
        """The next step's images, (images,) int64; its numbers are there, too."""
        index = self.index[:images]
        self.backend.begin_step(self._order, self._rows, self._step, self.size, index, self._numbers)
        return index

    def of_optimizer(self, optimizer: Optimizer) -> Numbers:
        """What this step's `optimizer.step` goes by."""
        ahead, (rows, steps) = optimizer.steps - self._steps, self._of_optimizer
        values = self._numbers[: steps[0].size].reshape(steps.shape[1:])
        return Numbers({(group, count + ahead): row for (group, count), row in rows.items()}, values)

    def rows_of(self, optimizer: Optimizer) -> list[list[int]]:
        """By which row of its numbers each parameter goes, when the plan was written; a captured step goes by it."""
        rows = self._of_optimizer.rows
        return [[rows[g, count] for count in counts] for g, counts in enumerate(optimizer.updates)]

    def of_average(self) -> Array:
        """The weight of this step's update of the average."""
        return self._numbers[-1:].reshape(())

    def arrays(self) -> list[Array]:
        """All that a captured step reads and writes."""
        return [self.epoch, self.index, self._order, self._step, self._rows, self._numbers]


class Log:
    """Losses and correct answers, one after the other, on the device; with them the norms of gradients."""

    def __init__(self, backend: Backend, size: int) -> None:
        self.backend = backend
        self._losses, self._corrects = backend.zeros((size,)), backend.zeros((size,), np.int64)
        self._norms = backend.zeros((size,))
        self._results, self._norm_count = backend.zeros((), np.int64), backend.zeros((), np.int64)
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        for count in (self._results, self._norm_count):
            self.backend.copy(self.backend.zeros((), np.int64), count)
        self._read, self._norms_read = 0, 0

    def append(self, logits: Array, targets: Array, loss: Array) -> None:
        """Note a batch's loss, and count its correct answers."""
        self.backend.append_result(logits, targets, loss, self._results, self._losses, self._corrects)

    def append_norm(self, norm: Array) -> None:
        """Note the norm of a step's gradients."""
        self.backend.append_number(norm, self._norm_count, self._norms)

    def read(self, results: int) -> list[tuple[float, int]]:
        """The next so many losses and counts of correct answers; the host waits for them."""
        part = slice(self._read, self._read + results)
        self._read += results
        losses, corrects = self.backend.numpy(self._losses[part]), self.backend.numpy(self._corrects[part])
        return list(zip(losses.tolist(), corrects.tolist(), strict=True))

    def read_norms(self, norms: int) -> list[float]:
        """The next so many norms."""
        part = slice(self._norms_read, self._norms_read + norms)
        self._norms_read += norms
        values: list[float] = self.backend.numpy(self._norms[part]).tolist()
        return values

    def arrays(self) -> list[Array]:
        """All that a captured step writes."""
        return [self._losses, self._corrects, self._norms, self._results, self._norm_count]


class HostCounts:
    """What a step counts up on the host. A replay does not, and so it is added to it."""

    def __init__(self, model: Module, optimizer: Optimizer, average: WeightAverage | None) -> None:
        self.optimizer, self.average = optimizer, average
        modules = (vars(module).values() for _, module in model.named_modules())
        self.counts = [value for values in modules for value in values if isinstance(value, Count)]

    def now(self) -> list[int]:
        """All counts."""
        updates = [count for own in self.optimizer.updates for count in own]
        averages = [] if self.average is None else [self.average.updates]
        return [self.optimizer.steps, *updates, *averages, *(count.value for count in self.counts)]

    def add(self, more: Sequence[int]) -> None:
        """Add to each count; the device's own are left alone."""
        extra = iter(more)
        self.optimizer.steps += next(extra)
        for own in self.optimizer.updates:
            own[:] = [count + next(extra) for count in own]
        if self.average is not None:
            self.average.updates += next(extra)
        for count in self.counts:
            count.skip(next(extra))


def difference(after: Sequence[int], before: Sequence[int]) -> list[int]:
    """What was added."""
    return [a - b for a, b in zip(after, before, strict=True)]


def signature(
    model: Module, criterion: Module, optimizer: Optimizer, average: WeightAverage | None, others: Sequence[Array]
) -> Any:
    """What a captured step was captured with: where its arrays lie, which parameters learn, what else it goes by.

    A captured step is good for as long as this is equal.
    """
    return tuple(_parts_of_signature(model, criterion, optimizer, average, others))


def _parts_of_signature(
    model: Module, criterion: Module, optimizer: Optimizer, average: WeightAverage | None, others: Sequence[Array]
) -> Iterator[Any]:
    backend = optimizer.backend
    yield getattr(backend, "precision", None), sorted(getattr(backend, "asked_for", {}).items())
    yield from map(address, others)
    for layers in (model, criterion):
        for name, module in layers.named_modules():
            yield name, type(module), _options(vars(module))
            yield from map(address, module._buffers.values())
            for parameter in module._parameters.values():
                yield address(parameter.value), parameter.trainable
    for group in optimizer.groups:
        yield _options({name: value for name, value in group.items() if name != "lr"})  # a step looks that up
    for states in optimizer.state:
        for state in states:
            yield from map(address, state.values())
    if average is not None:
        yield from map(address, average.arrays())


def _options(values: Mapping[str, Any]) -> tuple[Any, ...]:
    """What is a plain value, such as an eps or a stride."""
    plain = bool | int | float | str
    return tuple(
        (name, value)
        for name, value in values.items()
        if not name.startswith("_")
        and (isinstance(value, plain) or (isinstance(value, tuple) and all(isinstance(one, plain) for one in value)))
    )
