"""The sums that group normalization's backward needs: of dy and dy * xhat, by channel and of a group's channels.

What they are for is in backward.py. A thread adds at most CHUNK rows in one accumulator, then its chunks, and a block
its threads as a tree. The sums of all pieces are left: kernels/columns.py adds those of a channel to dbeta and dgamma,
and the last launch here those of each sample's groups.

Traffic  x and dy once; and two numbers for each channel of a piece.
"""

from typing import Any

from numba import cuda, float32, int64, uint32

from kernels.batchnorm.adding import block_adder
from kernels.batchnorm.split import AHEAD, BLOCK, CHUNK, Split, largest_power_below, loader, storer
from kernels.group_norm.layout import Team, kept, piece_of, reader
from kernels.launch import Cost, Floats, Int64, Launch, blocks_for, kernel


def _sum_gradients(channels: int, groups: int, rows: int, index: Any, width: int) -> Launch:
    """A thread walks down the rows of its `width` channels. `rows` is 0 where its block stays in one sample."""
    parts, size = Split(channels, width), channels // groups
    lanes, depth, across = parts.lanes, parts.depth, parts.across
    load, store, add_block = loader(width), storer(width), block_adder(width, lanes, depth)
    piece, read, places = piece_of(across), reader(size, width), kept(size, width)
    shared, loads = width * BLOCK, AHEAD * width
    turn, held = (1, AHEAD) if rows else (0, places)  # as in forward
    apart = int(places > 1)

    def sum_gradients(
        x: Floats, dy: Floats, shift: Floats, delta: Floats, inv_std: Floats, partial: Floats,
        sections: Int64, section: Int64, per: Int64, span: Int64,
    ):  # fmt: skip
        sums = cuda.shared.array(shared, float32)
        products = cuda.shared.array(shared, float32)
        values = cuda.local.array(loads, float32)
        gradients = cuda.local.array(loads, float32)
        near = cuda.local.array(held, float32)
        rest = cuda.local.array(held, float32)
        inverse = cuda.local.array(held, float32)
        chunk_sum = cuda.local.array(width, float32)
        chunk_product = cuda.local.array(width, float32)
        thread = cuda.threadIdx.x
        row = thread // lanes
        part, sample, first, last = piece(section, per, span)
        channel = (part * lanes + thread % lanes) * width
        for j in range(width):
            sums[j * BLOCK + thread] = float32(0)
            products[j * BLOCK + thread] = float32(0)
        if row < depth and channel < channels:
            if rows == 0:
                read(shift, sample * groups, channel, near, 0)
                read(delta, sample * groups, channel, rest, 0)
                read(inv_std, sample * groups, channel, inverse, 0)
            at, end = index(first + row), index(last)
            while at < end:
                stop = index(min(end, at + CHUNK * depth))
                for j in range(width):
                    chunk_sum[j] = float32(0)
                    chunk_product[j] = float32(0)
                while at < stop:
                    for i in range(AHEAD):
                        if at + i * depth < stop:
                            load(x, index((at + i * depth) * channels + channel), values, i * width)
                            load(dy, index((at + i * depth) * channels + channel), gradients, i * width)
                            if rows > 0:
                                base = index(at + i * depth) // rows * groups
                                read(shift, base, channel, near, i * turn)
                                read(delta, base, channel, rest, i * turn)
                                read(inv_std, base, channel, inverse, i * turn)
                    for i in range(AHEAD):
                        if at + i * depth < stop:
                            for j in range(width):
                                a = i * turn + j * apart
                                g = gradients[i * width + j]
                                chunk_sum[j] += g
                                chunk_product[j] += g * (((values[i * width + j] - near[a]) - rest[a]) * inverse[a])
                    at = index(at + AHEAD * depth)
                for j in range(width):
                    sums[j * BLOCK + thread] += chunk_sum[j]
                    products[j * BLOCK + thread] += chunk_product[j]

        add_block(thread, row, sums, products)
        if row == 0 and channel < channels:
            place = cuda.blockIdx.x // across * channels + channel
            for j in range(width):
                chunk_sum[j] = sums[j * BLOCK + thread]
                chunk_product[j] = products[j * BLOCK + thread]
            store(partial, index(place), chunk_sum)
            store(partial, index(sections * per * channels + place), chunk_product)

    return Launch(
        sum_gradients,
        BLOCK,
        lambda sections, per: sections * per * across,
        lambda sections, section, per: Cost(
            8 * sections * section * channels, 8 * sections * per * channels, 6 * sections * section * channels
        ),
    )


