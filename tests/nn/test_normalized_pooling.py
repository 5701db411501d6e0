"""Max pooling at the end of a chain without stored activations computes what its layers do."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from chains import WAYS, alike, assert_same_way, compare

from minidl import nn, optim
from minidl.backends.cpu import CpuBackend
from minidl.backends.emulated import EmulatorBackend
from minidl.nn.fusion import unfused
from minidl.nn.normalized_pooling import NormalizedPooling

IMAGE = (9, 7, 2)
POOLS: dict[str, Callable[[], nn.MaxPool2d]] = {
    "2x2": lambda: nn.MaxPool2d(2),
    "overlapping": lambda: nn.MaxPool2d(3, 2, 1),
    "apart": lambda: nn.MaxPool2d(2, (3, 2)),
    "dilated": lambda: nn.MaxPool2d((3, 2), 1, 1, (2, 3)),
    "rounded up": lambda: nn.MaxPool2d(2, ceil_mode=True),
}


def unit(c_in: int, c_out: int, relu: bool = True, **norm: Any) -> list[nn.Module]:
    layers = [nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out, **norm)]
    return [*layers, nn.ReLU()] if relu else layers


def network(pool: str = "2x2", device: Any = "reference", fused: bool = True, **options: Any) -> nn.Sequential:
    """Two chains, of one step and of two, which pools end."""
    nn.manual_seed(3)
    layers = *unit(2, 4, **options), POOLS[pool](), *unit(4, 5, **options), *unit(5, 4, **options), nn.MaxPool2d(2, 1)
    model = nn.Sequential(*layers, nn.GlobalAvgPool2d(), nn.Linear(4, 3)).to(device)
    if fused:
        nn.fuse(model)
    return model


def pools(model: nn.Sequential) -> list[NormalizedPooling]:
    return [step for step in model.steps if isinstance(step, NormalizedPooling)]


@pytest.mark.parametrize("options", [{}, {"relu": False}, {"affine": False}, {"momentum": None}], ids=str)
@pytest.mark.parametrize("pool", POOLS)
def test_training_goes_the_same_way(pool: str, options: dict[str, Any], rng) -> None:
    """In float64, over several steps: outputs, gradients of images and all there is of state."""
    plain, fused = (network(pool, fused=fuses, **options) for fuses in (False, True))
    assert len(pools(fused)) == 2
    optimizers = [optim.SGD(model.parameters(), 0.05, momentum=0.9) for model in (plain, fused)]
    for step in range(3):
        x, dy = rng.standard_normal((4, *IMAGE)), rng.standard_normal((4, 3))
        alike(fused.forward(x), plain.forward(x), f"the output of step {step}")
        alike(fused.backward(dy), plain.backward(dy), f"the gradient of x in step {step}")
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    compare(fused, plain)
    alike(fused.eval().forward(x), plain.eval().forward(x), "evaluation")


class Written(CpuBackend):
    """The CPU, where chains end in activations that are stored."""

    def fuses_pooling(self) -> bool:
        return False


@pytest.mark.parametrize("pool", POOLS)
def test_on_the_cpu_outputs_have_the_bits_of_the_steps_in_turn(pool: str, rng) -> None:
    """Gradients have those of sums that are added up in another order."""
    written, fused = (network(pool, device) for device in (Written(1), CpuBackend(1)))
    assert (len(pools(written)), len(pools(fused))) == (0, 2)
    x, dy = (rng.standard_normal(shape).astype(np.float32) for shape in ((6, *IMAGE), (6, 3)))
    assert fused.forward(x).tobytes() == written.forward(x).tobytes()
    alike(fused.backward(dy), written.backward(dy), "the gradient of x", 1e-5)
    for (name, a), b in zip(fused.named_parameters(), written.parameters(), strict=True):
        alike(a.grad, b.grad, name, 1e-5)
    compare(fused.eval(), written.eval(), 1e-5)
    with unfused(fused):
        apart = fused.eval().forward(x)
    alike(fused.forward(x), apart, "evaluation", 1e-5)


class Counting(CpuBackend):
    """Notes what memory is asked for, and which operations run."""

    def __init__(self, fuses: bool) -> None:
        super().__init__(1)
        self.fuses, self.shapes, self.calls = fuses, [], []

    def empty(self, shape: tuple[int, ...], dtype: Any = None) -> np.ndarray:
        self.shapes.append(tuple(shape))
        return super().empty(shape, dtype)

    def fuses_pooling(self) -> bool:
        return self.fuses

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name.startswith(("max_pool2d_", "batchnorm_")):
            self.calls.append(name)
        return value


def test_the_activation_is_not_stored(rng) -> None:
    """Forward has memory of its size for the convolution's output alone, backward for the gradient of that alone."""
    x, large = rng.standard_normal((6, *IMAGE)).astype(np.float32), (6, 9, 7, 4)
    for fuses, expected in ((False, (2, 1)), (True, (1, 1))):
        device = Counting(fuses)
        model = nn.Sequential(*unit(2, 4), nn.MaxPool2d(2)).to(device)
        model[0].input_gradient = False
        nn.fuse(model)
        device.shapes.clear()
        y = model.forward(x)
        forward = device.shapes.count(large)
        device.shapes.clear()
        device.calls.clear()
        model.backward(y)
        assert (forward, device.shapes.count(large)) == expected
    assert "batchnorm_gradient_sums" not in device.calls  # nor is anything read twice for its sums
    assert "max_pool2d_normalized_backward" in device.calls
    assert not {"batchnorm_apply", "max_pool2d_backward"} & set(device.calls)


