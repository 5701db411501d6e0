"""Ghost batches: each is BatchNorm of its own images, bit for bit; the running statistics move once a batch."""

from typing import Any

import numpy as np
import pytest

from kernels.errors import ShapeError
from minidl import nn
from minidl.backends import Backend, get_backend
from minidl.lab.gradcheck import check_gradient
from minidl.nn.init import manual_seed

ROUNDING = 1e-12  # float64 on both sides: a few thousand roundings of numbers of size 1
SHAPES = [
    ("GhostBatchNorm1d", (12, 3), 4),
    ("GhostBatchNorm1d", (6, 5, 4), 2),
    ("GhostBatchNorm2d", (6, 3, 5, 4), 3),
    ("GhostBatchNorm2d", (4, 3, 3, 3), 1),
]


@pytest.fixture(params=["reference", "cpu", "emulator"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return get_backend(request.param)


def slices(batch: int, size: int) -> list[slice]:
    return [slice(i, i + size) for i in range(0, batch, size)]


def plain(kind: str) -> Any:
    return getattr(nn, kind.removeprefix("Ghost"))


def changed(layer: Any) -> Any:
    """With parameters that are not the initial ones."""
    rng = np.random.default_rng(1)
    for parameter in layer.parameters():
        parameter.load(rng.standard_normal(parameter.shape))
    return layer


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("kind", "shape", "size"), SHAPES)
def test_each_ghost_batch_is_batchnorm_of_its_images(
    kind: str, shape: Any, size: int, training: bool, backend, rng, same_bits
) -> None:
    """In evaluation without running statistics too."""
    options = {"device": backend, "track_running_stats": False}
    layer = changed(getattr(nn, kind)(shape[-1], size, **options)).train(training)
    x, residual, dy = rng.standard_normal((3, *shape)).astype(backend.dtype)
    for relu in (False, True):
        layer.zero_grad()
        y = layer.normalize(x, relu)
        dx = layer.backward(dy)
        of_parts = changed(plain(kind)(shape[-1], **options))
        for part in slices(len(x), size):
            assert same_bits(y[part], of_parts.normalize(x[part], relu))
            assert same_bits(dx[part], of_parts.backward(dy[part]))
        for ours, theirs in zip(layer.parameters(), of_parts.parameters(), strict=True):
            assert same_bits(ours.grad, theirs.grad)
    y = layer.normalize_add_relu(x, residual)
    dx, dresidual = layer.backward_add_relu(dy)
    for part in slices(len(x), size):
        assert same_bits(y[part], of_parts.normalize_add_relu(x[part], residual[part]))
        for ours, theirs in zip((dx[part], dresidual[part]), of_parts.backward_add_relu(dy[part]), strict=True):
            assert same_bits(ours, theirs)


@pytest.mark.parametrize(("kind", "shape", "size"), SHAPES)
def test_forward_and_backward_are_pytorchs_of_each_ghost_batch(
    kind: str, shape: Any, size: int, oracle, reference, passes, within, rng
) -> None:
    layer = changed(getattr(nn, kind)(shape[-1], size, device=reference))
    x, dy = rng.standard_normal((2, *shape))
    ours = passes(layer, x, dy)
    torch, axis = oracle.torch, -1
    weight, bias = (torch.from_numpy(p.value.copy()).requires_grad_() for p in (layer.weight, layer.bias))
    inputs = torch.from_numpy(x).requires_grad_()
    outputs = [
        torch.nn.functional.batch_norm(part.movedim(axis, 1), None, None, weight, bias, training=True).movedim(1, axis)
        for part in inputs.split(size)
    ]
    y = torch.cat(outputs)
    y.backward(torch.from_numpy(dy))
    within(ours.y, y.detach().numpy(), ROUNDING, "y")
    within(ours.dx, inputs.grad.numpy(), ROUNDING, "dx")
    within(ours.grads["weight"], weight.grad.numpy(), 100 * ROUNDING, "gradient of weight")
    within(ours.grads["bias"], bias.grad.numpy(), 100 * ROUNDING, "gradient of bias")


@pytest.mark.parametrize("momentum", [0.1, 1.0, 0.0, 0.37, None])
def test_running_statistics_move_once_a_batch_towards_the_mean_over_ghost_batches(
    momentum: float | None, backend, rng
) -> None:
    layer = nn.GhostBatchNorm2d(3, 4, momentum=momentum, device=backend)
    mean, var = np.zeros(3), np.ones(3)
    for step in range(1, 4):
        x = (rng.standard_normal((20, 2, 3, 3)) + rng.standard_normal((20, 1, 1, 3))).astype(backend.dtype)
        layer.forward(x)
        parts = [x[part].reshape(-1, 3).astype(np.float64) for part in slices(20, 4)]
        factor = 1 / step if momentum is None else momentum
        mean = (1 - factor) * mean + factor * np.mean([part.mean(axis=0) for part in parts], axis=0)
        var = (1 - factor) * var + factor * np.mean([part.var(axis=0, ddof=1) for part in parts], axis=0)
        # Each of the 15 updates rounds a few times, numbers of size 1 (mean) or up to 4 (variance).
        tolerance = 15 * 4 * np.finfo(backend.dtype).eps
        np.testing.assert_allclose(layer.state_dict()["running_mean"], mean, rtol=0, atol=tolerance)
        np.testing.assert_allclose(layer.state_dict()["running_var"], var, rtol=0, atol=4 * tolerance)
        assert layer.num_batches_tracked == step


def test_the_mean_of_the_ghost_means_is_the_batchs_mean(reference, rng) -> None:
    """And the unbiased variances estimate the same number: over many batches they agree."""
    ghost, whole = nn.GhostBatchNorm1d(50, 4, momentum=None, device=reference), nn.BatchNorm1d(50, momentum=None)
    whole.to(reference)
    for _ in range(20):
        x = 3 * rng.standard_normal((80, 50)) + 1
        ghost.forward(x)
        whole.forward(x)
    np.testing.assert_allclose(ghost.running_mean, whole.running_mean, atol=1e-13)
    # Mean 9; the standard error over 50 channels of 1200 degrees of freedom each is 9 sqrt(2 / 60000) = 0.05.
    assert abs(ghost.running_var.mean() - 9) < 5 * 0.05
    biased = 9 * (1 - 1 / 4)
    assert abs(ghost.running_var.mean() - biased) > 20 * 0.05


def test_one_ghost_batch_is_batchnorm(backend, rng, passes, same_bits) -> None:
    x, dy = rng.standard_normal((2, 8, 3)).astype(backend.dtype)
    ghost, whole = nn.GhostBatchNorm1d(3, 8, device=backend), nn.BatchNorm1d(3, device=backend)
    ours, theirs = passes(ghost, x, dy), passes(whole, x, dy)
    assert same_bits(ours.y, theirs.y)
    assert same_bits(ours.dx, theirs.dx)
    assert list(ours.state) == list(theirs.state)
    assert all(same_bits(ours.state[name], theirs.state[name]) for name in theirs.state)
    assert all(same_bits(ours.grads[name], theirs.grads[name]) for name in theirs.grads)


def test_images_of_other_ghost_batches_have_no_effect_and_gradients_sum_to_zero_in_each(backend, rng) -> None:
    layer = nn.GhostBatchNorm2d(4, 2, device=backend)
    x, dy = rng.standard_normal((2, 6, 5, 5, 4)).astype(backend.dtype)
    y = layer.forward(x).copy()
    dx = backend.numpy(layer.backward(dy))
    other = x.copy()
    other[2:4] = 100 * rng.standard_normal((2, 5, 5, 4)) + 7
    again = layer.forward(other)
    assert np.array_equal(again[:2], y[:2])
    assert np.array_equal(again[4:], y[4:])
    assert not np.array_equal(again[2:4], y[2:4])
    unit = np.finfo(backend.dtype).eps
    for part in slices(6, 2):
        sums = dx[part].reshape(-1, 4).astype(np.float64).sum(axis=0)
        # 50 elements, each a difference of numbers of size 1 to 4 that were summed over as many.
        assert np.abs(sums).max() < 50 * 4 * 8 * unit
        rows = backend.numpy(y)[part].reshape(-1, 4).astype(np.float64)
        assert np.abs(rows.mean(axis=0)).max() < 50 * 4 * unit
        assert np.abs(rows.var(axis=0) - 1).max() < 1e-4  # eps, beside a variance near 1


def test_evaluation_and_frozen_statistics_take_any_batch(backend, rng, same_bits) -> None:
    ghost, whole = nn.GhostBatchNorm1d(3, 4, device=backend), nn.BatchNorm1d(3, device=backend)
    ghost.forward(rng.standard_normal((8, 3)).astype(backend.dtype))
    whole.load_state_dict(ghost.state_dict())
    x = rng.standard_normal((7, 3)).astype(backend.dtype)
    expected = whole.eval().forward(x)
    assert same_bits(ghost.eval().forward(x), expected)
    assert same_bits(ghost.train().freeze_statistics().forward(x), expected)


@pytest.mark.parametrize("batch", [1, 3, 6, 9])
def test_a_batch_that_is_no_multiple_is_refused_and_changes_nothing(batch: int, backend, same_bits) -> None:
    layer = nn.GhostBatchNorm1d(3, 4, device=backend)
    before = layer.state_dict()
    nearest = max(4, batch // 4 * 4)
    with pytest.raises(
        ValueError, match=rf"^GhostBatchNorm1d: a batch of {batch} is not made of ghost batches of 4"
    ) as e:
        layer.forward(np.ones((batch, 3), backend.dtype))
    assert str(e.value).endswith(f"use a multiple of 4, such as {nearest}")
    assert all(same_bits(value, before[name]) for name, value in layer.state_dict().items())
    with pytest.raises(RuntimeError, match="no forward pass"):
        layer.backward(np.ones((batch, 3), backend.dtype))


def test_one_value_a_channel_in_a_ghost_batch_is_refused(backend) -> None:
    layer = nn.GhostBatchNorm1d(3, 1, device=backend)
    with pytest.raises(
        ValueError, match=r"a ghost batch needs more than one value for each channel.*\(4, 3\) in ghost"
    ):
        layer.forward(np.ones((4, 3), backend.dtype))
    assert layer.num_batches_tracked == 0
    assert layer.forward(np.ones((4, 2, 3), backend.dtype)).shape == (4, 2, 3)


def test_an_empty_batch_leaves_running_statistics_alone(backend, passes, same_bits) -> None:
    layer = nn.GhostBatchNorm2d(3, 4, device=backend)
    before = layer.state_dict()
    x = np.empty((0, 2, 2, 3), backend.dtype)
    ours = passes(layer, x, x)
    assert ours.y.shape == ours.dx.shape == x.shape
    assert all((grad == 0).all() for grad in ours.grads.values())
    assert same_bits(layer.state_dict()["running_var"], before["running_var"])


def test_a_batch_that_is_not_contiguous_is_taken_too(backend, rng, same_bits) -> None:
    layer, wide = nn.GhostBatchNorm1d(3, 2, device=backend), rng.standard_normal((6, 6)).astype(backend.dtype)
    y = layer.forward(np.ascontiguousarray(wide[:, ::2])).copy()
    assert same_bits(layer.forward(wide[:, ::2]), y)


def test_fused_it_is_the_same_bit_for_bit(backend, rng, same_bits) -> None:
    models = []
    for _ in range(2):
        manual_seed(1)
        block = nn.Residual(nn.Conv2d(3, 3, 1), nn.GhostBatchNorm2d(3, 2), activation=nn.ReLU())
        models.append(nn.Sequential(nn.GhostBatchNorm2d(3, 2), nn.ReLU(), block).to(backend))
    assert len(nn.fuse(models[0])) == 2
    x, dy = rng.standard_normal((2, 4, 3, 3, 3)).astype(backend.dtype)
    assert same_bits(*(model.forward(x) for model in models))
    assert same_bits(*(model.backward(dy) for model in models))
    for ours, theirs in zip(*(model.parameters() for model in models), strict=True):
        assert same_bits(ours.grad, theirs.grad)
    for ours, theirs in zip(*(model.state_dict().values() for model in models), strict=True):
        assert same_bits(ours, theirs)


@pytest.mark.parametrize("relu", [False, True])
def test_gradients_through_ghost_batches(relu: bool, reference, rng) -> None:
    layer = changed(nn.GhostBatchNorm2d(3, 2, device=reference))
    x, dy = rng.standard_normal((2, 6, 2, 3, 3))

    def function(x: Any, weight: Any, bias: Any) -> Any:
        layer.weight.value, layer.bias.value = weight, bias
        return layer.normalize(x, relu)

    inputs = {"x": x, "weight": layer.weight.value.copy(), "bias": layer.bias.value.copy()}
    function(**inputs)
    gradients = {"x": layer.backward(dy), "weight": layer.weight.grad, "bias": layer.bias.grad}
    check_gradient("ghost batches", function, inputs, gradients, dy)


def test_what_a_batch_must_be_a_multiple_of() -> None:
    assert nn.batch_multiple(nn.Sequential(nn.BatchNorm1d(3), nn.ReLU())) == 1
    model = nn.Sequential(nn.GhostBatchNorm1d(3, 4), nn.Sequential(nn.GhostBatchNorm1d(3, 6)))
    assert nn.batch_multiple(model) == 12


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="GhostBatchNorm2d: ghost_size must be at least 1, got 0"):
        nn.GhostBatchNorm2d(3, 0)
    with pytest.raises(TypeError, match=r"GhostBatchNorm2d: ghost_size must be a whole number, got 2\.0"):
        nn.GhostBatchNorm2d(3, 2.0)
    with pytest.raises(ShapeError, match=r"GhostBatchNorm2d: the input has shape \(4, 3\), expected \(n, h, w, 3\)"):
        nn.GhostBatchNorm2d(3, 2).forward(np.ones((4, 3), np.float32))
    assert repr(nn.GhostBatchNorm1d(3, 8, momentum=None)) == (
        "GhostBatchNorm1d(3, ghost_size=8, eps=1e-05, momentum=None, affine=True, track_running_stats=True)"
    )
