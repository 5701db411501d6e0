"""Convolution of images of 1 to 3 channels, as in a network's first layer: the gradient of its weights.

    dw[i, j, c, k] = sum over pixels (p, q) of  x[p*sh + i - ph, q*sw + j - pw, c] * dy[p, q, k]

There are few weights, and each is a sum over all of dy, the large array. So the sums stay in registers while dy goes
by: a thread has `width` channels of dy, `own` lines of the kernel (a line is one i and one c, with kw taps) and some of
the strips of pixels. A strip's dy it reads once for all of its own sums; x comes from a patch in shared memory as
in forward. Where the lines of a kernel are too many for a thread, `sets` of threads share them and read dy from shared
memory, where the block has brought it. At the end a block adds up what its threads found, and leaves a part of dw;
`kernels.columns.sum_columns` adds the parts.

Traffic  dy once, in loads of 16 bytes; x once and a halo, for each lanes * width channels of dy; a part of dw a block.
Order    A thread adds at most TERMS products in a row, a block its threads' sums in turn. The order depends on the
         shape alone, and so do the bits.
Storage  The image and dw are float32; dy may be in 16 bits, and then a thread has eight channels of it.
Edges    As the definition has it, the padding's zeros take part; pixels beyond dy do not.
"""

from typing import Any

from numba import cuda, float32, int64, uint32

from kernels.arrays import wide
from kernels.batchnorm.split import storer
from kernels.conv.first_layer import CIFAR, FIVE, MNIST, ODD, SEVEN, patch_columns, patch_lines
from kernels.conv.first_layer_access import half_loader, halves, shared_loader, shared_storer, stored_loader
from kernels.conv.first_layer_share import Share, kept_sums
from kernels.conv.first_layer_share import share_of as share_of
from kernels.conv.geometry import Geometry
from kernels.device import index_type
from kernels.launch import Array, Floats, Int64, Launch, Runner, blocks_for, kernel
from kernels.slices import in_slices
from kernels.storage import BFLOAT16, FLOAT16, FLOAT32, Storage, storage_of


