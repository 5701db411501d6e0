"""Whole models against central differences, on the float64 backend: the chain rule through every kind of wiring."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from minidl import models, nn
from minidl.lab.gradcheck import check_gradient
from minidl.nn.init import manual_seed

D: dict[str, Any] = {"device": "reference"}


def conv_bn(c_in: int, c_out: int, **options: Any) -> list[nn.Module]:
    return [nn.Conv2d(c_in, c_out, 3, padding=1, **options, **D), nn.BatchNorm2d(c_out, eps=0.01, **D)]


def plain() -> nn.Module:
    return nn.Sequential(
        *conv_bn(2, 3, bias=False),
        nn.ReLU(**D),
        nn.MaxPool2d(2, **D),
        nn.Flatten(**D),
        nn.Linear(12, 5, **D),
        nn.BatchNorm1d(5, affine=False, **D),
        nn.Linear(5, 3, **D),
    )


def residual() -> nn.Module:
    """A basic block of ResNet with a projection, then one without."""
    down = nn.Residual(
        *(*conv_bn(2, 4, stride=2, bias=False), nn.ReLU(**D), *conv_bn(4, 4, bias=False)),
        downsample=nn.Sequential(nn.Conv2d(2, 4, 1, stride=2, bias=False, **D), nn.BatchNorm2d(4, **D)),
        activation=nn.ReLU(**D),
    )
    same = nn.Residual(*conv_bn(4, 4), nn.ReLU(**D), nn.AvgPool2d(3, 1, 1, **D))
    return nn.Sequential(down, same, nn.GlobalAvgPool2d(**D), nn.Linear(4, 3, **D))


def inception() -> nn.Module:
    paths = nn.Concat(
        nn.Conv2d(2, 2, 1, **D),
        nn.Sequential(*conv_bn(2, 3), nn.ReLU(**D)),
        nn.Sequential(
            nn.AvgPool2d(3, 1, 1, count_include_pad=False, **D), nn.Conv2d(2, 1, (1, 3), padding=(0, 1), **D)
        ),
        nn.Residual(nn.Dropout(0.5, **D)),
    )
    return nn.Sequential(paths, nn.MaxPool2d(2, **D), nn.Flatten(**D), nn.Linear(32, 3, **D))


def small_cnn() -> nn.Module:
    return models.build("small-cnn", (4, 4, 2), 3).to("reference")


MODELS: list[Callable[[], nn.Module]] = [plain, residual, inception, small_cnn]


def check(model: nn.Module, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((5, 4, 4, 2))
    targets = np.array([0, 2, 1, -100, 2])
    loss = nn.CrossEntropyLoss(label_smoothing=0.1, **D)
    parameters = dict(model.named_parameters())
    for parameter in parameters.values():  # away from 0 and 1, where a mistake could hide
        parameter.value += 0.1 * rng.standard_normal(parameter.shape)
    dropouts = [layer for _, layer in model.named_modules() if isinstance(layer, nn.Dropout)]

    def function(**inputs: Any) -> np.ndarray:
        for layer in dropouts:
            layer.calls = 0  # the same mask each time
        for name, parameter in parameters.items():
            parameter.value[...] = inputs[name]
        return loss.forward(model.forward(inputs["x"]), targets)

    inputs = {"x": x, **{name: parameter.value.copy() for name, parameter in parameters.items()}}
    function(**inputs)
    dx = model.backward(loss.backward())
    gradients = {"x": dx, **{name: parameter.grad for name, parameter in parameters.items()}}
    check_gradient(f"{len(parameters)} parameters", function, inputs, gradients, np.ones(()), directions=2)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_gradients_of_whole_models(make: Callable[[], nn.Module], training: bool) -> None:
    manual_seed(3)
    model = make()
    rng = np.random.default_rng(8)
    state = model.state_dict()
    for name, value in state.items():
        if name.endswith("running_var"):
            state[name] = rng.uniform(0.5, 2, value.shape)
        elif name.endswith("running_mean"):
            state[name] = rng.standard_normal(value.shape)
    model.load_state_dict(state)
    check(model.train(training), seed=3)


@pytest.mark.parametrize("make", [plain, residual], ids=lambda make: make.__name__)
def test_gradients_of_fused_models(make: Callable[[], nn.Module]) -> None:
    manual_seed(3)
    model = make()
    assert nn.fuse(model)
    check(model, seed=3)


def test_a_wrong_gradient_is_found(monkeypatch) -> None:
    """The check itself: with training's backward in evaluation it must fail."""
    manual_seed(3)
    model = plain().eval()
    backward = type(model.backend).batchnorm_backward

    def wrong(self: Any, *args: Any, training: bool, **options: Any) -> None:
        backward(self, *args, training=True, **options)

    monkeypatch.setattr(type(model.backend), "batchnorm_backward", wrong)
    with pytest.raises(AssertionError, match="wrong gradient of x"):
        check(model, seed=3)
