"""Models, optimizers and parameters can be copied and pickled; what they compute on is not copied with them."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minidl import models, nn, optim
from minidl.backends import get_backend
from minidl.backends.cpu import CpuBackend

REPOSITORY = Path(__file__).resolve().parents[2]
X = np.random.default_rng(0).standard_normal((4, 8, 8, 1)).astype(np.float32)


def trained(device: str = "cpu"):
    model = models.build("small-cnn", (8, 8, 1), 3).to(device)
    loss = nn.CrossEntropyLoss(device=device)
    sgd = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step(model, loss, sgd)
    return model, loss, sgd


def step(model, loss, sgd) -> None:
    backend = model.backend
    x, targets = backend.array(X), backend.array(np.array([0, 1, 2, 0]), np.int64)
    sgd.zero_grad()
    loss.forward(model.forward(x), targets)
    model.backward(loss.backward())
    sgd.step()


@pytest.mark.parametrize("name", ["cpu", "emulator", "reference"])
def test_a_backend_is_the_same_object_in_every_copy(name: str) -> None:
    backend = get_backend(name)
    assert copy.copy(backend) is backend
    assert copy.deepcopy(backend) is backend
    assert pickle.loads(pickle.dumps(backend)) is backend


def test_a_number_of_threads_is_kept() -> None:
    assert pickle.loads(pickle.dumps(get_backend("cpu", 2))) is get_backend("cpu", 2)
    own = CpuBackend(2)
    assert copy.deepcopy(own) is own


@pytest.mark.parametrize("way", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
def test_a_copied_model_goes_on_like_its_original_and_shares_nothing(way, same_bits) -> None:
    model, loss, sgd = trained()
    other, other_loss, other_sgd = way((model, loss, sgd))
    assert other.backend is model.backend
    before = model.state_dict()
    step(other, other_loss, other_sgd)
    for name, value in model.state_dict().items():
        assert same_bits(value, before[name]), name
    step(model, loss, sgd)
    after = other.state_dict()
    for name, value in model.state_dict().items():
        assert same_bits(value, after[name]), name
    assert any(not same_bits(before[name], value) for name, value in after.items())


def test_a_pickled_parameter_is_read_by_another_process(tmp_path) -> None:
    parameter = nn.Linear(2, 3).weight
    (tmp_path / "parameter").write_bytes(pickle.dumps(parameter))
    code = (
        "import pickle, sys; p = pickle.load(open(sys.argv[1], 'rb')); print(p.backend.name, p.value.tolist(), p.decay)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "parameter"],
        capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.stdout == f"cpu {parameter.value.tolist()} True\n", done.stderr
