"""What --norm means: which layers, in which order, and what is refused."""

import re

import numpy as np
import pytest

from minidl import models, nn
from minidl.errors import ConfigError
from minidl.models.norms import Norm, parse


@pytest.mark.parametrize(
    ("spec", "norm"),
    [
        ("none", Norm("none")),
        ("skipinit", Norm("skipinit")),
        ("batch", Norm("batch")),
        ("batch-after", Norm("batch", after=True)),
        ("ghost", Norm("ghost", 16)),
        ("ghost:32", Norm("ghost", 32)),
        ("noisy", Norm("noisy")),
        ("group", Norm("group", 8)),
        ("group:4-after", Norm("group", 4, after=True)),
        ("layer", Norm("layer")),
        ("instance-after", Norm("instance", after=True)),
    ],
)
def test_what_is_written_and_what_it_means(spec: str, norm: Norm) -> None:
    assert parse(spec) == norm
    assert parse(str(norm)) == norm


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("btch", "--norm: there is no normalization 'btch' (known: none, skipinit, batch, ghost, noisy, group, layer, "
                 "instance); did you mean 'batch'?"),
        ("bach-after", "--norm: there is no normalization 'bach-after' (known: none, skipinit, batch, ghost, noisy, "
                       "group, layer, instance); did you mean 'batch-after'?"),
        ("xyz", "--norm: there is no normalization 'xyz' (known: none, skipinit, batch, ghost, noisy, group, layer, "
                "instance)"),
        ("", "--norm: there is no normalization '' (known: none, skipinit, batch, ghost, noisy, group, layer, "
             "instance)"),
        ("none-after", "--norm none-after: without normalization there is nothing to place after the activation"),
        ("skipinit-after", "--norm skipinit-after: without normalization there is nothing to place after the "
                           "activation"),
        ("batch:4", "--norm batch:4: batch takes no number; only ghost and group do"),
        ("group:0", "--norm group:0: after the colon stands a whole number of at least 1, as in group:16"),
        ("group:", "--norm group:: after the colon stands a whole number of at least 1, as in group:16"),
        ("ghost:x", "--norm ghost:x: after the colon stands a whole number of at least 1, as in ghost:16"),
        ("ghost:-1", "--norm ghost:-1: after the colon stands a whole number of at least 1, as in ghost:16"),
        ("ghost:²", "--norm ghost:²: after the colon stands a whole number of at least 1, as in ghost:16"),
    ],
)  # fmt: skip
def test_what_means_nothing_is_refused(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        parse(spec)


@pytest.mark.parametrize(
    ("spec", "images", "vectors"),
    [
        ("batch", nn.BatchNorm2d, nn.BatchNorm1d),
        ("ghost:4", nn.GhostBatchNorm2d, nn.GhostBatchNorm1d),
        ("noisy", nn.NoisyBatchNorm2d, nn.NoisyBatchNorm1d),
        ("group:4", nn.GroupNorm, nn.GroupNorm),
        ("layer", nn.GroupNorm, nn.GroupNorm),
        ("instance", nn.InstanceNorm2d, None),
    ],
)
def test_the_layers(spec: str, images: type, vectors: type | None) -> None:
    layer = parse(spec).layer(16)
    assert type(layer) is images
    assert set(dict(layer.named_parameters())) == {"weight", "bias"}
    assert layer.forward(np.ones((4, 2, 2, 16), np.float32)).shape == (4, 2, 2, 16)
    if vectors is not None:
        assert type(parse(spec).layer(16, axes=0)) is vectors


def test_numbers_reach_the_layers() -> None:
    assert vars(parse("ghost:4").layer(16))["ghost_size"] == 4
    assert vars(parse("group:4").layer(16))["num_groups"] == 4
    assert vars(parse("layer").layer(16))["num_groups"] == 1


def test_layer_normalizes_an_image_as_a_whole() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 8)).astype(np.float32) * 5 + 2
    y = parse("layer").layer(8).forward(x)
    assert np.allclose(y.mean(axis=(1, 2, 3)), 0, atol=1e-5)
    assert np.allclose(y.std(axis=(1, 2, 3)), 1, atol=1e-3)
    assert not np.allclose(y.mean(axis=(1, 2)), 0, atol=1e-2)


