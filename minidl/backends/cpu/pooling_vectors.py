"""A line of max pooling windows of what a normalization makes of an image, forward and backward, vector by vector.

A window's elements are normalized as they are read, by the expressions of passes.py: so an activation, and the gradient
that its ReLU lets through, have the bits that those passes give, and neither is read from memory. Windows of 2x2 that
do not overlap, the usual ones, have functions without loops over a window's elements.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from minidl.backends.cpu.machine_code import I64, LANES, POINTER, VECTOR, ZERO, built, caller, number, once, spread
from minidl.backends.cpu.passes import BETA, DELTA, MASK_AND_SUM, NORMALIZE, NORMALIZE_RELU, PASSES, SCALE, SHIFT
from minidl.backends.cpu.passes import SUM_GRADIENTS as WITHOUT_RELU
from minidl.backends.cpu.vectors import Function, Numbers, Value

_I32 = ir.IntType(32)
_PLACES = ir.VectorType(_I32, LANES)
_ROWS = SHIFT, DELTA, SCALE, BETA

_MAXIMUM = {
    **dict.fromkeys(("windows", "channels", "rows", "columns"), I64),
    **dict.fromkeys(("x_row", "x_column", "x_window"), I64),
    **dict.fromkeys(("place", "place_row", "place_column", "place_window", "width"), I64),
    **dict.fromkeys(("x", "parameters", "y", "index"), POINTER),
}
_GRADIENT = {
    **dict.fromkeys(("windows", "channels", "columns", "step", "rest", "place", "width"), I64),
    **dict.fromkeys(("dy", "index", "x", "parameters", "dx", "sums"), POINTER),
}
_MAXIMUM_TYPE = ir.FunctionType(ir.VoidType(), list(_MAXIMUM.values()))
_GRADIENT_TYPE = ir.FunctionType(ir.VoidType(), list(_GRADIENT.values()))
(LINE, LINE_RELU, LINE_2X2, LINE_2X2_RELU, GRADIENT, GRADIENT_RELU, GRADIENT_TWOS, GRADIENT_TWOS_RELU) = range(8)


class _Channels(Function):
    """A function whose vectors are of channels."""

    def across(self, body: Callable[[list[Any], Any], None]) -> None:
        """Body(channels, mask) of all vectors: four, two or one of them, each by the channel that it begins with.

        Of a gradient's lines four at once are read to their end, so that memory is gone through in longer pieces.
        """
        b, begin, channels = self.b, number(0), self.given["channels"]
        for vectors in (4, 2, 1):
            end = b.and_(channels, number(-LANES * vectors))

            def some(i: Any, vectors: int = vectors) -> None:
                body([b.add(i, number(v * LANES)) for v in range(vectors)], None)

            self.loop(begin, end, number(LANES * vectors), some)
            begin = end
        self.loop(begin, channels, number(LANES), lambda i: body([i], self.mask(b.sub(channels, i))))

    def parameters(self, channel: Any, mask: Any) -> Callable[[int], Value]:
        """Those of a vector's channels, loaded here."""
        found = {
            row: self.load("parameters", self.b.add(self.b.mul(number(row), self.given["width"]), channel), mask)
            for row in _ROWS
        }
        return lambda row: found[row]

    def places(self, place: Any) -> Any:
        """The number, as int32, in all lanes."""
        return spread(self.b, self.b.trunc(place, _I32))


