"""small-cnn: the network that `minidl train` trains where nothing else is asked for."""

from minidl.models.norms import Norm
from minidl.nn import Conv2d, Flatten, Linear, MaxPool2d, Module, Sequential


def small_cnn(image_shape: tuple[int, int, int], classes: int, norm: Norm) -> Sequential:
    """Four 3x3 convolutions (32, 32, 64, 64 channels), each with normalization and ReLU, and a linear classifier.

    A 2x2 max-pool follows the second and the fourth convolution. Without normalization the convolutions have biases.

    Args:
        image_shape: (height, width, channels); height and width at least 4.
        classes: Outputs.
        norm: Normalization.
    """
    height, width, channels = image_shape
    layers: dict[str, Module] = {}
    plan = ((channels, 32, False), (32, 32, True), (32, 64, False), (64, 64, True))
    for i, (c_in, c_out, pool) in enumerate(plan, start=1):
        conv = Conv2d(c_in, c_out, 3, padding=1, bias=not norm.exists)  # a bias before normalization is dead
        layers |= norm.unit(i, conv, c_out)
        if pool:
            layers[f"pool{i}"] = MaxPool2d(2)
    layers["flatten"] = Flatten()
    layers["fc"] = Linear((height // 4) * (width // 4) * 64, classes)
    return Sequential(layers)
