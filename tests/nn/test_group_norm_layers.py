"""GroupNorm, InstanceNorm and LayerNorm against PyTorch: outputs, gradients, state; what they accept and refuse."""

from typing import Any, NamedTuple

import numpy as np
import pytest

from kernels.errors import ShapeError
from minidl import nn
from minidl.backends import get_backend
from minidl.lab.gradcheck import check_gradient
from minidl.lab.operations.group_norm_bounds import columns, restored
from minidl.nn.init import manual_seed

# (type, arguments, options, shape of x, groups that are normalized together in the view (n, rows, c) of the operation).
CASES: list[tuple[Any, tuple[Any, ...], dict[str, Any], tuple[int, ...], int]] = [
    (nn.GroupNorm, (3, 6), {}, (4, 6), 3),
    (nn.GroupNorm, (2, 6), {"eps": 0.1}, (3, 7, 6), 2),
    (nn.GroupNorm, (4, 8), {}, (3, 5, 4, 8), 4),
    (nn.GroupNorm, (1, 8), {"bias": False}, (2, 3, 3, 8), 1),
    (nn.GroupNorm, (5, 5), {"affine": False}, (2, 3, 4, 5), 5),
    (nn.InstanceNorm1d, (6,), {}, (3, 7, 6), 6),
    (nn.InstanceNorm2d, (5,), {"affine": True, "eps": 0.1}, (3, 4, 5, 5), 5),
    (nn.LayerNorm, (7,), {}, (5, 7), 1),
    (nn.LayerNorm, ((4, 5, 6),), {}, (3, 4, 5, 6), 1),
    (nn.LayerNorm, ((4, 5, 6),), {"bias": False, "eps": 0.5}, (3, 4, 5, 6), 1),
    (nn.LayerNorm, (7,), {"elementwise_affine": False}, (5, 7), 1),
]
IDS = [f"{kind.__name__}{arguments}{options or ''}{shape}" for kind, arguments, options, shape, _ in CASES]


def twin_of(layer: nn.Module, oracle: Any, rng: np.random.Generator) -> Any:
    """PyTorch's layer; both get a weight and a bias that are not their initial ones."""
    layer.load_state_dict({key: rng.standard_normal(v.shape) for key, v in layer.state_dict().items()})
    kinds = oracle.torch.nn
    if isinstance(layer, nn.GroupNorm):
        twin = kinds.GroupNorm(layer.num_groups, layer.num_channels, layer.eps, layer.affine, bias=bool(layer.bias))
    elif isinstance(layer, nn.LayerNorm):
        shape = layer.normalized_shape
        shape = (shape[2], shape[0], shape[1]) if len(shape) == 3 else shape
        twin = kinds.LayerNorm(shape, layer.eps, layer.elementwise_affine, bool(layer.bias))
    else:
        twin = getattr(kinds, type(layer).__name__)(layer.num_features, layer.eps, affine=layer.affine)
    return oracle.load(twin, layer)


class Bounds(NamedTuple):
    """On the rounding of each result, worst case to first order."""

    y: np.ndarray
    dx: np.ndarray
    weight: np.ndarray
    bias: np.ndarray


