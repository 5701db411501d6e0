"""Checks of convolution in a chain of normalizations: forward with the statistics of its output, and both gradients.

What comes out beside y or dx is compared as its distance from what the definition makes of the y or dx of the same
device: so it is held to the bounds of that pass alone.
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from kernels.batch_statistics import GradientSums, Normalization, PendingGradient
from kernels.batchnorm import batchnorm_gradient_sums_reference, batchnorm_statistics_reference
from kernels.conv import reference
from kernels.storage import BFLOAT16, FLOAT16, FLOAT32, Storage
from minidl.backends import Backend
from minidl.backends.techniques import WINOGRAD
from minidl.lab import winograd_bounds
from minidl.lab.inputs import FAMILIES, Family, normal, with_values
from minidl.lab.operations.batchnorm_bounds import GIVEN, elements, sums_bounds
from minidl.lab.operations.batchnorm_statistics import (
    EPS,
    PARTS,
    PLAIN,
    affine_parameters,
    compared_statistics,
    fixed_statistics,
    given_statistics,
    read,
)
from minidl.lab.operations.case import Answers, Arrays, Case, Host, Output, Problem, Values, in_all_layouts, label
from minidl.lab.operations.convolution import FEW, GEOMETRIES, HOSTILE, IN_FOURS, STORED, Geometry
from minidl.lab.operations.convolution_normalized_bounds import (
    activation,
    given,
    gradient,
    masked_bound,
    product_bound,
    statistics_bounds,
    wide,
)
from minidl.lab.operations.stored import families, in_storage, of_storage

SUMS = ("dgamma", "dbeta", "mean_g", "slope")
BEFORE, BEHIND = "before_", "behind_"  # what the arrays of the two normalizations are called by
GRADIENTS: dict[str, Family] = {
    "dy-mean-1e4": normal(1e4, 1),
    "dy-nan": with_values(np.nan),
    "dy-inf": with_values(np.inf),
    "dy-denormal": FAMILIES["denormal"],
}
OPTIONS = ("", "no-relu", "no-affine", "no-before")
IN_ALL_LAYOUTS = FEW[0], IN_FOURS[2], STORED[0]
NARROW = {BFLOAT16: "bf16", FLOAT16: "fp16"}  # what tensor cores round factors to
LARGE = "mean-1e4-std-1", "mean-1e4-std-1e-2"
LEFT_OUT = {BFLOAT16: ("largest",), FLOAT16: ("mixed-scales",)}  # of whose squares, or which itself, there is none
MANY = Geometry((1, 229, 227, 4), (1, 1), 4)  # tiles: what each finds beside the product is merged twice
Precise = Callable[[Answers, str], Values]


class Kind(NamedTuple):
    """What is tried: a family for x, one for dy, a geometry, one of OPTIONS and how images are stored."""

    name: str
    of_x: Family
    of_dy: Family
    geometry: Geometry
    option: str = ""
    storage: Storage = FLOAT32

    def __str__(self) -> str:
        return label(self.name, str(self.geometry), self.option)

    @property
    def relu(self) -> bool:
        """Whether before has one."""
        return self.option != "no-relu"

    def normalization(self, rng: np.random.Generator, prefix: str, x: Host) -> dict[str, Host]:
        """Arrays of one for x, by name; of the given x's own statistics, or of numbers that have nothing to do with it.

        The latter where x is not finite in places: the rest of the channel is then to be right.
        """
        c = x.shape[-1]
        statistics = fixed_statistics(rng, c) if self.name.startswith("fixed") else given_statistics(x)
        arrays = {**statistics, **affine_parameters(rng, c, self.option != "no-affine")}
        return {f"{prefix}{name}": array for name, array in arrays.items()}


def _kinds() -> Iterator[Kind]:
    yield from (Kind("ordinary", PLAIN, PLAIN, geometry) for geometry in (*GEOMETRIES[:17], *IN_FOURS, MANY))
    few = FEW[0], IN_FOURS[3]
    yield from (Kind("ordinary", PLAIN, PLAIN, *one) for one in product(few, OPTIONS[1:]))
    hostile = [(name, family) for name, family in FAMILIES.items() if name != "ordinary"]
    yield from (Kind(name, family, PLAIN, geometry) for (name, family), geometry in product(hostile, HOSTILE))
    for name, geometry in product(("nan", "inf", "minus-inf-and-inf"), few):
        yield Kind(f"fixed-{name}", FAMILIES[name], PLAIN, geometry)


def _gradient_kinds() -> Iterator[Kind]:
    yield from _kinds()
    yield from (Kind(name, PLAIN, family, g) for (name, family), g in product(GRADIENTS.items(), HOSTILE))


def fitting_families(storage: Storage) -> dict[str, Family]:
    """Those for images in 16 bits of whose results none is too large for the storage."""
    known = families(storage) | {name: of_storage(FAMILIES[name], storage) for name in LARGE}
    return {name: family for name, family in known.items() if name not in LEFT_OUT[storage]}


def _stored_kinds() -> Iterator[Kind]:
    """With images in 16 bits."""
    for storage in NARROW:
        known = fitting_families(storage)
        plain = known.pop("ordinary")
        yield from (Kind("ordinary", plain, plain, geometry, "", storage) for geometry in STORED)
        yield from (Kind("ordinary", plain, plain, STORED[2], option, storage) for option in OPTIONS[1:])
        hostile = product(known.items(), STORED[:2])
        yield from (Kind(name, family, plain, geometry, "", storage) for (name, family), geometry in hostile)
        for name in ("nan", "minus-inf-and-inf"):
            yield Kind(f"fixed-{name}", known[name], plain, STORED[0], "", storage)


def _stored_gradient_kinds() -> Iterator[Kind]:
    yield from _stored_kinds()
    for storage in NARROW:
        known, plain = families(storage), of_storage(PLAIN, storage)
        yield from (
            Kind(f"dy-{name}", plain, known[name], STORED[0], "", storage)
            for name in ("nan", "minus-inf-and-inf", "smallest")
        )


def _cases(
    make: Callable[[Kind, np.random.Generator], Problem], kinds: Iterator[Kind], stored: Iterator[Kind], *images: str
) -> Iterator[Case]:
    """Of all kinds; the `images` among their arrays are stored in 16 bits in those that are `stored` so."""
    for kind in (*kinds, *stored):
        case = Case(str(kind), lambda rng, kind=kind: make(kind, rng))  # type: ignore[misc]
        if kind.storage is not FLOAT32:
            case = in_storage(case, dict.fromkeys(images, kind.storage))
        in_all = kind.name == "ordinary" and kind.geometry in IN_ALL_LAYOUTS and not kind.option
        yield from in_all_layouts(case) if in_all else (case,)


def _normalization(arrays: Arrays, prefix: str, relu: bool) -> Normalization:
    mine = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    return Normalization(read(mine), mine.get("gamma"), mine.get("beta"), relu)


def _forward(kind: Kind, rng: np.random.Generator) -> Problem:
    geometry, window = kind.geometry, (kind.geometry.stride, kind.geometry.padding)
    x, w = kind.of_x(rng, geometry.x), PLAIN(rng, geometry.weight)
    inputs = {"x": x, "w": w}
    if kind.option != "no-before":
        inputs |= kind.normalization(rng, BEFORE, x)
    rows = int(np.prod(geometry.y[:3]))

    def before(a: Arrays) -> Normalization | None:
        return None if kind.option == "no-before" else _normalization(a, BEFORE, kind.relu)

    def call(backend: Backend, a: Arrays) -> None:
        out = read(a) if rows else None
        backend.conv2d_normalized_forward(a["x"], before(a), a["w"], a["y"], *window, EPS, out)

    def derive(answers: Values) -> Values:
        return {"y": answers["y"], **_from_statistics_of(answers["y"], answers)} if rows else {"y": answers["y"]}

    def bounds(answers: Answers, precision: str) -> Values:
        terms = int(np.prod(w.shape[:3]))
        factors = activation(x, before(inputs)), given(w, is_image=False)
        made = product_bound(
            _convolution(*window), *factors, terms, precision, lambda x, w: winograd_bounds.forward(x, w, window[1])
        )
        if not rows:
            return {"y": made}
        y = answers.got["y"]
        shift = answers.got["shift"] + batchnorm_statistics_reference(y, EPS).shift
        return {"y": made, **statistics_bounds(y, EPS, shift, kind.storage)}

    statistics = {part: Output((geometry.c_out,)) for part in PARTS} if rows else {}
    return _problem(kind, inputs, {"y": Output(geometry.y), **statistics}, call, bounds, derive)


def _convolution(stride: Any, padding: Any) -> Callable[[Host, Host], Host]:
    return lambda x, w: reference.conv2d_forward_reference(x, w, None, stride, padding)


def _from_statistics_of(y: Host, answers: Values) -> Values:
    """How far the answers are from the statistics of y; in a channel that is not finite, they themselves."""
    right, got = batchnorm_statistics_reference(y.astype(np.float64), EPS), compared_statistics(y, answers)
    finite = np.isfinite(y).all(axis=(0, 1, 2))
    distance = {
        "shift": answers["shift"] - right.shift,
        "mean": (answers["shift"] - right.shift) + answers["delta"],
        "var": answers["var"] - right.var,
        "inv_std": answers["inv_std"] - right.inv_std,
    }
    return {name: np.where(finite, distance[name], value) for name, value in got.items()}


def _pending(kind: Kind, rng: np.random.Generator) -> dict[str, Host]:
    """Arrays of a pending gradient, by name; behind a ReLU where `relu`, as kind's other normalization is."""
    y, dy = of_storage(PLAIN, kind.storage)(rng, kind.geometry.y), kind.of_dy(rng, kind.geometry.y)
    arrays = {"raw": y, "dy": dy, **kind.normalization(rng, BEHIND, y)}
    normalization = wide(_normalization(arrays, BEHIND, kind.relu))
    found = batchnorm_gradient_sums_reference(y.astype(np.float64), dy.astype(np.float64), normalization)
    sums = {"behind_mean_g": found.mean_g, "behind_slope": found.slope}
    return arrays | {name: np.asarray(value, np.float32) for name, value in sums.items()}


