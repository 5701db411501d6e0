import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from kernels.batchnorm import batchnorm_backward_reference, batchnorm_statistics_reference
from kernels.group_norm import (
    BatchStatistics,
    group_norm_apply_reference,
    group_norm_backward_reference,
    group_norm_statistics_reference,
)
from minidl.lab.gradcheck import check_gradient

EPS = 1e-5
# (shape, groups): of one channel, of some, of all; samples of one row, of many; one sample.
FORMS = [((3, 4), 1), ((3, 4), 2), ((2, 5, 6), 3), ((2, 3, 5, 8), 4), ((4, 3, 3, 2), 2), ((1, 7, 2, 6), 1)]


def tensors(rng, shape):
    c = shape[-1]
    x, dy = 2 + 3 * rng.standard_normal(shape), rng.standard_normal(shape)
    return x, dy, rng.uniform(0.5, 2, c) * rng.choice([-1, 1], c), rng.standard_normal(c)


def normalize(x, groups, gamma=None, beta=None, eps=EPS):
    return group_norm_apply_reference(x, group_norm_statistics_reference(x, groups, eps), groups, gamma, beta)


def test_by_hand() -> None:
    x = np.array([[[1.0, 3, 10, 10], [5, 7, 20, 20]]])  # one sample of two rows
    statistics = group_norm_statistics_reference(x, 2, eps=4.0)
    assert_array_equal(statistics.shift + statistics.delta, [[4, 15]])
    assert_array_equal(statistics.var, [[5, 25]])
    assert_array_equal(statistics.inv_std, [[1 / 3, 1 / np.sqrt(29)]])
    y = group_norm_apply_reference(x, statistics, 2, np.array([3.0, -6, 1, 1]), np.array([1.0, 0, 0, 0]))
    assert_allclose(y[0, :, :2], [[-2, 2], [2, -6]])


@pytest.mark.parametrize(("shape", "groups"), FORMS, ids=str)
@pytest.mark.parametrize("affine", [True, False])
def test_agrees_with_pytorch(torch, rng, shape, groups: int, affine: bool) -> None:
    x, dy, gamma, beta = tensors(rng, shape)
    if not affine:
        gamma = beta = None
    tx = torch.tensor(np.moveaxis(x, -1, 1).copy(), requires_grad=True)
    tg, tb = (torch.tensor(v, requires_grad=True) if affine else None for v in (gamma, beta))
    ty = torch.nn.functional.group_norm(tx, groups, tg, tb, EPS)
    ty.backward(torch.tensor(np.moveaxis(dy, -1, 1).copy()))

    statistics = group_norm_statistics_reference(x, groups, EPS)
    y = group_norm_apply_reference(x, statistics, groups, gamma, beta)
    dx, dgamma, dbeta = group_norm_backward_reference(x, dy, statistics, groups, gamma)
    close = {"rtol": 1e-12, "atol": 1e-12}  # both in float64, with mean and deviation of like size
    assert_allclose(y, np.moveaxis(ty.detach().numpy(), 1, -1), **close)
    assert_allclose(dx, np.moveaxis(tx.grad.numpy(), 1, -1), **close)
    if affine:
        assert_allclose(dgamma, tg.grad, **close)
        assert_allclose(dbeta, tb.grad, **close)


@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 5, 4)], ids=str)
def test_one_group_of_one_row_is_pytorchs_layer_norm(torch, rng, shape) -> None:
    x, dy, gamma, beta = tensors(rng, shape)
    tx, tg, tb = (torch.tensor(v, requires_grad=True) for v in (x, gamma, beta))
    ty = torch.nn.functional.layer_norm(tx, shape[-1:], tg, tb, EPS)
    ty.backward(torch.tensor(dy))

    rows = x.reshape(-1, shape[-1])
    statistics = group_norm_statistics_reference(rows, 1, EPS)
    dx, dgamma, dbeta = group_norm_backward_reference(rows, dy.reshape(rows.shape), statistics, 1, gamma)
    close = {"rtol": 1e-12, "atol": 1e-12}
    assert_allclose(normalize(rows, 1, gamma, beta).reshape(shape), ty.detach(), **close)
    assert_allclose(dx.reshape(shape), tx.grad, **close)
    assert_allclose(dgamma, tg.grad, **close)
    assert_allclose(dbeta, tb.grad, **close)


