"""Steps that are captured and replayed: the same bits as launch by launch, whatever is asked for beside them."""

import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kernels.run_emulated import EmulatorRunner
from minidl import nn, optim, schedule
from minidl.backends import get_backend
from minidl.backends.emulated import EmulatorBackend
from minidl.data import Augmentation
from minidl.errors import ConfigError, NonFiniteError
from minidl.optim.optimizer import Numbers
from minidl.training import Trainer
from minidl.training import trainer as trainer_module
from minidl.training.monitor import Monitor

STEPS = 4  # an epoch: 42 images in batches of 12, the last of 6


def network(backend: Any, **options: Any) -> nn.Sequential:
    nn.manual_seed(2)
    norm = {"ghost": nn.GhostBatchNorm2d, "noisy": nn.NoisyBatchNorm2d}.get(options.get("norm", ""), nn.BatchNorm2d)
    extra = {"ghost_size": 6} if options.get("norm") == "ghost" else {}
    model = nn.Sequential(
        {
            "conv": nn.Conv2d(1, 2, 3, stride=2, bias=False),
            "bn": norm(2, momentum=options.get("momentum", 0.1), **extra),
            "relu": nn.ReLU(),
            "dropout": nn.Dropout(0.25),
            "flatten": nn.Flatten(),
            "fc": nn.Linear(18, 3),
        }
    ).to(backend)
    nn.fuse(model)
    model.conv.input_gradient = False
    return model


def chained(backend: Any) -> nn.Sequential:
    """Two convolutions without a stored activation between them; for TF32."""
    nn.manual_seed(2)
    model = nn.Sequential(
        {
            "conv": nn.Conv2d(1, 4, 3, stride=2, bias=False),
            "bn": nn.BatchNorm2d(4, momentum=None),
            "relu": nn.ReLU(),
            "conv2": nn.Conv2d(4, 4, 1, bias=False),
            "bn2": nn.BatchNorm2d(4),
            "flatten": nn.Flatten(),
            "fc": nn.Linear(36, 3),
        }
    ).to(backend)
    assert nn.fuse(model) == ["bn + relu + conv2 + bn2"]
    model.conv.input_gradient = False
    return model


OPTIMIZERS = {
    "sgd": lambda groups: optim.SGD(groups, 0.1, momentum=0.9, nesterov=True),
    "adam": lambda groups: optim.AdamW(groups, 0.01),
}


@pytest.fixture
def few(stripes_dataset):
    """A little of it: the emulator takes its time."""
    return replace(
        stripes_dataset, train_images=stripes_dataset.train_images[:42], train_labels=stripes_dataset.train_labels[:42]
    )


@pytest.fixture
def make(few):
    def make_trainer(
        graph: bool, optimizer: str = "sgd", ema: bool = False, norm: str = "", momentum: Any = 0.1, **options: Any
    ) -> Trainer:
        precision = "tf32" if norm == "in chains" else "fp32"
        backend = EmulatorBackend(EmulatorRunner(checks=options.pop("checks", False)), precision)
        model = chained(backend) if norm == "in chains" else network(backend, norm=norm, momentum=momentum)
        images = options.pop("images", len(few.train_images))
        return Trainer(
            model,
            replace(few, train_images=few.train_images[:images], train_labels=few.train_labels[:images]),
            OPTIMIZERS[optimizer](optim.decay_groups(model, 5e-4)),
            options.pop("rates", schedule.one_cycle(0.1, 3 * STEPS)),
            batch_size=12,
            seed=5,
            augmentation=Augmentation(crop_padding=1, flip=True, cutout=3),
            average=optim.WeightAverage(model, 0.9) if ema else None,
            graph=graph,
            **options,
        )

    return make_trainer


