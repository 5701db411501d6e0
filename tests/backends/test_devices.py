"""Devices by name, what is said about one that cannot be used, and host memory."""

import pickle

import numpy as np
import pytest

from minidl import backends, nn
from minidl.backends import choose, get_backend, gpu, in_precision
from minidl.errors import ConfigError, DeviceError


def test_a_device_is_the_same_object_every_time() -> None:
    for name in ("cpu", "emulator", "reference"):
        assert get_backend(name) is get_backend(name)
    assert get_backend("emulator", 3) is get_backend("emulator")  # threads are the CPU's
    assert get_backend("cpu", 2) is get_backend("cpu", 2)
    assert get_backend("cpu", 2) is not get_backend("cpu", 3)


def test_devices_describe_themselves() -> None:
    assert get_backend("cpu", 1).describe() == "cpu, 1 thread"
    assert get_backend("cpu", 3).describe() == "cpu, 3 threads"
    assert get_backend("reference").describe() == "reference, NumPy float64"
    assert get_backend("emulator").describe() == "emulator, the GPU's kernels without a GPU"
    assert (get_backend("emulator").name, get_backend("emulator").dtype) == ("emulator", np.float32)
    assert (get_backend("cpu").name, get_backend("cpu").dtype) == ("cpu", np.float32)
    assert (get_backend("reference").name, get_backend("reference").dtype) == ("reference", np.float64)


def test_a_precision_belongs_to_the_device() -> None:
    own = [get_backend(name).precision for name in ("cpu", "reference", "emulator")]
    assert own == ["winograd", "fp32", "fp32"]
    tf32 = get_backend("emulator", precision="tf32")
    assert tf32.precision == "tf32"
    assert tf32.describe() == "emulator, the GPU's kernels without a GPU, in TF32"
    assert get_backend("emulator", precision="fp32") is get_backend("emulator") is not tf32
    assert pickle.loads(pickle.dumps(tf32)) is tf32
    assert get_backend("cpu", 2, "winograd") is get_backend("cpu", 2) is not get_backend("cpu", 2, "fp32")
    exact = get_backend("cpu", 2, "fp32")
    assert (exact.describe(), get_backend("cpu", 2).describe()) == ("cpu, 2 threads, in FP32", "cpu, 2 threads")
    assert pickle.loads(pickle.dumps(exact)) is exact
    assert get_backend("emulator", precision="bf16").describe().endswith(", in BF16")


@pytest.mark.parametrize(("name", "has"), [("cpu", "winograd, fp32"), ("reference", "fp32")])
def test_a_precision_that_a_device_has_not_is_refused(monkeypatch, name: str, has: str) -> None:
    there = "; device cuda and device emulator have it"
    with pytest.raises(ConfigError, match=f"^--precision tf32: device {name} computes in {has} only{there}$"):
        get_backend(name, precision="tf32")
    with pytest.raises(
        ConfigError, match=r"^--precision fp8: device emulator computes in fp32, tf32, bf16, fp16 only$"
    ):
        get_backend("emulator", precision="fp8")
    monkeypatch.setattr(backends, "why_no_cuda", lambda: "there is none")
    with pytest.raises(ConfigError, match=r"^--precision tf32: device cpu computes in winograd, fp32 only"):
        choose("auto", precision="tf32")


def test_how_activations_are_stored() -> None:
    kept = {"fp32": np.float32, "tf32": np.float32, "bf16": np.uint16, "fp16": np.float16}
    for precision, dtype in kept.items():
        backend = get_backend("emulator", precision=precision)
        assert backend.activations == dtype
        assert backend.dtype == np.float32
        with in_precision(backend, "fp32"):
            assert backend.activations == np.float32
    assert get_backend("cpu").activations == np.float32
    assert get_backend("reference").activations == np.float64


def test_a_precision_for_a_while() -> None:
    backend = get_backend("emulator", precision="tf32")
    with in_precision(backend, "fp32"):
        assert backend.precision == "fp32"
    with pytest.raises(ZeroDivisionError), in_precision(backend, "fp32"):
        raise ZeroDivisionError
    assert backend.precision == "tf32"
    with in_precision(get_backend("cpu"), "fp32"):
        pass


