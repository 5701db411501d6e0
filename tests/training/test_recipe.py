"""What the recipe fills in, and that it never replaces what was asked for."""

from dataclasses import asdict, fields, replace

import numpy as np
import pytest

from minidl.data import Augmentation, Dataset
from minidl.data.catalogue import KNOWN
from minidl.errors import ConfigError
from minidl.schedule import NAMES
from minidl.training import TrainConfig
from minidl.training.config import OPTIMIZERS, validate
from minidl.training.recipe import OTHER, RECIPES, augmentation, rates, resolve


def dataset(name: str, images: int = 300) -> Dataset:
    pixels, labels = np.zeros((images, 8, 8), np.uint8), np.zeros(images, np.int64)
    return Dataset.from_arrays(name, pixels, labels, pixels, labels, ("a", "b"), "here", known=name in KNOWN)


def test_every_known_data_set_has_a_recipe() -> None:
    assert set(RECIPES) == set(KNOWN)


@pytest.mark.parametrize("name", [*RECIPES, "of my own"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_every_choice_is_made_and_is_a_valid_one(name, optimizer, norm) -> None:
    config = TrainConfig(data=name, optimizer=optimizer, norm=norm)
    resolved = resolve(config, dataset(name))
    validate(resolved)
    open_choices = {field.name for field in fields(config) if getattr(resolved, field.name) is None}
    assert open_choices == {
        "data_dir",
        "threads",
        "max_steps",
        "monitor",
        "warmup",
        "clip",
        "ema",
        "precision",
        "graph",
    }
    assert resolve(resolved, dataset(name)) == resolved


def test_the_recipe_is_the_data_sets_and_others_share_one() -> None:
    digits = resolve(TrainConfig(), dataset("digits"))
    assert (digits.epochs, digits.batch_size, digits.lr, digits.weight_decay) == (12, 64, 0.05, 5e-4)
    other = resolve(TrainConfig(data="mine.npz"), dataset("mine"))
    assert (other.epochs, other.batch_size, (other.lr, other.weight_decay)) == (
        OTHER.epochs,
        OTHER.batch_size,
        OTHER.sgd,
    )


def test_optimizers_have_rates_and_decay_of_their_own() -> None:
    chosen = {name: resolve(TrainConfig(optimizer=name), dataset("digits")) for name in OPTIMIZERS}
    assert {name: (config.lr, config.weight_decay) for name, config in chosen.items()} == {
        "sgd": (0.05, 5e-4),
        "adam": (5e-3, 0.0),
        "adamw": (5e-3, 1e-2),
    }


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_without_batch_normalization_all_else_stays(optimizer) -> None:
    with_bn, without = (resolve(TrainConfig(optimizer=optimizer, norm=n), dataset("digits")) for n in ("batch", "none"))
    assert without == replace(with_bn, norm="none")


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("schedule", NAMES)
def test_what_was_asked_for_stays(norm, schedule) -> None:
    config = TrainConfig(
        norm=norm,
        epochs=3,
        batch_size=7,
        lr=0.123,
        optimizer="adam",
        weight_decay=0.0,
        schedule=schedule,
        augment=False,
        crop_padding=3,
        flip=True,
        cutout=2,
        seed=9,
        threads=2,
        max_steps=5,
    )
    assert asdict(resolve(config, dataset("digits"))) == asdict(config)


def test_a_decay_of_zero_is_a_choice() -> None:
    assert resolve(TrainConfig(weight_decay=0.0), dataset("digits")).weight_decay == 0.0


def test_a_small_data_set_gets_a_small_batch_unless_another_was_asked_for() -> None:
    few = dataset("digits", images=10)
    assert resolve(TrainConfig(), few).batch_size == 10
    assert resolve(TrainConfig(batch_size=10), few).batch_size == 10
    with pytest.raises(ConfigError) as caught:
        resolve(TrainConfig(batch_size=11), few)
    assert str(caught.value) == (
        "--batch-size 11 is larger than the data set: digits has 10 training images; use at most 10"
    )


def test_augmentation_is_the_data_sets_own_but_for_what_was_asked_for() -> None:
    clothes, digits = dataset("fashion-mnist"), dataset("digits")
    assert augmentation(TrainConfig(), clothes) == clothes.augmentation == Augmentation(flip=True)
    assert augmentation(TrainConfig(crop_padding=2, cutout=3), clothes) == Augmentation(2, True, 3)
    assert augmentation(TrainConfig(flip=False), clothes) == Augmentation()
    assert augmentation(TrainConfig(flip=True, crop_padding=0), digits) == Augmentation(flip=True)
    resolved = resolve(TrainConfig(cutout=3), clothes)
    assert (resolved.crop_padding, resolved.flip, resolved.cutout) == (0, True, 3)


def test_a_cutout_that_leaves_nothing() -> None:
    assert resolve(TrainConfig(cutout=14), dataset("digits")).cutout == 14  # some corner may be left
    assert resolve(TrainConfig(cutout=16, augment=False), dataset("digits")).cutout == 16
    with pytest.raises(ConfigError) as caught:
        resolve(TrainConfig(cutout=15), dataset("digits"))
    assert str(caught.value) == (
        "--cutout 15 leaves nothing of any image of digits, 8x8 pixels; half of that, 4, is a usual side"
    )


@pytest.mark.parametrize(("size", "parts", "near"), [(64, 3, 2), (64, 5, 4), (64, 65, 64), (10, 4, 5), (7, 3, 1)])
def test_parts_that_do_not_divide_the_batch_are_refused_with_those_that_do(size, parts, near) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(TrainConfig(batch_size=size, accumulate=parts), dataset("digits"))
    assert str(caught.value) == f"--accumulate {parts} does not divide --batch-size {size}; {near} does"
    resolve(TrainConfig(batch_size=size, accumulate=near), dataset("digits"))


def test_warm_up_is_counted_in_epochs() -> None:
    config = resolve(TrainConfig(batch_size=30, epochs=4, schedule="constant", lr=1.0, warmup=0.25), dataset("digits"))
    rate = rates(config, dataset("digits"))  # ten steps an epoch: two and a half of them, rounded down
    assert [rate(t) for t in range(4)] == [1 / 3, 2 / 3, 1, 1]
    for schedule in NAMES:
        plain, none = (
            rates(
                resolve(TrainConfig(batch_size=30, schedule=schedule, warmup=w), dataset("digits")), dataset("digits")
            )
            for w in (None, 0.0)
        )
        assert (plain(0) == none(0)) == (schedule in ("constant", "step"))


def test_schedules_that_cannot_be_are_refused() -> None:
    def message(**options) -> str:
        with pytest.raises(ConfigError) as caught:
            resolve(TrainConfig(**options), dataset("digits"))
        return str(caught.value)

    assert message(warmup=12.0) == "--warmup 12 is no shorter than the run of --epochs 12"
    assert message(warmup=3.5, epochs=3) == "--warmup 3.5 is no shorter than the run of --epochs 3"
    assert message(min_lr=0.1) == "--min-lr must be from 0 to --lr, which is 0.05, not 0.1"
    for name in ("constant", "one-cycle", "step"):
        wanted = f"--min-lr is where the cosine schedule ends; leave it out with --schedule {name}"
        assert message(min_lr=0.01, schedule=name) == wanted
