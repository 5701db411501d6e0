"""What a check is made of: a problem that is posed to an operation, and how far off the answers may be."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.storage import Storage
from minidl.backends import Array, Backend
from minidl.lab import bounds

Host = NDArray[Any]
Values = Mapping[str, Any]  # host arrays by name
Arrays = Mapping[str, Array]  # arrays of the device under test by name
Layout = Literal["aligned", "offset", "strided"]


class Answers(NamedTuple):
    """What is compared: the reference's answers and the backend's, in float64."""

    expected: Values
    got: Values


class Output(NamedTuple):
    """An array that the operation writes; `dtype` None is the backend's."""

    shape: tuple[int, ...]
    dtype: Any = None


def nothing_derived(outputs: Values) -> Values:
    """The outputs themselves are what is compared."""
    return outputs


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One call of an operation, or a few that belong together."""

    inputs: Values  # float32 or integers; the operation must not change them
    outputs: Mapping[str, Output] = field(default_factory=dict)  # it must write every element of these
    state: Values = field(default_factory=dict)  # it updates these in place; they are answers too
    stored: Mapping[str, Storage] = field(default_factory=dict)  # of these, those that a device stores otherwise
    call: Callable[[Backend, Arrays], None]  # given all of them by name
    derive: Callable[[Values], Values] = nothing_derived  # from the answers to what is compared
    bounds: Callable[[Answers], Values]  # of what is compared
    tf32_bounds: Callable[[Answers], Values] | None = None  # where it is computed in TF32; None: it never is
    winograd_bounds: Callable[[Answers], Values] | None = None  # the same, by that technique


class Case(NamedTuple):
    """A problem by name; it is made when it is asked for."""

    name: str
    make: Callable[[np.random.Generator], Problem]
    layout: Layout = "aligned"
    narrow: bool = False  # some of its arrays are stored in 16 bits: for devices alone


def in_all_layouts(case: Case) -> Iterator[Case]:
    """The case with arrays that are aligned, that are not, and that come as every second element of wider ones."""
    yield case
    yield case._replace(name=f"{case.name}/offset", layout="offset")
    yield case._replace(name=f"{case.name}/strided", layout="strided")


def exact(answers: Answers) -> Values:
    """Bounds of 0: all answers are to be equal."""
    return dict.fromkeys(answers.expected, 0.0)


def within(**bounds: Any) -> Callable[[Answers], Values]:
    """Bounds that depend on no answer."""

    def known(answers: Answers) -> Values:
        del answers
        return bounds

    return known


def relative(units: float) -> Callable[[Answers], Values]:
    """Bounds of so many unit roundoffs of the answer, for what is rounded at the end of a few steps that lose less."""

    def of_answers(answers: Answers) -> Values:
        return {name: bounds.relative(value, units) for name, value in answers.expected.items()}

    return of_answers


def label(*parts: object) -> str:
    """The name of a case: its parts, without the empty ones, with shapes as 2x3."""
    return "/".join(text for part in parts if (text := _text(part)))


def _text(part: object) -> str:
    if isinstance(part, tuple):
        return "x".join(str(number) for number in part)
    return str(part)


def named(cases: Iterable[Case]) -> dict[str, Case]:
    """Cases by name, in order. Raises ValueError if two have the same."""
    result: dict[str, Case] = {}
    for case in cases:
        if case.name in result:
            raise ValueError(f"two cases are called '{case.name}'")
        result[case.name] = case
    return result
