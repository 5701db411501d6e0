"""What is in each network, by its own paper; how it starts."""

from typing import Any

import numpy as np
import pytest

from minidl import models, nn
from minidl.nn.init import manual_seed

IMAGE = (8, 8, 3)


def count(name: str, image: Any = (32, 32, 3), classes: int = 10, norm: str = "batch") -> int:
    return sum(parameter.value.size for parameter in models.build(name, image, classes, norm).parameters())


def inputs(count: int = 4) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((count, *IMAGE)).astype(np.float32)


@pytest.mark.parametrize(
    ("image", "classes", "norm", "parameters"),
    [
        # weights of the convolutions, gamma and beta of 192 channels, the classifier
        ((8, 8, 1), 10, "batch", 9 * (1 * 32 + 32 * 32 + 32 * 64 + 64 * 64) + 2 * 192 + 2 * 2 * 64 * 10 + 10),
        ((28, 28, 1), 10, "batch", 9 * (1 * 32 + 32 * 32 + 32 * 64 + 64 * 64) + 2 * 192 + 7 * 7 * 64 * 10 + 10),
        ((8, 8, 3), 7, "none", 9 * (3 * 32 + 32 * 32 + 32 * 64 + 64 * 64) + 192 + 2 * 2 * 64 * 7 + 7),
    ],
)
def test_small_cnn_has_the_parameters_it_says(image: Any, classes: int, norm: str, parameters: int) -> None:
    assert count("small-cnn", image, classes, norm) == parameters


def test_parameters_of_the_others_are_those_of_their_papers() -> None:
    # He et al. 2016, table 6: 0.27, 0.46, 0.66, 0.85 and 1.7 million.
    assert [round(count(f"resnet-{depth}") / 1e6, 2) for depth in (20, 32, 44, 56, 110)] == [
        0.27,
        0.47,
        0.66,
        0.86,
        1.73,
    ]
    around = 16 * 32 + 32 * 64 + 2 * (32 + 64)  # ways around blocks, which the paper's smaller networks lack
    assert count("resnet-20") - around == 269_722 == count("plain-20")
    assert count("resnet-18") == 11_173_962
    # Zhang et al. 2017, table 1.
    assert count("inception-small", norm="none") == 1_649_402


def test_layers_of_small_cnn_are_in_the_usual_order() -> None:
    assert [name for name, _ in models.build("small-cnn", IMAGE, 10).children()] == [
        *("conv1", "bn1", "relu1", "conv2", "bn2", "relu2", "pool2", "conv3", "bn3", "relu3"),
        *("conv4", "bn4", "relu4", "pool4", "flatten", "fc"),
    ]


@pytest.mark.parametrize(
    ("depth", "stages"), [(5, (1, 1, 1)), (6, (2, 1, 1)), (7, (2, 2, 1)), (8, (2, 2, 2)), (20, (6, 6, 6))]
)
def test_a_plain_network_spreads_its_layers_over_three_stages(depth: int, stages: tuple[int, ...]) -> None:
    model = models.build(f"plain-{depth}", IMAGE, 10)
    convolutions = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) + 1 == depth
    for stage, (number, width) in enumerate(zip(stages, (16, 32, 64), strict=True), start=1):
        own = [m for path, m in convolutions if path.startswith(f"layer{stage}.")]
        assert len(own) == number
        assert all(m.out_channels == width for m in own)
        assert [m.stride[0] for m in own] == [1 if stage == 1 else 2, *[1] * (number - 1)]


def test_the_depth_counts_layers_with_weights() -> None:
    for name in ("plain-9", "resnet-14", "resnet-18", "preact-resnet-14", "preact-resnet-18", "mlp-4"):
        layers = [
            path
            for path, module in models.build(name, IMAGE, 10).named_modules()
            if isinstance(module, (nn.Conv2d, nn.Linear)) and "downsample" not in path
        ]
        assert len(layers) == int(name.rpartition("-")[2]), name


def test_a_preactivation_network_has_ways_of_additions_alone() -> None:
    """With all branches silent, stem and pooling see the same numbers, but for the 1x1 convolutions in between."""
    model = models.build("preact-resnet-14", IMAGE, 10, "none")
    for path, module in model.named_modules():
        if path.endswith("conv2"):
            for parameter in module.parameters():
                parameter.value[...] = 0
    layers = dict(model.named_modules())
    x = inputs() - 1
    stem = layers["conv1"].forward(x)
    assert stem.min() < 0  # no ReLU behind it
    assert np.array_equal(layers["layer1"].forward(stem), stem)
    block = layers["layer2.0"].forward(stem)
    assert np.array_equal(block, layers["layer2.0.fork.downsample"].forward(np.maximum(stem, 0)))
    assert block.min() < 0


