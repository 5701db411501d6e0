"""Folding: the outputs stay, what cannot be folded stays and is named, and what would be wrong is refused."""

import re
from typing import Any

import numpy as np
import pytest

from minidl import models, nn
from minidl.lab.budget import TINY, U, rounding
from minidl.nn.batchnorm import BatchNorm
from minidl.nn.fusion import unfused
from minidl.nn.init import manual_seed

IMAGE = (8, 8, 3)


def with_statistics(model: nn.Module, seed: int = 0) -> Any:
    """`model` as if trained: its batch normalization has parameters and running statistics of its own."""
    rng = np.random.default_rng(seed)
    for _, layer in model.named_modules():
        if isinstance(layer, BatchNorm) and layer.track_running_stats:
            c = layer.num_features
            state = {"running_mean": rng.normal(0, 1, c), "running_var": rng.uniform(0.3, 3, c)}
            if layer.affine:
                state |= {"weight": rng.normal(0.2, 1, c), "bias": rng.normal(0, 1, c)}
            layer.load_state_dict(state | {"num_batches_tracked": np.int64(5)})
    return model.eval()


def outputs(model: nn.Module, x: np.ndarray) -> np.ndarray:
    with nn.inference():
        return np.array(model.backend.numpy(model.forward(model.backend.array(x))))


def norms_in(model: nn.Module) -> set[str]:
    return {path for path, layer in model.named_modules() if isinstance(layer, BatchNorm)}


def largest_difference(model: nn.Module, folded: nn.Module, x: np.ndarray) -> float:
    """Relative to the largest output."""
    expected = outputs(model, x)
    assert np.abs(expected).max() > 0
    return float(np.abs(outputs(folded, x) - expected).max() / np.abs(expected).max())


# Outputs.

MODELS = {
    ("small-cnn", "batch"): (4, 0),
    ("small-cnn", "ghost:2"): (4, 0),
    ("small-cnn", "noisy"): (4, 0),
    ("plain-5", "batch"): (4, 0),
    ("plain-5", "batch-after"): (1, 3),  # the last goes through the pooling into the classifier
    ("resnet-8", "batch"): (9, 0),
    ("resnet-8", "batch-after"): (2, 7),  # those around the blocks
    ("preact-resnet-8", "batch"): (3, 4),  # those behind the first convolution of each block
    ("inception-small", "batch"): (19, 0),
    ("mlp-3", "batch"): (2, 0),
    ("mlp-3", "batch-after"): (2, 0),
}


@pytest.mark.parametrize(("name", "norm"), MODELS)
def test_a_folded_model_computes_what_the_model_does(name: str, norm: str, rng) -> None:
    """In float64 nothing but rounding lies between the two."""
    model = with_statistics(models.build(name, IMAGE, 4, norm)).to("reference")
    before = norms_in(model)
    folded = nn.fold(model)
    assert (len(folded.folded), len(folded.left)) == MODELS[name, norm]
    assert norms_in(folded.model) == set(folded.left) == before - set(folded.folded)
    assert norms_in(model) == before
    assert largest_difference(model, folded.model, rng.standard_normal((2, *IMAGE))) < 1e-12


@pytest.mark.parametrize(("name", "norm"), [("small-cnn", "batch"), ("resnet-8", "batch"), ("mlp-3", "batch-after")])
def test_in_float32_it_is_as_exact_as_the_model(name: str, norm: str, cpu, rng) -> None:
    """Both against the model in float64: folded is off by no more than four times as much (1.6 times was seen)."""
    model = with_statistics(models.build(name, IMAGE, 4, norm))
    folded, x = nn.fold(model).model, rng.standard_normal((16, *IMAGE)).astype(np.float32)
    apart, together = outputs(model, x), outputs(folded, x)
    right = outputs(model.to("reference"), x)
    assert np.abs(together - right).max() <= 4 * np.abs(apart - right).max() + U * np.abs(right).max()


