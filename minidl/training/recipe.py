"""What a data set is best trained with, where the user leaves it open."""

from dataclasses import asdict, dataclass, fields, replace

from minidl import schedule
from minidl.data import Augmentation, Dataset, Loader
from minidl.errors import ConfigError
from minidl.models.norms import parse
from minidl.schedule import Schedule
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
        ConfigError: The batch size is larger than the data set or has no such parts or ghost batches, cutout leaves
            nothing of an image, or the schedule cannot be.
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
    chosen = augmentation(config, dataset)
    height, width, _ = dataset.image_shape
    if config.augment and (chosen.cutout + 1) // 2 >= max(height, width):
        raise ConfigError(
            f"--cutout {chosen.cutout} leaves nothing of any image of {dataset.name}, {height}x{width} pixels; "
            f"half of that, {max(1, min(height, width) // 2)}, is a usual side"
        )
    resolved = replace(
        config,
        epochs=config.epochs or recipe.epochs,
        batch_size=batch_size,
        lr=config.lr or lr,
        weight_decay=decay if config.weight_decay is None else config.weight_decay,
        **asdict(chosen),
    )
    rates(resolved, dataset)
    require_parts(resolved)
    return resolved


def rates(config: TrainConfig, dataset: Dataset) -> Schedule:
    """The learning rate of each step of a run in which every choice is made. Raises ConfigError."""
    epochs, lr, batch_size = config.epochs, config.lr, config.batch_size
    assert epochs is not None
    assert lr is not None
    assert batch_size is not None
    per_epoch = len(Loader(len(dataset.train_images), batch_size, config.seed, parse(config.norm).batch_multiple))
    rise = None
    if config.warmup is not None:
        if config.warmup >= epochs:
            raise ConfigError(f"--warmup {config.warmup:g} is no shorter than the run of --epochs {epochs}")
        rise = int(config.warmup * per_epoch)
    return schedule.by_name(config.schedule, lr, epochs * per_epoch, rise, config.min_lr)


def require_parts(config: TrainConfig) -> None:
    """Raise ConfigError unless --accumulate divides the batch."""
    size, parts = config.batch_size or 0, config.accumulate
    if size % parts:
        near = min((n for n in range(1, size + 1) if size % n == 0), key=lambda n: (abs(n - parts), n))
        raise ConfigError(f"--accumulate {parts} does not divide --batch-size {size}; {near} does")


def augmentation(config: TrainConfig, dataset: Dataset) -> Augmentation:
    """What --augment does: the data set's own, but for what was asked for."""
    asked = {field.name: getattr(config, field.name) for field in fields(Augmentation)}
    return replace(dataset.augmentation, **{name: value for name, value in asked.items() if value is not None})
