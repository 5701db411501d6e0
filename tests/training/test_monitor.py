"""The monitor: its numbers against NumPy's on the same arrays, and that watching changes nothing."""

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kernels.run_emulated import EmulatorRunner
from minidl import models, nn, optim
from minidl.backends import get_backend, numbers
from minidl.backends.emulated import EmulatorBackend
from minidl.backends.reference import ReferenceBackend
from minidl.errors import ConfigError, DataError
from minidl.training import TrainConfig, begin, resume
from minidl.training.monitor import PERCENTILES, Monitor, draw, read_records
from minidl.training.monitor.measure import scale_invariant, watched
from minidl.training.monitor.record import append_record, scalars, truncate_records


class Silent:
    def note(self, text: str) -> None: ...
    def start(self, session: Any) -> None: ...
    def step(self, session: Any) -> None: ...
    def epoch(self, session: Any, row: Any) -> None: ...


@pytest.fixture
def config(stripes_file) -> TrainConfig:
    """Three epochs of six steps."""
    return TrainConfig(data=stripes_file, epochs=3, batch_size=16)


def measured(model: nn.Module, x: np.ndarray, lr: float = 0.5) -> tuple[dict[str, Any], np.ndarray]:
    """One monitored step of plain SGD on the sum of squares, and the output."""
    records: list[dict[str, Any]] = []
    monitor, sgd = Monitor(1, records.append), optim.SGD(model.parameters(), lr=lr)
    with monitor.watch(model, 7, 2, lr):
        y = model.forward(x)
        model.backward(y.copy())
        monitor.gradients(model)
        sgd.step()
    (record,) = records
    return record, y


def network() -> nn.Sequential:
    nn.manual_seed(4)
    return nn.Sequential(
        {
            "conv1": nn.Conv2d(2, 4, 3, padding=1, bias=False),
            "bn1": nn.BatchNorm2d(4),
            "relu1": nn.ReLU(),
            "block": nn.Residual(
                {"conv": nn.Conv2d(4, 4, 3, padding=1), "bn": nn.BatchNorm2d(4)}, activation=nn.ReLU()
            ),
            "pool": nn.GlobalAvgPool2d(),
            "fc": nn.Linear(4, 3),
        }
    )


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(1).normal(1, 2, (6, 5, 4, 2)).astype(np.float32)


@pytest.mark.parametrize("fused", [False, True])
def test_numbers_are_those_of_the_step(x, fused: bool) -> None:
    model, plain = network(), network()
    if fused:
        nn.fuse(model)
    model.bn1.bias.value[1] = plain.bn1.bias.value[1] = -50  # never above 0
    before = plain.state_dict()
    record, y = measured(model, x)
    assert (record["step"], record["epoch"], record["lr"]) == (7, 2, 0.5)
    conv = plain.conv1.forward(x)
    channels = conv.reshape(-1, 4).astype(np.float64)
    of_conv = record["activations"]["conv1"]
    np.testing.assert_allclose(of_conv["percentiles"], np.percentile(conv.astype(np.float64), PERCENTILES), rtol=1e-12)
    assert of_conv["std"] == pytest.approx(conv.astype(np.float64).std())
    assert of_conv["dead"] is None
    assert record["activations"]["bn1+relu1" if fused else "relu1"]["dead"] == 0.25
    assert record["activations"]["fc"]["mean"] == pytest.approx(y.astype(np.float64).mean())
    shift = record["statistics"]["bn1+relu1" if fused else "bn1"]
    distance = channels.mean(axis=0) / np.sqrt(1 + 1e-5)  # running mean 0, variance 1
    assert shift["mean_shift"] == pytest.approx(np.sqrt((distance**2).mean()), rel=1e-5)
    ratio = np.exp(np.log((channels.var(axis=0) + 1e-5) / (1 + 1e-5)).mean())
    assert shift["variance_ratio"] == pytest.approx(ratio, rel=1e-5)
    assert record["affine"]["bn1"]["beta"][0] < -49
    weight = record["weights"]["conv1.weight"]
    assert weight["norm"] == pytest.approx(np.linalg.norm(before["conv1.weight"].astype(np.float64)))
    change = np.linalg.norm(model.state_dict()["conv1.weight"] - before["conv1.weight"])
    assert weight["update_ratio"] == pytest.approx(change / weight["norm"], rel=1e-5)
    assert weight["gradient_norm"] == pytest.approx(change / 0.5, rel=1e-3)
    assert weight["effective_lr"] == pytest.approx(0.5 / weight["norm"] ** 2)
    assert record["weights"]["fc.weight"]["effective_lr"] is None


