"""Checks of what makes batches of a data set: what augmentation draws is exact, and so is what is moved or cut."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np

from minidl.backends import Backend
from minidl.lab.operations.case import Arrays, Case, Output, Problem, exact, in_all_layouts, label, relative

Size = tuple[int, int]


def draw_augmentation_cases() -> Iterator[Case]:
    """Of draw_augmentation: integers, the same on every device."""

    def case(
        n: int, size: Size, padding: int, flip: bool = True, seed: int = 0, epoch: int = 0, images: int = 60000
    ) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            def call(backend: Backend, a: Arrays) -> None:
                drawn = a["shifts"], a["flips"], a["centres"]
                backend.draw_augmentation(a["index"], *drawn, size, padding, flip, seed, a["epoch"])

            return Problem(
                inputs={"index": rng.integers(0, images, n, np.int64), "epoch": np.array(epoch, np.uint32)},
                outputs={
                    "shifts": Output((n, 2), np.int32),
                    "flips": Output((n,), np.bool_),
                    "centres": Output((n, 2), np.int32),
                },
                call=call,
                bounds=exact,
            )

        which = "" if flip else "no-flip", "" if images == 60000 else f"of-{images}"
        return Case(label(size, f"padding-{padding}", *which, f"batch-{n}", f"seed-{seed}x{epoch}"), make)

    for n, size, flip in product((0, 1, 2, 129), ((1, 1), (28, 28), (5, 7)), (True, False)):
        yield case(n, size, 4, flip)
    yield from in_all_layouts(case(127, (32, 32), 4))
    yield case(64, (8, 8), 0)
    yield case(70001, (31, 33), 4)  # several threads
    for seed, epoch in ((2**32 - 1, 1), (2**40 + 17, 2**31), (2**64 - 1, 2**32 - 1)):
        yield case(65, (28, 28), 4, seed=seed, epoch=epoch)
    yield case(65, (28, 28), 4, images=2**62)  # the upper word of an image's number counts too
    yield case(65, (65535, 65537), 2**31 - 1)  # the largest of both: products of nearly 2^64


def gather_images_cases() -> Iterator[Case]:
    """Of gather_images: (raw - mean) / std, from shifted and flipped images, and 0 where one is cut."""

    def case(
        name: str, images: tuple[int, int, int, int], n: int, std: float = 60.0, reach: int = 2, cutout: int = 0
    ) -> Case:
        _, h, w, c = images

        def make(rng: np.random.Generator) -> Problem:
            inputs: dict[str, Any] = {
                "images": rng.integers(0, 256, images, np.uint8),
                "index": rng.integers(0, images[0], n, np.int64),
                "shifts": rng.integers(-reach, reach + 1, (n, 2), np.int32),
                "flips": rng.integers(0, 2, n).astype(bool),
                "mean": rng.uniform(0, 255, c).astype(np.float32),
                "std": (std * rng.uniform(0.5, 2, c)).astype(np.float32),
                "centres": rng.integers(0, (h, w), (n, 2), np.int32),
            }

            def call(backend: Backend, a: Arrays) -> None:
                read = a["images"], a["index"], a["shifts"], a["flips"], a["centres"], a["mean"], a["std"]
                backend.gather_images(*read, a["out"], cutout)

            return Problem(
                inputs=inputs,
                outputs={"out": Output((n, h, w, c))},
                call=call,
                # A difference, then a division (or a reciprocal and a product); of a pixel that is cut the bound is 0.
                bounds=relative(3),
            )

        return Case(label(name, images, f"batch-{n}", f"reach-{reach}", f"cutout-{cutout}" if cutout else ""), make)

    yield case("ordinary", (1, 1, 1, 1), 1, reach=0)
    yield case("ordinary", (3, 5, 4, 3), 0)
    yield from in_all_layouts(case("ordinary", (4, 7, 5, 3), 17))
    yield case("ordinary", (5, 8, 8, 1), 129)
    yield case("ordinary", (2, 3, 5, 2), 33, reach=7)  # images moved out of sight altogether
    yield case("still", (3, 6, 7, 5), 9, reach=0)
    yield case("small-std", (3, 6, 7, 5), 9, std=1e-3)
    yield case("ordinary", (11, 32, 32, 3), 70, reach=4)  # several threads

    yield from in_all_layouts(case("ordinary", (4, 7, 5, 3), 17, cutout=3))
    for cutout in (1, 2, 5, 14, 1000, 2**31):  # also wider than the image, whatever the centre
        yield case("ordinary", (3, 7, 6, 2), 19, cutout=cutout)
    yield case("ordinary", (1, 1, 1, 1), 1, reach=0, cutout=1)
    yield case("ordinary", (3, 5, 4, 3), 0, cutout=2)
    yield case("ordinary", (11, 32, 32, 3), 70, reach=4, cutout=16)


def gather_labels_cases() -> Iterator[Case]:
    """Of gather_labels."""

    def case(labels: int, n: int) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            return Problem(
                inputs={
                    "labels": rng.integers(-(2**62), 2**62, labels, np.int64),
                    "index": rng.integers(0, labels, n, np.int64),
                },
                outputs={"out": Output((n,), np.int64)},
                call=lambda backend, a: backend.gather_labels(a["labels"], a["index"], a["out"]),
                bounds=exact,
            )

        return Case(label("ordinary", f"labels-{labels}", f"batch-{n}"), make)

    for labels, n in ((1, 1), (5, 0), (10, 64), (70001, 1000)):
        yield case(labels, n)
    yield from in_all_layouts(case(10, 33))


CASES = {
    "draw_augmentation": draw_augmentation_cases,
    "gather_images": gather_images_cases,
    "gather_labels": gather_labels_cases,
}
