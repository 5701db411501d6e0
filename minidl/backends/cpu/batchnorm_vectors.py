"""Batch normalization of float32 arrays from end to end, in machine code.

All that a call works on stands in its frame of FRAME 64-bit slots: numbers, and addresses of contiguous arrays. `work`
goes through it: chunks of rows are summed, then all chunks, then every number is normalized, or taken back through
that. Any number of threads may call it with the same frame at once: each takes pieces until there are none left, and
who ends the last chunk goes on to all chunks while the others wait. A thread that comes late finds nothing to do.
Pieces follow from the shape alone, and so do the bits.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from minidl.backends.cpu.batchnorm_finish import finish_gradients, finish_statistics, prepare_gradients
from minidl.backends.cpu.batchnorm_stage import Stage, finite
from minidl.backends.cpu.machine_code import FLOAT, LANES, VECTOR, ZERO, built, number, once, spread

HEAD = 8  # rows that a chunk's shift is the mean of
_NARROW = 256  # numbers of a row of sums that are repeated


def _sum_chunks(module: ir.Module, name: str, shifted: bool) -> ir.Function:
    """Chunks first to last of `found`: two sums of each, and the shift that they are about."""
    f = Stage(module, name)
    b, channels, width = f.b, f.given["channels"], f.given["width"]
    for buffer, size in (("both", 2 * _NARROW), ("near", _NARROW)):
        f.given[buffer] = b.alloca(FLOAT, number(size))
    wide = b.icmp_signed("==", width, channels)  # nothing is repeated, so that sums need not be folded

    def chunk(k: Any) -> None:
        rows = f.rows_of_chunk(k)
        begin = b.mul(b.mul(k, f.given["chunk"]), channels)
        shift = f.at("found", f.of_chunk(2, k))
        if shifted:
            _find_shift(f, k, begin, rows)
            with b.if_then(b.not_(wide)):
                f.repeated(lambda i, at, m: f.store("near", at, f.load("found", b.add(f.of_chunk(2, k), i), m), m))
        parameters = b.select(wide, shift, f.given["near"]) if shifted else f.given["parameters"]
        z = b.select(wide, f.at("found", f.of_chunk(0, k)), f.given["both"])
        places = (f.at(array, begin) for array in ("x", "dy", "c"))
        with b.if_then(b.icmp_signed("!=", f.given["scattered"], number(0))):
            for array in ("x",) if shifted else ("x", "dy"):
                f.fetch(array, begin, b.mul(rows, channels))
        f.run_pass(f.given["sum"], b.mul(rows, channels), width, *places, parameters, f.at("g", begin), z)

        def fold(j: int, i: Any, mask: Any) -> None:
            def add(begin: Any, total: list[Any]) -> list[Any]:
                return [b.fadd(total[0], f.load("both", f.sum_up(begin, i, b.mul(number(j), width)), mask).value)]

            f.put("found", b.add(f.of_chunk(j, k), i), f.fold(number(0), width, channels, [ZERO], add)[0], mask)

        with b.if_then(b.not_(wide)):
            for j in (0, 1):
                f.channels(lambda i, mask, j=j: fold(j, i, mask))  # type: ignore[misc]

    f.loop(f.given["first"], f.given["last"], number(1), chunk)
    b.ret_void()
    return f.function


def _find_shift(f: Stage, k: Any, begin: Any, rows: Any) -> None:
    """The mean of the first HEAD elements, which is theirs exactly if they are equal; 0 where that is not finite."""
    b, channels = f.b, f.given["channels"]
    count = f.least(number(HEAD), rows)
    share = b.fdiv(ir.Constant(VECTOR, [1.0] * LANES), spread(b, b.sitofp(count, FLOAT)))

    def vector(i: Any, mask: Any) -> None:
        origin = f.load("x", b.add(begin, i), mask).value

        def row(r: Any, total: list[Any]) -> list[Any]:
            value = f.load("x", f.sum_up(begin, i, b.mul(r, channels)), mask).value
            return [b.fadd(total[0], b.fsub(value, origin))]

        total = f.fold(number(1), count, number(1), [ZERO], row)[0]
        f.put("found", b.add(f.of_chunk(2, k), i), finite(b, b.fadd(origin, b.fmul(total, share))), mask)

    f.channels(vector)


def _define_work(module: ir.Module, name: str, forward: bool) -> None:
    """Add one of the functions `work`; see the top of this file."""
    sum_chunks = _sum_chunks(module, f"{name}_chunks", forward)
    prepare = None if forward else prepare_gradients(module, f"{name}_prepare")
    finish = (finish_statistics if forward else finish_gradients)(module, f"{name}_finish")
    f = Stage(module, name)
    b, given = f.b, f.given

    vector = number(4 * LANES - 1)
    aligned = b.icmp_signed("==", b.and_(f.number_in("y"), vector), number(0))
    usable = b.and_(aligned, b.icmp_signed("!=", given["around"], number(0)))
    pieces = b.sdiv(b.sub(b.add(given["count"], given["piece"]), number(1)), given["piece"])
    apply = b.select(usable, given["around"], given["apply"])

    def take(counter: str, together: Any, end: Any, body: Callable[[Any], None]) -> None:
        """Body(first) of each piece that no other thread has taken."""
        head, inside, after = (f.function.append_basic_block(part) for part in ("take", "taken", "none"))
        b.branch(head)
        b.position_at_end(head)
        first = b.atomic_rmw("add", f.slot(counter), together, "acq_rel")
        b.cbranch(b.icmp_signed("<", first, end), inside, after)
        b.position_at_end(inside)
        body(first)
        b.branch(head)
        b.position_at_end(after)

    def chunks(first: Any) -> None:
        last = f.least(b.add(first, given["chunks_together"]), given["chunks"])
        b.call(sum_chunks, [first, last, given["frame"]])
        many = b.sub(last, first)
        done = b.add(b.atomic_rmw("add", f.slot("done"), many, "acq_rel"), many)
        with b.if_then(b.icmp_signed("==", done, given["chunks"])):
            b.call(finish, [number(0), number(0), given["frame"]])
            b.store_atomic(number(1), f.slot("ready"), "release", 8)

    def piece(first: Any) -> None:
        """From the end on: what was read last is still in the cache."""
        begin = b.mul(b.sub(b.sub(pieces, number(1)), first), given["piece"])
        places = (f.at(array, begin) for array in ("x", "dy", "c"))
        many = f.least(given["piece"], b.sub(given["count"], begin))
        with b.if_then(b.icmp_signed("!=", given["scattered_after"], number(0))):
            for array in ("x",) if forward else ("x", "dy"):
                f.fetch(array, begin, many)
        f.run_pass(apply, many, given["width"], *places, given["parameters"], f.at("y", begin), given["found"])

    def begin(_: Any) -> None:
        b.call(prepare, [number(0), number(0), given["frame"]])
        b.store_atomic(number(1), f.slot("begun_ready"), "release", 8)

    if prepare is not None:
        take("begun", number(1), number(1), begin)
        _wait(f, "begun_ready")
    take("taken", given["chunks_together"], given["chunks"], chunks)
    _wait(f, "ready")
    take("taken_after", number(1), pieces, piece)
    b.ret_void()


def _wait(f: Stage, flag: str) -> None:
    """Until the thread that sets it, there is one, has done so."""
    b = f.b
    head, inside, after = (f.function.append_basic_block(part) for part in ("wait", "waiting", "ready"))
    b.branch(head)
    b.position_at_end(head)
    ready = b.load_atomic(f.slot(flag), "acquire", 8)
    b.cbranch(b.icmp_signed("!=", ready, number(0)), after, inside)
    b.position_at_end(inside)
    with b.if_then(b.icmp_signed("!=", f.given["give_way"], number(0))):
        b.call(b.inttoptr(f.given["give_way"], ir.FunctionType(ir.IntType(32), []).as_pointer()), [])
    b.branch(head)
    b.position_at_end(after)


@built(("forward", "backward"))
def _addresses() -> ir.Module:
    module = ir.Module("minidl.batchnorm")
    for name in ("forward", "backward"):
        _define_work(module, name, name == "forward")
    return module


def work_address(forward: bool) -> int:
    """Of what goes through a whole normalization, or back through it; built at the first call."""
    return _both()[0 if forward else 1]


@once
def _both() -> list[int]:
    return _addresses()
