"""The kernels as a backend, in the emulator: each operation arrives at its kernels with its arguments in order."""

import contextlib
import re
from typing import Any

import numpy as np
import pytest

from kernels.errors import ShapeError, TechniqueError
from kernels.run_emulated import EmulatorRunner
from minidl.backends import Backend, device, get_backend
from minidl.backends.emulated import EmulatorBackend
from minidl.errors import ConfigError
from minidl.lab.operations import Row, cases, check_operation, operations


def small_case(operation: str) -> str:
    """An ordinary one that is neither empty nor of one element."""
    ordinary = [case for case in cases(operation) if not re.search(r"(?<!\d)0x|/x?1x1|batch-0", case)]
    return ordinary[min(1, len(ordinary) - 1)] if operation not in ("sgd", "adam") else ordinary[1]


def check_first_that_fits(backend: EmulatorBackend, operation: str, technique: str | None) -> list[Row]:
    """The rows of a small case that the technique takes."""
    for case in (small_case(operation), *cases(operation)):
        with contextlib.suppress(TechniqueError):
            rows = check_operation(backend, operation, case, variant=technique or "default")
            if backend.run.launched:
                return rows
    raise AssertionError(f"{operation} by {technique} takes no case")


class Elsewhere:
    """An array of another library."""

    def __init__(self, host: np.ndarray) -> None:
        self.shape, self.size, self.dtype, self.flags = host.shape, host.size, host.dtype, host.flags


@pytest.fixture
def backend() -> EmulatorBackend:
    return EmulatorBackend(EmulatorRunner(counts=True))


def launched(backend: EmulatorBackend) -> list[str]:
    names = [one.kernel.name for one in backend.run.launched]
    backend.run.launched.clear()
    return names


@pytest.mark.parametrize("operation", operations())
def test_every_operation_by_every_technique(backend, operation: str) -> None:
    for technique in backend.techniques(operation) or (None,):
        backend.use(operation, technique)
        rows = check_first_that_fits(backend, operation, technique)
        assert rows
        assert not [f"{technique}: {row}" for row in rows if not row.passed]
        assert launched(backend)


def test_every_operation_has_its_kernels() -> None:
    methods = {name for name, value in vars(Backend).items() if callable(value) and not name.startswith("_")}
    memory = {"empty", "zeros", "array", "numpy", "copy", "accept", "describe"}
    for name in methods - memory:
        assert name in vars(EmulatorBackend.__mro__[1]), name


def test_a_technique_that_is_chosen_is_taken(backend) -> None:
    x, y = backend.zeros((8,)), backend.empty((8,))
    assert backend.techniques("relu_forward") == ("scalar", "vector")
    for technique in ("scalar", "vector"):
        backend.use("relu_forward", technique)
        backend.relu_forward(x, y)
        assert launched(backend) == [f"relu_forward_{technique}"]
    backend.use("relu_forward", "scalar")
    backend.use("relu_forward", None)
    backend.relu_forward(x[:4], y[:4])
    assert backend.run.launched[0].kernel.name in ("relu_forward_scalar", "relu_forward_vector")


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_products_are_asked_for_in_the_backends_precision(monkeypatch, precision: str) -> None:
    backend, asked = EmulatorBackend(precision=precision), {}

    def host(run, *arguments, precision):
        asked[len(asked)] = precision

    names = ("conv2d_forward", "conv2d_backward_input", "conv2d_backward_weight")
    for name in names:
        monkeypatch.setattr(device.conv, name, host)
    for name in ("linear_forward", "linear_backward_input", "linear_backward_weight"):
        monkeypatch.setattr(device.linear, name, host)
    x = backend.zeros((1, 4))
    backend.conv2d_forward(x, x, None, x, (1, 1), (0, 0))
    backend.conv2d_backward_input(x, x, x, (1, 1), (0, 0))
    backend.conv2d_backward_weight(x, x, x, (1, 1), (0, 0))
    backend.linear_forward(x, x, None, x)
    backend.linear_backward_input(x, x, x)
    backend.linear_backward_weight(x, x, x)
    assert list(asked.values()) == [precision] * 6


def test_tensor_cores_are_taken_where_the_precision_says_so() -> None:
    x, w, y = (np.ones(shape, np.float32) for shape in ((1, 4, 4, 8), (3, 3, 8, 8), (1, 4, 4, 8)))
    for precision, technique in (("fp32", "implicit_gemm"), ("tf32", "tensor_core")):
        backend = EmulatorBackend(EmulatorRunner(counts=True), precision)
        backend.conv2d_forward(x, w, None, y, (1, 1), (1, 1))
        assert backend.run.launched[0].kernel.name == f"conv2d_forward_{technique}"
        backend.use("conv2d_forward", "direct")
        backend.conv2d_forward(x, w, None, y, (1, 1), (1, 1))
        assert backend.run.launched[-1].kernel.name == "conv2d_forward_direct"


def test_a_technique_that_cannot_take_the_arrays_is_an_error_and_not_another(backend) -> None:
    x, y = backend.zeros((9,))[1:], backend.empty((8,))
    backend.use("relu_forward", "vector")
    with pytest.raises(TechniqueError, match="relu_forward cannot be computed by technique 'vector': x starts at no"):
        backend.relu_forward(x, y)
    assert not launched(backend)
    backend.use("relu_forward", None)
    backend.relu_forward(x, y)
    assert launched(backend) == ["relu_forward_scalar"]


def test_a_technique_that_is_not_there_is_refused(backend) -> None:
    with pytest.raises(ConfigError, match=r"^add has no technique 'tiled'; its techniques are scalar, vector$"):
        backend.use("add", "tiled")
    with pytest.raises(ConfigError, match=r"^gather_labels has no technique 'tiled'; it has no techniques to choose"):
        backend.use("gather_labels", "tiled")
    assert backend.techniques("batchnorm_layer") == backend.techniques("no such operation") == ()


def test_fresh_memory_is_full_of_what_nobody_may_read(backend) -> None:
    assert np.isnan(backend.empty((3, 2))).all()
    assert (backend.empty((5,), np.int64) == -1).all()
    assert backend.empty(()).shape == ()


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (TypeError, "b has dtype float64, expected float32", lambda b: b.astype(np.float64)),
        (ValueError, "b of shape (4,) is not C-contiguous", lambda b: np.repeat(b, 2)[::2]),
        (TypeError, "b is a test_device_backend.Elsewhere, expected a numpy.ndarray on this device", Elsewhere),
        (ShapeError, "add: b has shape (3,), expected (4,) as a has", lambda b: b[:3]),
    ],
)
def test_bad_input_is_refused_before_anything_is_launched(backend, error, message: str, change: Any) -> None:
    a = np.ones(4, np.float32)
    backend.use("add", "scalar")
    with pytest.raises(error, match=re.escape(message)):
        backend.add(a, change(a), a)
    assert launched(backend) == []
    assert (a == 1).all()


def test_the_loss_looks_at_its_targets_unless_told_not_to(backend) -> None:
    logits, targets = backend.zeros((3, 4)), np.array([0, 4, 1])
    loss, dlogits = backend.empty(()), backend.empty((3, 4))
    with pytest.raises(IndexError, match="target 4 in row 1 is not one of the 4 classes"):
        backend.cross_entropy(logits, targets, loss, dlogits, 0.0, -100, "mean")
    backend.checks_targets = False
    backend.cross_entropy(logits, targets, loss, dlogits, 0.0, -100, "mean")
    assert np.isnan(loss)


def test_what_get_backend_makes_checks_every_access() -> None:
    assert get_backend("emulator").run.checks is True
