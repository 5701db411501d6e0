"""Convolutions on the CPU to test: their arrays, plain or in a chain, what they give and what is right."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from kernels.batch_statistics import BatchStatistics, GradientSums, Normalization, PendingGradient
from kernels.conv import (
    bias_backward_reference,
    conv2d_backward_input_reference,
    conv2d_backward_weight_reference,
    conv2d_forward_reference,
)
from kernels.conv.normalized_reference import (
    conv2d_normalized_backward_input_reference,
    conv2d_normalized_backward_weight_reference,
    conv2d_normalized_forward_reference,
)
from kernels.window import output_size
from minidl.backends.cpu import (
    CpuBackend,
    convolution_gradients,
    convolution_plan,
    convolution_windows,
    convolution_winograd,
)
from minidl.backends.cpu.convolution_plan import Plan, forward_plan, input_gradient_plan, weight_gradient_plan
from minidl.backends.cpu.threads import QUIET

Array = np.ndarray
Pair = tuple[int, int]
Answers = dict[str, Array]
EPS = 1e-5
SPACE = 64  # guards on both sides of an array


class Case(NamedTuple):
    """x (n, h, w, c_in), kernel, c_out, stride and padding."""

    x: tuple[int, int, int, int]
    kernel: Pair
    c_out: int
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)

    @property
    def w(self) -> tuple[int, int, int, int]:
        return *self.kernel, self.x[3], self.c_out

    @property
    def y(self) -> tuple[int, int, int, int]:
        ho, wo = (
            output_size(self.x[axis + 1], self.kernel[axis], self.stride[axis], self.padding[axis], operation="conv2d")
            for axis in (0, 1)
        )
        return self.x[0], ho, wo, self.c_out

    @property
    def window(self) -> tuple[Pair, Pair]:
        return self.stride, self.padding

    @property
    def plans(self) -> tuple[Plan, Plan]:
        """Of forward and of the gradient of the input."""
        forward = forward_plan(self.x, self.kernel, self.y, *self.window)
        return forward, input_gradient_plan(self.y, self.kernel, self.x, *self.window)


class Cut(NamedTuple):
    """Constants that decide what a convolution is cut into; those of `convolution_plan`."""

    TILE_BYTES: int = convolution_plan.TILE_BYTES
    PIECES: int = convolution_plan.PIECES
    WEIGHT_BYTES: int = convolution_plan.WEIGHT_BYTES
    CHUNK: int = convolution_plan.CHUNK
    SHARES: int = convolution_plan.SHARES
    SHARED_BYTES: int = convolution_plan.SHARED_BYTES
    SHARE_PIXELS: int = 1  # small as they are, they have several shares


CUTS = {
    "usual": Cut(SHARE_PIXELS=convolution_plan.SHARE_PIXELS),
    "lines": Cut(TILE_BYTES=1, PIECES=1, CHUNK=5),
    "few lines": Cut(TILE_BYTES=3 << 10, PIECES=1, CHUNK=7),
    "images": Cut(PIECES=1),
    "all at once": Cut(TILE_BYTES=1 << 40, PIECES=1, WEIGHT_BYTES=1, SHARES=1),
    "splits": Cut(TILE_BYTES=1 << 40, PIECES=100, SHARED_BYTES=1),
    "many shares": Cut(TILE_BYTES=1, SHARES=5),
}


@contextlib.contextmanager
def cut_into(cut: Cut) -> Iterator[None]:
    """Inside, convolutions are cut so."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cut._asdict().items():
            patch.setattr(convolution_plan, name, value)
            if hasattr(convolution_winograd, name):
                patch.setattr(convolution_winograd, name, value)
        patch.setattr(convolution_winograd, "FEWEST_SHARES", min(cut.SHARES, convolution_winograd.FEWEST_SHARES))
        _forget_plans()
        yield
    _forget_plans()


def _forget_plans() -> None:
    for plan in (forward_plan, input_gradient_plan, weight_gradient_plan, convolution_winograd.cut_of):
        plan.cache_clear()
    convolution_winograd.shares_of.cache_clear()


