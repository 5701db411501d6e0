"""docs/batchnorm-conventions.md: every row of its tables is a test here, which the row names.

What the table says of a framework is held against the framework itself (PyTorch, ONNX) or its written formula
(tests/nn/framework_formulas.py), and our layer, made by `from_convention`, against both: in float64, on the reference.
"""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from framework_formulas import FORMULAS

from minidl import models, nn
from minidl.nn import conventions
from minidl.nn.conventions import CONVENTIONS, page

PAGE = Path(__file__).resolve().parents[2] / "docs" / "batchnorm-conventions.md"
FRAMEWORKS = tuple(FORMULAS)
CHANNELS, CLOSE = 3, {"rtol": 1e-12, "atol": 1e-12}
each_framework = pytest.mark.parametrize("name", FRAMEWORKS)


@pytest.fixture
def x(rng) -> np.ndarray:
    """Two images of 3x2 pixels: channels of their own means and deviations."""
    return rng.standard_normal((2, 3, 2, CHANNELS)) * [1, 0.1, 3] + [0, 2, -1]


def arguments(name: str, new: float = 0.25, eps: float = 1 / 64) -> dict[str, float]:
    """A weight of the new value and eps, in a framework's own words, as its column of the table says.

    Numbers of few bits, for ONNX has its attributes in float32.
    """
    c = CONVENTIONS[name]
    return {c.momentum: new if c.weighs == "new" else 1 - new, c.eps: eps}


