"""What is said of a training step's techniques is what the step takes, and nothing runs to find out."""

import numpy as np
import pytest

from kernels.run_emulated import EmulatorRunner
from minidl import nn, optim
from minidl.backends import get_backend
from minidl.backends.emulated import EmulatorBackend
from minidl.lab.explain import LOSS, ONLY, OPTIMIZER, explain
from minidl.models import build

IMAGE = (8, 8, 1)


def network() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.GlobalAvgPool2d(),
        nn.Linear(8, 12),
    )
    nn.fuse(model)
    return model


def kinds(found) -> dict[tuple[str, str], tuple[str, str]]:
    return {(one.layer, one.operation): (one.technique, one.why) for one in found}


def test_each_layers_operations_with_technique_and_reason() -> None:
    found = explain(network(), IMAGE, 4, get_backend("emulator"))
    said = kinds(found)
    assert said["3", "max_pool2d_forward"] == ("scalar", "6 channels are no multiple of 4")
    assert said["3", "max_pool2d_backward"] == ("scalar", "6 channels are no multiple of 4")
    assert said["5", "global_avg_pool2d_backward"] == ("vector", "8 channels, all arrays aligned to 16 bytes")
    assert said["6", "bias_backward"] == ("", ONLY)
    assert said[LOSS, "cross_entropy"] == ("fused", "one launch for 4 rows")
    assert said[OPTIMIZER, "sgd"] == ("vector", "all arrays aligned to 16 bytes")
    assert ("0", "conv2d_backward_input") not in said  # nobody asks for the images' gradient
    assert ("4", "conv2d_backward_input") in said
    assert [one.layer for one in found] == sorted(
        (one.layer for one in found), key=["0", "1", *"3456", LOSS, OPTIMIZER].index
    )
    pool = next(one for one in found if one.operation == "max_pool2d_forward")
    assert (pool.shapes["x"], pool.shapes["y"]) == ((4, 8, 8, 6), (4, 4, 4, 6))


def test_chains_of_convolutions_have_their_operations_at_their_layers() -> None:
    """In TF32; what normalization no longer does by itself is not there."""
    model = build("resnet-8", (16, 16, 3), 10)
    nn.fuse(model)
    found = explain(model, (16, 16, 3), 16, get_backend("emulator", precision="tf32"))
    said: dict[str, list[str]] = {}
    for one in found:
        said.setdefault(one.layer, []).append(one.operation)
        if one.operation.startswith("conv2d_normalized"):
            assert (one.technique, one.why) == ("tensor_core", "channels in fours and aligned arrays")
    of_convolution = [f"conv2d_normalized_{name}" for name in ("forward", "backward_weight", "backward_input")]
    assert said["layer1.0.conv1"] == said["layer1.0.conv2"] == said["layer2.0.downsample.0"] == of_convolution
    assert said["layer1.0.bn1"] == ["batchnorm_update_running"]
    ends = ["batchnorm_update_running", "batchnorm_add_relu_apply", "batchnorm_add_relu_gradient_sums"]
    assert said["layer1.0.bn2"] == ends
    ends = ["batchnorm_update_running", "batchnorm_apply", "batchnorm_gradient_sums"]
    assert said["layer2.0.downsample.1"] == ends
    assert not said.get("")  # everything is some layer's


def test_it_is_what_training_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same step in the emulator, listening."""
    heard = []
    backend = EmulatorBackend(EmulatorRunner(), "tf32")
    backend.run.on_choice = lambda one: heard.append((one.operation, one.technique, one.why))
    model = network()
    model.to(backend)
    model.train()
    model[0].input_gradient = False
    loss = nn.CrossEntropyLoss(device=backend)
    x = np.random.default_rng(0).standard_normal((4, *IMAGE)).astype(np.float32)
    optimizer = optim.SGD(optim.decay_groups(model, 5e-4), 0.1, momentum=0.9, nesterov=True)
    loss.forward(model.forward(backend.array(x)), backend.array(np.array([0, 1, 2, 3]), np.int64))
    model.backward(loss.backward())
    optimizer.step()
    found = explain(network(), IMAGE, 4, get_backend("emulator", precision="tf32"))
    assert {(one.operation, one.technique, one.why) for one in found if one.why != ONLY} == set(heard)


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_precision_decides_where_shapes_allow_it(precision: str) -> None:
    said = kinds(
        explain(build("small-cnn", (28, 28, 1), 10), (28, 28, 1), 2, get_backend("emulator", precision=precision))
    )
    assert (said["conv2", "conv2d_forward"][0] == "tensor_core") is (precision == "tf32")
    assert said["conv1", "conv2d_forward"][0] != "tensor_core"  # one channel


def test_nothing_runs_and_memory_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    """resnet-18 at 512 images of 32x32 would be hours in the emulator."""

    def ran(*_, **__):
        raise AssertionError

    monkeypatch.setattr("kernels.run_emulated.emulate", ran)
    found = explain(build("resnet-18", (32, 32, 3), 10), (32, 32, 3), 512, get_backend("emulator"))
    assert {one.technique for one in found if one.operation == "relu_forward"} <= {"vector"}
    assert len(found) > 100
