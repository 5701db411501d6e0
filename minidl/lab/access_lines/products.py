"""Lines of convolutions and linear layers.

What a tile of the result needs of a factor is read for that tile; no line says more than how often.
"""

from kernels import conv, linear
from kernels.batch_statistics import GradientSums, Normalization, PendingGradient
from kernels.run_emulated import EmulatorRunner
from kernels.storage import BFLOAT16, FLOAT16, FLOAT32, Storage
from minidl.lab.access_lines.line import SLACK, Call, Line, ones, statistics

TILES = "each factor is read once for every tile that needs it"
SLABS = "each factor is read once for every tile that needs it, what belongs to its channels for every slab"
LINES_AROUND = "lines of x around a tile are read again, and the weights for each tile"
TECHNIQUES = "implicit_gemm", "tensor_core", "wgmma"


def _convolution(
    x: tuple[int, ...],
    kernel: int,
    c_out: int,
    stride: int = 1,
    padding: int = 1,
    technique: str | None = None,
    of_x: Storage = FLOAT32,
    of_y: Storage = FLOAT32,
) -> Call:
    """Forward and the gradient of the weights; that of the input where the technique has it."""
    ho, wo = ((size + 2 * padding - kernel) // stride + 1 for size in x[1:3])

    def call(run: EmulatorRunner) -> None:
        image, w = ones(*x, dtype=of_x.dtype), ones(kernel, kernel, x[3], c_out)
        y = ones(x[0], ho, wo, c_out, dtype=of_y.dtype)
        window = (stride, stride), (padding, padding)
        conv.conv2d_forward(run, image, w, None, y, *window, technique=technique)
        conv.conv2d_backward_weight(run, image, y, w, *window, technique=technique)
        if technique in TECHNIQUES:
            conv.conv2d_backward_input(run, y, w, image, *window, technique=technique)

    return call


def _normalized_convolution(storage: Storage = FLOAT32, channels: int = 32) -> Call:
    """Of 2x8x8x32 by 3x3 to 32 channels, on tensor cores: forward and both gradients, everything fused."""

    def call(run: EmulatorRunner) -> None:
        window, x = ((1, 1), (1, 1)), ones(2, 8, 8, channels, dtype=storage.dtype)
        w, c = ones(3, 3, channels, channels), ones(channels)
        before, sums = Normalization(statistics(channels), c, c, True), GradientSums(c, c, c, c)
        dy, way = PendingGradient(x, x, before, sums), {"technique": "tensor_core"}
        made = ones(*x.shape, dtype=storage.dtype)
        conv.conv2d_normalized_forward(run, x, before, w, made, *window, 1e-5, statistics(channels), **way)
        conv.conv2d_normalized_backward_weight(run, x, before, dy, ones(*w.shape), *window, **way)
        found = GradientSums(*(ones(channels) for _ in range(4)))
        conv.conv2d_normalized_backward_input(run, dy, w, made, *window, x, before, found, **way)

    return call


WGMMA = _convolution((2, 8, 8, 32), 3, 64, technique="wgmma")
WGMMA_KERNELS = (
    ("conv2d_forward", 2.5, TILES),
    ("conv2d_backward_input", 3.5, TILES),
    ("conv2d_backward_weight", 3.5, TILES),
    ("conv2d_forward_pack", 1 + SLACK, ""),
    ("conv2d_backward_input_pack", 1 + SLACK, ""),
)


def _linear(technique: str) -> Call:
    arrays = ones(128, 256), ones(128, 256), ones(128), ones(128, 128)
    return lambda run: linear.linear_forward(run, *arrays, technique=technique)


def _few_outputs(run: EmulatorRunner) -> None:
    x, w, y = ones(384, 512), ones(10, 512), ones(384, 10)
    linear.linear_forward(run, x, w, ones(10), y, technique="skinny")
    linear.linear_backward_input(run, y, w, x, technique="skinny")
    linear.linear_backward_weight(run, x, y, w, technique="skinny")


NARROW = BFLOAT16, FLOAT16
MNIST, CIFAR = (4, 28, 28, 1), (1, 32, 32, 3)
FIRST_LAYERS = (
    ("4x28x28x1, 3x3 to 32", _convolution(MNIST, 3, 32), 1.1),
    ("1x32x32x3, 3x3 to 16", _convolution(CIFAR, 3, 16), 1.1),
    ("1x32x32x3, 5x5 to 64, stride 2", _convolution(CIFAR, 5, 64, 2, 2), 1.5),
)
STORED_FIRST_LAYERS = (
    *((f"4x28x28x1, 3x3 to 32, {one}", _convolution(MNIST, 3, 32, of_y=one), 1.1) for one in NARROW),
    ("1x32x32x3, 3x3 to 16, bfloat16", _convolution(CIFAR, 3, 16, of_y=BFLOAT16), 1.15),
    ("1x32x32x3, 3x3 to 64, float16", _convolution(CIFAR, 3, 64, of_y=FLOAT16), 1.2),
    ("1x32x32x3, 5x5 to 64, stride 2, bfloat16", _convolution(CIFAR, 5, 64, 2, 2, of_y=BFLOAT16), 1.1),
)
LINES = (
    *(
        Line(f"conv2d_{direction}_vector_first_layer", shape, call, limit, LINES_AROUND)
        for shape, call, limit in (*FIRST_LAYERS, *STORED_FIRST_LAYERS)
        for direction in ("forward", "backward_weight")
    ),
    *(
        Line(f"conv2d_{direction}_{technique}", "1x8x8x16, 3x3 to 64", call, 3.5, TILES)
        for technique in TECHNIQUES[:2]
        for call in (_convolution((1, 8, 8, 16), 3, 64, technique=technique),)
        for direction in ("forward", "backward_weight", "backward_input")
    ),
    *(Line(f"{kernel}_wgmma", "2x8x8x32, 3x3 to 64", WGMMA, limit, why) for kernel, limit, why in WGMMA_KERNELS),
    *(
        Line(f"conv2d_normalized_{direction}_tensor_core", "2x8x8x32, 3x3 to 32", _normalized_convolution(), 4.0, SLABS)
        for direction in ("forward", "backward_weight", "backward_input")
    ),
    *(
        Line(f"conv2d_{direction}_narrow_tensor_core", f"1x8x8x64, 3x3 to 64, {storage}", call, 3.5, TILES)
        for storage in NARROW
        for call in (_convolution((1, 8, 8, 64), 3, 64, 1, 1, "tensor_core", storage, storage),)
        for direction in ("forward", "backward_weight", "backward_input")
    ),
    *(
        Line(f"conv2d_normalized_{direction}_narrow_tensor_core", f"2x8x8x32, 3x3 to 32, {storage}", call, 5.0, SLABS)
        for storage in NARROW
        for call in (_normalized_convolution(storage),)
        for direction in ("forward", "backward_weight", "backward_input")
    ),
    Line("matmul_tiled", "128x256 times 256x128", _linear("tiled"), 2.0, TILES),
    Line("linear_forward_skinny", "384x512 to 10", _few_outputs, 1.25, "the weights are read for each 48 rows"),
    Line("linear_backward_input_skinny", "384x512 to 10", _few_outputs, 1.3, "the weights are read for each 32 rows"),
    Line("linear_backward_weight_skinny", "384x512 to 10", _few_outputs, 1.1, "dy is read for each 128 columns"),
    Line("matmul_tensor_core", "128x256 times 256x128", _linear("tensor_core")),
)
