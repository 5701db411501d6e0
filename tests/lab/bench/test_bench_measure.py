"""Rows: both sides compute the same thing, and what is measured ends up where it belongs."""

import inspect
import json

import numpy as np
import pytest

from minidl import optim
from minidl.backends import get_backend
from minidl.backends.cpu import CpuBackend
from minidl.backends.emulated import EmulatorBackend
from minidl.errors import ConfigError, DeviceError
from minidl.lab.bench import MODELS, Bench, TorchPeer, open_bench, plan, run
from minidl.lab.bench import measure as measure_module
from minidl.lab.bench.clocks import Rates
from minidl.lab.bench.lists import default_shapes
from minidl.lab.bench.networks import counterpart, network
from minidl.lab.bench.operations import problem
from minidl.lab.bench.peer import apart, chosen_variants
from minidl.lab.bench.shapes import FAMILIES, shape

RATES = Rates(1e9, 1e12, "a guess")


class StandIn:
    """A clock that runs what it is given and says that it took 1 ms more each time."""

    def __init__(self) -> None:
        self.now = 0.0

    def time(self, call) -> float:
        call.prepare()
        call.run()
        self.now += 1e-3
        return self.now

    def time_steps(self, call, count) -> float:
        return self.time(call)


def bench_on(backend, peer=None) -> Bench:
    return Bench(backend, StandIn(), peer, 2, "fp32", RATES)


@pytest.fixture(scope="module")
def peer(torch) -> TorchPeer:
    return TorchPeer("cpu", 1, variants=("eager", "channels-last"))


@pytest.mark.parametrize("family", FAMILIES)
def test_both_sides_compute_the_same_thing(cpu, peer, tiny, family) -> None:
    bench = bench_on(cpu, peer)
    one = next(one for one in tiny if one.family == family)
    with peer.running():
        rows = [bench.operation(name, one) for name in one.operations]
    assert {row["problem"] for row in rows} == {""}
    for row in rows:
        has_layout = family not in ("linear", "cross_entropy", "optimizer")
        assert set(row["peers"]) == ({"eager", "channels-last"} if has_layout else {"eager"}), row["left_out"]
        assert json.loads(json.dumps(row)) == row


def test_times_ratios_and_shares(cpu, peer) -> None:
    with peer.running():
        row = bench_on(cpu, peer).operation("relu_forward", shape("relu", n=2, h=4, w=4, c=4))
    # Three sides, three warm-ups each; then 10 to 12 ms and 13 to 15 ms.
    assert row["seconds"]["median"] == pytest.approx((10e-3 + 13e-3) / 2)
    assert row["peers"]["eager"]["ratio"]["median"] == pytest.approx((11 / 10 + 14 / 13) / 2)
    assert row["bytes"] == 2 * 4 * 128
    assert row["bandwidth"] == pytest.approx(row["bytes"] / row["seconds"]["median"])
    assert row["share_of_copy"] == pytest.approx(row["bandwidth"] / 1e9)
    assert row["share_of_matrix"] == pytest.approx(128 / row["seconds"]["median"] / 1e12)
    assert row["launches"] is None


@pytest.mark.parametrize("operation", ["batchnorm_relu_forward", "batchnorm_relu_backward", "batchnorm_backward"])
def test_answers_that_differ_are_an_error_and_have_no_time(cpu, peer, monkeypatch, operation) -> None:
    name = "batchnorm_backward" if operation.endswith("backward") else "batchnorm_forward"
    right = getattr(CpuBackend, name)

    def wrong(self, *args, **options) -> None:
        given = inspect.signature(right).bind(self, *args, **options)
        given.arguments["relu"] = not given.arguments["relu"]
        right(*given.args, **given.kwargs)

    monkeypatch.setattr(CpuBackend, name, wrong)
    with peer.running():
        row = bench_on(cpu, peer).operation(operation, shape("batchnorm", n=4, h=4, w=4, c=8))
    assert row["problem"].startswith("the answers differ from PyTorch's (eager): ")
    assert "seconds" not in row


def test_a_peer_that_cannot_is_left_out_with_its_reason(cpu, peer, monkeypatch) -> None:
    def refuse(problem, variant):
        raise RuntimeError("out of luck\nand more")

    monkeypatch.setattr(peer, "call", refuse)
    row = bench_on(cpu, peer).operation("relu_forward", shape("relu", n=1, h=2, w=2, c=4))
    assert row["left_out"] == dict.fromkeys(("eager", "channels-last"), "RuntimeError: out of luck")
    assert row["peers"] == {}
    assert row["seconds"]["median"] > 0


def test_on_a_device_launches_bytes_and_choices_are_those_of_the_kernels() -> None:
    emulator = EmulatorBackend()
    before = emulator.run
    one = shape("batchnorm", n=2, h=4, w=4, c=8)
    row = bench_on(emulator).operation("batchnorm_relu_forward", one)
    assert emulator.run is before
    assert row["launches"] >= 3  # statistics in two stages or one, running estimates, normalization
    assert row["bytes"] >= 3 * 4 * 256
    vector = bench_on(emulator).operation("relu_forward", shape("relu", n=2, h=4, w=4, c=8), "vector")
    assert (vector["launches"], vector["bytes"]) == (1, 2 * 4 * 256)
    assert [choice["technique"] for choice in vector["choices"]] in ([], ["vector"])


