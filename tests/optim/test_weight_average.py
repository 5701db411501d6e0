"""Weight averaging against torch.optim.swa_utils; swapping, saving, and what it refuses."""

import re
from typing import Any

import numpy as np
import pytest

from minidl import nn, optim
from minidl.backends import Backend, get_backend

STEPS = 6


@pytest.fixture(params=["reference", "cpu", "emulator"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return get_backend(request.param)


def network(backend: Backend) -> nn.Sequential:
    nn.manual_seed(1)
    return nn.Sequential(
        {
            "conv": nn.Conv2d(1, 2, 3, device=backend),
            "bn": nn.BatchNorm2d(2, device=backend),
            "scale": nn.Scale(0.5, device=backend),
            "pool": nn.GlobalAvgPool2d(device=backend),
            "fc": nn.Linear(2, 3, device=backend),
        }
    )


def train(model: nn.Sequential, steps: int = STEPS, first: int = 0) -> Any:
    """A step at a time, each another state of the model."""
    sgd = optim.SGD(model.parameters(), lr=0.3)
    for step in range(first, first + steps):
        rng = np.random.default_rng(step)
        x = model.backend.array(rng.standard_normal((4, 5, 5, 1)))
        sgd.zero_grad()
        y = model(x)
        model.backward(model.backend.array(rng.standard_normal(y.shape)))
        sgd.step()
        yield model.state_dict()


@pytest.mark.parametrize("buffers", ["average", "copy"])
def test_it_is_pytorchs(backend, buffers: str) -> None:
    reason = 'PyTorch, the second opinion, is not installed: pip install -e ".[oracle]"'
    torch = pytest.importorskip("torch", reason=reason)
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    class Scale(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

    theirs = torch.nn.ModuleDict(
        {
            "conv": torch.nn.Conv2d(1, 2, 3),
            "bn": torch.nn.BatchNorm2d(2),
            "scale": Scale(),
            "fc": torch.nn.Linear(2, 3),
        }
    ).double()
    theirs["bn"].num_batches_tracked = theirs["bn"].num_batches_tracked.double()  # or PyTorch averages no integers
    model = network(backend)
    ours = optim.WeightAverage(model, 0.8, warm_up=False, buffers=buffers)
    averaged = AveragedModel(theirs, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=buffers == "average")
    for state in train(model):
        ours.update()
        theirs.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
        averaged.update_parameters(theirs)
    expected = {name: value.numpy() for name, value in averaged.state_dict().items()}
    got = ours.state_dict()
    assert set(got) == set(expected)
    assert got["n_averaged"] == expected["n_averaged"] == STEPS
    close = 8 * STEPS * np.finfo(backend.dtype).eps
    for name, value in expected.items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_allclose(got[name], value, rtol=close, atol=close, err_msg=name)


def test_decay_warms_up_as_in_tensorflow(backend) -> None:
    """Beside the constant decay that the caller asked for, which stays what it is (huggingface/diffusers#1864)."""
    model = network(backend)
    average = optim.WeightAverage(model, 0.4)
    expected = None
    for t, state in enumerate(train(model)):
        average.update()
        decay = min(0.4, (1 + t) / (10 + t))
        now = state["fc.weight"].astype(np.float64)
        expected = now if t == 0 else expected + (1 - decay) * (now - expected)
        got = average.state_dict()["module.fc.weight"]
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert average.decay == 0.4


def test_inside_the_model_holds_the_averages_and_afterwards_its_own_bits(backend) -> None:
    model = network(backend)
    average = optim.WeightAverage(model, 0.5)
    for _ in train(model):
        average.update()
    before, arrays = model.state_dict(), [parameter.value for parameter in model.parameters()]
    with average.averaged() as same:
        assert same is model
        inside = model.state_dict()
        np.testing.assert_array_equal(inside["fc.weight"], backend.numpy(model[-1].weight.value))
    state = average.state_dict()
    for name, value in before.items():
        assert np.array_equal(inside[name], state[f"module.{name}"])
        if name not in ("conv.bias", "bn.num_batches_tracked"):  # behind a bias before normalization is no gradient
            assert not np.array_equal(value, inside[name]), name
        assert model.state_dict()[name].tobytes() == value.tobytes()
    assert all(parameter.value is array for parameter, array in zip(model.parameters(), arrays, strict=True))

    with pytest.raises(KeyError), average.averaged():  # also after an error
        raise KeyError
    assert all(parameter.value is array for parameter, array in zip(model.parameters(), arrays, strict=True))


def test_averaging_does_not_touch_training(backend) -> None:
    (*_, alone) = train(network(backend))
    model = network(backend)
    average = optim.WeightAverage(model)
    for _ in train(model):
        average.update()
        with average.averaged():
            model.eval()(backend.array(np.ones((2, 5, 5, 1))))
            model.train()
    beside = model.state_dict()
    assert all(beside[name].tobytes() == value.tobytes() for name, value in alone.items())


def test_running_statistics_are_averaged_or_copied(backend) -> None:
    for buffers in ("average", "copy"):
        model = network(backend)
        average = optim.WeightAverage(model, 0.5, buffers=buffers)
        for _ in train(model):
            average.update()
        got, state = average.state_dict(), model.state_dict()
        same = np.array_equal(got["module.bn.running_var"], state["bn.running_var"])
        assert same == (buffers == "copy")
        assert not np.array_equal(got["module.bn.weight"], state["bn.weight"])


def test_a_loaded_state_goes_on_bit_for_bit(backend) -> None:
    model = network(backend)
    average = optim.WeightAverage(model, 0.9)
    for _ in train(model, 3):
        average.update()
    saved, weights = average.state_dict(), model.state_dict()
    for _ in train(model, 3, first=3):
        average.update()

    other = network(backend)
    again = optim.WeightAverage(other, 0.9)
    other.load_state_dict(weights)
    again.load_state_dict(saved)
    assert all(np.array_equal(other.state_dict()[name], value) for name, value in weights.items())
    for _ in train(other, 3, first=3):
        again.update()
    expected = average.state_dict()
    assert again.updates == average.updates == 6
    assert all(again.state_dict()[name].tobytes() == value.tobytes() for name, value in expected.items())


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(backend) -> None:
    model = network(backend)
    average = optim.WeightAverage(model)
    for _ in train(model, 2):
        average.update()
    before = average.state_dict()
    other = {name: value + 1 for name, value in before.items()}
    del other["module.fc.bias"]
    with pytest.raises(ValueError, match=r"does not fit this WeightAverage: .*module\.fc\.bias$"):
        average.load_state_dict(other)
    wrong = {name: value + 1 for name, value in before.items()} | {"module.fc.bias": np.zeros(9)}
    with pytest.raises(ValueError, match=re.escape("fc.bias has shape (9,), expected (3,)")):
        average.load_state_dict(wrong)
    with pytest.raises(ValueError, match=r"n_averaged is -1, expected a whole number of at least 0"):
        average.load_state_dict(before | {"n_averaged": np.array(-1)})
    after = average.state_dict()
    assert all(np.array_equal(after[name], value) for name, value in before.items())


def test_what_makes_no_sense_is_refused(backend) -> None:
    model = network(backend)
    with pytest.raises(TypeError, match="WeightAverage: model is a list, expected a layer or a container"):
        optim.WeightAverage([])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"WeightAverage: decay must be a number, got '0.9'"):
        optim.WeightAverage(model, "0.9")  # type: ignore[arg-type]
    for decay in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=f"WeightAverage: decay must be at least 0 and less than 1, got {decay}"):
            optim.WeightAverage(model, decay)
    with pytest.raises(ValueError, match="WeightAverage: buffers is 'keep', expected one of average, copy"):
        optim.WeightAverage(model, buffers="keep")
    average = optim.WeightAverage(model)
    with average.averaged():
        with pytest.raises(RuntimeError, match="the model holds the averages"):
            average.update()
        with pytest.raises(RuntimeError, match="the model holds the averages"), average.averaged():
            pass
    average.update()


def test_a_model_that_was_moved_needs_a_new_one() -> None:
    model = network(get_backend("cpu"))
    average = optim.WeightAverage(model)
    model.to("reference")
    with pytest.raises(ValueError, match=r"the model is now on reference, .* make a new WeightAverage$"):
        average.update()
    assert average.updates == 0


def test_what_is_done_to_the_averages_leaves_the_models_counters() -> None:
    model = nn.Sequential(nn.BatchNorm1d(1, momentum=None))
    average = optim.WeightAverage(model)
    for i in range(10):
        model.forward(np.array([[i], [i + 2]], np.float32))
        average.update()
    before = model.state_dict()
    with average.averaged():
        nn.reestimate_statistics(model, [np.zeros((4, 1), np.float32)])
    after = model.state_dict()
    assert all(np.array_equal(before[name], after[name]) for name in before)
