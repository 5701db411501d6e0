"""Networks of linear layers, as the first experiment with batch normalization used (arXiv:1502.03167, section 4.1)."""

from minidl.models.norms import Norm
from minidl.nn import Flatten, Linear, Module, Sequential
from minidl.nn.init import kaiming_normal

WIDTH = 128


def mlp(image_shape: tuple[int, int, int], classes: int, norm: Norm, depth: int) -> Sequential:
    """`depth` linear layers: all but the last have 128 outputs, normalization of vectors and ReLU.

    Their weights start by He et al. 2015 (arXiv:1502.01852), normal, by fan-in.

    Args:
        image_shape: (height, width, channels).
        classes: Outputs.
        norm: Normalization.
        depth: At least 2.

    Raises:
        ConfigError: The normalization cannot work on vectors.
    """
    layers: dict[str, Module] = {"flatten": Flatten()}
    features = image_shape[0] * image_shape[1] * image_shape[2]
    for i in range(1, depth):
        hidden = Linear(features, WIDTH, bias=not norm.exists)
        kaiming_normal(hidden.weight, fan=features)
        if hidden.bias is not None:
            hidden.bias.value[...] = 0
        layers |= norm.unit(i, hidden, WIDTH, axes=0)
        features = WIDTH
    layers["fc"] = Linear(features, classes)
    return Sequential(layers)
