"""Accumulated gradients, clipping and averaged weights in the loop, and in what a run leaves behind."""

import math
from typing import Any

import numpy as np
import pytest

from minidl import nn, optim
from minidl.backends import get_backend
from minidl.data import Dataset
from minidl.errors import ConfigError, NonFiniteError
from minidl.schedule import constant
from minidl.training import TrainConfig, Trainer, begin, checkpoint, evaluate
from minidl.training.saved import load_model

RATE = 0.05


def network(device: str, bn: bool, ghost: int = 0) -> nn.Sequential:
    nn.manual_seed(4)
    layers: list[nn.Module] = [nn.Conv2d(1, 4, 3, padding=1, bias=not bn)]
    if bn:
        layers.append(nn.GhostBatchNorm2d(4, ghost) if ghost else nn.BatchNorm2d(4))
    layers += [nn.ReLU(), nn.GlobalAvgPool2d(), nn.Linear(4, 3)]
    return nn.Sequential(*layers).to(device)


@pytest.fixture
def make(stripes_dataset: Dataset) -> Any:
    """Makes a trainer of plain gradient descent on the stripes, 90 images in batches of 16, the last of 10."""

    def make_trainer(
        device: str = "cpu",
        *,
        bn: bool = True,
        ghost: int = 0,
        ema: float | None = None,
        batch_size: int = 16,
        **options,
    ) -> Trainer:
        model = network(device, bn, ghost)
        return Trainer(
            model,
            stripes_dataset,
            optim.SGD(model.parameters(), RATE),
            constant(RATE),
            batch_size=batch_size,
            average=None if ema is None else optim.WeightAverage(model, ema),
            **options,
        )

    return make_trainer


def bits(trainer: Trainer) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in trainer.tensors().items()}


def sizes_of_parts(trainer: Trainer) -> list[int]:
    """How many images each forward pass of an epoch of training sees."""
    sizes, forward = [], trainer.model.forward

    def counted(x: Any) -> Any:
        if trainer.model.training:
            sizes.append(len(x))
        return forward(x)

    trainer.model.forward = counted  # type: ignore[method-assign]
    trainer.train_epoch()
    return sizes


# Accumulated gradients


@pytest.mark.parametrize("parts", [2, 4, 16])
def test_without_normalization_parts_make_the_step_of_the_whole(make, parts: int) -> None:
    whole, trainer = make("reference", bn=False), make("reference", bn=False, accumulate=parts)
    row, other = whole.train_epoch(), trainer.train_epoch()
    assert trainer.progress.step == whole.progress.step == 6
    assert other["train_loss"] == pytest.approx(row["train_loss"], rel=1e-12)
    assert other["train_accuracy"] == row["train_accuracy"]
    expected = whole.model.state_dict()
    for name, value in trainer.model.state_dict().items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-10, atol=1e-12)


def test_one_part_is_the_whole(make) -> None:
    trainers = [make(), make(accumulate=1)]
    for trainer in trainers:
        trainer.train_epoch()
    assert bits(trainers[0]) == bits(trainers[1])


