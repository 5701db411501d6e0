"""The kernels for images of 1 to 3 channels; numbers are whole, so that every sum is exact."""

from typing import Any, NamedTuple

import numpy as np
import pytest
from emulated import blank, figures, launched, placed
from numba import int64
from numpy.testing import assert_array_equal

from kernels.conv import (
    conv2d_backward_weight,
    conv2d_backward_weight_reference,
    conv2d_forward,
    conv2d_forward_reference,
)
from kernels.conv.first_layer import (
    SHARED,
    conv2d_forward_vector_first_layer,
    patch_lines,
    tile_of,
)
from kernels.conv.first_layer_gradient import conv2d_backward_weight_vector_first_layer
from kernels.conv.first_layer_share import TERMS, share_of
from kernels.conv.geometry import Geometry
from kernels.errors import TechniqueError
from kernels.run_dry import DryRunner
from kernels.run_emulated import EmulatorRunner
from kernels.storage import FLOAT32

FORWARD, BACKWARD = "conv2d_forward_{}_first_layer", "conv2d_backward_weight_{}_first_layer"


class Layer(NamedTuple):
    """x (n, h, w, c_in), a square kernel, c_out, stride and padding."""

    x: tuple[int, int, int, int]
    kernel: int
    c_out: int
    stride: int = 1
    padding: int = 0

    @property
    def geometry(self) -> Geometry:
        sizes = self.kernel, self.kernel, self.c_out, self.stride, self.stride, self.padding, self.padding
        return Geometry(*self.x[1:], *sizes)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of x, w, bias and y."""
        g = self.geometry
        return self.x, (g.kh, g.kw, g.c_in, g.c_out), (g.c_out,), (self.x[0], g.ho, g.wo, g.c_out)

    @property
    def window(self) -> tuple[tuple[int, int], tuple[int, int]]:
        return (self.stride, self.stride), (self.padding, self.padding)


LAYERS = [
    Layer((1, 1, 1, 1), 1, 4),
    Layer((0, 5, 5, 3), 3, 4, padding=1),  # no image
    Layer((2, 28, 28, 1), 3, 32, padding=1),
    Layer((1, 15, 15, 1), 5, 20),
    Layer((1, 28, 28, 1), 5, 6, padding=2),  # one channel a thread
    Layer((1, 16, 16, 3), 3, 16, padding=1),
    Layer((1, 17, 32, 3), 3, 8, stride=2, padding=1),
    Layer((2, 13, 11, 2), 3, 68, padding=1),  # blocks side by side, the last nearly idle; strips beyond a line's end
    Layer((2, 9, 10, 3), 5, 12, stride=2, padding=2),  # several sets
    Layer((1, 19, 17, 3), 7, 8, stride=2, padding=3),
    Layer((1, 12, 12, 1), 7, 4, padding=3),
    Layer((3, 14, 14, 1), 3, 4),
    Layer((2, 13, 11, 3), 3, 4, stride=3),  # the last columns are in no window
    Layer((1, 9, 8, 3), 1, 4, stride=2),  # a stride larger than the kernel
    Layer((1, 4, 4, 2), 1, 4, padding=2),  # windows that are all padding
    Layer((1, 3, 3, 2), 3, 8, padding=5),
    Layer((1, 5, 40, 3), 5, 4, stride=4, padding=2),  # a strip of few pixels
    Layer((1, 9, 9, 1), 9, 5),  # one window
]


def whole(rng: np.random.Generator, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    return [rng.integers(-3, 4, shape).astype(np.float32) for shape in shapes]


def both(layer: Layer, arrays: list[np.ndarray], bias: np.ndarray | None, **options: Any) -> tuple[Any, Any]:
    """(y, dw) by the kernels; `arrays` are x, w and dy."""
    x, w, dy = arrays
    y, dw, run = blank(dy.shape), blank(w.shape), EmulatorRunner()
    conv2d_forward(run, x, w, bias, y, *layer.window, **options)
    conv2d_backward_weight(run, x, dy, dw, *layer.window, **options)
    return y, dw


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_whole_numbers_are_exact(rng: np.random.Generator, layer: Layer) -> None:
    x, w, bias, dy = whole(rng, *layer.shapes)
    y, dw = both(layer, [x, w, dy], bias, technique="first_layer")
    assert_array_equal(y, conv2d_forward_reference(x, w, bias, *layer.window))
    assert_array_equal(dw, conv2d_backward_weight_reference(x, dy, w.shape, *layer.window))


@pytest.mark.parametrize("layer", [LAYERS[7], LAYERS[9]], ids=str)
def test_indices_of_64_bits_and_several_tiles_a_block(rng: np.random.Generator, layer: Layer) -> None:
    x, w, bias, dy = whole(rng, *layer.shapes)
    tile, share, run = tile_of(layer.geometry, 4), share_of(layer.geometry, 4), EmulatorRunner()
    y = blank(dy.shape)
    run(conv2d_forward_vector_first_layer(tile, layer.geometry, True, int64, FLOAT32), x, w, bias, y, len(x), 2)
    assert_array_equal(y, conv2d_forward_reference(x, w, bias, *layer.window))
    parts = -(-share.tiles(layer.geometry, len(x)) // 3)
    dw = blank((parts, *w.shape))
    run(conv2d_backward_weight_vector_first_layer(share, layer.geometry, int64, FLOAT32), x, dy, dw, len(x), 3)
    assert_array_equal(dw.sum(axis=0), conv2d_backward_weight_reference(x, dy, w.shape, *layer.window))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "layer",
    [Layer((2, 5, 6, 3), 3, 4, padding=1), Layer((1, 11, 11, 1), 3, 8), Layer((1, 9, 10, 3), 5, 5, 2, 2)],
    ids=str,
)
def test_what_is_not_finite_goes_where_the_definition_says(
    rng: np.random.Generator, layer: Layer, value: float
) -> None:
    """Also with pixels beyond a line's end, which a strip has: they are in no sum."""
    for places in ((0.0, 0.0, 0.5), (1.0, 0.5, 1.0), (0.5, 1.0, 0.0)):  # of x, w and dy
        x, w, _, dy = whole(rng, *layer.shapes)
        for array, place in zip((x, w, dy), places, strict=True):
            array.reshape(-1)[round(place * (array.size - 1))] = value
        y, dw = both(layer, [x, w, dy], None, technique="first_layer")
        assert_array_equal(y, conv2d_forward_reference(x, w, None, *layer.window))
        assert_array_equal(dw, conv2d_backward_weight_reference(x, dy, w.shape, *layer.window))


