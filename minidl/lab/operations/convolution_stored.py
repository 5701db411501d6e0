"""Checks of convolution with images stored in 16 bits; weights, bias and dw are float32.

Tensor cores round the weights to the images' storage, so their bounds are those of that precision
(`minidl.lab.bounds`); the plain techniques compute with the weights as they are. What is answered in 16 bits was
rounded once more.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from kernels.storage import BFLOAT16, FLOAT16, FLOAT32, Storage
from minidl.lab.inputs import FAMILIES, Family, integers
from minidl.lab.operations.case import Answers, Case, Problem, Values, in_all_layouts, label
from minidl.lab.operations.stored import families, half_unit, in_storage, of_storage

NARROW = {BFLOAT16: "bf16", FLOAT16: "fp16"}
Make = Callable[..., Callable[[np.random.Generator], Problem]]


def stored_cases(
    make: Make, images: tuple[str, str], geometries: Sequence[Any], first_layers: Sequence[Any] = (), more: str = ""
) -> Iterator[Case]:
    """Cases of a product, whose first factor is the first of the `images`; the other image is a factor or the result.

    Args:
        make: (geometry, family of the first factor, of the second, is_exact, precision of tensor cores) -> a problem.
        images: Arrays that are stored.
        geometries: Both images are in 16 bits; the first two geometries are tried with hostile numbers too.
        first_layers: The first image is float32.
        more: Ends the cases' names.
    """
    for storage, precision in NARROW.items():
        both = dict.fromkeys(images, storage)
        plain = of_storage(FAMILIES["ordinary"], storage)
        second = plain if "dy" in images[1:] else FAMILIES["ordinary"]  # weights are float32, and rounded
        for geometry in geometries:
            case = _case(make, "ordinary", geometry, plain, second, both, precision, more)
            yield from in_all_layouts(case) if geometry is geometries[0] else (case,)
            yield _case(make, "integers", geometry, integers, integers, both, precision, more)
        for (name, family), geometry in product(_hostile(storage).items(), geometries[:2]):
            yield _case(make, name, geometry, family, plain, both, precision, more)  # near the largest, nothing moves
        for geometry in first_layers:
            late = {images[0]: FLOAT32, images[1]: storage}
            yield _case(make, "ordinary", geometry, FAMILIES["ordinary"], second, late, precision, more)
            yield _case(make, "integers", geometry, integers, integers, late, precision, more)


def _hostile(storage: Storage) -> dict[str, Family]:
    """Those of the storage's; near float32's own largest numbers, sums of bfloat16 depend on their order."""
    found = families(storage)
    left_out = {"ordinary"} if storage is FLOAT16 else {"ordinary", "largest"}
    return {name: family for name, family in found.items() if name not in left_out}


def _case(
    make: Make,
    name: str,
    geometry: Any,
    first: Family,
    second: Family,
    storages: dict[str, Storage],
    precision: str,
    more: str,
) -> Case:
    problem = make(geometry, first, second, is_exact=name == "integers", precision=precision)
    narrow = {name: storage for name, storage in storages.items() if storage is not FLOAT32}
    case = in_storage(Case(label(name, str(geometry), more), problem), storages)
    of_storages = case.make

    def rounded(rng: np.random.Generator) -> Problem:
        found = of_storages(rng)
        assert found.tf32_bounds is not None
        inner = found.tf32_bounds

        def bounds(answers: Answers) -> Values:
            return {
                name: bound + half_unit(answers.expected[name], bound, narrow[name]) if name in narrow else bound
                for name, bound in inner(answers).items()
            }

        return replace(found, tf32_bounds=bounds)

    return case._replace(make=rounded)
