"""BatchNorm1d and BatchNorm2d against PyTorch: outputs, gradients, running statistics, in training and evaluation."""

from typing import Any, NamedTuple

import numpy as np
import pytest

from minidl import nn

SHAPES = [(nn.BatchNorm1d, (12, 5)), (nn.BatchNorm1d, (4, 7, 3)), (nn.BatchNorm2d, (3, 5, 4, 6))]
OPTIONS = [
    {},
    {"eps": 0.1},  # large enough to be seen in float32
    {"momentum": None},
    {"momentum": 1.0},
    {"momentum": 0.0},
    {"affine": False},
    {"track_running_stats": False},
    {"affine": False, "track_running_stats": False, "eps": 0.5},
]


class Bounds(NamedTuple):
    """On the rounding of each result, worst case to first order."""

    y: np.ndarray
    dx: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    running_mean: np.ndarray
    running_var: np.ndarray


def bounds(x: Any, dy: Any, layer: nn.BatchNorm2d, before: dict[str, Any], of_batch: bool, unit: float) -> Bounds:
    """Mean and variance are sums of m terms no larger than r and r², r being the largest distance of two elements.

    Whichever element the sums are shifted by. The shift's own rounding is relative to |x|, hence `size`. From there on
    the error of xhat and of 1 / std goes through each formula, and each operation adds its own.
    """
    channels = x.shape[-1]
    x, dy = (np.asarray(a, np.float64).reshape(-1, channels) for a in (x, dy))
    m, size = len(x), np.abs(x).max(axis=0)
    terms = (m + 8) * unit
    if of_batch:
        mean, var = x.mean(axis=0), x.var(axis=0)
        mean_error, var_error = terms * 2 * size, terms * 4 * size**2
    else:
        mean, var = before["running_mean"].astype(np.float64), before["running_var"].astype(np.float64)
        mean_error = var_error = np.zeros(channels)
    inv = 1 / np.sqrt(var + layer.eps)
    inv_error = var_error / (2 * (var + layer.eps)) + 4 * unit  # relative
    xhat = (x - mean) * inv
    xhat_error = inv * (mean_error + 2 * unit * (size + np.abs(mean))) + np.abs(xhat) * (inv_error + 4 * unit)
    gamma = np.abs(before.get("weight", np.ones(channels)).astype(np.float64))
    beta = np.abs(before.get("bias", np.zeros(channels)).astype(np.float64))

    g, projection = np.abs(dy), np.abs(dy * xhat).mean(axis=0)
    if of_batch:
        parts = g + g.mean(axis=0) + np.abs(xhat) * projection
        moved = xhat_error * projection + np.abs(xhat) * (g * xhat_error).mean(axis=0)
    else:
        parts, moved = g, np.zeros_like(g)
    factor = 1.0 if layer.momentum is None else layer.momentum
    running = {name: np.abs(before.get(name, np.zeros(channels))) for name in ("running_mean", "running_var")}
    unbiased = m / max(m - 1, 1)
    return Bounds(
        y=gamma * xhat_error + 4 * unit * (gamma * np.abs(xhat) + beta),
        dx=gamma * inv * (parts * (terms + 2 * inv_error) + moved),
        weight=(g * xhat_error).sum(axis=0) + terms * m * projection,
        bias=terms * g.sum(axis=0),
        running_mean=factor * mean_error + 4 * unit * (running["running_mean"] + np.abs(mean)),
        running_var=factor * unbiased * var_error + 4 * unit * (running["running_var"] + unbiased * var),
    )


def twin_of(layer: nn.BatchNorm2d, oracle: Any, rng: np.random.Generator) -> Any:
    """PyTorch's layer; both get a weight, a bias and running statistics that are not their initial ones."""
    state = layer.state_dict()
    for name, value in state.items():
        if name == "num_batches_tracked":
            state[name] = np.array(3)
        elif name == "running_var":
            state[name] = rng.uniform(0.5, 2, value.shape).astype(np.float32)
        else:
            state[name] = rng.standard_normal(value.shape).astype(np.float32)
    layer.load_state_dict(state)
    options = {name: getattr(layer, name) for name in ("eps", "momentum", "affine", "track_running_stats")}
    return oracle.load(getattr(oracle.torch.nn, type(layer).__name__)(layer.num_features, **options), layer)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("kind", "shape"), SHAPES, ids=lambda v: v.__name__ if isinstance(v, type) else str(v))
