"""Chains of convolution, batch normalization and ReLU without stored activations compute what their layers do."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from chains import WAYS, alike, assert_same_way, compare

from minidl import nn, optim
from minidl.backends import get_backend
from minidl.backends.reference import ReferenceBackend
from minidl.models import build
from minidl.nn.fusion import unfused
from minidl.nn.normalized_convolution import NormalizedConvolution
from minidl.nn.pending import PendingActivation

STEPS = 4
IMAGE = (8, 8, 1)


class InFours(ReferenceBackend):
    """The definition, on a device whose fused operations take channels in fours alone."""

    def fuses_normalization(self, c_in: int, c_out: int) -> bool:
        return c_in % 4 == 0 and c_out % 4 == 0


class Apart(ReferenceBackend):
    """The definition, on a device without any such operations."""

    def fuses_normalization(self, c_in: int, c_out: int) -> bool:
        return False

    def fuses_pooling(self) -> bool:
        return False


def unit(c_in: int, c_out: int, relu: bool = True, kernel: int = 3, stride: int = 1, **norm: Any) -> list[nn.Module]:
    layers = [
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False, device="reference"),
        nn.BatchNorm2d(c_out, device="reference", **norm),
    ]
    return [*layers, nn.ReLU(device="reference")] if relu else layers


def strided_blocks() -> nn.Sequential:
    """As in resnet-18: a block with a way around that has its own chain, then one without."""
    return nn.Sequential(
        *unit(1, 4),
        nn.MaxPool2d(2, device="reference"),
        nn.Residual(
            *unit(4, 8, stride=2),
            *unit(8, 8, relu=False),
            downsample=nn.Sequential(*unit(4, 8, relu=False, kernel=1, stride=2)),
            activation=nn.ReLU(device="reference"),
        ),
        nn.Residual(*unit(8, 8), *unit(8, 8, relu=False), activation=nn.ReLU(device="reference")),
        nn.GlobalAvgPool2d(device="reference"),
        nn.Linear(8, 3, device="reference"),
    )


def long_chain() -> nn.Sequential:
    """Three in a row, one of them without ReLU and one without gamma and beta, of cumulative means and strides."""
    return nn.Sequential(
        *unit(1, 4, momentum=None),
        *unit(4, 8, relu=False, stride=2, affine=False),
        *unit(8, 4, kernel=1, track_running_stats=False),
        nn.GlobalAvgPool2d(device="reference"),
        nn.Linear(4, 3, device="reference"),
    )


def conv_pool() -> nn.Sequential:
    """Chains of one."""
    layers = *unit(1, 4), nn.MaxPool2d(2, device="reference"), *unit(4, 8), nn.GlobalAvgPool2d(device="reference")
    return nn.Sequential(*layers, nn.Linear(8, 3, device="reference"))


MODELS: dict[str, Callable[[], nn.Sequential]] = {
    "small-cnn": lambda: build("small-cnn", IMAGE, 3),
    "resnet-20": lambda: build("resnet-20", IMAGE, 3),
    "preact-resnet-8": lambda: build("preact-resnet-8", IMAGE, 3),
    "strided blocks": strided_blocks,
    "long chain": long_chain,
    "conv, pool": conv_pool,
}


def made(name: str, backend: Any = "reference", fused: bool = True) -> nn.Sequential:
    nn.manual_seed(3)
    model = MODELS[name]().to(backend)
    if fused:
        nn.fuse(model)
    return model


def chained(model: nn.Module) -> list[NormalizedConvolution]:
    sequentials = [module for _, module in model.named_modules() if isinstance(module, nn.Sequential)]
    return [step for module in sequentials for step in module.steps if isinstance(step, NormalizedConvolution)]


@pytest.mark.parametrize("device", ["reference", "in fours"])
@pytest.mark.parametrize("name", MODELS)
def test_training_goes_the_same_way(name: str, device: str, rng) -> None:
    """In float64, over several steps: outputs, gradients of images and all there is of state."""
    backend = InFours() if device == "in fours" else get_backend("reference")
    plain, fused = made(name, backend, fused=False), made(name, backend)
    assert chained(fused)
    assert any(step.fused for step in chained(fused))
    optimizers = [optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-3) for model in (plain, fused)]
    for step in range(STEPS):
        x, dy = rng.standard_normal((5, *IMAGE)), rng.standard_normal((5, 3))
        alike(fused.forward(x), plain.forward(x), f"the output of step {step}")
        alike(fused.backward(dy), plain.backward(dy), f"the gradient of x in step {step}", 1e-11)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    compare(fused, plain)
    alike(fused.eval().forward(x), plain.eval().forward(x), "evaluation")


def test_what_is_fused_is_said_as_it_runs_on_the_device() -> None:
    model = made("strided blocks")
    together = ["0 + 1 + 2 + 3", "4.0 + 4.1 + 4.2 + 4.3 + 4.4 + sum + 4.activation", "4.downsample.0 + 4.downsample.1"]
    together.append("5.0 + 5.1 + 5.2 + 5.3 + 5.4 + sum + 5.activation")
    assert sorted(nn.fuse(model)) == sorted(together)
    model.to("cpu")
    assert sorted(nn.fuse(model)) == sorted(together)
    model.to(Apart())
    apart = ["1 + 2", "4.1 + 4.2", "4.4 + sum + 4.activation", "5.1 + 5.2", "5.4 + sum + 5.activation"]
    assert sorted(nn.fuse(model)) == sorted(apart)
    assert not chained(model)
    small = build("small-cnn", IMAGE, 3).to(InFours())
    chain = "bn1 + relu1 + conv2 + bn2 + relu2 + pool2", "conv3 + bn3 + relu3 + conv4 + bn4 + relu4 + pool4"
    assert nn.fuse(small)[:2] == list(chain)  # conv1 reads one channel: it runs as it does alone


def test_moving_to_another_device_is_enough(rng) -> None:
    """Which steps there are depends on it, and is looked at again."""
    model = made("strided blocks", Apart())
    assert not chained(model)
    x, dy = rng.standard_normal((4, *IMAGE)), rng.standard_normal((4, 3))
    for device in ("reference", "cpu"):
        model.to(device)
        model.forward(model.backend.array(x))
        model.backward(model.backend.array(dy))
        assert len(chained(model)) == 6
    with unfused(model):
        assert not chained(model)
    assert len(chained(model)) == 6


class Watching(InFours):
    """Notes which operations run, and how many activations are written."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name.startswith(("conv2d_", "batchnorm_", "max_pool2d_")):
            self.calls.append(name)
        return value