@pytest.mark.parametrize("c", [1, 3])
def test_a_group_for_each_channel_of_one_sample_is_batch_normalization(rng, c: int) -> None:
    x, dy, gamma, beta = tensors(rng, (1, 5, 7, c))
    ours, theirs = group_norm_statistics_reference(x, c, EPS), batchnorm_statistics_reference(x, EPS)
    for mine, other in zip(ours, theirs, strict=True):
        assert_allclose(mine, other[None], rtol=1e-14, atol=1e-14)
    expected = batchnorm_backward_reference(x, dy, theirs, gamma, beta, training=True, relu=False)
    for got, right in zip(group_norm_backward_reference(x, dy, ours, c, gamma), expected, strict=True):
        assert_allclose(got, right, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("shape", "groups"), FORMS, ids=str)
@pytest.mark.parametrize("affine", [True, False])
def test_gradient(rng, shape, groups: int, affine: bool) -> None:
    x, dy, gamma, beta = tensors(rng, shape)
    parameters = {"gamma": gamma, "beta": beta} if affine else {}
    statistics = group_norm_statistics_reference(x, groups, EPS)
    gradients = group_norm_backward_reference(x, dy, statistics, groups, parameters.get("gamma"))
    names = ("x", "gamma", "beta") if affine else ("x",)
    check_gradient(
        "group norm",
        lambda x, gamma=None, beta=None: normalize(x, groups, gamma, beta),
        {"x": x, **parameters},
        dict(zip(names, gradients[: len(names)], strict=True)),
        dy,
    )