def state_of(name: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Some state by a framework's names and in its shapes."""
    c = CONVENTIONS[name]
    vectors = *(rng.standard_normal(CHANNELS) for _ in range(3)), rng.uniform(0.5, 2, CHANNELS)
    state = {part: vector.reshape(c.shape) for part, vector in zip(c.names[:4], vectors, strict=True)}
    return state | ({c.names.batches: np.array(7)} if c.names.batches else {})


def ours_as(name: str, state: dict[str, np.ndarray], given: dict[str, Any] | None = None) -> nn.BatchNorm2d:
    given = arguments(name) if given is None else given
    layer = nn.BatchNorm2d(CHANNELS, **conventions.from_convention(name, **given), device="reference")
    layer.load_state_dict(conventions.state_from(name, state, rows="as is"))
    return layer


def eps_alone(name: str, given: dict[str, Any]) -> dict[str, Any]:
    return {CONVENTIONS[name].eps: given[CONVENTIONS[name].eps]}


# The page and the table.


@pytest.mark.parametrize(
    ("marker", "made"), [("frameworks", page.table), ("notes", page.notes), ("sources", page.sources)]
)
def test_the_page_says_what_the_data_say(marker: str, made: Any) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.split(f"<!-- {marker} -->")[1].split(f"<!-- /{marker} -->")[0].strip() == made()


def test_every_row_names_a_test_and_every_framework_a_formula() -> None:
    tests = {name for name in globals() if name.startswith("test_")}
    assert [row.point for row in (*page.ROWS, *page.NOTES) if row.test not in tests] == []
    assert set(FRAMEWORKS) | {"minidl"} == set(CONVENTIONS)
    assert {name for name, c in CONVENTIONS.items() if c.run} == {"minidl", "pytorch", "onnx"}  # what is run here


@pytest.mark.parametrize("name", CONVENTIONS)
def test_layers_exist(name: str) -> None:
    """What is run is there by its name; a formula names the file that the table names."""
    c = CONVENTIONS[name]
    if c.run == "onnx":
        onnx = pytest.importorskip("onnx", reason="onnx is not installed")
        assert onnx.defs.get_schema(c.layer).since_version == 15
    elif c.run:
        module, _, layer = c.layer.rpartition(".")
        assert hasattr(pytest.importorskip(module), layer)
    elif name == "cudnn":
        assert f"{c.layer} and ...Inference" in FORMULAS[name].__doc__
        assert "issue 21111" in c.source
    else:
        file = next(word for word in c.source.split() if word.endswith(".py"))
        assert file in FORMULAS[name].__doc__


@pytest.mark.parametrize("name", CONVENTIONS)
def test_arguments_and_defaults(name: str) -> None:
    c = CONVENTIONS[name]
    if c.run == "onnx":
        onnx = pytest.importorskip("onnx", reason="onnx is not installed")
        attributes = onnx.defs.get_schema(c.layer).attributes
        found = {part: attributes[part].default_value.f for part in (c.momentum, c.eps)}
    else:
        module, _, layer = c.layer.rpartition(".")
        maker = getattr(pytest.importorskip(module), layer) if c.run else FORMULAS[name].train
        parameters = inspect.signature(maker).parameters
        found = {part: parameters[part].default for part in (c.momentum, c.eps)}
    for part, default in ((c.momentum, c.default_momentum), (c.eps, c.default_eps)):
        assert found[part] is inspect.Parameter.empty if default is None else found[part] == pytest.approx(default)
    if None not in (c.default_momentum, c.default_eps):
        ours = conventions.from_convention(name)
        weight = c.default_momentum if c.weighs == "new" else 1 - c.default_momentum
        assert (ours["momentum"], ours["eps"]) == (pytest.approx(weight), c.default_eps)


# What frameworks do in training.


@each_framework
def test_what_momentum_weighs(name: str, x, rng) -> None:
    c, state = CONVENTIONS[name], state_of(name, rng)
    layer, weight = ours_as(name, state), arguments(name)[c.momentum]
    _, after = FORMULAS[name]().train(x, state, **arguments(name))
    old, new = state[c.names.mean].reshape(-1), x.mean((0, 1, 2))
    said = weight * new + (1 - weight) * old if c.weighs == "new" else weight * old + (1 - weight) * new
    layer.forward(x)
    np.testing.assert_allclose(after[c.names.mean].reshape(-1), said, **CLOSE)
    np.testing.assert_allclose(layer.running_mean, said, **CLOSE)


@each_framework
def test_cumulative_mean(name: str, x, rng) -> None:
    c, batches = CONVENTIONS[name], [x, 2 * x + 1, x[:1] - 3]
    if c.cumulative is None:
        with pytest.raises(ValueError, match=r"no cumulative mean .*= 1 - 1/k in step k"):
            conventions.to_convention(name, momentum=None)
    given = eps_alone(name, arguments(name)) | dict([c.cumulative] if c.cumulative else [])
    theirs, state = FORMULAS[name](), FORMULAS[name]().fresh(CHANNELS) if c.first != "inputs" else state_of(name, rng)
    layer = nn.BatchNorm2d(CHANNELS, momentum=None, device="reference")
    for k, batch in enumerate(batches, start=1):
        _, state = theirs.train(batch, state, **(given if c.cumulative else given | {c.momentum: 1 - 1 / k}))
        layer.forward(batch)
    means = np.mean([batch.mean((0, 1, 2)) for batch in batches], axis=0)
    variances = np.mean([batch.var((0, 1, 2), ddof=int(c.unbiased)) for batch in batches], axis=0)
    close = {"rtol": 1e-6} if name == "onnx" else CLOSE  # 2/3 in float32
    np.testing.assert_allclose(state[c.names.mean].reshape(-1), means, **close)
    np.testing.assert_allclose(state[c.names.var].reshape(-1), variances, **close)
    np.testing.assert_allclose(layer.running_mean, means, **CLOSE)
    if c.cumulative:
        ours = conventions.from_convention(name, **given)
        assert ours["momentum"] is None
        assert conventions.to_convention(name, **ours) | given == conventions.to_convention(name, **ours)
        np.testing.assert_allclose(layer.running_var, variances, **CLOSE)


@each_framework
def test_running_variance(name: str, x, rng) -> None:
    """One step from a running variance of 0, and then that of several steps, converted to ours and back."""
    c, rows = CONVENTIONS[name], x.size // CHANNELS
    state = state_of(name, rng)
    state[c.names.var] = np.zeros_like(state[c.names.var])
    _, after = FORMULAS[name]().train(x, state, **arguments(name, new=1.0))
    np.testing.assert_allclose(after[c.names.var].reshape(-1), x.var((0, 1, 2), ddof=int(c.unbiased)), **CLOSE)

    state = state_of(name, rng)
    state[c.names.var] = np.ones(CHANNELS).reshape(c.shape)
    layer, theirs = ours_as(name, state), FORMULAS[name]()
    for batch in (x, 2 * x, x - 1):
        layer.forward(batch)
        _, state = theirs.train(batch, state, **arguments(name))
    ours, found = layer.running_var, state[c.names.var].reshape(-1)
    assert np.allclose(ours, found, **CLOSE) == c.unbiased
    left = 0.75**3  # of the first variance, which was no batch's
    np.testing.assert_allclose(conventions.running_variance(found, name, "minidl", rows, left), ours, **CLOSE)
    np.testing.assert_allclose(conventions.running_variance(ours, "minidl", name, rows, left), found, **CLOSE)


@each_framework
def test_training_output(name: str, x, rng) -> None:
    """By the biased variance. A framework with channels on axis 1 has them brought there by `first`."""
    c, state = CONVENTIONS[name], state_of(name, rng)
    y, _ = FORMULAS[name]().train(x, state, **arguments(name))
    gamma, beta = (state[part].reshape(-1) for part in c.names[:2])
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2), ddof=0)
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1 / 64) * gamma + beta, **CLOSE)
    np.testing.assert_allclose(ours_as(name, state).forward(x), y, **CLOSE)
    assert ("first(x)" in inspect.getsource(FORMULAS[name])) == (c.axis == 1)


