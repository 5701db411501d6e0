"""The loop: what an epoch computes, that it computes it again bit for bit, and how it stops."""

import copy
import gc
import math
import os
from pathlib import Path

import numpy as np
import pytest

from minidl import nn, optim, schedule
from minidl.backends import get_backend
from minidl.backends.cpu import CpuBackend
from minidl.data import NO_AUGMENTATION, Augmentation
from minidl.errors import NonFiniteError
from minidl.training import Trainer, checkpoint, evaluate

OPTIMIZERS = {
    "sgd": lambda groups, backend: optim.SGD(groups, 0.1),
    "momentum": lambda groups, backend: optim.SGD(groups, 0.1, momentum=0.9),
    "nesterov": lambda groups, backend: optim.SGD(groups, 0.1, momentum=0.9, nesterov=True),
    "adam": lambda groups, backend: optim.Adam(groups, 0.01),
    "adamw": lambda groups, backend: optim.AdamW(groups, 0.01),
}
AUGMENTATION = Augmentation(crop_padding=1, flip=True, cutout=3)
STEPS = 6  # an epoch: 90 images in batches of 16, the last of 10


def network(seed: int, backend, bn: bool = True, dropout: float = 0.25, width: int = 8) -> nn.Sequential:
    nn.manual_seed(seed)
    layers = {"conv": nn.Conv2d(1, width, 3, padding=1, bias=not bn)}
    if bn:
        layers["bn"] = nn.BatchNorm2d(width)
    layers["relu"] = nn.ReLU()
    if dropout:
        layers["dropout"] = nn.Dropout(dropout)
    layers |= {"pool": nn.MaxPool2d(2), "flatten": nn.Flatten(), "fc": nn.Linear(16 * width, 3)}
    model = nn.Sequential(layers).to(backend)
    nn.fuse(model)
    return model


@pytest.fixture
def make(stripes_dataset):
    """Makes a trainer on the stripes, with batch normalization, dropout and augmentation unless told otherwise."""

    def make_trainer(
        optimizer="nesterov", *, seed=0, rates=None, backend=None, augment=True, batch_size=16, **options
    ) -> Trainer:
        backend = backend or get_backend("cpu")
        model = network(seed, backend, **options)
        return Trainer(
            model,
            stripes_dataset,
            OPTIMIZERS[optimizer](optim.decay_groups(model, 5e-4), backend),
            rates or schedule.one_cycle(0.1, 4 * STEPS),
            batch_size=batch_size,
            seed=seed,
            augmentation=AUGMENTATION if augment else NO_AUGMENTATION,
        )

    return make_trainer


def stop_after(trainer: Trainer, step: int):
    return lambda: trainer.progress.step < step


def train_to(trainer: Trainer, epochs: int) -> list[dict]:
    """Train up to so many epochs; the rows without what depends on the clock."""
    rows = []
    while trainer.progress.epoch < epochs:
        row = trainer.train_epoch()
        assert row is not None
        assert row.pop("images_per_second") > 0
        rows.append(row)
    return rows


def bits(trainer: Trainer) -> dict[str, tuple]:
    return {name: (a.dtype, a.shape, a.tobytes()) for name, a in trainer.tensors().items()}


def timeless(counters: dict) -> dict:
    counters = copy.deepcopy(counters)
    for name in ("epoch_seconds", "train_seconds", "seconds"):
        assert counters["progress"].pop(name) >= 0
    return counters


# What an epoch is


def test_an_epoch_is_the_loop_that_one_would_write_by_hand(make, stripes_dataset) -> None:
    trainer, backend = make("nesterov", seed=3), get_backend("cpu")
    rows = train_to(trainer, 2)

    model = network(3, backend)
    optimizer = OPTIMIZERS["nesterov"](optim.decay_groups(model, 5e-4), backend)
    rates, criterion, seen = schedule.one_cycle(0.1, 4 * STEPS), nn.CrossEntropyLoss(), []
    for epoch in range(2):
        order = np.random.default_rng([3, epoch]).permutation(90)
        losses, correct = [], 0
        for start in range(0, 90, 16):
            index = order[start : start + 16]
            x, targets = trainer.train_source.batch(index, AUGMENTATION, seed=3, epoch=epoch)
            optimizer.set_lr(rates(optimizer.steps))
            optimizer.zero_grad()
            logits = model(x)
            losses += [float(criterion(logits, targets))] * len(index)
            correct += int((logits.argmax(axis=1) == targets).sum())
            model.backward(criterion.backward())
            optimizer.step()
        test = evaluate(model, trainer.test_source, 30)
        seen.append((float(np.mean(losses)), correct / 90, test.accuracy))
        model.train()
    state = model.state_dict()
    for name, value in trainer.model.state_dict().items():
        assert value.tobytes() == state[name].tobytes(), name
    for row, (loss, accuracy, test_accuracy) in zip(rows, seen, strict=True):
        assert row["train_loss"] == pytest.approx(loss, rel=1e-12)  # the same float64 numbers, summed in another order
        assert (row["train_accuracy"], row["test_accuracy"]) == (accuracy, test_accuracy)