def _backward_weight(share: Share, geometry: Geometry, index: Any, storage: Storage) -> Launch:
    h, w_in, c_in, kh, kw, c_out, sh, sw, ph, pw = geometry
    ho, wo, taps = geometry.ho, geometry.wo, geometry.taps
    width, lanes, own, sets, groups, lines, strips, pixels, pitch, lines_first, apart = share
    block, rounds, shared_size, staged = share.block, share.rounds, share.shared(geometry), sets > 1
    channels, kernel_lines = lanes * width, kh * c_in
    row, depth = w_in * c_in, patch_lines(geometry, lines)
    used = max(0, min(row, (patch_columns(geometry, pixels) - pw) * c_in))  # of a line of x: what some window holds
    left, step, reach = pw * c_in, pixels * sw * c_in, (pixels - 1) * sw + kw
    patch_at, more = lines * apart * width if staged else 0, apart - wo * lanes
    found = sets * kw * lanes * halves(width)  # parts of the sums for a line of the kernel
    part = width // halves(width)
    clears, loads, brings, ends = (
        blocks_for(size, block) for size in (depth * pitch, depth * row, lines * wo * lanes, found)
    )
    down, across = blocks_for(ho, lines), blocks_for(c_out, channels)
    of_dy: Any = storage.pointer
    load, store, size = stored_loader(width, storage), storer(part), storage.bytes
    load_shared, store_shared, load_part = shared_loader(width), shared_storer(width), half_loader(width)
    place_of_sums, part_of_sums, place_of_part = kept_sums(share, kw)
    sums_size, dy_size, tail = own * kw * width, pixels * width, strips * pixels != wo

    def conv2d_backward_weight(x: Floats, dy: of_dy, dw: Floats, n: Int64, span: Int64):
        memory = cuda.shared.array(shared_size, float32, alignment=16)
        sums = cuda.local.array(sums_size, float32)
        gradients = cuda.local.array(dy_size, float32)
        values = cuda.local.array(reach, float32)
        four = cuda.local.array(width, float32)
        total = cuda.local.array(part, float32)
        thread = uint32(cuda.threadIdx.x)
        lane, group = uint32(thread % lanes), uint32(thread // (lanes * sets))
        which_set = uint32(thread // lanes % sets)
        first_channel = uint32(cuda.blockIdx.y * channels)
        channel = uint32(first_channel + lane * width)
        for s in range(own):
            for e in range(kw * width):
                sums[s * (kw * width) + e] = float32(0)
        for k in range(clears):  # the padding stays as it is
            e = uint32(k * block + thread)
            if e < depth * pitch:
                memory[uint32(patch_at + e)] = float32(0)

        for number in range(cuda.blockIdx.x * span, min((cuda.blockIdx.x + 1) * span, n * down)):
            image, top = index(number // down), number % down * lines
            cuda.syncthreads()
            for k in range(loads):
                e = uint32(k * block + thread)
                line, place = uint32(e // row), uint32(e % row)
                real = top * sh - ph + int64(line)
                if line < depth and place < used:
                    value = float32(0)
                    if 0 <= real < h:
                        value = x[index((image * h + real) * row + place)]
                    memory[uint32(patch_at + line * pitch + left + place)] = value
            if staged:
                for k in range(brings):
                    e = uint32(k * block + thread)
                    pixel, c = uint32(e // lanes), uint32(first_channel + e % lanes * width)
                    if pixel < lines * wo and top * wo + int64(pixel) < ho * wo and c < c_out:
                        load(dy, index(((image * ho + top) * wo + int64(pixel)) * c_out + c), four, 0)
                        store_shared(memory, uint32((e + pixel // wo * more) * width), four)
            cuda.syncthreads()
            for turn in range(rounds):
                which = uint32(turn * groups + group)
                if lines_first:
                    line, strip = uint32(which % lines), uint32(which // lines)
                else:
                    line, strip = uint32(which // strips), uint32(which % strips)
                if line < lines and strip < strips and top + int64(line) < ho and channel < c_out:
                    if staged:
                        first = uint32(((line * wo + strip * pixels) * lanes + lane + line * more) * width)
                        for p in range(pixels):
                            if not tail or strip * pixels + p < wo:
                                load_shared(memory, uint32(first + p * channels), gradients, p * width)
                    else:
                        pixel = (image * ho + top + int64(line)) * wo + strip * pixels
                        for p in range(pixels):
                            if not tail or strip * pixels + p < wo:
                                load(dy, index((pixel + p) * c_out + channel), gradients, p * width)
                    for s in range(own):
                        kernel_line = uint32(which_set * own + s)
                        if sets * own == kernel_lines or kernel_line < kernel_lines:
                            at = uint32(
                                patch_at + (line * sh + kernel_line // c_in) * pitch + strip * step + kernel_line % c_in
                            )
                            for e in range(reach):
                                values[e] = memory[uint32(at + e * c_in)]
                            for p in range(pixels):
                                if not tail or strip * pixels + p < wo:
                                    for j in range(kw):
                                        for k in range(width):
                                            sums[(s * kw + j) * width + k] += (
                                                values[p * sw + j] * gradients[p * width + k]
                                            )

        for s in range(own):  # line after line of the kernel, over the groups
            cuda.syncthreads()
            for j in range(kw):
                for k in range(width):
                    four[k] = sums[(s * kw + j) * width + k]
                store_shared(memory, place_of_sums(thread, group, which_set, lane, j), four)
            cuda.syncthreads()
            for k in range(ends):
                e = uint32(k * block + thread)
                c, j, which = part_of_sums(e)
                c = uint32(first_channel + c)
                kernel_line = uint32(which * own + s)
                if e < found and kernel_line < kernel_lines and c < c_out:
                    for m in range(part):
                        total[m] = float32(0)
                    for g in range(groups):
                        load_part(memory, place_of_part(g, e), four, 0)
                        for m in range(part):
                            total[m] += four[m]
                    tap = (kernel_line // c_in * kw + j) * c_in + kernel_line % c_in
                    store(dw, index((cuda.blockIdx.x * taps + tap) * c_out + c), total)

    return Launch(
        conv2d_backward_weight,
        block,
        grid=lambda n, span: (max(1, blocks_for(n * down, span)), across),
        cost=lambda n, span: geometry.backward_weight_cost(n, max(1, blocks_for(n * down, span)), 4, size),
    )


def examples(width: int, *given: tuple[Geometry, Any, Storage]) -> list[tuple[Any, ...]]:
    """Arguments of the kernels here for these geometries."""
    return [(share_of(one[0], width), *one) for one in given]


@kernel(
    traffic="x, dy -> dw",
    registers=168,
    examples=examples(
        1, (ODD, uint32, FLOAT32), (MNIST, uint32, FLOAT32), (ODD, int64, FLOAT32), (ODD, uint32, BFLOAT16)
    ),
)
def conv2d_backward_weight_scalar_first_layer(share: Share, geometry: Geometry, index: Any, storage: Storage) -> Launch:
    """A part of dw (blocks, kh, kw, c_in, c_out) a block; one channel a thread."""
    return _backward_weight(share, geometry, index, storage)


@kernel(
    traffic="x, dy -> dw",
    registers=168,
    instructions=("LDG.E.128", "STG.E.128", "LDS.128"),
    examples=[
        *examples(
            4, (MNIST, uint32, FLOAT32), (CIFAR, uint32, FLOAT32), (FIVE, uint32, FLOAT32), (SEVEN, uint32, FLOAT32),
            (CIFAR, int64, FLOAT32),
        ),
        *examples(
            8, (MNIST, uint32, BFLOAT16), (CIFAR, uint32, FLOAT16), (SEVEN, uint32, BFLOAT16), (CIFAR, int64, BFLOAT16)
        ),
    ],
)  # fmt: skip
def conv2d_backward_weight_vector_first_layer(share: Share, geometry: Geometry, index: Any, storage: Storage) -> Launch:
    """The same with four or eight channels a thread. dy aligned to 16."""
    return _backward_weight(share, geometry, index, storage)


def backward_weight(run: Runner, geometry: Geometry, x: Array, dy: Array, dw: Array) -> None:
    """Launch dw = the gradient of the weights on `run`, in two stages, where `option` says that it can.

    Accesses are scalar where c_out is no multiple of what 16 bytes of dy hold, or dy or dw is not aligned to them.
    """
    storage = storage_of(dy)
    share = share_of(geometry, storage.wide) if geometry.c_out % storage.wide == 0 and wide(dy, dw) else None
    factory = conv2d_backward_weight_vector_first_layer if share else conv2d_backward_weight_scalar_first_layer
    share = share or share_of(geometry, 1)
    assert share is not None
    n = x.shape[0]
    span = share.span(geometry, n)
    parts = max(1, blocks_for(share.tiles(geometry, n), span))
    chosen = factory(share, geometry, index_type(max(x.size, dy.size, parts * dw.size)), storage)
    with in_slices(run, parts, dw) as target:
        run(chosen, x, dy, target, n, span)
