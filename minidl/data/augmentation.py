"""Random shifts and flips of training images, each a pure function of (seed, epoch, image).

The same image gets the same treatment in an epoch whatever batch it comes in, so results do not depend on where a run
was resumed, and a batch can be made anywhere.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.random import philox4x32, seed_words
from minidl.errors import ConfigError

STREAM = 0xFFFFFFFF  # layers count their streams from 0: this one is never a layer's
_WORD = np.int64(0xFFFFFFFF)


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training image.

    Attributes:
        shift: pixels that it may move up, down, left or right; what moves in is 0.
        flip: whether every other image, by chance, is mirrored left to right (before it is shifted).
    """

    shift: int
    flip: bool

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise ConfigError(f"augmentation: a shift of {self.shift} pixels; expected 0 or more")


def draw(
    augmentation: Augmentation, seed: int, epoch: int, index: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """What happens to the images `index` (n,) in this epoch: shifts (n, 2) int32, (down, right), and flips (n,) bool.

    Shifts are uniform in -shift..shift, independent of each other and of the flip, whose probability is 1/2. An
    image's numbers come from the Philox block of counter (index low, index high, epoch, STREAM) under the seed: the
    shifts are the upper words of word * (2 shift + 1), whose probabilities are equal to within 2^-32, the flip is a
    word's upper bit.
    """
    down, right, mirror, _ = philox4x32(index & _WORD, index >> 32, epoch, STREAM, *seed_words(seed))
    span = 2 * augmentation.shift + 1
    shifts = np.stack([_below(down, span), _below(right, span)], axis=-1) - augmentation.shift
    flips = mirror >> 31 == 1 if augmentation.flip else np.zeros(len(index), bool)
    return shifts.astype(np.int32), flips


def _below(words: NDArray[Any], span: int) -> NDArray[np.int64]:
    """Uniform integers 0..span-1 from uniform 32-bit words."""
    return (words.astype(np.uint64) * np.uint64(span) >> np.uint64(32)).astype(np.int64)
