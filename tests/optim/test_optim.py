"""Optimizers against torch.optim, their groups, their state, and what they refuse."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from minidl import nn, optim
from minidl.backends import Backend, get_backend
from minidl.nn import Parameter

STEPS = 8
RULES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.05}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05}),
    ("SGD", {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.05}),
    ("Adam", {"lr": 0.01}),
    ("Adam", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}),
    ("AdamW", {"lr": 0.01}),
    ("AdamW", {"lr": 0.01, "betas": (0.7, 0.9), "eps": 1e-4, "weight_decay": 0.3}),
]


@pytest.fixture(scope="module")
def torch():
    reason = 'PyTorch, the second opinion, is not installed: pip install -e ".[oracle]"'
    return pytest.importorskip("torch", reason=reason)


@pytest.fixture(params=["reference", "cpu"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return get_backend(request.param)


def parameters(backend: Backend, seed: int = 0) -> list[Parameter]:
    rng = np.random.default_rng(seed)
    shapes = [(3, 4), (4,), (2, 3, 1, 2)]
    return [Parameter(backend, rng.standard_normal(shape).astype(np.float32), decay=True) for shape in shapes]


def gradients(params: list[Parameter], step: int) -> list[np.ndarray]:
    rng = np.random.default_rng(100 + step)
    return [rng.standard_normal(parameter.shape).astype(np.float32) for parameter in params]


def give(backend: Backend, params: list[Parameter], step: int) -> None:
    for parameter, grad in zip(params, gradients(params, step), strict=True):
        parameter.grad = backend.array(grad)


def twins(torch: Any, params: list[Parameter]) -> list[Any]:
    return [torch.nn.Parameter(torch.from_numpy(parameter.value.astype(np.float64))) for parameter in params]


def assert_equal(params: list[Parameter], theirs: list[Any], steps: int, backend: Backend) -> None:
    """Values and updates are of the size of 1 or less.

    Each step adds the rounding of a dozen operations on them. Adam's first updates divide by sqrt(m2) + eps, which the
    gradients drawn here keep above 1e-3: an update is off by 12 units of itself.
    """
    bound = 24 * steps * np.finfo(backend.dtype).eps
    for parameter, twin in zip(params, theirs, strict=True):
        expected = twin.detach().numpy()
        error = np.abs(parameter.value - expected) / (1 + np.abs(expected))
        assert error.max() <= bound


@pytest.mark.parametrize(("name", "options"), RULES, ids=lambda value: str(value))
def test_updates_are_pytorchs(torch, backend, name: str, options: dict[str, Any]) -> None:
    params = parameters(backend)
    theirs = twins(torch, params)
    ours = getattr(optim, name)(params, **options)
    other = getattr(torch.optim, name)(theirs, **options)
    for step in range(STEPS):
        give(backend, params, step)
        grads = [parameter.grad.copy() for parameter in params]
        for twin, grad in zip(theirs, grads, strict=True):
            twin.grad = torch.from_numpy(grad.astype(np.float64))
        ours.step()
        other.step()
        assert_equal(params, theirs, step + 1, backend)
        assert all(np.array_equal(p.grad, grad) for p, grad in zip(params, grads, strict=True))  # only read
    assert ours.steps == STEPS


def test_sgd_with_dyadic_numbers_is_exact(backend) -> None:
    parameter = Parameter(backend, np.array([1.0, -2.0]), decay=True)
    sgd = optim.SGD([parameter], lr=0.5, momentum=0.5, weight_decay=0.25, nesterov=True)
    parameter.grad = backend.array(np.array([0.75, 0.5]))
    sgd.step()  # g = (1, 0), v = (1, 0): value - 0.5 * (g + 0.5 v)
    assert np.array_equal(parameter.value, [0.25, -2.0])
    sgd.step()  # g = (0.8125, 0), v = 0.5 v + g
    assert np.array_equal(parameter.value, [0.25 - 0.5 * (0.8125 + 0.5 * 1.3125), -2.0])


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_groups_have_options_of_their_own(torch, backend, name: str) -> None:
    params = parameters(backend)
    theirs = twins(torch, params)

    def groups(entries: list[Any]) -> list[dict[str, Any]]:
        return [{"params": entries[:1], "lr": 0.3}, {"params": entries[1:], "weight_decay": 0.2}]

    ours = getattr(optim, name)(groups(params), lr=0.01)
    other = getattr(torch.optim, name)(groups(theirs), lr=0.01)
    assert [group["lr"] for group in ours.groups] == [0.3, 0.01]
    for step in range(5):
        if step == 3:
            ours.groups[1]["lr"] = other.param_groups[1]["lr"] = 0.05
        give(backend, params, step)
        for twin, grad in zip(theirs, gradients(params, step), strict=True):
            twin.grad = torch.from_numpy(grad.astype(np.float64))
        ours.step()
        other.step()
    assert_equal(params, theirs, 5, backend)
    ours.set_lr(0.5)
    assert [group["lr"] for group in ours.groups] == [0.5, 0.5]


def test_groups_may_differ_in_momentum(backend) -> None:
    params = parameters(backend)
    sgd = optim.SGD([{"params": params[:1], "momentum": 0.9}, {"params": params[1:]}], lr=0.1)
    assert sorted(name for name in sgd.state_dict() if name.endswith("velocity")) == ["0.0.velocity"]
    give(backend, params, 0)
    sgd.step()


def test_decay_groups_leave_out_biases_and_normalization(backend) -> None:
    model = nn.Sequential(
        {
            "conv": nn.Conv2d(1, 2, 3, device=backend),
            "bn": nn.BatchNorm2d(2, device=backend),
            "block": nn.Residual(nn.Sequential(nn.BatchNorm2d(2, device=backend), nn.Conv2d(2, 2, 1, device=backend))),
            "flatten": nn.Flatten(device=backend),
            "fc": nn.Linear(8, 3, device=backend),
        }
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = optim.decay_groups(model, 0.5)
    assert [[names[id(p)] for p in group["params"]] for group in groups] == [
        ["conv.weight", "block.0.1.weight", "fc.weight"],
        [
            *("conv.bias", "bn.weight", "bn.bias", "block.0.0.weight", "block.0.0.bias"),
            *("block.0.1.bias", "fc.bias"),
        ],
    ]
    before = {name: p.value.copy() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = backend.zeros(p.shape)
    optim.SGD(groups, lr=0.5).step()
    for name, p in model.named_parameters():
        decayed = name in ("conv.weight", "block.0.1.weight", "fc.weight")
        assert np.array_equal(p.value, before[name] * backend.dtype.type(0.75 if decayed else 1)), name


def test_biases_and_normalization_may_have_a_decay_of_their_own(backend) -> None:
    model = nn.Sequential(nn.Linear(2, 3, device=backend), nn.BatchNorm1d(3, device=backend), nn.Scale(device=backend))
    weights, others = optim.decay_groups(model, 0.5, 0.25)
    assert (weights["weight_decay"], others["weight_decay"]) == (0.5, 0.25)
    assert [len(group["params"]) for group in (weights, others)] == [1, 4]


def test_parameters_without_a_gradient_stay(backend) -> None:
    params = parameters(backend)
    before = [parameter.value.copy() for parameter in params]
    adam = optim.AdamW(params, lr=0.1, weight_decay=0.5)
    params[1].grad = backend.array(np.ones(4))
    adam.step()
    assert [np.array_equal(p.value, b) for p, b in zip(params, before, strict=True)] == [True, False, True]


def test_a_parameter_that_joins_later_starts_from_its_own_first_step(torch, backend) -> None:
    params = parameters(backend)[:2]
    theirs = twins(torch, params)
    ours, other = optim.Adam(params, lr=0.1), torch.optim.Adam(theirs, lr=0.1)
    for step in range(4):
        ours.zero_grad()
        other.zero_grad()
        for i in range(1 if step < 2 else 2):
            grad = gradients(params, step)[i]
            params[i].grad, theirs[i].grad = backend.array(grad), torch.from_numpy(grad.astype(np.float64))
        ours.step()
        other.step()
    assert_equal(params, theirs, 4, backend)


def test_zero_grad_forgets_all_gradients(backend) -> None:
    params = parameters(backend)
    give(backend, params, 0)
    optim.SGD([{"params": params[:1]}, {"params": params[1:]}], lr=0.1).zero_grad()
    assert all(parameter.grad is None for parameter in params)


MAKERS: list[Callable[..., optim.Optimizer]] = [
    lambda params, backend: optim.SGD(params, lr=0.1, momentum=0.9),
    lambda params, backend: optim.SGD(params, lr=0.1),
    lambda params, backend: optim.AdamW([{"params": params[:2]}, {"params": params[2:]}]),
]


@pytest.mark.parametrize("make", MAKERS)
def test_a_state_that_is_loaded_goes_on_bit_for_bit(backend, make: Any) -> None:
    whole, rest = parameters(backend), parameters(backend)
    a, b = make(whole, backend), make(rest, backend)
    for step in range(3):
        give(backend, whole, step)
        a.step()
    for old, new in zip(whole, rest, strict=True):
        new.value[...] = old.value
    state = a.state_dict()
    b.load_state_dict(state)
    for value in state.values():  # a copy: what happens to it later is nobody's concern
        value[...] = 0
    for step in range(3, 6):
        for params, optimizer in ((whole, a), (rest, b)):
            give(backend, params, step)
            optimizer.step()
    assert all(old.value.tobytes() == new.value.tobytes() for old, new in zip(whole, rest, strict=True))
    assert b.steps == 6


def test_the_state_has_names_and_a_count(backend) -> None:
    params = parameters(backend)
    adam = optim.Adam([{"params": params[:1]}, {"params": params[1:]}])
    state = adam.state_dict()
    slots = {f"{p}.{slot}" for p in ("0.0", "1.0", "1.1") for slot in ("first_moment", "second_moment", "updates")}
    assert set(state) == {"steps"} | slots
    assert (state["steps"].shape, state["steps"].dtype) == ((), np.int64)
    assert state["1.1.first_moment"].shape == params[2].shape


def test_another_optimizers_state_is_refused_and_nothing_changes(backend) -> None:
    params = parameters(backend)
    adam = optim.Adam(params)
    give(backend, params, 0)
    adam.step()
    before = adam.state_dict()
    sgd = optim.SGD(params, lr=0.1, momentum=0.9).state_dict()
    short = {name: value for name, value in before.items() if name != "2.1"} | {"0.1.first_moment": np.zeros(5)}
    for wrong, named in ((sgd, "0.0.first_moment"), (short, "0.1.first_moment"), ({}, "steps")):
        with pytest.raises(ValueError, match=rf"the state does not fit this Adam: .*{re.escape(named)}"):
            adam.load_state_dict(wrong)
    after = adam.state_dict()
    assert all(np.array_equal(after[name], before[name]) for name in before)


def test_a_state_of_no_real_numbers_is_refused_and_nothing_changes(backend) -> None:
    params = parameters(backend)
    adam = optim.Adam(params)
    before = adam.state_dict()
    wrong = {name: value + 1 for name, value in before.items()} | {"0.1.second_moment": np.array(list("abcd"))}
    with pytest.raises(ValueError, match=r"0\.1\.second_moment"):
        adam.load_state_dict(wrong)
    after = adam.state_dict()
    assert all(np.array_equal(after[name], before[name]) for name in before)


def test_bad_options_are_named(backend) -> None:
    params = parameters(backend)
    for name in ("lr", "weight_decay", "momentum"):
        for value in (-0.1, float("nan"), float("inf")):
            with pytest.raises(ValueError, match=rf"SGD: {name} must be 0 or more and finite, got {value}"):
                optim.SGD(params, **{"lr": 0.1, name: value})
    with pytest.raises(ValueError, match="AdamW: eps must be 0 or more and finite, got -1"):
        optim.AdamW(params, eps=-1)
    with pytest.raises(ValueError, match="SGD: nesterov needs a momentum greater than 0"):
        optim.SGD(params, lr=0.1, nesterov=True)
    with pytest.raises(ValueError, match=r"AdamW: betas must be at least 0 and less than 1, got \(0.9, 1.0\)"):
        optim.AdamW(params, betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="SGD: unknown option 'learning_rate' in a parameter group"):
        optim.SGD([{"params": params, "learning_rate": 0.1}], lr=0.1)
    with pytest.raises(ValueError, match="SGD: lr must be 0 or more and finite, got -1"):
        optim.SGD([{"params": params, "lr": -1}], lr=0.1)
    for nothing in ([], iter(())):
        with pytest.raises(ValueError, match="Adam: no parameters to optimize"):
            optim.Adam(nothing)


def test_a_groups_bad_betas_are_named(backend) -> None:
    with pytest.raises(ValueError, match=r"got \(1.5, 0.9\)"):
        optim.Adam([{"params": parameters(backend), "betas": (1.5, 0.9)}])


def test_a_parameter_given_twice_is_refused(backend) -> None:
    params = parameters(backend)
    with pytest.raises(ValueError, match="twice"):
        optim.SGD([{"params": params}, {"params": params[:1]}], lr=0.1)


def test_parameters_on_two_devices_are_refused() -> None:
    there = [nn.Linear(2, 3, device=device).weight for device in ("cpu", "reference")]
    with pytest.raises(ValueError, match="SGD: the parameters are on different devices"):
        optim.SGD(there, lr=0.1)


def test_groups_without_any_parameter_are_refused() -> None:
    with pytest.raises(ValueError, match="AdamW: no parameters to optimize"):
        optim.AdamW([{"params": []}, {"params": []}])


def test_a_model_in_the_place_of_its_parameters_is_refused(backend) -> None:
    model = nn.Sequential(nn.Linear(2, 3, device=backend))
    with pytest.raises(TypeError, match=r"SGD: .*parameters\(\)"):
        optim.SGD(model, lr=0.1)


def test_parameters_may_come_from_a_generator(backend) -> None:
    model = nn.Sequential(nn.Linear(2, 3, device=backend), nn.Linear(3, 1, device=backend))
    assert len(optim.SGD(model.parameters(), lr=0.1).groups[0]["params"]) == 4
    groups = [{"params": layer.parameters()} for layer in model]
    assert [len(g["params"]) for g in optim.SGD(groups, lr=0.1).groups] == [2, 2]


@pytest.mark.parametrize("optimizer", [optim.SGD, optim.AdamW])
def test_a_model_that_was_moved_needs_a_new_optimizer(optimizer) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    old = optimizer(model.parameters(), lr=0.1)
    model.to("reference")
    for parameter in model.parameters():
        parameter.grad = np.ones(parameter.shape)
    before = model.state_dict()
    with pytest.raises(ValueError, match=r"Linear\.weight is now on reference, .* on cpu, .* make a new optimizer$"):
        old.step()
    assert old.steps == 0
    assert all(np.array_equal(value, before[name]) for name, value in model.state_dict().items())
    optimizer(model.parameters(), lr=0.1).step()
    assert not any(np.array_equal(value, before[name]) for name, value in model.state_dict().items())


def test_no_group_is_updated_where_one_is_refused() -> None:
    first, second = nn.Linear(2, 3), nn.Linear(3, 2)
    sgd = optim.SGD([{"params": first.parameters()}, {"params": second.parameters()}], lr=0.1, momentum=0.9)
    for layer in (first, second):
        layer.weight.grad = np.ones(layer.weight.shape, np.float32)
    sgd.state[1][0]["velocity"] = np.zeros((9, 9), np.float32)
    before = first.weight.value.copy()
    with pytest.raises(ValueError, match=r"SGD: velocity has shape \(9, 9\) .*expected \(2, 3\)"):
        sgd.step()
    assert np.array_equal(first.weight.value, before)


def test_an_assigned_value_is_what_is_updated() -> None:
    layer = nn.Linear(3, 2, bias=False)
    sgd = optim.SGD(layer.parameters(), lr=1.0)
    transposed = np.arange(6, dtype=np.float32).reshape(3, 2).T
    layer.weight.value, layer.weight.grad = transposed, np.ones((3, 2), np.float32).T
    sgd.step()
    assert np.array_equal(layer.weight.value, transposed - 1)


def test_groups_that_are_none_are_named(backend) -> None:
    params = parameters(backend)
    for given, error, message in (
        ([{"lr": 0.1}], ValueError, "SGD: a parameter group lacks 'params'"),
        ([{"params": params}, params[0]], TypeError, "SGD: a parameter group is a Parameter, expected a dict"),
        ([params[0].value], TypeError, "SGD: params holds a ndarray, expected a Parameter"),
        ([{"params": [1.0]}], TypeError, "SGD: params holds a float, expected a Parameter"),
        (params[0], TypeError, "SGD: params is one Parameter; give a list"),
        ({"params": params}, TypeError, "SGD: params is one dict; give a list"),
    ):
        with pytest.raises(error, match=message):
            optim.SGD(given, lr=0.1)
    assert optim.SGD([{"params": params[0]}], lr=0.1).groups[0]["params"] == [params[0]]


def test_options_of_another_type_are_named(backend) -> None:
    params = parameters(backend)
    with pytest.raises(ValueError, match="SGD: momentum must be 0 or more and finite, got 'a'"):
        optim.SGD(params, lr=0.1, momentum="a")
    for betas in ((0.9,), (0.9, 0.99, 0.999), 0.9, None):
        with pytest.raises(ValueError, match=r"Adam: betas must be two numbers, got "):
            optim.Adam(params, betas=betas)
    with pytest.raises(ValueError, match=r"Adam: betas must be at least 0 and less than 1, got \(0\.9, 'a'\)"):
        optim.Adam(params, betas=(0.9, "a"))


@pytest.mark.parametrize("count", [np.nan, np.inf, -1.0, 2.5])
@pytest.mark.parametrize("name", ["steps", "1.1.updates"])
def test_a_count_that_is_none_is_refused_and_nothing_changes(backend, name, count) -> None:
    params = parameters(backend)
    adam = optim.Adam([{"params": params[:1]}, {"params": params[1:]}])
    give(backend, params, 0)
    adam.step()
    before = adam.state_dict()
    wrong = {name: value + 1 for name, value in before.items()} | {name: np.array(count)}
    with pytest.raises(ValueError, match=rf"{re.escape(name)} is {count}, expected a whole number of at least 0"):
        adam.load_state_dict(wrong)
    after = adam.state_dict()
    assert all(np.array_equal(after[name], before[name]) for name in before)


def test_adam_without_memory_keeps_the_digits_of_a_small_gradient() -> None:
    layer = nn.Linear(1, 1, bias=False)
    adam = optim.Adam(layer.parameters(), lr=0.0, betas=(0.0, 0.9))
    for grad in (1.0, 1e-6):
        layer.weight.grad = np.full((1, 1), grad, np.float32)
        adam.step()
    assert adam.state_dict()["0.0.first_moment"] == np.float32(1e-6)


def test_a_captured_step_with_numbers_from_the_host_is_refused() -> None:
    """Every replay would go by the learning rate of the step that was recorded."""
    emulator = get_backend("emulator")
    parameter = Parameter(emulator, np.zeros(4, np.float32), decay=True)
    parameter.grad = emulator.array(np.ones(4, np.float32))
    optimizer = optim.SGD([parameter], 0.1)
    optimizer.step()
    with pytest.raises(RuntimeError, match="numbers came from the host while a graph is captured"):
        emulator.capture(optimizer.step)
    assert optimizer.steps == 2  # the first, and the one that `capture` makes before it records
    assert optimizer.updates == [[2]]


def test_momentum_that_comes_later_needs_a_new_optimizer(backend) -> None:
    (parameter, *_) = parameters(backend)
    parameter.grad = backend.array(np.ones(parameter.shape))
    optimizer = optim.SGD([parameter], 0.1)
    optimizer.groups[0]["momentum"] = 0.9
    with pytest.raises(ValueError, match="SGD: a group now needs velocity"):
        optimizer.step()
    assert optimizer.steps == 0
    assert optimizer.updates == [[0]]


@pytest.mark.parametrize("rate", [-1.0, float("nan"), "fast"])
def test_a_learning_rate_that_is_none_is_refused(backend, rate) -> None:
    optimizer = optim.SGD(parameters(backend), 0.1)
    with pytest.raises(ValueError, match="SGD: lr must be 0 or more and finite"):
        optimizer.set_lr(rate)
    assert optimizer.groups[0]["lr"] == 0.1
