"""The networks again, written by hand in PyTorch from the papers, by torchvision's names."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # its usual name


class GhostBatchNorm2d(nn.BatchNorm2d):
    """Normalizes `ghost_size` images at a time; the running statistics move once, towards the ghosts' mean."""

    def __init__(self, channels: int, ghost_size: int) -> None:
        super().__init__(channels)
        self.ghost_size = ghost_size

    def forward(self, x: Tensor) -> Tensor:
        ghosts = x.split(self.ghost_size)
        with torch.no_grad():
            means = torch.stack([ghost.mean((0, 2, 3)) for ghost in ghosts]).mean(0)
            variances = torch.stack([ghost.var((0, 2, 3), unbiased=True) for ghost in ghosts]).mean(0)
            self.running_mean.lerp_(means, self.momentum)
            self.running_var.lerp_(variances, self.momentum)
            self.num_batches_tracked += 1
        return torch.cat([F.batch_norm(ghost, None, None, self.weight, self.bias, training=True) for ghost in ghosts])


class Scale(nn.Module):
    """SkipInit's learned number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


class Kind:
    """What --norm asks for, and in which order things come."""

    def __init__(self, norm: str) -> None:
        self.after = norm.endswith("-after")
        self.kind, _, number = norm.removesuffix("-after").partition(":")
        self.number = int(number or 0)
        self.there = self.kind not in ("none", "skipinit")
        self.name = "bn" if self.kind in ("batch", "ghost") else "norm"

    def layer(self, channels: int, vectors: bool = False) -> nn.Module:
        """Normalization of images or vectors; nothing where there is none."""
        if not self.there:
            return nn.Identity()
        if self.kind == "batch":
            return nn.BatchNorm1d(channels) if vectors else nn.BatchNorm2d(channels)
        if self.kind == "ghost":
            return GhostBatchNorm2d(channels, self.number)
        if self.kind == "instance":
            return nn.InstanceNorm2d(channels, affine=True)
        return nn.GroupNorm({"layer": 1, "group": self.number}[self.kind], channels)

    def conv(self, c_in: int, c_out: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
        return nn.Conv2d(c_in, c_out, size, stride=stride, padding=size // 2, bias=not self.there)

    def unit(self, number: object, weights: nn.Module, channels: int, vectors: bool = False) -> dict[str, nn.Module]:
        """Weights, normalization, ReLU; or weights, ReLU, normalization."""
        norm, relu = (f"{self.name}{number}", self.layer(channels, vectors)), (f"relu{number}", nn.ReLU())
        order = (relu, norm) if self.after else (norm, relu)
        return dict([(f"{'fc' if vectors else 'conv'}{number}", weights), *order])


class BasicBlock(nn.Module):
    """He et al. 2016, figure 2, and figure 3's dotted shortcuts, option B."""

    def __init__(self, kind: Kind, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.kind = kind
        self.conv1 = kind.conv(c_in, c_out, stride=stride)
        setattr(self, f"{kind.name}1", kind.layer(c_out))
        self.conv2 = kind.conv(c_out, c_out)
        setattr(self, f"{kind.name}2", kind.layer(c_out))
        self.scale = Scale() if kind.kind == "skipinit" else nn.Identity()
        self.relu1, self.activation = nn.ReLU(), nn.ReLU()
        self.downsample = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(kind.conv(c_in, c_out, size=1, stride=stride), kind.layer(c_out))

    def forward(self, x: Tensor) -> Tensor:
        norm1, norm2 = (getattr(self, f"{self.kind.name}{i}") for i in (1, 2))
        if self.kind.after:
            out = norm1(self.relu1(self.conv1(x)))
            return norm2(self.activation(self.conv2(out))) + self.downsample(x)
        out = self.relu1(norm1(self.conv1(x)))
        return self.activation(self.scale(norm2(self.conv2(out))) + self.downsample(x))


class Fork(nn.Module):
    """The part of a preactivation block that changes the shape, behind the first normalization and ReLU."""

    def __init__(self, kind: Kind, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.kind = kind
        self.conv1 = kind.conv(c_in, c_out, stride=stride)
        setattr(self, f"{kind.name}2", kind.layer(c_out))
        self.conv2 = kind.conv(c_out, c_out)
        self.scale = Scale() if kind.kind == "skipinit" else nn.Identity()
        self.relu2 = nn.ReLU()
        self.downsample = nn.Sequential(kind.conv(c_in, c_out, size=1, stride=stride))

    def branch(self, x: Tensor) -> Tensor:
        out, norm2 = self.conv1(x), getattr(self, f"{self.kind.name}2")
        out = norm2(self.relu2(out)) if self.kind.after else self.relu2(norm2(out))
        return self.scale(self.conv2(out))

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + self.downsample(x)


class PreactBlock(Fork):
    """He et al. 2016b, figure 1 (b)."""

    def __init__(self, kind: Kind, c_in: int, c_out: int, stride: int) -> None:
        super().__init__(kind, c_in, c_out, stride)
        self.forks = stride != 1 or c_in != c_out
        if self.forks:  # the same, but inside: its names begin with "fork."
            for name in list(dict(self.named_children())):
                delattr(self, name)
            self.fork = Fork(kind, c_in, c_out, stride)
        else:
            del self.downsample
        setattr(self, f"{kind.name}1", kind.layer(c_in))
        self.relu1 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        norm1 = getattr(self, f"{self.kind.name}1")
        active = norm1(self.relu1(x)) if self.kind.after else self.relu1(norm1(x))
        return self.fork(active) if self.forks else x + self.branch(active)


class Parallel(nn.Module):
    """Branches on the same input; channels one after another."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        for i, branch in enumerate(branches):
            self.add_module(str(i), branch)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.children()], dim=1)


class Mean(nn.Module):
    """Global average pooling."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def twin(name: str, image: tuple[int, int, int], classes: int, norm: str = "batch") -> nn.Module:
    """The network of that name, with PyTorch's own initial values."""
    kind = Kind(norm)
    family, _, depth = name.rpartition("-")
    if name == "small-cnn":
        layers = _small_cnn(kind, image)
    elif name == "inception-small":
        layers = _inception_small(kind, image)
    elif family == "mlp":
        layers = _mlp(kind, image, int(depth))
    elif family == "plain":
        layers = _plain(kind, image, int(depth))
    else:
        layers = _residual(kind, image, int(depth), preact=family == "preact-resnet")
    features = {"small-cnn": image[0] // 4 * (image[1] // 4) * 64, "inception-small": 336, family: 64}
    if family == "mlp":
        features[family] = 128
    elif depth == "18":
        features[family] = 512
    layers["fc"] = nn.Linear(features.get(name, features[family]), classes)
    return nn.Sequential(OrderedDict(layers))


def _small_cnn(kind: Kind, image: tuple[int, int, int]) -> dict[str, nn.Module]:
    layers: dict[str, nn.Module] = {}
    plan = ((image[2], 32, False), (32, 32, True), (32, 64, False), (64, 64, True))
    for i, (c_in, c_out, pool) in enumerate(plan, start=1):
        layers |= kind.unit(i, kind.conv(c_in, c_out), c_out)
        if pool:
            layers[f"pool{i}"] = nn.MaxPool2d(2)
    return layers | {"flatten": nn.Flatten()}


def _mlp(kind: Kind, image: tuple[int, int, int], depth: int) -> dict[str, nn.Module]:
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    features = image[0] * image[1] * image[2]
    for i in range(1, depth):
        layers |= kind.unit(i, nn.Linear(features, 128, bias=not kind.there), 128, vectors=True)
        features = 128
    return layers


def _plain(kind: Kind, image: tuple[int, int, int], depth: int) -> dict[str, nn.Module]:
    layers = kind.unit(1, kind.conv(image[2], 16), 16)
    counts = [len(range(stage, depth - 2, 3)) for stage in range(3)]  # dealt out like cards
    before = 16
    for stage, (count, width) in enumerate(zip(counts, (16, 32, 64), strict=True), start=1):
        units: dict[str, nn.Module] = {}
        for i in range(1, count + 1):
            units |= kind.unit(i, kind.conv(before, width, stride=2 if i == 1 and stage > 1 else 1), width)
            before = width
        layers[f"layer{stage}"] = nn.Sequential(OrderedDict(units))
    return layers | {"pool": Mean()}


def _residual(kind: Kind, image: tuple[int, int, int], depth: int, preact: bool) -> dict[str, nn.Module]:
    widths, blocks = ((64, 128, 256, 512), 2) if depth == 18 else ((16, 32, 64), (depth - 2) // 6)
    block = PreactBlock if preact else BasicBlock
    stem = kind.conv(image[2], widths[0])
    layers: dict[str, nn.Module] = {"conv1": stem} if preact else kind.unit(1, stem, widths[0])
    before = widths[0]
    for stage, width in enumerate(widths, start=1):
        first = block(kind, before, width, 1 if stage == 1 else 2)
        layers[f"layer{stage}"] = nn.Sequential(first, *(block(kind, width, width, 1) for _ in range(blocks - 1)))
        before = width
    if preact:
        end = [(kind.name, kind.layer(before)), ("relu", nn.ReLU())]
        layers |= dict(reversed(end) if kind.after else end)
    return layers | {"pool": Mean()}


def _inception_small(kind: Kind, image: tuple[int, int, int]) -> dict[str, nn.Module]:
    """Zhang et al. 2017, figure 3."""

    def convolution(c_in: int, c_out: int, size: int, stride: int = 1) -> nn.Module:
        return nn.Sequential(OrderedDict(kind.unit("", kind.conv(c_in, c_out, size, stride), c_out)))

    def inception(c_in: int, ones: int, threes: int) -> nn.Module:
        return Parallel(convolution(c_in, ones, 1), convolution(c_in, threes, 3))

    def down(c_in: int, threes: int) -> nn.Module:
        return Parallel(convolution(c_in, threes, 3, stride=2), nn.MaxPool2d(3, stride=2, padding=1))

    return kind.unit(1, kind.conv(image[2], 96), 96) | {
        "inception1": inception(96, 32, 32),
        "inception2": inception(64, 32, 48),
        "down1": down(80, 80),
        "inception3": inception(160, 112, 48),
        "inception4": inception(160, 96, 64),
        "inception5": inception(160, 80, 80),
        "inception6": inception(160, 48, 96),
        "down2": down(144, 96),
        "inception7": inception(240, 176, 160),
        "inception8": inception(336, 176, 160),
        "pool": Mean(),
    }
