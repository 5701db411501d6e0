"""Twins of wgmma: products of a warpgroup that are under way until they are waited for.

A product reads shared memory where its descriptors say, with their offsets and their swizzle, so a wrong one gives
wrong numbers or a fault. It is computed when it is issued, by the model of the hardware in tensor.py: products of 8
terms and a sum, cut off. What the hardware may do at any time until the wait is checked until the wait:

    sums        are not there: reading them is an UninitialisedRead, writing to them a DataRace
    factors     may not be overwritten: a DataRace; by others, not before a barrier after the wait
    fences      of the registers before the first product, of what ordinary stores wrote to shared memory: MissingFence

Which thread of the warpgroup reads what is not known of the hardware. Here each reads 16 bytes at a time, eight threads
a core matrix of 8 lines: it is what finds races, and counts bank conflicts if the swizzle is not that of the lines.

Sources  as of kernels/wgmma.py and tensor.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels import wgmma
from kernels.emulator.context import WARP, Context
from kernels.emulator.faults import DataRace, DivergentBarrier, MissingFence, UninitialisedRead
from kernels.emulator.lanes import Partial
from kernels.emulator.tensor import dot_add
from kernels.intrinsics import TWINS

Array = NDArray[Any]
GROUP, ROWS, STEPS = wgmma.GROUP, wgmma.ROWS, wgmma.STEPS
FLIPPED = {0: 0, 1: 7, 2: 3, 3: 1}  # by the swizzle mode: how many of an address' bits 7 to 9 flip bits 4 to 6
PITCH = {0: 16, 1: 128, 2: 64, 3: 32}  # bytes from a line to the next


class InFlight(Partial):
    """A sum that a product under way will change."""

    why = "is read while a product under way changes it: wait for it by WGMMA_RESULTS first"

    def __init__(self, values: Array) -> None:
        super().__init__(values, np.zeros(len(values), np.bool_))

    def narrowed(self, position: Array) -> Any:
        """At some of its lanes."""
        return InFlight(self.values.take(position))


@dataclass
class _Product:
    """What one instruction reads."""

    tokens: list[tuple[Any, Array]]  # with the lanes of each
    lanes: Array
    group: Array  # of each lane: how many groups it had committed before
    done: Array  # of each lane


@dataclass
class _Products:
    """Those of a batch of blocks that are under way; by lane where nothing else is said."""

    pending: list[_Product] = field(default_factory=list)
    committed: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    complete: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    fenced: Array = field(default_factory=lambda: np.zeros(0, np.bool_))
    flying: dict[Any, Array] = field(default_factory=dict)  # by array of sums

    def reach(self, lanes: Array) -> None:
        """Have room for these lanes."""
        missing = int(lanes[-1]) + 1 - len(self.committed)
        if missing > 0:
            self.committed, self.complete, self.fenced = (
                np.pad(one, (0, missing)) for one in (self.committed, self.complete, self.fenced)
            )
            self.flying = {key: np.pad(one, (0, missing)) for key, one in self.flying.items()}

    def flies(self, sums: Any) -> Array:
        """Of each lane whether these sums are in flight."""
        return self.flying.setdefault(sums, np.zeros(len(self.committed), np.bool_))


def _state(context: Context, what: str) -> _Products:
    """The state, for whole warpgroups."""
    lanes, products = context.lanes, context.state("wgmma", _Products)
    context.warps(np.uint32(0))
    groups = lanes[: len(lanes) // GROUP * GROUP].reshape(-1, GROUP)
    whole = context.threads % GROUP == 0 and len(lanes) % GROUP == 0
    if not whole or np.any(groups[:, 0] % GROUP) or np.any(groups[:, -1] - groups[:, 0] != GROUP - 1):
        context.fault(DivergentBarrier, f"{what} is not reached by all four warps of a warpgroup")
    products.reach(lanes)
    return products


def _place(context: Context, descriptor: Array, line: Array, chunk: Array) -> Array:
    """The address of a line's 16-byte chunk."""
    number = np.asarray(descriptor, np.uint64)

    def bits(first: int, count: int) -> Array:
        return (number >> np.uint64(first) & np.uint64((1 << count) - 1)).astype(np.int64)

    start, leading, stride = 16 * bits(0, 14), 16 * bits(16, 14), 16 * bits(32, 14)
    modes = np.unique(bits(62, 2))
    if len(modes) > 1 or np.any(bits(49, 3)):
        context.refuse("descriptors of several swizzles in one instruction, or with a base offset")
    mode = int(modes[0])
    along = chunk * (leading if mode == 0 else 16)
    address = start + line // 8 * stride + line % 8 * PITCH[mode] + along
    return address ^ (address >> 7 & FLIPPED[mode]) << 4