@each_framework
def test_first_batch(name: str, x, rng) -> None:
    c = CONVENTIONS[name]
    if c.first == "inputs":
        assert not hasattr(FORMULAS[name], "fresh")
        return
    state = FORMULAS[name]().fresh(CHANNELS)
    ours = nn.BatchNorm2d(CHANNELS, device="reference").state_dict()
    same = all(np.array_equal(state[a].reshape(-1), ours[b]) for a, b in zip(c.names[:4], list(ours)[:4], strict=True))
    assert same == (c.first == "0, 1")
    if c.first == "replaced":  # factor 1, and of what was there nothing is left
        _, after = FORMULAS[name]().train(x, state, **arguments(name, new=1.0))
        np.testing.assert_allclose(after[c.names.mean].reshape(-1), x.mean((0, 1, 2)), **CLOSE)
        assert any("factor 1 in the first call" in line for line in conventions.differences(name))


@each_framework
def test_eps_is_inside_the_root(name: str, x, rng) -> None:
    """Variance 0 and eps 1/16: a deviation of 1/4, not of 1/16."""
    c, state = CONVENTIONS[name], state_of(name, rng)
    state[c.names.var] = np.zeros_like(state[c.names.var])
    y = FORMULAS[name]().evaluate(x, state, **{c.eps: 1 / 16})
    gamma, beta, mean = (state[part].reshape(-1) for part in c.names[:3])
    np.testing.assert_allclose(y, (x - mean) / 0.25 * gamma + beta, **CLOSE)
    np.testing.assert_allclose(ours_as(name, state, arguments(name, eps=1 / 16)).eval().forward(x), y, **CLOSE)


@each_framework
def test_one_value_a_channel(name: str, x, rng) -> None:
    c, one, state = CONVENTIONS[name], x[:1, :1, :1], state_of(name, rng)
    with pytest.raises(ValueError, match="needs more than one value for each channel"):
        ours_as(name, state).forward(one)
    if c.one_value == "error":
        with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
            FORMULAS[name]().train(one, state, **arguments(name))
        return
    y, after = FORMULAS[name]().train(one, state, **arguments(name))
    np.testing.assert_allclose(y.reshape(-1), state[c.names.beta].reshape(-1), **CLOSE)
    if c.one_value == "beta":
        np.testing.assert_allclose(after[c.names.var], 0.75 * state[c.names.var], rtol=1e-12, atol=1e-12)
    else:
        assert np.isnan(after[c.names.var]).all()
    assert any("one value of each channel" in line for line in conventions.differences(name))


@each_framework
def test_without_gamma_and_beta(name: str, x, rng) -> None:
    c, state = CONVENTIONS[name], state_of(name, rng)
    switches = {switch: False for switch in c.switches if switch}
    bare = {part: state[part] for part in c.names[2:] if part}
    layer = ours_as(name, bare, arguments(name) | switches) if switches else nn.BatchNorm2d(3, 1 / 64, affine=False)
    layer = layer.to("reference")
    layer.load_state_dict(conventions.state_from(name, bare, rows="as is"))
    assert (layer.weight, layer.bias) == (None, None)
    full = bare | {c.names.gamma: np.ones_like(state[c.names.mean]), c.names.beta: np.zeros_like(state[c.names.mean])}
    if name == "pytorch":
        y = FORMULAS[name]().evaluate(x, bare, affine=False, **eps_alone(name, arguments(name)))
    else:
        y = FORMULAS[name]().evaluate(x, full, **eps_alone(name, arguments(name)))
    np.testing.assert_allclose(layer.eval().forward(x), y, **CLOSE)
    back = conventions.state_to(name, layer.state_dict(), rows="as is")
    assert back.keys() == (bare if switches else full).keys()
    if c.switches[0] != c.switches[1]:
        for switch, frozen in zip(c.switches, ("weight", "bias"), strict=True):
            with pytest.raises(ValueError, match=rf"without {switch}: our layer has .* {frozen}\.trainable = False"):
                conventions.from_convention(name, **{switch: False})
        state.pop(c.names.gamma)
        assert (conventions.state_from(name, state, rows="as is")["weight"] == 1).all()


