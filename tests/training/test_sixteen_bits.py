"""Training with images' activations in 16 bits: what is stored so, how far gradients are off, loss scaling, graphs."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from kernels.run_emulated import EmulatorRunner
from kernels.storage import BFLOAT16, FLOAT16
from minidl import nn, optim, schedule
from minidl.backends.emulated import EmulatorBackend
from minidl.backends.reference import ReferenceBackend
from minidl.training import Trainer
from minidl.training.loss_scale import INTERVAL

STORAGES = {"bf16": BFLOAT16, "fp16": FLOAT16}
each = pytest.mark.parametrize("precision", STORAGES)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def emulator(precision: str, checks: bool = False) -> EmulatorBackend:
    return EmulatorBackend(EmulatorRunner(checks=checks), precision)


def network(backend: Any, fused: bool = True) -> nn.Sequential:
    """All that an image passes through: each kind of layer, a residual block, branches, and both ways to (n, c)."""
    nn.manual_seed(4)
    block = nn.Residual(
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        downsample=nn.Sequential(nn.Conv2d(8, 16, 1, stride=2, bias=False), nn.BatchNorm2d(16)),
        activation=nn.ReLU(),
    )
    branches = nn.Concat(nn.Conv2d(16, 8, 1), nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Conv2d(16, 8, 1)))
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), block, branches, nn.Flatten(),
        nn.Linear(16 * 4, 3),
    ).to(backend)  # fmt: skip
    model[0].input_gradient = False
    if fused:
        nn.fuse(model)
    return model


def gradients(model: nn.Module, x: np.ndarray) -> dict[str, np.ndarray]:
    """Of a loss of x (8, 8, 8, 1), by parameters' names, with the logits."""
    backend = model.backend
    loss = nn.CrossEntropyLoss(device=backend)
    logits = model.forward(backend.array(x))
    loss.forward(logits, backend.array(np.arange(len(x)) % 3, np.int64))
    model.backward(loss.backward())
    found = {name: backend.numpy(parameter.grad) for name, parameter in model.named_parameters()}
    return found | {"logits": backend.numpy(logits)}


class Shaken(ReferenceBackend):
    """The definitions in float64, with every image that is stored, and every weight that images are multiplied by,
    moved by up to half a unit in the last place of the storage, at random."""

    key = ("reference",)

    def __init__(self, unit: float, seed: int) -> None:
        super().__init__()
        self.unit, self.rng = unit, np.random.default_rng(seed)

    def _shaken(self, x: np.ndarray) -> np.ndarray:
        return x * (1 + self.unit * self.rng.uniform(-1, 1, x.shape))

    def __getattribute__(self, name: str) -> Any:
        operation = object.__getattribute__(self, name)
        moves = name.startswith(("conv2d", "batchnorm", "relu", "add", "max_pool", "avg_pool", "concat", "split"))
        if not moves or "running" in name:
            return operation
        return self._around(operation, weights=name in ("conv2d_forward", "conv2d_backward_input"))

    def _around(self, operation: Callable[..., None], weights: bool) -> Callable[..., None]:
        def run(*arguments: Any, **options: Any) -> None:
            given = [self._shaken(a) if weights and i == 1 else a for i, a in enumerate(arguments)]
            flat = [one for a in given for one in (a if isinstance(a, list) else [a])]
            images = [a for a in flat if isinstance(a, np.ndarray) and a.ndim == 4]
            before = [a.copy() for a in images]
            operation(*given, **options)
            for image, old in zip(images, before, strict=True):
                if not np.array_equal(image, old, equal_nan=True) and operation.__name__ != "conv2d_backward_weight":
                    image[...] = self._shaken(image)

        return run


@each
def test_gradients_are_off_by_what_rounding_explains(rng, precision: str) -> None:
    """By no more than three times the most that random changes of the same size do to the definition in float64.

    Which ReLU passes and which maximum wins may change as well, in either.
    """
    unit = 2.0 ** -(STORAGES[precision].fraction + 1)
    x = rng.standard_normal((8, 8, 8, 1))
    right = gradients(network(ReferenceBackend(), fused=False), x)
    got = gradients(network(emulator(precision)), x)
    shaken = [gradients(network(Shaken(unit, seed), fused=False), x) for seed in range(12)]
    for name, expected in right.items():
        most = max(np.linalg.norm(one[name] - expected) for one in shaken)
        floor = 1e-6 * max(np.linalg.norm(expected), 1e-2)  # float32's own; of a bias before a normalization, all of it
        assert np.linalg.norm(got[name] - expected) <= 3 * most + floor, name
        assert most > floor or name == "0.bias"


