"""Conv2d and Linear: sums of products, so that the bound on their rounding is exact (see conftest)."""

from typing import Any

import numpy as np
import pytest

from minidl import nn
from minidl.nn.init import manual_seed

CONVOLUTIONS = [  # image, batch, arguments of Conv2d
    ((5, 6), 2, (3, 4, 3), {}),
    ((5, 6), 2, (3, 4, 3), {"padding": 1}),
    ((7, 8), 3, (1, 5, 3), {"padding": 1, "bias": False}),
    ((8, 7), 2, (4, 3, 3), {"stride": 2, "padding": 1}),
    ((6, 9), 2, (2, 3, (2, 3)), {"stride": (1, 2), "padding": (0, 2)}),
    ((9, 5), 1, (3, 2, (5, 1)), {"stride": (3, 1), "padding": (2, 0), "bias": False}),
    ((7, 7), 2, (3, 2, 2), {"stride": 3}),  # the last row and column are in no window
    ((5, 5), 2, (6, 7, 1), {}),
    ((4, 4), 2, (2, 3, 4), {}),  # one window is the whole image
    ((2, 3), 1, (2, 2, 3), {"padding": 3}),  # windows of nothing but padding
    ((13, 11), 5, (17, 19, 3), {"padding": 1}),  # sizes that divide nothing
]


def hold_to_torch(oracle: Any, passes: Any, within: Any, layer: nn.Module, twin: Any, x: Any, dy: Any, unit: float):
    ours, theirs = passes(layer, x, dy), oracle.run(twin, x, dy)
    sums = oracle.absolute(twin, x, dy)
    fan_in = int(np.prod(layer.state_dict()["weight"].shape[1:]))
    fan_out = layer.state_dict()["weight"].size // layer.state_dict()["weight"].shape[1]
    rows = dy.size // dy.shape[-1]
    within(ours.y, theirs.y, (fan_in + 1) * unit * sums.y, "y")
    within(ours.dx, theirs.dx, fan_out * unit * sums.dx, "dx")
    assert ours.grads.keys() == theirs.grads.keys()
    for name, grad in ours.grads.items():
        within(grad, theirs.grads[name], rows * unit * sums.grads[name], f"gradient of {name}")


@pytest.mark.parametrize(("image", "batch", "sizes", "options"), CONVOLUTIONS)
def test_conv2d_is_pytorchs(
    oracle, passes, within, normal, backend, unit, image: Any, batch: int, sizes: Any, options: dict[str, Any]
) -> None:
    layer = nn.Conv2d(*sizes, **options, device=backend)
    twin = oracle.load(oracle.torch.nn.Conv2d(*sizes, **options), layer)
    x = normal(batch, *image, sizes[0])
    dy = normal(*layer.output_shape(x.shape))
    hold_to_torch(oracle, passes, within, layer, twin, x, dy, unit)


@pytest.mark.parametrize(("n", "c_in", "c_out", "bias"), [(4, 3, 5, True), (1, 7, 2, False), (130, 67, 71, True)])
def test_linear_is_pytorchs(
    oracle, passes, within, normal, backend, unit, n: int, c_in: int, c_out: int, bias: bool
) -> None:
    layer = nn.Linear(c_in, c_out, bias, device=backend)
    twin = oracle.load(oracle.torch.nn.Linear(c_in, c_out, bias), layer)
    hold_to_torch(oracle, passes, within, layer, twin, normal(n, c_in), normal(n, c_out), unit)


def test_small_integers_are_exact(passes, oracle, backend) -> None:
    """Products and sums of small integers round nowhere, so every bit must be right."""
    rng = np.random.default_rng(3)
    layer = nn.Conv2d(3, 4, 3, stride=2, padding=1, device=backend)
    state = {name: rng.integers(-4, 5, value.shape) for name, value in layer.state_dict().items()}
    layer.load_state_dict(state)
    twin = oracle.load(oracle.torch.nn.Conv2d(3, 4, 3, stride=2, padding=1), layer)
    x = rng.integers(-4, 5, (3, 7, 6, 3)).astype(backend.dtype)
    dy = rng.integers(-4, 5, layer.output_shape(x.shape)).astype(backend.dtype)
    ours, theirs = passes(layer, x, dy), oracle.run(twin, x, dy)
    assert np.array_equal(ours.y, theirs.y)
    assert np.array_equal(ours.dx, theirs.dx)
    assert all(np.array_equal(grad, theirs.grads[name]) for name, grad in ours.grads.items())