@each_framework
def test_without_running_statistics(name: str, x) -> None:
    c = CONVENTIONS[name]
    if not c.tracking_switch:
        with pytest.raises(ValueError, match="always has running statistics"):
            conventions.to_convention(name, track_running_stats=False)
        return
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    given = conventions.from_convention(name, **{c.tracking_switch: False})
    layer = nn.BatchNorm2d(CHANNELS, **given, device="reference").eval()
    theirs = torch.nn.BatchNorm2d(CHANNELS, **{c.tracking_switch: False}).double().eval()
    y = theirs(torch.from_numpy(np.moveaxis(x, -1, 1).copy())).detach().numpy()
    np.testing.assert_allclose(np.moveaxis(layer.forward(x), -1, 1), y, **CLOSE)
    assert set(layer.state_dict()) == set(theirs.state_dict()) == {"weight", "bias"}


@each_framework
def test_frozen_statistics(name: str, x, rng) -> None:
    """Ours, frozen in training, gives what the framework's evaluation gives, and learns nothing of the batch."""
    state = state_of(name, rng)
    y = FORMULAS[name]().evaluate(x, state, **eps_alone(name, arguments(name)))
    layer = ours_as(name, state).freeze_statistics()
    before = layer.state_dict()
    np.testing.assert_allclose(layer.forward(x), y, **CLOSE)
    assert all(np.array_equal(value, before[part]) for part, value in layer.state_dict().items())
    if name == "pytorch":  # "requires_grad = False alone does not"
        torch = pytest.importorskip("torch", reason="PyTorch is not installed")
        theirs = torch.nn.BatchNorm2d(CHANNELS).requires_grad_(False)
        with torch.no_grad():
            theirs(torch.ones(2, CHANNELS, 2, 2))
        assert theirs.running_mean.tolist() == pytest.approx([0.1] * CHANNELS)


@pytest.mark.parametrize("name", CONVENTIONS)
def test_half_precision(name: str) -> None:
    """1000 values of 300 are more than float16 can sum."""
    c, half = CONVENTIONS[name], np.full((10, 10, 10, 2), 300, np.float16)
    with np.errstate(over="ignore"):
        assert np.isinf(half.sum(dtype=np.float16))
    if name == "minidl":
        with pytest.raises(TypeError, match="float16"):
            nn.BatchNorm2d(2).forward(half)
    elif c.half == "not looked up":
        assert not hasattr(FORMULAS[name], "mean_of_half")
    else:
        assert c.half == "float32"
        np.testing.assert_array_equal(FORMULAS[name]().mean_of_half(half), [300, 300])


@each_framework
def test_states_both_ways(name: str, x, rng, same_bits) -> None:
    """Loaded as it is, a state evaluates here as there; and it comes back bit for bit, by its names and shapes."""
    c, state = CONVENTIONS[name], state_of(name, rng)
    layer = ours_as(name, state)
    assert layer.num_batches_tracked == (7 if c.names.batches else 0)
    y = FORMULAS[name]().evaluate(x, state, **eps_alone(name, arguments(name)))
    np.testing.assert_allclose(layer.eval().forward(x), y, **CLOSE)
    back = conventions.state_to(name, layer.state_dict(), rows="as is")
    assert back.keys() == state.keys()
    assert all(same_bits(back[part], state[part]) for part in state)
    if c.run == "onnx":
        onnx = pytest.importorskip("onnx", reason="onnx is not installed")
        assert tuple(i.name for i in onnx.defs.get_schema(c.layer).inputs[1:]) == c.names[:4]


# Beyond arguments.