ALL_WAYS: dict[str, Callable[[nn.Module], Any]] = {
    **WAYS,
    "one frozen before a pool": lambda model: model[1].freeze_statistics(),
    "one frozen at the start of a chain": lambda model: model[5].freeze_statistics(),
}


@pytest.mark.parametrize("way", ALL_WAYS)
def test_modes(way: str, rng) -> None:
    plain, fused = (network(fused=fuses) for fuses in (False, True))
    assert_same_way(fused, plain, ALL_WAYS[way], (4, *IMAGE), rng)


def test_it_is_fused_where_the_device_says_so(rng) -> None:
    model = network(device="cpu")
    assert nn.fuse(model) == ["0 + 1 + 2 + 3", "4 + 5 + 6 + 7 + 8 + 9 + 10"]
    assert len(pools(model)) == 2
    model.to(Written(1))
    assert nn.fuse(model) == ["0 + 1 + 2", "4 + 5 + 6 + 7 + 8 + 9"]
    assert not pools(model)
    assert not pools(model.to("emulator"))
    model.to("cpu")
    model.backward(model.forward(rng.standard_normal((2, *IMAGE)).astype(np.float32)))
    assert len(pools(model)) == 2
    with unfused(model):
        assert not pools(model)


def test_what_is_no_end_of_a_chain() -> None:
    class Other(nn.MaxPool2d):
        pass

    def is_none(*layers: nn.Module) -> bool:
        model = nn.Sequential(*layers).to("reference")
        nn.fuse(model)
        return not pools(model)

    assert not is_none(*unit(2, 4), nn.MaxPool2d(2))
    assert not is_none(*unit(2, 4, relu=False), nn.MaxPool2d(2))
    assert is_none(*unit(2, 4), Other(2))
    assert is_none(*unit(2, 4), nn.AvgPool2d(2))
    assert is_none(*unit(2, 4), nn.ReLU(), nn.MaxPool2d(2))
    assert is_none(nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2))
    assert is_none(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
    assert is_none(nn.MaxPool2d(2), *unit(2, 4))


def test_between_two_chains_and_within_a_block(rng) -> None:
    """A pool that a chain follows; one in a block, whose end is the sum's; and one behind another."""
    plain, fused = (
        nn.Sequential(
            *unit(2, 4),
            nn.MaxPool2d(2),
            nn.MaxPool2d(2, 1),
            nn.Residual(*unit(4, 4), nn.MaxPool2d(3, 1, 1), *unit(4, 4, relu=False), activation=nn.ReLU()),
        ).to("reference")
        for _ in range(2)
    )
    fused.load_state_dict(plain.state_dict())
    assert nn.fuse(fused) == ["0 + 1 + 2 + 3", "5.0 + 5.1 + 5.2 + 5.3", "5.4 + 5.5 + sum + 5.activation"]
    x = rng.standard_normal((3, *IMAGE))
    y, right = fused.forward(x), plain.forward(x)
    alike(y, right, "the output")
    dy = rng.standard_normal(y.shape)
    alike(fused.backward(dy), plain.backward(dy), "the gradient of x")


def sharing(*parts: slice) -> list[nn.Sequential]:
    """A fused chain that a pool ends, and Sequentials of some of the same layers."""
    layers = [*unit(2, 4), *unit(4, 8), nn.MaxPool2d(2)]
    models = [nn.Sequential(*layers[part]) for part in (slice(None), *parts)]
    for model in models:
        model.to("reference")
        nn.fuse(model)
    return models


def test_a_chain_goes_back_only_through_what_ran_last(rng) -> None:
    x, dy = rng.standard_normal((2, *IMAGE)), rng.standard_normal((2, 4, 3, 8))
    whole, begin, end = sharing(slice(0, 3), slice(3, 7))
    with unfused(whole):
        right = whole.forward(x), whole.backward(dy)
    whole.zero_grad()
    end.forward(begin.forward(x))
    alike(whole.forward(x), right[0], "the output")
    with pytest.raises(RuntimeError, match=r"a max-pool that ends a chain has run last outside of it.*unfused"):
        end.backward(dy)
    assert all(parameter.grad is None for parameter in whole.parameters())  # nothing was done by then
    alike(whole.backward(dy), right[1], "the gradient of x")
    whole.forward(x)
    end.forward(begin.forward(x))
    with pytest.raises(RuntimeError, match="has run last outside of it"):
        whole.backward(dy)
    alike(begin.backward(end.backward(dy)), right[1], "the gradient of x")


def test_a_pool_alone_does_not_go_back_through_a_chain(rng) -> None:
    whole, pool = sharing(slice(6, 7))
    y = whole.forward(rng.standard_normal((2, *IMAGE)))
    with pytest.raises(RuntimeError, match=r"MaxPool2d\.backward: forward ran as the end of a fused chain"):
        pool.backward(y)
    whole.backward(y)
    pool.forward(rng.standard_normal((2, *IMAGE)))
    with pytest.raises(RuntimeError, match="has run last outside of it"):
        whole.backward(y)


@pytest.mark.parametrize("fused_forward", [True, False])
def test_backward_goes_back_through_what_forward_ran(fused_forward: bool, rng) -> None:
    model, (x, dy) = network(fused=False), (rng.standard_normal(shape) for shape in ((4, *IMAGE), (4, 3)))
    model.forward(x)
    right = model.backward(dy)
    nn.fuse(model)
    if fused_forward:
        model.forward(x)
        with unfused(model):
            dx = model.backward(dy)
    else:
        with unfused(model):
            model.forward(x)
        dx = model.backward(dy)
    alike(dx, right, "the gradient of x")


def test_backward_goes_once_and_only_through_what_was_kept() -> None:
    model = nn.Sequential(*unit(2, 4), nn.MaxPool2d(2)).to("reference")
    nn.fuse(model)
    x, dy = np.ones((2, 4, 4, 2)), np.ones((2, 2, 2, 4))
    with pytest.raises(RuntimeError, match="no forward pass to go back through"):
        model.backward(dy)
    with nn.inference():
        model.forward(x)
    with pytest.raises(RuntimeError, match="no forward pass to go back through"):
        model.backward(dy)
    model.forward(x)
    with pytest.raises(ValueError, match=r"MaxPool2d: the gradient has shape .*, expected \(2, 2, 2, 4\)"):
        model.backward(x)
    model.backward(dy)
    with pytest.raises(RuntimeError, match="no forward pass to go back through"):
        model.backward(dy)


def test_no_images_one_value_a_channel_and_images_that_are_too_small() -> None:
    plain, fused = (network(fused=fuses) for fuses in (False, True))
    for model in (plain, fused):
        assert model.forward(np.zeros((0, *IMAGE))).shape == (0, 3)
        assert model.backward(np.zeros((0, 3))).shape == (0, *IMAGE)
    compare(fused, plain)
    model = nn.Sequential(*unit(2, 4), nn.MaxPool2d(2)).to("reference")
    nn.fuse(model)
    with pytest.raises(ValueError, match="training needs more than one value for each channel"):
        model.forward(np.ones((1, 1, 1, 2)))
    with pytest.raises(ValueError, match="MaxPool2d"):
        model.forward(np.ones((2, 1, 1, 2)))


def test_a_bias_that_comes_later_takes_part(rng) -> None:
    model = nn.Sequential(*unit(2, 4, momentum=1.0), nn.MaxPool2d(2)).to("reference")
    nn.fuse(model)
    x = rng.standard_normal((2, 4, 4, 2))
    model.forward(x)
    before = model[1].running_mean.copy()
    model[0].bias = nn.Parameter(model.backend, np.full(4, 5.0), decay=False)
    model.backward(model.forward(x))
    np.testing.assert_allclose(model[1].running_mean, before + 5, rtol=1e-12)
    assert model[0].bias.grad is not None


def test_statistics_can_be_reestimated(rng) -> None:
    batches = [rng.standard_normal((n, *IMAGE)) for n in (4, 6)]
    plain, fused = (network(fused=fuses) for fuses in (False, True))
    assert nn.reestimate_statistics(fused, batches) == nn.reestimate_statistics(plain, batches)
    compare(fused, plain)


class Pooling(EmulatorBackend):
    """The GPU's kernels, as if a device had fused ones for max pooling."""

    def fuses_pooling(self) -> bool:
        return True


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_devices_compute_it_too(precision: str, rng) -> None:
    """Outputs and gradients of images have the bits of the steps in turn, which have the same order there."""
    found = []
    for device in (EmulatorBackend(precision=precision), Pooling(precision=precision)):
        nn.manual_seed(3)
        model = nn.Sequential(*unit(8, 8), nn.MaxPool2d(2), *unit(8, 8), nn.MaxPool2d(2)).to(device)
        nn.fuse(model)
        x = np.random.default_rng(5).standard_normal((2, 6, 4, 8)).astype(np.float32)
        given = device.array(x)
        y = model.forward(given)
        dx = model.backward(y)
        found.append([device.numpy(array).tobytes() for array in (y, dx)])
    assert len(pools(model)) == 2
    assert found[0] == found[1]


def test_a_graph_can_be_captured(rng) -> None:
    device = Pooling(precision="tf32")
    model = nn.Sequential(*unit(4, 4), nn.MaxPool2d(2)).to(device)
    nn.fuse(model)
    x = device.array(rng.standard_normal((2, 4, 4, 4)).astype(np.float32))
    dy = device.array(rng.standard_normal((2, 2, 2, 4)).astype(np.float32))
    answers: list[Any] = []

    def step() -> None:
        model.zero_grad()
        answers[:] = model.forward(x), model.backward(dy)

    graph = device.capture(step)
    graph.replay()
    replayed = [device.numpy(array) for array in answers]
    step()
    assert len(pools(model)) == 1
    for got, array in zip(replayed, answers, strict=True):
        assert got.tobytes() == device.numpy(array).tobytes()