def calls(model: nn.Module, x: np.ndarray, dy: np.ndarray) -> list[str]:
    model.backend.calls.clear()
    model.forward(x)
    model.backward(dy)
    return list(model.backend.calls)


def test_nothing_normalized_is_stored_within_a_chain(rng) -> None:
    model = made("small-cnn", Watching())
    model.conv1.input_gradient = False
    ran = calls(model, rng.standard_normal((4, *IMAGE)), rng.standard_normal((4, 3)))
    pools = "max_pool2d_normalized_forward", "max_pool2d_normalized_backward"
    forward = ran[: ran.index(pools[1])]
    fused = ["conv2d_normalized_forward", "batchnorm_update_running"]
    first = ["conv2d_forward", "batchnorm_statistics", "batchnorm_update_running"]
    assert forward == [*first, *fused, pools[0], *fused, *fused, pools[0]]
    through = ["conv2d_normalized_backward_weight", "conv2d_normalized_backward_input"]
    last = ["batchnorm_pending_gradient", "conv2d_backward_weight"]
    assert ran[len(forward) :] == [pools[1], *through, *through, pools[1], *through, *last]


def test_the_end_of_a_block_takes_statistics_and_gives_sums(rng) -> None:
    block = nn.Residual(*unit(4, 4), *unit(4, 4, relu=False), activation=nn.ReLU(device="reference")).to(Watching())
    nn.fuse(block)
    ran = calls(block, rng.standard_normal((3, 5, 5, 4)), rng.standard_normal((3, 5, 5, 4)))
    assert "batchnorm_statistics" not in ran
    assert "batchnorm_apply" not in ran
    assert ran.count("batchnorm_add_relu_apply") == ran.count("batchnorm_add_relu_gradient_sums") == 1
    assert "batchnorm_gradient_sums" not in ran
    assert "batchnorm_pending_gradient" not in ran


ALL_WAYS: dict[str, Callable[[nn.Module], Any]] = {
    **WAYS,
    "one frozen within a chain": lambda model: model[4][1].freeze_statistics(),
    "one frozen at a block's end": lambda model: model[4][4].freeze_statistics(),
}