class Surrounded(CpuBackend):
    """All memory that it takes is NaN, and between NaNs that must still be there at the end.

    Its pieces of work are done one by one, the last one first, with memory of their own; unless it `drains` what there
    is of tiles in one go, as a thread does.
    """

    def __init__(self, drains: bool = False) -> None:
        super().__init__(threads=1)
        self.drains = drains
        self.taken: list[tuple[Array, int]] = []
        self.workers.scratch = lambda name, size: self._take(size)  # type: ignore[method-assign]
        self.workers.run = self._run  # type: ignore[method-assign]

    def empty(self, shape: tuple[int, ...], dtype: Any = None) -> Array:
        assert dtype is None
        return self._take(int(np.prod(shape))).reshape(shape)

    def _run(
        self, function: Callable[..., None], count: int, grain: int, *args: Any, elements: int | None = None
    ) -> None:
        with np.errstate(**QUIET):
            for start in reversed(range(0, count, grain)):
                function(start, min(start + grain, count), *args)

    def _calls(self, plan: Plan, pieces: int, cut: Any) -> int:
        return 1 if self.drains else max(1, pieces)

    @contextlib.contextmanager
    def one_by_one(self) -> Iterator[None]:
        """Inside, each call of the loops over tiles does one of them."""
        windows, gradients = convolution_windows.multiply_windows, convolution_gradients.multiply_gradients

        def last_of(counter: Array, pieces: int) -> int:
            counter[0] += 1
            return pieces - int(counter[0])

        def one_window(counter: Array, pieces: int, *rest: Any) -> None:
            piece = last_of(counter, pieces)
            windows(np.array([piece], np.int64), piece + 1, *rest)

        def one_share(counter: Array, *rest: Any) -> None:
            piece = last_of(counter, len(rest[5]))
            gradients(np.array([piece], np.int64), *rest[:5], rest[5][: piece + 1], *rest[6:])

        with pytest.MonkeyPatch.context() as patch:
            if not self.drains:
                patch.setattr(convolution_windows, "multiply_windows", one_window)
                patch.setattr(convolution_gradients, "multiply_gradients", one_share)
            yield

    def _take(self, size: int) -> Array:
        memory = np.full(size + 2 * SPACE, np.nan, np.float32)
        self.taken.append((memory, size))
        return memory[SPACE : SPACE + size]

    def check(self) -> None:
        for memory, size in self.taken:
            assert np.isnan(memory[:SPACE]).all()
            assert np.isnan(memory[SPACE + size :]).all()


def _one_by_one(backend: CpuBackend) -> contextlib.AbstractContextManager[None]:
    return backend.one_by_one() if isinstance(backend, Surrounded) else contextlib.nullcontext()


def placed(values: Array) -> Array:
    """A float32 copy between NaNs, which begins off the vectors' grid."""
    memory = np.full(values.size + 2 * SPACE + 1, np.nan, np.float32)
    inside = memory[SPACE + 1 : SPACE + 1 + values.size].reshape(values.shape)
    inside[...] = values
    return inside


def intact(array: Array) -> None:
    """What `placed` has put around the array is there."""
    memory: Any = array
    while memory.base is not None:
        memory = memory.base
    assert np.isnan(memory[: SPACE + 1]).all()
    assert np.isnan(memory[SPACE + 1 + array.size :]).all()


def whole(rng: np.random.Generator, *shape: int) -> Array:
    return placed(rng.integers(-3, 4, shape))


def ordinary(rng: np.random.Generator, *shape: int) -> Array:
    return placed(rng.standard_normal(shape))


class Arrays(NamedTuple):
    """What the operations read."""

    x: Array
    w: Array
    bias: Array
    dy: Array
    before: Normalization
    pending: PendingGradient


def arrays(case: Case, rng: np.random.Generator, kind: Any = whole, relu: bool = True) -> Arrays:
    """Of `whole` numbers everything that is worked out of them is whole, too."""
    x, w, bias, dy = (kind(rng, *shape) for shape in (case.x, case.w, (case.c_out,), case.y))
    if kind is whole:
        w[...] = np.sign(w)  # so that sums in a chain stay below 2^24

    def normalization(channels: int) -> Normalization:
        inv_std = placed(rng.choice([0.5, 1, 2] if kind is not whole else [1, 2], channels))
        shift, beta = kind(rng, channels), kind(rng, channels)
        delta = placed(rng.integers(-1, 2, channels) if kind is whole else 1e-3 * rng.standard_normal(channels))
        statistics = BatchStatistics(shift, delta, inv_std**-2, inv_std)
        return Normalization(statistics, placed(rng.choice([-1, 1], channels)), beta, relu)

    mean_g, slope = (placed(rng.integers(-1, 2, case.c_out)) for _ in range(2))
    sums = GradientSums(None, None, mean_g, slope)
    pending = PendingGradient(dy, kind(rng, *case.y), normalization(case.c_out), sums)
    return Arrays(x, w, bias, dy, normalization(case.x[3]), pending)