@pytest.fixture
def twins(torch) -> tuple[nn.BatchNorm2d, Any]:
    """Our layer and PyTorch's, in float64, with the same state."""
    layer, theirs = nn.BatchNorm2d(CHANNELS, device="reference"), torch.nn.BatchNorm2d(CHANNELS).double()
    rng = np.random.default_rng(3)
    layer.load_state_dict(conventions.state_from("pytorch", state_of("pytorch", rng)))
    theirs.load_state_dict({part: torch.from_numpy(np.array(v)) for part, v in layer.state_dict().items()})
    return layer, theirs


def test_gradient_of_evaluation(twins, oracle, passes, x, rng) -> None:
    layer, theirs = twins
    dy = rng.standard_normal(x.shape)
    ours, expected = passes(layer.eval(), x, dy), oracle.run(theirs.eval(), x, dy)
    slope = layer.state_dict()["weight"] / np.sqrt(layer.running_var + layer.eps)
    np.testing.assert_allclose(ours.dx, dy * slope, **CLOSE)
    np.testing.assert_allclose(ours.dx, expected.dx, **CLOSE)
    xhat = (x - layer.running_mean) / np.sqrt(layer.running_var + layer.eps)
    np.testing.assert_allclose(ours.grads["weight"], (dy * xhat).sum((0, 1, 2)), **CLOSE)
    np.testing.assert_allclose(ours.grads["bias"], expected.grads["bias"], **CLOSE)


def test_gradient_of_training(twins, oracle, passes, x, rng) -> None:
    layer, theirs = twins
    dy, var = rng.standard_normal(x.shape), x.var((0, 1, 2))
    ours, expected = passes(layer, x, dy), oracle.run(theirs, x, dy)
    np.testing.assert_allclose(ours.dx, expected.dx, **CLOSE)
    np.testing.assert_allclose(ours.dx.sum((0, 1, 2)), 0, atol=1e-12)
    xhat = (x - x.mean((0, 1, 2))) / np.sqrt(var + layer.eps)
    slope = layer.state_dict()["weight"] / np.sqrt(var + layer.eps)
    alone = (slope * dy * xhat).sum((0, 1, 2))  # what it would be without the terms of mean and variance
    np.testing.assert_allclose((ours.dx * xhat).sum((0, 1, 2)), alone * layer.eps / (var + layer.eps), atol=1e-12)


def test_a_bias_before_normalization_learns_nothing(x, passes, rng) -> None:
    model = nn.Sequential(
        nn.Conv2d(CHANNELS, 4, 3, padding=1, device="reference"), nn.BatchNorm2d(4, device="reference")
    )
    grads = passes(model, x, rng.standard_normal((*x.shape[:3], 4))).grads
    assert np.abs(grads["0.bias"]).max() < 1e-12 < 1e-3 < np.abs(grads["0.weight"]).max()
    state = models.build("small-cnn", (8, 8, 1), 3).state_dict()
    assert [name for name in state if name.startswith("conv") and name.endswith("bias")] == []


def test_moments_of_unequal_batches(x) -> None:
    layer = nn.BatchNorm2d(CHANNELS, device="reference")
    batches = [x[:1] + 5, np.concatenate([x, -x, x / 2])]
    nn.reestimate_statistics(layer, batches)
    rows = np.concatenate([batch.reshape(-1, CHANNELS) for batch in batches])
    np.testing.assert_allclose(layer.running_mean, rows.mean(0), **CLOSE)
    np.testing.assert_allclose(layer.running_var, rows.var(0, ddof=1), **CLOSE)
    of_variances = np.mean([batch.var((0, 1, 2), ddof=1) for batch in batches], axis=0)
    assert not np.allclose(of_variances, layer.running_var, rtol=0.1)