@kernel(
    traffic="x, dy, shift, delta, inv_std -> partial",
    examples=[(17, 1, 1, uint32), (18, 6, 0, uint32), (3, 3, 4, uint32), (513, 1, 0, int64)],
)
def group_norm_sum_gradients_scalar(channels: int, groups: int, rows: int, index: Any) -> Launch:
    """Sums of dy and dy * xhat over each piece's rows, partial (2, pieces, c); one channel a thread."""
    return _sum_gradients(channels, groups, rows, index, 1)


@kernel(
    traffic="x, dy, shift, delta, inv_std -> partial",
    instructions=("LDG.E.128", "STG.E.128"),
    registers=96,  # eight loads of four floats are under way
    examples=[(64, 1, 1, uint32), (64, 32, 0, uint32), (64, 64, 0, uint32), (512, 1, 0, int64)],
)
def group_norm_sum_gradients_vector(channels: int, groups: int, rows: int, index: Any) -> Launch:
    """The same with four channels a thread, read as 16 bytes. x, dy and partial aligned to 16."""
    return _sum_gradients(channels, groups, rows, index, 4)


@kernel(
    traffic="partial, inv_std, gamma -> mean_g, slope",
    registers=48,
    examples=[(3, 3, True), (64, 8, True), (17, 1, False), (512, 2, True)],
)
def group_norm_finish_gradients(channels: int, groups: int, scaled: bool) -> Launch:
    """From what each sample's `per` pieces found: what dx subtracts in its groups, mean(g) and slope * centred."""
    team = Team(channels // groups)
    size, lanes, depth, together, threads = team.size, team.lanes, team.depth, team.together, team.threads
    add_block, side, start = block_adder(1, lanes, depth), team.side, largest_power_below(together)

    def finish_gradients(
        partial: Floats, inv_std: Floats, gamma: Floats, mean_g: Floats, slope: Floats,
        sets: Int64, rows: Int64, per: Int64,
    ):  # fmt: skip
        sums = cuda.shared.array(BLOCK, float32)
        products = cuda.shared.array(BLOCK, float32)
        thread = cuda.threadIdx.x
        row, lane = thread // lanes, thread % lanes
        which, place = cuda.blockIdx.x * side + lane // together, lane % together
        s = p = float32(0)
        if row < depth and which < sets:
            plane = sets // groups * per * channels
            channel = which % groups * size
            start_of_group = which // groups * per * channels + channel
            for begin in range(row * together + place, per * size, CHUNK * threads):
                chunk_sum = chunk_product = float32(0)
                for element in range(begin, min(per * size, begin + CHUNK * threads), threads):
                    at = start_of_group + element // size * channels + element % size
                    factor = gamma[channel + element % size] if scaled else float32(1)
                    chunk_sum += factor * partial[at]
                    chunk_product += factor * partial[plane + at]
                s += chunk_sum
                p += chunk_product
        sums[thread] = s
        products[thread] = p
        add_block(thread, row, sums, products)
        s, p = sums[thread], products[thread]
        stride = start
        while stride > 0:
            s2 = cuda.shfl_down_sync(0xFFFFFFFF, s, stride)
            p2 = cuda.shfl_down_sync(0xFFFFFFFF, p, stride)
            if place < stride and place + stride < together:
                s += s2
                p += p2
            stride //= 2
        if row == 0 and place == 0 and which < sets:
            n = float32(rows * size)
            mean_g[which] = s / n
            slope[which] = p / n * inv_std[which]

    return Launch(
        finish_gradients,
        BLOCK,
        lambda sets: blocks_for(sets, side),
        lambda sets, per: Cost(8 * sets * size * per + 4 * sets + 4 * channels, 8 * sets, 4 * sets * size * per),
    )