def bounds(x: Any, dy: Any, groups: int, layer: Any, unit: float) -> Bounds:
    """As in test_batchnorm_layers.py, of each group of a sample; x and dy are viewed as (n, rows, c)."""
    shape, channels = x.shape, x.shape[-1]
    parameters = (
        np.full(channels, empty) if parameter is None else np.abs(parameter.value.astype(np.float64)).reshape(-1)
        for parameter, empty in ((layer.weight, 1.0), (layer.bias, 0.0))
    )
    gamma, beta = (columns(np.broadcast_to(array, shape), groups) for array in parameters)
    a, g = (columns(np.asarray(array, np.float64), groups) for array in (x, dy))
    m, size = len(a), np.abs(a).max(axis=0)
    terms = (m + 8) * unit
    mean, var = a.mean(axis=0), a.var(axis=0)
    inv = 1 / np.sqrt(var + layer.eps)
    inv_error = terms * 4 * size**2 / (2 * (var + layer.eps)) + 4 * unit  # relative
    xhat = (a - mean) * inv
    xhat_error = inv * (terms * 2 * size + 2 * unit * (size + np.abs(mean))) + np.abs(xhat) * (inv_error + 4 * unit)

    weighted = gamma * np.abs(g)
    projection = np.abs(weighted * xhat).mean(axis=0)
    parts = weighted + weighted.mean(axis=0) + np.abs(xhat) * projection
    moved = xhat_error * projection + np.abs(xhat) * (weighted * xhat_error).mean(axis=0)
    rows = x.size // channels
    dgamma = restored(np.abs(g) * (xhat_error + (rows + 8) * unit * np.abs(xhat)), shape, groups)
    leading = tuple(range(x.ndim - 1))
    return Bounds(
        y=restored(gamma * xhat_error + 4 * unit * (gamma * np.abs(xhat) + beta), shape, groups),
        dx=restored(inv * (parts * (terms + 2 * inv_error) + moved), shape, groups),
        weight=dgamma.sum(axis=leading),
        bias=(rows + 8) * unit * np.abs(np.asarray(dy, np.float64)).sum(axis=leading),
    )


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("kind", "arguments", "options", "shape", "groups"), CASES, ids=IDS)
def test_it_is_pytorchs(
    oracle, passes, within, normal, rng, backend, unit, kind, arguments, options, shape, groups: int, training: bool
) -> None:
    layer = kind(*arguments, **options, device=backend).train(training)
    twin = twin_of(layer, oracle, rng).train(training)
    x, dy = 2 * normal(*shape) + 1, normal(*shape)
    ours, theirs = passes(layer, x, dy), oracle.run(twin, x, dy)
    view = (shape[0], -1) if isinstance(layer, nn.LayerNorm) else shape
    bound = bounds(x.reshape(view), dy.reshape(view), groups, layer, unit)
    within(ours.y, theirs.y, bound.y.reshape(shape), "y")
    within(ours.dx, theirs.dx, bound.dx.reshape(shape), "dx")
    assert ours.grads.keys() == theirs.grads.keys() == ours.state.keys() == theirs.state.keys()
    for name, grad in ours.grads.items():
        parameter = getattr(layer, name)
        limit = getattr(bound, name).reshape(parameter.shape)
        within(grad, theirs.grads[name], limit if parameter.axes is None else limit.transpose(parameter.axes), name)
        assert not parameter.decay


@pytest.mark.parametrize(("shape", "normalized"), [((2, 3, 4, 5), 5), ((2, 3, 5), (3, 5)), ((6,), 6), ((2, 3), (2, 3))])
def test_layer_norm_of_the_last_axes_is_pytorchs_without_a_change_of_axes(
    torch, passes, within, normal, rng, backend, shape, normalized
) -> None:
    """Channels last is PyTorch's own order then; the axes before are samples, if there are any."""
    layer = nn.LayerNorm(normalized, device=backend)
    layer.load_state_dict({name: rng.standard_normal(v.shape) for name, v in layer.state_dict().items()})
    twin = torch.nn.LayerNorm(normalized).double()
    twin.load_state_dict({name: torch.from_numpy(v).double() for name, v in layer.state_dict().items()})
    x, dy = normal(*shape), normal(*shape)
    tx = torch.from_numpy(x).double().requires_grad_()
    twin(tx).backward(torch.from_numpy(dy).double())
    ours = passes(layer, x, dy)
    close = 300 * np.finfo(backend.dtype).eps  # every number here is below 10, the deviations above 1/10
    within(ours.y, twin(tx).detach(), close, "y")
    within(ours.dx, tx.grad, close, "dx")
    for name, parameter in twin.named_parameters():
        within(ours.grads[name], parameter.grad, close, name)


