"""Networks by name."""

import difflib
from collections.abc import Callable

from minidl.errors import ConfigError
from minidl.nn import (
    BatchNorm2d,
    Conv2d,
    Flatten,
    Linear,
    MaxPool2d,
    Module,
    ReLU,
    Sequential,
)


def small_cnn(image_shape: tuple[int, int, int], classes: int, bn: bool = True) -> Sequential:
    """Four 3x3 convolutions (32, 32, 64, 64 channels), each with batch normalization and ReLU, and a linear classifier.

    A 2x2 max-pool follows the second and the fourth convolution. With `bn=False` the convolutions have biases instead.

    Args:
        image_shape: (height, width, channels); height and width at least 4.
        classes: Outputs.
        bn: Whether there is batch normalization.
    """
    height, width, channels = image_shape
    if height < 4 or width < 4:
        raise ConfigError(f"small-cnn needs images of at least 4x4 pixels, got {height}x{width}")
    layers: dict[str, Module] = {}
    plan = ((channels, 32, False), (32, 32, True), (32, 64, False), (64, 64, True))
    for i, (c_in, c_out, pool) in enumerate(plan, start=1):
        layers[f"conv{i}"] = Conv2d(c_in, c_out, 3, padding=1, bias=not bn)  # a bias before normalization is dead
        if bn:
            layers[f"bn{i}"] = BatchNorm2d(c_out)
        layers[f"relu{i}"] = ReLU()
        if pool:
            layers[f"pool{i}"] = MaxPool2d(2)
    layers["flatten"] = Flatten()
    layers["fc"] = Linear((height // 4) * (width // 4) * 64, classes)
    return Sequential(layers)


MODELS: dict[str, Callable[..., Sequential]] = {"small-cnn": small_cnn}


def build(name: str, image_shape: tuple[int, int, int], classes: int, bn: bool = True) -> Sequential:
    """The model of that name. Raises ConfigError for an unknown one, suggesting the nearest."""
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ConfigError(f"there is no model '{name}' (known: {', '.join(MODELS)}){hint}")
    return MODELS[name](image_shape, classes, bn=bn)