def test_ghost_batches(torch, rng) -> None:
    """Of the first value, ours keeps 1 - momentum; a layer run over k ghost batches in turn, (1 - momentum)^k."""
    x = rng.standard_normal((6, 2, 2, CHANNELS))
    layer = nn.GhostBatchNorm2d(CHANNELS, ghost_size=2, device="reference")
    layer.forward(x)
    np.testing.assert_allclose(layer.running_mean, 0.1 * x.mean((0, 1, 2)), **CLOSE)
    theirs = torch.nn.BatchNorm2d(CHANNELS, momentum=0.1).double()
    in_turn = nn.BatchNorm2d(CHANNELS, device="reference")
    outputs = []
    for ghost in np.split(x, 3):
        outputs.append(in_turn.forward(ghost))
        theirs(torch.from_numpy(np.moveaxis(ghost, -1, 1).copy()))
    np.testing.assert_allclose(layer.forward(x), np.concatenate(outputs), **CLOSE)
    np.testing.assert_allclose(in_turn.running_mean, theirs.running_mean.numpy(), **CLOSE)
    shares = 0.1 * np.array([0.81, 0.9, 1])
    means = [ghost.mean((0, 1, 2)) for ghost in np.split(x, 3)]
    np.testing.assert_allclose(in_turn.running_mean, shares @ means, **CLOSE)


def test_a_layer_used_twice(twins, torch, x) -> None:
    layer, theirs = twins
    before = layer.running_mean.copy()
    for batch in (x, 10 - x):
        layer.forward(batch)
        theirs(torch.from_numpy(np.moveaxis(batch, -1, 1).copy()))
    mixed = 0.81 * before + 0.09 * x.mean((0, 1, 2)) + 0.1 * (10 - x.mean((0, 1, 2)))
    np.testing.assert_allclose(layer.running_mean, mixed, **CLOSE)
    np.testing.assert_allclose(layer.running_mean, theirs.running_mean.numpy(), **CLOSE)
    assert layer.num_batches_tracked == theirs.num_batches_tracked.item() == 9
    with pytest.raises(ValueError, match="stands in two places"):
        nn.Graph({"a": (layer, "input"), "b": (layer, "a")})
    with pytest.raises(ValueError, match="stands in two places"):
        nn.fold(nn.Sequential(layer, nn.ReLU(), layer))


def test_an_empty_batch(twins, torch) -> None:
    layer, theirs = twins
    before = layer.state_dict()
    assert layer.forward(np.zeros((0, 2, 2, CHANNELS))).shape == (0, 2, 2, CHANNELS)
    assert theirs(torch.zeros(0, CHANNELS, 2, 2).double()).shape == (0, CHANNELS, 2, 2)
    assert all(np.array_equal(layer.state_dict()[part], before[part]) for part in ("running_mean", "running_var"))


def test_eps_of_zero(torch) -> None:
    with pytest.raises(ValueError, match="eps must be greater than 0"):
        nn.BatchNorm2d(CHANNELS, eps=0.0)
    with pytest.raises(ValueError, match="keras: epsilon must be greater than 0, got 0"):
        conventions.from_convention("keras", epsilon=0)
    with pytest.raises(ValueError, match="eps must be positive"):
        torch.nn.BatchNorm2d(CHANNELS, eps=0.0)(torch.ones(2, CHANNELS, 2, 2))


def test_folding(twins, torch, x) -> None:
    """More in tests/nn/test_folding.py."""
    layer, theirs = twins
    conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, device="reference")
    twin = torch.nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1).double()
    twin.load_state_dict({part: torch.from_numpy(v) for part, v in conv.state_dict().items()})
    fused = torch.nn.utils.fuse_conv_bn_eval(twin.eval(), theirs.eval())
    folded = nn.fold(nn.Sequential(conv, layer)).model.state_dict()
    for part, value in fused.state_dict().items():
        np.testing.assert_allclose(folded[f"0.{part}"], value.numpy(), **CLOSE)


def test_weight_decay_is_not_meant_for_gamma_and_beta(torch) -> None:
    assert [parameter.decay for parameter in nn.BatchNorm2d(CHANNELS).parameters()] == [False, False]
    theirs = torch.nn.BatchNorm2d(CHANNELS)
    theirs.weight.grad = torch.zeros(CHANNELS)
    torch.optim.SGD(theirs.parameters(), lr=1.0, weight_decay=0.5).step()
    assert theirs.weight.tolist() == [0.5] * CHANNELS


def test_zero_gamma() -> None:
    for zero in (False, True):
        options = {"zero_gamma": True} if zero else {}
        state = models.build("resnet-8", (8, 8, 1), 3, **options).state_dict()
        last = [value for name, value in state.items() if name.endswith("bn2.weight")]
        assert len(last) == 3
        assert all((value == (0 if zero else 1)).all() for value in last)