def test_a_technique_that_cannot_take_a_shape_is_left_out(monkeypatch) -> None:
    emulator = EmulatorBackend()
    row = bench_on(emulator).operation("relu_forward", shape("relu", n=1, h=3, w=3, c=3), "scalar")
    assert row["problem"] == ""
    assert emulator.asked_for == {}

    def refuse(*args, **options) -> None:
        raise measure_module.TechniqueError("relu_forward", "vector", "of its size", "scalar")

    monkeypatch.setattr(emulator, "relu_forward", refuse)
    row = bench_on(emulator).operation("relu_forward", shape("relu", n=1, h=3, w=3, c=3), "vector")
    assert "of its size" in row["left_out"]["ours"]
    assert "seconds" not in row


@pytest.mark.parametrize("model", ["reference-cnn", "resnet-8"])
def test_training_steps_are_the_same(cpu, peer, model) -> None:
    with peer.running():
        (row,) = bench_on(cpu, peer).step(model, 4, measures_memory=False)
    assert row["problem"] == ""
    assert set(row["peers"]) == {"eager", "channels-last"}
    assert row["images_per_second"] == pytest.approx(4 / row["seconds"]["median"])


def test_a_training_step_that_differs_is_an_error(cpu, peer, monkeypatch) -> None:
    with_momentum = optim.SGD
    monkeypatch.setattr(optim, "SGD", lambda parameters, lr, momentum: with_momentum(parameters, lr))
    with peer.running():
        (row,) = bench_on(cpu, peer).step("small-cnn", 4, measures_memory=False)
    assert "the training steps differ from PyTorch's (eager)" in row["problem"]
    assert "seconds" not in row


@pytest.mark.parametrize("model", ["preact-resnet-8", "mlp-3", "inception-small", "plain-5", "small-cnn"])
def test_counterparts_give_the_same_answers(torch, peer, model) -> None:
    chosen = network(model)
    ours = chosen.build()
    theirs = counterpart(torch, ours)
    x = np.random.default_rng(0).standard_normal((3, *chosen.image_shape), dtype=np.float32)
    expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
    expected.sum().backward()  # nothing that backward needs was overwritten in place
    found = ours.forward(x)
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=2e-4)


def test_what_is_planned() -> None:
    everything = plan("cpu")
    assert {task.name for task in everything if task.shape is None} == set(MODELS) - {"resnet-18"}
    assert {task.batch for task in plan("cuda") if task.shape is None} == {128, 512}
    assert {task.name for task in everything if task.shape} == {name for names in FAMILIES.values() for name in names}
    one = plan("cpu", ("relu_forward",))
    assert {task.name for task in one} == {"relu_forward"}
    assert len(one) == sum(one.family == "relu" for one in default_shapes("cpu"))
    assert [(task.name, task.batch) for task in plan("cpu", models=["mlp-3"], batches=[7])] == [("mlp-3", 7)]
    emulator = get_backend("emulator")
    techniques = [task.technique for task in plan("cpu", ["conv2d_forward"], (), (), None, ["all"], emulator)]
    assert {"default", "direct", "implicit_gemm"} <= set(techniques)
    with pytest.raises(ConfigError, match="the list has nothing for relu"):
        plan("cpu", ("relu",), shapes=[shape("linear", n=1, c_in=1, c_out=1)])
    with pytest.raises(ConfigError, match="did you mean 'reference-cnn'"):
        plan("cpu", models=["refrence-cnn"])
    with pytest.raises(ConfigError, match="did you mean 'resnet-20'"):
        plan("cpu", models=["resnt-20"])


def test_what_there_is_no_time_for_has_no_rows(cpu) -> None:
    tasks = plan("cpu", shapes=[shape("relu", n=1, h=1, w=1, c=1)])
    assert [rows for _, rows in run(bench_on(cpu), tasks, seconds=-1)] == [[], []]


def test_a_device_that_tells_no_time() -> None:
    with pytest.raises(DeviceError, match="emulator tells no time"), open_bench(get_backend("emulator")):
        pass


def test_pytorch_has_our_threads_inside_and_its_own_afterwards(torch) -> None:
    before = torch.get_num_threads()
    with TorchPeer("cpu", before + 1).running():
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_pytorch_without_a_gpu_says_so(torch) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(DeviceError, match="finds no GPU"):
        TorchPeer("cuda", 1)


def test_peers_by_name() -> None:
    assert chosen_variants(("torch",)) == ("eager", "channels-last", "compile", "graph", "graph-channels-last")
    assert chosen_variants(("torch-compile", "torch-eager")) == ("eager", "compile")
    assert chosen_variants(()) == ()
    with pytest.raises(ConfigError, match="--peer jax: there is no such peer"):
        chosen_variants(("jax",))


def test_how_far_answers_are_apart() -> None:
    ones = np.ones(3, np.float32)
    assert apart({"y": ones}, {"y": ones * 1.0005}, 1e-3) == ""
    assert "y is up to" in apart({"y": ones}, {"y": ones * 1.01}, 1e-3)
    assert "y is up to nan" in apart({"y": ones * np.nan}, {"y": ones}, 1e-3)
    assert "y has shape (3,) here and (2,)" in apart({"y": ones}, {"y": ones[:2]}, 1e-3)


def test_no_gradient_hangs_on_a_sign_that_is_up_to_rounding() -> None:
    made = problem("batchnorm_add_relu_backward", shape("batchnorm", n=64, h=32, w=32, c=64))
    x, gamma, beta, residual, dy = (given.value for given in made.inputs.values())
    normalized = (x.astype(np.float64) - x.mean(axis=(0, 1, 2), dtype=np.float64)) / x.std(
        axis=(0, 1, 2), dtype=np.float64
    )
    near = np.abs(normalized * gamma + beta + residual) < 1e-5
    assert near.any()
    assert (dy[near] == 0).all()
    assert (dy != 0).mean() > 0.999
