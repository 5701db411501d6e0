"""Global average pooling on the device: the mean of each channel over the image, and its gradient.

Traffic  forward reads x and writes y once; backward reads dy and writes dx once.
Storage  x and dx are images, stored in any way (kernels/storage.py); y and dy (n, c) are float32.
For maths, shapes and edges see reference.py.
"""

from typing import Any

from numba import cuda, float32, int64, uint32

from kernels.choice import choose, vectors
from kernels.device import index_type
from kernels.errors import ShapeError, require_shape
from kernels.intrinsics import load4
from kernels.launch import Array, Cost, Floats, Int64, Launch, Runner, blocks_for, kernel, techniques
from kernels.storage import BFLOAT16, FLOAT16, FLOAT32, Storage, require_float32, storage_of

BLOCK = 256
STRIP = 8  # pixels for which a thread reads dy once
EXAMPLES = [(uint32, 49, 512, FLOAT32), (int64, 64, 3, FLOAT32), (uint32, 49, 512, BFLOAT16), (int64, 64, 3, FLOAT16)]


@kernel(
    traffic="x -> y",
    registers=40,
    examples=[
        (uint32, 49, 512, FLOAT32),
        (int64, 64, 3, FLOAT32),
        (uint32, 49, 512, BFLOAT16),
        (int64, 64, 3, FLOAT16),
    ],
)
def global_avg_pool2d_forward_serial(index: Any, pixels: int, c: int, storage: Storage) -> Launch:
    """One channel of one image a thread: neighbours read neighbours, but each adds up a whole image, one by one."""
    stored: Any = storage.pointer
    load = storage.load

    def global_avg_pool2d_forward(x: stored, y: Floats, n: Int64):
        i = index(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if i < n:
            image, channel = index(i // c), index(i % c)
            total = float32(0)
            for pixel in range(pixels):
                total += load(x, index((image * pixels + pixel) * c + channel))
            y[i] = total / float32(pixels)

    return Launch(global_avg_pool2d_forward, BLOCK, lambda n: blocks_for(n, BLOCK), _forward_cost(pixels, storage))


@kernel(
    traffic="x -> y",
    registers=40,
    instructions=("LDS", "STS"),
    examples=[
        (uint32, 49, 512, FLOAT32), (int64, 1024, 3, FLOAT32), (uint32, 49, 512, BFLOAT16), (int64, 1024, 3, FLOAT16)
    ],
)  # fmt: skip
def global_avg_pool2d_forward_shared(index: Any, pixels: int, c: int, storage: Storage) -> Launch:
    """A block shares the pixels of up to 32 channels among its threads and adds their sums as a tree.

    So the loop is shorter by the number of threads for a channel, eight or more, and as many more threads are at work.
    """
    stored: Any = storage.pointer
    load = storage.load
    channels = min(32, 1 << (c - 1).bit_length())  # of a block: a power of two
    threads = BLOCK // channels  # for a channel
    groups = blocks_for(c, channels)
    halvings = threads.bit_length() - 1

    def global_avg_pool2d_forward(x: stored, y: Floats, images: Int64):  # noqa: ARG001 - images is for the grid
        partial = cuda.shared.array(BLOCK, float32)
        block, thread = uint32(cuda.blockIdx.x), uint32(cuda.threadIdx.x)
        image = index(block // groups)
        channel = uint32(block % groups * channels + thread % channels)
        total = float32(0)
        if channel < c:
            for pixel in range(thread // channels, pixels, threads):
                total += load(x, index((image * pixels + pixel) * c + channel))
        partial[thread] = total
        cuda.syncthreads()
        for halving in range(halvings):
            half = BLOCK >> (halving + 1)
            if thread < half:
                partial[thread] += partial[thread + half]
            cuda.syncthreads()
        if thread < channels and channel < c:
            y[index(image * c + channel)] = partial[thread] / float32(pixels)

    cost = _forward_cost(pixels, storage)
    return Launch(global_avg_pool2d_forward, BLOCK, lambda images: images * groups, lambda images: cost(images * c))


@kernel(
    traffic="dy -> dx",
    registers=24,
    examples=[
        (uint32, 49, 512, FLOAT32),
        (int64, 64, 3, FLOAT32),
        (uint32, 49, 512, BFLOAT16),
        (int64, 64, 3, FLOAT16),
    ],
)
def global_avg_pool2d_backward_scalar(index: Any, pixels: int, c: int, storage: Storage) -> Launch:
    """One element of dx a thread."""
    stored: Any = storage.pointer
    store = storage.store
    share, image_size = 1 / pixels, pixels * c

    def global_avg_pool2d_backward(dy: Floats, dx: stored, n: Int64):
        i = index(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if i < n:
            store(dx, i, dy[index(index(i // image_size) * c + index(i % c))] * float32(share))

    return Launch(global_avg_pool2d_backward, BLOCK, lambda n: blocks_for(n, BLOCK), _backward_cost(pixels, storage))


@kernel(
    traffic="dy -> dx",
    registers=40,
    instructions=("LDG.E.128", "STG.E.128"),
    examples=[
        (uint32, 49, 512, FLOAT32),
        (int64, 64, 4, FLOAT32),
        (uint32, 49, 512, BFLOAT16),
        (int64, 64, 8, FLOAT16),
    ],
)
def global_avg_pool2d_backward_vector(index: Any, pixels: int, c: int, storage: Storage) -> Launch:
    """As many channels of up to STRIP pixels a thread as 16 bytes of dx hold, in loads and stores of 16 bytes.

    c is a multiple of that. Neighbours have neighbouring pixels, and go on `strips` pixels further: what a block writes
    at once lies together.
    """
    stored: Any = storage.pointer
    store_wide, wide = storage.store_wide, storage.wide
    quads, strips, share = c // wide, blocks_for(pixels, STRIP), 1 / pixels

    def global_avg_pool2d_backward(dy: Floats, dx: stored, images: Int64):
        i = int64(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if i < images * (strips * quads):
            image, first, quad = index(i // (strips * quads)), uint32(i // quads % strips), uint32(i % quads)
            values = cuda.local.array(wide, float32)
            factor = float32(share)
            for k in range(0, wide, 4):
                a, b, c_, d = load4(dy, index(image * c + (wide * quad + k)))
                values[k] = a * factor
                values[k + 1] = b * factor
                values[k + 2] = c_ * factor
                values[k + 3] = d * factor
            for k in range(STRIP):
                pixel = uint32(first + k * strips)
                if pixel < pixels:
                    store_wide(dx, index((image * pixels + pixel) * c + wide * quad), values)

    cost = _backward_cost(pixels, storage)
    return Launch(
        global_avg_pool2d_backward,
        BLOCK,
        grid=lambda images: blocks_for(images * strips * quads, BLOCK),
        cost=lambda images: cost(images * pixels * c),
    )


@techniques("serial", "shared")
def global_avg_pool2d_forward(run: Runner, x: Array, y: Array, *, technique: str | None = None) -> None:
    """Launch on `run`. Raises ShapeError unless x is (n, h, w, c), not empty in h and w, and y (n, c).

    TypeError is raised unless y is float32.
    """
    n, pixels, c = _sizes("global_avg_pool2d_forward", "x", x, "y", y)
    storage = storage_of(x, "global_avg_pool2d_forward: x")
    require_float32("global_avg_pool2d_forward", y=y)
    options = ("shared", True, "the threads of a block share the pixels of a channel"), ("serial", True, "")
    technique = choose(run, "global_avg_pool2d_forward", technique, options, x=x, y=y)
    if y.size == 0:
        return
    if technique == "serial":
        run(global_avg_pool2d_forward_serial(index_type(x.size), pixels, c, storage), x, y, y.size)
    else:
        run(global_avg_pool2d_forward_shared(index_type(x.size), pixels, c, storage), x, y, n)


@techniques("scalar", "vector")
def global_avg_pool2d_backward(run: Runner, dy: Array, dx: Array, *, technique: str | None = None) -> None:
    """Launch on `run`. Raises ShapeError unless dx is (n, h, w, c) and dy (n, c), TypeError unless dy is float32.

    The vector technique takes arrays that start at multiples of 16 bytes, with channels in multiples of as many as 16
    bytes of dx hold; asked for others it raises TechniqueError.
    """
    _, pixels, c = _sizes("global_avg_pool2d_backward", "dx", dx, "dy", dy)
    storage = storage_of(dx, "global_avg_pool2d_backward: dx")
    require_float32("global_avg_pool2d_backward", dy=dy)
    wide = storage.wide
    vector = vectors(run, "global_avg_pool2d_backward", technique, {"channels": c}, wide, dy=dy, dx=dx)
    if not dx.size:
        return
    if vector:
        run(global_avg_pool2d_backward_vector(index_type(dx.size), pixels, c, storage), dy, dx, dx.shape[0])
    else:
        run(global_avg_pool2d_backward_scalar(index_type(dx.size), pixels, c, storage), dy, dx, dx.size)


def _sizes(operation: str, name: str, image: Array, mean_name: str, mean: Array) -> tuple[int, int, int]:
    if image.ndim != 4 or 0 in image.shape[1:3]:
        raise ShapeError(
            f"{operation}: {name} has shape {tuple(image.shape)}, expected (n, h, w, c) with at least one pixel"
        )
    n, height, width, c = image.shape
    require_shape(operation, mean_name, mean, (n, c))
    return n, height * width, c


def _forward_cost(pixels: int, storage: Storage) -> Any:
    size = storage.bytes
    return lambda n: Cost(size * n * pixels, 4 * n, n * pixels)


def _backward_cost(pixels: int, storage: Storage) -> Any:
    size = storage.bytes
    return lambda n: Cost(4 * n // pixels, size * n, n)
