"""Networks without skips, of any depth: what residual networks are compared with (He et al. 2016, arXiv:1512.03385).

plain-20 is resnet-20 without the ways around its blocks.
"""

from minidl.models.norms import Norm
from minidl.models.parts import conv3x3, initialized
from minidl.models.resnet import CIFAR_WIDTHS
from minidl.nn import GlobalAvgPool2d, Linear, Module, Sequential


def plain(image_shape: tuple[int, int, int], classes: int, norm: Norm, depth: int) -> Sequential:
    """`depth` layers with weights: a 3x3 stem, `depth` - 2 3x3 convolutions, and a linear classifier.

    The convolutions are spread over three stages of 16, 32 and 64 channels; where they do not divide by three, the
    first stages have one more. The first convolution of the second and the third stage has stride 2.

    Args:
        image_shape: (height, width, channels).
        classes: Outputs.
        norm: Normalization.
        depth: At least 5.
    """
    layers = norm.unit(1, conv3x3(image_shape[2], CIFAR_WIDTHS[0], norm), CIFAR_WIDTHS[0])
    each, rest = divmod(depth - 2, len(CIFAR_WIDTHS))
    c_in = CIFAR_WIDTHS[0]
    for stage, width in enumerate(CIFAR_WIDTHS, start=1):
        steps: dict[str, Module] = {}
        for i in range(1, each + (stage <= rest) + 1):
            stride = 2 if stage > 1 and i == 1 else 1
            steps |= norm.unit(i, conv3x3(c_in, width, norm, stride), width)
            c_in = width
        layers[f"layer{stage}"] = Sequential(steps)
    layers |= {"pool": GlobalAvgPool2d(), "fc": Linear(c_in, classes)}
    return initialized(Sequential(layers))
