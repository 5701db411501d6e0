"""Re-estimated running statistics: those of all images together, or PyTorch's; and nothing else changes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from minidl import nn
from minidl.backends import Backend, get_backend
from minidl.nn.init import manual_seed
from minidl.training import ImageSource, reestimate


@pytest.fixture(params=["reference", "cpu", "emulator"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return get_backend(request.param)


def batches_of(rng: np.random.Generator, backend: Backend, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    """Each with a mean and a scale of its own."""
    return [
        ((1 + i) * rng.standard_normal(shape) + rng.uniform(-3, 3, shape[-1])).astype(backend.dtype)
        for i, shape in enumerate(shapes)
    ]


def rows_of(batches: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([batch.reshape(-1, batch.shape[-1]).astype(np.float64) for batch in batches])


def network(backend: Any = "cpu") -> nn.Sequential:
    manual_seed(4)
    layers = {
        "fc1": nn.Linear(5, 6),
        "bn1": nn.BatchNorm1d(6),
        "relu": nn.ReLU(),
        "fc2": nn.Linear(6, 4),
        "bn2": nn.BatchNorm1d(4),
    }
    return nn.Sequential(layers).to(backend)


SHAPES = (7, 2, 3, 4), (1, 3, 3, 4), (20, 1, 2, 4), (2, 5, 5, 4)


def test_precise_statistics_are_those_of_all_rows_together(backend, rng) -> None:
    layer = nn.BatchNorm2d(4, device=backend)
    batches = batches_of(rng, backend, *SHAPES)
    nn.reestimate_statistics(layer, batches)
    rows, unit = rows_of(batches), np.finfo(backend.dtype).eps
    # Each batch's statistics are rounded, of numbers up to 20 (variances up to 100), and the result once more.
    state = layer.state_dict()
    np.testing.assert_allclose(state["running_mean"], rows.mean(axis=0), rtol=0, atol=20 * 8 * unit)
    np.testing.assert_allclose(state["running_var"], rows.var(axis=0, ddof=1), rtol=0, atol=100 * 8 * unit)


def test_cumulative_statistics_are_means_over_batches(backend, rng) -> None:
    layer = nn.BatchNorm2d(4, device=backend)
    batches = batches_of(rng, backend, *SHAPES)
    nn.reestimate_statistics(layer, batches, method="cumulative")
    parts, unit = [rows_of([batch]) for batch in batches], np.finfo(backend.dtype).eps
    mean, var = (np.mean([part.mean(axis=0) for part in parts], axis=0), [part.var(axis=0, ddof=1) for part in parts])
    state = layer.state_dict()
    np.testing.assert_allclose(state["running_mean"], mean, rtol=0, atol=20 * 8 * unit)
    np.testing.assert_allclose(state["running_var"], np.mean(var, axis=0), rtol=0, atol=100 * 8 * unit)
    together = rows_of(batches).var(axis=0, ddof=1)
    assert (np.abs(state["running_var"] - together) > 0.01 * together).all()  # the means' own variance is missing


def test_cumulative_is_pytorchs_update_bn_through_all_layers(oracle, reference, rng, within) -> None:
    update_bn = pytest.importorskip("torch.optim.swa_utils").update_bn
    model, batches = network(reference), batches_of(rng, reference, (9, 5), (4, 5), (13, 5))
    layers = oracle.torch.nn
    twin = layers.Sequential()
    for name, layer in (
        ("fc1", layers.Linear(5, 6)),
        ("bn1", layers.BatchNorm1d(6)),
        ("relu", layers.ReLU()),
        ("fc2", layers.Linear(6, 4)),
        ("bn2", layers.BatchNorm1d(4)),
    ):
        twin.add_module(name, layer)
    oracle.load(twin, model)
    for x in batches:  # some training first, so that there is something to forget
        model.forward(x)
    update_bn([(oracle.tensor(x), None) for x in batches], twin)
    assert nn.reestimate_statistics(model, [(x, None) for x in batches], "cumulative") == ["bn1", "bn2"]
    for name, value in model.state_dict().items():
        within(value, twin.state_dict()[name].numpy(), 1e-12, name)
    assert model.bn1.num_batches_tracked == 3


def test_a_layer_sees_batch_statistics_in_the_layers_before_it(reference, rng) -> None:
    model, batches = network(reference), batches_of(rng, reference, (9, 5), (14, 5))
    nn.reestimate_statistics(model, batches)
    hidden = []
    for x in batches:
        h = x @ model.fc1.weight.value.T + model.fc1.bias.value
        h = np.maximum((h - h.mean(axis=0)) / np.sqrt(h.var(axis=0) + 1e-5), 0)
        hidden.append(h @ model.fc2.weight.value.T + model.fc2.bias.value)
    np.testing.assert_allclose(model.bn2.running_mean, rows_of(hidden).mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(model.bn2.running_var, rows_of(hidden).var(axis=0, ddof=1), atol=1e-12)


def test_the_whole_set_is_normalized_afterwards(backend, rng) -> None:
    layer = nn.BatchNorm2d(4, affine=False, eps=1e-12, device=backend)
    batches = batches_of(rng, backend, *SHAPES)
    nn.reestimate_statistics(layer, batches)
    layer.eval()
    y = rows_of([layer.forward(batch) for batch in batches])
    assert np.abs(y.mean(axis=0)).max() < 1e-5
    assert np.abs(y.var(axis=0, ddof=1) - 1).max() < 1e-5


def test_a_large_mean_does_not_hide_the_deviation(rng, cpu) -> None:
    """Mean 1e4, deviation 1e-2: of E[x²] - E[x]² not a digit would be left in float32."""
    layer = nn.BatchNorm1d(3, device=cpu)
    batches = [(1e4 + 1e-2 * rng.standard_normal((50, 3))).astype(np.float32) for _ in range(6)]
    nn.reestimate_statistics(layer, batches)
    np.testing.assert_allclose(layer.running_var, rows_of(batches).var(axis=0, ddof=1), rtol=1e-4)


def drawing(backend: Any) -> nn.Sequential:
    """With layers that are another in training: dropout, noise, ghost batches."""
    manual_seed(4)
    layers = {
        "drop": nn.Dropout(0.5),
        "noisy": nn.NoisyBatchNorm1d(4),
        "ghost": nn.GhostBatchNorm1d(4, 4, momentum=None),
        "bn": nn.BatchNorm1d(4, momentum=0.3),
    }
    return nn.Sequential(layers).to(backend)


def test_all_else_is_as_in_evaluation_and_stays_as_it_was(backend, rng, same_bits) -> None:
    model, plain = drawing(backend), nn.Sequential(*(nn.BatchNorm1d(4) for _ in range(3))).to(backend)
    model.ghost.eval()  # modes may differ from layer to layer
    batches = batches_of(rng, backend, (9, 4), (6, 4))  # 9 and 6 are no multiples of the ghost size
    assert nn.reestimate_statistics(model, iter(batches)) == ["noisy", "ghost", "bn"]
    nn.reestimate_statistics(plain, batches)
    for ours, theirs in zip((model.noisy, model.ghost, model.bn), plain, strict=True):
        for name, value in theirs.state_dict().items():
            assert same_bits(ours.state_dict()[name], value)
    assert (model.drop.calls, model.noisy.calls) == (0, 0)
    assert [layer.training for layer in model] == [True, True, False, True]
    assert model.training
    assert [layer.momentum for layer in list(model)[1:]] == [0.1, None, 0.3]
    assert all(parameter.grad is None for parameter in model.parameters())
    model.ghost.train()
    assert model.forward(batches_of(rng, backend, (8, 4))[0]).shape == (8, 4)  # training goes on
    assert model.bn.num_batches_tracked == 3


def test_training_goes_on_with_the_cumulative_mean(reference, rng) -> None:
    layer, batches = nn.BatchNorm1d(4, momentum=None, device=reference), batches_of(rng, reference, *[(9, 4)] * 3)
    nn.reestimate_statistics(layer, batches[:2], "cumulative")
    layer.forward(batches[2])
    whole = nn.BatchNorm1d(4, momentum=None, device=reference)
    for x in batches:
        whole.forward(x)
    np.testing.assert_allclose(layer.running_var, whole.running_var, rtol=1e-13)
    assert layer.num_batches_tracked == 3


def test_frozen_and_untracked_layers_go_on_as_they_are(backend, rng, same_bits) -> None:
    layers = nn.BatchNorm1d(4), nn.BatchNorm1d(4, track_running_stats=False), nn.BatchNorm1d(4)
    model = nn.Sequential(*layers).to(backend)
    model[0].load_state_dict({**model[0].state_dict(), "running_mean": np.full(4, 2.0), "running_var": np.full(4, 3.0)})
    model[0].freeze_statistics()
    before = model[0].state_dict()
    (x,) = batches_of(rng, backend, (9, 4))
    assert nn.reestimate_statistics(model, [x]) == ["2"]
    assert all(same_bits(value, before[name]) for name, value in model[0].state_dict().items())
    alone = nn.BatchNorm1d(4, track_running_stats=False, device=backend).forward(
        ((x - 2) / np.sqrt(3 + 1e-5)).astype(backend.dtype)
    )
    np.testing.assert_allclose(model[2].state_dict()["running_mean"], alone.mean(axis=0), rtol=0, atol=1e-5)


def test_fused_models_too(backend, rng, same_bits) -> None:
    states = []
    for fused in (False, True):
        model = network(backend)
        if fused:
            assert nn.fuse(model)
        nn.reestimate_statistics(model, batches_of(np.random.default_rng(0), backend, (9, 5), (4, 5)))
        states.append(model.state_dict())
    assert all(same_bits(value, states[1][name]) for name, value in states[0].items())


class BrokenError(Exception):
    """Of a source of batches."""


def breaking(batches: list[np.ndarray]) -> Iterator[np.ndarray]:
    yield from batches
    raise BrokenError


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_changed_if_the_batches_break_off(training: bool, backend, rng, same_bits) -> None:
    model, batches = network(backend).train(training), batches_of(rng, backend, (9, 5), (4, 5))
    model.bn2.train(not training)
    before = model.state_dict()

    def unchanged() -> None:
        assert all(same_bits(value, before[name]) for name, value in model.state_dict().items())
        assert [layer.training for layer in model] == [training] * 4 + [not training]
        assert model.bn1.observer is None

    with pytest.raises(BrokenError):
        nn.reestimate_statistics(model, breaking(batches))
    unchanged()
    with pytest.raises(
        ValueError, match=r"^BatchNorm1d: re-estimating statistics needs more than one value.*\(1, 6\); use"
    ):
        nn.reestimate_statistics(model, [*batches, batches[0][:1]])
    unchanged()
    for nothing in ([], [np.empty((0, 5), backend.dtype)]):
        with pytest.raises(
            ValueError, match=r"^reestimate_statistics: batches has no batch with images; give at least"
        ):
            nn.reestimate_statistics(model, nothing)
        unchanged()
    with pytest.raises(
        ValueError, match=r"^reestimate_statistics: method is 'exact', expected one of precise, cumulative"
    ):
        nn.reestimate_statistics(model, breaking([]), "exact")  # type: ignore[arg-type]


def test_where_there_is_nothing_to_estimate_no_batch_is_looked_at() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False))
    assert nn.reestimate_statistics(model, breaking([])) == []


def test_a_nan_stays_in_its_channel(cpu, rng) -> None:
    layer, batches = nn.BatchNorm1d(4, device=cpu), batches_of(rng, cpu, (9, 4), (4, 4))
    batches[0][3, 1] = np.nan
    nn.reestimate_statistics(layer, batches)
    assert np.isnan(layer.running_var).tolist() == [False, True, False, False]


def test_over_the_images_of_a_source(backend) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (25, 4, 4, 3), np.uint8), np.zeros(25, np.int64)
    source = ImageSource(images, labels, np.full(3, 100.0), np.full(3, 50.0), backend)
    layer = nn.BatchNorm2d(3, device=backend)
    model = nn.Sequential({"bn": layer, "flatten": nn.Flatten(), "bn1d": nn.BatchNorm1d(48)}).to(backend)
    assert reestimate(model, source, 8) == ["bn", "bn1d"]  # in fours, not 8, 8, 8 and 1
    assert layer.num_batches_tracked == 4
    rows = (images.reshape(-1, 3) - 100.0) / 50
    np.testing.assert_allclose(layer.state_dict()["running_mean"], rows.mean(axis=0), rtol=0, atol=1e-5)
    np.testing.assert_allclose(layer.state_dict()["running_var"], rows.var(axis=0, ddof=1), rtol=0, atol=1e-4)
