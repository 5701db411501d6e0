"""From the sums of chunks to those of all of them, in float64, and on to what belongs to channels.

What batchnorm_loops.py does, in the same order; here by vectors of channels.
"""

from typing import Any

from llvmlite import ir

from minidl.backends.cpu.batchnorm_stage import DOUBLES, F64, Stage, finite
from minidl.backends.cpu.machine_code import LANES, VECTOR, ZERO, number, spread

_NORMALIZATION = "shift", "delta", None, "beta"
SHARE = 1 / 16  # of a channel's squares, that a chunk may make up without being summed again


def _moved(f: Stage, k: Any, i: Any, mean: Any, mask: Any) -> Any:
    """What chunk k adds to the sum of (x - mean)²: with D = its shift - mean, squares + D (2 sums + n D)."""
    b = f.b
    sums, squares, shift = (f.doubles("found", b.add(f.of_chunk(j, k), i), mask) for j in range(3))
    distance = b.fsub(shift, mean)
    twice = b.fmul(ir.Constant(DOUBLES, [2.0] * LANES), sums)
    inner = b.fadd(twice, b.fmul(f.all_doubles(f.rows_of_chunk(k)), distance))
    return b.fadd(squares, b.fmul(distance, inner))


def finish_statistics(module: ir.Module, name: str) -> ir.Function:
    """All chunks' sums, moved from their shifts to the mean of all; then the rows of `parameters`."""
    f = Stage(module, name)
    b, chunks, rows = f.b, f.given["chunks"], f.all_doubles(f.given["rows"])
    moments = b.alloca(DOUBLES)
    zeros = ir.Constant(DOUBLES, [0.0] * LANES)
    of_chunks = b.fdiv(ir.Constant(F64, 4.0), b.sitofp(chunks, F64))
    least = ir.Constant(F64, SHARE)
    share = spread(b, b.select(b.fcmp_ordered(">", of_chunks, least), of_chunks, least))
    eps = spread(b, b.load(f.slot("eps", F64)))
    root = ir.Function(module, ir.FunctionType(DOUBLES, [DOUBLES]), f"llvm.sqrt.v{LANES}f64")

    def vector(i: Any, mask: Any) -> None:
        def first(k: Any, found: list[Any]) -> list[Any]:
            mean, total, largest = found
            sums, shift = (f.doubles("found", b.add(f.of_chunk(j, k), i), mask) for j in (0, 2))
            squares = f.load("found", b.add(f.of_chunk(1, k), i), mask).value
            here = b.fadd(b.fmul(shift, f.all_doubles(f.rows_of_chunk(k))), sums)
            larger = b.select(b.fcmp_ordered(">", squares, largest), squares, largest)
            return [b.fadd(mean, here), b.fadd(total, squares), larger]

        mean, total, largest = f.fold(number(0), chunks, number(1), [zeros, ZERO, ZERO], first)
        mean = b.fdiv(mean, rows)

        def second(k: Any, moment: list[Any]) -> list[Any]:
            return [b.fadd(moment[0], _moved(f, k, i, mean, mask))]

        b.store(f.fold(number(0), chunks, number(1), [zeros], second)[0], moments)
        most = b.fmul(share, b.fpext(total, DOUBLES))
        again = b.fcmp_ordered(">", b.fpext(largest, DOUBLES), most)
        bits = ir.IntType(LANES)
        with b.if_then(b.icmp_unsigned("!=", b.bitcast(again, bits), ir.Constant(bits, 0)), likely=False):
            f.loop(number(0), number(LANES), number(1), lambda lane: _sum_again(f, i, lane, again, mean, most, moments))
        shift = finite(b, b.fptrunc(mean, VECTOR))
        var = b.fdiv(b.load(moments), rows)
        var = b.select(b.fcmp_ordered("<", var, zeros), zeros, var)  # rounding could leave less; NaN must pass
        inv_std = b.fdiv(ir.Constant(DOUBLES, [1.0] * LANES), b.call(root, [b.fadd(var, eps)]))
        delta = b.fsub(mean, b.fpext(shift, DOUBLES))
        for array, value in (("shift", shift), ("delta", delta), ("var", var), ("inv_std", inv_std)):
            f.put(array, i, value, mask)

    f.channels(vector)
    _fill_parameters(f, _NORMALIZATION)
    b.ret_void()
    return f.function