def folded_bound(model: nn.Sequential, x: np.ndarray) -> np.ndarray:
    """How far a folded layer's float32 output may be from float64: see `test_a_folded_layer_keeps_its_budget`."""
    weight, norm = model[0].state_dict()["weight"].astype(np.float64), model[1]
    bias = 0.0 if model[0].bias is None else model[0].bias.state().astype(np.float64)
    gamma = norm.weight.state() / np.sqrt(norm.running_var.astype(np.float64) + norm.eps)
    offset = norm.bias.state() + (bias - norm.running_mean.astype(np.float64)) * gamma
    twin = nn.Sequential({"layer": model[0]}).to("reference")
    twin.load_state_dict(
        {"layer.weight": np.abs(weight)} | ({} if model[0].bias is None else {"layer.bias": np.zeros(len(gamma))})
    )
    terms = weight[0].size
    products = np.abs(gamma) * outputs(twin, np.abs(x.astype(np.float64)))
    # Weights round once, each product and sum once more; so does b', and the sum that takes it in.
    return (rounding(terms) + 2 * U) * products + 2 * U * np.abs(offset) + (terms + 1) * TINY


@pytest.mark.parametrize("mean", [0.0, 1.0, 100.0, 1e4])
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_a_folded_layer_keeps_its_budget(kind: str, mean: float, cpu, rng, within) -> None:
    """|dy| <= (rounding(terms) + 2u) sum |W'||x| + 2u |b'|, at deviation 0.01 and whatever mean.

    At mean 1e4 that is more than gamma: float32 cannot hold more of W x. 2u |b'| alone is 2^-23 s |mean|.
    """
    manual_seed(4)
    if kind == "conv":
        layer, norm = nn.Conv2d(4, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        x = rng.standard_normal((3, 7, 6, 4)).astype(np.float32)
    else:
        layer, norm = nn.Linear(16, 5), nn.BatchNorm1d(5)
        x = rng.standard_normal((200, 16)).astype(np.float32)
    x = (x * np.float32(0.01) + np.float32(mean)).astype(np.float32)
    model = nn.Sequential(layer, norm)
    double = nn.Sequential(layer).to("reference")
    z = outputs(double, x)
    layer.to("cpu")
    flat = z.reshape(-1, 5)
    state = {"running_mean": flat.mean(0), "running_var": flat.var(0), "weight": rng.uniform(0.5, 2, 5)}
    norm.load_state_dict(state | {"bias": rng.standard_normal(5), "num_batches_tracked": np.int64(1)})
    folded = nn.fold(model).model
    got, right = outputs(folded, x), outputs(model.to("reference"), x)
    within(got, right, folded_bound(model.to("cpu"), x), f"{kind}, mean {mean}")


def test_a_mean_that_is_the_biass_is_taken_off_in_float64(cpu, rng) -> None:
    """At mean 1e4 and deviation 0.01 two layers lose five digits; one, folded, loses none."""
    model = nn.Sequential({"fc": nn.Linear(16, 3), "bn": nn.BatchNorm1d(3)})
    x = rng.standard_normal((500, 16)).astype(np.float32)
    weight, means = (rng.standard_normal((3, 16)) / 400).astype(np.float32), np.full(3, 1e4)
    z = x.astype(np.float64) @ weight.T.astype(np.float64)
    state = {"fc.weight": weight, "fc.bias": means, "bn.running_mean": means, "bn.running_var": z.var(0)}
    ones = {"bn.weight": np.ones(3), "bn.bias": np.zeros(3), "bn.num_batches_tracked": np.int64(1)}
    model.load_state_dict(state | ones)
    folded = nn.fold(model.eval()).model
    apart, together = outputs(model, x), outputs(folded, x)
    right = outputs(model.to("reference"), x)
    assert np.abs(together - right).max() < 2e-6
    assert np.abs(apart - right).max() > 1e-2


# PyTorch's opinion.


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_folded_weights_are_pytorchs(kind: str, bias: bool, torch, oracle) -> None:
    if kind == "conv":
        layer, norm = nn.Conv2d(3, 5, (3, 2), stride=2, padding=1, bias=bias), nn.BatchNorm2d(5, eps=1e-3)
        theirs = torch.nn.Conv2d(3, 5, (3, 2), stride=2, padding=1, bias=bias), torch.nn.BatchNorm2d(5, eps=1e-3)
        fuse = torch.nn.utils.fuse_conv_bn_eval
    else:
        layer, norm = nn.Linear(4, 5, bias=bias), nn.BatchNorm1d(5, eps=1e-3)
        theirs = torch.nn.Linear(4, 5, bias=bias), torch.nn.BatchNorm1d(5, eps=1e-3)
        fuse = torch.nn.utils.fuse_linear_bn_eval
    model = with_statistics(nn.Sequential(layer, norm)).to("reference")
    for parameter in model.parameters():
        parameter.value /= 3  # more digits than float32 has
    twins = [oracle.load(twin, ours).eval() for twin, ours in zip(theirs, model, strict=True)]
    expected = {f"0.{name}": value.detach().numpy() for name, value in fuse(*twins).state_dict().items()}
    got = nn.fold(model).model.state_dict()
    assert got.keys() == expected.keys() == {"0.weight", "0.bias"}
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-14, atol=1e-15)


