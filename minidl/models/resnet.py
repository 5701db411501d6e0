"""Residual networks (He et al. 2016, arXiv:1512.03385), in their form for small images, by torchvision's names.

    resnet-20 ... -110   a 3x3 stem of 16 channels; three stages of 16, 32, 64 channels, (depth - 2) / 6 blocks each
    resnet-18            a 3x3 stem of 64 channels; four stages of 64, 128, 256, 512 channels, two blocks each

A block is two 3x3 convolutions; the first of each stage but the first has stride 2. Where a block changes the shape, a
1x1 convolution with normalization leads around it. (In the paper's networks for CIFAR-10 the smaller ones go around by
padding with zeros: resnet-20 has 2,752 parameters fewer there.) At the end stand global average pooling and a linear
classifier. For the first weights see `initialized`.
"""

from minidl.models.norms import Norm
from minidl.models.parts import conv3x3, downsample, end_branch, initialized
from minidl.nn import GlobalAvgPool2d, Linear, Module, ReLU, Residual, Sequential

CIFAR_WIDTHS = (16, 32, 64)
IMAGENET_WIDTHS = (64, 128, 256, 512)


def is_depth(depth: int) -> bool:
    """Whether there is such a residual network."""
    return depth == 18 or (depth >= 8 and depth % 6 == 2)


def stages(depth: int) -> tuple[tuple[int, ...], int]:
    """The channels of each stage, and the blocks in one."""
    return (IMAGENET_WIDTHS, 2) if depth == 18 else (CIFAR_WIDTHS, (depth - 2) // 6)


def resnet(image_shape: tuple[int, int, int], classes: int, norm: Norm, depth: int, zero_gamma: bool) -> Sequential:
    """ResNet of `depth` layers: 18, or 6 n + 2.

    Args:
        image_shape: (height, width, channels).
        classes: Outputs.
        norm: Normalization. After the activation it stands in each branch as convolution, ReLU, normalization, twice,
            and nothing follows the sum.
        depth: Layers with weights, the ones around blocks not counted.
        zero_gamma: Whether the last normalization of each branch starts with gamma = 0, so that a block starts as the
            identity (Goyal et al. 2017, arXiv:1706.02677).
    """
    widths, blocks = stages(depth)
    layers = norm.unit(1, conv3x3(image_shape[2], widths[0], norm), widths[0])
    c_in = widths[0]
    for stage, width in enumerate(widths, start=1):
        steps: list[Module] = []
        for i in range(blocks):
            stride = 2 if stage > 1 and i == 0 else 1
            steps.append(_block(c_in, width, stride, norm, zero_gamma))
            c_in = width
        layers[f"layer{stage}"] = Sequential(*steps)
    layers |= {"pool": GlobalAvgPool2d(), "fc": Linear(c_in, classes)}
    return initialized(Sequential(layers))


def _block(c_in: int, c_out: int, stride: int, norm: Norm, zero_gamma: bool) -> Residual:
    branch = norm.unit(1, conv3x3(c_in, c_out, norm, stride), c_out)
    branch |= norm.unit(2, conv3x3(c_out, c_out, norm), c_out, activation=norm.after)
    end_branch(branch, norm, 2, zero_gamma)
    activation = None if norm.after else ReLU()
    return Residual(branch, downsample=downsample(c_in, c_out, stride, norm), activation=activation)
