"""The checks of arrays that are stored in 16 bits (kernels/storage.py), made of those of float32.

The inputs are numbers that the storage has, so the definition in float64 is that of what the device is given. What is
answered was rounded once more, to the storage: by half a unit in the last place of it at most, and to infinity beyond
its largest number. Copies and ReLU round nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from kernels.storage import BFLOAT16, FLOAT16, Storage
from minidl.lab.inputs import FAMILIES, Family
from minidl.lab.operations.case import Answers, Case, Host, Problem, Values

NARROW = BFLOAT16, FLOAT16
FAMILIES_KEPT = "ordinary", "mixed-scales", "nan", "minus-inf-and-inf"
Maker = Callable[[np.random.Generator], Problem]


def half_unit(expected: Host, error: Host | float, storage: Storage) -> Host:
    """Half a unit in the last place of the storage, of a number that is off by up to `error` before it is rounded.

    Units are those of the larger power of two, where the error reaches it; below the smallest normal number they no
    longer shrink.
    """
    largest = np.abs(expected) + error
    normal = np.isfinite(largest) & (largest >= 2.0**storage.least)
    exponent = np.where(normal, np.frexp(largest)[1] - 1, storage.least)
    return np.asarray(np.ldexp(0.5, exponent - storage.fraction))


def stored(make: Maker, storages: Mapping[str, Storage], rounds: bool = True) -> Maker:
    """The same problem with these arrays, by name, in these storages; the numbers of its inputs must be of them.

    With `rounds` the bounds of those among them that are answers grow by the rounding to the storage.
    """

    def problem(rng: np.random.Generator) -> Problem:
        plain = make(rng)

        def derive(values: Values) -> Values:
            return plain.derive({name: _infinite(value, storages.get(name)) for name, value in values.items()})

        def bounds(answers: Answers) -> Values:
            return {
                name: bound + half_unit(answers.expected[name], bound, storages[name]) if name in storages else bound
                for name, bound in plain.bounds(answers).items()
            }

        changed = replace(plain, stored=storages)
        return replace(changed, derive=derive, bounds=bounds) if rounds else changed

    return problem


def _infinite(values: Host, storage: Storage | None) -> Host:
    """With infinities in the place of what the storage has no number for.

    (A number within float32's error of the limit may go either way; of a case's numbers none is so near.)
    """
    if storage is None:
        return values
    return np.asarray(np.where(np.abs(values) >= storage.overflow, np.copysign(np.inf, values), values))


def of_storage(family: Family, storage: Storage) -> Family:
    """The family's numbers, each the nearest that the storage has."""
    return lambda rng, shape: storage.rounded(family(rng, shape))


def smallest(storage: Storage) -> Family:
    """The storage's least numbers of both signs, subnormal ones most of them, some 0."""
    unit = 2.0 ** (storage.least - storage.fraction)
    most = 2 ** (storage.fraction + 1)
    return lambda rng, shape: (rng.integers(-most, most, shape) * unit).astype(np.float32)


def largest(storage: Storage) -> Family:
    """Numbers of both signs near the storage's largest, and that: sums of two are often infinite."""
    binade = 2**storage.fraction

    def family(rng: np.random.Generator, shape: tuple[int, ...]) -> Host:
        numbers = rng.integers(binade, 2 * binade, shape) * 2.0 ** (storage.most - storage.fraction)
        numbers.reshape(-1)[::7] = (2 * binade - 1) * 2.0 ** (storage.most - storage.fraction)
        return (numbers * rng.choice([-1.0, 1.0], shape) * rng.choice([0.5, 1.0], shape)).astype(np.float32)

    return family


def families(storage: Storage) -> dict[str, Family]:
    """Families whose numbers the storage has: those for which 16 bits make a difference."""
    found = {name: of_storage(FAMILIES[name], storage) for name in FAMILIES_KEPT}
    return found | {"smallest": smallest(storage), "largest": largest(storage)}


def in_storage(case: Case, storages: Mapping[str, Storage], rounds: bool = True) -> Case:
    """A case whose numbers are of these storages, with these arrays stored so; its name ends in the storages' names."""
    names = dict.fromkeys(storage.name for storage in storages.values())
    named = "-to-".join(names)
    return case._replace(name=f"{case.name}/{named}", make=stored(case.make, storages, rounds), narrow=True)
