"""inception-small: branches of 1x1 and 3x3 convolutions side by side.

The small Inception of Zhang et al. 2017, "Understanding deep learning requires rethinking generalization"
(arXiv:1611.03530, figure 3 and table 1), after GoogLeNet (Szegedy et al. 2015, arXiv:1409.4842). Without normalization,
for three channels and ten classes, it has the paper's 1,649,402 parameters.
"""

from minidl.models.norms import Norm
from minidl.models.parts import initialized
from minidl.nn import Concat, Conv2d, GlobalAvgPool2d, Linear, MaxPool2d, Module, Sequential

STEM = 96
# For each block the channels of its 1x1 and 3x3 convolutions; (0, n) is one that halves the image.
BLOCKS = ((32, 32), (32, 48), (0, 80), (112, 48), (96, 64), (80, 80), (48, 96), (0, 96), (176, 160), (176, 160))


def inception_small(image_shape: tuple[int, int, int], classes: int, norm: Norm) -> Sequential:
    """A 3x3 stem of 96 channels, ten blocks, global average pooling and a linear classifier.

    A block is a 1x1 and a 3x3 convolution on the same input, each with normalization and ReLU, their channels one after
    another; the blocks that halve the image have a 3x3 convolution of stride 2 and a 3x3 max-pool of stride 2.

    Args:
        image_shape: (height, width, channels).
        classes: Outputs.
        norm: Normalization.
    """
    layers = norm.unit(1, _conv(image_shape[2], STEM, 3, norm), STEM)
    c_in, inceptions, halvings = STEM, 0, 0
    for ones, threes in BLOCKS:
        if ones:
            inceptions += 1
            layers[f"inception{inceptions}"] = Concat(_unit(c_in, ones, 1, norm), _unit(c_in, threes, 3, norm))
            c_in = ones + threes
        else:
            halvings += 1
            layers[f"down{halvings}"] = Concat(_unit(c_in, threes, 3, norm, stride=2), MaxPool2d(3, 2, 1))
            c_in = threes + c_in
    layers |= {"pool": GlobalAvgPool2d(), "fc": Linear(c_in, classes)}
    return initialized(Sequential(layers))


def _unit(c_in: int, c_out: int, size: int, norm: Norm, stride: int = 1) -> Module:
    return Sequential(norm.unit("", _conv(c_in, c_out, size, norm, stride), c_out))


def _conv(c_in: int, c_out: int, size: int, norm: Norm, stride: int = 1) -> Conv2d:
    return Conv2d(c_in, c_out, size, stride=stride, padding=size // 2, bias=not norm.exists)