def test_training_metrics_are_means_over_images_the_short_last_batch_included(make, stripes_dataset) -> None:
    trainer = make(bn=False, dropout=0, augment=False, rates=lambda step: 0.0)  # a model that stays what it is
    before = bits(trainer)
    (row,) = train_to(trainer, 1)
    after = bits(trainer)
    assert all(after[name] == before[name] for name in before if name.startswith("model."))
    expected = evaluate(trainer.model, trainer.train_source, 90)
    assert row["train_accuracy"] == expected.accuracy
    # Each batch's loss was rounded to float32 once, at most 2^-24 of it; the mean of the six is off by no more.
    assert row["train_loss"] == pytest.approx(expected.loss, rel=2**-23)
    assert row["test_accuracy"] == evaluate(trainer.model, trainer.test_source, 7).accuracy


def test_rows_have_the_epoch_the_step_and_the_last_learning_rate(make) -> None:
    asked = []

    def rates(step: int) -> float:
        asked.append(step)
        return 0.1 / (1 + step)

    trainer = make(rates=rates)
    rows = train_to(trainer, 2)
    assert [(row["epoch"], row["step"], row["lr"]) for row in rows] == [(1, 6, 0.1 / 6), (2, 12, 0.1 / 12)]
    assert list(dict.fromkeys(asked)) == list(range(12))
    assert list(rows[0]) == ["epoch", "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "lr"]


def test_one_image_too_many_is_left_out_of_the_epoch(make) -> None:
    trainer = make(batch_size=89, rates=lambda step: 0.01)
    train_to(trainer, 1)
    assert (trainer.progress.step, trainer.progress.images) == (1, 89)


def test_the_best_epoch_is_the_first_of_equals(make) -> None:
    trainer = make(rates=lambda step: 0.0, bn=False, dropout=0)  # every epoch has the same test accuracy
    rows = train_to(trainer, 3)
    assert (trainer.progress.best_epoch, trainer.progress.best_accuracy) == (1, rows[0]["test_accuracy"])


def test_evaluation_changes_nothing_and_does_not_depend_on_the_batch_size(make) -> None:
    trainer = make()
    train_to(trainer, 1)
    before, calls = bits(trainer), trainer.counters()["calls"]
    results = [evaluate(trainer.model, trainer.test_source, size) for size in (1, 7, 30, 1000)]
    assert len({result.accuracy for result in results}) == 1
    assert [result.loss for result in results] == pytest.approx([results[0].loss] * 4, rel=1e-5)
    assert bits(trainer) == before
    assert trainer.counters()["calls"] == calls
    assert trainer.model.training
    trainer.model.eval()
    evaluate(trainer.model, trainer.test_source, 30)
    assert not trainer.model.training


# The same bits again


def test_the_same_seed_gives_the_same_bits_and_another_does_not(make) -> None:
    first, again, other = make(seed=1), make(seed=1), make(seed=2)
    rows = train_to(first, 2)
    assert train_to(again, 2) == rows
    assert bits(again) == bits(first)
    assert timeless(again.counters()) == timeless(first.counters())
    assert train_to(other, 2) != rows
    assert bits(other)["model.conv.weight"] != bits(first)["model.conv.weight"]


def test_the_number_of_threads_does_not_change_the_bits(make) -> None:
    # Wide enough that the loops of the backend fall into several pieces.
    runs = [make(backend=get_backend("cpu", threads), width=64, batch_size=45) for threads in (1, 2, 3)]
    rows = [train_to(trainer, 2) for trainer in runs]
    assert rows[1] == rows[0]
    assert rows[2] == rows[0]
    assert bits(runs[1]) == bits(runs[0])
    assert bits(runs[2]) == bits(runs[0])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("step", [1, STEPS - 1, STEPS, STEPS + 3])
def test_stopped_after_any_step_saved_and_restored_it_ends_with_the_same_bits(make, optimizer, step, tmp_path) -> None:
    whole = make(optimizer)
    rows = train_to(whole, 3)

    stopped = make(optimizer)
    seen = []
    while stopped.progress.step < step:
        row = stopped.train_epoch(stop_after(stopped, step))
        if row is not None:
            row.pop("images_per_second")
            seen.append(row)
    assert (stopped.progress.step, stopped.progress.epoch, stopped.progress.batch) == (
        step,
        step // STEPS,
        step % STEPS,
    )
    checkpoint.save(tmp_path / "stopped.safetensors", stopped.tensors(), stopped.counters())

    saved = checkpoint.load(tmp_path / "stopped.safetensors")
    resumed = make(optimizer, seed=0)
    resumed.model.conv.weight.value[...] = 7  # nothing of a fresh trainer may shine through
    resumed.restore(saved.tensors, saved.metadata)
    assert bits(resumed) == bits(stopped)
    assert seen + train_to(resumed, 3) == rows
    assert bits(resumed) == bits(whole)
    assert timeless(resumed.counters()) == timeless(whole.counters())


def test_dropout_masks_are_part_of_the_state(make) -> None:
    """Without its count of calls, a resumed run would draw the first masks again: the counters are needed."""
    trainer = make()
    train_to(trainer, 1)
    counters = trainer.counters()
    assert counters["calls"] == {"dropout": STEPS}
    ends = []
    for calls in (STEPS, 0):
        resumed = make()
        resumed.restore(trainer.tensors(), counters | {"calls": {"dropout": calls}})
        train_to(resumed, 2)
        ends.append(bits(resumed)["model.fc.weight"])
    train_to(trainer, 2)
    assert ends[0] == bits(trainer)["model.fc.weight"]
    assert ends[1] != ends[0]


def test_stopping_at_an_epochs_last_step_is_no_stop(make) -> None:
    trainer = make()
    assert trainer.train_epoch(stop_after(trainer, STEPS - 1)) is None
    assert trainer.train_epoch(stop_after(trainer, STEPS)) is not None
    assert trainer.progress.epoch == 1


def test_a_state_of_another_model_or_optimizer_is_refused(make) -> None:
    trainer = make("adam")
    with pytest.raises(ValueError, match=r"does not fit this Sequential: conv\.weight has shape \(9, 1, 3, 3\)"):
        trainer.restore(make("adam", width=9).tensors(), trainer.counters())
    with pytest.raises(ValueError, match=r"missing: bn\.weight, bn\.bias, .*; unexpected: conv\.bias"):
        trainer.restore(make("adam", bn=False).tensors(), trainer.counters())
    with pytest.raises(ValueError, match=r"does not fit this Adam: 0\.0\.first_moment"):
        trainer.restore(make("nesterov").tensors(), trainer.counters())


# Numbers that are not finite


def test_a_loss_that_is_nan_names_step_and_layer_and_changes_no_parameter(make) -> None:
    trainer = make()
    trainer.train_epoch(stop_after(trainer, 2))
    trainer.model.fc.weight.value[0, 0] = np.nan
    before = bits(trainer)
    with pytest.raises(NonFiniteError) as caught:
        trainer.train_epoch()
    assert str(caught.value) == (
        "training stopped at step 3 (epoch 1): the loss is nan; "
        "the first values that are not finite: weight of fc (Linear), after the last update"
    )
    assert trainer.progress.step == 2
    after = bits(trainer)
    running = {"model.bn.running_mean", "model.bn.running_var", "model.bn.num_batches_tracked"}
    assert {name for name in before if after[name] != before[name]} <= running


def test_weights_that_an_epochs_last_update_ruins_are_found_before_the_evaluation(make, monkeypatch) -> None:
    trainer = make("momentum", rates=lambda step: 3e38 if step == STEPS - 1 else 0.1)
    monkeypatch.setattr(trainer, "evaluate", lambda: pytest.fail("evaluated a ruined model"))
    trainer.model.conv.weight.value[...] = 0.1
    with pytest.raises(NonFiniteError, match=r"^training stopped after step 6 \(epoch 1\): .* not finite: weight of "):
        trainer.train_epoch()
    assert trainer.progress.epoch == 0


# Memory


def test_memory_is_flat_over_a_thousand_steps(make) -> None:
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("the process's memory is read from /proc/self/statm, which this system does not have")

    def resident() -> int:
        gc.collect()
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    backend = CpuBackend(2)  # an arena of its own
    trainer = make("adamw", backend=backend, width=32, rates=lambda step: 1e-3)
    train_to(trainer, 2)
    reserved, blocks, before = backend.arena.reserved_bytes, backend.arena.blocks, resident()
    train_to(trainer, 2 + math.ceil(1000 / STEPS))
    assert trainer.progress.step >= 1000
    assert (backend.arena.reserved_bytes, backend.arena.blocks) == (reserved, blocks)
    # One lost activation a step (16x8x8x32 float32) would be 131 MB; the interpreter's own noise is far below 4.
    assert resident() - before < 4 * 2**20