@pytest.mark.parametrize(
    ("name", "norm", "zero_gamma"),
    [
        ("resnet-8", "batch", True),
        ("resnet-8", "batch-after", True),
        ("resnet-8", "group", True),
        ("resnet-8", "skipinit", False),
        ("preact-resnet-8", "skipinit", False),
        ("preact-resnet-8", "batch-after", True),
    ],
)
def test_blocks_start_as_the_identity_and_learn(name: str, norm: str, zero_gamma: bool) -> None:
    model = models.build(name, IMAGE, 10, norm, zero_gamma)
    block = dict(model.named_modules())["layer1.0"]
    x = np.maximum(np.random.default_rng(1).standard_normal((4, 6, 6, 16)).astype(np.float32), 0)
    assert np.array_equal(block.forward(x), x)
    block.backward(np.random.default_rng(2).standard_normal(x.shape).astype(np.float32))
    last = {"skipinit": "scale.weight"}.get(norm, "norm2.weight" if norm == "group" else "bn2.weight")
    assert np.abs(dict(block.named_parameters())[last].grad).max() > 0


def test_without_it_blocks_do_not_start_as_the_identity() -> None:
    block = dict(models.build("resnet-8", IMAGE, 10).named_modules())["layer1.0"]
    x = np.maximum(np.random.default_rng(1).standard_normal((4, 6, 6, 16)).astype(np.float32), 0)
    assert not np.allclose(block.forward(x), x)


@pytest.mark.parametrize("name", ["plain-8", "resnet-8", "preact-resnet-8", "inception-small"])
def test_convolutions_start_by_he_and_fan_out(name: str) -> None:
    manual_seed(1)
    for norm in ("batch", "none"):
        for path, module in models.build(name, IMAGE, 10, norm).named_modules():
            if isinstance(module, nn.Conv2d) and module.weight.value.size > 1000:
                deviation = np.sqrt(2 / (module.out_channels * module.kernel_size[0] * module.kernel_size[1]))
                weights = module.weight.value
                # The mean of n squares of a normal variable scatters by sqrt(2 / n) of itself; five times that.
                assert abs(np.square(weights).mean() / deviation**2 - 1) < 5 * np.sqrt(2 / weights.size), path
                assert np.abs(weights).max() > 2 * deviation  # beyond the edge of a uniform one
                assert (module.bias is None) == (norm == "batch")
                assert module.bias is None or not module.bias.value.any()


def test_hidden_linear_layers_start_by_he_and_fan_in() -> None:
    manual_seed(1)
    model = models.build("mlp-4", IMAGE, 10, "none")
    for name, features in (("fc1", 192), ("fc2", 128), ("fc3", 128)):
        layer = dict(model.children())[name]
        weights = layer.weight.value
        assert weights.shape == (128, features)
        assert abs(np.square(weights).mean() * features / 2 - 1) < 5 * np.sqrt(2 / weights.size)
        assert not layer.bias.value.any()


@pytest.mark.parametrize("name", ["small-cnn", "plain-8", "resnet-8", "preact-resnet-8", "inception-small", "mlp-3"])
def test_without_normalization_there_is_none_and_layers_have_biases(name: str) -> None:
    def layers(norm: str) -> list[nn.Module]:
        return [module for _, module in models.build(name, IMAGE, 10, norm).named_modules()]

    def biased(norm: str) -> list[bool]:
        return ["bias" in layer.own_shapes() for layer in layers(norm) if isinstance(layer, (nn.Conv2d, nn.Linear))]

    assert not any("Norm" in type(layer).__name__ for layer in layers("none"))
    assert all(biased("none"))
    assert biased("batch") == [False] * (len(biased("none")) - 1) + [True]  # the classifier has one


@pytest.mark.parametrize("name", ["plain-8", "resnet-8", "preact-resnet-8", "inception-small", "mlp-3"])
def test_fused_it_gives_what_its_single_layers_give(name: str) -> None:
    model = models.build(name, IMAGE, 10).eval()
    expected = model.forward(inputs())
    fused = " + ".join(nn.fuse(model)).split(" + ")
    norms = (nn.BatchNorm1d, nn.BatchNorm2d)
    assert {path for path, module in model.named_modules() if isinstance(module, norms)} <= set(fused)
    assert len(fused) == len(set(fused)) or "sum" in fused  # no layer in two steps
    assert np.allclose(model.forward(inputs()), expected, rtol=1e-5, atol=1e-5)
