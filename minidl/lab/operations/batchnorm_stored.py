"""The checks of batch normalization with images in 16 bits, made of those of float32."""

from collections.abc import Callable, Iterator

from kernels.storage import FLOAT16, Storage
from minidl.lab.inputs import FAMILIES, Family
from minidl.lab.operations.case import Case, in_all_layouts
from minidl.lab.operations.stored import NARROW, families, in_storage, of_storage

# For one channel a thread and for eight; one line of channels, and blocks side by side.
SHAPES: tuple[tuple[int, ...], ...] = ((1, 8), (7, 5), (257, 17), (4, 8, 8, 64), (9, 136), (5, 520), (8, 16, 16, 16))
HOSTILE_SHAPES: tuple[tuple[int, ...], ...] = ((130, 3), (131, 8))
IN_ALL_LAYOUTS: tuple[tuple[int, ...], ...] = ((129, 3), (129, 8))
Make = Callable[..., Case]


def stored_cases(make: Make, *images: str) -> Iterator[Case]:
    """With these arrays in each storage of 16 bits.

    `make` is given a name, the family of x, that of all other images, and their shape.
    """
    for storage in NARROW:
        known, stored = _families(storage), dict.fromkeys(images, storage)
        plain = known.pop("ordinary")
        for shape in SHAPES:
            yield in_storage(make("ordinary", plain, plain, shape), stored)
        for shape in IN_ALL_LAYOUTS:
            yield from in_all_layouts(in_storage(make("ordinary", plain, plain, shape), stored))
        for shape in HOSTILE_SHAPES:
            yield from (in_storage(make(name, family, plain, shape), stored) for name, family in known.items())
            yield from (
                in_storage(make(f"others-{name}", plain, known[name], shape), stored)
                for name in ("nan", "minus-inf-and-inf", "smallest")
            )


def _families(storage: Storage) -> dict[str, Family]:
    """Without numbers whose squares float32 has not, with those of which 16 bits tell few apart."""
    known = families(storage)
    if storage is not FLOAT16:
        del known["largest"]
    return known | {name: of_storage(FAMILIES[name], storage) for name in ("mean-1e4-std-1", "mean-1e4-std-1e-2")}
