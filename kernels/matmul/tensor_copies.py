"""What brings slabs of a factor from global to shared memory, for the product of kernels/matmul/tensor_product.py.

A slab goes by cp.async, 16 bytes at a time and past the registers. Where a factor has no element (padding, depth beyond
the last step), zeros arrive. What is contiguous along the depth lies in lines of 32 floats, of which 16-byte chunk j of
line i is kept at chunk j ^ (i % 8): so neither the copies, eight chunks of a line at once, nor ldmatrix, chunk j of
eight lines at once, meet in a bank. What is contiguous across the depth lies as it is, a step of depth after the other,
each followed by 8 floats.

Elements of 16 bits are 8 a chunk and 64 a line along the depth, which is kept in the same way. Across the depth chunk j
of step i is kept at chunk j ^ (i % 8), without padding (with 32 lines, four chunks a step, at j ^ (i // 2 % 4)): so
ldmatrix.trans, which takes a chunk of eight steps at once, meets in no bank either (tensor_tiles.narrow_chunk).

A factor may be worked out of what arrives (`Arrival`). The thread that copied a chunk sees it as soon as it has waited
for it, before the barrier that shows it to the others: then it puts the worked-out chunk in its place. That costs a
load and a store of shared memory a chunk, and the copies stay under way as they were. Where two tensors arrive, the
second has slabs of its own, each behind the first one's.

Source   NVIDIA, "PTX ISA" 9.0, cp.async.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from numba import cuda, float32, uint32, uint64

from kernels.device import inlined
from kernels.intrinsics import cp_async_16_zero_fill, load4, store4
from kernels.matmul.tensor_tiles import (
    CHUNK,
    DEPTH,
    FAR,
    LINE,
    PADDING,
    TensorTile,
    depth_of,
    narrow_chunk,
    slab_floats,
)
from kernels.storage import FLOAT32, Storage

AT_ONCE = 16  # numbers that a thread takes out of shared memory before it stores what it makes of the first ones


class Arrival(NamedTuple):
    """What becomes of a chunk of a factor, 4 neighbours or 8, when it has arrived. Where it has no element, zeros stay.

    In 16 bits the value is computed in float32 of what is stored, and rounded to that storage again.

    Besides pointer and source the kernel then passes (other, known) for the factor: the second tensor, of the first
    one's shape (or that again, where there is one alone), and what `read` takes.
    """

    channels: (
        int  # a multiple of the chunk: the first neighbour's number (its step, or line) modulo this is its channel
    )
    tensors: int  # 1, or 2 where a second one arrives beside
    numbers: int  # that are known of a channel
    read: Callable[..., Any]  # (known, channel, numbers): number k of channel + j is put at numbers[chunk * k + j]
    value: Callable[..., Any]  # (numbers, j, element, the other tensor's element) -> float32


class Side(NamedTuple):
    """One factor: a matrix of lines (rows of a, columns of b) and steps of depth, of which 4 neighbours come at once.

    An element is the sum of two parts, one of its line and one of its step, each found once for all that share it:
    (u, v, offset). It exists where `inside(line's u, v, step's u, v)`, and then has the index that the offsets add up
    to. `of_line` is asked for lines within the matrix alone; others have u = FAR, with which `inside` must not hold.
    u and v are held in 32 bits. All are inlined device functions; `source` is what the kernel passes for the factor.
    """

    of_line: Callable[..., Any]  # (source, line) -> u, v, offset
    of_step: Callable[..., Any]  # (source, step) -> u, v, offset
    inside: Callable[..., Any]  # (line_u, line_v, step_u, step_v) -> bool
    along_depth: bool  # whether neighbours in memory are neighbours in depth rather than lines
    arrival: Arrival | None = None

    @property
    def tensors(self) -> int:
        """That arrive."""
        return 1 if self.arrival is None else self.arrival.tensors


class Copies(NamedTuple):
    """Inlined device functions that bring one factor's slabs, and what they need of a thread."""

    lines: int  # of which it keeps coordinates
    numbers: int  # that it keeps of its channels
    prepare: Callable[..., Any]  # (source, u, v, offsets, lines, first_line): fills the coordinates in
    copy: Callable[..., Any]  # (address, source, x, more, u, v, offsets, start, last): starts to copy a slab
    know: Callable[..., Any]  # (more, numbers, start, first_line): reads what is known of its channels in a slab
    arrive: Callable[..., Any]  # (memory, base, source, numbers, u, v, start, last): works out what has arrived