@pytest.mark.parametrize("fused", [False, True])
def test_every_layer_that_runs_is_named_once(x, fused: bool) -> None:
    model = network()
    if fused:
        nn.fuse(model)
    record, _ = measured(model, x)
    names = [name for name, *_ in watched(model)]
    assert len(set(names)) == len(names)
    assert sorted(record["activations"]) == sorted(names)
    expected = {"conv1", "bn1+relu1", "block.conv", "block.bn+sum+activation", "pool", "fc"}
    separate = {"conv1", "bn1", "relu1", "block.conv", "block.bn", "block.activation", "pool", "fc"}
    assert set(names) == (expected if fused else separate)
    assert set(record["statistics"]) == ({"bn1+relu1", "block.bn+sum+activation"} if fused else {"bn1", "block.bn"})


class Apart(ReferenceBackend):
    """Without fused convolutions: it runs layer by layer what the reference runs in chains."""

    def fuses_normalization(self, c_in: int, c_out: int) -> bool:
        return False

    def fuses_pooling(self) -> bool:
        return False


def in_chains() -> nn.Sequential:
    nn.manual_seed(4)
    return nn.Sequential(
        {
            "conv1": nn.Conv2d(2, 4, 3, padding=1, bias=False),
            "bn1": nn.BatchNorm2d(4),
            "relu1": nn.ReLU(),
            "conv2": nn.Conv2d(4, 4, 3, bias=False),
            "bn2": nn.BatchNorm2d(4, momentum=None),
            "block": nn.Residual(
                {"conv": nn.Conv2d(4, 4, 3, padding=1, bias=False), "bn": nn.BatchNorm2d(4)}, activation=nn.ReLU()
            ),
            "pool": nn.GlobalAvgPool2d(),
            "fc": nn.Linear(4, 3),
        }
    )


@pytest.mark.parametrize("frozen", [False, True])
def test_a_chain_of_convolutions_is_seen_layer_by_layer(x, frozen: bool) -> None:
    """Its raw outputs, and its activations, which nobody stores; and the running statistics of before the step."""
    records = []
    for backend in (get_backend("reference"), Apart()):
        model = in_chains().to(backend)
        assert len(nn.fuse(model)) == 2
        measured(model, x.astype(np.float64))  # so that the running statistics are no longer those of the start
        if frozen:
            nn.freeze_batchnorm(model)
        names = [name for name, *_ in watched(model)]
        expected = {"conv1", "bn1+relu1", "conv2", "bn2", "block.conv", "block.bn+sum+activation", "pool", "fc"}
        assert set(names) == expected
        assert len(names) == len(expected)
        records.append(measured(model, 2 * x.astype(np.float64))[0])
        assert not any("forward" in vars(layer) for _, layer, _, _ in watched(model))
    chained, apart = records
    for part in ("activations", "statistics", "weights"):
        assert sorted(chained[part]) == sorted(apart[part])
        for name, values in apart[part].items():
            for key, value in values.items():
                right = value if value is None else pytest.approx(value, rel=1e-9, abs=1e-12)
                assert chained[part][name][key] == right, (part, name, key)
    assert set(apart["statistics"]) == {"bn1+relu1", "bn2", "block.bn+sum+activation"}


