"""Which technique an operation takes, and why.

A host function with several techniques asks here, after it has checked its arguments and before it launches anything.
Where none is asked for by name it takes the first that can take these arrays; one that is asked for must be able to, or
`TechniqueError` says why it cannot and which can.

Whoever wants to know what was taken sets the runner's `on_choice` to a function, which is called with each `Chosen`.
While nobody listens, nothing is put into words.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from kernels.arrays import address
from kernels.errors import TechniqueError
from kernels.launch import Array, Runner

Why = str | Callable[[], str]  # in words, or what makes them
Option = tuple[str, bool, Why]  # a technique, whether it can take the arrays, and why it can, or why not
Shape = tuple[int, ...]

NAMED = 3  # arrays that a message names where there are more
BY_NAME = "asked for by name"


class Chosen(NamedTuple):
    """What a host function decided: `why` it took the technique, for arrays of these shapes, by name."""

    operation: str
    technique: str
    why: str
    shapes: dict[str, Shape | list[Shape]]


Listener = Callable[[Chosen], None]


def choose(
    run: Runner, operation: str, technique: str | None, options: Sequence[Option], /, **arrays: Array | None
) -> str:
    """The technique to take: `technique`, or the first of `options` that can take the arrays where it is None.

    Args:
        run: The device; its `on_choice`, where it has one that is not None, is told.
        operation: The host function's name.
        technique: What its caller asked for.
        options: All techniques, the one that is best for these arrays first. An option of which another is better, but
            that can take them, still says True; why it was passed over is said by the better one's reason.
        arrays: By the host function's names for them, for whoever listens; None is left out.

    Raises:
        TechniqueError: The technique cannot take these arrays.
        ValueError: There is no such technique.
    """
    listener: Listener | None = getattr(run, "on_choice", None)
    if technique is None:
        for place, (taken, fits, _) in enumerate(options):
            if fits:
                if listener is not None:
                    listener(Chosen(operation, taken, _reason(options, place), _shapes(arrays)))
                return taken
        reasons = "; ".join(f"{name}: {_words(why)}" for name, _, why in options)
        raise ValueError(f"{operation}: no technique can take these arrays ({reasons})")
    for name, fits, why in options:
        if name == technique:
            if not fits:
                others = " or ".join(other for other, can, _ in options if can) or "no technique"
                raise TechniqueError(operation, technique, _words(why), others)
            if listener is not None:
                listener(Chosen(operation, technique, BY_NAME, _shapes(arrays)))
            return technique
    known = ", ".join(name for name, _, _ in options)
    raise ValueError(f"{operation} has no technique '{technique}'; its techniques are {known}")


def vectors(
    run: Runner,
    operation: str,
    technique: str | None,
    multiples: Mapping[str, int],
    wide: int = 4,
    /,
    **arrays: Array | Sequence[Array] | None,
) -> bool:
    """Whether to move elements in accesses of 16 bytes: technique "vector", else "scalar".

    Args:
        run: As for `choose`.
        operation: As for `choose`.
        technique: As for `choose`.
        multiples: What must be a multiple of `wide`, by what it counts: {"channels": 64}.
        wide: Elements in 16 bytes: 4, and 8 of what is stored in 16 bits (kernels/storage.py).
        arrays: What must start at a multiple of 16 bytes, by name. A list of arrays is values[0], values[1], ...; None
            is left out.

    Raises:
        TechniqueError: "vector" is asked for, and something of this is not so.
        ValueError: There is no such technique.
    """
    if technique == "scalar":  # which takes any
        choose(run, operation, technique, (("scalar", True, ""),), **arrays)
        return False
    fits = True
    for number in multiples.values():
        if number % wide:
            fits = False
    for array in arrays.values():
        if array is None:
            continue
        if isinstance(array, list | tuple):
            for part in array:
                if address(part) % 16:
                    fits = False
        elif address(array) % 16:
            fits = False
    if technique is None and getattr(run, "on_choice", None) is None:
        return fits
    options = (
        ("vector", fits, lambda: _why_vectors(multiples) if fits else _why_not(multiples, wide, arrays)),
        ("scalar", True, ""),
    )
    return choose(run, operation, technique, options, **arrays) == "vector"


def _why_vectors(multiples: Mapping[str, int]) -> str:
    return ", ".join(
        [*(_counted(number, noun) for noun, number in multiples.items()), "all arrays aligned to 16 bytes"]
    )


def _why_not(multiples: Mapping[str, int], wide: int, arrays: Mapping[str, Any]) -> str:
    reasons = [
        f"{_counted(number, noun)} {'is' if number == 1 else 'are'} no multiple of {wide}"
        for noun, number in multiples.items()
        if number % wide
    ]
    off = [name for name, array in _by_name(arrays) if address(array) % 16]
    if off:
        listed = _listed(off if len(off) <= NAMED + 1 else [*off[:NAMED], f"{len(off) - NAMED} more arrays"])
        reasons.append(f"{listed} {'starts' if len(off) == 1 else 'start'} at no multiple of 16 bytes")
    return "; ".join(reasons)


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _counted(number: int, noun: str) -> str:
    """1 channel of a group, 2 channels of a group; what is counted ends in s."""
    things, *rest = noun.split(" ", 1)
    return " ".join([f"{number:,}", things.removesuffix("s") if number == 1 else things, *rest])


def _by_name(arrays: Mapping[str, Any]) -> list[tuple[str, Array]]:
    found: list[tuple[str, Array]] = []
    for name, array in arrays.items():
        if isinstance(array, list | tuple):
            found += [(f"{name}[{i}]", part) for i, part in enumerate(array)]
        elif array is not None:
            found.append((name, array))
    return found


def _shapes(arrays: Mapping[str, Any]) -> dict[str, Shape | list[Shape]]:
    return {
        name: [tuple(part.shape) for part in array] if isinstance(array, list | tuple) else tuple(array.shape)
        for name, array in arrays.items()
        if array is not None
    }


def _reason(options: Sequence[Option], place: int) -> str:
    """Why the options before this one were not taken, and what speaks for this one."""
    return "; ".join(text for _, _, why in options[: place + 1] if (text := _words(why)))


def _words(why: Why) -> str:
    return why if isinstance(why, str) else why()