def test_it_is_taken_where_it_can_be(rng: np.random.Generator) -> None:
    for layer, width in ((LAYERS[5], "vector"), (LAYERS[4], "scalar")):
        x, w, bias, dy = whole(rng, *layer.shapes)
        assert launched(conv2d_forward, x, w, bias, dy, *layer.window) == [FORWARD.format(width)]
        assert launched(conv2d_backward_weight, x, dy, w, *layer.window)[0] == BACKWARD.format(width)
    x, w, bias, dy = whole(rng, *LAYERS[5].shapes)
    window = LAYERS[5].window
    off = blank(dy.shape, offset=1)
    assert launched(conv2d_forward, x, w, bias, off, *window) == [FORWARD.format("scalar")]
    assert launched(conv2d_forward, x, placed(w, 1), bias, dy, *window) == [FORWARD.format("scalar")]
    assert launched(conv2d_forward, x, w, placed(bias, 1), dy, *window) == [FORWARD.format("scalar")]
    assert launched(conv2d_forward, placed(x, 1), w, bias, dy, *window) == [FORWARD.format("vector")]
    assert launched(conv2d_backward_weight, x, off, w, *window)[0] == BACKWARD.format("scalar")


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (Layer((1, 8, 8, 4), 3, 8), "x has 4 channels, a first layer's kernel takes at most 3"),
        (Layer((1, 12, 12, 3), 11, 8), "a window has 363 elements, a first layer's kernel takes at most 256"),
        (
            Layer((1, 7, 3000, 3), 7, 8),
            "7 lines of 3000 pixels and the weights of a first layer exceed a block's shared memory",
        ),
    ],
    ids=str,
)
def test_what_it_cannot_take(rng: np.random.Generator, layer: Layer, why: str) -> None:
    x, w, bias, dy = whole(rng, *layer.shapes)
    for host, arrays in ((conv2d_forward, (x, w, bias, dy)), (conv2d_backward_weight, (x, dy, w))):
        with pytest.raises(TechniqueError, match=f"{host.__name__} .* technique 'first_layer': {why}; implicit_gemm"):
            host(EmulatorRunner(), *arrays, *layer.window, technique="first_layer")
        assert "first_layer" not in launched(host, *arrays, *layer.window)[0]