@pytest.mark.parametrize(("precision", "multiple"), [("tf32", 4), ("bf16", 8), ("fp16", 8)])
def test_chains_are_of_channels_that_16_bytes_hold(precision: str, multiple: int) -> None:
    fuses = emulator(precision).fuses_normalization
    assert fuses(multiple, 3 * multiple)
    assert not fuses(multiple // 2, multiple)
    assert not fuses(multiple, multiple + multiple // 2)
    assert not emulator("fp32").fuses_normalization(16, 16)


def after_steps(model: nn.Module, batches: list[np.ndarray]) -> dict[str, np.ndarray]:
    """The model's state after a step on each."""
    sgd = optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for x in batches:
        model.zero_grad()
        gradients(model, x)
        sgd.step()
    return model.state_dict()


@each
def test_fused_training_goes_the_way_of_the_layers(rng, precision: str) -> None:
    """All that differs is that statistics are of sums that were not rounded yet; within what rounding explains."""
    unit = 2.0 ** -(STORAGES[precision].fraction + 1)
    batches = [rng.standard_normal((3, 8, 8, 1)) for _ in range(2)]
    fused, apart = network(emulator(precision)), network(emulator(precision), fused=False)
    chains = "4.0 + 4.1 + 4.2 + 4.3 + 4.4 + sum + 4.activation", "4.downsample.0 + 4.downsample.1"
    assert set(chains) <= set(nn.fuse(fused))
    states = after_steps(fused, batches), after_steps(apart, batches)
    right = after_steps(network(ReferenceBackend(), fused=False), batches)
    shaken = [after_steps(network(Shaken(unit, seed), fused=False), batches) for seed in range(6)]
    differ = False
    for name, expected in right.items():
        most = max(np.linalg.norm(one[name] - expected) for one in shaken)
        off = np.linalg.norm(states[0][name].astype(np.float64) - states[1][name])
        assert off <= 3 * most + 1e-6 * max(np.linalg.norm(expected), 1e-2), name
        differ |= off > 0
    assert differ


@each
def test_images_are_stored_in_16_bits_and_nothing_else_is(rng, precision: str) -> None:
    backend = emulator(precision)
    model, full = network(backend), network(emulator("tf32"))  # which fuses the same
    gradients(full, rng.standard_normal((8, 8, 8, 1)))  # and has no effect on the other
    kept: dict[str, int] = {}
    for name, net in (("narrow", model), ("full", full)):
        x = net.backend.array(np.zeros((8, 8, 8, 1)))
        assert x.dtype == net.forward(x).dtype == np.float32
        arrays = {id(a): a for _, layer in net.named_modules() for a in _arrays(layer._kept)}
        kept[name] = sum(a.nbytes for a in arrays.values() if a.ndim == 4 and a.dtype != np.int32 and a is not x)
        of_images = {a.dtype for a in arrays.values() if a.ndim == 4 and a.dtype != np.int32 and a is not x}
        assert of_images == {net.backend.activations}
        assert {a.dtype for a in arrays.values() if a.ndim < 4} == {np.dtype(np.float32)}
    assert kept["narrow"] * 2 == kept["full"]
    assert all(value.dtype == np.float32 for value in model.state_dict().values() if value.dtype.kind == "f")


def _arrays(kept: Any) -> list[np.ndarray]:
    if isinstance(kept, np.ndarray):
        return [kept]
    return [one for part in kept or () for one in _arrays(part)] if isinstance(kept, tuple | list) else []


@pytest.fixture
def few(stripes_dataset):
    """A little of it: the emulator takes its time."""
    return replace(
        stripes_dataset, train_images=stripes_dataset.train_images[:24], train_labels=stripes_dataset.train_labels[:24]
    )


@pytest.fixture
def make(few):
    def make_trainer(precision: str, graph: bool = False, adam: bool = False, **options: Any) -> Trainer:
        nn.manual_seed(2)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.GlobalAvgPool2d(),
            nn.Linear(4, 3),
        ).to(emulator(precision, options.pop("checks", False)))  # fmt: skip
        nn.fuse(model)
        model[0].input_gradient = False
        groups = optim.decay_groups(model, 5e-4)
        optimizer = optim.AdamW(groups, 0.02) if adam else optim.SGD(groups, 0.1, momentum=0.9, nesterov=True)
        return Trainer(
            model, few, optimizer, schedule.constant(0.02 if adam else 0.1), batch_size=8, graph=graph, **options
        )

    return make_trainer


def bits(trainer: Trainer) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in trainer.tensors().items()}