def plain(backend: CpuBackend, case: Case, given: Arrays) -> Answers:
    """The answers of the plain operations."""
    names = {"y": case.y, "y without bias": case.y, "dx": case.x, "dw": case.w, "db": (case.c_out,)}
    found = {name: placed(np.full(shape, np.nan)) for name, shape in names.items()}
    with _one_by_one(backend):
        backend.conv2d_forward(given.x, given.w, given.bias, found["y"], *case.window)
        backend.conv2d_forward(given.x, given.w, None, found["y without bias"], *case.window)
        backend.conv2d_backward_input(given.dy, given.w, found["dx"], *case.window)
        backend.conv2d_backward_weight(given.x, given.dy, found["dw"], *case.window)
        backend.bias_backward(given.dy, found["db"])
    return _checked(backend, found)


def plain_references(case: Case, given: Arrays) -> Answers:
    x, w, bias, dy = (np.array(array, np.float64) for array in given[:4])
    return {
        "y": conv2d_forward_reference(x, w, bias, *case.window),
        "y without bias": conv2d_forward_reference(x, w, None, *case.window),
        "dx": conv2d_backward_input_reference(dy, w, case.x, *case.window),
        "dw": conv2d_backward_weight_reference(x, dy, case.w, *case.window),
        "db": bias_backward_reference(dy),
    }


def chained(backend: CpuBackend, case: Case, given: Arrays, first: bool = False) -> Answers:
    """The answers of the operations in a chain; of its `first` convolution, which has nothing before it."""
    x, w, before = given.x, given.w, None if first else given.before
    shapes = {"y": case.y, "dx": case.x, "dw": case.w}
    found = {name: placed(np.full(shape, np.nan)) for name, shape in shapes.items()}
    statistics, sums = (tuple(placed(np.full(c, np.nan)) for _ in range(4)) for c in (case.c_out, case.x[3]))
    out = BatchStatistics(*statistics) if case.x[0] else None
    chain = (None, None, None) if first else (x, before, GradientSums(*sums))
    with _one_by_one(backend):
        backend.conv2d_normalized_forward(x, before, w, found["y"], *case.window, EPS, out)
        backend.conv2d_normalized_backward_weight(x, before, given.pending, found["dw"], *case.window)
        backend.conv2d_normalized_backward_input(given.pending, w, found["dx"], *case.window, *chain)
    if out is not None:
        found |= dict(zip(BatchStatistics._fields, statistics, strict=True))
    if not first:
        found |= dict(zip(GradientSums._fields, sums, strict=True))
    return _checked(backend, found)


def chained_references(case: Case, given: Arrays, first: bool = False) -> Answers:
    """`mean` in the place of shift and delta."""
    x, w, before, pending = _in_float64((given.x, given.w, None if first else given.before, given.pending))
    y = conv2d_normalized_forward_reference(x, before, w, *case.window)
    chain = (None, None) if first else (x, before)
    dx, sums = conv2d_normalized_backward_input_reference(pending, w, case.x, *case.window, *chain)
    found = {"y": y, "dx": dx}
    found["dw"] = conv2d_normalized_backward_weight_reference(x, before, pending, case.w, *case.window)
    if case.x[0]:
        rows = y.reshape(-1, case.c_out)
        found |= {"mean": rows.mean(axis=0), "var": rows.var(axis=0)}
    return found | ({} if sums is None else sums._asdict())


def _in_float64(value: Any) -> Any:
    if isinstance(value, tuple):
        parts = map(_in_float64, value)
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return np.array(value, np.float64) if isinstance(value, np.ndarray) else value


def _checked(backend: CpuBackend, found: Answers) -> Answers:
    for array in found.values():
        intact(array)
    if isinstance(backend, Surrounded):
        backend.check()
    return found
