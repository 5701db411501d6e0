"""Fusion: fewer passes over memory, and nothing else that a user could tell."""

from typing import Any

import numpy as np
import pytest

from minidl import nn
from minidl.nn.fusion import unfused
from minidl.nn.init import manual_seed


def network(device: Any) -> nn.Sequential:
    """Six places where BatchNorm meets ReLU, two of them nested and two behind a sum, and three near misses."""
    manual_seed(2)
    return nn.Sequential(
        {
            "conv1": nn.Conv2d(2, 4, 3, padding=1, device=device),
            "bn1": nn.BatchNorm2d(4, device=device),
            "relu1": nn.ReLU(device=device),
            "block": nn.Residual(
                nn.Conv2d(4, 4, 1, device=device),
                nn.BatchNorm2d(4, affine=False, device=device),
                nn.ReLU(device=device),
                nn.BatchNorm2d(4, device=device),  # ReLU follows outside
            ),
            "end": nn.Residual(
                {"conv": nn.Conv2d(4, 4, 3, padding=1, device=device), "bn": nn.BatchNorm2d(4, device=device)},
                downsample=nn.Sequential(nn.Conv2d(4, 4, 1, device=device), nn.BatchNorm2d(4, device=device)),
                activation=nn.ReLU(device=device),
            ),
            "plain": nn.Residual(nn.BatchNorm2d(4, affine=False, device=device), activation=nn.ReLU(device=device)),
            "relu2": nn.ReLU(device=device),
            "paths": nn.Concat(
                nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False, device=device), nn.ReLU(device=device)),
                nn.BatchNorm2d(4, device=device),  # nothing follows
            ),
            "drop": nn.Dropout(0.3, device=device),
            "flatten": nn.Flatten(device=device),
            "bn2": nn.BatchNorm1d(8 * 20, momentum=None, device=device),
            "relu3": nn.ReLU(device=device),
            "relu4": nn.ReLU(device=device),  # only the first is taken in
            "fc": nn.Linear(8 * 20, 3, device=device),
        }
    )


FUSED = {
    *("bn1 + relu1", "block.1 + block.2", "paths.0.0 + paths.0.1", "bn2 + relu3"),
    *("end.bn + sum + end.activation", "plain.0 + sum + plain.activation"),
}


def test_it_says_what_is_fused_however_often_it_is_asked(cpu) -> None:
    model = network(cpu)
    fused = nn.fuse(model)
    assert len(fused) == len(FUSED)
    assert set(fused) == FUSED
    assert nn.fuse(model) == fused
    assert nn.fuse(nn.ReLU()) == []
    assert nn.fuse(nn.Sequential(nn.BatchNorm1d(3), nn.ReLU())) == ["0 + 1"]


def test_names_parameters_and_state_stay(cpu, same_bits) -> None:
    model = network(cpu)
    modules, parameters, state = list(model.named_modules()), list(model.named_parameters()), model.state_dict()
    printed = repr(model)
    nn.fuse(model)
    assert list(model.named_modules()) == modules
    assert list(model.named_parameters()) == parameters
    assert list(model.state_dict()) == list(state)
    assert all(same_bits(value, state[name]) for name, value in model.state_dict().items())
    assert repr(model) == printed
    assert len(model) == 14


def test_outputs_gradients_and_statistics_have_the_same_bits(backend, rng, same_bits) -> None:
    """The promise is `fuse`'s: all of them stay what they were; on both backends that holds to the bit."""
    plain, fused = network(backend), network(backend)
    nn.fuse(fused)
    for step in range(6):
        if step == 4:
            plain.eval(), fused.eval()
        x, dy = (rng.standard_normal(shape).astype(backend.dtype) for shape in ((6, 5, 4, 2), (6, 3)))
        assert same_bits(fused.forward(x), plain.forward(x))
        assert same_bits(fused.backward(dy), plain.backward(dy))
        for (name, a), b in zip(fused.named_parameters(), plain.parameters(), strict=True):
            assert same_bits(a.grad, b.grad), name
            for parameter in (a, b):
                parameter.value -= backend.dtype.type(0.1) * parameter.grad
                parameter.zero_grad()
    state = plain.state_dict()
    assert all(same_bits(value, state[name]) for name, value in fused.state_dict().items())


