"""Preactivation residual networks (He et al. 2016, "Identity mappings in deep residual networks", arXiv:1603.05027).

They have the stages of `minidl.models.resnet`, but normalization and ReLU stand before each convolution, and nothing
follows the sum: so from the stem to the pooling a way leads through additions alone. Where a block changes the shape,
its first normalization and ReLU come before the fork, and serve the 1x1 convolution that leads around it too. A last
normalization and ReLU stand before the pooling.

    keeps the shape      x + conv2(relu(bn2(conv1(relu(bn1(x))))))
    changes the shape    a = relu(bn1(x));  downsample(a) + conv2(relu(bn2(conv1(a))))
"""

from minidl.errors import ConfigError
from minidl.models.norms import Norm
from minidl.models.parts import conv3x3, downsample, end_branch, initialized
from minidl.models.resnet import stages
from minidl.nn import GlobalAvgPool2d, Linear, Module, Residual, Sequential


def preact_resnet(
    image_shape: tuple[int, int, int], classes: int, norm: Norm, depth: int, zero_gamma: bool
) -> Sequential:
    """Preactivation ResNet of `depth` layers: 18, or 6 n + 2.

    Args:
        image_shape: (height, width, channels).
        classes: Outputs.
        norm: Normalization. After the activation it stands between ReLU and the convolution.
        depth: Layers with weights, the ones around blocks not counted.
        zero_gamma: Whether the last normalization of each branch starts with gamma = 0; only after the activation.

    Raises:
        ConfigError: `zero_gamma`, and a ReLU follows the last normalization: at gamma = beta = 0 it lets no gradient
            through, so that the branch would stay 0 for ever.
    """
    if zero_gamma and not norm.after:
        raise ConfigError(
            f"--zero-gamma: in preact-resnet-{depth} a ReLU follows the last normalization of a branch, and at gamma = "
            f"0 would stay dead; use resnet-{depth}, --norm skipinit, or --norm with -after"
        )
    widths, blocks = stages(depth)
    layers: dict[str, Module] = {"conv1": conv3x3(image_shape[2], widths[0], norm)}
    c_in = widths[0]
    for stage, width in enumerate(widths, start=1):
        steps: list[Module] = []
        for i in range(blocks):
            stride = 2 if stage > 1 and i == 0 else 1
            steps.append(_block(c_in, width, stride, norm, zero_gamma))
            c_in = width
        layers[f"layer{stage}"] = Sequential(*steps)
    layers |= norm.relu("", c_in) | {"pool": GlobalAvgPool2d(), "fc": Linear(c_in, classes)}
    return initialized(Sequential(layers))


def _block(c_in: int, c_out: int, stride: int, norm: Norm, zero_gamma: bool) -> Module:
    first = norm.relu(1, c_in)
    branch: dict[str, Module] = {"conv1": conv3x3(c_in, c_out, norm, stride)}
    branch |= norm.relu(2, c_out) | {"conv2": conv3x3(c_out, c_out, norm)}
    end_branch(branch, norm, 2, zero_gamma)
    around = downsample(c_in, c_out, stride, norm, normalized=False)
    if around is None:
        return Residual(first | branch)
    return Sequential(first | {"fork": Residual(branch, downsample=around)})