@each
@pytest.mark.parametrize("adam", [False, True])
def test_the_loss_falls_and_a_captured_step_gives_the_same_bits(make, precision: str, adam: bool) -> None:
    plain, replayed = make(precision, adam=adam, checks=True), make(precision, graph=True, adam=adam)
    rows = [[trainer.train_epoch() for _ in range(4)] for trainer in (plain, replayed)]
    assert rows[0][-1]["train_loss"] < 0.97 * rows[0][0]["train_loss"]
    assert [row["train_loss"] for row in rows[0]] == [row["train_loss"] for row in rows[1]]
    assert replayed.graph
    assert bits(plain) == bits(replayed)
    assert ("loss_scale.state" in plain.tensors()) is (precision == "fp16")


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("adam", [False, True])
def test_a_step_whose_gradients_are_beyond_float16_changes_no_weight(make, graph: bool, adam: bool) -> None:
    trainer = make("fp16", graph=graph, adam=adam, clip=5.0)
    trainer.train_epoch()
    trainer.loss_scale.load(np.array([2.0**40, 5]))
    before = {name: value for name, value in trainer.tensors().items() if "running" not in name and "num_" not in name}
    trainer.train_epoch()
    after = trainer.tensors()
    assert_array_equal(after["loss_scale.state"], [2.0**37, 0])  # halved in each of three steps
    for name, value in before.items():
        if name != "loss_scale.state" and not name.endswith((".updates", ".steps", "optimizer.steps")):
            assert_array_equal(after[name], value, err_msg=name)
    trainer.loss_scale.load(np.array([1024.0, INTERVAL - 2]))
    trainer.train_epoch()
    assert_array_equal(trainer.tensors()["loss_scale.state"], [2048.0, 1])
    assert any((trainer.tensors()[name] != value).any() for name, value in before.items() if "model." in name)


def test_the_scale_leaves_no_trace_in_the_gradients(make) -> None:
    """Powers of two: where nothing underflows, weights are the same whatever it is, bit for bit."""
    trainers = [make("fp16"), make("fp16")]
    trainers[1].loss_scale.load(np.array([4096.0, 0]))
    states = []
    for trainer in trainers:
        assert trainer.train_epoch(lambda: False) is None
        states.append({name: value for name, value in bits(trainer).items() if name != "loss_scale.state"})
    assert states[0].keys() == states[1].keys()
    far = [name for name in states[0] if states[0][name] != states[1][name]]
    for name in far:  # but for what did underflow
        values = [np.frombuffer(state[name], np.float32) for state in states]
        np.testing.assert_allclose(*values, rtol=1e-3, atol=1e-5)


def test_the_scale_goes_on_from_a_checkpoint(make) -> None:
    first, second = make("fp16"), make("fp16")
    first.loss_scale.load(np.array([512.0, 3]))
    first.train_epoch()
    second.restore(first.tensors(), first.counters())
    assert bits(second) == bits(first)
    without = {name: value for name, value in first.tensors().items() if name != "loss_scale.state"}
    third = make("fp16")
    third.restore(without, first.counters())  # of a run in another precision
    assert_array_equal(third.tensors()["loss_scale.state"], [65536.0, 0])
    with pytest.raises(ValueError, match=r"the loss scale's state is \[0.5, 3.0\], expected a scale of at least 1"):
        third.loss_scale.load(np.array([0.5, 3]))