def test_zeros_and_nan_go_through_alike(backend, same_bits) -> None:
    plain = nn.Sequential(nn.BatchNorm1d(3, device=backend), nn.ReLU(device=backend))
    fused = nn.Sequential(nn.BatchNorm1d(3, device=backend), nn.ReLU(device=backend))
    nn.fuse(fused)
    x = np.array([[1, 5, 2], [3, 5, np.nan], [2, 5, 1]], backend.dtype)  # 2 and 5 are their channel's mean: y = 0
    dy = np.ones_like(x)
    assert same_bits(fused.forward(x), plain.forward(x))
    assert same_bits(fused.backward(dy), plain.backward(dy))


def test_the_relu_does_not_run_by_itself(cpu, monkeypatch) -> None:
    model = network(cpu)
    nn.fuse(model)
    calls = []
    relu_forward = cpu.relu_forward
    monkeypatch.setattr(cpu, "relu_forward", lambda x, y: (calls.append(x.shape), relu_forward(x, y)))
    model.forward(np.ones((2, 5, 4, 2), np.float32))
    assert len(calls) == 2  # relu2 and relu4


def test_modes_devices_and_states_still_reach_the_fused_layers(same_bits) -> None:
    model, plain = network("cpu"), network("cpu")
    nn.fuse(model)
    state = {name: np.abs(value) + 1 for name, value in model.state_dict().items()}
    x = np.random.default_rng(0).standard_normal((3, 5, 4, 2))
    for each in (model, plain):
        each.load_state_dict(state)
        each.eval().to("reference")
    assert same_bits(model.forward(x), plain.forward(x))
    assert model.state_dict()["bn1.num_batches_tracked"] == state["bn1.num_batches_tracked"]
    for each in (model, plain):
        each.train()
    assert same_bits(model.forward(x), plain.forward(x))
    assert model.state_dict()["bn1.num_batches_tracked"] == state["bn1.num_batches_tracked"] + 1


def test_a_fused_step_has_one_backward_too(cpu) -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU())
    nn.fuse(model)
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    with nn.inference():
        model.forward(x)
    with pytest.raises(RuntimeError, match="no forward pass to go back through"):
        model.backward(x)
    model.forward(x)
    model.backward(x)
    with pytest.raises(RuntimeError, match="no forward pass to go back through"):
        model.backward(x)


def test_unfused_lets_every_layer_run_by_itself_for_a_while(cpu, same_bits) -> None:
    model = network(cpu).eval()
    nn.fuse(model)
    steps = [type(step) for step in model.steps]
    x = np.random.default_rng(0).standard_normal((3, 5, 4, 2)).astype(np.float32)
    y = model.forward(x)
    with unfused(model):
        assert model.steps == list(model)
        assert same_bits(model.forward(x), y)
    assert [type(step) for step in model.steps] == steps
    with pytest.raises(ZeroDivisionError), unfused(model):
        raise ZeroDivisionError
    assert [type(step) for step in model.steps] == steps


def test_a_layer_that_is_assigned_after_fusion_is_fused_as_well(cpu, rng, same_bits) -> None:
    model = nn.Sequential({"bn": nn.BatchNorm1d(3), "relu": nn.ReLU(), "fc": nn.Linear(3, 2)})
    nn.fuse(model)
    x = rng.standard_normal((5, 3)).astype(np.float32)
    model.forward(x)
    model.bn = nn.BatchNorm1d(3, eps=0.5)
    assert len(model.steps) == 2
    y = model.forward(x)
    with unfused(model):
        assert same_bits(model.forward(x), y)
    model.relu = nn.Dropout(0.0)  # no ReLU any more: nothing to fuse
    assert model.steps == list(model)


def test_a_subclass_is_not_fused() -> None:
    class Other(nn.ReLU):
        pass

    assert nn.fuse(nn.Sequential(nn.BatchNorm1d(3), Other())) == []