@pytest.mark.parametrize("way", ALL_WAYS)
def test_modes(way: str, rng) -> None:
    plain, fused = (made("strided blocks", fused=fuses) for fuses in (False, True))
    assert_same_way(fused, plain, ALL_WAYS[way], (4, *IMAGE), rng)


def sharing(*parts: slice) -> list[nn.Sequential]:
    """A fused chain of two, and Sequentials of some of the same layers."""
    layers = [*unit(1, 4), *unit(4, 8)]
    models = [nn.Sequential(*layers[part]) for part in (slice(None), *parts)]
    for model in models:
        model.to(InFours())
        nn.fuse(model)
    return models


def test_a_chain_goes_back_only_through_what_ran_last(rng) -> None:
    x, dy = rng.standard_normal((2, *IMAGE)), rng.standard_normal((2, 8, 8, 8))
    whole, begin, end = sharing(slice(0, 3), slice(3, 6))
    with unfused(whole):
        right = whole.forward(x), whole.backward(dy)
    whole.zero_grad()
    end.forward(begin.forward(x))
    alike(whole.forward(x), right[0], "the output")
    with pytest.raises(RuntimeError, match=r"layers of this chain have run last outside of it.*unfused"):
        end.backward(dy)
    assert all(parameter.grad is None for parameter in whole.parameters())  # nothing was done by then
    alike(whole.backward(dy), right[1], "the gradient of x", 1e-11)
    whole.forward(x)
    end.forward(begin.forward(x))
    with pytest.raises(RuntimeError, match="layers of this chain have run last outside of it"):
        whole.backward(dy)
    alike(begin.backward(end.backward(dy)), right[1], "the gradient of x", 1e-11)


def test_a_convolution_alone_does_not_go_back_through_a_chain(rng) -> None:
    whole, convolution = sharing(slice(3, 4))
    whole.forward(rng.standard_normal((2, *IMAGE)))
    with pytest.raises(RuntimeError, match=r"Conv2d\.backward: forward ran as a step of a fused chain"):
        convolution.backward(rng.standard_normal((2, 8, 8, 8)))


def test_evaluation_normalizes_in_the_pass_of_the_relu_and_the_sum(rng) -> None:
    model = made("strided blocks", Watching()).eval()
    ran = calls(model, rng.standard_normal((4, *IMAGE)), rng.standard_normal((4, 3)))
    assert ran.count("batchnorm_apply") == 4  # behind each convolution but the blocks' last
    assert ran.count("batchnorm_add_relu_apply") == ran.count("batchnorm_add_relu_backward") == 2
    assert not any("normalized" in name or "pending" in name for name in ran)


def test_reestimated_statistics_are_those_of_the_layers(rng) -> None:
    batches = [rng.standard_normal((n, *IMAGE)) for n in (4, 6)]
    plain, fused = (made("strided blocks", fused=fuses) for fuses in (False, True))
    assert nn.reestimate_statistics(fused, batches) == nn.reestimate_statistics(plain, batches)
    compare(fused, plain)


