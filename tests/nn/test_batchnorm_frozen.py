"""Frozen batch normalization: statistics and affine parameters apart, against PyTorch and through fusion."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from minidl import nn, optim
from minidl.backends import Backend, get_backend
from minidl.lab.gradcheck import check_gradient
from minidl.nn.init import manual_seed

ROUNDING = 1e-12  # float64 on both sides: a few thousand roundings of numbers of size 1


@pytest.fixture(params=["reference", "cpu", "emulator"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return get_backend(request.param)


def used(kind: Any, channels: int, backend: Backend, **options: Any) -> Any:
    """A layer whose parameters and running statistics are not the initial ones."""
    rng = np.random.default_rng(5)
    layer = kind(channels, **options, device=backend)
    state = {
        name: rng.uniform(0.5, 2, value.shape) if name == "running_var" else rng.standard_normal(value.shape)
        for name, value in layer.state_dict().items()
        if name != "num_batches_tracked"
    }
    layer.load_state_dict({**state, "num_batches_tracked": np.array(3)}, strict="running_mean" in state)
    return layer


@pytest.mark.parametrize(("kind", "shape"), [("BatchNorm1d", (9, 3)), ("BatchNorm2d", (4, 3, 5, 3))])
def test_frozen_statistics_are_pytorchs_layer_in_evaluation(
    kind: str, shape: Any, oracle, passes, reference, within, rng
) -> None:
    layer = used(getattr(nn, kind), 3, reference).freeze_statistics()
    twin = oracle.load(getattr(oracle.torch.nn, kind)(3), layer).train()
    twin.eval()  # the layer alone: its parameters still learn
    x, dy = rng.standard_normal((2, *shape))
    ours, theirs = passes(layer, x, dy), oracle.run(twin, x, dy)
    within(ours.y, theirs.y, ROUNDING, "y")
    within(ours.dx, theirs.dx, ROUNDING, "dx")
    for name, grad in ours.grads.items():
        within(grad, theirs.grads[name], 100 * ROUNDING, f"gradient of {name}")
    for name, value in theirs.state.items():
        assert np.array_equal(ours.state[name], value), f"{name} moved"


def test_requires_grad_freezes_no_statistics_in_pytorch_nor_here(oracle, reference, within, rng) -> None:
    layer = used(nn.BatchNorm2d, 3, reference).freeze_affine()
    twin = oracle.load(oracle.torch.nn.BatchNorm2d(3), layer).train().requires_grad_(False)
    x, dy = rng.standard_normal((2, 4, 5, 5, 3))
    inputs = oracle.tensor(x).requires_grad_()
    y = twin(inputs)
    y.backward(oracle.tensor(dy))
    within(layer.forward(x), oracle.numpy(y), ROUNDING, "y")
    within(layer.backward(dy), oracle.numpy(inputs.grad), ROUNDING, "dx")
    assert layer.weight.grad is None
    assert layer.bias.grad is None
    assert twin.weight.grad is None
    for name, value in layer.state_dict().items():
        within(value, twin.state_dict()[name].numpy(), ROUNDING, name)
    assert layer.num_batches_tracked == 4


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_training_with_frozen_statistics_is_evaluation_bit_for_bit(
    affine: bool, relu: bool, backend, same_bits, rng
) -> None:
    x, dy = rng.standard_normal((2, 6, 4, 4, 5)).astype(backend.dtype)
    frozen, other = (used(nn.BatchNorm2d, 5, backend, affine=affine) for _ in range(2))
    frozen.freeze_statistics()
    other.eval()
    assert frozen.training
    assert same_bits(frozen.normalize(x, relu), other.normalize(x, relu))
    assert same_bits(frozen.backward(dy), other.backward(dy))
    for name, value in frozen.state_dict().items():
        assert same_bits(value, other.state_dict()[name])
    for ours, theirs in zip(frozen.parameters(), other.parameters(), strict=True):
        assert same_bits(ours.grad, theirs.grad)


def test_the_end_of_a_residual_block_can_be_frozen(backend, same_bits, rng) -> None:
    x, residual, dy = rng.standard_normal((3, 6, 4, 4, 3)).astype(backend.dtype)
    frozen, other = used(nn.BatchNorm2d, 3, backend).freeze_statistics(), used(nn.BatchNorm2d, 3, backend).eval()
    assert same_bits(frozen.normalize_add_relu(x, residual), other.normalize_add_relu(x, residual))
    for ours, theirs in zip(frozen.backward_add_relu(dy), other.backward_add_relu(dy), strict=True):
        assert same_bits(ours, theirs)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("frozen", [("weight",), ("bias",), ("weight", "bias")], ids=" and ".join)
def test_what_is_frozen_changes_no_other_gradient(frozen: tuple[str, ...], training, backend, same_bits, rng) -> None:
    x, residual, dy = rng.standard_normal((3, 6, 4, 4, 3)).astype(backend.dtype)
    layer, other = (used(nn.BatchNorm2d, 3, backend).train(training) for _ in range(2))
    for name in frozen:
        getattr(layer, name).trainable = False
    runs: list[Callable[[Any], tuple[Any, ...]]] = [
        lambda one: (one.normalize(x, True), one.backward(dy)),
        lambda one: (one.normalize_add_relu(x, residual), *one.backward_add_relu(dy)),
    ]
    for run in runs:
        for ours, theirs in zip(run(layer), run(other), strict=True):
            assert same_bits(ours, theirs)
        for name in ("weight", "bias"):
            ours, theirs = getattr(layer, name).grad, getattr(other, name).grad
            assert ours is None if name in frozen else same_bits(ours, theirs)
        layer.zero_grad(), other.zero_grad()


def test_train_and_eval_do_not_thaw_and_false_does(backend, rng) -> None:
    x = rng.standard_normal((8, 3)).astype(backend.dtype)
    layer = used(nn.BatchNorm1d, 3, backend).freeze_statistics()
    before = layer.state_dict()
    layer.eval().train().forward(x)
    assert all(np.array_equal(value, before[name]) for name, value in layer.state_dict().items())
    layer.freeze_statistics(False).forward(x)
    assert layer.num_batches_tracked == 4
    assert not np.array_equal(layer.state_dict()["running_mean"], before["running_mean"])


def test_one_value_a_channel_is_enough_where_statistics_are_frozen(backend) -> None:
    layer = used(nn.BatchNorm1d, 3, backend).freeze_statistics()
    x = np.ones((1, 3), backend.dtype)
    assert layer.forward(x).shape == layer.backward(x).shape == (1, 3)


def test_freezing_is_no_part_of_the_state_and_stays_with_the_layer(backend) -> None:
    layer = used(nn.BatchNorm1d, 3, backend).freeze_statistics().freeze_affine()
    other = nn.BatchNorm1d(3, device=backend)
    assert list(layer.state_dict()) == list(other.state_dict())
    other.load_state_dict(layer.state_dict())
    assert not other.statistics_frozen
    assert other.weight.trainable
    layer.load_state_dict(other.state_dict())
    layer.to("reference")
    assert layer.statistics_frozen
    assert not layer.weight.trainable


def network(backend: Any, **options: Any) -> nn.Sequential:
    manual_seed(4)
    block = [nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3, **options), nn.ReLU()]
    layers = {
        "conv": nn.Conv2d(2, 3, 3, padding=1),
        "bn": nn.BatchNorm2d(3, **options),
        "relu": nn.ReLU(),
        "block": nn.Residual(*block, nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, **options), activation=nn.ReLU()),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(48, 4),
        "bn2": nn.BatchNorm1d(4, **options),
    }
    return nn.Sequential(layers).to(backend)


NAMES = ["bn", "block.1", "block.4", "bn2"]


@pytest.mark.parametrize("fused", [False, True])
def test_a_model_with_frozen_batchnorm_learns_the_rest(fused: bool, backend, rng, same_bits) -> None:
    model = network(backend)
    if fused:
        assert len(nn.fuse(model)) == 3
    assert nn.freeze_batchnorm(model) == NAMES
    before = model.state_dict()
    sgd = optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(2):
        sgd.zero_grad()
        y = model.forward(rng.standard_normal((5, 4, 4, 2)).astype(backend.dtype))
        model.backward(y)
        sgd.step()
    for name, value in model.state_dict().items():
        frozen = name.rpartition(".")[0] in NAMES
        assert same_bits(value, before[name]) == frozen, name


def test_optimizers_leave_what_is_frozen_later_alone(backend, rng) -> None:
    """A gradient that is there already, and a velocity, do not move it any more; nor does weight decay."""
    model = network(backend)
    adam = optim.AdamW(model.parameters(), 0.1, weight_decay=0.1)
    x = rng.standard_normal((5, 4, 4, 2)).astype(backend.dtype)
    model.backward(model.forward(x))
    adam.step()
    model.backward(model.forward(x))
    nn.freeze_batchnorm(model, statistics=False)
    before = model.state_dict()
    adam.step()
    after = model.state_dict()
    assert np.array_equal(after["bn.weight"], before["bn.weight"])
    assert not np.array_equal(after["conv.weight"], before["conv.weight"])


def test_each_of_the_two_becomes_what_is_said() -> None:
    model = network("cpu")
    layer = dict(model.named_modules())["block.4"]
    for statistics, affine in ((True, False), (False, True), (True, True), (False, False)):
        nn.freeze_batchnorm(model, statistics=statistics, affine=affine)
        assert layer.statistics_frozen == statistics
        assert [parameter.trainable for parameter in layer.parameters()] == [not affine] * 2
    assert nn.freeze_batchnorm(nn.Sequential(nn.Linear(2, 2), nn.ReLU())) == []


def test_there_must_be_something_to_freeze() -> None:
    layer = nn.BatchNorm1d(3, track_running_stats=False)
    with pytest.raises(
        ValueError, match=r"^BatchNorm1d: there are no running statistics to freeze; make it with track"
    ):
        layer.freeze_statistics()
    layer.freeze_statistics(False)
    model = nn.Sequential({"a": nn.BatchNorm1d(3), "b": layer})
    with pytest.raises(ValueError, match=r"^freeze_batchnorm: b: there are no running statistics to freeze; give stat"):
        nn.freeze_batchnorm(model)
    assert not next(iter(model)).statistics_frozen
    assert model.a.weight.trainable
    assert nn.freeze_batchnorm(model, statistics=False) == ["a", "b"]
    assert nn.BatchNorm1d(3, affine=False).freeze_affine().weight is None


def test_a_frozen_parameter_takes_no_gradient(backend) -> None:
    layer = nn.Linear(3, 2, device=backend)
    layer.weight.trainable = False
    x = np.ones((4, 3), backend.dtype)
    layer.backward(layer.forward(x))
    assert layer.weight.grad is None
    assert layer.bias.grad is not None
    with pytest.raises(ValueError, match=r"^Linear\.weight: grad is given to what is frozen"):
        layer.weight.grad = backend.zeros((2, 3))
    layer.weight.trainable = True
    layer.backward(layer.forward(x))
    assert layer.weight.grad is not None
    layer.weight.trainable = False
    assert layer.weight.grad is None


@pytest.mark.parametrize("relu", [False, True])
def test_gradients_with_frozen_statistics(relu: bool, reference, rng) -> None:
    layer = used(nn.BatchNorm2d, 3, reference).freeze_statistics()
    x, dy = rng.standard_normal((2, 4, 3, 3, 3))

    def function(x: Any, weight: Any, bias: Any) -> Any:
        layer.weight.value, layer.bias.value = weight, bias
        return layer.normalize(x, relu)

    inputs = {"x": x, "weight": layer.weight.value.copy(), "bias": layer.bias.value.copy()}
    function(**inputs)
    gradients = {"x": layer.backward(dy), "weight": layer.weight.grad, "bias": layer.bias.grad}
    check_gradient("frozen statistics", function, inputs, gradients, dy)
