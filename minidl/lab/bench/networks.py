"""The networks whose training steps are timed: minidl's by name, and the reference CNN; PyTorch's counterparts."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

from minidl import nn
from minidl.errors import ConfigError
from minidl.models import build, family_of

REFERENCE = "reference-cnn"
MODELS = ("small-cnn", "resnet-20", "resnet-18", REFERENCE)  # timed where none is named; the CPU leaves resnet-18 out
CLASSES = 10
_SMALL, _COLOURED = (28, 28, 1), (32, 32, 3)  # as of MNIST, as of CIFAR-10


class Network(NamedTuple):
    """A model by name and the images that it is timed on."""

    name: str
    image_shape: tuple[int, int, int]
    build: Callable[[], nn.Sequential]


def network(name: str) -> Network:
    """The network of that name, for images of the size it is meant for. Raises ConfigError, suggesting the nearest."""
    if name == REFERENCE:
        return Network(name, _SMALL, reference_cnn)
    try:
        family, _ = family_of(name)
    except ConfigError as error:
        if name.startswith("ref"):
            raise ConfigError(f"there is no model '{name}'; did you mean '{REFERENCE}'?") from None
        raise ConfigError(f"{error}; `minidl bench` also knows {REFERENCE}") from None
    image_shape = _COLOURED if family.residual or name.startswith("plain") else _SMALL
    return Network(name, image_shape, lambda: build(name, image_shape, CLASSES))


def reference_cnn() -> nn.Sequential:
    """Three 3x3 convolutions of 32, 32 and 64 channels with batch normalization and ReLU, for images of 28x28x1.

    A 2x2 max-pool follows the second and the third; a linear classifier ends it.
    """
    layers: dict[str, nn.Module] = {}
    for i, (c_in, c_out, pool) in enumerate(((1, 32, False), (32, 32, True), (32, 64, True)), start=1):
        layers |= {
            f"conv{i}": nn.Conv2d(c_in, c_out, 3, padding=1, bias=False),
            f"bn{i}": nn.BatchNorm2d(c_out),
            f"relu{i}": nn.ReLU(),
        }
        if pool:
            layers[f"pool{i}"] = nn.MaxPool2d(2)
    return nn.Sequential(layers | {"flatten": nn.Flatten(), "fc": nn.Linear(7 * 7 * 64, CLASSES)})


def counterpart(torch: Any, layer: nn.Module) -> Any:
    """The same network of PyTorch's layers, by the same names, with the same weights.

    As people write them: ReLU and the sum of a residual block in place, where what they overwrite is read by nobody.

    Raises:
        ConfigError: It has a layer that PyTorch has not, or that is not known here.
    """
    made = _Maker(torch).make(layer)
    state = {name: torch.from_numpy(value.copy()) for name, value in layer.state_dict().items()}
    made.load_state_dict(state)
    return made


class _Maker:
    """Makes PyTorch's modules of ours."""

    def __init__(self, torch: Any) -> None:
        self.torch = torch.nn
        plain: Any = torch.nn.Module

        class Residual(plain):  # type: ignore[misc]  # a class only known at run time
            """A way through, a way around, their sum."""

            def __init__(self, chain: list[tuple[str, Any]], downsample: Any, activation: Any) -> None:
                super().__init__()
                self.names = [name for name, _ in chain]
                for name, layer in chain:
                    self.add_module(name, layer)
                self.downsample, self.activation = downsample, activation

            def forward(self, x: Any) -> Any:
                y = x
                for name in self.names:
                    y = getattr(self, name)(y)
                y += x if self.downsample is None else self.downsample(x)
                return y if self.activation is None else self.activation(y)

        class Concat(plain):  # type: ignore[misc]
            """Branches side by side, their channels one after another."""

            def __init__(self, branches: list[Any]) -> None:
                super().__init__()
                for i, branch in enumerate(branches):
                    self.add_module(str(i), branch)

            def forward(self, x: Any) -> Any:
                return torch.cat([branch(x) for branch in self.children()], dim=1)

        self.residual, self.concat = Residual, Concat

    def make(self, layer: Any, in_place: bool = False) -> Any:
        kind = type(layer)
        if isinstance(layer, nn.Residual):
            activation = None if layer.activation is None else self.make(layer.activation, in_place=True)
            around = None if layer.downsample is None else self.make(layer.downsample)
            return self.residual(self.chain(layer), around, activation)
        if isinstance(layer, nn.Sequential):
            return self.torch.Sequential(OrderedDict(self.chain(layer)))
        if kind is nn.Concat:
            return self.concat([self.make(branch) for _, branch in layer.children()])
        if kind is nn.Conv2d:
            sizes = layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding
            return self.torch.Conv2d(*sizes, bias=layer.bias is not None)
        if kind is nn.Linear:
            return self.torch.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        if kind is nn.BatchNorm2d or kind is nn.BatchNorm1d:
            return getattr(self.torch, kind.__name__)(layer.num_features, eps=layer.eps, momentum=layer.momentum)
        if kind is nn.MaxPool2d:
            return self.torch.MaxPool2d(layer.kernel_size, layer.stride, layer.padding)
        if kind is nn.GlobalAvgPool2d:
            return self.torch.Sequential(self.torch.AdaptiveAvgPool2d(1), self.torch.Flatten())
        if kind is nn.ReLU:
            return self.torch.ReLU(inplace=in_place)
        if kind is nn.Flatten:
            return self.torch.Flatten()
        raise ConfigError(f"--peer torch: nobody has written down what {kind.__name__} is in PyTorch; time it alone")

    def chain(self, layer: nn.Sequential) -> list[tuple[str, Any]]:
        made, before = [], None
        for name, child in layer.chain():
            made.append((name, self.make(child, in_place=isinstance(before, (nn.BatchNorm2d, nn.BatchNorm1d)))))
            before = child
        return made