@inlined
def on_both(line_u, line_v, step_u, step_v):  # noqa: ARG001
    """`Side.inside` where every line has every step, and u is 0 for those that there are."""
    return line_u == 0 and step_u == 0


def copies_of(tile: TensorTile, lines: int, side: Side, index: Any, storage: Storage = FLOAT32) -> Copies:
    """Make them, for a factor that has so many lines in a tile; `index` holds the index of each of its elements."""
    return (_along_depth if side.along_depth else _across_depth)(tile, lines, side, index, storage)


def _along_depth(tile: TensorTile, lines: int, side: Side, index: Any, storage: Storage) -> Copies:
    of_line, of_step, inside = side.of_line, side.of_step, side.inside
    across, chunk = DEPTH // CHUNK, storage.wide  # chunks of a line, of which a thread has the same of several lines
    unit = FLOAT32.bytes // storage.bytes  # elements in a word of the slab
    apart = tile.threads // across
    count = lines // apart
    copy_other, numbers, read, some, take, put = _arriving(side, slab_floats(lines, True, storage), count, storage)

    @inlined
    def prepare(source, u, v, offsets, lines, first_line):
        for i in range(count):
            line = first_line + uint32(cuda.threadIdx.x) // across + i * apart
            u[i], v[i], offsets[i] = FAR, 0, 0
            if line < lines:
                u[i], v[i], offsets[i] = of_line(source, index(line))

    @inlined
    def copy(address, source, x, more, u, v, offsets, start, last):
        thread = uint32(cuda.threadIdx.x)
        step = index(start + thread % across * chunk)
        step_u, step_v, offset = of_step(source, step)
        there = step < last
        place = address + (thread // across * across + (thread % across ^ thread // across % 8)) * 16
        for i in range(count):
            here = there and inside(u[i], v[i], step_u, step_v)
            size, first = uint32(16 if here else 0), index(offsets[i] + offset) if here else index(0)
            cp_async_16_zero_fill(uint32(place + i * (apart * LINE)), x, first, size)
            copy_other(place + i * (apart * LINE), more, first, size)

    @inlined
    def know(more, numbers, start, first_line):  # noqa: ARG001
        read(more, index(start + uint32(cuda.threadIdx.x) % across * chunk), numbers)

    @inlined
    def arrive(memory, base, source, numbers, u, v, start, last):
        thread = uint32(cuda.threadIdx.x)
        step = index(start + thread % across * chunk)
        step_u, step_v, _ = of_step(source, step)
        there = step < last
        place = base * unit + (thread // across * across + (thread % across ^ thread // across % 8)) * chunk
        values = cuda.local.array(AT_ONCE, float32)
        for begin in range(0, count, some):
            for i in range(some):
                take(memory, place + (begin + i) * (apart * across * chunk), values, i)
            for i in range(some):
                if there and inside(u[begin + i], v[begin + i], step_u, step_v):
                    put(memory, place + (begin + i) * (apart * across * chunk), values, i, numbers)

    return Copies(count, numbers, prepare, copy, know, arrive if side.arrival else _as_it_is)


def _across_depth(tile: TensorTile, lines: int, side: Side, index: Any, storage: Storage) -> Copies:
    of_line, of_step, inside = side.of_line, side.of_step, side.inside
    chunk = storage.wide
    across = lines // chunk  # chunks of a step; a thread has the same lines in several steps
    apart = tile.threads // across
    times = depth_of(storage) // apart
    pitch = lines + PADDING
    from_step = apart * (pitch if chunk == CHUNK else across * chunk)  # elements to a thread's next step
    permuted, size_of, unit = narrow_chunk(lines), storage.bytes, FLOAT32.bytes // storage.bytes
    bytes_from_step = from_step * size_of
    if chunk == CHUNK:

        @inlined
        def first_element(thread):
            return thread // across * pitch + thread % across * CHUNK

    else:

        @inlined
        def first_element(thread):
            return permuted(thread // across, thread % across) * chunk

    copy_other, numbers, read, some, take, put = _arriving(side, slab_floats(lines, False, storage), times, storage)

    @inlined
    def prepare(source, u, v, offsets, lines, first_line):
        line = first_line + uint32(cuda.threadIdx.x) % across * chunk
        u[0], v[0], offsets[0] = FAR, 0, 0
        if line < lines:
            u[0], v[0], offsets[0] = of_line(source, index(line))

    @inlined
    def copy(address, source, x, more, u, v, offsets, start, last):
        thread = uint32(cuda.threadIdx.x)
        place = address + first_element(thread) * size_of
        for i in range(times):
            step = index(start + thread // across + i * apart)
            step_u, step_v, offset = of_step(source, step)
            here = step < last and inside(u[0], v[0], step_u, step_v)
            size, first = uint32(16 if here else 0), index(offsets[0] + offset) if here else index(0)
            cp_async_16_zero_fill(uint32(place + i * bytes_from_step), x, first, size)
            copy_other(place + i * bytes_from_step, more, first, size)

    @inlined
    def know(more, numbers, start, first_line):  # noqa: ARG001
        read(more, index(first_line + uint32(cuda.threadIdx.x) % across * chunk), numbers)

    @inlined
    def arrive(memory, base, source, numbers, u, v, start, last):
        thread = uint32(cuda.threadIdx.x)
        place = base * unit + first_element(thread)
        values = cuda.local.array(AT_ONCE, float32)
        for begin in range(0, times, some):
            for i in range(some):
                take(memory, place + (begin + i) * from_step, values, i)
            for i in range(some):
                step = index(start + thread // across + (begin + i) * apart)
                step_u, step_v, _ = of_step(source, step)
                if step < last and inside(u[0], v[0], step_u, step_v):
                    put(memory, place + (begin + i) * from_step, values, i, numbers)

    return Copies(1, numbers, prepare, copy, know, arrive if side.arrival else _as_it_is)


def _arriving(side: Side, floats: int, chunks: int, storage: Storage) -> tuple[Any, ...]:
    """What both layouts do with what arrives; `floats` are those of a slab, `chunks` those of it that a thread copies.

    Returns copy_other(address, more, first, size), how many numbers a thread keeps, read(more, number, numbers), how
    many chunks are worked out at once, and take and put for the i-th of those at an element of shared memory.
    """
    if side.arrival is None:
        return _nothing, 1, _nothing_known, 1, _nothing, _nothing
    channels, tensors, numbers, read, value = side.arrival
    chunk = storage.wide
    some = min(chunks, AT_ONCE // (chunk * tensors))

    @inlined
    def copy_other(address, more, first, size):
        other, _ = more
        cp_async_16_zero_fill(uint32(address + 4 * floats), other, first, size)

    @inlined
    def read_channels(more, number, kept):
        _, known = more
        read(known, number % channels, kept)

    @inlined
    def take(memory, word, values, i):
        for tensor in range(tensors):
            a, b, c, d = load4(memory, uint64(word + tensor * floats))
            at = CHUNK * (tensors * i + tensor)
            values[at], values[at + 1], values[at + 2], values[at + 3] = a, b, c, d

    @inlined
    def put(memory, word, values, i, kept):
        at, other = CHUNK * tensors * i, CHUNK * (tensors * i + tensors - 1)
        store4(
            memory,
            uint64(word),
            value(kept, 0, values[at], values[other]),
            value(kept, 1, values[at + 1], values[other + 1]),
            value(kept, 2, values[at + 2], values[other + 2]),
            value(kept, 3, values[at + 3], values[other + 3]),
        )

    if chunk != CHUNK:
        take, put = _narrow_chunks(side.arrival, floats * FLOAT32.bytes // storage.bytes, storage)
    return copy_other if tensors == 2 else _nothing, chunk * numbers, read_channels, some, take, put


def _narrow_chunks(arrival: Arrival, apart: int, storage: Storage) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`take` and `put` of `_arriving` for elements of 16 bits; two tensors' slabs are `apart` of them apart."""
    tensors, value = arrival.tensors, arrival.value
    load_wide, store_wide, chunk = storage.load_wide, storage.store_wide, storage.wide

    @inlined
    def take(memory, element, values, i):
        eight = cuda.local.array(chunk, float32)
        for tensor in range(tensors):
            load_wide(memory, uint64(element + tensor * apart), eight)
            for j in range(chunk):
                values[chunk * (tensors * i + tensor) + j] = eight[j]

    @inlined
    def put(memory, element, values, i, kept):
        eight = cuda.local.array(chunk, float32)
        for j in range(chunk):
            at, other = chunk * tensors * i + j, chunk * (tensors * i + tensors - 1) + j
            eight[j] = value(kept, j, values[at], values[other])
        store_wide(memory, uint64(element), eight)

    return take, put


@inlined
def _nothing(address, more, first, size):  # noqa: ARG001
    return


@inlined
def _nothing_known(more, number, numbers):  # noqa: ARG001
    return


@inlined
def _as_it_is(memory, base, source, numbers, u, v, start, last):  # noqa: ARG001
    return
