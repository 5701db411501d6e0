"""Layers without parameters or state: ReLU, the pools and Flatten."""

from typing import Any

import numpy as np
import pytest

from kernels.errors import ShapeError
from minidl import nn

WINDOWS = [  # image, kernel, stride, padding
    ((6, 6), 2, None, 0),
    ((7, 5), 2, None, 0),  # the last row and column are in no window
    ((7, 6), 3, 2, 1),
    ((5, 8), (3, 2), (1, 3), (1, 0)),
    ((4, 4), 4, 4, 2),
    ((5, 5), 3, 1, 1),  # windows overlap
    ((4, 5), 1, 2, 0),
]
ROUNDED_UP = [  # image, kernel, stride, padding, dilation
    ((7, 5), 2, None, 0, 1),
    ((6, 7), 3, 2, 1, 1),
    ((9, 11), (3, 2), (2, 3), 1, 1),  # across, the last window would begin in the padding
    ((2, 3), (3, 5), (2, 3), (0, 2), 1),
    ((7, 8), 3, 2, 1, (2, 1)),
]
DILATED = [((9, 8), 3, 1, 1, 2), ((9, 11), (2, 3), (2, 1), (1, 0), (3, 2)), ((5, 5), 2, None, 0, 3)]


@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 4, 5)])
def test_relu_is_pytorchs(backend, normal, oracle, passes, shape: Any) -> None:
    x, dy = normal(*shape), normal(*shape)
    x.reshape(-1)[:3] = (0.0, -0.0, np.nan)
    ours, theirs = passes(nn.ReLU(device=backend), x, dy), oracle.run(oracle.torch.nn.ReLU(), x, dy)
    assert np.array_equal(ours.y, theirs.y, equal_nan=True)
    assert np.array_equal(ours.dx, theirs.dx)


@pytest.mark.parametrize(("image", "kernel", "stride", "padding"), WINDOWS)
def test_max_pool_is_pytorchs(
    backend, normal, oracle, passes, within, unit, image: Any, kernel: Any, stride: Any, padding: Any
) -> None:
    layer = nn.MaxPool2d(kernel, stride, padding, device=backend)
    twin = oracle.torch.nn.MaxPool2d(kernel, stride, padding)
    x = np.round(normal(2, *image, 3))  # whole numbers: most windows have several maxima
    x[0, 1, 1, 0] = np.nan
    x[1, :, :, 2] = -np.inf
    dy = normal(*layer.output_shape(x.shape))
    ours, theirs = passes(layer, x, dy), oracle.run(twin, x, dy)
    assert np.array_equal(ours.y, theirs.y, equal_nan=True)
    taps = int(np.prod(layer.kernel_size))  # the most windows that an element can be the maximum of
    within(ours.dx, theirs.dx, taps * unit * oracle.run(twin, x, np.abs(dy)).dx, "dx")


@pytest.mark.parametrize(
    ("image", "kernel", "stride", "padding", "dilation", "ceil_mode"),
    [*((*case, True) for case in ROUNDED_UP), *((*case, False) for case in DILATED)],
)
def test_max_pool_rounded_up_and_dilated_is_pytorchs(
    backend, normal, oracle, passes, within, unit, image: Any, kernel: Any, stride: Any, padding: Any, dilation: Any,
    ceil_mode: bool,
) -> None:  # fmt: skip
    layer = nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil_mode, device=backend)
    twin = oracle.torch.nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil_mode)
    x = np.round(normal(2, *image, 3))
    x[0, 1, 1, 0] = np.nan
    x[1, :, :, 2] = -np.inf
    dy = normal(*layer.output_shape(x.shape))
    ours, theirs = passes(layer, x, dy), oracle.run(twin, x, dy)
    assert np.array_equal(ours.y, theirs.y, equal_nan=True)
    taps = int(np.prod(layer.kernel_size))
    within(ours.dx, theirs.dx, taps * unit * oracle.run(twin, x, np.abs(dy)).dx, "dx")


@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize(("image", "kernel", "stride", "padding"), WINDOWS)
def test_avg_pool_is_pytorchs(
    backend, normal, oracle, passes, within, unit, image: Any, kernel: Any, stride: Any, padding: Any, count_include_pad
) -> None:
    layer = nn.AvgPool2d(kernel, stride, padding, count_include_pad=count_include_pad, device=backend)
    twin = oracle.torch.nn.AvgPool2d(kernel, stride, padding, count_include_pad=count_include_pad)
    averages_agree(layer, twin, normal(2, *image, 3), normal, oracle, passes, within, unit)


@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize(("image", "kernel", "stride", "padding"), [case[:4] for case in ROUNDED_UP])
def test_avg_pool_rounded_up_is_pytorchs(
    backend, normal, oracle, passes, within, unit, image: Any, kernel: Any, stride: Any, padding: Any, count_include_pad
) -> None:
    arguments = kernel, stride, padding, True, count_include_pad  # in PyTorch's order
    layer, twin = nn.AvgPool2d(*arguments, device=backend), oracle.torch.nn.AvgPool2d(*arguments)
    averages_agree(layer, twin, normal(2, *image, 3), normal, oracle, passes, within, unit)


