"""Noisy batch normalization: batch normalization, then numbers that are a function of seed, call and place."""

from typing import Any

import numpy as np
import pytest

from kernels.errors import ShapeError
from kernels.noise import noise_factors, noise_terms
from minidl import nn, optim, schedule
from minidl.backends import Backend, get_backend
from minidl.lab.gradcheck import check_gradient
from minidl.nn.init import manual_seed
from minidl.training import Trainer


@pytest.fixture(params=["reference", "cpu", "emulator"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return get_backend(request.param)


def noisy(channels: int, backend: Any, kind: Any = nn.NoisyBatchNorm2d, **options: Any) -> Any:
    manual_seed(11)
    return kind(channels, **options, device=backend)


def test_training_adds_the_noise_of_its_call(backend, rng) -> None:
    layer, plain = noisy(4, backend), nn.BatchNorm2d(4, device=backend)
    for call in range(3):
        x, dy = rng.standard_normal((2, 6, 3, 5, 4)).astype(backend.dtype)
        s = noise_factors(x.shape, 1.25, 0.1, layer.seed, 0, call)
        m = noise_terms(x.shape, 0.5, 0.1, layer.seed, 0, call)
        normalized = plain.forward(x).astype(np.float64)
        unit = np.finfo(backend.dtype).eps
        np.testing.assert_allclose(layer.forward(x), s * normalized + m, rtol=0, atol=40 * unit)
        through = plain.backward((s * dy).astype(backend.dtype))
        np.testing.assert_allclose(layer.backward(dy), through, rtol=0, atol=400 * unit)
    assert layer.calls == 3


def test_the_running_statistics_know_nothing_of_the_noise(backend, rng, same_bits) -> None:
    layer, plain = noisy(3, backend), nn.BatchNorm2d(3, device=backend)
    x = (2 * rng.standard_normal((6, 3, 5, 3)) + 1).astype(backend.dtype)
    for _ in range(2):
        layer.forward(x), plain.forward(x)
    assert list(layer.state_dict()) == list(plain.state_dict())
    assert all(same_bits(value, plain.state_dict()[name]) for name, value in layer.state_dict().items())
    assert same_bits(layer.eval().forward(x), plain.eval().forward(x))
    assert same_bits(layer.backward(x), plain.backward(x))
    assert layer.calls == 2  # evaluation drew nothing


def test_noise_goes_by_training_even_where_statistics_are_frozen(backend, rng, same_bits) -> None:
    x = rng.standard_normal((6, 3)).astype(backend.dtype)
    layer = noisy(3, backend, nn.NoisyBatchNorm1d).freeze_statistics()
    y = layer.forward(x).copy()
    assert not same_bits(y, layer.eval().forward(x))
    assert layer.calls == 1


def test_a_layer_without_noise_is_batchnorm(backend, rng, same_bits) -> None:
    x, dy = rng.standard_normal((2, 6, 3)).astype(backend.dtype)
    layer = noisy(3, backend, nn.NoisyBatchNorm1d, offset=0, scale=1, jitter=0)
    plain = nn.BatchNorm1d(3, device=backend)
    assert same_bits(layer.forward(x), plain.forward(x))
    assert same_bits(layer.backward(dy), plain.backward(dy))


def test_the_mean_of_a_channel_moves_from_step_to_step(backend, rng) -> None:
    """What it is for: the batch is the same, what follows sees another distribution in each step."""
    layer, x = noisy(8, backend, nn.NoisyBatchNorm1d), rng.standard_normal((500, 8)).astype(backend.dtype)
    outputs = [backend.numpy(layer.forward(x)).astype(np.float64) for _ in range(12)]
    means, deviations = (np.array([getattr(y, name)(axis=0) for y in outputs]) for name in ("mean", "std"))
    assert means.min() < -0.4
    assert means.max() > 0.4
    assert np.abs(means).max() < 0.5 + 0.02
    # sigma² + 2 * 0.1² / 3, the variance of both jitters; over 500 rows their part is off by 0.003 or so.
    assert 0.99 < deviations.min() < 1.06
    assert 1.19 < deviations.max() < 1.253 + 0.015
    assert (np.abs(np.diff(means, axis=0)).mean(axis=0) > 0.1).all()


def test_a_run_that_sets_calls_goes_on_where_the_other_stopped(backend, rng, same_bits) -> None:
    x = rng.standard_normal((5, 3)).astype(backend.dtype)
    whole, rest = (noisy(3, backend, nn.NoisyBatchNorm1d) for _ in range(2))
    expected = [whole.forward(x).copy() for _ in range(4)]
    rest.calls = 2
    assert same_bits(rest.forward(x), expected[2])
    assert same_bits(rest.forward(x), expected[3])
    assert not same_bits(expected[2], expected[3])


def test_backward_has_the_numbers_of_its_forward_whatever_the_mode_has_become(backend, rng, same_bits) -> None:
    x, dy = rng.standard_normal((2, 5, 3)).astype(backend.dtype)
    first, second = (noisy(3, backend, nn.NoisyBatchNorm1d) for _ in range(2))
    first.forward(x)
    second.forward(x)
    expected = first.backward(dy)
    assert same_bits(second.eval().backward(dy), expected)
    with pytest.raises(RuntimeError, match="no forward pass"):
        second.backward(dy)


def test_numbers_are_a_function_of_the_seed_and_the_same_on_every_device(rng) -> None:
    x = rng.standard_normal((7, 5)).astype(np.float32)
    outputs = {}
    for name in ("reference", "cpu", "emulator"):
        backend = get_backend(name)
        outputs[name] = noisy(5, backend, nn.NoisyBatchNorm1d).forward(x.astype(backend.dtype))
    np.testing.assert_allclose(outputs["cpu"], outputs["reference"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(outputs["emulator"], outputs["reference"], rtol=0, atol=1e-5)
    manual_seed(12)
    other = nn.NoisyBatchNorm1d(5).forward(x)
    assert np.abs(other - outputs["cpu"]).max() > 0.05


def trainer(dataset: Any) -> Trainer:
    manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.NoisyBatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    return Trainer(model, dataset, optim.SGD(model.parameters(), 0.1), schedule.constant(0.1), batch_size=16, seed=3)


def test_a_trainer_keeps_the_calls_with_its_counters(stripes_dataset) -> None:
    """A run of two epochs, and one that another goes on with after the first: the same bits. From call 0 on: others."""
    whole = trainer(stripes_dataset)
    whole.train_epoch()
    tensors, counters = whole.tensors(), whole.counters()
    assert counters["calls"] == {"1": 6}
    whole.train_epoch()
    ends = []
    for calls in (6, 0):
        rest = trainer(stripes_dataset)
        rest.restore(tensors, counters | {"calls": {"1": calls}})
        rest.train_epoch()
        ends.append({name: value.tobytes() for name, value in rest.tensors().items()})
    assert ends[0] == {name: value.tobytes() for name, value in whole.tensors().items()}
    assert ends[1] != ends[0]


def test_a_network_with_noise_starts_with_the_weights_of_the_one_without() -> None:
    states = []
    for kind in (nn.BatchNorm1d, nn.NoisyBatchNorm1d):
        manual_seed(3)
        model = nn.Sequential(nn.Linear(4, 5), kind(5), nn.Dropout(0.5), nn.Linear(5, 5), kind(5))
        states.append((model.state_dict(), model[2].seed))
    for name, value in states[0][0].items():
        assert np.array_equal(value, states[1][0][name]), name
    assert states[0][1] == states[1][1]
    assert model[1].seed != model[4].seed


def test_fusion_leaves_it_alone() -> None:
    assert nn.fuse(nn.Sequential(nn.NoisyBatchNorm1d(3), nn.ReLU())) == []


def test_another_gradient_is_refused(backend) -> None:
    layer = noisy(3, backend, nn.NoisyBatchNorm1d)
    layer.forward(np.ones((4, 3), backend.dtype))
    with pytest.raises(ShapeError, match=r"NoisyBatchNorm1d: the gradient has shape \(3, 4\), expected \(4, 3\)"):
        layer.backward(np.ones((3, 4), backend.dtype))
    layer.backward(np.ones((4, 3), backend.dtype))  # what forward kept is still there


def test_an_empty_batch(backend, passes) -> None:
    x = np.empty((0, 2, 2, 3), backend.dtype)
    assert passes(noisy(3, backend), x, x).dx.shape == x.shape


def test_gradients_through_the_noise(reference, rng) -> None:
    layer = noisy(3, reference)
    x, dy = rng.standard_normal((2, 4, 3, 2, 3))

    def function(x: Any, weight: Any, bias: Any) -> Any:
        layer.calls = 5  # the same noise each time
        layer.weight.value, layer.bias.value = weight, bias
        return layer.forward(x)

    inputs = {"x": x, "weight": rng.standard_normal(3), "bias": rng.standard_normal(3)}
    function(**inputs)
    gradients = {"x": layer.backward(dy), "weight": layer.weight.grad, "bias": layer.bias.grad}
    check_gradient("noisy batch normalization", function, inputs, gradients, dy)


@pytest.mark.parametrize(("name", "value", "least"), [("offset", -0.1, 0), ("scale", 0.5, 1), ("jitter", np.inf, 0)])
def test_wrong_arguments_are_named(name: str, value: float, least: int) -> None:
    with pytest.raises(ValueError, match=f"NoisyBatchNorm2d: {name} must be at least {least} and finite, got {value}"):
        nn.NoisyBatchNorm2d(3, **{name: value})
    with pytest.raises(TypeError, match=f"NoisyBatchNorm1d: {name} must be a number, got 'x'"):
        nn.NoisyBatchNorm1d(3, **{name: "x"})


def test_it_prints_its_arguments() -> None:
    assert repr(nn.NoisyBatchNorm1d(3, jitter=0.2)) == (
        "NoisyBatchNorm1d(3, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True, offset=0.5, scale=1.25, "
        "jitter=0.2)"
    )
