"""The training loop: steps, epochs, and a state from which it goes on bit for bit."""

import contextlib
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from minidl.backends import Array, Backend
from minidl.backends.protocol import Graph
from minidl.data import NO_AUGMENTATION, Augmentation, Dataset, Loader
from minidl.errors import ConfigError, NonFiniteError
from minidl.nn import CrossEntropyLoss, Module, batch_multiple
from minidl.optim import Optimizer, WeightAverage, clip_grad_norm
from minidl.schedule import Schedule
from minidl.training.diagnosis import first_nonfinite, first_nonfinite_gradient
from minidl.training.evaluation import ImageSource, Result, evaluate
from minidl.training.monitor import Monitor
from minidl.training.step import HostCounts, Log, Plan, difference, signature

Row = dict[str, Any]
COLUMNS = (
    *("epoch", "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy"),
    *("images_per_second", "lr"),
)  # of a Row, in this order
READ_EVERY = 50  # steps: how often the host waits to see the losses of steps that are replayed


@dataclass
class Progress:
    """How far a run is. With it, the weights and the optimizer's state, the rest of the run is determined."""

    epoch: int = 0  # finished ones
    batch: int = 0  # finished ones of the current epoch
    step: int = 0
    loss_sum: float = 0.0  # of the current epoch, over images
    correct: int = 0
    seen: int = 0
    epoch_seconds: float = 0.0
    train_seconds: float = 0.0  # of all steps; evaluation is not in it
    seconds: float = 0.0  # of everything, sessions before a resumption included
    images: int = 0
    best_accuracy: float = -1.0
    best_epoch: int = 0


class _Unread(NamedTuple):
    """A step whose results are in the log."""

    step: int  # its number, from 1
    parts: list[int]  # images of each
    norm: bool  # whether the norm of its gradients is there too


