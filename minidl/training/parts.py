"""The parts that a step's images are shared out among, so that memory holds one of them at a time."""

import itertools

import numpy as np

from minidl.data import Loader
from minidl.errors import ConfigError


def require_parts(loader: Loader, parts: int) -> None:
    """Raise ConfigError unless a batch of the loader can be cut into so many equal parts."""
    size = loader.batch_size
    if parts < 1 or size % parts:
        raise ConfigError(f"accumulate is {parts}, expected a number that divides the batch size {size}")
    if parts > 1 and size // parts % loader.multiple_of:
        raise ConfigError(
            f"--accumulate {parts} makes parts of {size // parts} images, not a multiple of the ghost batch of "
            f"{loader.multiple_of}"
        )


def parts_of(images: int, loader: Loader, parts: int) -> list[slice]:
    """A step's images, shared out evenly among as few parts as hold at most batch_size / `parts` each.

    Only where those are 2 and the batch is odd has one of them 3: batch normalization needs two values a channel.
    """
    if parts == 1:
        return [slice(0, images)]
    size = loader.batch_size // parts
    count = -(-images // size)
    if size > 1 and images // count < 2:
        count = max(1, count - 1)
    unit = 1 if images % loader.multiple_of else loader.multiple_of
    ends = np.cumsum([0, *(unit * len(part) for part in np.array_split(np.arange(images // unit), count))])
    return [slice(int(start), int(stop)) for start, stop in itertools.pairwise(ends)]