@pytest.mark.parametrize("name", ["gpu", "CPU", "auto", ""])
def test_an_unknown_device_gets_the_known_ones(name: str) -> None:
    with pytest.raises(
        DeviceError, match=f"^there is no device '{name}'; known devices: cpu, cuda, emulator, reference$"
    ):
        get_backend(name)
    with pytest.raises(DeviceError, match="there is no device"):
        nn.ReLU(device=name)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (gpu.Lack("there is no GPU", ""), "there is no GPU; use --device cpu"),
        (gpu.Lack("CuPy is missing", "install it"), "CuPy is missing: install it; use --device cpu"),
    ],
)
def test_a_gpu_that_cannot_be_used_gets_the_reason_and_the_remedy(monkeypatch, found: gpu.Lack, reason: str) -> None:
    monkeypatch.setattr(gpu, "lack", lambda: found)
    with pytest.raises(DeviceError, match=f"^device cuda cannot be used: {reason}") as e:
        get_backend("cuda")
    assert "\n" not in str(e.value)
    assert e.value.exit_code == 2


def test_a_device_that_is_refused_leaves_the_model_where_it_is(monkeypatch) -> None:
    monkeypatch.setattr(backends, "why_no_cuda", lambda: "there is no GPU")
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    with pytest.raises(DeviceError, match="device cuda cannot be used: there is no GPU"):
        model.to("cuda")
    assert all(module.backend is get_backend("cpu") for _, module in model.named_modules())
    assert model.forward(np.ones((2, 2), np.float32)).dtype == np.float32


def test_choosing_says_why(monkeypatch) -> None:
    monkeypatch.setattr(backends, "why_no_cuda", lambda: "there is none")
    assert choose("auto") == (get_backend("cpu"), "there is none")
    assert choose("cpu", 2) == (get_backend("cpu", 2), "asked for")
    with pytest.raises(DeviceError, match="device cuda cannot be used: there is none; use --device cpu"):
        choose("cuda")


@pytest.mark.parametrize("error", [ImportError("no module named cupy"), RuntimeError("no kernel can be launched")])
def test_a_gpu_that_fails_at_its_start_is_refused_and_auto_says_so(monkeypatch, error: Exception) -> None:
    def start(precision: str) -> None:
        raise error

    monkeypatch.setattr(gpu, "lack", lambda: None)
    monkeypatch.setattr("minidl.backends.cuda.CudaBackend", start)
    with pytest.raises(DeviceError, match=f"^device cuda cannot be used: {error}; use --device cpu"):
        choose("cuda")
    chosen = choose("auto", 2)
    assert chosen.backend is get_backend("cpu", 2)
    assert str(error) in chosen.why


def test_auto_takes_a_gpu_that_can_be_used(monkeypatch) -> None:
    there = object()
    monkeypatch.setattr(gpu, "lack", lambda: None)
    monkeypatch.setattr(backends, "_created", {})
    asked = []
    monkeypatch.setattr("minidl.backends.cuda.CudaBackend", lambda precision: asked.append(precision) or there)
    assert choose("auto", 2) == (there, "the GPU that is here")
    assert choose("cuda") == (there, "asked for")
    assert choose("auto", precision="fp32").backend is there
    assert asked == ["tf32", "fp32"]


def test_a_number_of_threads_that_cannot_be_is_refused() -> None:
    with pytest.raises((DeviceError, ValueError), match="-1"):
        get_backend("cpu", -1)


@pytest.mark.parametrize("name", ["cpu", "emulator", "reference"])
def test_memory_of_a_host_device(name: str) -> None:
    backend = get_backend(name)
    assert backend.empty((2, 3)).dtype == backend.dtype
    assert backend.empty((2,), np.int64).dtype == np.int64
    dirty = backend.empty((500,))
    dirty[...] = np.nan
    del dirty
    assert not backend.zeros((500,)).any()

    host = np.arange(6, dtype=np.int64).reshape(2, 3).T
    array = backend.array(host)
    assert (array.dtype, array.flags.c_contiguous) == (backend.dtype, True)
    assert np.array_equal(array, host)
    assert not np.shares_memory(backend.array(array), array)
    assert not np.shares_memory(backend.numpy(array), array)
    target = backend.empty((3, 2))
    backend.copy(array, target)
    assert np.array_equal(target, host)

    assert backend.accept(array, "x") is array
    assert np.array_equal(backend.accept(array.T, "x"), host.T)
    assert backend.accept(array.T, "x").flags.c_contiguous
    with pytest.raises(TypeError, match=r"^labels has dtype int32, expected int64; convert it with \.astype"):
        backend.accept(np.zeros(3, np.int32), "labels", np.int64)
    with pytest.raises(TypeError, match=r"^x is a builtins.float, expected a numpy.ndarray"):
        backend.accept(1.0, "x")