def _lines(
    context: Context, descriptor: Any, count: int, places: Callable[[Array], tuple[Array, Array]]
) -> tuple[Array, list[tuple[Any, Array]]]:
    """A factor (warpgroups, count, STEPS) as its thread t reads it: chunks places(t), places(t + GROUP), ...

    Returns it and the tokens of the reads.
    """
    vector = np.ascontiguousarray(context.vector(descriptor)).reshape(-1, GROUP)
    if np.any(vector != vector[:, :1]):
        context.refuse("a descriptor that differs within a warpgroup")
    bits, tokens = np.zeros((len(vector), count, 2, 4), np.uint32), []
    for first in range(0, 2 * count, GROUP):
        number = first + np.arange(GROUP)
        here = number < 2 * count
        line, chunk = places(number[here])
        address = _place(context, vector[:, here], line, chunk)
        reading = context.within(np.tile(here, len(vector)))
        memory, index = reading.at_shared(address.ravel(), np.uint32)
        words, token = reading.load_async(memory, index, 4)
        stacked = np.stack([reading.vector(word) for word in words], axis=-1)
        bits[:, line, chunk] = stacked.reshape(len(vector), -1, 4)
        tokens.append((token, reading.lanes))
    tf32 = (bits & np.uint32(0xFFFFE000)).view(np.float32)  # the low 13 bits do not count
    return tf32.reshape(len(vector), count, STEPS), tokens


def _of_warps(number: Array) -> tuple[Array, Array]:
    """Line and chunk of a: each warp has its own 16 lines."""
    lane = number % WARP
    return number // WARP * 16 + lane % 16, lane // 16


def _in_order(number: Array) -> tuple[Array, Array]:
    """Line and chunk of b: core matrices one after the other."""
    return number // 16 * 8 + number % 8, number // 8 % 2


def _sums(context: Context, products: _Products, sums: Any, width: int) -> list[Array]:
    """The sums as the product finds them, a vector each."""
    flying = products.flies(sums).take(context.lanes)
    found = []
    for k in range(width // 2):
        row = context.row(sums, k)
        if isinstance(row, Partial) and flying.all():
            found.append(row.values)
            continue
        if flying.any() and not isinstance(row, Partial):
            context.fault(DataRace, f"{sums.name}[{k}] was written to while a product under way changes it", sums)
        found.append(context.vector(context.load(sums, np.int64(k))[0]))  # which faults where it is unset
    return found


def _rearranged(rows: Array, width: int) -> Array:
    """(width // 2, warpgroups * GROUP) as (warpgroups, ROWS, width)."""
    # sums: 8 columns, half, one of two columns; threads: warpgroup, warp, line of 8, pair of columns
    parts = rows.reshape(width // 8, 2, 2, -1, 4, 8, 4)
    return parts.transpose(3, 4, 1, 5, 0, 6, 2).reshape(-1, ROWS, width)


def _as_registers(d: Array, width: int) -> Array:
    """The inverse."""
    parts = d.reshape(-1, 4, 2, 8, width // 8, 4, 2)
    return parts.transpose(4, 2, 6, 0, 1, 3, 5).reshape(width // 2, -1)


def _product(width: int) -> Callable[..., None]:
    def twin(context: Context, sums: Any, a: Any, b: Any) -> None:
        products = _state(context, "wgmma.mma_async")
        lanes = context.lanes
        if not products.fenced.take(lanes).all():
            context.fault(MissingFence, "the sums were used since the last wgmma_fence, or there was none", sums)
        c = _rearranged(np.stack(_sums(context, products, sums, width)), width)
        left, a_tokens = _lines(context, a, ROWS, _of_warps)
        right, b_tokens = _lines(context, b, width, _in_order)
        for k, row in enumerate(_as_registers(dot_add(left, right, c), width)):
            context.set_row(sums, k, InFlight(np.ascontiguousarray(row)))
        products.flies(sums)[lanes] = True
        group = products.committed.take(lanes)
        products.pending.append(_Product([*a_tokens, *b_tokens], lanes, group, np.zeros(len(lanes), np.bool_)))
        context.count("mma_tf32", np.float32, 2 * ROWS * width * STEPS // GROUP)

    return twin


def _fence(context: Context) -> None:
    _state(context, "wgmma.fence").fenced[context.lanes] = True


def _commit(context: Context) -> None:
    _state(context, "wgmma.commit_group").committed[context.lanes] += 1


def _wait(context: Context, pending: Any) -> None:
    products, lanes = _state(context, "wgmma.wait_group"), context.lanes
    allowed = np.where(context.vector(pending) == 1, 1, 0)
    products.complete[lanes] = np.maximum(products.complete.take(lanes), products.committed.take(lanes) - allowed)
    for one in products.pending:
        new = (one.group < products.complete.take(one.lanes)) & ~one.done
        if new.any():
            one.done |= new
            for token, of in one.tokens:
                context.finish_read(token, new[np.searchsorted(one.lanes, of)])
    products.pending = [one for one in products.pending if not one.done.all()]


def _results(width: int) -> Callable[..., None]:
    def twin(context: Context, sums: Any) -> None:
        products, lanes = _state(context, "wgmma.wait_group"), context.lanes
        _wait(context, np.int64(0))
        if any(np.isin(lanes, one.lanes[~one.done]).any() for one in products.pending):
            context.fault(UninitialisedRead, "products were not committed, so nothing waits for them", sums)
        if products.flies(sums).take(lanes).any():
            for k, row in enumerate(_sums(context, products, sums, width)):
                context.set_row(sums, k, row)
        products.flies(sums)[lanes] = False
        products.fenced[lanes] = False

    return twin


TWINS.update(
    {
        wgmma.wgmma_fence: _fence,
        wgmma.wgmma_commit: _commit,
        wgmma.wgmma_wait: _wait,
        **{wgmma.WGMMA_TF32[width]: _product(width) for width in wgmma.WIDTHS},
        **{wgmma.WGMMA_RESULTS[width]: _results(width) for width in wgmma.WIDTHS},
    }
)
