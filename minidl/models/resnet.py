"""Residual networks (He et al. 2016, arXiv:1512.03385), in their form for small images, by torchvision's names.

    resnet-20 ... resnet-110   a 3x3 stem of 16 channels; three stages of 16, 32, 64 channels, (depth - 2) / 6 blocks each
    resnet-18                  a 3x3 stem of 64 channels; four stages of 64, 128, 256, 512 channels, two blocks each

A block is two 3x3 convolutions; the first of each stage but the first has stride 2. Where a block changes the shape, a
1x1 convolution with normalization leads around it. At the end stand global average pooling and a linear classifier.
Weights of convolutions start by He et al. 2015 (arXiv:1502.01852), normal, by fan-out, as in torchvision.
"""

from minidl import nn
from minidl.models.norms import Norm
from minidl.nn import Conv2d, GlobalAvgPool2d, Linear, Module, ReLU, Residual, Sequential
from minidl.nn.init import kaiming_normal

CIFAR_WIDTHS = (16, 32, 64)
IMAGENET_WIDTHS = (64, 128, 256, 512)


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
    widths = IMAGENET_WIDTHS if depth == 18 else CIFAR_WIDTHS
    blocks = 2 if depth == 18 else (depth - 2) // 6
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


def conv3x3(c_in: int, c_out: int, norm: Norm, stride: int = 1) -> Conv2d:
    """A 3x3 convolution that keeps the size but for its stride; without normalization behind it, it has a bias."""
    return Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=not norm.exists)


def downsample(c_in: int, c_out: int, stride: int, norm: Norm) -> Module | None:
    """The way around a block; None where the shape stays."""
    if stride == 1 and c_in == c_out:
        return None
    conv = Conv2d(c_in, c_out, 1, stride=stride, bias=not norm.exists)
    return Sequential(conv, norm.layer(c_out)) if norm.exists else Sequential(conv)


def end_branch(branch: dict[str, Module], norm: Norm, last: int, zero_gamma: bool) -> None:
    """What makes a block start as the identity, if anything does: a scalar 0, or gamma 0 in normalization `last`."""
    if norm.kind == "skipinit":
        branch["scale"] = nn.Scale(0.0)
    elif norm.exists and zero_gamma:
        parameter = vars(branch[f"{norm.name}{last}"])["weight"]
        parameter.value[...] = 0


def initialized(model: Sequential) -> Sequential:
    """`model`, the weights of its convolutions drawn anew by He et al. 2015, and biases 0."""
    for _, module in model.named_modules():
        if isinstance(module, Conv2d):
            kaiming_normal(module.weight, fan=module.out_channels * module.kernel_size[0] * module.kernel_size[1])
            if module.bias is not None:
                module.bias.value[...] = 0
    return model
