"""The twin: training on a device, with the float64 reference beside it in lockstep.

`Twin` is a backend. Whatever an operation is asked for, the device under test does; the reference does the same from
the very same inputs, and every answer must be within the bound that those inputs allow. So an error shows in the step,
the layer and the array where it arises, not where it has grown to. Between two operations an array must stay what the
first left in it: memory that is handed out twice, or written to by somebody else, shows too.

`run` trains a network on it, and for comparison a second one in float64 from the same start that is never set right.
"""

import inspect
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kernels.arrays import address
from kernels.emulator.faults import KernelFault
from minidl import nn, optim
from minidl.backends import Array, Backend, BatchStatistics, get_backend, in_precision
from minidl.data import load
from minidl.lab.budget import Comparison, compare
from minidl.lab.twin_bounds import OUTPUTS, Call, compared, labelled, of_call
from minidl.models import build
from minidl.schedule import constant
from minidl.training.trainer import Trainer

BATCH_SIZE = 64
EMULATED_BATCH_SIZE = 8  # the emulator takes a thousand times longer


class Departure(Exception):  # noqa: N818 - what was looked for, not a mistake in the program
    """An array left its budget, or was not what the last operation had left in it, or a kernel broke a rule."""

    def __init__(
        self, step: int, layer: str, operation: str, array: str, comparison: Comparison | None, what: str = ""
    ) -> None:
        self.step, self.layer, self.operation, self.array, self.comparison = step, layer, operation, array, comparison
        where = f"step {step}, {layer or 'outside of any layer'}, {operation}: {array}"
        if comparison is None:
            super().__init__(f"{where} {what}")
            return
        c = comparison
        place = f"[{', '.join(map(str, c.index))}]" if c.index else ""
        super().__init__(
            f"{where}{place} is {c.got:.9g}, expected {c.expected:.9g}; "
            f"the error {c.error:.3g} is {c.ratio:.3g} of its bound {c.bound:.3g}"
        )