def test_the_state_of_layer_norm_over_images_is_in_pytorchs_order(backend) -> None:
    layer = nn.LayerNorm((2, 3, 4), device=backend)
    state = {name: np.arange(24.0).reshape(4, 2, 3) + i for i, name in enumerate(("weight", "bias"))}
    layer.load_state_dict(state)
    assert layer.weight.value.shape == (2, 3, 4)
    assert layer.weight.value[1, 2, 3] == state["weight"][3, 1, 2]
    for name, value in layer.state_dict().items():
        assert np.array_equal(value, state[name])
    with pytest.raises(ValueError, match=r"weight has shape \(2, 3, 4\), expected \(4, 2, 3\)"):
        layer.load_state_dict({name: np.ones((2, 3, 4)) for name in state})


@pytest.mark.parametrize(("kind", "arguments", "options", "shape", "groups"), CASES, ids=IDS)
def test_gradients(rng, kind, arguments, options, shape, groups: int) -> None:
    del groups
    layer = kind(*arguments, **options, device="reference")
    x, dy = rng.standard_normal(shape), rng.standard_normal(shape)
    state = {name: rng.standard_normal(parameter.shape) for name, parameter in layer.named_parameters()}

    def forward(x: np.ndarray, **parameters: np.ndarray) -> np.ndarray:
        for name, value in parameters.items():
            getattr(layer, name).value = value
        return layer.forward(x)

    forward(x, **state)
    gradients = {"x": layer.backward(dy), **{name: p.grad for name, p in layer.named_parameters()}}
    check_gradient(kind.__name__, forward, {"x": x, **state}, gradients, dy)


def test_a_large_mean_does_not_hide_the_deviation(oracle, rng, backend, passes, within) -> None:
    """Mean 1e4, deviation 1e-2: one float32 mean or E[x²] - E[x]² would leave nothing of y."""
    x = (1e4 + 1e-2 * rng.standard_normal((3, 6, 6, 8))).astype(np.float32).astype(backend.dtype)
    for layer in (nn.GroupNorm(2, 8, device=backend), nn.LayerNorm((6, 6, 8), device=backend)):
        theirs = oracle.run(twin_of(layer, oracle, rng), x, np.ones_like(x))
        within(passes(layer, x, np.ones_like(x)).y, theirs.y, 1e-5, "y")  # up to 10; a float32 mean is 2e-1 off


def test_each_sample_is_normalized_by_itself_in_training_and_evaluation(backend, normal, same_bits) -> None:
    x = normal(5, 4, 4, 8)
    for layer in (nn.GroupNorm(2, 8, device=backend), nn.LayerNorm(8, device=backend)):
        y = layer.forward(x).copy()
        assert same_bits(layer.eval().forward(x), y)
        assert all(same_bits(layer.forward(x[i : i + 1]), y[i : i + 1]) for i in range(5))
    moved = nn.InstanceNorm2d(8, device=backend).forward(x[:, ::-1, ::-1])
    flipped = nn.InstanceNorm2d(8, device=backend).forward(x)[:, ::-1, ::-1]
    assert np.abs(moved - flipped).max() < 50 * np.finfo(backend.dtype).eps


@pytest.mark.parametrize(("kind", "arguments", "options", "shape", "groups"), CASES, ids=IDS)
def test_an_empty_batch_gives_an_empty_output_and_no_gradient(
    backend, kind, arguments, options, shape, groups: int
) -> None:
    del groups
    layer = kind(*arguments, **options, device=backend)
    x = np.zeros((0, *shape[1:]), backend.dtype)
    assert layer.forward(x).shape == x.shape
    assert layer.backward(x).shape == x.shape
    assert all((p.grad == 0).all() for p in layer.parameters())


def test_images_without_pixels(backend) -> None:
    x = np.zeros((2, 0, 3, 4), backend.dtype)
    for layer in (nn.GroupNorm(2, 4, device=backend), nn.InstanceNorm2d(4, affine=True, device=backend)):
        assert layer.forward(x).shape == x.shape
        assert layer.backward(x).shape == x.shape
        assert all((p.grad == 0).all() for p in layer.parameters())


def refuses(call: Any) -> bool:
    try:
        call()
    except ValueError:
        return True
    return False


