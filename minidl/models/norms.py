"""Which normalization a network has and where: what `--norm` means.

    none          none; layers have biases instead
    skipinit      none; each residual branch ends in a learned scalar, 0 at first (De and Smith 2020, arXiv:2002.10444)
    batch         batch normalization
    ghost[:N]     batch normalization over N images at a time (16)
    noisy         batch normalization, then noise
    group[:N]     group normalization with N groups (8)
    layer         all of an image together: group normalization with one group
    instance      each channel of each image by itself: a group for each channel

Each comes before the activation; with "-after" behind its name, as in "batch-after", it comes after.
"""

import difflib
from dataclasses import dataclass

from minidl import nn
from minidl.errors import ConfigError
from minidl.nn import Module

AFTER = "-after"
NUMBERS = {"ghost": 16, "group": 8}  # the kinds that take a number, and the number where none is given
KINDS = ("none", "skipinit", "batch", "ghost", "noisy", "group", "layer", "instance")
BATCH_KINDS = ("batch", "ghost", "noisy")


@dataclass(frozen=True)
class Norm:
    """A normalization and its place.

    Attributes:
        kind: One of `KINDS`.
        number: Images of a ghost batch, or groups; 0 for kinds that have no number.
        after: Whether it comes after the activation.
    """

    kind: str
    number: int = 0
    after: bool = False

    @property
    def exists(self) -> bool:
        """Whether there is normalization."""
        return self.kind not in ("none", "skipinit")

    @property
    def name(self) -> str:
        """What its layers are called: "bn" where it is batch normalization, as in torchvision."""
        return "bn" if self.kind in BATCH_KINDS else "norm"

    @property
    def batch_multiple(self) -> int:
        """What number of images a training batch is a multiple of."""
        return self.number if self.kind == "ghost" else 1

    def layer(self, channels: int, axes: int = 2) -> Module:
        """A layer for that many channels, of images (`axes` 2) or of vectors (0).

        Raises:
            ConfigError: It cannot normalize so many channels, or vectors.
        """
        if self.kind == "batch":
            return nn.BatchNorm2d(channels) if axes else nn.BatchNorm1d(channels)
        if self.kind == "ghost":
            return nn.GhostBatchNorm2d(channels, self.number) if axes else nn.GhostBatchNorm1d(channels, self.number)
        if self.kind == "noisy":
            return nn.NoisyBatchNorm2d(channels) if axes else nn.NoisyBatchNorm1d(channels)
        if self.kind == "group":
            return self._groups(channels, axes)
        if self.kind == "layer":
            return nn.GroupNorm(1, channels)
        if self.kind == "instance":
            if not axes:
                raise ConfigError(f"--norm {self}: needs images; of vectors one value a channel has no variance")
            return nn.InstanceNorm2d(channels, affine=True)
        raise ValueError(f"there is no layer for {self.kind}")

    def _groups(self, channels: int, axes: int) -> Module:
        fitting = [n for n in range(1, channels if axes == 0 else channels + 1) if channels % n == 0]
        if self.number in fitting:
            return nn.GroupNorm(self.number, channels)
        of_one = "groups of one value each have no variance"
        fault = of_one if self.number == channels else f"{self.number} groups do not divide them"
        raise ConfigError(
            f"--norm {self}: a layer has {channels} channels, and {fault}; that many can be in "
            f"{', '.join(map(str, fitting))} groups"
        )

    def relu(self, number: int | str, channels: int, axes: int = 2) -> dict[str, Module]:
        """Normalization and ReLU in their order: {"bn1": ..., "relu1": ...}."""
        relu: dict[str, Module] = {f"relu{number}": nn.ReLU()}
        return relu | self._alone(number, channels, axes) if self.after else self._alone(number, channels, axes) | relu

    def _alone(self, number: int | str, channels: int, axes: int) -> dict[str, Module]:
        return {f"{self.name}{number}": self.layer(channels, axes)} if self.exists else {}

    def unit(
        self, number: int | str, layer: Module, channels: int, activation: bool = True, axes: int = 2
    ) -> dict[str, Module]:
        """A layer, normalization and ReLU in their order: {"conv1": layer, "bn1": ..., "relu1": ...}."""
        rest = self.relu(number, channels, axes) if activation else self._alone(number, channels, axes)
        return {f"{'conv' if axes else 'fc'}{number}": layer} | rest

    def __str__(self) -> str:
        """As it is given to --norm."""
        number = f":{self.number}" if self.kind in NUMBERS else ""
        return f"{self.kind}{number}{AFTER if self.after else ''}"


def parse(spec: str) -> Norm:
    """The normalization that `spec`, the argument of --norm, means. Raises ConfigError, suggesting the nearest."""
    after = spec.endswith(AFTER)
    kind, colon, number = spec.removesuffix(AFTER).partition(":")
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        hint = f"; did you mean '{near[0]}{AFTER if after else ''}'?" if near else ""
        raise ConfigError(f"--norm: there is no normalization '{spec}' (known: {', '.join(KINDS)}){hint}")
    if after and kind in ("none", "skipinit"):
        raise ConfigError(f"--norm {spec}: without normalization there is nothing to place after the activation")
    if colon and kind not in NUMBERS:
        raise ConfigError(f"--norm {spec}: {kind} takes no number; only {' and '.join(NUMBERS)} do")
    if colon and not (number.isascii() and number.isdigit() and int(number) > 0):
        raise ConfigError(f"--norm {spec}: after the colon stands a whole number of at least 1, as in {kind}:16")
    return Norm(kind, int(number) if colon else NUMBERS.get(kind, 0), after)