def _of_pending(kind: Kind, a: Arrays) -> PendingGradient:
    sums = GradientSums(None, None, a["behind_mean_g"], a["behind_slope"])
    return PendingGradient(a["dy"], a["raw"], _normalization(a, BEHIND, kind.relu), sums)


def _backward_weight(kind: Kind, rng: np.random.Generator) -> Problem:
    geometry, window = kind.geometry, (kind.geometry.stride, kind.geometry.padding)
    inputs = {"x": kind.of_x(rng, geometry.x), **_pending(kind, rng)}
    if kind.option != "no-before":
        inputs |= kind.normalization(rng, BEFORE, inputs["x"])

    def before(a: Arrays) -> Normalization | None:
        return None if kind.option == "no-before" else _normalization(a, BEFORE, kind.relu)

    def call(backend: Backend, a: Arrays) -> None:
        backend.conv2d_normalized_backward_weight(a["x"], before(a), _of_pending(kind, a), a["dw"], *window)

    def made(x: Host, dy: Host) -> Host:
        return reference.conv2d_backward_weight_reference(x, dy, geometry.weight, *window)

    def bounds(_: Answers, precision: str) -> Values:
        factors = activation(inputs["x"], before(inputs)), gradient(_of_pending(kind, inputs))
        terms = int(np.prod(geometry.y[:3]))

        def tiles(x: Host, dy: Host) -> Host:
            return winograd_bounds.backward_weight(x, dy, window[1])

        return {"dw": product_bound(made, *factors, terms, precision, tiles)}

    return _problem(kind, inputs, {"dw": Output(geometry.weight)}, call, bounds)


