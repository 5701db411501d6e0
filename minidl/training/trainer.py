"""The training loop: steps, epochs, and a state from which it goes on bit for bit."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from minidl.backends import Array
from minidl.backends.compilation import COMPILATION
from minidl.data import NO_AUGMENTATION, Augmentation, Dataset, Loader
from minidl.errors import NonFiniteError
from minidl.nn import CrossEntropyLoss, Module, batch_multiple
from minidl.optim import Optimizer, WeightAverage, clip_grad_norm
from minidl.schedule import Schedule
from minidl.training.captured import CapturedSteps, require_captures
from minidl.training.diagnosis import first_nonfinite, first_nonfinite_gradient
from minidl.training.evaluation import ImageSource, Result, evaluate
from minidl.training.loss_scale import loss_scale_of
from minidl.training.monitor import Monitor
from minidl.training.parts import parts_of, require_parts
from minidl.training.progress import Progress, Row
from minidl.training.state import State
from minidl.training.step import HostCounts, Log, Plan, signature

READ_EVERY = 50  # steps: how often the host waits to see the losses of steps that are replayed


class _Unread(NamedTuple):
    """A step whose results are in the log."""

    step: int  # its number, from 1
    parts: list[int]  # images of each
    norm: bool  # whether the norm of its gradients is there too


class Trainer:
    """Trains a model on a data set.

    The epoch's plan (the order of its images, and what learning rates mean for each step) lies on the device, as the
    data set does, and so does the log of losses: a step asks nothing of the host. With `graph` it is captured once for
    each number of images, and then replayed, which launches all of its kernels at once. Either way gives the same bits.

    Args:
        model: On the device where training happens.
        dataset: Its training images are learned from, its test images evaluated after each epoch.
        optimizer: Over the model's parameters.
        schedule: The learning rate of each step.
        batch_size: Images a step.
        seed: Of the data order and the augmentation.
        augmentation: What happens to training images.
        label_smoothing: See `CrossEntropyLoss`.
        accumulate: Parts that a step's images are shared out among; each goes forward and back by itself, and the step
            is made with the mean of their gradients. So memory holds a part, and batch statistics are those of parts:
            the running ones move once a part. It divides `batch_size`.
        clip: The largest norm of all gradients together; see `clip_grad_norm`. None for no limit.
        average: Of `model`; updated after each step, and what is evaluated. None for none.
        graph: Whether to capture steps and replay them; the device must be one that can. The second step of a kind is
            captured. A monitored step goes launch by launch, and so do all where capturing fails, after a warning. A
            loss that is not finite is noticed every READ_EVERY steps, without `graph` at once.

    Raises:
        ConfigError: The parts of a batch cannot be, or the device cannot capture.
    """

    def __init__(
        self,
        model: Module,
        dataset: Dataset,
        optimizer: Optimizer,
        schedule: Schedule,
        *,
        batch_size: int,
        seed: int = 0,
        augmentation: Augmentation = NO_AUGMENTATION,
        label_smoothing: float = 0.0,
        accumulate: int = 1,
        clip: float | None = None,
        average: WeightAverage | None = None,
        graph: bool = False,
    ) -> None:
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.accumulate, self.clip, self.average = accumulate, clip, average
        self.backend = model.backend
        self.seed, self.augmentation = seed, augmentation
        self.loader = Loader(len(dataset.train_images), batch_size, seed, batch_multiple(model))
        statistics = dataset.mean, dataset.std
        self.train_source = ImageSource(dataset.train_images, dataset.train_labels, *statistics, self.backend)
        self.test_source = ImageSource(dataset.test_images, dataset.test_labels, *statistics, self.backend)
        self.criterion = CrossEntropyLoss(label_smoothing=label_smoothing, device=self.backend)
        self.loss_scale = loss_scale_of(self.backend)
        self.progress = Progress()
        self.monitor: Monitor | None = None
        self.graph = graph
        require_parts(self.loader, accumulate)
        require_captures(self.backend, graph)
        self._shares: dict[float, Array] = {}  # of a step's images, on the device
        self._plan = Plan(self.backend, self.loader)
        self._log = Log(self.backend, len(self.loader) * accumulate)
        self._unread: list[_Unread] = []
        self._captured = CapturedSteps(self.backend)

    def train_epoch(self, keep_going: Callable[[], bool] = lambda: True) -> Row | None:
        """Finish the current epoch and evaluate.

        Args:
            keep_going: Asked after each step; once it says no, training stops there.

        Returns:
            The epoch's metrics, or None if it was stopped before its end; `progress` then stands between two steps.

        Raises:
            NonFiniteError: The loss or a weight is no longer finite.
        """
        progress, began = self.progress, time.perf_counter()
        self.model.train()
        try:
            self._begin()
            while progress.batch < len(self.loader):
                self._train_step()
                if not keep_going() and progress.batch < len(self.loader):
                    self._read()
                    return None
            self.require_finite_state()
            test = self.evaluate()
        finally:
            progress.seconds += time.perf_counter() - began
        return progress.finish_epoch(self.train_result(), test, self.schedule(progress.step - 1))

    def evaluate(self) -> Result:
        """Loss and accuracy on the test images, of the averaged weights where there are any."""
        with self.average.averaged() if self.average is not None else contextlib.nullcontext():
            return evaluate(self.model, self.test_source, max(64, self.loader.batch_size // self.accumulate))

    def train_result(self) -> Result:
        """Mean loss and accuracy over the current epoch's images so far, each as it was when its step was made."""
        progress = self.progress
        if not progress.seen:
            return Result(math.nan, math.nan)
        return Result(progress.loss_sum / progress.seen, progress.correct / progress.seen)

    def _begin(self) -> None:
        """Write what is left of the epoch onto the device."""
        progress = self.progress
        steps = range(progress.step, progress.step + len(self.loader) - progress.batch)
        rates = [self.schedule(step) for step in steps]
        self._plan.write(progress.epoch, progress.batch, rates, self.optimizer, self.average)
        self._log.clear()
        self._unread.clear()
        others = [*self._plan.arrays(), *self._log.arrays()]
        if self.loss_scale is not None:
            self.loss_scale.prepare(self.optimizer, self._plan.of_optimizer(self.optimizer))
            others += self.loss_scale.arrays()
        options = self.clip, self.accumulate, self.augmentation, self.seed, self._plan.rows_of(self.optimizer)
        good_for = options, signature(self.model, self.criterion, self.optimizer, self.average, others)
        self._captured.begin(HostCounts(self.model, self.optimizer, self.average), good_for)

    def _train_step(self) -> None:
        progress = self.progress
        with self._timed():
            images = min(self.loader.batch_size, self.loader.images - progress.batch * self.loader.batch_size)
            self.optimizer.set_lr(self.schedule(progress.step))
            monitored = self.monitor is not None and self.monitor.wants(progress.step)
            kind = images, self.average is not None and self.average.updates == 0  # its first update copies
            looked = True
            if not self.graph or monitored or kind not in self._captured.by_kind:
                with self._monitored():
                    self._step(images, look=True)
                if not monitored:
                    self._captured.was_made(kind)
            else:
                looked = False
                self.graph = self._captured.make(kind, lambda: self._step(images, look=False))
            sizes = [part.stop - part.start for part in self._parts(images)]
            progress.step += 1
            progress.batch += 1
            progress.images += images
            self._unread.append(_Unread(progress.step, sizes, not looked and self.clip is not None))
            if looked or len(self._unread) >= READ_EVERY or progress.batch == len(self.loader):
                self._read()

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        began, compiled = time.perf_counter(), COMPILATION.seconds
        yield
        compiled = COMPILATION.seconds - compiled  # once on a machine: it is none of a step's time
        seconds = max(time.perf_counter() - began - compiled, 1e-9)  # another thread may have compiled, for others
        self.progress.epoch_seconds += seconds
        self.progress.train_seconds += seconds

    def _step(self, images: int, look: bool) -> None:
        """All that the device does in a step; with `look` the host looks whether loss and gradients are finite."""
        index = self._plan.begin_step(images)
        self.optimizer.zero_grad()
        for part in self._parts(images):
            self._back_and_forth(index[part], (part.stop - part.start) / images, look)
        numbers = self._plan.of_optimizer(self.optimizer)
        if self.loss_scale is not None:
            self.loss_scale.settle(self.model, numbers)
        if self.monitor is not None:
            self.monitor.gradients(self.model)
        if self.clip is not None:
            self._clip_gradients(self.clip, look)
        self.optimizer.step(numbers)
        if self.average is not None:
            self.average.update(self._plan.of_average())

    def _read(self) -> None:
        """Take the results of the last steps from the device; raise NonFiniteError for the first that is not finite."""
        progress, unread = self.progress, self._unread[:]
        self._unread.clear()
        results = iter(self._log.read(sum(len(step.parts) for step in unread)))
        norms = iter(self._log.read_norms(sum(step.norm for step in unread)))
        for step in unread:
            loss_sum = 0.0
            for images, (loss, right) in zip(step.parts, results, strict=False):
                self._require_finite(step.step, "loss is", loss)
                loss_sum += loss * images
                progress.correct += right
            if step.norm:
                self._require_finite(step.step, "norm of the gradients is", next(norms))
            progress.seen += sum(step.parts)
            progress.loss_sum += loss_sum

    def _require_finite(self, step: int, what: str, value: float) -> None:
        if not math.isfinite(value):
            where = first_nonfinite(self.model) or "none by now"
            raise self._stopped(
                f"at step {step}",
                f"the {what} {value}, as was seen after step {self.progress.step}; the first values that are not "
                f"finite there: {where}; --no-graph looks after each step",
            )

    def _stopped(self, when: str, why: str) -> NonFiniteError:
        return NonFiniteError(f"training stopped {when} (epoch {self.progress.epoch + 1}): {why}")

    def _parts(self, images: int) -> list[slice]:
        return parts_of(images, self.loader, self.accumulate)

    def _back_and_forth(self, index: Array, share: float, look: bool) -> None:
        """Add the gradients of these images, a `share` of the step's, to the model's, and note loss and answers."""
        x, targets = self.train_source.take(index, self.augmentation, seed=self.seed, epoch=self._plan.epoch)
        logits = self.model.forward(x)
        loss = self.criterion.forward(logits, targets)
        if look and not math.isfinite(float(loss)):
            where = first_nonfinite(self.model, x)
            why = f"the loss is {float(loss)}; the first values that are not finite: {where}"
            raise self._stopped(f"at step {self.progress.step + 1}", why)
        dlogits = self.criterion.backward()
        if share != 1:
            if share not in self._shares:
                self._shares[share] = self.backend.array(np.array(share))
            self.backend.scale_forward(dlogits, self._shares[share], dlogits)
        if self.loss_scale is not None:
            self.loss_scale.scale(dlogits)
        self.model.backward(dlogits)
        self._log.append(logits, targets, loss)

    def _clip_gradients(self, most: float, look: bool) -> None:
        if not look:
            norm = clip_grad_norm(self.model.parameters(), most)
            self._log.append_norm(norm)
            return
        try:
            clip_grad_norm(self.model.parameters(), most, error_if_nonfinite=True)
        except FloatingPointError:
            where = first_nonfinite_gradient(self.model)
            why = f"the norm of the gradients is not finite; the first values that are not: {where}"
            raise self._stopped(f"at step {self.progress.step + 1}", why) from None

    def _monitored(self) -> contextlib.AbstractContextManager[None]:
        """Around a step: whether and how it is measured."""
        step, epoch = self.progress.step, self.progress.epoch
        if self.monitor is None or not self.monitor.wants(step):
            return contextlib.nullcontext()
        return self.monitor.watch(self.model, step, epoch, self.schedule(step))

    def require_finite_state(self) -> None:
        """Raise NonFiniteError if a parameter or buffer is not finite: such a state is not worth keeping."""
        where = first_nonfinite(self.model)
        if where is not None:
            raise self._stopped(f"after step {self.progress.step}", f"the first values that are not finite: {where}")

    # The state, for checkpoints.

    def tensors(self) -> dict[str, np.ndarray]:
        """What steps change on the device; see `State.tensors`."""
        return self._state().tensors()

    def counters(self) -> dict[str, Any]:
        """The rest of the state, as JSON can hold it: progress, and the calls of each layer that draws numbers."""
        return {"progress": asdict(self.progress), "calls": self._state().calls()}

    def restore(self, tensors: Mapping[str, np.ndarray], counters: Mapping[str, Any]) -> None:
        """The inverse of `tensors` and `counters`. Raises ValueError if they are of another model or optimizer."""
        state = self._state()
        state.load(tensors)
        self.progress = Progress(**counters["progress"])
        self._captured.forget()
        state.load_calls(counters["calls"])

    def _state(self) -> State:
        return State(self.model, self.optimizer, self.average, self.loss_scale)