class _Captured(NamedTuple):
    """A step as the device recorded it."""

    graph: Graph
    counts: list[int]  # what it adds to the host's counts


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
        self.progress = Progress()
        self.monitor: Monitor | None = None
        self.graph = graph
        self._check_parts()
        require_captures(self.backend, graph)
        self._shares: dict[float, Array] = {}  # of a step's images, on the device
        self._plan = Plan(self.backend, self.loader)
        self._log = Log(self.backend, len(self.loader) * accumulate)
        self._unread: list[_Unread] = []
        self._captured: dict[Any, _Captured | None] = {}  # by kind of step; None: it was made once
        self._captured_with: Any = None

    def _check_parts(self) -> None:
        size, parts = self.loader.batch_size, self.accumulate
        if parts < 1 or size % parts:
            raise ConfigError(f"accumulate is {parts}, expected a number that divides the batch size {size}")
        if parts > 1 and size // parts % self.loader.multiple_of:
            raise ConfigError(
                f"--accumulate {parts} makes parts of {size // parts} images, not a multiple of the ghost batch of "
                f"{self.loader.multiple_of}"
            )

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
        return self._finish_epoch(test)

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
        self._counts = HostCounts(self.model, self.optimizer, self.average)
        others = [*self._plan.arrays(), *self._log.arrays()]
        options = self.clip, self.accumulate, self.augmentation, self.seed
        now = options, signature(self.model, self.optimizer, self.average, others)
        if now != self._captured_with:
            self._captured.clear()
            self._captured_with = now

    def _train_step(self) -> None:
        progress = self.progress
        with self._timed():
            images = min(self.loader.batch_size, self.loader.images - progress.batch * self.loader.batch_size)
            self.optimizer.set_lr(self.schedule(progress.step))
            monitored = self.monitor is not None and self.monitor.wants(progress.step)
            kind = images, self.average is not None and self.average.updates == 0  # its first update copies
            looked = True
            if not self.graph or monitored or kind not in self._captured:
                with self._monitored():
                    self._step(images, look=True)
                if not monitored:
                    self._captured.setdefault(kind)
            else:
                captured, looked = self._captured[kind], False
                if captured is None:
                    self._capture(kind)
                else:
                    captured.graph.replay()
                    self._counts.add(captured.counts)
            sizes = [part.stop - part.start for part in self._parts(images)]
            progress.step += 1
            progress.batch += 1
            progress.images += images
            self._unread.append(_Unread(progress.step, sizes, not looked and self.clip is not None))
            if looked or len(self._unread) >= READ_EVERY or progress.batch == len(self.loader):
                self._read()

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        self.progress.epoch_seconds += seconds
        self.progress.train_seconds += seconds

    def _step(self, images: int, look: bool) -> None:
        """All that the device does in a step; with `look` the host looks whether loss and gradients are finite."""
        index = self._plan.begin_step(images)
        self.optimizer.zero_grad()
        for part in self._parts(images):
            self._back_and_forth(index[part], (part.stop - part.start) / images, look)
        if self.monitor is not None:
            self.monitor.gradients(self.model)
        if self.clip is not None:
            self._clip_gradients(self.clip, look)
        self.optimizer.step(self._plan.of_optimizer(self.optimizer))
        if self.average is not None:
            self.average.update(self._plan.of_average())

    def _capture(self, kind: tuple[int, bool]) -> None:
        """Make a step of this kind, and record it for the next ones."""
        snapshots = []

        def step() -> None:
            self._step(kind[0], look=False)
            snapshots.append(self._counts.now())

        try:
            graph = self.backend.capture(step)
        except Exception as error:
            if not snapshots:  # it is the step itself that failed
                raise
            self.graph = False
            why = " ".join(str(error).split()) or type(error).__name__
            warnings.warn(f"the training step cannot be captured, so it goes launch by launch: {why}", stacklevel=2)
            self._captured.clear()
            self._counts.add(difference(snapshots[0], self._counts.now()))  # the step was made, its recording was not
        else:
            made, recorded = snapshots
            self._counts.add(difference(made, recorded))
            self._captured[kind] = _Captured(graph, difference(recorded, made))

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
            raise NonFiniteError(
                f"training stopped at step {step} (epoch {self.progress.epoch + 1}): the {what} {value}, as was seen "
                f"after step {self.progress.step}; the first values that are not finite there: {where}; --no-graph "
                "looks after each step"
            )

    def _parts(self, images: int) -> list[slice]:
        """A step's images, shared out evenly among as few parts as hold at most batch_size / accumulate each.

        Only where those are 2 and the batch is odd has one of them 3: batch normalization needs two values a channel.
        """
        if self.accumulate == 1:
            return [slice(0, images)]
        size = self.loader.batch_size // self.accumulate
        count = -(-images // size)
        if size > 1 and images // count < 2:
            count = max(1, count - 1)
        unit = 1 if images % self.loader.multiple_of else self.loader.multiple_of
        ends = np.cumsum([0, *(unit * len(part) for part in np.array_split(np.arange(images // unit), count))])
        return [slice(int(start), int(stop)) for start, stop in itertools.pairwise(ends)]

    def _back_and_forth(self, index: Array, share: float, look: bool) -> None:
        """Add the gradients of these images, a `share` of the step's, to the model's, and note loss and answers."""
        x, targets = self.train_source.take(index, self.augmentation, seed=self.seed, epoch=self._plan.epoch)
        logits = self.model.forward(x)
        loss = self.criterion.forward(logits, targets)
        if look and not math.isfinite(float(loss)):
            where = first_nonfinite(self.model, x)
            raise NonFiniteError(
                f"training stopped at step {self.progress.step + 1} (epoch {self.progress.epoch + 1}): the loss is "
                f"{float(loss)}; the first values that are not finite: {where}"
            )
        dlogits = self.criterion.backward()
        if share != 1:
            if share not in self._shares:
                self._shares[share] = self.backend.array(np.array(share))
            self.backend.scale_forward(dlogits, self._shares[share], dlogits)
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
            raise NonFiniteError(
                f"training stopped at step {self.progress.step + 1} (epoch {self.progress.epoch + 1}): the norm of the "
                f"gradients is not finite; the first values that are not: {first_nonfinite_gradient(self.model)}"
            ) from None

    def _monitored(self) -> contextlib.AbstractContextManager[None]:
        """Around a step: whether and how it is measured."""
        step, epoch = self.progress.step, self.progress.epoch
        if self.monitor is None or not self.monitor.wants(step):
            return contextlib.nullcontext()
        return self.monitor.watch(self.model, step, epoch, self.schedule(step))

    def _finish_epoch(self, test: Result) -> Row:
        progress, train = self.progress, self.train_result()
        progress.epoch += 1
        speed, lr = progress.seen / progress.epoch_seconds, self.schedule(progress.step - 1)
        row = dict(zip(COLUMNS, (progress.epoch, progress.step, *train, *test, speed, lr), strict=True))
        progress.batch = progress.seen = progress.correct = 0
        progress.loss_sum = progress.epoch_seconds = 0.0
        if test.accuracy > progress.best_accuracy:
            progress.best_accuracy, progress.best_epoch = test.accuracy, progress.epoch
        return row

    def require_finite_state(self) -> None:
        """Raise NonFiniteError if a parameter or buffer is not finite: such a state is not worth keeping."""
        where = first_nonfinite(self.model)
        if where is not None:
            raise NonFiniteError(
                f"training stopped after step {self.progress.step} (epoch {self.progress.epoch + 1}): "
                f"the first values that are not finite: {where}"
            )

    # The state, for checkpoints.

    def tensors(self) -> dict[str, np.ndarray]:
        """Weights, buffers, the optimizer's state and the averages: "model.NAME", "optimizer.NAME", "average.NAME"."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors.update({f"optimizer.{name}": value for name, value in self.optimizer.state_dict().items()})
        if self.average is not None:
            tensors.update({f"average.{name}": value for name, value in self.average.state_dict().items()})
        return tensors

    def counters(self) -> dict[str, Any]:
        """The rest of the state, as JSON can hold it: progress, and the calls of each layer that draws numbers."""
        calls = {name: layer.calls for name, layer in _drawing(self.model)}
        return {"progress": asdict(self.progress), "calls": calls}

    def restore(self, tensors: Mapping[str, np.ndarray], counters: Mapping[str, Any]) -> None:
        """The inverse of `tensors` and `counters`. Raises ValueError if they are of another model or optimizer."""
        self.model.load_state_dict(_part(tensors, "model."))
        self.optimizer.load_state_dict(_part(tensors, "optimizer."))
        if self.average is not None:
            self.average.load_state_dict(_part(tensors, "average."))
        self.progress = Progress(**counters["progress"])
        self._captured_with = None
        for name, layer in _drawing(self.model):
            layer.calls = counters["calls"][name]


def require_captures(backend: Backend, graph: bool | None) -> None:
    """Raise ConfigError if steps are to be captured on a device that cannot."""
    if graph and not backend.captures:
        raise ConfigError(f"--graph needs a device that captures steps, and {backend.name} does not; leave it out")


def _part(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _drawing(model: Module) -> list[tuple[str, Any]]:
    """The layers whose random numbers depend on a count of calls: dropout, noise."""
    return [(name, module) for name, module in model.named_modules() if hasattr(module, "calls")]
