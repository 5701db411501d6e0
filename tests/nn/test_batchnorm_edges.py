"""Batch normalization where there is little or nothing to normalize: one value a channel, no rows, other shapes."""

from typing import Any

import numpy as np
import pytest

from kernels.errors import ShapeError
from minidl import nn

ONE_VALUE = [(nn.BatchNorm1d, (1, 3)), (nn.BatchNorm1d, (1, 1, 3)), (nn.BatchNorm2d, (1, 1, 1, 3))]
EMPTY = [(nn.BatchNorm1d, (0, 3)), (nn.BatchNorm1d, (0, 4, 3)), (nn.BatchNorm2d, (0, 4, 5, 3))]


@pytest.mark.parametrize(("kind", "shape"), ONE_VALUE)
def test_one_value_a_channel_in_training_is_an_error_that_changes_nothing(
    kind: Any, shape: Any, backend, same_bits
) -> None:
    layer = kind(3, device=backend)
    before = layer.state_dict()
    with pytest.raises(
        ValueError, match=r"training needs more than one value for each channel.*use a larger batch"
    ) as e:
        layer.forward(np.ones(shape, backend.dtype))
    assert str(shape) in str(e.value)
    assert kind.__name__ in str(e.value)
    assert all(same_bits(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize(("kind", "shape"), ONE_VALUE)
def test_one_value_a_channel_is_an_error_wherever_the_batch_is_what_normalizes(kind: Any, shape: Any, backend) -> None:
    layer = kind(3, track_running_stats=False, device=backend).eval()
    with pytest.raises(ValueError, match="more than one value for each channel"):
        layer.forward(np.ones(shape, backend.dtype))


def test_one_image_of_several_pixels_is_enough(backend, normal, oracle, passes, within) -> None:
    layer = nn.BatchNorm2d(3, device=backend)
    twin = oracle.load(oracle.torch.nn.BatchNorm2d(3), layer)
    x, dy = normal(1, 1, 2, 3), normal(1, 1, 2, 3)
    ours, theirs = passes(layer, x, dy), oracle.run(twin, x, dy)
    # Of two values the variance is half their distance, squared: no cancellation beyond that of the distance itself,
    # which the draw keeps above 1/10 of the values.
    assert (np.abs(np.diff(x, axis=2)) > 0.1 * np.abs(x).max(axis=2, keepdims=True)).all()
    unit = np.finfo(backend.dtype).eps
    within(ours.y, theirs.y, 200 * unit, "y")
    within(ours.state["running_var"], theirs.state["running_var"], 200 * unit, "running_var")


@pytest.mark.parametrize(("kind", "shape"), ONE_VALUE)
def test_one_value_a_channel_is_fine_in_evaluation(kind: Any, shape: Any, backend) -> None:
    layer = kind(3, eps=3.0, device=backend).eval()  # 1 / sqrt(1 + 3)
    assert np.array_equal(layer.forward(np.full(shape, 8, backend.dtype)), np.full(shape, 4))
    assert np.array_equal(layer.backward(np.full(shape, 8, backend.dtype)), np.full(shape, 4))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize(("kind", "shape"), EMPTY)
def test_an_empty_batch_gives_an_empty_output_and_leaves_running_statistics_alone(
    kind: Any, shape: Any, momentum: float | None, training: bool, backend, oracle, passes, same_bits
) -> None:
    layer = kind(3, momentum=momentum, device=backend).train(training)
    twin = oracle.load(getattr(oracle.torch.nn, kind.__name__)(3, momentum=momentum), layer).train(training)
    before = layer.state_dict()
    x = np.empty(shape, backend.dtype)
    ours = passes(layer, x, x)
    twin(oracle.tensor(x))
    assert ours.y.shape == ours.dx.shape == shape
    assert all((grad == 0).all() for grad in ours.grads.values())
    assert same_bits(ours.state["running_mean"], before["running_mean"])
    assert same_bits(ours.state["running_var"], before["running_var"])
    assert ours.state["num_batches_tracked"] == twin.num_batches_tracked.numpy()


def test_an_empty_batch_passes_where_nothing_is_tracked(backend, passes) -> None:
    layer = nn.BatchNorm2d(3, affine=False, track_running_stats=False, device=backend)
    x = np.empty((0, 2, 2, 3), backend.dtype)
    for mode in (layer.train(), layer.eval()):
        assert passes(mode, x, x).dx.shape == x.shape


def test_a_constant_channel_gives_its_bias(backend) -> None:
    layer = nn.BatchNorm2d(3, device=backend)
    layer.bias.value[:] = (1, -2, 0.5)
    x = np.broadcast_to(np.array([10000.1, -1e7, 0], backend.dtype), (4, 5, 5, 3))
    assert np.array_equal(layer.forward(x), np.broadcast_to(layer.bias.value, x.shape))
    assert np.array_equal(layer.running_var, np.full(3, 0.9, backend.dtype))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_stay_in_their_channel(value: float, backend, normal, passes) -> None:
    layer = nn.BatchNorm2d(3, device=backend)
    x = normal(4, 5, 5, 3)
    x[2, 1, 3, 1] = value
    result = passes(layer, x, normal(4, 5, 5, 3))
    for array in (result.y, result.dx, *result.grads.values(), layer.running_mean, layer.running_var):
        finite = np.isfinite(array).reshape(-1, 3).all(axis=0)
        assert finite[0]
        assert finite[2]
    assert not np.isfinite(result.y[..., 1]).any()
    assert not np.isfinite(layer.running_var[1])


@pytest.mark.parametrize(
    ("kind", "shape", "wanted"),
    [
        (nn.BatchNorm1d, (2, 4), "(n, 3)"),
        (nn.BatchNorm1d, (2, 5, 4), "(n, l, 3)"),
        (nn.BatchNorm2d, (2, 3), "(n, h, w, 3)"),
        (nn.BatchNorm2d, (2, 3, 4, 4), "(n, h, w, 3)"),  # channels first, the likely mistake
    ],
)
def test_another_shape_is_refused(kind: Any, shape: Any, wanted: str) -> None:
    with pytest.raises(ShapeError) as e:
        kind(3).forward(np.zeros(shape, np.float32))
    assert str(e.value) == f"{kind.__name__}: the input has shape {shape}, expected {wanted}"


@pytest.mark.parametrize("shape", [(3,), (2, 3, 3, 3)])
def test_batchnorm1d_names_both_its_shapes(shape: Any) -> None:
    with pytest.raises(ShapeError, match=r"expected \(n, 3\) or \(n, l, 3\)"):
        nn.BatchNorm1d(3).forward(np.zeros(shape, np.float32))


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="BatchNorm2d: num_features must be at least 1, got 0"):
        nn.BatchNorm2d(0)
    for eps in (0, -1e-5, float("nan")):
        with pytest.raises(ValueError, match=f"BatchNorm1d: eps must be greater than 0, got {eps}"):
            nn.BatchNorm1d(3, eps=eps)


def test_it_prints_its_arguments() -> None:
    assert repr(nn.BatchNorm1d(3, eps=0.1, momentum=None, affine=False)) == (
        "BatchNorm1d(3, eps=0.1, momentum=None, affine=False, track_running_stats=True)"
    )
