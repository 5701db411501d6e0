"""Networks by name."""

import difflib
import re
from collections.abc import Callable
from typing import NamedTuple

from minidl.errors import ConfigError
from minidl.models.norms import Norm, parse
from minidl.models.resnet import resnet
from minidl.models.small_cnn import small_cnn
from minidl.nn import Sequential


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
        depths: Those that `NAMES` lists; empty for a family of one.
        is_depth: Which other depths there are.
        depths_in_words: The same for people.
    """

    make: Callable[[Spec, Norm, int], Sequential]
    depths: tuple[int, ...] = ()
    is_depth: Callable[[int], bool] = lambda _: False
    depths_in_words: str = ""


def _is_resnet_depth(depth: int) -> bool:
    return depth == 18 or (depth >= 8 and depth % 6 == 2)


FAMILIES = {
    "small-cnn": Family(lambda spec, norm, _: small_cnn(spec.image_shape, spec.classes, norm)),
    "resnet": Family(
        lambda spec, norm, depth: resnet(spec.image_shape, spec.classes, norm, depth, spec.zero_gamma),
        depths=(18, 20, 32, 44, 56, 110),
        is_depth=_is_resnet_depth,
        depths_in_words="18, or 6 n + 2 from 8 on",
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
    family, depth = _family(name)
    return family.make(Spec(name, image_shape, classes, norm, zero_gamma), parse(norm), depth)


def _family(name: str) -> tuple[Family, int]:
    if name in FAMILIES and not FAMILIES[name].depths:
        return FAMILIES[name], 0
    found = re.fullmatch(r"(.+)-([1-9][0-9]{0,3})", name)
    if found and found[1] in FAMILIES and FAMILIES[found[1]].depths:
        family, depth = FAMILIES[found[1]], int(found[2])
        if depth in family.depths or family.is_depth(depth):
            return family, depth
        raise ConfigError(f"there is no model '{name}': the depth of {found[1]} is {family.depths_in_words}")
    near = difflib.get_close_matches(name, NAMES, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise ConfigError(f"there is no model '{name}' (known: {', '.join(NAMES)}){hint}")