def averages_agree(layer: Any, twin: Any, x: Any, normal, oracle, passes, within, unit) -> None:
    dy = normal(*layer.output_shape(x.shape))
    ours, theirs, sums = passes(layer, x, dy), oracle.run(twin, x, dy), oracle.absolute(twin, x, dy)
    taps = int(np.prod(layer.kernel_size))
    within(ours.y, theirs.y, (taps + 1) * unit * sums.y, "y")
    within(ours.dx, theirs.dx, (taps + 1) * unit * sums.dx, "dx")


@pytest.mark.parametrize("image", [(1, 1), (5, 7), (8, 8)])
def test_global_avg_pool_is_pytorchs(backend, normal, oracle, passes, within, unit, image: Any) -> None:
    nn_ = oracle.torch.nn
    twin = nn_.Sequential(nn_.AdaptiveAvgPool2d(1), nn_.Flatten())
    x, dy = normal(3, *image, 4), normal(3, 4)
    layer = nn.GlobalAvgPool2d(device=backend)
    ours, theirs, sums = passes(layer, x, dy), oracle.run(twin, x, dy), oracle.absolute(twin, x, dy)
    within(ours.y, theirs.y, (image[0] * image[1] + 1) * unit * sums.y, "y")
    within(ours.dx, theirs.dx, 2 * unit * sums.dx, "dx")


def test_flatten_has_pytorchs_order(backend, normal, oracle, passes) -> None:
    x, dy = normal(3, 4, 5, 2), normal(3, 40)
    ours = passes(nn.Flatten(device=backend), x, dy)
    theirs = oracle.run(oracle.torch.nn.Flatten(), x, dy)
    assert np.array_equal(ours.y, theirs.y)
    assert np.array_equal(ours.dx, theirs.dx)
    assert ours.y[1, 0 * 20 + 2 * 5 + 3] == x[1, 2, 3, 0]  # channel, height, width


@pytest.mark.parametrize(
    ("make", "y_shape"),
    [
        (nn.ReLU, (0, 4, 6, 3)),
        (nn.Flatten, (0, 72)),
        (nn.GlobalAvgPool2d, (0, 3)),
        (lambda **d: nn.MaxPool2d(2, **d), (0, 2, 3, 3)),
        (lambda **d: nn.AvgPool2d(2, **d), (0, 2, 3, 3)),
    ],
)
def test_an_empty_batch_passes(make: Any, y_shape: Any, backend, passes) -> None:
    x = np.empty((0, 4, 6, 3), backend.dtype)
    result = passes(make(device=backend), x, np.empty(y_shape, backend.dtype))
    assert result.y.shape == y_shape
    assert result.dx.shape == x.shape


def test_wrong_windows_are_refused_as_pytorch_refuses_them(backend) -> None:
    for kind in (nn.MaxPool2d, nn.AvgPool2d):
        with pytest.raises(ValueError, match=f"{kind.__name__}: kernel_size and stride must be at least 1.*\\(0, 0\\)"):
            kind(0)
        with pytest.raises(ValueError, match=f"{kind.__name__}: padding must be at most half of kernel_size"):
            kind(3, padding=2)
        with pytest.raises(ShapeError, match=f"{kind.__name__}: a kernel of 3 does not fit an axis of 2 elements"):
            kind(3, device=backend).forward(np.zeros((1, 5, 2, 1), backend.dtype))
    with pytest.raises(ValueError, match=r"MaxPool2d: dilation must be at least 1.*dilation=\(0, 0\)"):
        nn.MaxPool2d(2, dilation=0)
    layer = nn.MaxPool2d(2, 1, 1, 2, device=backend)
    with pytest.raises(
        ShapeError, match="MaxPool2d: a kernel of 2 with padding 1 and dilation 2 has a window on an axis"
    ):
        layer.forward(np.zeros((1, 5, 1, 1), backend.dtype))
    with pytest.raises(
        ShapeError, match="Conv2d: a kernel of 3 does not fit an axis of 2 elements with padding 0; use"
    ):
        nn.Conv2d(1, 1, 3, device=backend).forward(np.zeros((1, 2, 5, 1), backend.dtype))


def test_they_print_their_arguments() -> None:
    assert repr(nn.MaxPool2d(2)) == "MaxPool2d(kernel_size=(2, 2), stride=(2, 2), padding=(0, 0))"
    window = "kernel_size=(3, 3), stride=(2, 2), padding=(1, 1)"
    assert repr(nn.MaxPool2d(3, 2, 1, 2, ceil_mode=True)) == f"MaxPool2d({window}, dilation=(2, 2), ceil_mode=True)"
    assert repr(nn.AvgPool2d(3, 2, 1, count_include_pad=False)) == f"AvgPool2d({window}, count_include_pad=False)"
    assert repr(nn.ReLU()) == "ReLU()"