def test_batchnorm_is_pytorchs(
    oracle, passes, within, normal, rng, backend, unit, kind: Any, shape: Any, options: dict[str, Any], training: bool
) -> None:
    layer = kind(shape[-1], **options, device=backend).train(training)
    twin = twin_of(layer, oracle, rng).train(training)
    for _ in range(2):  # the second starts from the running statistics that the first left
        x, dy = 2 * normal(*shape) + 1, normal(*shape)
        before = layer.state_dict()
        layer.zero_grad()
        ours, theirs = passes(layer, x, dy), oracle.run(twin, x, dy)
        bound = bounds(x, dy, layer, before, training or not layer.track_running_stats, unit)
        within(ours.y, theirs.y, bound.y.reshape(shape), "y")
        within(ours.dx, theirs.dx, bound.dx.reshape(shape), "dx")
        assert ours.grads.keys() == theirs.grads.keys()
        for name, grad in ours.grads.items():
            within(grad, theirs.grads[name], getattr(bound, name), f"gradient of {name}")
        assert ours.state.keys() == theirs.state.keys()
        for name, value in ours.state.items():
            if name == "num_batches_tracked":
                assert value == theirs.state[name]
                assert (value.shape, value.dtype) == ((), np.int64)
            elif name.startswith("running") and training:
                within(value, theirs.state[name], getattr(bound, name), name)
            else:
                assert np.array_equal(value, before[name]), f"{name} changed"
        oracle.load(twin, layer)  # float32 running statistics do not add up over the passes


def test_dyadic_statistics_are_exact(backend, passes) -> None:
    """Mean 1, variance 2 (unbiased 3), 1 / sqrt(2 + 2) = 1/2: nothing rounds, so every bit must be right."""
    layer = nn.BatchNorm1d(1, eps=2.0, momentum=0.75, device=backend)
    layer.weight.value[:] = 4
    layer.bias.value[:] = -1
    column = lambda *values: np.array(values, backend.dtype)[:, None]  # noqa: E731
    ours = passes(layer, column(0, 0, 3), column(6, 0, 0))  # xhat = (-1/2, -1/2, 1)
    assert np.array_equal(ours.y, column(-3, -3, 3))
    assert np.array_equal(ours.dx, column(7, -5, -2))  # 4 * 1/2 * (dy - 2 - xhat * -1)
    assert np.array_equal(ours.grads["weight"], [-3])
    assert np.array_equal(ours.grads["bias"], [6])
    assert np.array_equal(ours.state["running_mean"], [0.75])
    assert np.array_equal(ours.state["running_var"], [0.25 + 0.75 * 3])


def test_cumulative_mean_is_the_mean_over_all_batches(backend, normal, within) -> None:
    layer = nn.BatchNorm1d(3, momentum=None, device=backend)
    batches = [normal(9, 3) + i for i in range(4)]
    for x in batches:
        layer.forward(x)
    unit = np.finfo(backend.dtype).eps
    means, variances = [x.mean(axis=0, dtype=float) for x in batches], [x.var(axis=0, ddof=1) for x in batches]
    within(layer.running_mean, np.mean(means, axis=0), 40 * unit * 5, "running_mean")
    within(layer.running_var, np.mean(variances, axis=0), 40 * unit * 25, "running_var")


def test_a_large_mean_does_not_hide_the_deviation(oracle, rng, backend, passes, within) -> None:
    """Mean 1e4, deviation 1e-2: one float32 mean or E[x²] - E[x]² would leave nothing of y."""
    x = (1e4 + 1e-2 * rng.standard_normal((8, 4, 4, 3))).astype(np.float32).astype(backend.dtype)
    layer = nn.BatchNorm2d(3, device=backend)
    theirs = oracle.run(oracle.load(oracle.torch.nn.BatchNorm2d(3), layer), x, np.ones_like(x))
    within(passes(layer, x, np.ones_like(x)).y, theirs.y, 1e-4, "y")  # ours is 4e-7 off, a float32 mean 5e-2


def test_evaluation_leaves_state_alone_and_depends_on_no_other_row(backend, normal, same_bits) -> None:
    layer = nn.BatchNorm1d(4, device=backend)
    layer.forward(normal(8, 4))
    layer.eval()
    before = layer.state_dict()
    x = normal(6, 4)
    y = layer.forward(x).copy()
    assert all(same_bits(value, before[name]) for name, value in layer.state_dict().items())
    assert all(same_bits(layer.forward(x[i : i + 1]), y[i : i + 1]) for i in range(6))


def test_backward_follows_the_forward_it_belongs_to(backend, normal, passes, same_bits) -> None:
    """The mode at forward decides, not the mode at backward."""
    x, dy = normal(8, 4), normal(8, 4)
    layer, other = (nn.BatchNorm1d(4, device=backend) for _ in range(2))
    expected = passes(layer.eval(), x, dy).dx
    other.eval().forward(x)
    assert same_bits(other.train().backward(dy), expected)
