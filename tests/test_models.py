"""Networks by name, and small-cnn against the same network in PyTorch, step by step."""

from typing import Any

import numpy as np
import pytest

from minidl import models, nn, optim
from minidl.backends import get_backend
from minidl.errors import ConfigError
from minidl.nn.init import manual_seed

STEPS = 4


@pytest.fixture(scope="module")
def torch():
    reason = 'PyTorch, the second opinion, is not installed: pip install -e ".[oracle]"'
    return pytest.importorskip("torch", reason=reason)


def build(image: tuple[int, int, int], classes: int, bn: bool = True) -> nn.Sequential:
    return models.build("small-cnn", image, classes, "batch" if bn else "none")


def torch_small_cnn(torch: Any, image: tuple[int, int, int], classes: int, bn: bool) -> Any:
    model = torch.nn.Sequential()
    plan = ((image[2], 32, False), (32, 32, True), (32, 64, False), (64, 64, True))
    for i, (c_in, c_out, pool) in enumerate(plan, start=1):
        model.add_module(f"conv{i}", torch.nn.Conv2d(c_in, c_out, 3, padding=1, bias=not bn))
        if bn:
            model.add_module(f"bn{i}", torch.nn.BatchNorm2d(c_out))
        model.add_module(f"relu{i}", torch.nn.ReLU())
        if pool:
            model.add_module(f"pool{i}", torch.nn.MaxPool2d(2))
    model.add_module("flatten", torch.nn.Flatten())
    model.add_module("fc", torch.nn.Linear(image[0] // 4 * (image[1] // 4) * 64, classes))
    return model


def train(model: nn.Sequential, batches: list[Any]) -> list[dict[str, np.ndarray]]:
    """Of each step the logits and all gradients, by name, and the state that it left."""
    backend = model.backend
    loss = nn.CrossEntropyLoss(label_smoothing=0.1, device=backend)
    sgd = optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    seen = []
    for images, labels in batches:
        model.zero_grad()
        logits = model.forward(images.astype(backend.dtype))
        record = {"loss": loss.forward(logits, labels).copy(), "logits": logits.copy()}
        record["dx"] = model.backward(loss.backward()).copy()
        for name, parameter in model.named_parameters():
            axes = parameter.axes or range(parameter.grad.ndim)
            record[f"gradient of {name}"] = parameter.grad.transpose(axes).copy()
        sgd.step()
        seen.append(record | model.state_dict())
    return seen


def torch_train(torch: Any, model: Any, batches: list[Any]) -> list[dict[str, np.ndarray]]:
    dtype = next(model.parameters()).dtype
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    seen = []
    for images, labels in batches:
        sgd.zero_grad()
        x = torch.from_numpy(np.moveaxis(images, -1, 1).copy()).to(dtype).requires_grad_()
        logits = model(x)
        loss = loss_of(logits, torch.from_numpy(labels))
        loss.backward()
        record = {"loss": loss, "logits": logits, "dx": x.grad.permute(0, 2, 3, 1)}
        record |= {f"gradient of {name}": parameter.grad for name, parameter in model.named_parameters()}
        record = {name: value.detach().numpy().copy() for name, value in record.items()}
        sgd.step()
        seen.append(record | {name: value.numpy().copy() for name, value in model.state_dict().items()})
    return seen


def pair_of(torch: Any, bn: bool, dtype: Any) -> tuple[nn.Sequential, Any]:
    """The two networks with the same weights, which come from PyTorch's state dict."""
    torch.manual_seed(5)
    twin = torch_small_cnn(torch, (9, 8, 2), 5, bn).to(dtype)
    model = build((9, 8, 2), 5, bn)
    model.load_state_dict({name: value.numpy() for name, value in twin.state_dict().items()})
    return model, twin


@pytest.fixture(scope="module")
def batches() -> list[Any]:
    rng = np.random.default_rng(9)
    return [(rng.standard_normal((8, 9, 8, 2)).astype(np.float32), rng.integers(0, 5, 8)) for _ in range(STEPS)]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("bn", [True, False])
def test_small_cnn_trains_as_pytorchs_does(torch, batches, bn: bool, fused: bool) -> None:
    """Float64 on both sides: nothing but rounding, which a step multiplies, lies between the two."""
    model, twin = pair_of(torch, bn, torch.float32)
    if fused:
        assert len(nn.fuse(model)) == (4 if bn else 0)
    ours, theirs = train(model.to("reference"), batches), torch_train(torch, twin.double(), batches)
    for step, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        assert mine.keys() == other.keys()
        for name, value in mine.items():
            error = np.abs(value - other[name]).max() / (np.abs(other[name]).max() + 1)
            assert error < 1e-12, f"{name} at step {step}"


@pytest.mark.parametrize("bn", [True, False])
def test_small_cnn_on_the_cpu_is_as_exact_as_pytorch_in_float32(torch, batches, bn: bool) -> None:
    """What float32 costs through fourteen layers is what it costs an independent implementation of the same steps.

    Both are held against the same steps in float64. Ours may be off by eight times as much as PyTorch's, in each
    array's largest element: both sum in orders that depend on the BLAS at hand, and 2.6 times were seen. Half a unit of
    the largest element is what the result alone rounds by; a mean is that of numbers which are larger than it by the
    deviation, and is kept as an element and a rest.
    """
    model, twin = pair_of(torch, bn, torch.float32)
    exact = torch_train(torch, pair_of(torch, bn, torch.float32)[1].double(), batches)
    ours, theirs = train(model, batches), torch_train(torch, twin, batches)
    for step, (mine, other, right) in enumerate(zip(ours, theirs, exact, strict=True)):
        assert mine.keys() == right.keys()
        for name, value in mine.items():
            scale = np.abs(right[name]).max()
            if name.endswith("running_mean"):
                scale += np.sqrt(right[name.replace("mean", "var")].max())
            floor = 2.0**-24 * scale
            cost = np.abs(other[name] - right[name]).max() + floor
            error = np.abs(value - right[name]).max()
            assert error <= 8 * cost, f"{name} at step {step}: {error:.3g}, PyTorch {cost:.3g}"


@pytest.mark.parametrize(
    ("image", "classes", "bn", "count"),
    [
        # weights of the convolutions, gamma and beta of 192 channels, the classifier
        ((8, 8, 1), 10, True, 9 * (1 * 32 + 32 * 32 + 32 * 64 + 64 * 64) + 2 * 192 + 2 * 2 * 64 * 10 + 10),
        ((28, 28, 1), 10, True, 9 * (1 * 32 + 32 * 32 + 32 * 64 + 64 * 64) + 2 * 192 + 7 * 7 * 64 * 10 + 10),
        ((8, 8, 3), 7, False, 9 * (3 * 32 + 32 * 32 + 32 * 64 + 64 * 64) + 192 + 2 * 2 * 64 * 7 + 7),
    ],
)
def test_small_cnn_has_the_parameters_it_says(image: Any, classes: int, bn: bool, count: int) -> None:
    model = build(image, classes, bn)
    assert sum(parameter.value.size for parameter in model.parameters()) == count
    y = model.eval().forward(np.zeros((2, *image), np.float32))
    assert y.shape == (2, classes)


def test_layers_of_small_cnn_are_in_the_usual_order() -> None:
    names = [name for name, _ in build((8, 8, 1), 10).children()]
    assert names == [
        *("conv1", "bn1", "relu1", "conv2", "bn2", "relu2", "pool2", "conv3", "bn3", "relu3"),
        *("conv4", "bn4", "relu4", "pool4", "flatten", "fc"),
    ]


def test_without_batch_normalization_there_is_none_and_convolutions_have_biases() -> None:
    without = build((8, 8, 1), 10, bn=False)
    assert not any("bn" in name for name, _ in without.named_modules())
    assert all(f"conv{i}.bias" in without.state_dict() for i in (1, 2, 3))
    assert not any(f"conv{i}.bias" in build((8, 8, 1), 10).state_dict() for i in (1, 2, 3))


def test_the_seed_makes_the_weights() -> None:
    def state(seed: int) -> dict[str, np.ndarray]:
        manual_seed(seed)
        return build((8, 8, 1), 10).state_dict()

    assert all(np.array_equal(value, state(3)[name]) for name, value in state(3).items())
    assert not np.array_equal(state(3)["fc.weight"], state(4)["fc.weight"])


@pytest.mark.parametrize(("image", "size"), [((3, 8, 1), "3x8"), ((8, 3, 1), "8x3"), ((0, 0, 1), "0x0")])
def test_images_that_are_too_small_are_refused(image: Any, size: str) -> None:
    with pytest.raises(ConfigError, match=f"small-cnn needs images of at least 4x4 pixels, got {size}"):
        models.build("small-cnn", image, 10)


def test_the_smallest_images_pass() -> None:
    model = models.build("small-cnn", (4, 5, 1), 2)
    assert model.forward(np.ones((2, 4, 5, 1), np.float32)).shape == (2, 2)


@pytest.mark.parametrize(("name", "hint"), [("small_cnn", True), ("smal-cnn", True), ("inception", False)])
def test_an_unknown_name_gets_the_known_ones_and_a_suggestion(name: str, hint: bool) -> None:
    with pytest.raises(ConfigError, match=rf"there is no model '{name}' \(known: small-cnn") as e:
        models.build(name, (8, 8, 1), 10)
    assert ("did you mean 'small-cnn'?" in str(e.value)) == hint


def test_models_move_as_a_whole() -> None:
    model = build((8, 8, 1), 10).to("reference")
    assert all(module.backend is get_backend("reference") for _, module in model.named_modules())
