"""What the recipe fills in, and that it never replaces what was asked for."""

from dataclasses import asdict, fields, replace

import numpy as np
import pytest

from minidl.data import Dataset
from minidl.data.catalogue import KNOWN
from minidl.errors import ConfigError
from minidl.schedule import NAMES
from minidl.training import TrainConfig
from minidl.training.config import OPTIMIZERS, validate
from minidl.training.recipe import OTHER, RECIPES, resolve


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
    assert open_choices == {"data_dir", "threads", "max_steps"}
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