# What cannot be said or held.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: conventions.from_convention("kears"), r"no framework 'kears' .*did you mean 'keras'\?"),
        (lambda: conventions.to_convention("Flax"), r"no framework 'Flax' .*did you mean 'flax'\?"),
        (lambda: conventions.differences(""), r"no framework ''"),
        (lambda: conventions.from_convention("keras", momentun=0.9), r"'momentun' .*did you mean 'momentum'\?"),
        (
            lambda: conventions.from_convention("pytorch", epsilon=1e-3),
            r"'epsilon' is no argument .*did you mean 'eps'",
        ),
        (lambda: conventions.from_convention("flax", momentum=1.5), "flax: momentum must be from 0 to 1, got 1.5"),
        (lambda: conventions.from_convention("onnx", momentum=float("nan")), "onnx: momentum must be from 0 to 1"),
        (lambda: conventions.from_convention("cudnn", epsilon=1e-5), "exponentialAverageFactor must be given"),
        (lambda: conventions.from_convention("cudnn", exponentialAverageFactor=1), "cudnn: epsilon must be given"),
        (lambda: conventions.to_convention("keras", eps=-1), "keras: eps must be greater than 0, got -1"),
        (lambda: conventions.to_convention("keras", eps=float("inf")), "keras: eps must be greater than 0, got inf"),
        (lambda: conventions.running_variance(np.ones(3), "keras", "pytorch"), "give rows, .*images times height"),
        (lambda: conventions.running_variance(np.ones(3), "pytorch", "onnx", 1), "rows must be .*at least 2.* got 1"),
        (lambda: conventions.running_variance(np.ones(3), "keras", "minidl", 8, 2.0), "initial must be from 0 to 1"),
        (lambda: conventions.running_variance(-np.ones(3), "keras", "minidl", 8), "negative in places"),
        (
            lambda: conventions.state_from("keras", {"gama": np.ones(3)}),
            r"'gama' is not in the state .*did you mean 'gamma'\?",
        ),
        (lambda: conventions.state_from("onnx", {"scale": np.ones(3)}), "lacks input_mean and input_var"),
        (lambda: conventions.state_from("flax", {"mean": np.ones(3), "var": np.ones(3)}), "give rows"),
        (
            lambda: conventions.state_from("flax", {"mean": np.ones(3), "var": np.ones(2)}, rows=8),
            "channels differ: mean has 3, var has 2",
        ),
        (
            lambda: conventions.state_from("flax", {"mean": np.ones((3, 2)), "var": np.ones(6)}, rows=8),
            r"mean has shape \(3, 2\), expected one number for each channel",
        ),
        (
            lambda: conventions.state_from("chainer", {"avg_mean": np.ones(3), "avg_var": np.full(3, np.nan)}),
            "chainer: avg_var holds NaN or infinity",
        ),
        (
            lambda: conventions.state_from("chainer", {"avg_mean": np.ones(3), "avg_var": np.ones(3), "N": -1}),
            "N is -1, expected a whole number of at least 0",
        ),
        (
            lambda: conventions.state_from("pytorch", {"running_mean": np.ones(3) + 0j, "running_var": np.ones(3)}),
            "running_mean has dtype complex128",
        ),
    ],
)
def test_what_is_refused_is_one_line(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        call()
    assert "\n" not in str(refused.value)


def test_a_number_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match=r"keras: momentum must be a number, got '0\.9'"):
        conventions.from_convention("keras", momentum="0.9")


@pytest.mark.parametrize("name", [name for name in CONVENTIONS if name != "cudnn"])
@pytest.mark.parametrize("momentum", [0.0, 0.01, 0.1, 1 / 3, 0.9, 1.0])
def test_arguments_come_back_as_they_were(name: str, momentum: float) -> None:
    ours = conventions.from_convention(name, **{CONVENTIONS[name].momentum: momentum})
    again = conventions.to_convention(name, **ours)
    assert again[CONVENTIONS[name].momentum] == pytest.approx(momentum, rel=1e-15)
    assert conventions.from_convention(name, **again) == ours


def test_float32_stays_float32() -> None:
    state = {"mean": np.ones(3, np.float32), "var": np.ones(3, np.float16), "scale": np.ones(3)}
    found = conventions.state_from("flax", state, rows=8)
    assert [value.dtype for value in found.values()] == [np.float64, np.float32, np.float32, np.float32, np.int64]
    np.testing.assert_allclose(found["running_var"], 8 / 7, rtol=1e-7)