@pytest.mark.parametrize("shape", [(1, 4), (2, 4), (1, 1, 4), (1, 1, 1, 4), (3, 1, 1, 4), (1, 1, 2, 4), (0, 1, 1, 4)])
@pytest.mark.parametrize("training", [True, False])
def test_one_value_in_a_group_is_refused_where_pytorch_refuses_it(torch, backend, shape, training: bool) -> None:
    x = np.ones(shape, backend.dtype)
    tx = torch.from_numpy(np.moveaxis(x, -1, 1) if len(shape) > 2 else x)
    pairs = [(nn.GroupNorm(groups, 4, device=backend), torch.nn.GroupNorm(groups, 4)) for groups in (1, 2, 4)]
    if len(shape) > 2:
        name = "InstanceNorm1d" if len(shape) == 3 else "InstanceNorm2d"
        pairs.append((getattr(nn, name)(4, device=backend), getattr(torch.nn, name)(4)))
    for layer, twin in pairs:
        ours, theirs = layer.train(training), twin.to(tx.dtype).train(training)
        assert refuses(lambda: ours.forward(x)) == refuses(lambda: theirs(tx)), (ours, shape)  # noqa: B023


def test_one_value_is_refused_in_words(backend) -> None:
    one = np.ones((1, 1, 1, 4), backend.dtype)
    with pytest.raises(
        ValueError, match=r"GroupNorm: more than one value for each group .* \(1, 1, 1, 4\) with 4 groups"
    ):
        nn.GroupNorm(4, 4, device=backend).forward(one)
    with pytest.raises(ValueError, match=r"InstanceNorm2d: more than one position in a sample .* \(1, 1, 1, 4\)"):
        nn.InstanceNorm2d(4, device=backend).forward(one)
    assert np.array_equal(nn.LayerNorm(1, device=backend).forward(one[..., :1]), np.zeros((1, 1, 1, 1)))


@pytest.mark.parametrize(
    ("groups", "channels", "near"),
    [(3, 64, "do are 2 and 4"), (96, 64, "does is 64"), (5, 7, "do are 1 and 7"), (7, 60, "do are 6 and 10")],
)
def test_a_group_count_that_does_not_divide_names_its_neighbours(groups: int, channels: int, near: str) -> None:
    with pytest.raises(
        ValueError, match=rf"num_groups {groups} does not divide num_channels {channels}; .* {near}$"
    ) as e:
        nn.GroupNorm(groups, channels)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: nn.GroupNorm(0, 4), ValueError, "GroupNorm: num_groups must be at least 1, got 0"),
        (lambda: nn.GroupNorm(2, -4), ValueError, "GroupNorm: num_channels must be at least 1, got -4"),
        (lambda: nn.GroupNorm(2.0, 4), TypeError, r"GroupNorm: num_groups must be a whole number, got 2\.0"),
        (lambda: nn.GroupNorm(2, 4, eps=0), ValueError, "GroupNorm: eps must be greater than 0, got 0"),
        (lambda: nn.LayerNorm(4, eps="1"), TypeError, "LayerNorm: eps must be a number, got '1'"),
        (lambda: nn.InstanceNorm1d(0), ValueError, "InstanceNorm1d: num_features must be at least 1, got 0"),
        (lambda: nn.InstanceNorm2d(4, track_running_stats=True), ValueError,
         "InstanceNorm2d: track_running_stats=True is not supported; .* leave it False, or use BatchNorm"),
        (lambda: nn.InstanceNorm2d(4, 1e-5, 0.1), TypeError, "positional"),
        (lambda: nn.LayerNorm(()), ValueError, r"LayerNorm: normalized_shape must have one length or more, .* \(\)"),
        (lambda: nn.LayerNorm((3, 0)), ValueError, r"LayerNorm: normalized_shape .* at least 1 each, got \(3, 0\)"),
        (lambda: nn.LayerNorm(4.5), TypeError, r"LayerNorm: each of normalized_shape must be a whole number, got 4\.5"),
    ],
)  # fmt: skip
def test_arguments_that_make_no_sense_are_refused(make, error, match: str) -> None:
    with pytest.raises(error, match=match):
        make()


