"""The shapes that are measured where no other list is given: our own, for tuning.

Convolutions and batch normalizations as networks for small and for large images have them, and such as a kernel may be
bad at: few, odd and many channels, strides, windows of 1x1, 5x5 and 7x7, first layers, small late stages. Batches are
those that fill the device: on the CPU a quarter or less, so that a list takes minutes.
"""

from minidl.lab.bench.shapes import Shape, shape

# n on a GPU, n on the CPU, side of the image, c_in, c_out, kernel, stride
CONVOLUTIONS = (
    (128, 32, 32, 16, 16, 3, 1),  # resnet-20: three stages, and the ways into the second and third
    (128, 32, 32, 16, 32, 3, 2),
    (128, 32, 16, 32, 32, 3, 1),
    (128, 32, 16, 32, 64, 3, 2),
    (128, 32, 8, 64, 64, 3, 1),
    (128, 32, 32, 16, 32, 1, 2),
    (128, 32, 28, 32, 32, 3, 1),  # the reference CNN
    (128, 32, 14, 32, 64, 3, 1),
    (128, 8, 32, 64, 64, 3, 1),  # resnet-18 on small images
    (128, 8, 32, 64, 128, 3, 2),
    (128, 8, 16, 128, 128, 3, 1),
    (128, 8, 8, 256, 256, 3, 1),
    (128, 8, 4, 512, 512, 3, 1),
    (64, 2, 56, 64, 64, 3, 1),  # the same on large ones
    (64, 2, 28, 128, 128, 3, 1),
    (64, 2, 14, 256, 256, 3, 1),
    (64, 2, 7, 512, 512, 3, 1),
    (64, 2, 56, 64, 256, 1, 1),  # bottlenecks
    (64, 2, 28, 512, 128, 1, 1),
    (64, 2, 28, 256, 512, 1, 2),
    (128, 32, 28, 1, 32, 3, 1),  # first layers
    (128, 32, 32, 3, 64, 3, 1),
    (32, 2, 224, 3, 64, 7, 2),
    (128, 16, 28, 32, 64, 5, 1),  # large windows
    (64, 4, 28, 48, 96, 7, 1),
    (128, 16, 27, 17, 33, 3, 1),  # odd channels, odd images
    (128, 16, 15, 48, 65, 3, 2),
    (128, 16, 16, 37, 29, 1, 1),
)

# n on a GPU, n on the CPU, side of the image, channels
ACTIVATIONS = (
    (128, 32, 32, 16),
    (128, 32, 16, 32),
    (128, 32, 8, 64),
    (128, 128, 28, 32),  # the reference CNN
    (128, 128, 14, 64),
    (128, 16, 32, 64),  # resnet-18 on small images; on a GPU 33.5 MB, which it can hold on chip
    (512, 64, 32, 64),  # beyond any cache
    (512, 64, 16, 128),
    (512, 64, 8, 256),
    (512, 64, 4, 512),
    (64, 4, 56, 256),  # large images
    (64, 4, 14, 1024),
    (128, 16, 27, 17),  # odd channels
    (128, 16, 15, 33),
)

POOLS = ((128, 32, 28, 32), (512, 32, 32, 64), (128, 16, 14, 64))
MEANS = ((128, 32, 8, 64), (512, 64, 4, 512), (64, 8, 7, 2048))
LINEAR = ((128, 128, 3136, 10), (128, 128, 512, 1000), (512, 128, 2048, 1000))
LOSSES = ((128, 128, 10), (512, 512, 1000))


def default_shapes(device: str) -> list[Shape]:
    """For the device of that name, in the order in which they are measured: what matters most comes first."""
    on_cpu = device == "cpu"

    def batch(row: tuple[int, ...]) -> int:
        return row[1 if on_cpu else 0]

    activations = [{"n": batch(row), "h": row[2], "w": row[2], "c": row[3]} for row in ACTIVATIONS]
    found = [shape("batchnorm", **numbers) for numbers in activations]
    for row in CONVOLUTIONS:
        side, c_in, c_out, kernel, stride = row[2:]
        found.append(
            shape("conv2d", n=batch(row), h=side, w=side, c_in=c_in, c_out=c_out, kernel=kernel, stride=stride)
        )
    found += [shape("relu", **numbers) for numbers in activations[::3]]
    found += [shape("max_pool2d", n=batch(row), h=row[2], w=row[2], c=row[3], kernel=2) for row in POOLS]
    found.append(shape("max_pool2d", n=4 if on_cpu else 64, h=112, w=112, c=64, kernel=3, stride=2, padding=1))
    found += [shape("global_avg_pool2d", n=batch(row), h=row[2], w=row[2], c=row[3]) for row in MEANS]
    found += [shape("linear", n=batch(row), c_in=row[2], c_out=row[3]) for row in LINEAR]
    found += [shape("cross_entropy", n=batch(row), classes=row[2]) for row in LOSSES]
    found += [shape("optimizer", model=name) for name in ("small-cnn", "resnet-20", "resnet-18")]
    return found
