"""What networks of convolutions are made of, and how their weights start."""

from minidl import nn
from minidl.models.norms import Norm
from minidl.nn import Conv2d, Module, Sequential
from minidl.nn.init import kaiming_normal


def conv3x3(c_in: int, c_out: int, norm: Norm, stride: int = 1) -> Conv2d:
    """A 3x3 convolution that keeps the size but for its stride; it has a bias in networks without normalization."""
    return Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=not norm.exists)


def downsample(c_in: int, c_out: int, stride: int, norm: Norm, normalized: bool = True) -> Module | None:
    """The way around a block, a 1x1 convolution and, if `normalized`, normalization; None where the shape stays."""
    if stride == 1 and c_in == c_out:
        return None
    conv = Conv2d(c_in, c_out, 1, stride=stride, bias=not norm.exists)
    return Sequential(conv, norm.layer(c_out)) if norm.exists and normalized else Sequential(conv)


def end_branch(branch: dict[str, Module], norm: Norm, last: int, zero_gamma: bool) -> None:
    """What makes a block start as the identity, if anything does: a scalar 0, or gamma 0 in normalization `last`."""
    if norm.kind == "skipinit":
        branch["scale"] = nn.Scale(0.0)
    elif norm.exists and zero_gamma:
        parameter = vars(branch[f"{norm.name}{last}"])["weight"]
        parameter.value[...] = 0


def initialized(model: Sequential) -> Sequential:
    """`model`, the weights of its convolutions drawn anew, and their biases 0.

    He et al. 2015 (arXiv:1502.01852), normal, by fan-out, as in torchvision.
    """
    for _, module in model.named_modules():
        if isinstance(module, Conv2d):
            kaiming_normal(module.weight, fan=module.out_channels * module.kernel_size[0] * module.kernel_size[1])
            if module.bias is not None:
                module.bias.value[...] = 0
    return model