def test_shapes_that_do_not_fit_are_refused(backend) -> None:
    for layer, shape, expected in (
        (nn.GroupNorm(2, 4, device=backend), (3, 6), r"expected \(n, 4\)"),
        (nn.GroupNorm(2, 4, device=backend), (4,), r"expected \(n, 4\) or \(n, l, 4\) or \(n, h, w, 4\)"),
        (nn.InstanceNorm1d(4, device=backend), (3, 4), r"expected \(n, l, 4\)"),
        (nn.InstanceNorm2d(4, device=backend), (3, 5, 5, 3), r"expected \(n, h, w, 4\)"),
        (nn.LayerNorm(4, device=backend), (3, 5), r"expected \(\.\.\., 4\)"),
        (nn.LayerNorm((2, 3, 4), device=backend), (3, 4), r"expected \(\.\.\., 2, 3, 4\)"),
    ):
        with pytest.raises(ShapeError, match=expected) as e:
            layer.forward(np.ones(shape, backend.dtype))
        assert str(e.value).startswith(f"{type(layer).__name__}: the input has shape {shape}")


def test_frozen_parameters_get_no_gradient_and_the_others_theirs(backend, normal, passes, same_bits) -> None:
    x, dy = normal(3, 4, 4, 8), normal(3, 4, 4, 8)
    free = passes(nn.GroupNorm(2, 8, device=backend), x, dy)
    layer = nn.GroupNorm(2, 8, device=backend)
    layer.weight.trainable = False
    layer.forward(x)
    assert same_bits(layer.backward(dy), free.dx)
    assert layer.weight.grad is None
    assert same_bits(layer.bias.grad, free.grads["bias"])


def test_gradients_add_up_over_passes_until_zero_grad(backend, normal) -> None:
    layer = nn.LayerNorm((2, 2, 4), device=backend)
    x, dy = normal(3, 2, 2, 4), normal(3, 2, 2, 4)
    for _ in range(2):
        layer.forward(x)
        layer.backward(dy)
    twice = layer.weight.grad.copy()
    layer.zero_grad()
    layer.forward(x)
    layer.backward(dy)
    assert np.array_equal(twice, 2 * layer.weight.grad)


def test_words_are_pytorchs(torch) -> None:
    kinds = torch.nn
    for ours, theirs in (
        (nn.GroupNorm(2, 4), kinds.GroupNorm(2, 4)),
        (nn.GroupNorm(2, 4, affine=False), kinds.GroupNorm(2, 4, affine=False)),
        (nn.LayerNorm(4, bias=False), kinds.LayerNorm(4, bias=False)),
        (nn.LayerNorm(4, elementwise_affine=False), kinds.LayerNorm(4, elementwise_affine=False)),
    ):
        assert repr(ours) == repr(theirs)
    assert repr(nn.InstanceNorm2d(3)) == "InstanceNorm2d(3, eps=1e-05, affine=False, track_running_stats=False)"


def test_a_network_with_them_runs_on_the_emulator_as_on_the_cpu(rng, within) -> None:
    def network(device: str) -> nn.Sequential:
        manual_seed(3)
        target = get_backend(device)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, device=target), nn.GroupNorm(4, 8, device=target), nn.ReLU(device=target),
            nn.InstanceNorm2d(8, affine=True, device=target), nn.LayerNorm(8, device=target),
        )  # fmt: skip

    x, dy = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 6, 6, 3), (2, 6, 6, 8)))
    results = []
    for device in ("reference", "cpu", "emulator"):
        model, target = network(device), get_backend(device)
        y = model.forward(target.array(x))
        dx = model.backward(target.array(dy))
        grads = {name: target.numpy(p.grad) for name, p in model.named_parameters()}
        results.append({"y": target.numpy(y), "dx": target.numpy(dx), **grads})
    for name, right in results[0].items():
        for other in results[1:]:  # several normalizations in a row: some hundred roundings of numbers below 10
            within(other[name], right, 1e-4 * max(1, np.abs(right).max()), name)
