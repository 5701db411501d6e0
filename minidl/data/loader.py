"""The order in which a run sees its images."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from minidl.errors import ConfigError

Index = NDArray[np.int64]


class Loader:
    """Batches of indices into a data set, in an order that is a function of (seed, epoch) alone.

    The loader has no state: any epoch can be asked for at any time, from any batch on, which is how a run resumes in
    the middle of an epoch with the very batches that it would have seen.

    An epoch's last batch is shorter where `batch_size` does not divide `count`. It is kept, unless it would be a
    single image: batch normalization needs two values a channel, so that image is left out of that epoch. (With a
    batch size of 1 every batch is a single image and all are kept.) Ghost batch normalization takes whole ghost
    batches: what is no multiple of `multiple_of` is left out likewise. The order changes from epoch to epoch, and with
    it what is left out.

    Attributes:
        count: images in the data set.
        batch_size: images in a batch.
        seed: of the run.
        multiple_of: what number of images every batch is a multiple of.

    Raises:
        ConfigError: the data set has no such batches.
    """

    def __init__(self, count: int, batch_size: int, seed: int, multiple_of: int = 1) -> None:
        if count < 1:
            raise ConfigError(f"a data set of {count} images gives no batch; expected at least one image")
        if not 1 <= batch_size <= count:
            raise ConfigError(
                f"batch size {batch_size} does not fit a data set of {count:,} images; expected 1 to {count}"
            )
        if seed < 0:
            raise ConfigError(f"seed {seed} is negative; expected 0 or more")
        if batch_size % multiple_of:
            lower = batch_size // multiple_of * multiple_of
            near = [size for size in (lower, lower + multiple_of) if 0 < size <= count]
            remedy = f"use {' or '.join(map(str, near))}" if near else "there are too few images for any"
            raise ConfigError(
                f"--batch-size {batch_size} is not a multiple of the ghost batch of {multiple_of}; {remedy}"
            )
        self.count, self.batch_size, self.seed, self.multiple_of = count, batch_size, seed, multiple_of

    def __len__(self) -> int:
        """Batches an epoch."""
        return (self.images + self.batch_size - 1) // self.batch_size

    @property
    def images(self) -> int:
        """Images an epoch: `count`, but for those that are left out."""
        rest = self.count % self.batch_size
        single = self.batch_size > 1 and rest == 1
        return self.count - (1 if single else rest % self.multiple_of)

    def order(self, epoch: int) -> Index:
        """The epoch's order: (images,) int64 indices below `count`, each at most once."""
        generator = np.random.default_rng([self.seed, epoch])
        return generator.permutation(self.count).astype(np.int64, copy=False)[: self.images]

    def batches(self, epoch: int, first: int = 0) -> Iterator[Index]:
        """The epoch's batches from number `first` on: (batch_size,) int64 indices, the last one perhaps shorter."""
        if first < 0:
            raise ConfigError(f"batch {first} of an epoch; expected 0 or more")
        order = self.order(epoch)
        for start in range(first * self.batch_size, len(order), self.batch_size):
            yield order[start : start + self.batch_size]
