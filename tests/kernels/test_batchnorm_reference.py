import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from kernels.batchnorm import (
    BatchStatistics,
    batchnorm_add_relu_apply_reference,
    batchnorm_add_relu_backward_reference,
    batchnorm_apply_reference,
    batchnorm_backward_reference,
    batchnorm_running_statistics_reference,
    batchnorm_statistics_reference,
    batchnorm_update_running_reference,
)
from minidl.lab.gradcheck import check_gradient

EPS = 1e-5
SHAPES = [(2, 1), (3, 2), (17, 5), (2, 3, 5, 7), (13, 1, 1, 3), (1, 31, 2, 1)]
NAN, INF = np.nan, np.inf


def tensors(rng, shape):
    c = shape[-1]
    x, dy = 2 + 3 * rng.standard_normal(shape), rng.standard_normal(shape)
    return x, dy, rng.uniform(0.5, 2, c) * rng.choice([-1, 1], c), rng.standard_normal(c)


def to_torch(torch, x, *, requires_grad: bool):
    """(..., c) to PyTorch's (n, c, ...)."""
    return torch.tensor(np.moveaxis(x, -1, 1).copy(), requires_grad=requires_grad)


def from_torch(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


def normalize(x, gamma, beta, eps=EPS, relu=False):
    return batchnorm_apply_reference(x, batchnorm_statistics_reference(x, eps), gamma, beta, relu)


def test_statistics_by_hand() -> None:
    x = np.array([[1.0, 10.0], [3.0, 10.0], [5.0, 10.0], [7.0, 30.0]])
    statistics = batchnorm_statistics_reference(x, eps=4.0)
    assert_array_equal(statistics.shift + statistics.delta, [4, 15])
    assert_array_equal(statistics.var, [5, 75])
    assert_array_equal(statistics.inv_std, [1 / 3, 1 / np.sqrt(79)])


def test_eps_is_inside_the_root_and_the_output_has_variance_below_one() -> None:
    x = np.array([[-1e-2], [1e-2]])  # variance 1e-4: ten times eps
    assert_allclose(normalize(x, None, None).std(), np.sqrt(1e-4 / (1e-4 + EPS)), rtol=1e-14)


def test_apply_by_hand() -> None:
    statistics = BatchStatistics(*(np.array([v]) for v in (2.0, 0.5, 0.25, 2.0)))
    x = np.array([[2.0], [4.0], [3.0]])
    assert_array_equal(batchnorm_apply_reference(x, statistics, None, None, relu=False), [[-1], [3], [1]])
    gamma, beta = np.array([-1.0]), np.array([2.0])
    assert_array_equal(batchnorm_apply_reference(x, statistics, gamma, beta, relu=False), [[3], [-1], [1]])
    assert_array_equal(batchnorm_apply_reference(x, statistics, gamma, beta, relu=True), [[3], [0], [1]])


def test_running_estimates_by_hand() -> None:
    batch = BatchStatistics(shift=np.array([3.0]), delta=np.array([1.0]), var=np.array([6.0]), inv_std=np.array([9.0]))
    mean, var = batchnorm_update_running_reference(batch, 4, 0.25, np.array([0.0]), np.array([1.0]))
    assert_array_equal(mean, [1.0])
    assert_array_equal(var, [1 + 0.25 * (8 - 1)])  # 8 = 6 * 4 / 3
    statistics = batchnorm_running_statistics_reference(mean, np.array([0.0]), 0.25)
    assert [float(field[0]) for field in statistics] == [1.0, 0.0, 0.0, 2.0]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_agrees_with_pytorch(torch, rng, shape, affine: bool, training: bool, relu: bool) -> None:
    x, dy, gamma, beta = tensors(rng, shape)
    if not affine:
        gamma = beta = None
    running_mean, running_var = rng.standard_normal(shape[-1]), rng.uniform(0.5, 2, shape[-1])

    tx = to_torch(torch, x, requires_grad=True)
    mean, var = torch.tensor(running_mean), torch.tensor(running_var)
    tg, tb = (torch.tensor(v, requires_grad=True) if affine else None for v in (gamma, beta))
    ty = torch.nn.functional.batch_norm(tx, mean, var, tg, tb, training, 0.3, EPS)
    ty = torch.relu(ty) if relu else ty
    ty.backward(to_torch(torch, dy, requires_grad=False))

    if training:
        statistics = batchnorm_statistics_reference(x, EPS)
        rows = x.size // shape[-1]
        new = batchnorm_update_running_reference(statistics, rows, 0.3, running_mean, running_var)
        assert_allclose(new[0], mean, rtol=1e-13, atol=1e-13)
        assert_allclose(new[1], var, rtol=1e-13)
    else:
        statistics = batchnorm_running_statistics_reference(running_mean, running_var, EPS)

    y = batchnorm_apply_reference(x, statistics, gamma, beta, relu)
    dx, dgamma, dbeta = batchnorm_backward_reference(x, dy, statistics, gamma, beta, training, relu)
    close = {"rtol": 1e-12, "atol": 1e-12}  # both in float64, with mean and deviation of like size
    assert_allclose(y, from_torch(ty), **close)
    assert_allclose(dx, from_torch(tx.grad), **close)
    if affine:
        assert_allclose(dgamma, tg.grad, **close)
        assert_allclose(dbeta, tb.grad, **close)
    else:
        assert dgamma is None
        assert dbeta is None


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_the_end_of_a_residual_block_agrees_with_pytorch(torch, rng, shape, affine: bool, training: bool) -> None:
    x, dy, gamma, beta = tensors(rng, shape)
    residual = rng.standard_normal(shape)
    if not affine:
        gamma = beta = None
    mean, var = rng.standard_normal(shape[-1]), rng.uniform(0.5, 2, shape[-1])
    fixed = batchnorm_running_statistics_reference(mean, var, EPS)
    statistics = batchnorm_statistics_reference(x, EPS) if training else fixed

    tx, tr = (to_torch(torch, array, requires_grad=True) for array in (x, residual))
    tg, tb = (torch.tensor(v, requires_grad=True) if affine else None for v in (gamma, beta))
    normalized = torch.nn.functional.batch_norm(tx, torch.tensor(mean), torch.tensor(var), tg, tb, training, 0.3, EPS)
    ty = torch.relu(normalized + tr)
    ty.backward(to_torch(torch, dy, requires_grad=False))

    y = batchnorm_add_relu_apply_reference(x, residual, statistics, gamma, beta)
    dx, dresidual, dgamma, dbeta = batchnorm_add_relu_backward_reference(x, y, dy, statistics, gamma, training)
    close = {"rtol": 1e-12, "atol": 1e-12}
    assert_allclose(y, from_torch(ty), **close)
    assert_allclose(dx, from_torch(tx.grad), **close)
    assert_array_equal(dresidual, from_torch(tr.grad))
    if affine:
        assert_allclose(dgamma, tg.grad, **close)
        assert_allclose(dbeta, tb.grad, **close)
    else:
        assert dgamma is None
        assert dbeta is None


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("relu", [True, False])
def test_gradient_in_training(rng, shape, relu: bool) -> None:
    x, dy, gamma, beta = tensors(rng, shape)
    statistics = batchnorm_statistics_reference(x, EPS)
    gradients = batchnorm_backward_reference(x, dy, statistics, gamma, beta, training=True, relu=relu)
    check_gradient(
        "batchnorm in training",
        lambda x, gamma, beta: normalize(x, gamma, beta, relu=relu),
        {"x": x, "gamma": gamma, "beta": beta},
        dict(zip(("x", "gamma", "beta"), gradients, strict=True)),
        dy,
    )


@pytest.mark.parametrize("shape", [(1, 1), *SHAPES], ids=str)
@pytest.mark.parametrize("relu", [True, False])
def test_gradient_in_evaluation(rng, shape, relu: bool) -> None:
    x, dy, gamma, beta = tensors(rng, shape)
    c = shape[-1]
    fixed = batchnorm_running_statistics_reference(rng.standard_normal(c), rng.uniform(0.5, 2, c), EPS)
    gradients = batchnorm_backward_reference(x, dy, fixed, gamma, beta, training=False, relu=relu)
    check_gradient(
        "batchnorm in evaluation",
        lambda x, gamma, beta: batchnorm_apply_reference(x, fixed, gamma, beta, relu),
        {"x": x, "gamma": gamma, "beta": beta},
        dict(zip(("x", "gamma", "beta"), gradients, strict=True)),
        dy,
    )


def test_gradient_without_gamma_and_beta(rng) -> None:
    x, dy, _, _ = tensors(rng, (7, 3))
    dx, _, _ = batchnorm_backward_reference(x, dy, batchnorm_statistics_reference(x, EPS), None, None, True, True)
    check_gradient("batchnorm", lambda x: normalize(x, None, None, relu=True), {"x": x}, {"x": dx}, dy)


def test_training_gradient_is_orthogonal_to_a_shift_and_nearly_to_a_scale(rng) -> None:
    x, dy, gamma, beta = tensors(rng, (11, 4))
    statistics = batchnorm_statistics_reference(x, EPS)
    dx, dgamma, _ = batchnorm_backward_reference(x, dy, statistics, gamma, beta, True, False)
    xhat = batchnorm_apply_reference(x, statistics, None, None, False)
    assert_allclose(dx.sum(axis=0), 0, atol=1e-14)
    # sum(xhat²) = m * var / (var + eps), so what eps adds to the variance is left over.
    left = gamma * statistics.inv_std * dgamma * EPS / (statistics.var + EPS)
    assert_allclose((dx * xhat).sum(axis=0), left, rtol=1e-6, atol=1e-15)


@pytest.mark.parametrize("constant", [0.0, 0.1, -3.7, 1e7 + 1, 12345.678, 1e-300])
def test_a_constant_channel_gives_beta_exactly(constant: float) -> None:
    x = np.full((7, 13, 13, 1), constant)
    statistics = batchnorm_statistics_reference(x, EPS)
    assert_array_equal(statistics.var, [0])
    assert_array_equal(normalize(x, np.array([3.0]), np.array([0.25])), np.full(x.shape, 0.25))


def test_a_mean_far_above_the_deviation_costs_no_accuracy(rng) -> None:
    # 2^-20 steps about 2^14: every deviation, their sum and their squares are exact in float64.
    steps = np.concatenate([np.arange(-2048, 2048), [0] * 5]) * 2.0**-20
    x = (2.0**14 + rng.permutation(steps))[:, None]
    statistics = batchnorm_statistics_reference(x, EPS)
    mean = steps.sum() / steps.size
    assert_allclose((statistics.shift - 2.0**14) + statistics.delta, [mean], atol=2e-12)  # half a unit of 2^14: 1.8e-12
    assert_allclose(statistics.var, [np.square(steps - mean).sum() / steps.size], rtol=1e-14)


def test_one_outlier_first(rng) -> None:
    x = np.ones((1001, 1))
    x[0] = 1002
    statistics = batchnorm_statistics_reference(x, EPS)
    assert_allclose(statistics.shift, [2.0], rtol=1e-15)
    assert_allclose(statistics.var, [1000.0], rtol=1e-14)


@pytest.mark.parametrize("poison", [NAN, INF, -INF])
@pytest.mark.parametrize("row", [0, 3])
def test_a_channel_with_nan_or_infinity_poisons_only_itself(rng, poison: float, row: int) -> None:
    x, dy, gamma, beta = tensors(rng, (6, 3))
    x[row, 1] = poison
    statistics = batchnorm_statistics_reference(x, EPS)
    running = batchnorm_update_running_reference(statistics, 6, 0.1, np.zeros(3), np.ones(3))
    assert_array_equal(running[0][1], poison)  # PyTorch's running mean, too
    y = batchnorm_apply_reference(x, statistics, gamma, beta, relu=True)
    dx, dgamma, dbeta = batchnorm_backward_reference(x, dy, statistics, gamma, beta, True, True)
    for per_channel in (running[1], dgamma):
        assert_array_equal(np.isnan(per_channel), [False, True, False])
    for activation in (y, dx):
        assert_array_equal(np.isnan(activation), np.tile([False, True, False], (6, 1)))
    assert np.isfinite(dbeta).all()  # where y is NaN, relu passes dy

    clean = [0, 2]
    alone = batchnorm_backward_reference(
        x[:, clean],
        dy[:, clean],
        batchnorm_statistics_reference(x[:, clean], EPS),
        gamma[clean],
        beta[clean],
        True,
        True,
    )
    assert_array_equal(dx[:, clean], alone[0])


def test_a_nan_of_dy_poisons_only_its_channel(rng) -> None:
    x, dy, gamma, beta = tensors(rng, (6, 3))
    dy[2, 0] = NAN
    for training in (True, False):
        dx, dgamma, dbeta = batchnorm_backward_reference(
            x, dy, batchnorm_statistics_reference(x, EPS), gamma, beta, training, relu=False
        )
        assert_array_equal(np.isnan([dgamma, dbeta]), [[True, False, False]] * 2)
        assert_array_equal(np.isnan(dx).sum(axis=0), [6 if training else 1, 0, 0])


def test_two_rows_become_plus_and_minus_one() -> None:
    y = normalize(np.array([[5.0], [9.0]]), None, None, eps=1e-300)
    assert_array_equal(y, [[-1], [1]])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_no_rows(training: bool, relu: bool) -> None:
    x, ones = np.zeros((0, 4, 4, 3)), np.ones(3)
    fixed = batchnorm_running_statistics_reference(np.zeros(3), ones, EPS)
    assert batchnorm_apply_reference(x, fixed, ones, ones, relu).shape == x.shape
    dx, dgamma, dbeta = batchnorm_backward_reference(x, x, fixed, ones, ones, training, relu)
    assert dx.shape == x.shape
    assert_array_equal([dgamma, dbeta], np.zeros((2, 3)))


def test_a_denormal_channel_is_normalized_by_eps() -> None:
    x = np.array([[5e-324], [-5e-324]])
    assert_allclose(normalize(x, None, None), x / np.sqrt(EPS), rtol=0, atol=5e-324)
