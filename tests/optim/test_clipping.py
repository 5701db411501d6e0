"""Clipping of gradients against torch.nn.utils.clip_grad_norm_."""

import math
from typing import Any

import numpy as np
import pytest

from minidl import nn, optim
from minidl.backends import Backend, get_backend
from minidl.nn import Parameter

SHAPES = ((3, 4), (), (2, 3, 1, 2), (5,))


@pytest.fixture(params=["reference", "cpu", "emulator"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return get_backend(request.param)


def parameters(backend: Backend, size: float = 1.0, without: int | None = None) -> list[Parameter]:
    rng = np.random.default_rng(3)
    result = []
    for i, shape in enumerate(SHAPES):
        parameter = Parameter(backend, np.zeros(shape), decay=True)
        grad = backend.array(np.asarray(size * rng.standard_normal(shape)).astype(np.float32))
        parameter.grad = None if i == without else grad
        result.append(parameter)
    return result


@pytest.mark.parametrize("without", [None, 1])
@pytest.mark.parametrize("max_norm", [0.0, 0.1, 2, 1e3, math.inf])
def test_it_is_pytorchs(backend, max_norm: float, without: int | None) -> None:
    reason = 'PyTorch, the second opinion, is not installed: pip install -e ".[oracle]"'
    torch = pytest.importorskip("torch", reason=reason)
    ours = parameters(backend, without=without)
    theirs: list[Any] = [torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in SHAPES]
    for our, their in zip(ours, theirs, strict=True):
        their.grad = None if our.grad is None else torch.from_numpy(backend.numpy(our.grad).astype(np.float64))
    norm, expected = optim.clip_grad_norm(ours, max_norm), torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    close = 16 * np.finfo(backend.dtype).eps
    np.testing.assert_allclose(float(norm), float(expected), rtol=close)
    for our, their in zip(ours, theirs, strict=True):
        if our.grad is not None:
            np.testing.assert_allclose(backend.numpy(our.grad), their.grad.numpy(), rtol=close, atol=1e-45)
    assert ours[1].grad is not None or without == 1


def test_gradients_within_the_norm_keep_their_bits(backend) -> None:
    params = parameters(backend)
    before = [backend.numpy(parameter.grad) for parameter in params]
    optim.clip_grad_norm(params, 100.0)
    assert all(np.array_equal(backend.numpy(p.grad), grad) for p, grad in zip(params, before, strict=True))


@pytest.mark.parametrize("size", [1e-30, 1e-22, 1e25])
def test_gradients_whose_squares_float32_does_not_hold(size: float) -> None:
    for name in ("cpu", "emulator"):
        backend = get_backend(name)
        params = parameters(backend, size)
        exact = math.sqrt(sum(np.square(p.grad.astype(np.float64)).sum() for p in params))
        assert float(optim.clip_grad_norm(params, 1.0)) == pytest.approx(exact, rel=1e-6)
        if size > 1:
            assert float(optim.clip_grad_norm(params, 1.0)) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_norm_that_is_not_finite_is_reported(backend, value: float) -> None:
    params = parameters(backend)
    params[0].grad[1, 2] = value
    before = [backend.numpy(parameter.grad) for parameter in params]
    with pytest.raises(FloatingPointError, match=f"the norm of the gradients is {value}; they were not clipped"):
        optim.clip_grad_norm(params, 1.0, error_if_nonfinite=True)
    for parameter, grad in zip(params, before, strict=True):
        assert np.array_equal(backend.numpy(parameter.grad), grad, equal_nan=True)
    assert not math.isfinite(float(optim.clip_grad_norm(params, 1.0)))
    last = backend.numpy(params[3].grad)
    assert np.isnan(last).all() if math.isnan(value) else not last.any()


def test_one_parameter_or_none() -> None:
    parameter = nn.Linear(2, 3).weight
    assert optim.clip_grad_norm(parameter, 1.0) == 0
    assert optim.clip_grad_norm([], 1.0) == 0
    parameter.grad = np.full((3, 2), 2, np.float32)
    optim.clip_grad_norm(parameter, 1.0)
    assert np.linalg.norm(parameter.grad) == pytest.approx(1, rel=1e-5)


def test_what_makes_no_sense_is_refused() -> None:
    layer = nn.Linear(2, 3)
    layer.weight.grad = np.full((3, 2), 9, np.float32)
    with pytest.raises(TypeError, match=r"clip_grad_norm: parameters is a model; give model\.parameters\(\)"):
        optim.clip_grad_norm(layer, 1.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="clip_grad_norm: max_norm must be a number, got '1'"):
        optim.clip_grad_norm(layer.parameters(), "1")  # type: ignore[arg-type]
    for number in (-1.0, math.nan):
        with pytest.raises(ValueError, match=f"clip_grad_norm: max_norm must be 0 or more, got {number}"):
            optim.clip_grad_norm(layer.parameters(), number)
    other = nn.Linear(2, 3, device="reference")
    other.weight.grad = np.ones((3, 2))
    with pytest.raises(ValueError, match="clip_grad_norm: the parameters are on different devices"):
        optim.clip_grad_norm([layer.weight, other.weight], 1.0)
    assert np.array_equal(layer.weight.grad, np.full((3, 2), 9))