@pytest.mark.parametrize(
    "make", [lambda d: nn.Conv2d(2, 3, 3, padding=1, device=d), lambda d: nn.Linear(2, 3, device=d)]
)
def test_an_empty_batch_gives_empty_outputs_and_zero_gradients(passes, backend, make: Any) -> None:
    layer = make(backend)
    image = (4, 5) if isinstance(layer, nn.Conv2d) else ()
    result = passes(layer, np.empty((0, *image, 2), backend.dtype), np.empty((0, *image, 3), backend.dtype))
    assert result.y.shape == (0, *image, 3)
    assert result.dx.shape == (0, *image, 2)
    assert all((grad == 0).all() for grad in result.grads.values())


def test_without_input_gradient_backward_gives_none_and_the_same_parameter_gradients(
    passes, normal, backend, same_bits
) -> None:
    for layer, x_shape, y_shape in (
        (nn.Conv2d(2, 3, 3, device=backend), (2, 5, 5, 2), (2, 3, 3, 3)),
        (nn.Linear(4, 3, device=backend), (5, 4), (5, 3)),
    ):
        x, dy = normal(*x_shape), normal(*y_shape)
        with_dx = passes(layer, x, dy)
        layer.zero_grad()
        layer.input_gradient = False
        layer.forward(x)
        assert layer.backward(dy) is None
        for parameter, grad in zip(layer.parameters(), with_dx.grads.values(), strict=True):
            axes = parameter.axes or range(parameter.grad.ndim)
            assert same_bits(parameter.grad.transpose(axes), grad)


def test_initial_values_are_a_function_of_the_seed_and_the_same_on_every_device(cpu, reference) -> None:
    def states(seed: int, device: Any) -> list[np.ndarray]:
        manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(3, 4, 3, device=device), nn.Linear(5, 6, device=device))
        return list(model.state_dict().values())

    first = states(7, cpu)
    for again in (states(7, cpu), states(7, reference)):
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, states(8, cpu), strict=True))


@pytest.mark.parametrize("make", [lambda: nn.Conv2d(8, 500, (3, 5)), lambda: nn.Linear(120, 500)])
def test_initial_values_fill_pytorchs_range(make: Any) -> None:
    """Uniform in ±1/sqrt(fan_in), PyTorch's default, with fan_in = 120: standard deviation bound / sqrt(3)."""
    manual_seed(1)
    state = make().state_dict()
    bound = 1 / np.sqrt(120)
    for values in state.values():
        assert np.abs(values).max() <= np.float32(bound)
        assert np.abs(values).max() > 0.98 * bound
        # Of n values the mean is off by bound / sqrt(3 n), five times which happens once in a million.
        assert abs(values.mean()) < 5 * bound / np.sqrt(3 * values.size)
        assert values.std() == pytest.approx(bound / np.sqrt(3), rel=5 / np.sqrt(values.size))


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="Conv2d: in_channels must be at least 1, got 0"):
        nn.Conv2d(0, 1, 3)
    with pytest.raises(ValueError, match="Conv2d: kernel_size must be at least 1, got 0"):
        nn.Conv2d(1, 1, (3, 0))
    with pytest.raises(ValueError, match="Conv2d: stride must be at least 1, got -1"):
        nn.Conv2d(1, 1, 3, stride=-1)
    with pytest.raises(ValueError, match="Conv2d: padding must not be negative"):
        nn.Conv2d(1, 1, 3, padding=(0, -1))
    with pytest.raises(ValueError, match="Linear: out_features must be at least 1, got 0"):
        nn.Linear(3, 0)


def test_they_print_as_pytorch_prints_them(torch) -> None:
    assert repr(nn.Conv2d(3, 4, 3)) == repr(torch.nn.Conv2d(3, 4, 3))
    assert repr(nn.Conv2d(3, 4, (3, 2), stride=2, padding=1, bias=False)) == repr(
        torch.nn.Conv2d(3, 4, (3, 2), stride=2, padding=1, bias=False)
    )
    assert repr(nn.Linear(3, 4, bias=False)) == repr(torch.nn.Linear(3, 4, bias=False))