def _sum_again(f: Stage, i: Any, lane: Any, again: Any, mean: Any, most: Any, moments: Any) -> None:
    """The moment of one channel, where `again`: of chunks whose squares are more than `most`, from their rows."""
    b, channels, c = f.b, f.given["channels"], f.b.add(i, lane)
    place = b.gep(b.bitcast(moments, F64.as_pointer()), [lane])
    mean_here, most_here = (b.extract_element(value, lane) for value in (mean, most))

    def one(array: str, index: Any) -> Any:
        return b.fpext(b.load(f.at(array, index)), F64)

    def add(value: Any) -> None:
        b.store(b.fadd(b.load(place), value), place)

    def row(r: Any) -> None:
        far = b.fsub(one("x", b.add(b.mul(r, channels), c)), mean_here)
        add(b.fmul(far, far))

    def chunk(k: Any) -> None:
        sums, squares, shift = (one("found", b.add(f.of_chunk(j, k), c)) for j in range(3))
        begin, rows = b.mul(k, f.given["chunk"]), f.rows_of_chunk(k)
        with b.if_else(b.fcmp_ordered(">", squares, most_here)) as (large, usual):
            with large:
                f.loop(begin, b.add(begin, rows), number(1), row)
            with usual:
                distance = b.fsub(shift, mean_here)
                inner = b.fadd(b.fmul(ir.Constant(F64, 2.0), sums), b.fmul(b.sitofp(rows, F64), distance))
                add(b.fadd(squares, b.fmul(distance, inner)))

    with b.if_then(b.extract_element(again, lane)):
        b.store(ir.Constant(F64, 0.0), place)
        f.loop(number(0), f.given["chunks"], number(1), chunk)


def _fill_parameters(f: Stage, rows: tuple[str | None, ...], first: int = 0) -> None:
    """Rows from the first on, from these arrays; the one without a name is inv_std * gamma."""

    def vector(i: Any, at: Any, mask: Any) -> None:
        for row, array in enumerate(rows, first):
            value = f.load("inv_std", i, mask) * f.load("gamma", i, mask) if array is None else f.load(array, i, mask)
            f.store("parameters", f.b.add(f.b.mul(number(row), f.given["width"]), at), value, mask)

    f.repeated(vector)


def prepare_gradients(module: ir.Module, name: str) -> ir.Function:
    """What the sums of gradients read in `parameters`."""
    f = Stage(module, name)
    _fill_parameters(f, _NORMALIZATION)
    f.b.ret_void()
    return f.function


def finish_gradients(module: ir.Module, name: str) -> ir.Function:
    """Dgamma = sum g * x̂, dbeta = sum g; mean_g and slope are what is subtracted on the way back."""
    f = Stage(module, name)
    b, rows = f.b, f.all_doubles(f.given["rows"])
    zeros = ir.Constant(DOUBLES, [0.0] * LANES)

    def vector(i: Any, mask: Any) -> None:
        def chunk(k: Any, before: list[Any]) -> list[Any]:
            return [b.fadd(before[j], f.doubles("found", b.add(f.of_chunk(j, k), i), mask)) for j in (0, 1)]

        total, product = f.fold(number(0), f.given["chunks"], number(1), [zeros, zeros], chunk)
        inv_std = f.doubles("inv_std", i, mask)
        product = b.fmul(product, inv_std)
        slope = b.fmul(b.fdiv(product, rows), inv_std)
        for array, value in (
            *(("dbeta", total), ("dgamma", product)),
            *(("mean_g", b.fdiv(total, rows)), ("slope", slope)),
        ):
            f.put(array, i, value, mask)

    f.channels(vector)
    _fill_parameters(f, ("mean_g", "slope"), 4)
    b.ret_void()
    return f.function