def _define_maximum(module: ir.Module, name: str, activation: int, is_2x2: bool) -> None:
    """Y and index of `windows` windows side by side, of `rows` x `columns` elements each.

    x begins with the first one's first element, which is at `place` of the image. From an element to that below it are
    `x_row` numbers, and `place_row` places, and so on. `index` is of int32.
    """
    f = _Channels(module, name, _MAXIMUM_TYPE, list(_MAXIMUM))
    b, given = f.b, f.given
    rows, columns = (number(2), number(2)) if is_2x2 else (given["rows"], given["columns"])

    def window(j: Any) -> None:
        origin, first = b.mul(j, given["x_window"]), b.add(given["place"], b.mul(j, given["place_window"]))
        target = b.mul(j, given["channels"])

        def element(r: Any, s: Any) -> tuple[Any, Any]:
            at = b.add(b.mul(r, given["x_row"]), b.mul(s, given["x_column"]))
            place = b.add(b.mul(r, given["place_row"]), b.mul(s, given["place_column"]))
            return b.add(origin, at), f.places(b.add(first, place))

        taps = [element(number(r), number(s)) for r in (0, 1) for s in (0, 1)] if is_2x2 else []

        def cells(channels: list[Any], mask: Any) -> None:
            parameters = [f.parameters(channel, mask) for channel in channels]
            nothing = Value(b, ZERO)

            def value(at: Any, v: int) -> Any:
                x = f.load("x", b.add(at, channels[v]), mask)
                result, _ = PASSES[activation].expression(Numbers(x, nothing, nothing, parameters[v]))
                assert result is not None
                return result.value

            def better(tap: tuple[Any, Any], best: list[Any]) -> list[Any]:
                """Best: of each vector the largest element so far and its place. NaN wins, as in PyTorch."""
                at, here = tap
                found = []
                for v in range(len(channels)):
                    most, where = best[2 * v : 2 * v + 2]
                    new = value(at, v)
                    wins = b.or_(b.fcmp_ordered(">", new, most), b.fcmp_unordered("uno", new, new))
                    found += [b.select(wins, new, most), b.select(wins, here, where)]
                return found

            at, here = taps[0] if is_2x2 else element(number(0), number(0))
            best = [part for v in range(len(channels)) for part in (value(at, v), here)]
            if is_2x2:
                for tap in taps[1:]:
                    best = better(tap, best)
            else:

                def row(r: Any, best: list[Any]) -> list[Any]:
                    return f.fold(number(0), columns, number(1), best, lambda s, found: better(element(r, s), found))

                best = f.fold(number(0), rows, number(1), best, row)
            for v, channel in enumerate(channels):
                f.store("y", b.add(target, channel), Value(b, best[2 * v]), mask)
                f.store("index", b.add(target, channel), Value(b, b.bitcast(best[2 * v + 1], VECTOR)), mask)

        f.across(cells)

    f.loop(number(0), given["windows"], number(1), window)
    b.ret_void()


