"""What a data set is best trained with, where the user leaves it open."""

from dataclasses import dataclass, replace

from minidl.data import Dataset
from minidl.errors import ConfigError
from minidl.training.config import TrainConfig


@dataclass(frozen=True)
class Recipe:
    """Epochs, images a step, and for each optimizer the largest learning rate and the weight decay."""

    epochs: int
    batch_size: int
    sgd: tuple[float, float]
    adam: tuple[float, float]


RECIPES = {
    "digits": Recipe(epochs=12, batch_size=64, sgd=(0.05, 5e-4), adam=(5e-3, 1e-2)),
    "mnist": Recipe(epochs=10, batch_size=128, sgd=(0.05, 5e-4), adam=(3e-3, 1e-2)),
    "fashion-mnist": Recipe(epochs=15, batch_size=128, sgd=(0.05, 5e-4), adam=(3e-3, 1e-2)),
    "cifar10": Recipe(epochs=30, batch_size=128, sgd=(0.05, 5e-4), adam=(3e-3, 1e-2)),
}
OTHER = Recipe(epochs=20, batch_size=64, sgd=(0.05, 5e-4), adam=(1e-3, 1e-2))


def resolve(config: TrainConfig, dataset: Dataset) -> TrainConfig:
    """`config` with every choice made.

    The learning rate is the same with and without batch normalization, so that --norm none changes one thing only.
    Adam's decay is 0, as it is added to a gradient that is then rescaled; AdamW's is the recipe's.

    Raises:
        ConfigError: The batch size is larger than the data set.
    """
    recipe = RECIPES[dataset.name] if dataset.known else OTHER
    lr, decay = recipe.sgd if config.optimizer == "sgd" else recipe.adam
    if config.optimizer == "adam":
        decay = 0.0
    images = len(dataset.train_images)
    batch_size = config.batch_size or min(recipe.batch_size, images)
    if batch_size > images:
        raise ConfigError(
            f"--batch-size {batch_size} is larger than the data set: {dataset.name} has {images:,} training images; "
            f"use at most {images}"
        )
    return replace(
        config,
        epochs=config.epochs or recipe.epochs,
        batch_size=batch_size,
        lr=config.lr or lr,
        weight_decay=decay if config.weight_decay is None else config.weight_decay,
        crop_padding=dataset.augmentation.shift if config.crop_padding is None else config.crop_padding,
    )