def test_units_are_in_their_order() -> None:
    conv = nn.Conv2d(3, 16, 3)
    assert list(parse("batch").unit(1, conv, 16)) == ["conv1", "bn1", "relu1"]
    assert list(parse("batch-after").unit(1, conv, 16)) == ["conv1", "relu1", "bn1"]
    assert list(parse("group-after").unit("", conv, 16)) == ["conv", "relu", "norm"]
    assert list(parse("batch").unit(2, conv, 16, activation=False)) == ["conv2", "bn2"]
    assert list(parse("none").unit(2, conv, 16)) == ["conv2", "relu2"]
    assert list(parse("none").unit(2, conv, 16, activation=False)) == ["conv2"]
    assert list(parse("layer").unit(1, nn.Linear(3, 16), 16, axes=0)) == ["fc1", "norm1", "relu1"]
    assert list(parse("noisy").relu("", 16)) == ["bn", "relu"]
    assert list(parse("batch-after").relu(1, 16)) == ["relu1", "bn1"]


@pytest.mark.parametrize(
    ("name", "norm", "message"),
    [
        ("resnet-20", "group:3", "--norm group:3: a layer has 16 channels, and 3 groups do not divide them; that many "
                                 "can be in 1, 2, 4, 8, 16 groups"),
        ("resnet-20", "group:32-after", "--norm group:32-after: a layer has 16 channels, and 32 groups do not divide "
                                        "them; that many can be in 1, 2, 4, 8, 16 groups"),
        ("mlp-3", "group:128", "--norm group:128: a layer has 128 channels, and groups of one value each have no "
                               "variance; that many can be in 1, 2, 4, 8, 16, 32, 64 groups"),
        ("mlp-3", "instance", "--norm instance: needs images; of vectors one value a channel has no variance"),
        ("small-cnn", "skipinit", "--norm skipinit: small-cnn has no residual branches; use --norm none"),
        ("plain-20", "skipinit", "--norm skipinit: plain-20 has no residual branches; use --norm none"),
        ("inception-small", "skipinit", "--norm skipinit: inception-small has no residual branches; use --norm none"),
        ("mlp-3", "skipinit", "--norm skipinit: mlp-3 has no residual branches; use --norm none"),
    ],
)  # fmt: skip
def test_what_a_model_cannot_have_is_refused(name: str, norm: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        models.build(name, (8, 8, 1), 10, norm)


def test_a_ghost_of_one_vector_is_refused() -> None:
    message = (
        r"^mlp-3 with --norm ghost:1 cannot train on images of 8x8x1: GhostBatchNorm1d: .*; use a larger ghost_size$"
    )
    with pytest.raises(ConfigError, match=message):
        models.build("mlp-3", (8, 8, 1), 10, "ghost:1")


@pytest.mark.parametrize(
    ("name", "norm", "message"),
    [
        ("small-cnn", "batch", "--zero-gamma: small-cnn has no residual branches whose gamma could start at 0"),
        ("mlp-3", "batch", "--zero-gamma: mlp-3 has no residual branches whose gamma could start at 0"),
        ("resnet-20", "none", "--zero-gamma: with --norm none there is no normalization, and so no gamma"),
        ("preact-resnet-20", "skipinit", "--zero-gamma: with --norm skipinit there is no normalization, and so no "
                                         "gamma"),
        ("preact-resnet-20", "batch", "--zero-gamma: in preact-resnet-20 a ReLU follows the last normalization of a "
                                      "branch, and at gamma = 0 would stay dead; use resnet-20, --norm skipinit, or "
                                      "--norm with -after"),
    ],
)  # fmt: skip
def test_zero_gamma_is_refused_where_it_means_nothing(name: str, norm: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        models.build(name, (8, 8, 1), 10, norm, zero_gamma=True)
