"""Where a network stopped being finite: the first array of all, and the layer that holds it."""

import numpy as np
import pytest

from kernels.run_emulated import EmulatorRunner
from minidl import nn
from minidl.backends.emulated import EmulatorBackend
from minidl.training.diagnosis import first_nonfinite

HUGE = 1e30  # finite in float32, and no longer so once two are multiplied


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((4, 8, 8, 1)).astype(np.float32)


def network(bn: bool) -> nn.Sequential:
    nn.manual_seed(0)
    layers = {}
    for i, channels in ((1, 1), (2, 6)):
        layers[f"conv{i}"] = nn.Conv2d(channels, 6, 3, padding=1, bias=not bn)
        if bn:
            layers[f"bn{i}"] = nn.BatchNorm2d(6)
        layers[f"relu{i}"] = nn.ReLU()
    model = nn.Sequential(layers | {"flatten": nn.Flatten(), "fc": nn.Linear(384, 3)})
    nn.fuse(model)
    return model


@pytest.mark.parametrize("with_images", [False, True])
def test_a_finite_network_has_no_such_array(x, with_images) -> None:
    model = network(bn=True)
    found = first_nonfinite(model, x) if with_images else first_nonfinite(model)
    assert found == ("the loss itself: every layer's output is finite" if with_images else None)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("layer", "array", "phrase"),
    [
        ("conv1", "weight", "weight of conv1 (Conv2d)"),
        ("bn1", "bias", "bias of bn1 (BatchNorm2d)"),
        ("bn2", "running_var", "running_var of bn2 (BatchNorm2d)"),
        ("fc", "bias", "bias of fc (Linear)"),
    ],
)
def test_one_value_of_a_parameter_or_buffer_names_it_and_its_layer(layer, array, phrase, value) -> None:
    model = network(bn=True)
    target = getattr(getattr(model, layer), array)
    getattr(target, "value", target).flat[-1] = value
    assert first_nonfinite(model).startswith(phrase)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_what_is_not_finite_among_activations_in_16_bits(x, precision: str) -> None:
    """In float16 numbers beyond 65504 are not, of weights that are finite; bfloat16 goes as far as float32."""
    model = network(bn=False).to(EmulatorBackend(EmulatorRunner(checks=False), precision))
    images = model.backend.array(x)
    assert first_nonfinite(model, images) == "the loss itself: every layer's output is finite"
    model.conv2.weight.value[...] *= np.float32(1e6)
    expected = "the output of conv2 (Conv2d)" if precision == "fp16" else "the loss itself"
    assert first_nonfinite(model, images).startswith(expected)
    model.conv1.weight.value[...] *= np.float32(HUGE)
    model.conv2.weight.value[...] *= np.float32(HUGE)
    assert first_nonfinite(model, images) == f"the output of conv{1 if precision == 'fp16' else 2} (Conv2d)"


def test_the_first_of_several_is_named() -> None:
    model = network(bn=True)
    model.fc.weight.value[...] = np.nan
    model.conv2.weight.value[0] = np.nan
    assert first_nonfinite(model).startswith("weight of conv2 (Conv2d)")


def test_images_come_before_layers(x) -> None:
    x[0, 0, 0, 0] = np.nan
    assert first_nonfinite(network(bn=False), x) == "the input images"


@pytest.mark.parametrize("layer", ["conv1", "conv2"])
def test_an_output_that_overflows_names_its_layer_and_not_those_after_it(x, layer) -> None:
    model = network(bn=False)
    getattr(model, layer).weight.value[...] = HUGE
    x *= HUGE if layer == "conv1" else 1e10
    if layer == "conv2":
        model.conv1.weight.value[...] = 1.0
    assert first_nonfinite(model, x) == f"the output of {layer} (Conv2d)"


def test_with_batch_normalization_after_it_too(x) -> None:
    """The step that failed has run forward already: the running statistics behind the layer hold its infinities."""
    model = network(bn=True).train()
    model.bn1.weight.value[...] = HUGE
    model.conv2.weight.value[...] = HUGE
    assert not np.isfinite(model.forward(x)).all()
    assert first_nonfinite(model, x) == "the output of conv2 (Conv2d)"


def test_layers_inside_layers_are_named_by_their_path(x) -> None:
    nn.manual_seed(0)
    block = nn.Residual({"conv": nn.Conv2d(2, 2, 3, padding=1, bias=False)})
    model = nn.Sequential({"stem": nn.Conv2d(1, 2, 3, padding=1), "block": block, "last": nn.ReLU()})
    model.stem.weight.value[...] = 1.0
    block.conv.weight.value[...] = HUGE
    assert first_nonfinite(model, x * np.float32(1e10)) == "the output of block.conv (Conv2d)"


def test_a_sum_that_overflows_is_the_residual_blocks(x) -> None:
    model = nn.Sequential({"block": nn.Residual(nn.ReLU())})
    x[...] = 3e38
    with np.errstate(over="ignore"):
        assert first_nonfinite(model, x) == "the output of block (Residual)"


def test_logits_too_far_apart_leave_the_loss_itself(x) -> None:
    """3e38 - (-3e38) is infinite in float32, though each logit is finite."""
    model = network(bn=False)
    model.fc.weight.value[...] = 0
    model.fc.bias.value[...] = [3e38, -3e38, 0]
    logits = model.forward(x)
    with np.errstate(over="ignore"):
        loss = float(nn.CrossEntropyLoss()(logits, np.array([1, 1, 1, 1])))
    assert loss == np.inf
    assert first_nonfinite(model, x) == "the loss itself: every layer's output is finite"


@pytest.mark.parametrize("overflow", [False, True])
def test_the_network_is_left_as_it_was(x, overflow) -> None:
    model = network(bn=True).eval()
    if overflow:
        model.fc.weight.value[...] = 3e38
    steps, state = [type(step) for step in model.steps], model.state_dict()
    first_nonfinite(model, x)
    assert [type(step) for step in model.steps] == steps
    assert all("forward" not in vars(module) for _, module in model.named_modules())
    after = model.state_dict()
    assert all(after[name].tobytes() == state[name].tobytes() for name in state)
