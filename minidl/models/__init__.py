"""Networks by name."""

import difflib
import re
from collections.abc import Callable
from typing import NamedTuple

from minidl.errors import ConfigError
from minidl.models.inception import inception_small
from minidl.models.mlp import mlp
from minidl.models.norms import Norm, parse
from minidl.models.plain import plain
from minidl.models.preact import preact_resnet
from minidl.models.resnet import is_depth as is_resnet_depth
from minidl.models.resnet import resnet
from minidl.models.shapes import on_shapes
from minidl.models.small_cnn import small_cnn
from minidl.nn import Sequential, batch_multiple

MAX_DEPTH = 9999  # beyond it a number is a slip


class Spec(NamedTuple):
    """All that decides a network before training; a checkpoint remembers it.

    Attributes:
        name: A model, "resnet-20".
        image_shape: (height, width, channels).
        classes: Outputs.
        norm: Normalization; see `minidl.models.norms`.
        zero_gamma: Whether the last normalization of each residual branch starts with gamma = 0.
    """

    name: str
    image_shape: tuple[int, int, int]
    classes: int
    norm: str = "batch"
    zero_gamma: bool = False


class Family(NamedTuple):
    """Networks that differ in their depth.

    Attributes:
        make: Builds one, given spec, normalization and depth (0 for a family of one).
        about: What they are, in a line for people.
        depths: Those that `NAMES` lists; empty for a family of one.
        is_depth: Which other depths there are.
        depths_in_words: The same for people.
        residual: Whether they have residual branches.
        least_side: The least height and width of images.
    """

    make: Callable[[Spec, Norm, int], Sequential]
    about: str
    depths: tuple[int, ...] = ()
    is_depth: Callable[[int], bool] = lambda _: False
    depths_in_words: str = ""
    residual: bool = False
    least_side: int = 1

    def has(self, depth: int) -> bool:
        """Whether there is a network of that depth."""
        return depth in self.depths or self.is_depth(depth)


_RESIDUAL = (18, 20, 32, 44, 56, 110)
_RESIDUAL_WORDS = "18, or 6 n + 2 with n of 1 or more"

FAMILIES = {
    "small-cnn": Family(
        lambda spec, norm, _: small_cnn(spec.image_shape, spec.classes, norm),
        "four 3x3 convolutions and two max-pools",
        least_side=4,
    ),
    "plain": Family(
        lambda spec, norm, depth: plain(spec.image_shape, spec.classes, norm, depth),
        "3x3 convolutions in three stages, without skips",
        depths=(20, 32, 44, 56),
        is_depth=lambda depth: 5 <= depth <= MAX_DEPTH,
        depths_in_words="5 or more",
    ),
    "resnet": Family(
        lambda spec, norm, depth: resnet(spec.image_shape, spec.classes, norm, depth, spec.zero_gamma),
        "residual networks",
        depths=_RESIDUAL,
        is_depth=is_resnet_depth,
        depths_in_words=_RESIDUAL_WORDS,
        residual=True,
    ),
    "preact-resnet": Family(
        lambda spec, norm, depth: preact_resnet(spec.image_shape, spec.classes, norm, depth, spec.zero_gamma),
        "residual networks with normalization and ReLU before convolutions",
        depths=_RESIDUAL,
        is_depth=is_resnet_depth,
        depths_in_words=_RESIDUAL_WORDS,
        residual=True,
    ),
    "inception-small": Family(
        lambda spec, norm, _: inception_small(spec.image_shape, spec.classes, norm),
        "1x1 and 3x3 convolutions side by side",
    ),
    "mlp": Family(
        lambda spec, norm, depth: mlp(spec.image_shape, spec.classes, norm, depth),
        "linear layers, all but the last of 128 units",
        depths=(3, 5, 10),
        is_depth=lambda depth: 2 <= depth <= MAX_DEPTH,
        depths_in_words="2 or more",
    ),
}