@pytest.mark.parametrize(("shape", "groups"), FORMS, ids=str)
def test_gradient_is_orthogonal_to_a_shift_and_nearly_to_a_scale(rng, shape, groups: int) -> None:
    x, dy, gamma, _ = tensors(rng, shape)
    statistics = group_norm_statistics_reference(x, groups, EPS)
    dx, _, _ = group_norm_backward_reference(x, dy, statistics, groups, gamma)
    sets = (shape[0], -1, groups, shape[-1] // groups)
    assert_allclose(dx.reshape(sets).sum(axis=(1, 3)), 0, atol=1e-12)
    xhat = normalize(x, groups)
    # sum(xhat²) = m * var / (var + eps), so what eps adds to the variance is left over.
    left = (gamma * dy * xhat).reshape(sets).sum(axis=(1, 3)) * statistics.inv_std * EPS / (statistics.var + EPS)
    assert_allclose((dx * xhat).reshape(sets).sum(axis=(1, 3)), left, rtol=1e-5, atol=1e-14)


def test_samples_rows_and_channels_may_change_places(rng) -> None:
    x, dy, gamma, beta = tensors(rng, (4, 5, 6))
    statistics = group_norm_statistics_reference(x, 2, EPS)
    y, dx = normalize(x, 2, gamma, beta), group_norm_backward_reference(x, dy, statistics, 2, gamma)[0]
    close = {"rtol": 1e-12, "atol": 1e-13}
    samples, rows, channels = rng.permutation(4), rng.permutation(5), np.array([2, 0, 1, 5, 3, 4])  # groups keep theirs
    places = np.ix_(samples, rows, channels)
    assert_allclose(normalize(x[places], 2, gamma[channels], beta[channels]), y[places], **close)
    moved = group_norm_statistics_reference(x[places], 2, EPS)
    got = group_norm_backward_reference(x[places], dy[places], moved, 2, gamma[channels])[0]
    assert_allclose(got, dx[places], **close)
    swapped = np.array([3, 4, 5, 0, 1, 2])  # the groups as a whole
    assert_allclose(normalize(x[..., swapped], 2, gamma[swapped], beta[swapped]), y[..., swapped], **close)
    assert abs(normalize(x[..., [1, 2, 3, 4, 5, 0]], 2) - normalize(x, 2)[..., [1, 2, 3, 4, 5, 0]]).max() > 1e-2


def test_scale_and_shift_of_a_groups_elements_leave_no_trace(rng) -> None:
    x, dy, gamma, beta = tensors(rng, (2, 4, 6))
    factor, offset = rng.uniform(0.5, 2, (2, 1, 3, 1)), rng.standard_normal((2, 1, 3, 1))
    other = (x.reshape(2, 4, 3, 2) * factor + offset).reshape(x.shape)
    assert_allclose(normalize(other, 3, gamma, beta, 1e-300), normalize(x, 3, gamma, beta, 1e-300), rtol=0, atol=1e-12)
    dx, dother = (
        group_norm_backward_reference(a, dy, group_norm_statistics_reference(a, 3, 1e-300), 3, gamma)[0]
        for a in (x, other)
    )
    assert_allclose((dother.reshape(2, 4, 3, 2) * factor).reshape(x.shape), dx, rtol=0, atol=1e-12)


@pytest.mark.parametrize("constant", [0.0, 0.1, -3.7, 1e7 + 1, 12345.678, 1e-300])
def test_a_constant_group_gives_beta_exactly(constant: float) -> None:
    x = np.full((2, 13, 13, 7), constant)
    assert_array_equal(group_norm_statistics_reference(x, 1, EPS).var, np.zeros((2, 1)))
    assert_array_equal(normalize(x, 1, np.full(7, 3.0), np.full(7, 0.25)), np.full(x.shape, 0.25))


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_poisons_its_group_of_its_sample(rng, poison: float) -> None:
    x, dy, gamma, beta = tensors(rng, (3, 5, 6))
    x[1, 2, 3] = poison
    bad = np.zeros(x.shape, bool)
    bad[1, :, 2:4] = True
    statistics = group_norm_statistics_reference(x, 3, EPS)
    assert_array_equal(statistics.shift[1, 1], poison)
    assert_array_equal(np.isnan(statistics.var), [[False] * 3, [False, True, False], [False] * 3])
    dx, dgamma, dbeta = group_norm_backward_reference(x, dy, statistics, 3, gamma)
    assert_array_equal(np.isnan(normalize(x, 3, gamma, beta)), bad)
    assert_array_equal(np.isnan(dx), bad)
    assert_array_equal(np.isnan(dgamma), bad.any(axis=(0, 1)))
    assert np.isfinite(dbeta).all()


def test_a_nan_of_dy_poisons_its_group_and_the_sums_of_its_channel(rng) -> None:
    x, dy, gamma, _ = tensors(rng, (3, 5, 6))
    dy[1, 2, 3] = np.nan
    dx, dgamma, dbeta = group_norm_backward_reference(x, dy, group_norm_statistics_reference(x, 3, EPS), 3, gamma)
    assert_array_equal(np.isnan(dx).any(axis=1), [[False] * 6, [False, False, True, True, False, False], [False] * 6])
    assert_array_equal(np.isnan([dgamma, dbeta]), [[False, False, False, True, False, False]] * 2)


def test_a_mean_far_above_the_deviation_costs_no_accuracy(rng) -> None:
    # 2^-20 steps about 2^14: every deviation, their sum and their squares are exact in float64.
    steps = rng.permutation(np.concatenate([np.arange(-2048, 2048), [0] * 4])) * 2.0**-20
    statistics = group_norm_statistics_reference((2.0**14 + steps).reshape(1, 41, 100), 1, EPS)
    assert_allclose(
        (statistics.shift - 2.0**14) + statistics.delta, [[steps.mean()]], atol=2e-12
    )  # half a unit of 2^14
    assert_allclose(statistics.var, [[np.square(steps - steps.mean()).mean()]], rtol=1e-14)


@pytest.mark.parametrize("shape", [(0, 4), (0, 3, 3, 4), (2, 0, 4)], ids=str)
def test_nothing_in_nothing_out(shape) -> None:
    x, gamma = np.zeros(shape), np.ones(4)
    statistics = BatchStatistics(*(np.ones((shape[0], 2)) for _ in range(4)))
    assert group_norm_apply_reference(x, statistics, 2, gamma, gamma).shape == shape
    dx, dgamma, dbeta = group_norm_backward_reference(x, x, statistics, 2, gamma)
    assert dx.shape == shape
    assert_array_equal([dgamma, dbeta], np.zeros((2, 4)))