def train(trainer: Trainer, epochs: int = 2, stops: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    rows = []
    while trainer.progress.epoch < epochs:
        row = trainer.train_epoch(lambda: trainer.progress.step not in stops)
        if row is not None:
            row.pop("images_per_second")
            rows.append(row)
    return rows


def state(trainer: Trainer) -> dict[str, Any]:
    counters = trainer.counters()
    for name in ("epoch_seconds", "train_seconds", "seconds"):
        counters["progress"].pop(name)
    return {"counters": counters} | {name: array.tobytes() for name, array in trainer.tensors().items()}


WAYS: dict[str, dict[str, Any]] = {
    "sgd": {"checks": True},
    "adam": {"optimizer": "adam"},
    "accumulate, clip, ema": {"accumulate": 2, "clip": 0.5, "ema": True},
    "noise and a cumulative mean": {"norm": "noisy", "momentum": None, "ema": True},
    "ghost batches and a cumulative mean": {"norm": "ghost", "momentum": None, "accumulate": 2},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_same_bits_as_launch_by_launch(make, way: str) -> None:
    plain, replayed = make(False, **WAYS[way]), make(True, **WAYS[way])
    assert train(plain, 3) == train(replayed, 3)
    assert state(plain) == state(replayed)
    assert replayed.graph
    kinds = [kind for kind, captured in replayed._captured.by_kind.items() if captured is not None]
    assert sorted(images for images, _ in kinds) == [6, 12]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_parameters_that_learn_by_turns_keep_to_their_own_numbers(make, optimizer) -> None:
    """The first layer's are a step ahead of the last one's, then behind: a row of the plan is another group's then."""
    plain, replayed = make(False, optimizer=optimizer), make(True, optimizer=optimizer)
    for trainer in (plain, replayed):
        first, last = trainer.model.conv, trainer.model.fc
        for parameter in last.parameters():
            parameter.trainable = False
        assert trainer.train_epoch(lambda: False) is None  # one step
        for parameter in last.parameters():
            parameter.trainable = True
        for parameter in first.parameters():
            parameter.trainable = False
        train(trainer, 4)
    assert state(plain) == state(replayed)
    assert replayed.optimizer.updates[0] == [1, 4 * STEPS - 1]


def test_chains_of_convolutions_too(make) -> None:
    """Two steps an epoch: the emulator takes its time for tensor cores."""
    plain, replayed = (make(graph, norm="in chains", images=24) for graph in (False, True))
    replayed._step = counting = _Counting(replayed._step)
    assert train(plain) == train(replayed)
    assert state(plain) == state(replayed)
    assert counting.calls == 3  # of four: one plainly, one as the warm-up of its capture, one that is recorded


def test_stopped_within_an_epoch_and_restored_into_another_trainer(make) -> None:
    whole, stopped, resumed = (make(graph, ema=True, clip=1.0) for graph in (False, True, True))
    rows = train(whole, 3)
    train(stopped, 1)
    assert stopped.train_epoch(lambda: stopped.progress.step < STEPS + 3) is None
    resumed.restore(stopped.tensors(), stopped.counters())
    assert state(resumed) == state(stopped)
    assert train(resumed, 3) == rows[1:]
    assert state(resumed) == state(whole)


def test_a_restored_trainer_captures_anew_and_goes_on_from_there(make) -> None:
    trainer = make(True)
    train(trainer, 1, stops=(1, 3))
    tensors, counters = trainer.tensors(), trainer.counters()
    rows = train(trainer, 2)
    end = state(trainer)
    trainer.restore(tensors, counters)
    assert train(trainer, 2) == rows
    assert state(trainer) == end


def test_monitored_steps_go_launch_by_launch(make) -> None:
    records: list[list[Any]] = [[], []]
    trainers = [make(graph) for graph in (False, True)]
    for trainer, kept in zip(trainers, records, strict=True):
        trainer.monitor = Monitor(3, kept.append)
        train(trainer)
    assert records[0] == records[1]
    assert len(records[1]) == 3
    assert state(trainers[0]) == state(trainers[1])


def test_what_is_captured_is_replayed(make) -> None:
    trainer = make(True)
    trainer._step = counting = _Counting(trainer._step)
    train(trainer, 4)
    # Of each of two kinds of step: one plainly, one as the warm-up of its capture, one that is recorded.
    assert counting.calls == 6


class _Counting:
    def __init__(self, function: Any) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *args: Any, **options: Any) -> None:
        self.calls += 1
        self.function(*args, **options)


@pytest.mark.parametrize("trouble", ["upload", "look", "copy", "late"])
def test_where_capturing_fails_training_goes_on_with_one_warning(make, trouble: str) -> None:
    plain, trainer = make(False, ema=True), make(True, ema=True)
    norm, backend = trainer.model.bn, trainer.backend
    normalize = norm.normalize

    def spoiled(x: Any, relu: bool) -> Any:
        if trouble == "upload":
            backend.array(np.zeros(3))
        elif trouble == "late":
            pass
        elif trouble == "look":
            float(norm.running_mean[0])
        else:
            norm.running_mean[0] += 0
        return normalize(x, relu)

    object.__setattr__(norm, "normalize", spoiled)
    if trouble == "late":  # by then all has been counted
        update = trainer.average.update
        trainer.average.update = lambda weight: (update(weight), float(weight))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows = train(trainer, 2)
    assert [str(warning.message).split(":")[0] for warning in caught] == [
        "the training step cannot be captured, so it goes launch by launch"
    ]
    assert not trainer.graph
    assert rows == train(plain, 2)
    assert state(trainer) == state(plain)


def test_a_step_that_fails_is_no_capture_that_fails(make, monkeypatch) -> None:
    trainer = make(True)
    trainer.train_epoch(lambda: False)
    monkeypatch.setattr(trainer.criterion, "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.train_epoch()
    assert trainer.graph


def test_a_loss_that_is_not_finite_is_noticed_with_its_step(make, monkeypatch) -> None:
    monkeypatch.setattr(trainer_module, "READ_EVERY", 3)
    trainer = make(True)
    train(trainer, 1)
    trainer.train_epoch(lambda: trainer.progress.step < STEPS + 1)
    trainer.model.fc.weight.value[0, 0] = np.nan
    with pytest.raises(
        NonFiniteError,
        match=r"^training stopped at step 6 \(epoch 2\): the loss is nan, as was seen after step 8; the first values "
        r"that are not finite there: weight of conv \(Conv2d\), after the last update; --no-graph looks",
    ):
        trainer.train_epoch()


def test_gradients_that_are_not_finite_are_noticed(make) -> None:
    """Their norm is infinite where the weights are too large; the loss is not, until the next step."""
    trainer = make(True, clip=1.0)
    train(trainer, 1)
    step = trainer.progress.step
    spoil = trainer.backend.array(np.array(math.inf))
    log = trainer._log
    append = log.append_norm
    log.append_norm = lambda norm: append(spoil)
    trainer._captured.by_kind.clear()
    with pytest.raises(NonFiniteError, match=rf"at step {step + 2} .*: the norm of the gradients is inf, as was seen"):
        train(trainer, 2)


def test_steps_are_read_every_so_often(make, monkeypatch) -> None:
    monkeypatch.setattr(trainer_module, "READ_EVERY", 2)
    trainer = make(True)
    train(trainer, 2)
    seen = []
    trainer.train_epoch(lambda: seen.append(trainer.progress.seen) is None)
    assert seen == [0, 24, 24, 42]


def test_a_device_that_cannot_capture_is_refused(stripes_dataset) -> None:
    model = network(get_backend("cpu"))
    optimizer = optim.SGD(model.parameters(), 0.1)
    with pytest.raises(
        ConfigError, match=r"^--graph needs a device that captures steps, and cpu does not; leave it out$"
    ):
        Trainer(model, stripes_dataset, optimizer, schedule.constant(0.1), batch_size=9, graph=True)
    with pytest.raises(RuntimeError, match="device cpu has nothing to capture"):
        get_backend("cpu").capture(lambda: None)


def test_a_loop_of_ones_own_is_captured_with_its_numbers_on_the_device() -> None:
    """The optimizer would upload them: what a graph cannot do, and a replay would go by the old ones."""
    ends = []
    for graph in (False, True):
        nn.manual_seed(0)
        backend = EmulatorBackend(EmulatorRunner(checks=False))
        layer, criterion = nn.Linear(4, 3, device=backend), nn.CrossEntropyLoss(device=backend)
        optimizer = optim.SGD(layer.parameters(), 0.1, momentum=0.9)
        x, targets = backend.array(np.eye(4)), backend.array(np.array([0, 1, 2, 0]), np.int64)
        rates = optimizer.plan([0.1])
        numbers = Numbers({(0, count): 0 for count in range(3)}, backend.array(rates.steps[0]))

        def step(numbers=numbers, optimizer=optimizer, criterion=criterion, layer=layer, x=x, targets=targets) -> None:
            optimizer.zero_grad()
            criterion.forward(layer.forward(x), targets)
            layer.backward(criterion.backward())
            optimizer.step(numbers)

        if graph:
            captured = backend.capture(step)
            backend.copy(backend.array(optimizer.plan([0.2]).steps[0]), numbers.values)
            captured.replay()
            with pytest.raises(RuntimeError, match="numbers came from the host while a graph is captured"):
                backend.capture(lambda: step(None), warm_up=0)
        else:
            step()
            optimizer.set_lr(0.2)
            step(None)
        ends.append(backend.numpy(layer.weight.value).tobytes())
    assert ends[0] == ends[1]


def _replace_dropout(trainer: Trainer) -> None:
    trainer.model.dropout = nn.ReLU(device=trainer.backend)


CHANGES: dict[str, Any] = {
    "a dropout's share": lambda trainer: setattr(trainer.model.dropout, "p", 0.75),
    "an eps": lambda trainer: setattr(trainer.model.bn, "eps", 0.1),
    "a layer": _replace_dropout,
    "label smoothing": lambda trainer: setattr(trainer.criterion, "label_smoothing", 0.3),
    "an optimizer's option": lambda trainer: trainer.optimizer.groups[0].update(nesterov=False),
    "a technique": lambda trainer: trainer.backend.use("relu_backward", "scalar"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_between_epochs_takes_part(make, change: str) -> None:
    plain, replayed = make(False), make(True)
    for trainer in (plain, replayed):
        train(trainer, 1)
        CHANGES[change](trainer)
    assert train(plain, 2) == train(replayed, 2)
    assert state(plain) == state(replayed)