def test_all_is_rounded_once(cpu) -> None:
    """The float32 weights are the float64 ones of the same parameters, rounded."""
    model = with_statistics(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.ReLU()))
    single = nn.fold(model).model.state_dict()
    double = nn.fold(model.to("reference")).model.state_dict()
    for name, value in single.items():
        np.testing.assert_array_equal(value, double[name].astype(np.float32))


# Forwards, into what follows.


def conv1x1() -> nn.Conv2d:
    return nn.Conv2d(3, 4, 1)


FORWARDS = {
    "linear": lambda: ({"bn": nn.BatchNorm1d(6), "fc": nn.Linear(6, 4)}, (5, 6)),
    "conv without padding": lambda: ({"bn": nn.BatchNorm2d(3), "conv": nn.Conv2d(3, 4, 3, stride=2)}, (2, 7, 6, 3)),
    "two, one after the other": lambda: (
        {"a": nn.BatchNorm1d(6), "b": nn.BatchNorm1d(6, affine=False), "fc": nn.Linear(6, 4)},
        (5, 6),
    ),
    "through pooling and flattening": lambda: (
        {"bn": nn.BatchNorm2d(3), "pool": nn.AvgPool2d(2), "drop": nn.Dropout(0.5), "flatten": nn.Flatten()}
        | {"fc": nn.Linear(3 * 3 * 2, 4)},
        (2, 6, 4, 3),
    ),
    "through global pooling": lambda: (
        {"bn": nn.BatchNorm2d(3), "pool": nn.GlobalAvgPool2d(), "fc": nn.Linear(3, 4)},
        (2, 6, 4, 3),
    ),
    "before and behind one layer": lambda: (
        {"a": nn.BatchNorm2d(3), "conv": nn.Conv2d(3, 4, 3, bias=False), "b": nn.BatchNorm2d(4)},
        (2, 6, 4, 3),
    ),
}


@pytest.mark.parametrize("case", FORWARDS)
def test_forwards_it_goes_where_nothing_but_normalized_values_arrive(case: str, rng) -> None:
    layers, shape = FORWARDS[case]()
    model = with_statistics(nn.Sequential(layers)).to("reference")
    folded = nn.fold(model)
    assert folded.left == {}
    assert set(folded.folded) == norms_in(model)
    assert largest_difference(model, folded.model, rng.standard_normal(shape)) < 1e-12


