"""State dicts: PyTorch's names and layouts, and nothing changed where anything is refused."""

from typing import Any

import numpy as np
import pytest

from minidl import nn


def network(device: Any = "cpu", classes: int = 4) -> nn.Sequential:
    return nn.Sequential(
        {
            "conv1": nn.Conv2d(2, 3, (3, 2), device=device),
            "bn1": nn.BatchNorm2d(3, device=device),
            "relu1": nn.ReLU(device=device),
            "block": nn.Residual(nn.Conv2d(3, 3, 1, bias=False, device=device)),
            "flatten": nn.Flatten(device=device),
            "bn2": nn.BatchNorm1d(24, affine=False, device=device),
            "fc": nn.Linear(24, classes, device=device),
        }
    )


@pytest.fixture
def twin(torch):
    class Residual(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("0", torch.nn.Conv2d(3, 3, 1, bias=False))

    model = torch.nn.Sequential()
    model.add_module("conv1", torch.nn.Conv2d(2, 3, (3, 2)))
    model.add_module("bn1", torch.nn.BatchNorm2d(3))
    model.add_module("relu1", torch.nn.ReLU())
    model.add_module("block", Residual())
    model.add_module("flatten", torch.nn.Flatten())
    model.add_module("bn2", torch.nn.BatchNorm1d(24, affine=False))
    model.add_module("fc", torch.nn.Linear(24, 4))
    return model


def unchanged(model: nn.Module, before: dict[str, np.ndarray]) -> bool:
    after = model.state_dict()
    return list(after) == list(before) and all(np.array_equal(after[name], before[name]) for name in before)


def test_names_order_shapes_and_kinds_are_pytorchs(backend, twin) -> None:
    ours, theirs = network(backend).state_dict(), twin.state_dict()
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        assert isinstance(value, np.ndarray)
        assert value.shape == tuple(theirs[name].shape)
        assert value.flags.c_contiguous
        assert value.dtype == (np.int64 if name.endswith("num_batches_tracked") else backend.dtype)


def test_a_state_of_pytorchs_is_taken_as_it_is(backend, twin) -> None:
    model = network(backend)
    theirs = {name: value.numpy() for name, value in twin.state_dict().items()}
    assert model.load_state_dict(theirs) == ([], [])
    assert unchanged(model, theirs)
    conv = model.conv1.weight.value  # (kh, kw, in, out) inside
    assert conv.shape == (3, 2, 2, 3)
    assert conv[2, 1, 0, 1] == theirs["conv1.weight"][1, 0, 2, 1]


def test_a_state_is_a_copy_both_ways(backend) -> None:
    model = network(backend)
    state = model.state_dict()
    kept = {name: value.copy() for name, value in state.items()}
    for value in state.values():
        value[...] = 7
    assert unchanged(model, kept)
    model.load_state_dict(state)
    for value in state.values():
        value[...] = 8
    assert all((value == 7).all() for value in model.state_dict().values())


def test_loading_writes_into_the_arrays_that_are_there(backend) -> None:
    """So an optimizer or a captured step that holds them sees the new values."""
    model = network(backend)
    arrays = [parameter.value for parameter in model.parameters()]
    running = model.bn1.running_mean
    model.load_state_dict(network(backend).state_dict())
    assert all(a is parameter.value for a, parameter in zip(arrays, model.parameters(), strict=True))
    assert model.bn1.running_mean is running


def test_a_round_trip_gives_the_same_outputs(backend, normal, same_bits) -> None:
    model, other = network(backend), network(backend)
    x = normal(3, 6, 3, 2)
    model.forward(x)  # moves the running statistics
    other.load_state_dict(model.state_dict())
    assert other.bn1.num_batches_tracked == 1
    assert same_bits(model.eval().forward(x), other.eval().forward(x))
    assert same_bits(model.train().forward(x), other.train().forward(x))


def test_num_batches_tracked_goes_on_from_what_was_loaded(backend, normal) -> None:
    layer = nn.BatchNorm1d(2, momentum=None, device=backend)
    layer.load_state_dict({**layer.state_dict(), "num_batches_tracked": np.array(3)})
    x = normal(5, 2)
    layer.forward(x)
    assert layer.state_dict()["num_batches_tracked"] == 4
    expected = x.mean(axis=0, dtype=np.float64) / 4  # a quarter of the new, three of the old, which is 0
    assert np.allclose(layer.running_mean, expected, rtol=0, atol=8 * np.finfo(backend.dtype).eps)


def test_strict_lists_everything_that_does_not_fit_and_changes_nothing(backend) -> None:
    model = network(backend)
    before = model.state_dict()
    state = {name: value + 1 for name, value in before.items()}
    del state["bn1.running_var"], state["fc.bias"]
    state["conv1.weight"] = state["conv1.weight"].transpose(2, 3, 1, 0)
    state["fc.weight"] = state["fc.weight"][:2]
    state["extra.weight"] = np.zeros(3)
    with pytest.raises(ValueError, match="the state does not fit this Sequential") as e:
        model.load_state_dict(state)
    assert str(e.value).split(": ", 1)[1].split("; ") == [
        "conv1.weight has shape (3, 2, 2, 3), expected (3, 2, 3, 2)",
        "fc.weight has shape (2, 24), expected (4, 24)",
        "missing: bn1.running_var, fc.bias",
        "unexpected: extra.weight",
    ]
    assert unchanged(model, before)


def test_not_strict_takes_what_fits_and_says_what_did_not(backend) -> None:
    model = network(backend)
    before = model.state_dict()
    state = {name: value + 1 for name, value in before.items()}
    del state["bn1.num_batches_tracked"], state["fc.bias"]
    state["extra.weight"] = np.zeros(3)
    result = model.load_state_dict(state, strict=False)
    assert result.missing_keys == ["bn1.num_batches_tracked", "fc.bias"]
    assert result.unexpected_keys == ["extra.weight"]
    after = model.state_dict()
    for name, value in after.items():
        assert np.array_equal(value, before[name] + (name not in result.missing_keys)), name


def test_not_strict_does_not_excuse_a_shape(backend) -> None:
    model = network(backend)
    before = model.state_dict()
    state = {name: value + 1 for name, value in before.items()}
    state["fc.bias"] = np.zeros(5)
    with pytest.raises(ValueError, match=r"fc.bias has shape \(5,\), expected \(4,\)$"):
        model.load_state_dict(state, strict=False)
    assert unchanged(model, before)


@pytest.mark.parametrize(
    "bad", [np.array(list("abcd")), np.zeros(4, complex), np.array([None] * 4)], ids=lambda a: a.dtype
)
def test_values_that_are_no_real_numbers_are_refused_before_anything_changes(backend, bad: np.ndarray) -> None:
    model = network(backend)
    before = model.state_dict()
    state = {name: value + 1 for name, value in before.items()} | {"fc.bias": bad}
    with pytest.raises(ValueError, match=r"fc\.bias has dtype"):
        model.load_state_dict(state)
    assert unchanged(model, before)


def test_not_strict_does_not_care_what_it_does_not_use(backend) -> None:
    layer = nn.Linear(3, 2, device=backend)
    state = {**layer.state_dict(), "note": np.array("of another kind")}
    assert layer.load_state_dict(state, strict=False).unexpected_keys == ["note"]


def test_any_real_dtype_and_order_is_taken(backend) -> None:
    model = network(backend)
    state = {name: np.round(8 * value) for name, value in model.state_dict().items()}
    for dtype in (np.float64, np.float32, np.int32, ">f4"):
        given = {name: np.array(value, dtype, order="F") for name, value in state.items()}
        assert model.load_state_dict(given) == ([], [])
        assert unchanged(model, state)


def test_a_layer_without_state_has_an_empty_one() -> None:
    assert nn.Sequential(nn.ReLU(), nn.Flatten()).state_dict() == {}
    assert nn.BatchNorm2d(3, affine=False, track_running_stats=False).state_dict() == {}
    assert nn.ReLU().load_state_dict({}) == ([], [])
    with pytest.raises(ValueError, match="the state does not fit this ReLU: unexpected: weight"):
        nn.ReLU().load_state_dict({"weight": np.zeros(1)})