def test_a_pool_that_ends_a_chain_is_seen_as_itself(x) -> None:
    """And so is the activation that it reads, which nobody stores."""
    records = []
    for backend in (get_backend("reference"), Apart()):
        nn.manual_seed(4)
        layers = nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.GlobalAvgPool2d()
        model = nn.Sequential(*layers, nn.Linear(4, 3)).to(backend)
        nn.fuse(model)
        names = [name for name, *_ in watched(model)]
        assert sorted(names) == ["0", "1+2", "3", "4", "5"]
        records.append(measured(model, x.astype(np.float64))[0])
    chained, apart = records
    for name, values in apart["activations"].items():
        for key, value in values.items():
            right = value if value is None else pytest.approx(value, rel=1e-9, abs=1e-12)
            assert chained["activations"][name][key] == right, (name, key)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_activations_in_16_bits_are_read_as_numbers(precision: str) -> None:
    """Those of a chain too, which are worked out for it; and watching changes no bit of such a step."""
    device = EmulatorBackend(EmulatorRunner(checks=False), precision)
    x = np.random.default_rng(3).normal(1, 2, (3, 6, 6, 8)).astype(np.float32)
    records, states = [], []
    for backend in (get_backend("reference"), device, device):
        nn.manual_seed(4)
        layers = *(nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()), nn.Conv2d(8, 8, 1, bias=False)
        model = nn.Sequential(*layers, nn.BatchNorm2d(8), nn.ReLU()).to(backend)
        assert nn.fuse(model) == ["0 + 1 + 2 + 3 + 4 + 5"]
        model[0].input_gradient = False
        images = backend.array(x)
        if len(records) < 2:
            with Monitor(1, records.append).watch(model, 0, 0, 0.1):
                y = model.forward(images)
                model.backward(y)
        else:
            y = model.forward(images)
            model.backward(y)
        states.append((model.state_dict(), numbers(backend, y), [p.grad for p in model.parameters()]))
    right, got = (record["activations"] for record in records)
    assert list(got) == list(right) == ["0", "1+2", "3", "4+5"]
    for name, expected in right.items():
        # Of numbers of size 1: a layer, its normalization and the one behind it lose 2^-8 or 2^-11 of each a few times.
        off = 2.0**-4 if precision == "bf16" else 2.0**-7
        np.testing.assert_allclose(got[name]["percentiles"], expected["percentiles"], atol=off * expected["std"])
        assert abs(got[name]["mean"] - expected["mean"]) < off * expected["std"]
        assert abs(got[name]["std"] - expected["std"]) < off * expected["std"]
    sample = numbers(device, y).astype(np.float64)
    np.testing.assert_array_equal(got["4+5"]["percentiles"], np.percentile(sample, PERCENTILES))
    watched_step, plain = states[1], states[2]
    assert all(np.array_equal(watched_step[0][name], value) for name, value in plain[0].items())
    assert all(np.array_equal(a, b) for a, b in zip(watched_step[2], plain[2], strict=True))
    assert watched_step[1].dtype == np.float32
    np.testing.assert_allclose(watched_step[1], states[0][1], atol=off * 4)


def test_watching_leaves_no_trace(x) -> None:
    model, other = network(), network()
    nn.fuse(model)
    nn.fuse(other)
    measured(model, x)
    sgd = optim.SGD(other.parameters(), lr=0.5)
    y = other.forward(x)
    other.backward(y.copy())
    sgd.step()
    states = model.state_dict(), other.state_dict()
    assert all(np.array_equal(states[0][name], states[1][name]) for name in states[1])
    assert not any("forward" in vars(layer) for _, layer, _, _ in watched(model))


def test_weights_before_normalization_are_scale_invariant() -> None:
    assert scale_invariant(network()) == {"conv1.weight", "block.conv.weight"}
    resnet = models.build("resnet-8", (8, 8, 1), 10)
    convolutions = {f"{name}.weight" for name, layer in resnet.named_modules() if isinstance(layer, nn.Conv2d)}
    assert scale_invariant(resnet) == convolutions
    assert scale_invariant(models.build("small-cnn", (8, 8, 1), 10, "none")) == set()
    after = scale_invariant(models.build("small-cnn", (8, 8, 1), 10, "batch-after"))
    assert after == {f"conv{i}.weight" for i in (1, 2, 3, 4)}
    biased = nn.Sequential(nn.Linear(4, 4), nn.GroupNorm(2, 4), nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4))
    assert scale_invariant(biased) == set()


def test_a_sample_has_all_channels() -> None:
    """65,536 elements of 2^20: a stride of 16 would see one channel of 16."""
    y = np.zeros((64, 32, 32, 16), np.float32)
    y[..., 3] = 1
    model = nn.Sequential(nn.ReLU(), nn.Scale(1.0))
    record, _ = measured(model, y)
    assert record["activations"]["0"]["mean"] == pytest.approx(1 / 16, rel=0.01)
    assert record["activations"]["0"]["dead"] == 15 / 16


# In a run


def test_a_monitored_run_has_the_bits_of_one_that_is_not(config, tmp_path) -> None:
    runs = [begin(replace(config, monitor=every), tmp_path, Silent()) for every in (None, 4)]
    for session in runs:
        session.train(Silent())
    plain, monitored = (session.trainer.tensors() for session in runs)
    assert all(np.array_equal(plain[name], monitored[name]) for name in plain)
    assert [r["step"] for r in read_records(runs[1].run.monitor)] == [0, 4, 8, 12, 16]
    assert not runs[0].run.monitor.exists()


def test_a_resumed_run_measures_again_what_it_makes_again(config, tmp_path) -> None:
    whole = begin(replace(config, monitor=2), tmp_path / "a", Silent())
    whole.train(Silent())
    half = begin(replace(config, monitor=2, max_steps=9), tmp_path / "b", Silent())
    half.train(Silent())
    append_record(half.run.monitor, {**read_records(half.run.monitor)[0], "step": 10})  # as a killed run leaves it
    resume(half.run.path, {}, Silent()).train(Silent())
    assert read_records(half.run.monitor) == read_records(whole.run.monitor)