def _define_gradient(module: ir.Module, name: str, gradient: int, by_twos: bool) -> None:
    """A line of dx, whose windows do not overlap, with its share of the gradient's sums, which are added to `sums`.

    Windows are of `columns` elements in the line and `step` apart (of two and two apart where `by_twos`); behind the
    last one's come `rest` more, which are in none. x and dx begin with the line, which is at `place` of the image.
    `index` is of int32.
    """
    f = _Channels(module, name, _GRADIENT_TYPE, list(_GRADIENT))
    b, given = f.b, f.given
    step, columns = (number(2), number(2)) if by_twos else (given["step"], given["columns"])
    last = b.sub(given["windows"], number(1))
    covered = b.add(b.mul(last, step), columns)
    covered = b.select(b.icmp_signed("<", last, number(0)), number(0), covered)
    end = b.add(covered, given["rest"])

    def vectors(channels: list[Any], mask: Any) -> None:
        parameters = [f.parameters(channel, mask) for channel in channels]
        kept = [b.add(b.mul(number(which), given["channels"]), channel) for channel in channels for which in (0, 1)]

        def element(column: Any, sums: list[Any], found: list[tuple[Any, Any]] | None) -> list[Any]:
            """Sums, with that element's; `found` are dy and place of each vector, None outside of windows."""
            here = None if found is None else f.places(b.add(given["place"], column))
            after = []
            for v, channel in enumerate(channels):
                at = b.add(b.mul(column, given["channels"]), channel)
                g = ZERO
                if found is not None:
                    dy, place = found[v]
                    g = b.select(b.icmp_signed("==", place, here), dy, ZERO)
                numbers = Numbers(f.load("x", at, mask), Value(b, g), Value(b, ZERO), parameters[v])
                masked, terms = PASSES[gradient].expression(numbers)
                f.store("dx", at, Value(b, g) if masked is None else masked, mask)
                after += [b.fadd(sums[2 * v + i], term.value) for i, term in enumerate(terms)]
            return after

        def window(j: Any, sums: list[Any]) -> list[Any]:
            begin, source, found = b.mul(j, step), b.mul(j, given["channels"]), []
            for channel in channels:
                at = b.add(source, channel)
                place = b.bitcast(f.load("index", at, mask).value, _PLACES)
                found.append((f.load("dy", at, mask).value, place))
            if by_twos:
                return element(b.add(begin, number(1)), element(begin, sums, found), found)
            inside = b.add(begin, columns)
            sums = f.fold(begin, inside, number(1), sums, lambda s, values: element(s, values, found))
            following = b.select(b.icmp_signed("<", j, last), b.add(begin, step), inside)
            return f.fold(inside, following, number(1), sums, lambda s, values: element(s, values, None))

        sums = [f.load("sums", place, mask).value for place in kept]
        sums = f.fold(number(0), given["windows"], number(1), sums, window)
        sums = f.fold(covered, end, number(1), sums, lambda s, values: element(s, values, None))
        for place, total in zip(kept, sums, strict=True):
            f.store("sums", place, Value(b, total), mask)

    f.across(vectors)
    b.ret_void()


_FUNCTIONS = {
    f"{what}{'_usual' * usual}{'_relu' * relu}": (define, which, usual)
    for define, what, passes in (
        (_define_maximum, "maximum", (NORMALIZE, NORMALIZE_RELU)),
        (_define_gradient, "gradient", (WITHOUT_RELU, MASK_AND_SUM)),
    )
    for usual in (False, True)
    for relu, which in enumerate(passes)
}


@built(list(_FUNCTIONS))
def _addresses() -> ir.Module:
    module = ir.Module("minidl.pooling")
    for name, (define, which, usual) in _FUNCTIONS.items():
        define(module, name, which, usual)
    return module


@once
def line_table() -> np.ndarray:
    """Addresses of the functions, by their numbers; built at the first call."""
    return np.array(_addresses(), np.int64)


@intrinsic
def call_maximum(
    typing: Any,
    address: Any,
    windows: Any,
    channels: Any,
    rows: Any,
    columns: Any,
    x_row: Any,
    x_column: Any,
    x_window: Any,
    place: Any,
    place_row: Any,
    place_column: Any,
    place_window: Any,
    width: Any,
    x: Any,
    x_start: Any,
    parameters: Any,
    parameters_start: Any,
    y: Any,
    y_start: Any,
    index: Any,
    index_start: Any,
) -> Any:
    """Call LINE and so on from a kernel; arrays are contiguous float32, each with the element to begin with."""
    n = types.intp
    arrays = x, n, parameters, n, y, n, index, n
    return types.void(n, *[n] * 12, *arrays), caller(_MAXIMUM_TYPE)


@intrinsic
def call_gradient(
    typing: Any,
    address: Any,
    windows: Any,
    channels: Any,
    columns: Any,
    step: Any,
    rest: Any,
    place: Any,
    width: Any,
    dy: Any,
    dy_start: Any,
    index: Any,
    index_start: Any,
    x: Any,
    x_start: Any,
    parameters: Any,
    parameters_start: Any,
    dx: Any,
    dx_start: Any,
    sums: Any,
    sums_start: Any,
) -> Any:
    """Call GRADIENT and so on from a kernel, likewise."""
    n = types.intp
    arrays = dy, n, index, n, x, n, parameters, n, dx, n, sums, n
    return types.void(n, *[n] * 7, *arrays), caller(_GRADIENT_TYPE)