def test_behind_a_layer_it_goes_through_dropout_and_nested_sequentials(rng) -> None:
    inner = nn.Sequential({"conv": nn.Conv2d(3, 4, 3, padding=1)})
    model = nn.Sequential({"inner": inner, "drop": nn.Dropout(0.3), "more": nn.Sequential(nn.BatchNorm2d(4))})
    model = with_statistics(model).to("reference")
    folded = nn.fold(model)
    assert folded.folded == {"more.0": "inner.conv"}
    assert list(folded.model.state_dict()) == ["inner.conv.weight", "inner.conv.bias"]
    assert largest_difference(model, folded.model, rng.standard_normal((2, 6, 4, 3))) < 1e-12


# What is left.


class Doubled(nn.BatchNorm2d):
    """Computes something else."""


class Backwards(nn.Module):
    """A container that fold does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(3), conv1x1()


LEFT = {
    "padding": (
        lambda: {"relu": nn.ReLU(), "x": nn.BatchNorm2d(3), "conv": nn.Conv2d(3, 4, 3, padding=1)},
        {"x": "it comes after ReLU relu, and conv, which follows, pads with zeros that are not normalized"},
    ),
    "a pooling that pads": (
        lambda: {"relu": nn.ReLU(), "x": nn.BatchNorm2d(3), "pool": nn.AvgPool2d(2, padding=1), "conv": conv1x1()},
        {"x": "it comes after ReLU relu, and AvgPool2d pool follows"},
    ),
    "max pooling": (
        lambda: {"relu": nn.ReLU(), "x": nn.BatchNorm2d(3), "pool": nn.MaxPool2d(2), "conv": conv1x1()},
        {"x": "it comes after ReLU relu, and MaxPool2d pool follows"},
    ),
    "batch statistics in evaluation": (
        lambda: {"conv": nn.Conv2d(3, 3, 1), "x": nn.BatchNorm2d(3, track_running_stats=False)},
        {"x": r"it normalizes by each batch, in evaluation too \(track_running_stats=False\)"},
    ),
    "a subclass": (
        lambda: {"conv": nn.Conv2d(3, 3, 1), "x": Doubled(3)},
        {"x": "what a Doubled does beyond batch normalization is not known"},
    ),
    "other normalization": (
        lambda: {"conv": nn.Conv2d(3, 3, 1), "x": nn.GroupNorm(3, 3), "conv2": conv1x1(), "y": nn.InstanceNorm2d(4)},
        {"x": "GroupNorm goes by statistics of its input", "y": "InstanceNorm2d goes by statistics of its input"},
    ),
    "an unknown container": (
        lambda: {"x": Backwards()},
        {"x.bn": "it is inside a container whose wiring is not known"},
    ),
    "a sum": (
        lambda: {"x": nn.Residual({"bn": nn.BatchNorm2d(3), "relu": nn.ReLU()}, activation=nn.ReLU())},
        {"x.bn": "it comes after the block's input, which the way around reads, too, and ReLU x.relu follows"},
    ),
    "the end of a branch": (
        lambda: {"x": nn.Concat(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)), nn.BatchNorm2d(3)), "conv": nn.ReLU()},
        {
            "x.0.1": r"it comes after ReLU x\.0\.0, and the concatenation follows",
            "x.1": "it comes after the input of all branches, and the concatenation follows",
        },
    ),
    "channels that do not meet": (
        lambda: {"conv": conv1x1(), "x": nn.BatchNorm2d(3)},
        {"x": "it does not take what conv gives, and the network's output follows"},
    ),
    "vectors behind a convolution": (
        lambda: {"conv": conv1x1(), "x": nn.BatchNorm1d(4)},
        {"x": "it does not take what conv gives"},
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_cannot_be_folded_stays_and_is_named_with_the_reason(case: str) -> None:
    make, reasons = LEFT[case]
    pair = {"good": nn.Conv2d(3, 3, 3, padding=1), "good_bn": nn.BatchNorm2d(3)}
    model = with_statistics(nn.Sequential(pair | make()))
    folded = nn.fold(model)
    assert folded.folded == {"good_bn": "good"}
    assert folded.left.keys() == reasons.keys()
    for path, words in reasons.items():
        assert re.match(words, folded.left[path]), folded.left[path]
    assert list(dict(folded.model.named_modules())) == [p for p, _ in model.named_modules() if p != "good_bn"]


def test_folding_before_a_convolution_with_padding_would_be_wrong_at_the_borders_alone(rng) -> None:
    """Why it is refused: with the weights that are right without padding, the middle is right and the border is not."""
    norm, padded = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)
    bare = nn.Conv2d(3, 4, 3)
    bare.load_state_dict(padded.state_dict())
    weights = nn.fold(with_statistics(nn.Sequential(norm, bare)).to("reference")).model[0].state_dict()
    model = nn.Sequential(norm, padded).eval().to("reference")
    x = rng.standard_normal((2, 6, 7, 3))
    right = outputs(model, x)
    padded.load_state_dict(weights)
    error = np.abs(outputs(nn.Sequential(padded), x) - right)
    assert error[:, 1:-1, 1:-1].max() < 1e-12
    assert error[:, 0].min() > 1e-6


# What is refused.


REFUSED = {
    "padding behind, nothing before": (
        lambda: nn.Sequential({"bn": nn.BatchNorm2d(3), "conv": nn.Conv2d(3, 4, 3, padding=1)}),
        "nothing can be folded: bn: it comes after the network's input, and conv, which follows, pads with zeros that",
    ),
    "the activation between": (
        lambda: nn.Sequential({"conv": conv1x1(), "relu": nn.ReLU(), "bn": nn.BatchNorm2d(4)}),
        "fold: nothing can be folded: bn: it comes after ReLU relu, and the network's output follows",
    ),
    "no normalization": (
        lambda: models.build("small-cnn", IMAGE, 3, "none"),
        "fold: this Sequential has no normalization",
    ),
    "group normalization": (
        lambda: models.build("small-cnn", IMAGE, 3, "group"),
        "fold: nothing can be folded: norm1, norm2, norm3, and 1 more: GroupNorm goes by statistics of its input",
    ),
    "a layer alone": (lambda: nn.BatchNorm1d(3), "fold: nothing can be folded into a BatchNorm1d alone"),
    "many": (
        lambda: nn.Sequential(*(layer for _ in range(9) for layer in (nn.ReLU(), nn.BatchNorm1d(3)))),
        "and 6 more$",
    ),
    "a shared normalization": (
        lambda: (lambda bn: nn.Sequential(conv1x1(), bn, nn.Conv2d(4, 4, 1), bn))(nn.BatchNorm2d(4)),
        "fold: BatchNorm2d stands in two places, 1 and 3, .*give each place a layer of its own",
    ),
    "a shared convolution": (
        lambda: (lambda conv: nn.Sequential(conv, nn.BatchNorm2d(3), conv))(nn.Conv2d(3, 3, 1)),
        "fold: Conv2d stands in two places, 0 and 2",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_senseless_or_wrong_is_refused_in_one_line(case: str) -> None:
    make, message = REFUSED[case]
    model = with_statistics(make())
    before = {name: value.copy() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message) as refused:
        nn.fold(model)
    assert "\n" not in str(refused.value)
    assert all(np.array_equal(value, before[name]) for name, value in model.state_dict().items())


def test_untrained_statistics_are_refused_unless_asked_for(rng) -> None:
    model = models.build("small-cnn", IMAGE, 3).eval()
    with pytest.raises(ValueError, match="no batch has gone into the running statistics of bn1, bn2, bn3, and 1 more"):
        nn.fold(model)
    folded = nn.fold(model, untrained=True).model
    assert largest_difference(model, folded, rng.standard_normal((2, *IMAGE), dtype=np.float32)) < 1e-5
    model.train().forward(rng.standard_normal((4, *IMAGE), dtype=np.float32))
    assert len(nn.fold(model).folded) == 4
    state = model.state_dict() | {f"bn{i}.num_batches_tracked": np.int64(0) for i in (1, 2, 3, 4)}
    model.load_state_dict(state)  # as from a framework that counts no batches
    assert len(nn.fold(model).folded) == 4


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("bn.running_mean", np.nan, "bn: the running statistics hold NaN, infinity or a negative variance"),
        ("bn.running_var", np.inf, "bn: the running statistics hold NaN"),
        ("bn.running_var", -1.0, "bn: the running statistics hold NaN, infinity or a negative variance"),
        ("bn.weight", np.nan, "the folded weights of fc are not finite in float32"),
        ("fc.weight", 3e38, "the folded weights of fc are not finite in float32"),
    ],
)
def test_numbers_that_cannot_be_folded_are_refused(part: str, value: float, message: str) -> None:
    model = with_statistics(nn.Sequential({"fc": nn.Linear(2, 2), "bn": nn.BatchNorm1d(2)}))
    model.load_state_dict({"bn.weight": np.full(2, 9.0), "bn.running_var": np.full(2, 1.0)}, strict=False)
    model.load_state_dict({part: np.full(model.state_dict()[part].shape, value)}, strict=False)
    with pytest.raises(ValueError, match=message):
        nn.fold(model)


# What the folded model is.


def test_the_model_itself_is_not_changed_and_shares_nothing(rng, same_bits) -> None:
    model = models.build("resnet-8", IMAGE, 3)
    with_statistics(model).train()
    x = rng.standard_normal((4, *IMAGE), dtype=np.float32)
    model.backward(np.ones_like(model.forward(x)))
    state = {name: value.copy() for name, value in model.state_dict().items()}
    gradients = {name: parameter.grad.copy() for name, parameter in model.named_parameters()}
    folded = nn.fold(model).model
    assert model.training
    assert not folded.training
    for _, parameter in folded.named_parameters():
        assert parameter.grad is None
        parameter.value[...] = 7
    assert all(same_bits(value, state[name]) for name, value in model.state_dict().items())
    assert all(same_bits(p.grad, gradients[name]) for name, p in model.named_parameters())


def test_names_stay_and_the_state_can_be_saved_and_loaded(rng, same_bits) -> None:
    model = with_statistics(models.build("resnet-8", IMAGE, 3))
    folded = nn.fold(model)
    kept = [n for n in model.state_dict() if n.rpartition(".")[0] not in folded.folded]
    assert [n for n in folded.model.state_dict() if n in kept] == kept
    assert {n for n in folded.model.state_dict() if n not in kept} == {f"{p}.bias" for p in folded.folded.values()}
    again = nn.fold(models.build("resnet-8", IMAGE, 3), untrained=True).model
    again.load_state_dict(folded.model.state_dict())
    x = rng.standard_normal((2, *IMAGE), dtype=np.float32)
    assert same_bits(outputs(again, x), outputs(folded.model, x))


@pytest.mark.parametrize("device", ["cpu", "reference", "emulator"])
def test_it_moves_to_every_device_and_can_be_folded_on_each(device: str, rng) -> None:
    build = nn.Sequential(
        {"conv": nn.Conv2d(2, 3, 3, padding=1), "bn": nn.BatchNorm2d(3), "relu": nn.ReLU()}
        | {"pool": nn.GlobalAvgPool2d(), "bn2": nn.BatchNorm1d(3), "fc": nn.Linear(3, 2)}
    )
    model, x = with_statistics(build), rng.standard_normal((2, 4, 4, 2)).astype(np.float32)
    moved = nn.fold(model).model.to(device)
    right = outputs(model.to("reference"), x)
    there = nn.fold(model.to("cpu").to(device)).model
    assert there.backend.name == device
    for folded in (moved, there):
        np.testing.assert_allclose(outputs(folded, x), right, rtol=0, atol=1e-5)


def test_what_was_fused_stays_fused(rng, same_bits) -> None:
    """preact-resnet keeps normalization that can be fused with its ReLU; the folded blocks of a resnet have none."""
    model = with_statistics(models.build("preact-resnet-8", IMAGE, 3))
    nn.fuse(model)
    folded, x = nn.fold(model).model, rng.standard_normal((2, *IMAGE)).astype(np.float32)
    steps = [type(step).__name__ for _, m in folded.named_modules() if isinstance(m, nn.Sequential) for step in m.steps]
    assert steps.count("BatchNormReLU") == 4
    y = outputs(folded, x)
    with unfused(folded):
        assert same_bits(outputs(folded, x), y)
    resnet = with_statistics(models.build("resnet-8", IMAGE, 3))
    nn.fuse(resnet)
    assert nn.fuse(nn.fold(resnet).model) == []
    assert largest_difference(resnet, nn.fold(resnet).model, x) < 1e-4


def test_it_can_be_trained_on_and_keeps_what_is_frozen(rng, passes) -> None:
    model = with_statistics(nn.Sequential({"fc": nn.Linear(3, 4, bias=False), "bn": nn.BatchNorm1d(4)}))
    model.fc.weight.trainable = False
    folded = nn.fold(model).model
    assert (folded.fc.weight.trainable, folded.fc.bias.trainable) == (False, True)
    assert (folded.fc.weight.decay, folded.fc.bias.decay) == (True, False)
    folded.fc.weight.trainable = True
    x = rng.standard_normal((5, 3)).astype(np.float32)
    grads = passes(folded, x, np.ones((5, 4), np.float32)).grads
    np.testing.assert_allclose(grads["fc.weight"], np.tile(x.sum(0), (4, 1)), rtol=1e-5)


# In a Graph.


def graph(**nodes: Any) -> nn.Graph:
    return with_statistics(nn.Graph(nodes)).to("reference")


def test_in_a_graph_it_folds_what_is_read_once(rng) -> None:
    layers = {
        "stem.conv": (nn.Conv2d(3, 4, 3, padding=1, bias=False), "input"),
        "stem.bn": (nn.BatchNorm2d(4), "stem.conv"),  # read twice, but its convolution is not
        "a": (nn.Conv2d(4, 4, 1), "stem.bn"),  # read twice
        "a_bn": (nn.BatchNorm2d(4), "a"),
        "a_relu": (nn.ReLU(), "a_bn"),
        "b": (nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), "stem.bn"),
        "sum": (nn.Add(), "a_relu", "b", "a"),
        "bn": (nn.BatchNorm2d(4), "sum"),
        "out": (nn.Conv2d(4, 2, 1), "bn"),
        "end": (nn.BatchNorm2d(2), "out"),
    }
    model = graph(**layers)
    folded = nn.fold(model)
    assert folded.folded == {"stem.bn": "stem.conv", "b.1": "b.0", "bn": "out", "end": "out"}
    assert folded.left == {"a_bn": "it comes after the output of a (2 layers read it), and ReLU a_relu follows"}
    assert list(folded.model.nodes) == ["stem.conv", "a", "a_bn", "a_relu", "b", "sum", "out"]
    assert folded.model.nodes["b"].inputs == ("stem.conv",)
    assert folded.model.nodes["out"].inputs == ("sum",)
    assert list(model.nodes) == list(layers)
    assert largest_difference(model, folded.model, rng.standard_normal((2, 5, 5, 3))) < 1e-12


def test_graphs_inside_other_containers_are_folded_too(rng) -> None:
    inner = nn.Graph({"fc": (nn.Linear(3, 3), "input"), "bn": (nn.BatchNorm1d(3), "fc")})
    outer = nn.Graph({"inner": (inner, "input"), "sum": (nn.Add(), "inner", "input")})
    model = with_statistics(nn.Sequential({"graph": outer, "relu": nn.ReLU()})).to("reference")
    folded = nn.fold(model)
    assert folded.folded == {"graph.inner.bn": "graph.inner.fc"}
    assert "graph.inner.bn" not in dict(folded.model.named_modules())
    assert largest_difference(model, folded.model, rng.standard_normal((4, 3))) < 1e-12
