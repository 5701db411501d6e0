import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from kernels.optimizer import adam_reference, sgd_reference

STEPS = 5
CLOSE = {"rtol": 1e-13, "atol": 1e-14}  # five steps of about ten operations each, in another order


def torch_steps(torch, optimizer_class, value, grads, **options):
    parameter = torch.nn.Parameter(torch.tensor(value))
    optimizer = optimizer_class([parameter], **options)
    for grad in grads:
        parameter.grad = torch.tensor(grad)
        optimizer.step()
        yield parameter.detach().numpy().copy()


def test_sgd_by_hand() -> None:
    value, grad = np.array([1.0, -2.0]), np.array([0.5, 0.25])
    new, velocity = sgd_reference(value, grad, None, 0.5, 0.0, 0.0, False)
    assert_array_equal(new, [0.75, -2.125])
    assert velocity is None

    new, _ = sgd_reference(value, grad, None, 0.5, 0.0, 0.25, False)  # g = 0.75, -0.25
    assert_array_equal(new, [0.625, -1.875])

    new, velocity = sgd_reference(value, grad, np.array([2.0, 0.0]), 0.5, 0.25, 0.0, False)
    assert_array_equal(velocity, [1.0, 0.25])
    assert_array_equal(new, [0.5, -2.125])

    new, velocity = sgd_reference(value, grad, np.array([2.0, 0.0]), 0.5, 0.25, 0.0, True)  # steps along g + v / 4
    assert_array_equal(velocity, [1.0, 0.25])
    assert_array_equal(new, [0.625, -2.15625])


def test_adam_moves_by_the_learning_rate_at_first() -> None:
    zero = np.zeros(3)
    grad = np.array([1e-3, -5.0, 0.0])
    new, first, second = adam_reference(zero, grad, zero, zero, 1, 0.25, 0.75, 0.5, 1e-300, 0.0, False)
    assert_allclose(new, [-0.25, 0.25, 0], rtol=1e-15)
    assert_array_equal(first, 0.25 * grad)
    assert_array_equal(second, 0.5 * grad**2)


def test_decoupled_decay_leaves_the_moments_alone() -> None:
    value, zero = np.array([2.0]), np.zeros(1)
    new, first, second = adam_reference(value, zero, zero, zero, 1, 0.5, 0.9, 0.999, 1e-8, 0.25, True)
    assert_array_equal([new, first, second], [[2 - 0.5 * 0.25 * 2], [0], [0]])
    new, first, second = adam_reference(value, zero, zero, zero, 1, 0.5, 0.9, 0.999, 1e-8, 0.25, False)
    assert_allclose([new, first, second], [[1.5], [0.05], [0.00025]], rtol=1e-7)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_sgd_agrees_with_pytorch(torch, rng, momentum: float, nesterov: bool, weight_decay: float) -> None:
    value, grads = rng.standard_normal((3, 7)), rng.standard_normal((STEPS, 3, 7))
    velocity = np.zeros_like(value) if momentum else None
    options = {"lr": 0.05, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
    for grad, expected in zip(grads, torch_steps(torch, torch.optim.SGD, value, grads, **options), strict=True):
        value, velocity = sgd_reference(value, grad, velocity, **options)
        assert_allclose(value, expected, **CLOSE)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.7), (0.0, 0.9)])
def test_adam_agrees_with_pytorch(torch, rng, decoupled: bool, weight_decay: float, betas) -> None:
    value, grads = rng.standard_normal((3, 7)), rng.standard_normal((STEPS, 3, 7))
    first, second = np.zeros_like(value), np.zeros_like(value)
    optimizer = torch.optim.AdamW if decoupled else torch.optim.Adam
    peer = torch_steps(torch, optimizer, value, grads, lr=0.05, betas=betas, eps=1e-3, weight_decay=weight_decay)
    for step, (grad, expected) in enumerate(zip(grads, peer, strict=True), 1):
        value, first, second = adam_reference(
            value, grad, first, second, step, 0.05, *betas, 1e-3, weight_decay, decoupled
        )
        assert_allclose(value, expected, **CLOSE)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_bad_gradient_stays_in_its_element(rng, poison: float) -> None:
    value, grad, zero = rng.standard_normal(4), rng.standard_normal(4), np.zeros(4)
    grad[2] = poison
    bad = [False, False, True, False]
    for nesterov in (False, True):
        for result in sgd_reference(value, grad, zero, 0.1, 0.9, 0.1, nesterov):
            assert_array_equal(~np.isfinite(result), bad)
    for decoupled in (False, True):
        for result in adam_reference(value, grad, zero, zero, 1, 0.1, 0.9, 0.999, 1e-8, 0.1, decoupled):
            assert_array_equal(~np.isfinite(result), bad)
