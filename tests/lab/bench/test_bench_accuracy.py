"""Batch normalization's errors, beside PyTorch's; and the memory of a step."""

import sys

import pytest

from minidl.backends import get_backend
from minidl.lab.bench import TorchPeer, batchnorm_accuracy, memory


def test_errors_are_small_and_hostile_input_shows_where_pytorch_loses(torch, cpu) -> None:
    rows = {row["family"]: row for row in batchnorm_accuracy(cpu, TorchPeer("cpu", 1), images=4)}
    assert "nan" not in rows
    for row in rows.values():
        assert set(row["errors"]) == {"y", "var", "dx"}
        assert all(of["ours"] is not None and of["ours"] < 2e-5 for of in row["errors"].values()), row
    hostile = rows["mean-1e4-std-1e-2"]
    assert hostile["smaller"]
    assert min(hostile["errors"]["y"]["eager"], hostile["errors"]["y"]["channels-last"]) > 1e-4


def test_without_a_peer_there_is_nothing_to_be_smaller_than(cpu) -> None:
    rows = batchnorm_accuracy(cpu, None, images=2)
    assert all(row["smaller"] and set(row["errors"]["y"]) == {"ours"} for row in rows)


def test_the_reference_has_no_error() -> None:
    rows = batchnorm_accuracy(get_backend("reference"), None, images=2)
    assert all(of["ours"] == 0 for row in rows for name, of in row["errors"].items() if name != "var")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a process's peak")
def test_the_memory_of_a_step_grows_with_its_batch() -> None:
    found = memory.peak_of("ours", "mlp-3", 4096, 1)
    assert found is not None
    assert 4096 * 28 * 28 * 4 < found["step"] < found["peak"]
    assert memory.peak_of("ours", "no-such-model", 2, 1) is None