def test_a_step_of_parts_is_the_loop_that_one_would_write_by_hand(make) -> None:
    """With batch normalization each part has statistics of its own, and moves the running ones."""
    trainer = make("reference", accumulate=2)
    trainer.train_epoch(keep_going=lambda: False)
    model, criterion = network("reference", bn=True), nn.CrossEntropyLoss(device="reference")
    sgd = optim.SGD(model.parameters(), RATE)
    index = next(iter(trainer.loader.batches(0)))
    for part in (index[:8], index[8:]):
        x, targets = trainer.train_source.batch(part)
        criterion(model(x), targets)
        model.backward(criterion.backward() / 2)
    sgd.step()
    expected = model.state_dict()
    assert expected["1.num_batches_tracked"] == 2
    for name, value in trainer.model.state_dict().items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("batch_size", "parts", "last"),
    [
        (16, 1, [10]),
        (16, 2, [5, 5]),
        (16, 4, [4, 3, 3]),
        (16, 8, [2, 2, 2, 2, 2]),
        (16, 16, [1] * 10),
        (32, 16, [2] * 13),
        (28, 14, [2, 2, 2]),
        (29, 1, [3]),
        (86, 43, [2, 2]),
        (87, 3, [3]),
    ],
)
def test_a_short_batch_has_fewer_parts_none_larger_than_the_others(
    make, batch_size: int, parts: int, last: Any
) -> None:
    sizes = sizes_of_parts(make(batch_size=batch_size, accumulate=parts))
    whole = 90 // batch_size
    assert sizes == [batch_size // parts] * (whole * parts) + last


def test_no_part_is_a_single_image_where_parts_have_two(make, stripes_dataset) -> None:
    trainer = make(batch_size=4, accumulate=2)
    assert trainer._parts(3) == [slice(0, 3)]
    trainer = make(batch_size=10, accumulate=5)
    assert trainer._parts(7) == [slice(0, 3), slice(3, 5), slice(5, 7)]
    assert trainer._parts(1) == [slice(0, 1)]


def test_parts_are_made_of_whole_ghost_batches(make) -> None:
    trainer = make(ghost=4, batch_size=16, accumulate=2)
    assert trainer._parts(12) == [slice(0, 8), slice(8, 12)]
    with pytest.raises(ConfigError, match=r"--accumulate 8 makes parts of 2 images, not a multiple of .* 4"):
        make(ghost=4, batch_size=16, accumulate=8)


@pytest.mark.parametrize("parts", [0, -1, 3])
def test_parts_that_do_not_divide_the_batch_are_refused(make, parts: int) -> None:
    with pytest.raises(ConfigError, match=f"accumulate is {parts}, expected a number that divides the batch size 16"):
        make(accumulate=parts)


# Clipping


def test_a_step_is_no_longer_than_the_clipped_gradient(make) -> None:
    most = 0.01
    free, clipped = make("reference"), make("reference", clip=most)
    lengths = []
    for trainer in (free, clipped):
        before = {name: p.value.copy() for name, p in trainer.model.named_parameters()}
        trainer.train_epoch(keep_going=lambda: False)
        moved = [p.value - before[name] for name, p in trainer.model.named_parameters()]
        lengths.append(math.sqrt(sum(float(np.square(array).sum()) for array in moved)) / RATE)
    assert lengths[0] > 5 * most
    assert lengths[1] == pytest.approx(most, rel=1e-3)  # 1e-6 is added to the norm
    assert lengths[1] < most


def test_a_norm_that_is_never_reached_changes_no_bit(make) -> None:
    free, clipped = make(), make(clip=1e9)
    for trainer in (free, clipped):
        trainer.train_epoch()
    assert bits(free) == bits(clipped)


def test_a_gradient_that_is_not_finite_stops_training_before_the_step_and_is_named(make) -> None:
    trainer = make(clip=1.0)
    before = bits(trainer)
    fc = trainer.model[-1]
    backward = fc.backward

    def spoiled(dy: Any) -> Any:
        dx = backward(dy)
        fc.bias.grad[1] = np.inf
        return dx

    fc.backward = spoiled
    with pytest.raises(NonFiniteError) as caught:
        trainer.train_epoch()
    assert str(caught.value) == (
        "training stopped at step 1 (epoch 1): the norm of the gradients is not finite; the first values that are not: "
        "the gradient of bias of 4 (Linear)"
    )
    after = bits(trainer)
    assert all(after[name] == before[name] for name in before if "running" not in name and "tracked" not in name)


# Averaged weights


def test_averages_are_evaluated_and_training_does_not_know(make) -> None:
    plain, averaged = make(), make(ema=0.9)
    rows = [trainer.train_epoch() for trainer in (plain, averaged) for _ in range(2)]
    tensors = averaged.tensors()
    for name, value in plain.tensors().items():
        assert tensors[name].tobytes() == value.tobytes()
    assert [row["train_loss"] for row in rows[:2]] == [row["train_loss"] for row in rows[2:]]
    assert rows[1]["test_loss"] != rows[3]["test_loss"]

    model = network("cpu", bn=True)
    model.load_state_dict({k.removeprefix("average.module."): v for k, v in tensors.items() if "average.module" in k})
    assert evaluate(model, plain.test_source, 64).loss == rows[3]["test_loss"]
    assert tensors["average.n_averaged"] == 12


def test_the_state_of_the_averages_is_restored(make) -> None:
    whole, stopped, resumed = (make(ema=0.9, clip=0.5, accumulate=2) for _ in range(3))
    whole.train_epoch()
    stopped.train_epoch(keep_going=lambda: stopped.progress.step < 3)
    resumed.restore(stopped.tensors(), stopped.counters())
    resumed.train_epoch()
    assert bits(resumed) == bits(whole)
    with pytest.raises(ValueError, match="WeightAverage"):
        whole.restore(make().tensors(), whole.counters())


class Silent:
    """A reporter."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def test_a_run_keeps_both_weights_and_gives_back_the_averaged_ones(stripes_file, tmp_path) -> None:
    config = TrainConfig(data=stripes_file, epochs=3, batch_size=16, ema=0.5, clip=1.0, accumulate=2, norm_decay=1e-4)
    session = begin(config, tmp_path, Silent())
    summary = session.train(Silent())
    trainer = session.trainer
    assert [group["weight_decay"] for group in trainer.optimizer.groups] == [5e-4, 1e-4]
    for which in (checkpoint.BEST, checkpoint.LAST):
        tensors = checkpoint.load(session.run.checkpoints / which).tensors
        assert not np.array_equal(tensors["model.fc.weight"], tensors["average.module.fc.weight"])
        saved = load_model(session.run.checkpoints / which, get_backend("cpu"))
        state = saved.model.state_dict()
        assert all(np.array_equal(value, tensors[f"average.module.{name}"]) for name, value in state.items())
        accuracy = evaluate(saved.model, trainer.test_source, 64).accuracy
        best = which == checkpoint.BEST
        assert accuracy == summary["best_test_accuracy" if best else "test_accuracy"]