NAMES = tuple(
    f"{name}-{depth}" if depth else name for name, family in FAMILIES.items() for depth in family.depths or (0,)
)


def build(
    name: str, image_shape: tuple[int, int, int], classes: int, norm: str = "batch", zero_gamma: bool = False
) -> Sequential:
    """The network that `Spec` describes, its weights drawn as `nn.manual_seed` has it.

    Raises:
        ConfigError: There is no such model or normalization (the nearest is suggested), or they do not fit each other
            or the images.
    """
    family, depth = family_of(name)
    spec, chosen = Spec(name, image_shape, classes, norm, zero_gamma), parse(norm)
    _require_fit(spec, family, chosen)
    model = family.make(spec, chosen, depth)
    try:
        require_that_it_trains(model, spec.image_shape, 2 * batch_multiple(model))
    except ValueError as error:
        size = "x".join(map(str, spec.image_shape))
        raise ConfigError(f"{name} with --norm {norm} cannot train on images of {size}: {error}") from None
    return model


def _require_fit(spec: Spec, family: Family, norm: Norm) -> None:
    """Raise ConfigError unless images and normalization are such as the family can take."""
    height, width, _ = spec.image_shape
    least = family.least_side
    if min(height, width) < least:
        raise ConfigError(f"{spec.name} needs images of at least {least}x{least} pixels, got {height}x{width}")
    if norm.kind == "skipinit" and not family.residual:
        raise ConfigError(f"--norm skipinit: {spec.name} has no residual branches; use --norm none")
    if spec.zero_gamma and not family.residual:
        raise ConfigError(f"--zero-gamma: {spec.name} has no residual branches whose gamma could start at 0")
    if spec.zero_gamma and not norm.exists:
        raise ConfigError(f"--zero-gamma: with --norm {norm} there is no normalization, and so no gamma")


def require_that_it_trains(model: Sequential, image_shape: tuple[int, int, int], images: int) -> None:
    """Raise ValueError if some layer refuses what the ones before it make of so many images."""
    with on_shapes(model) as backend:
        model.forward(backend.empty((images, *image_shape)))


def family_of(name: str) -> tuple[Family, int]:
    """The family of a model and its depth, 0 in a family of one. Raises ConfigError, suggesting the nearest."""
    if name in FAMILIES and not FAMILIES[name].depths:
        return FAMILIES[name], 0
    found = re.fullmatch(r"(.+)-([1-9][0-9]{0,3})", name)
    if found and found[1] in FAMILIES and FAMILIES[found[1]].depths:
        family, depth = FAMILIES[found[1]], int(found[2])
        if family.has(depth):
            return family, depth
        near = f"{found[1]}-{_nearest_depth(family, depth)}"
        words = f"its depth must be {family.depths_in_words}"
        raise ConfigError(f"there is no model '{name}': {words}; did you mean '{near}'?")
    known = ", ".join(f"{family}-N" if FAMILIES[family].depths else family for family in FAMILIES)
    suggestion = _suggestion(name)
    hint = f"; did you mean '{suggestion}'?" if suggestion else ""
    raise ConfigError(f"there is no model '{name}' (known: {known}; see `python -m minidl models`){hint}")


def _nearest_depth(family: Family, depth: int) -> int:
    return min(filter(family.has, range(1, MAX_DEPTH + 1)), key=lambda other: abs(other - depth))


def _suggestion(name: str) -> str | None:
    """The model that `name` may be a slip of; its depth is kept where there is one."""
    if name in FAMILIES:
        return f"{name}-{FAMILIES[name].depths[0]}"
    found = re.fullmatch(r"(.+?)[-_ ]?([1-9][0-9]{0,3})", name)
    families = difflib.get_close_matches(found[1], FAMILIES, n=1) if found else []
    if found and families and FAMILIES[families[0]].depths:
        return f"{families[0]}-{_nearest_depth(FAMILIES[families[0]], int(found[2]))}"
    near = difflib.get_close_matches(name, NAMES, n=1)
    return near[0] if near else None
