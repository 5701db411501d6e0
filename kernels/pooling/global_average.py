"""Global average pooling on the device: the mean of each channel over the image, and its gradient.

Traffic  forward reads x and writes y once; backward reads dy and writes dx once.
For maths, shapes and edges see reference.py.
"""

from typing import Any

from numba import cuda, float32, int64, uint32

from kernels.choice import choose, vectors
from kernels.device import index_type
from kernels.errors import ShapeError, require_shape
from kernels.intrinsics import load4, store4
from kernels.launch import Array, Cost, Floats, Int64, Launch, Runner, blocks_for, kernel, techniques

BLOCK = 256
STRIP = 8  # pixels for which a thread reads dy once


@kernel(traffic="x -> y", registers=40, examples=[(uint32, 49, 512), (int64, 64, 3)])
def global_avg_pool2d_forward_serial(index: Any, pixels: int, c: int) -> Launch:
    """One channel of one image a thread: neighbours read neighbours, but each adds up a whole image, one by one."""

    def global_avg_pool2d_forward(x: Floats, y: Floats, n: Int64):
        i = index(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if i < n:
            image, channel = index(i // c), index(i % c)
            total = float32(0)
            for pixel in range(pixels):
                total += x[index((image * pixels + pixel) * c + channel)]
            y[i] = total / float32(pixels)

    return Launch(global_avg_pool2d_forward, BLOCK, lambda n: blocks_for(n, BLOCK), _forward_cost(pixels))


@kernel(traffic="x -> y", registers=40, instructions=("LDS", "STS"), examples=[(uint32, 49, 512), (int64, 1024, 3)])
def global_avg_pool2d_forward_shared(index: Any, pixels: int, c: int) -> Launch:
    """A block shares the pixels of up to 32 channels among its threads and adds their sums as a tree.

    So the loop is shorter by the number of threads for a channel, eight or more, and as many more threads are at work.
    """
    channels = min(32, 1 << (c - 1).bit_length())  # of a block: a power of two
    threads = BLOCK // channels  # for a channel
    groups = blocks_for(c, channels)
    halvings = threads.bit_length() - 1

    def global_avg_pool2d_forward(x: Floats, y: Floats, images: Int64):  # noqa: ARG001 - images is for the grid
        partial = cuda.shared.array(BLOCK, float32)
        block, thread = uint32(cuda.blockIdx.x), uint32(cuda.threadIdx.x)
        image = index(block // groups)
        channel = uint32(block % groups * channels + thread % channels)
        total = float32(0)
        if channel < c:
            for pixel in range(thread // channels, pixels, threads):
                total += x[index((image * pixels + pixel) * c + channel)]
        partial[thread] = total
        cuda.syncthreads()
        for halving in range(halvings):
            half = BLOCK >> (halving + 1)
            if thread < half:
                partial[thread] += partial[thread + half]
            cuda.syncthreads()
        if thread < channels and channel < c:
            y[index(image * c + channel)] = partial[thread] / float32(pixels)

    cost = _forward_cost(pixels)
    return Launch(global_avg_pool2d_forward, BLOCK, lambda images: images * groups, lambda images: cost(images * c))


@kernel(traffic="dy -> dx", registers=24, examples=[(uint32, 49, 512), (int64, 64, 3)])
def global_avg_pool2d_backward_scalar(index: Any, pixels: int, c: int) -> Launch:
    """One element of dx a thread."""
    share, image_size = 1 / pixels, pixels * c

    def global_avg_pool2d_backward(dy: Floats, dx: Floats, n: Int64):
        i = index(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if i < n:
            dx[i] = dy[index(index(i // image_size) * c + index(i % c))] * float32(share)

    return Launch(global_avg_pool2d_backward, BLOCK, lambda n: blocks_for(n, BLOCK), _backward_cost(pixels))


@kernel(
    traffic="dy -> dx",
    registers=32,
    instructions=("LDG.E.128", "STG.E.128"),
    examples=[(uint32, 49, 512), (int64, 64, 4)],
)
def global_avg_pool2d_backward_vector(index: Any, pixels: int, c: int) -> Launch:
    """Four channels of up to STRIP pixels a thread, in a load and stores of 16 bytes. c is a multiple of 4.

    Neighbours have neighbouring pixels, and go on `strips` pixels further: what a block writes at once lies together.
    """
    quads, strips, share = c // 4, blocks_for(pixels, STRIP), 1 / pixels

    def global_avg_pool2d_backward(dy: Floats, dx: Floats, images: Int64):
        i = int64(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if i < images * (strips * quads):
            image, first, quad = index(i // (strips * quads)), uint32(i // quads % strips), uint32(i % quads)
            a, b, c_, d = load4(dy, index(image * c + 4 * quad))
            factor = float32(share)
            a, b, c_, d = a * factor, b * factor, c_ * factor, d * factor
            for k in range(STRIP):
                pixel = uint32(first + k * strips)
                if pixel < pixels:
                    store4(dx, index((image * pixels + pixel) * c + 4 * quad), a, b, c_, d)

    cost = _backward_cost(pixels)
    return Launch(
        global_avg_pool2d_backward,
        BLOCK,
        grid=lambda images: blocks_for(images * strips * quads, BLOCK),
        cost=lambda images: cost(images * pixels * c),
    )


@techniques("serial", "shared")
def global_avg_pool2d_forward(run: Runner, x: Array, y: Array, *, technique: str | None = None) -> None:
    """Launch on `run`. Raises ShapeError unless x is (n, h, w, c), not empty in h and w, and y (n, c)."""
    n, pixels, c = _sizes("global_avg_pool2d_forward", "x", x, "y", y)
    options = ("shared", True, "the threads of a block share the pixels of a channel"), ("serial", True, "")
    technique = choose(run, "global_avg_pool2d_forward", technique, options, x=x, y=y)
    if y.size == 0:
        return
    if technique == "serial":
        run(global_avg_pool2d_forward_serial(index_type(x.size), pixels, c), x, y, y.size)
    else:
        run(global_avg_pool2d_forward_shared(index_type(x.size), pixels, c), x, y, n)


@techniques("scalar", "vector")
def global_avg_pool2d_backward(run: Runner, dy: Array, dx: Array, *, technique: str | None = None) -> None:
    """Launch on `run`. Raises ShapeError unless dx is (n, h, w, c) and dy (n, c).

    The vector technique takes arrays that start at multiples of 16 bytes, with channels in multiples of 4; asked for
    others it raises TechniqueError.
    """
    _, pixels, c = _sizes("global_avg_pool2d_backward", "dx", dx, "dy", dy)
    vector = vectors(run, "global_avg_pool2d_backward", technique, {"channels": c}, dy=dy, dx=dx)
    if not dx.size:
        return
    if vector:
        run(global_avg_pool2d_backward_vector(index_type(dx.size), pixels, c), dy, dx, dx.shape[0])
    else:
        run(global_avg_pool2d_backward_scalar(index_type(dx.size), pixels, c), dy, dx, dx.size)


def _sizes(operation: str, name: str, image: Array, mean_name: str, mean: Array) -> tuple[int, int, int]:
    if image.ndim != 4 or 0 in image.shape[1:3]:
        raise ShapeError(
            f"{operation}: {name} has shape {tuple(image.shape)}, expected (n, h, w, c) with at least one pixel"
        )
    n, height, width, c = image.shape
    require_shape(operation, mean_name, mean, (n, c))
    return n, height * width, c


def _forward_cost(pixels: int) -> Any:
    return lambda n: Cost(4 * n * pixels, 4 * n, n * pixels)


def _backward_cost(pixels: int) -> Any:
    return lambda n: Cost(4 * n // pixels, 4 * n, n)