class Twin:
    """A `Backend` that does everything on `device` and holds it against the reference."""

    def __init__(self, device: Backend) -> None:
        self.device = device
        self.reference = get_backend("reference")
        self.step = 0
        self.layers: list[str] = []  # that are running, the innermost last
        self.names: dict[int, str] = {}  # of parameters, by address
        self.compared = 0
        self.worst: tuple[float, str] = (0.0, "")
        self._written: dict[int, tuple[int, int]] = {}  # by address: bytes, checksum
        for operation in OUTPUTS:
            setattr(self, operation, self._checked(operation))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.device, name)

    # What is checked here are a chain's operations one by one, on every device (`verify` checks those that are fused).

    def fuses_normalization(self, c_in: int, c_out: int) -> bool:
        """See `Backend`."""
        del c_in, c_out
        return False

    def fuses_pooling(self) -> bool:
        """See `Backend`."""
        return False

    # What writes without being an operation.

    def array(self, host: np.ndarray, dtype: Any = None) -> Array:
        """See `Backend`."""
        return self._note(self.device.array(host, dtype))

    def zeros(self, shape: tuple[int, ...], dtype: Any = None) -> Array:
        """See `Backend`."""
        return self._note(self.device.zeros(shape, dtype))

    def copy(self, source: Array, target: Array) -> None:
        """See `Backend`."""
        self.device.copy(source, target)
        self._note(target)

    def _note(self, array: Array) -> Array:
        start = address(array)
        # Parts of an array, such as ghost batches, are written one by one; a whole that is written over them ends them.
        for part in [at for at, (size, _) in self._written.items() if start < at and at + size <= start + array.nbytes]:
            del self._written[part]
        self._written[start] = _checksum(self.device.numpy(array))
        return array

    # Operations.

    def _checked(self, operation: str) -> Callable[..., Any]:
        signature = inspect.signature(getattr(Backend, operation))
        on_device, by_definition = getattr(self.device, operation), getattr(self.reference, operation)

        def checked(*given: Any, **options: Any) -> None:
            arguments = dict(signature.bind(None, *given, **options).arguments)
            del arguments["self"]
            before = {name: self._host(value) for name, value in arguments.items()}
            self._require_unchanged(operation, arguments, before)
            try:
                on_device(*given, **options)
            except KernelFault as fault:
                layer = self.layers[-1] if self.layers else ""
                raise Departure(self.step, layer, operation, fault.array or "a kernel", None, f"- {fault}") from None
            expected = {name: _wide(value) for name, value in before.items()}
            by_definition(*expected.values())
            written = {name: arguments[name] for name in OUTPUTS[operation] if arguments[name] is not None}
            got = {name: self._host(value) for name, value in written.items()}
            bounds = of_call(operation, Call(before, expected, got))
            for name, value in written.items():
                answers, right = compared(operation, name, got[name]), compared(operation, name, expected[name])
                first = next(iter(labelled(name, value).values()), None)
                for label, answer in answers.items():
                    array = labelled(name, value).get(label, first)
                    self._hold(operation, label, array, compare(answer, right[label], bounds[label]))
                for array in labelled(name, value).values():
                    self._note(array)

        return checked

    def _host(self, value: Any) -> Any:
        """A copy of an argument in host memory."""
        if isinstance(value, BatchStatistics):
            return BatchStatistics(*(self._host(part) for part in value))
        if isinstance(value, list | tuple) and value and hasattr(value[0], "dtype"):
            return [self._host(part) for part in value]
        return self.device.numpy(value) if hasattr(value, "dtype") else value

    def _require_unchanged(self, operation: str, arguments: Mapping[str, Any], before: Mapping[str, Any]) -> None:
        for name, value in arguments.items():
            if name in OUTPUTS[operation] and operation not in IN_PLACE:
                continue
            hosts = labelled(name, before[name])
            for label, array in labelled(name, value).items():
                known, now = self._written.get(address(array)), _checksum(hosts[label])
                if known is not None and known[0] == now[0] and known != now:
                    what = "is no longer what the last operation wrote into it"
                    raise Departure(self.step, self._layer(array), operation, label, None, what)

    def _hold(self, operation: str, label: str, array: Array, comparison: Comparison) -> None:
        self.compared += 1
        layer = self._layer(array)
        if not comparison.passed:
            raise Departure(self.step, layer, operation, label, comparison)
        if comparison.ratio > self.worst[0]:
            self.worst = comparison.ratio, f"{layer} {operation} {label}".strip()

    def _layer(self, array: Array) -> str:
        return self.names.get(address(array)) or (self.layers[-1] if self.layers else "")

    def watch(self, model: nn.Module) -> None:
        """Know the layers of `model` by name while they run, and its parameters."""
        for name, module in model.named_modules():
            for method in ("forward", "backward", "normalize"):
                if name and hasattr(module, method):
                    object.__setattr__(module, method, self._within(name, getattr(module, method)))
        for name, parameter in model.named_parameters():
            self.names[address(parameter.value)] = name

    def _within(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def running(*arguments: Any, **options: Any) -> Any:
            self.layers.append(name)
            try:
                return method(*arguments, **options)
            finally:
                self.layers.pop()

        return running


IN_PLACE = (
    *("batchnorm_update_running", "sgd", "adam", "moving_average", "clip_by_norm"),
    *("append_result", "begin_step", "count_call", "append_number"),
)


def run(device: Backend, steps: int, seed: int, said: Callable[[str], None] = print) -> Departure | None:
    """Train small-cnn on digits for so many steps; the first departure, or None.

    Args:
        device: Under test.
        steps: Of stochastic gradient descent with momentum, batch normalization and ReLU fused.
        seed: Of the weights and the data order.
        said: Gets a line for each step: the loss on the device, that of the network in float64 which went its own way
            from the same start, and the worst error so far as a share of its bound.

    Convolutions and linear layers are exact float32, whatever the device's precision.
    """
    with in_precision(device, "fp32"):  # which the bounds are derived for
        return _run(device, steps, seed, said)


def _run(device: Backend, steps: int, seed: int, said: Callable[[str], None]) -> Departure | None:
    twin = Twin(device)
    batch_size = EMULATED_BATCH_SIZE if device.name == "emulator" else BATCH_SIZE
    ours, exact = _trainer(twin, seed, batch_size), _trainer(get_backend("reference"), seed, batch_size)
    twin.watch(ours.model)
    digits = len(str(steps))
    try:
        while twin.step < steps:
            twin.step += 1
            losses = [_one_step(trainer) for trainer in (ours, exact)]
            share, where = twin.worst
            said(
                f"step {twin.step:{digits}}/{steps}: loss {losses[0]:.7f}, in float64 {losses[1]:.7f} "
                f"({losses[0] - losses[1]:+.1e}); {twin.compared:,} arrays, worst error/bound {share:.3f} ({where})"
            )
    except Departure as departure:
        return departure
    return None


def _trainer(backend: Backend, seed: int, batch_size: int) -> Trainer:
    nn.manual_seed(seed)
    digits = load("digits")
    model = build("small-cnn", digits.image_shape, digits.classes)
    model.to(backend)
    nn.fuse(model)
    optimizer = optim.SGD(optim.decay_groups(model, weight_decay=5e-4), 0.05, momentum=0.9, nesterov=True)
    return Trainer(model, digits, optimizer, constant(0.05), batch_size=batch_size, seed=seed)


def _one_step(trainer: Trainer) -> float:
    """The loss of the next step."""
    progress = trainer.progress
    before, seen = (progress.loss_sum, progress.seen) if progress.batch else (0.0, 0)
    if trainer.train_epoch(keep_going=lambda: False) is not None:
        raise AssertionError("the twin trains for less than an epoch")
    return (progress.loss_sum - before) / (progress.seen - seen)


def _wide(value: Any) -> Any:
    """A copy in float64, for the reference to compute with."""
    if isinstance(value, BatchStatistics):
        return BatchStatistics(*(_wide(part) for part in value))
    if isinstance(value, list):
        return [_wide(part) for part in value]
    if isinstance(value, np.ndarray):
        with np.errstate(all="ignore"):  # an output is not written yet and may hold anything
            return value.astype(np.float64) if value.dtype.kind == "f" else value.copy()
    return value


def _checksum(host: np.ndarray) -> tuple[int, int]:
    return host.nbytes, zlib.crc32(host.tobytes())