def _backward_input(kind: Kind, rng: np.random.Generator) -> Problem:
    geometry, window = kind.geometry, (kind.geometry.stride, kind.geometry.padding)
    x, w, alone = kind.of_x(rng, geometry.x), PLAIN(rng, geometry.weight), kind.option == "no-before"
    inputs = {"w": w, **_pending(kind, rng)}
    if not alone:
        inputs |= {"x": x, **kind.normalization(rng, BEFORE, x)}
    wanted = () if alone else SUMS if kind.option != "no-affine" else SUMS[2:]

    def call(backend: Backend, a: Arrays) -> None:
        of_x: tuple[Any, ...] = (None, None, None)
        if not alone:
            of_x = a["x"], _normalization(a, BEFORE, kind.relu), GradientSums(*(a.get(name) for name in SUMS))
        backend.conv2d_normalized_backward_input(_of_pending(kind, a), a["w"], a["dx"], *window, *of_x)

    def derive(answers: Values) -> Values:
        if alone:
            return answers
        normalization = wide(_normalization(inputs, BEFORE, False))
        right = batchnorm_gradient_sums_reference(x.astype(np.float64), answers["dx"], normalization)
        return {"dx": answers["dx"], **{name: answers[name] - getattr(right, name) for name in wanted}}

    def made(dy: Host, w: Host) -> Host:
        return reference.conv2d_backward_input_reference(dy, w, geometry.x, *window)

    def bounds(answers: Answers, precision: str) -> Values:
        factors = gradient(_of_pending(kind, inputs)), given(w, is_image=False)
        taps = zip(geometry.kernel, geometry.stride, strict=True)  # an element is in so many windows along each axis
        terms = geometry.c_out * int(np.prod([-(-size // step) for size, step in taps]))

        def tiles(dy: Host, w: Host) -> Host:
            return winograd_bounds.backward_input(dy, w, window[1])

        off = product_bound(made, *factors, terms, precision, tiles)
        if alone:
            return {"dx": off}
        before = _normalization(inputs, BEFORE, kind.relu)
        e = elements(x, before.statistics, before.gamma, before.beta, GIVEN)
        of_sums = sums_bounds(e, answers.got["dx"], before.statistics.inv_std.astype(np.float64), False)
        full = made(factors[0].value, factors[1].value)
        return {"dx": masked_bound(full, off, x, before), **{name: of_sums[name] for name in wanted}}

    sums = {name: Output((geometry.x[3],)) for name in wanted}
    return _problem(kind, inputs, {"dx": Output(geometry.x), **sums}, call, bounds, derive)


def _problem(
    kind: Kind,
    inputs: Values,
    outputs: dict[str, Output],
    call: Callable[[Backend, Arrays], None],
    bounds: Precise,
    derive: Callable[[Values], Values] = lambda answers: answers,
) -> Problem:
    """In 16 bits each technique rounds what it multiplies to the storage, or computes with more."""
    asked_for, otherwise = "tf32", "fp32"
    if kind.storage is not FLOAT32:
        asked_for = otherwise = NARROW[kind.storage]
    return Problem(
        inputs=inputs,
        outputs=outputs,
        call=call,
        derive=derive,
        bounds=lambda answers: bounds(answers, otherwise),
        tf32_bounds=None if otherwise == asked_for else lambda answers: bounds(answers, asked_for),
        winograd_bounds=lambda answers: bounds(answers, WINOGRAD),
    )


def _gradient_cases(make: Callable[[Kind, np.random.Generator], Problem], *images: str) -> Iterator[Case]:
    return _cases(make, _gradient_kinds(), _stored_gradient_kinds(), *images)


CASES = {
    "conv2d_normalized_forward": lambda: _cases(_forward, _kinds(), _stored_kinds(), "x", "y"),
    "conv2d_normalized_backward_weight": lambda: _gradient_cases(_backward_weight, "x", "raw", "dy"),
    "conv2d_normalized_backward_input": lambda: _gradient_cases(_backward_input, "x", "raw", "dy", "dx"),
}