def test_monitoring_can_begin_on_resumption(config, tmp_path) -> None:
    session = begin(replace(config, max_steps=5), tmp_path, Silent())
    session.train(Silent())
    resume(session.run.path, {"monitor": 5}, Silent()).train(Silent())
    assert [record["step"] for record in read_records(session.run.monitor)] == [5, 10, 15]


def test_event_files_hold_the_records_and_the_epochs(config, tmp_path) -> None:
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    from tensorboardX.proto.event_pb2 import Event

    from minidl.training.monitor import events

    session = begin(replace(config, monitor=6, tensorboard=True), tmp_path, Silent())
    session.train(Silent())
    (file,) = (session.run.path / "events").iterdir()
    data, at, seen = file.read_bytes(), 0, {}
    while at < len(data):  # TFRecord: length, its CRC, the message, its CRC
        length = int.from_bytes(data[at : at + 8], "little")
        event = Event.FromString(data[at + 12 : at + 12 + length])
        seen |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        at += 16 + length
    for record in read_records(session.run.monitor):
        for name, value in scalars(record):
            assert seen[events.tag(name), record["step"]] == pytest.approx(value, rel=1e-6)
    rows = session.run.read_metrics()
    assert seen["epoch/test_accuracy", rows[-1]["step"]] == pytest.approx(rows[-1]["test_accuracy"])


def test_tensorboard_without_the_package_is_one_line_and_no_folder(config, tmp_path, monkeypatch) -> None:
    from minidl.training.monitor import events

    monkeypatch.setattr(events.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"tensorboardX is not installed; run .*tensorboard"):
        begin(replace(config, tensorboard=True), tmp_path / "runs", Silent())
    assert not (tmp_path / "runs").exists()


# The file and the picture

RECORD = {
    "step": 0,
    "epoch": 0,
    "lr": 0.1,
    "activations": {"a$b<": {"percentiles": [0.0, 1.0, 2.0, 3.0, None], "mean": 1.0, "std": 1.0, "dead": 0.0}},
    "statistics": {},
    "affine": {"bn": {"gamma": [1.0, 1.0, 1.0]}},
    "weights": {"w": {"norm": 0.0, "gradient_norm": None, "update_ratio": None, "effective_lr": None}},
}


def test_what_is_not_finite_stands_as_null(tmp_path) -> None:
    append_record(tmp_path / "m", {**RECORD, "lr": float("nan")})
    assert json.loads((tmp_path / "m").read_text())["lr"] is None


def test_a_line_that_was_not_finished_is_left_out_and_dropped(tmp_path) -> None:
    path = tmp_path / "m"
    append_record(path, RECORD)
    with path.open("ab") as file:
        file.write(b'{"step": 5, "epo')
    assert read_records(path) == [RECORD]
    truncate_records(path, 1)
    append_record(path, {**RECORD, "step": 1})
    assert [record["step"] for record in read_records(path)] == [0, 1]


NEAR = [
    {**RECORD, "step": True},
    {**RECORD, "activations": {"a": 5}},
    {**RECORD, "activations": {"a": {"percentiles": [1, 2], "mean": 1, "std": 1, "dead": 0}}},
    {**RECORD, "weights": {"w": {"norm": "x", "gradient_norm": None, "update_ratio": None, "effective_lr": None}}},
    {**RECORD, "statistics": {"b": {}}},
    {**RECORD, "affine": {"b": {"gamma": 3}}},
]


@pytest.mark.parametrize("line", ["[]", "{}", "3", '{"step": "0"}', "\xff", *map(json.dumps, NEAR)])
def test_a_damaged_line_is_named(tmp_path, line: str) -> None:
    path = tmp_path / "m"
    append_record(path, RECORD)
    with path.open("ab") as file:
        file.write(line.encode("latin-1") + b"\n")
    with pytest.raises(DataError, match="m: line 2 is not a record of the monitor"):
        read_records(path)


@pytest.mark.parametrize("count", [1, 3])
def test_any_record_can_be_drawn(tmp_path, count: int) -> None:
    draw([{**RECORD, "step": step} for step in range(count)], tmp_path / "m.svg", "a $title$ & <more>")
    text = "".join(ET.parse(tmp_path / "m.svg").getroot().itertext())
    assert "a $title$ & <more>" in text
    assert "a$b<" in text


def test_every_is_at_least_one() -> None:
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        Monitor(0, print)
