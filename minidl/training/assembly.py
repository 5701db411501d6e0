"""A training run's parts, put together as its configuration says: model, optimizer, trainer."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from minidl import models, optim
from minidl.backends import Backend
from minidl.data import NO_AUGMENTATION, Dataset
from minidl.errors import ConfigError
from minidl.models.norms import parse
from minidl.nn import Conv2d, Linear, fuse, manual_seed
from minidl.training.config import TrainConfig
from minidl.training.recipe import augmentation, rates
from minidl.training.trainer import Trainer

NARROW_KINDS = "batch", "ghost", "none", "skipinit"  # normalizations whose kernels take activations in 16 bits


def spec_of(config: TrainConfig, dataset: Dataset) -> models.Spec:
    """What model it is."""
    return models.Spec(config.model, dataset.image_shape, dataset.classes, config.norm, config.zero_gamma)


def trainer_of(
    config: TrainConfig, dataset: Dataset, backend: Backend, weights: Mapping[str, np.ndarray] | None = None
) -> Trainer:
    """The trainer of a run, whose model has `weights` or, by default, those that the seed gives it."""
    require_norm_for(backend, config.norm)
    manual_seed(config.seed)
    model = models.build(*spec_of(config, dataset)).to(backend)
    if weights is not None:
        model.load_state_dict(weights)
    fuse(model)
    if isinstance(model[0], Conv2d | Linear):
        model[0].input_gradient = False  # nobody learns from the images' gradient
    lr = known(config.lr)
    groups = optim.decay_groups(model, known(config.weight_decay), config.norm_decay)
    optimizer: optim.Optimizer
    if config.optimizer == "sgd":
        momentum = config.momentum
        optimizer = optim.SGD(groups, lr, momentum=momentum, nesterov=momentum > 0)
    else:
        optimizer = {"adam": optim.Adam, "adamw": optim.AdamW}[config.optimizer](groups, lr)
    return Trainer(
        model,
        dataset,
        optimizer,
        rates(config, dataset),
        batch_size=known(config.batch_size),
        seed=config.seed,
        augmentation=augmentation(config, dataset) if config.augment else NO_AUGMENTATION,
        label_smoothing=config.label_smoothing,
        accumulate=config.accumulate,
        clip=config.clip,
        average=None if config.ema is None else optim.WeightAverage(model, config.ema),
        graph=backend.name == "cuda" if config.graph is None else config.graph,
    )


def require_norm_for(backend: Backend, norm: str) -> None:
    """Raise ConfigError if the device stores activations in 16 bits, and the normalization is not made for that."""
    kind = parse(norm).kind
    if backend.activations != backend.dtype and kind not in NARROW_KINDS:
        raise ConfigError(
            f"--precision {backend.precision}: --norm {norm} is not made for activations in 16 bits; use --norm "
            f"{', '.join(NARROW_KINDS[:-1])} or {NARROW_KINDS[-1]}, or --precision tf32"
        )


def known(value: Any) -> Any:
    """A field that `resolve` has filled in."""
    assert value is not None
    return value
