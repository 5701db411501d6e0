"""PyTorch state dicts as safetensors: the file that PyTorch's side writes, both ways, and what is refused."""

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from minidl import models, nn
from minidl.errors import InteropError
from minidl.interop import load_torch, save_torch
from minidl.training import checkpoint

SHAPE, CLASSES = (4, 4, 3), 10


@pytest.fixture(scope="module")
def resnet18(torch):
    """torchvision's ResNet18, with a 3x3 stem and no pooling behind it for small images, as is usual for CIFAR."""

    class BasicBlock(torch.nn.Module):
        def __init__(self, c_in: int, c_out: int, stride: int) -> None:
            super().__init__()
            self.conv1 = torch.nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
            self.bn1 = torch.nn.BatchNorm2d(c_out)
            self.relu = torch.nn.ReLU(inplace=True)
            self.conv2 = torch.nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
            self.bn2 = torch.nn.BatchNorm2d(c_out)
            self.downsample = None
            if stride != 1 or c_in != c_out:
                conv = torch.nn.Conv2d(c_in, c_out, 1, stride, bias=False)
                self.downsample = torch.nn.Sequential(conv, torch.nn.BatchNorm2d(c_out))

        def forward(self, x):
            y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
            return self.relu(y + (x if self.downsample is None else self.downsample(x)))

    class ResNet18(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
            self.bn1 = torch.nn.BatchNorm2d(64)
            self.relu = torch.nn.ReLU(inplace=True)
            c_in = 64
            for number, width in enumerate((64, 128, 256, 512), start=1):
                stride = 1 if number == 1 else 2
                blocks = BasicBlock(c_in, width, stride), BasicBlock(width, width, 1)
                self.add_module(f"layer{number}", torch.nn.Sequential(*blocks))
                c_in = width
            self.avgpool = torch.nn.AdaptiveAvgPool2d(1)
            self.fc = torch.nn.Linear(512, CLASSES)

        def forward(self, x):
            x = self.relu(self.bn1(self.conv1(x)))
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
            return self.fc(torch.flatten(self.avgpool(x), 1))

    return ResNet18


@pytest.fixture
def small() -> nn.Module:
    return models.build("small-cnn", SHAPE, CLASSES)


@pytest.fixture
def state(small) -> dict[str, np.ndarray]:
    """Of another small-cnn: what a file may hold."""
    other = models.build("small-cnn", SHAPE, CLASSES).state_dict()
    return {name: value if name.endswith("tracked") else value + 0.25 for name, value in other.items()}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def of_torch(torch, model, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.from_numpy(np.moveaxis(x, -1, 1).copy())).numpy()


def unchanged(model: nn.Module, before: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(value, before[name]) for name, value in model.state_dict().items())


def test_names_shapes_and_dtypes_are_torchvisions(torch, resnet18) -> None:
    ours = {
        name: (value.shape, str(value.dtype))
        for name, value in models.build("resnet-18", SHAPE, 10).state_dict().items()
    }
    theirs = resnet18().state_dict()
    assert list(ours) == list(theirs)
    assert ours == {name: (tuple(v.shape), str(v.dtype).removeprefix("torch.")) for name, v in theirs.items()}


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_weights_of_pytorch_give_its_outputs(torch, resnet18, lived_in, path, rng, as_exact, device) -> None:
    from safetensors.torch import save_model

    twin = resnet18().to(torch.float64 if device == "reference" else torch.float32)
    state = lived_in(models.build("resnet-18", SHAPE, CLASSES)).state_dict()
    twin.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    save_model(twin, str(path))
    model = models.build("resnet-18", SHAPE, CLASSES).to(device)
    assert load_torch(model, path) == []
    x = rng.standard_normal((2, *SHAPE)).astype(np.float32).astype(model.backend.dtype)
    y, theirs = model.eval().forward(x), of_torch(torch, twin, x)
    if device == "reference":
        np.testing.assert_allclose(y, theirs, rtol=0, atol=1e-12 * np.abs(theirs).max())
    else:
        as_exact(y, theirs, of_torch(torch, twin.double(), x.astype(np.float64)))


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_weights_of_minidl_give_its_outputs_in_pytorch(torch, resnet18, lived_in, path, rng, as_exact, device) -> None:
    from safetensors.torch import load_model

    model = lived_in(models.build("resnet-18", SHAPE, CLASSES).to(device))
    save_torch(model, path)
    twin = resnet18().to(torch.float64 if device == "reference" else torch.float32)
    assert load_model(twin, str(path)) == (set(), [])
    assert twin.bn1.num_batches_tracked == 7
    x = rng.standard_normal((2, *SHAPE)).astype(np.float32).astype(model.backend.dtype)
    y, theirs = model.eval().forward(x), of_torch(torch, twin, x)
    if device == "reference":
        np.testing.assert_allclose(theirs, y, rtol=0, atol=1e-12 * np.abs(y).max())
    else:
        as_exact(theirs, y, of_torch(torch, twin.double(), x.astype(np.float64)))


def test_the_file_is_the_one_that_pytorch_writes_byte_for_byte(torch, resnet18, lived_in, path, tmp_path) -> None:
    from safetensors.torch import save_model

    model, twin, other = lived_in(models.build("resnet-18", SHAPE, CLASSES)), resnet18(), tmp_path / "torch.safetensors"
    twin.load_state_dict({name: torch.from_numpy(value) for name, value in model.state_dict().items()})
    save_torch(model, path)
    save_model(twin, str(other))
    assert path.read_bytes() == other.read_bytes()


def test_a_round_trip_changes_no_bit(small, state, path) -> None:
    small.load_state_dict(state)
    save_torch(small, path)
    other = models.build("small-cnn", SHAPE, CLASSES)
    assert load_torch(other, str(path)) == []
    assert unchanged(other, small.state_dict())


def test_arrays_in_any_order_are_written_right(path) -> None:
    """safetensors 0.8.0 writes other bytes than those of an array that is not C-contiguous."""

    class Sideways(nn.Linear):
        def own_state(self):
            return {name: np.asfortranarray(value)[::-1] for name, value in super().own_state().items()}

    layer = Sideways(3, 4)
    save_torch(layer, path)
    saved = safetensors.numpy.load_file(path)
    assert np.array_equal(saved["weight"], layer.weight.value[::-1])
    assert np.array_equal(saved["bias"], layer.bias.value[::-1])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_floats_are_converted_and_a_line_says_so(torch, small, state, path, dtype) -> None:
    from safetensors.torch import save_file

    given = {name: torch.from_numpy(value) for name, value in state.items()}
    given = {name: v.to(getattr(torch, dtype)) if v.is_floating_point() else v for name, v in given.items()}
    save_file(given, str(path))
    (note,) = load_torch(small, path)
    how = "rounded to float32" if dtype == "float64" else "widened to float32, which changes none"
    assert note == f"{path}: holds {dtype} numbers; {how}"
    for name, value in small.state_dict().items():
        assert np.array_equal(
            value, given[name].to(torch.float32 if value.dtype == np.float32 else torch.int64).numpy()
        )


def test_files_from_before_batches_were_counted_are_taken(small, state, path) -> None:
    del state["bn1.num_batches_tracked"], state["bn3.num_batches_tracked"]
    safetensors.numpy.save_file(state, path)
    small.bn1.num_batches_tracked = 5
    assert load_torch(small, path) == [f"{path}: has no num_batches_tracked; they stay as they are"]
    assert small.bn1.num_batches_tracked == 5


def test_not_strict_takes_what_is_there(small, state, path) -> None:
    del state["fc.weight"], state["fc.bias"]
    kept = small.fc.weight.value.copy()
    safetensors.numpy.save_file({**state, "head.weight": np.zeros(3, np.float32)}, path)
    assert load_torch(small, path, strict=False) == [
        f"{path}: missing and left alone: fc.weight, fc.bias",
        f"{path}: unexpected and left alone: head.weight",
    ]
    assert np.array_equal(small.fc.weight.value, kept)
    assert np.array_equal(small.state_dict()["conv1.weight"], state["conv1.weight"])


def without(*names):
    return lambda state: {name: value for name, value in state.items() if name not in names}


def with_array(name, array):
    return lambda state: state | {name: np.asarray(array)}


def prefixed(prefix):
    return lambda state: {prefix + name: value for name, value in state.items()}


def spoiled(name, number):
    def change(state):
        array = state[name].copy()
        array.flat[1] = number
        return state | {name: array}

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("fc.bias", "bn1.weight"), "does not fit the model: it lacks bn1.weight, fc.bias"),
        (with_array("extra", [1.0]), "does not fit the model: it also has extra"),
        (
            lambda state: {"x": np.zeros(2), "y\n": np.zeros(2)},
            r"none of its names is the model's \(it has x, 'y\\n'\)",
        ),
        (prefixed("module."), "its names begin with 'module.', as a wrapper's do: save the model inside"),
        (prefixed("_orig_mod."), "its names begin with '_orig_mod.'"),
        (with_array("fc.bias", np.zeros(7)), r"fc.bias has shape \(7,\), expected \(10,\)"),
        (with_array("fc.bias", np.zeros(10, np.int64)), "fc.bias has dtype I64, expected one of F64, F32, F16, BF16"),
        (with_array("bn1.num_batches_tracked", np.float32(3)), "bn1.num_batches_tracked has dtype F32, expected I64"),
        (
            with_array("bn1.num_batches_tracked", np.int64(-3)),
            "bn1: num_batches_tracked is -3|num_batches_tracked is -3",
        ),
        (spoiled("conv2.weight", np.nan), "conv2.weight holds NaN or infinity"),
        (with_array("fc.bias", np.full(10, 1e300)), "fc.bias holds NaN or infinity .or numbers beyond float32's"),
        (spoiled("bn2.running_var", -1e-3), "bn2.running_var is negative in places"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_changes(small, state, path, change, message) -> None:
    safetensors.numpy.save_file({name: np.array(value) for name, value in change(state).items()}, path)
    before = small.state_dict()
    with pytest.raises(InteropError, match=message) as error:
        load_torch(small, path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert unchanged(small, before)


def test_a_message_stays_short_where_everything_differs(path, state) -> None:
    safetensors.numpy.save_file(state, path)
    with pytest.raises(InteropError) as error:
        load_torch(models.build("resnet-20", SHAPE, CLASSES), path)
    assert len(str(error.value)) < 700


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a safetensors file, or is damaged"),
        (b"PK\x03\x04 and so on", "is a PyTorch or pickle file, which minidl never opens"),
        (b"\x80\x02}q\x00.", "is a PyTorch or pickle file, which minidl never opens"),
        (b"\xff" * 100, "is not a safetensors file, or is damaged"),
    ],
)
def test_other_files_are_refused(small, path, content, message) -> None:
    path.write_bytes(content)
    with pytest.raises(InteropError, match=message):
        load_torch(small, path)


def test_a_truncated_file_is_refused(small, state, path) -> None:
    safetensors.numpy.save_file(state, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InteropError, match="is not a safetensors file, or is damaged"):
        load_torch(small, path)


def test_a_checkpoint_is_named_as_one(small, path) -> None:
    checkpoint.save(path, {f"model.{name}": value for name, value in small.state_dict().items()}, {})
    with pytest.raises(InteropError, match="is a checkpoint of minidl's own; --resume, eval and export read those"):
        load_torch(small, path)


def test_a_file_that_is_not_there_or_no_file(small, tmp_path) -> None:
    with pytest.raises(InteropError, match="no such file"):
        load_torch(small, tmp_path / "nothing")
    with pytest.raises(InteropError, match="is a folder, not a file"):
        load_torch(small, tmp_path)


def test_what_cannot_be_written_leaves_the_old_file(small, path, monkeypatch) -> None:
    path.write_bytes(b"the old one")
    with pytest.raises(InteropError, match="cannot be written"):
        save_torch(small, path.parent)
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InteropError, match=r"model\.safetensors: cannot be written: No space left on device"):
        save_torch(small, path)
    assert path.read_bytes() == b"the old one"
    assert list(path.parent.iterdir()) == [path]
