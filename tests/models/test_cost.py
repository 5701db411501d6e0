"""What a network costs, against what one counts by hand and what a real forward pass keeps."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from minidl import models, nn
from minidl.models.cost import Cost, LayerCost, cost
from minidl.models.shapes import ShapeBackend, on_shapes

CIFAR = (32, 32, 3)


def layer_of(found: Cost, name: str) -> LayerCost:
    (layer,) = (layer for layer in found.layers if layer.name == name)
    return layer


def test_resnet_20_counted_by_hand() -> None:
    found = cost(models.build("resnet-20", CIFAR, 10), CIFAR)
    stem, classifier = 32 * 32 * 9 * 3 * 16, 64 * 10
    # Each stage has six 3x3 convolutions; of the second and third the first has half the input channels, and a 1x1
    # convolution leads around it. Halving both sides and doubling the channels leaves the products as they are.
    whole = 32 * 32 * 9 * 16 * 16
    stages = 6 * whole + 2 * (5 * whole + whole // 2) + 16 * 16 * 16 * 32 + 8 * 8 * 32 * 64
    assert found.flops == 2 * (stem + stages + classifier)
    assert round(found.flops / 2e6) == 41
    assert round(found.parameters / 1e6, 2) == 0.27


def test_resnet_18_counted_by_hand() -> None:
    found = cost(models.build("resnet-18", CIFAR, 10), CIFAR)
    whole = 32 * 32 * 9 * 64 * 64
    around = 16 * 16 * 64 * 128
    stages = 4 * whole + 3 * (3 * whole + whole // 2 + around)
    assert found.flops == 2 * (32 * 32 * 9 * 3 * 64 + stages + 512 * 10)
    assert round(found.flops / 2e9, 2) == 0.56
    assert round(found.parameters / 1e6, 2) == 11.17


def test_small_cnn_counted_by_hand() -> None:
    image = (9, 8, 2)
    model = models.build("small-cnn", image, 5)
    found = cost(model, image)
    assert layer_of(found, "conv1") == LayerCost(
        "conv1", "Conv2d", (9, 8, 32), 9 * 2 * 32, 2 * 72 * 9 * 2 * 32, 4 * 144
    )
    assert layer_of(found, "bn1") == LayerCost("bn1", "BatchNorm2d", (9, 8, 32), 64, 0, 4 * 72 * 32)
    assert layer_of(found, "relu1") == LayerCost("relu1", "ReLU", (9, 8, 32), 0, 0, 4 * 72 * 32)
    assert layer_of(found, "conv2").kept_bytes == 0  # relu1 keeps it already
    assert layer_of(found, "pool2") == LayerCost("pool2", "MaxPool2d", (4, 4, 32), 0, 0, 4 * 16 * 32)  # places, int32
    assert layer_of(found, "conv3").kept_bytes == 4 * 16 * 32
    assert layer_of(found, "flatten") == LayerCost("flatten", "Flatten", (256,), 0, 0, 0)
    assert layer_of(found, "fc") == LayerCost("fc", "Linear", (5,), 256 * 5 + 5, 2 * 256 * 5, 4 * 256)
    assert layer_of(found, "").output == (5,)
    for total in ("parameters", "flops", "kept_bytes"):
        assert getattr(found, total) == sum(getattr(layer, total) for layer in found.layers) > 0


@pytest.mark.parametrize(("device", "kept_by_conv2"), [("emulator", 4 * 72 * 32), ("cpu", 0)])
def test_fused_it_keeps_what_relu_made_only_where_someone_else_reads_it(device: str, kept_by_conv2: int) -> None:
    image = (9, 8, 2)
    model = models.build("small-cnn", image, 5)
    model.to(device)
    nn.fuse(model)
    found = cost(model, image)
    assert layer_of(found, "bn1").kept_bytes == 4 * 72 * 32
    assert layer_of(found, "conv2").kept_bytes == kept_by_conv2  # in a chain it reads what bn1 keeps
    assert all(layer_of(found, f"relu{i}").kept_bytes == 0 for i in (1, 2, 3, 4))
    assert layer_of(found, "relu2").output == (9, 8, 32)


def arrays_in(kept: Any) -> Iterator[np.ndarray]:
    if isinstance(kept, np.ndarray):
        yield kept
    elif isinstance(kept, (tuple, list)):
        for part in kept:
            yield from arrays_in(part)


def really_kept(model: nn.Module, x: np.ndarray) -> int:
    """Bytes of the memory that the model holds on to after a forward pass on the CPU."""
    model.train().forward(x)
    blocks = {
        array.__array_interface__["data"][0]: array.nbytes
        for _, module in model.named_modules()
        for array in arrays_in(module._kept)
    }
    return sum(blocks.values())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("small-cnn", "batch"),
        ("small-cnn", "group"),
        ("resnet-8", "batch"),
        ("resnet-8", "batch-after"),
        ("resnet-8", "ghost:2"),
        ("resnet-8", "skipinit"),
        ("preact-resnet-8", "batch"),
        ("inception-small", "batch"),
        ("mlp-3", "batch"),
    ],
)
def test_it_is_what_a_real_forward_pass_keeps(name: str, norm: str, fused: bool) -> None:
    image = (8, 7, 3)
    model = models.build(name, image, 10, norm)
    if fused:
        nn.fuse(model)
    rng = np.random.default_rng(0)
    two, six = (rng.standard_normal((n, *image)).astype(np.float32) for n in (2, 6))
    grows = really_kept(model, six) - really_kept(model, two)
    assert cost(model, image).kept_bytes == grows / 4


def test_it_leaves_the_model_as_it_was() -> None:
    model = models.build("preact-resnet-8", (8, 8, 1), 10).eval()
    nn.fuse(model)
    x = np.random.default_rng(0).standard_normal((3, 8, 8, 1)).astype(np.float32)
    model.forward(x)
    before = {path: dict(vars(module)) for path, module in model.named_modules()}
    state = model.state_dict()
    cost(model, (8, 8, 1))
    for path, module in model.named_modules():
        assert vars(module).keys() == before[path].keys()
        assert all(vars(module)[name] is value for name, value in before[path].items() if name != "_steps"), path
    assert all(np.array_equal(value, state[name]) for name, value in model.state_dict().items())


def test_so_does_an_error() -> None:
    model = models.build("small-cnn", (8, 8, 1), 10)
    with pytest.raises(ValueError, match="Linear: the input has shape"):
        cost(model, (12, 12, 1))
    assert all(module.backend.name == "cpu" and "forward" not in vars(module) for _, module in model.named_modules())


def test_it_knows_layers_outside_our_models() -> None:
    tower = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.AvgPool2d(2), nn.Dropout(0.5))
    model = nn.Sequential(
        {"both": nn.Concat(tower, nn.MaxPool2d(2)), "norm": nn.LayerNorm(6), "pool": nn.GlobalAvgPool2d()}
    )
    found = cost(model, (6, 4, 2))
    assert layer_of(found, "both") == LayerCost("both", "Concat", (3, 2, 6), 0, 0, 0)
    assert layer_of(found, "both.0.0").parameters == 4 * 2 * 9 + 4
    assert layer_of(found, "norm").parameters == 12
    assert found.flops == layer_of(found, "both.0.0").flops == 2 * 24 * 9 * 2 * 4


def test_its_arrays_have_no_memory() -> None:
    backend = ShapeBackend()
    assert backend.empty((10**6, 10**6)).nbytes == 4 * 10**12
    with pytest.raises(AttributeError, match="ShapeBackend has no conv3d_forward"):
        _ = backend.conv3d_forward
    model = models.build("small-cnn", (8, 8, 1), 10)
    with on_shapes(model) as shapes:
        assert model.forward(shapes.empty((10**9, 8, 8, 1))).shape == (10**9, 10)