def test_an_empty_batch_and_one_value_a_channel() -> None:
    for name in ("strided blocks", "conv, pool"):
        plain, fused = (made(name, fused=fuses) for fuses in (False, True))
        for model in (plain, fused):
            assert model.forward(np.zeros((0, *IMAGE))).shape == (0, 3)
            assert model.backward(np.zeros((0, 3))).shape == (0, *IMAGE)
        compare(fused, plain)
    model = nn.Sequential(*unit(4, 4), *unit(4, 4))
    nn.fuse(model)
    before = model.state_dict()
    with pytest.raises(ValueError, match=r"training needs more than one value for each channel, got .* \(1, 1, 1, 4\)"):
        model.forward(np.ones((1, 1, 1, 4)))
    assert all(np.array_equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_does_not_fit_is_refused_as_without_fusion() -> None:
    model = nn.Sequential(*unit(4, 8), *unit(4, 4))
    nn.fuse(model)
    with pytest.raises(ValueError, match=r"Conv2d: the input has shape \(2, 5, 5, 8\), expected \(n, h, w, 4\)"):
        model.forward(np.ones((2, 5, 5, 4)))
    model = nn.Sequential(unit(4, 8)[0], nn.BatchNorm2d(4, device="reference"))
    assert nn.fuse(model) == []
    with pytest.raises(ValueError, match="BatchNorm2d: the input has shape"):
        model.forward(np.ones((2, 5, 5, 4)))
    model = nn.Sequential(*unit(4, 4), *unit(4, 4))
    nn.fuse(model)
    y = model.forward(np.ones((2, 5, 5, 4)))
    with pytest.raises(ValueError, match=r"the gradient has shape \(2, 5, 5, 3\), expected \(2, 5, 5, 4\)"):
        model.backward(y[..., :3].copy())


def test_backward_goes_once_and_only_through_what_was_kept() -> None:
    model = nn.Sequential(*unit(4, 4), *unit(4, 4))
    nn.fuse(model)
    x = np.ones((2, 5, 5, 4))
    with pytest.raises(RuntimeError, match="no forward pass to go back through"):
        model.backward(x)
    with nn.inference():
        model.forward(x)
    with pytest.raises(RuntimeError, match="no forward pass to go back through"):
        model.backward(x)
    model.forward(x)
    model.backward(x)
    with pytest.raises(RuntimeError, match="no forward pass to go back through"):
        model.backward(x)


def test_what_is_no_link_of_a_chain() -> None:
    """A bias, another kind of normalization, ReLU between the two, or a subclass."""

    class Other(nn.BatchNorm2d):
        pass

    def is_none(*layers: nn.Module) -> bool:
        model = nn.Sequential(*layers).to("reference")
        nn.fuse(model)
        return not chained(model)

    convolution = unit(4, 4)[0]
    assert is_none(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    assert is_none(convolution, nn.GhostBatchNorm2d(4, 2), nn.ReLU())
    assert is_none(convolution, nn.NoisyBatchNorm2d(4))
    assert is_none(convolution, nn.GroupNorm(2, 4), nn.ReLU())
    assert is_none(convolution, nn.ReLU(), nn.BatchNorm2d(4))
    assert is_none(convolution, Other(4))
    assert not is_none(convolution, nn.BatchNorm2d(4))


def test_a_pending_activation_can_be_written() -> None:
    model = nn.Sequential(*unit(4, 4), *unit(4, 4))
    nn.fuse(model)
    x = np.random.default_rng(0).standard_normal((3, 5, 5, 4))
    pending = model.steps[0].forward(x)
    assert isinstance(pending, PendingActivation)
    assert pending.shape == (3, 5, 5, 4)
    np.testing.assert_array_equal(pending.written(), nn.Sequential(*list(model)[:3]).forward(x))


def gradients_of(model: nn.Sequential) -> list[np.ndarray]:
    return [parameter.grad.copy() for parameter in model.parameters()]


@pytest.mark.parametrize("fused_forward", [True, False])
def test_backward_goes_back_through_what_forward_ran(fused_forward: bool) -> None:
    rng = np.random.default_rng(7)
    nn.manual_seed(3)
    model = strided_blocks()
    x, dy = rng.standard_normal((4, 8, 8, 1)), rng.standard_normal((4, 3))
    model.forward(x)
    expected_dx = model.backward(dy)
    expected = gradients_of(model)
    nn.fuse(model)
    model.zero_grad()
    if fused_forward:
        model.forward(x)
        with unfused(model):
            dx = model.backward(dy)
    else:
        with unfused(model):
            model.forward(x)
        dx = model.backward(dy)
    np.testing.assert_allclose(dx, expected_dx, rtol=1e-10, atol=1e-11)
    for found, right in zip(gradients_of(model), expected, strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-9, atol=1e-10)


def test_a_bias_that_comes_later_takes_part() -> None:
    nn.manual_seed(3)
    model = nn.Sequential(*unit(2, 4, momentum=1.0), *unit(4, 4))
    assert nn.fuse(model)
    x = np.random.default_rng(0).standard_normal((2, 4, 4, 2))
    model.forward(x)
    before = model[1].running_mean.copy()
    model[0].bias = nn.Parameter(model.backend, np.full(4, 5.0), decay=False)
    model.forward(x)
    model.backward(np.ones((2, 4, 4, 4)))
    np.testing.assert_allclose(model[1].running_mean, before + 5, rtol=1e-12)
    assert model[0].bias.grad is not None