def test_a_precision_that_is_none_is_refused_of_a_first_layer_too(rng: np.random.Generator) -> None:
    x, w, bias, dy = whole(rng, *LAYERS[5].shapes)
    for host, arrays in ((conv2d_forward, (x, w, bias, dy)), (conv2d_backward_weight, (x, dy, w))):
        with pytest.raises(ValueError, match="precision 'tf23' is given, expected fp32, tf32, bf16 or fp16"):
            host(EmulatorRunner(), *arrays, *LAYERS[5].window, precision="tf23")


@pytest.mark.parametrize(
    ("shape", "kernel", "why"),
    [
        ((1, 8, 8, 3), 3, "x has c_in = 3: whole lines of it in shared memory"),
        ((1, 8, 8, 4), 3, "x has 4 channels, a first layer's kernel takes at most 3; precision fp32"),
        ((1, 12, 12, 3), 11, "a window has 363 elements, a first layer's kernel takes at most 256; precision fp32"),
        ((1, 8, 8, 12), 3, "precision fp32"),  # no image
    ],
    ids=str,
)
def test_a_layer_that_may_be_the_first_says_why_it_is_not_taken_for_one(shape, kernel: int, why: str) -> None:
    run, x, w = DryRunner(), blank(shape), blank((kernel, kernel, shape[3], 8))
    side = shape[1] - kernel + 1
    conv2d_forward(run, x, w, None, blank((1, side, side, 8)), (1, 1), (0, 0))
    conv2d_backward_weight(run, x, blank((1, side, side, 8)), w, (1, 1), (0, 0))
    assert [one.why for one in run.chosen] == [why, why]


def test_a_shorter_batch_runs_the_same_kernels() -> None:
    kernels = []
    for n in (4, 1):
        run, x, y = EmulatorRunner(counts=True), blank((n, 8, 8, 3)), blank((n, 8, 8, 8))
        w = blank((3, 3, 3, 8))
        conv2d_forward(run, x, w, None, y, (1, 1), (1, 1))
        conv2d_backward_weight(run, x, y, w, (1, 1), (1, 1))
        kernels.append([one.kernel for one in run.launched if "conv2d" in one.kernel.name])
    assert kernels[0] == kernels[1]


def test_a_sum_has_no_more_terms_than_promised_whatever_the_batch() -> None:
    for layer in LAYERS[2:]:
        share = share_of(layer.geometry, 4 if layer.c_out % 4 == 0 else 1)
        for n in (1, 1000, 100_000):
            assert share.span(layer.geometry, n) * share.rounds * share.pixels <= TERMS
        assert share.shared(layer.geometry) <= SHARED


def test_y_and_dy_pass_once_and_x_with_a_halo() -> None:
    layer = Layer((2, 32, 32, 3), 3, 16, padding=1)
    x, w, _, y = (blank(shape) for shape in layer.shapes)
    found = figures(conv2d_forward, x, w, None, y, *layer.window)
    assert found.bank_conflicts == 0
    assert found.store_bytes == y.nbytes == 32 * found.store_sectors
    tile = tile_of(layer.geometry, 4)
    halo = patch_lines(layer.geometry, tile.lines) / tile.lines
    assert found.load_bytes <= halo * x.nbytes + 2 * len(x) * w.nbytes
    run = EmulatorRunner(counts=True)
    conv2d_backward_weight(run, x, y, w, *layer.window)
    found = run.launched[0].report.counts.total
    assert found.bank_conflicts == 0
    assert found.load_bytes <= y.nbytes + 2 * x.nbytes
