"""ONNX export: every model and every layer against onnxruntime, and the same bits back through the importer."""

import json

import numpy as np
import pytest

from kernels.errors import ShapeError
from minidl import models, nn
from minidl.errors import InteropError
from minidl.interop import export_onnx, import_onnx
from minidl.interop.onnx_export import to_onnx
from minidl.interop.onnx_import import from_onnx
from minidl.models.norms import KINDS

SHAPE, CLASSES = (12, 16, 3), 10
# One of each family; deeper ones are more of the same.
SMALLEST = ("small-cnn", "plain-8", "resnet-18", "resnet-8", "preact-resnet-8", "inception-small", "mlp-3")


@pytest.fixture
def images(rng) -> np.ndarray:
    return rng.standard_normal((3, *SHAPE)).astype(np.float32)


def test_every_family_is_tested() -> None:
    family = {name.rstrip("0123456789") for name in models.NAMES}
    assert {name.rstrip("0123456789") for name in SMALLEST} == family


@pytest.mark.parametrize(
    ("name", "norm"),
    [(name, "batch") for name in SMALLEST]
    + [("resnet-8", norm) for norm in (*KINDS, "batch-after") if norm != "batch"]
    + [("mlp-3", norm) for norm in ("none", "group", "layer", "ghost:2")],
)
def test_models_give_their_outputs_in_onnxruntime_and_come_back(
    runtime, lived_in, images, as_exact, name, norm
) -> None:
    shape = (4, 6, 3) if name == "resnet-18" else SHAPE  # it is wide, and the float64 definitions are slow
    images = images[:, : shape[0], : shape[1]].copy()
    model = lived_in(models.build(name, shape, CLASSES, norm)).eval()
    ours = model.forward(images)
    proto = to_onnx(model, shape, name=name)
    back = from_onnx(proto, "here").eval()
    assert np.array_equal(back.forward(images), ours)  # the same layers: the same bits
    state, returned = model.state_dict(), back.state_dict()
    assert sorted(state) == sorted(returned)
    for key, value in state.items():
        assert np.array_equal(returned[key], value) or key.endswith("num_batches_tracked"), key
    exact = model.to("reference").forward(images.astype(np.float64))
    as_exact(runtime(proto, images), ours, exact)


LAYERS = {
    "conv": lambda: nn.Conv2d(3, 5, (3, 2), stride=(2, 1), padding=(1, 2)),
    "conv-no-bias": lambda: nn.Conv2d(3, 5, 1, bias=False),
    "flatten-linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(180, 4, bias=False), nn.BatchNorm1d(4)),
    "bn-eps-momentum": lambda: nn.BatchNorm2d(3, eps=0.5, momentum=0.25),
    "bn-no-affine": lambda: nn.BatchNorm2d(3, affine=False, momentum=None),
    "ghost": lambda: nn.GhostBatchNorm2d(3, 2),
    "noisy": lambda: nn.NoisyBatchNorm2d(3),
    "relu": nn.ReLU,
    "dropout": lambda: nn.Dropout(0.25),
    "max-pool": lambda: nn.MaxPool2d(3, 2, 1),
    "max-pool-dilated": lambda: nn.MaxPool2d((2, 3), (2, 1), (0, 1), (3, 2)),
    "max-pool-ceil": lambda: nn.MaxPool2d((3, 2), (2, 2), ceil_mode=True),
    "avg-pool": lambda: nn.AvgPool2d(3, 2, 1),
    "avg-pool-excluding": lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "avg-pool-ceil": lambda: nn.AvgPool2d((3, 2), 2, ceil_mode=True, count_include_pad=False),
    "global": nn.GlobalAvgPool2d,
    "pixel": lambda: nn.Sequential(nn.GlobalAvgPool2d(), nn.OnePixel(), nn.Conv2d(3, 2, 1)),
    "softmax": lambda: nn.Softmax(),
    "log-softmax": lambda: nn.LogSoftmax(),
    "scale": lambda: nn.Scale(0.7),
    "zero-pad": lambda: nn.ZeroPad2d((1, 0, 2, 3)),
    "constant-pad": lambda: nn.Sequential(nn.ConstantPad2d((0, 1, 0, 1), -np.inf), nn.MaxPool2d(2)),
    "group": lambda: nn.Sequential(nn.Conv2d(3, 6, 1), nn.GroupNorm(2, 6, eps=0.1)),
    "group-no-affine": lambda: nn.GroupNorm(3, 3, affine=False),
    "group-no-bias": lambda: nn.GroupNorm(1, 3, bias=False),
    "instance": lambda: nn.InstanceNorm2d(3, affine=True),
    "instance-no-affine": lambda: nn.InstanceNorm2d(3, eps=0.1),
    "layer": lambda: nn.LayerNorm((10, 6, 3), eps=0.1),
    "layer-of-vectors": lambda: nn.Sequential(nn.GlobalAvgPool2d(), nn.LayerNorm(3)),
    "concat": lambda: nn.Concat(nn.ReLU(), nn.Conv2d(3, 2, 1), nn.Sequential()),
    "residual": lambda: nn.Residual(nn.Conv2d(3, 4, 1), downsample=nn.Conv2d(3, 4, 1), activation=nn.ReLU()),
    "nothing": nn.Sequential,
}


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_give_their_outputs_in_onnxruntime_and_come_back(runtime, lived_in, rng, as_exact, kind) -> None:
    model = lived_in(LAYERS[kind]()).eval()
    x = rng.standard_normal((2, 10, 6, 3)).astype(np.float32)
    ours = model.forward(x)
    proto = to_onnx(model, (10, 6, 3))
    as_exact(runtime(proto, x), ours, model.to("reference").forward(x.astype(np.float64)))
    if kind != "nothing":
        back = from_onnx(proto, "here").eval()
        y = back.forward(x)
        if "no-affine" in kind or kind == "group-no-bias":  # multiplied by ones now, which costs a rounding at most
            np.testing.assert_allclose(y, ours, rtol=3e-7, atol=1e-7)
        else:
            assert np.array_equal(y, ours)


def test_what_comes_back_trains_as_before(lived_in, images) -> None:
    model = lived_in(models.build("resnet-8", SHAPE, CLASSES)).train()
    back = from_onnx(to_onnx(model, SHAPE), "here").train()
    y, returned = model.forward(images), back.forward(images)
    assert np.array_equal(y, returned)
    dy = np.cos(np.arange(y.size, dtype=np.float32)).reshape(y.shape)
    assert np.array_equal(model.backward(dy), back.backward(dy))
    gradients = dict(back.named_parameters())
    for name, parameter in model.named_parameters():
        assert np.array_equal(parameter.grad, gradients[name].grad), name
    assert np.array_equal(model.bn1.running_var, vars(back)["bn1"].running_var)


def test_arguments_of_layers_come_back(lived_in) -> None:
    layers = nn.Sequential(
        nn.Conv2d(3, 3, 3, 2, (1, 0)),
        nn.BatchNorm2d(3, eps=1e-3, momentum=0.01),
        nn.Dropout(0.3),
        nn.MaxPool2d(2, 1, 1, 2),
        nn.AvgPool2d(2, 2, 1, True, False),
        nn.Scale(0.25),
        nn.GroupNorm(3, 3, 1e-6),
    )
    back = from_onnx(to_onnx(lived_in(layers), (12, 16, 3)), "here")
    for layer, node in zip(layers, back.nodes.values(), strict=True):
        assert type(node.layer) is type(layer)
        if not isinstance(layer, nn.Scale):
            assert repr(node.layer) == repr(layer)


def test_a_fused_model_is_written_as_it_was(lived_in) -> None:
    model = lived_in(models.build("resnet-8", SHAPE, CLASSES))
    plain = to_onnx(model, SHAPE).SerializeToString(deterministic=True)
    assert nn.fuse(model)
    assert to_onnx(model, SHAPE).SerializeToString(deterministic=True) == plain


def test_a_folded_model_is_written(runtime, lived_in, images, as_exact) -> None:
    model = lived_in(models.build("resnet-8", SHAPE, CLASSES))
    folded = nn.fold(model).model
    proto = to_onnx(folded, SHAPE)
    assert "BatchNormalization" not in {node.op_type for node in proto.graph.node}
    as_exact(
        runtime(proto, images), folded.forward(images), model.to("reference").eval().forward(images.astype(np.float64))
    )


def test_the_file_says_what_it_needs(onnx, tmp_path, lived_in) -> None:
    path = tmp_path / "model.onnx"
    metadata = {"model": "small-cnn", "mean": [0.5], "std": [0.25], "class_names": ["a", "é"]}
    export_onnx(models.build("small-cnn", SHAPE, CLASSES), SHAPE, path, name="small-cnn", metadata=metadata)
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert (proto.opset_import[0].version, proto.ir_version, proto.producer_name) == (21, 10, "minidl")
    props = {prop.key: prop.value for prop in proto.metadata_props}
    assert props.pop("model") == "small-cnn"
    assert {key: json.loads(value) for key, value in props.items()} == {
        k: v for k, v in metadata.items() if k != "model"
    }
    assert "(pixel - mean) / std" in proto.doc_string
    shapes = [
        [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    ]
    assert shapes == [["N", 3, 12, 16], ["N", 10]]
    assert [value.name for value in (*proto.graph.input, *proto.graph.output)] == ["input", "output"]
    assert "conv1.weight" in {tensor.name for tensor in proto.graph.initializer}
    assert list(import_onnx(path).state_dict()) == list(models.build("small-cnn", SHAPE, CLASSES).state_dict())


def test_any_batch_goes_through(runtime, lived_in) -> None:
    model = lived_in(models.build("small-cnn", SHAPE, CLASSES)).eval()
    proto = to_onnx(model, SHAPE)
    for batch in (1, 5):
        assert runtime(proto, np.ones((batch, *SHAPE), np.float32)).shape == (batch, CLASSES)


def test_names_that_collide_are_kept_apart(runtime, rng) -> None:
    model = nn.Sequential({"input": nn.Conv2d(3, 3, 1), "output": nn.ReLU(), "a": nn.Residual({"add": nn.Scale(2.0)})})
    x = rng.standard_normal((2, 4, 5, 3)).astype(np.float32)
    proto = to_onnx(model, (4, 5, 3))
    np.testing.assert_allclose(runtime(proto, x), model.forward(x), rtol=0, atol=1e-5)
    assert np.array_equal(from_onnx(proto, "here").forward(x), model.forward(x))


def test_exporting_changes_nothing(lived_in, images) -> None:
    model = lived_in(models.build("resnet-8", SHAPE, CLASSES)).train()
    before = model.state_dict()
    to_onnx(model, SHAPE)
    assert model.training
    assert all(np.array_equal(value, before[name]) for name, value in model.state_dict().items())


class Cube(nn.Module):
    pass


class MyReLU(nn.ReLU):
    pass


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Sequential({"a": Cube(), "b": nn.Sequential(Cube(), MyReLU())}),
            r"minidl has no ONNX counterpart for Cube \(a, b\.0\); MyReLU \(b\.1\)$",
        ),
        (nn.BatchNorm2d(3, track_running_stats=False), r"track_running_stats=False\): it normalizes by the batch"),
        (nn.LayerNorm(3), r"LayerNorm normalizes the last axes \(3,\) of \(12, 16, 3\), channels last"),
    ],
)
def test_what_has_no_counterpart_is_refused(onnx, tmp_path, model, message) -> None:
    with pytest.raises(InteropError, match=message):
        export_onnx(model, SHAPE, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential({"conv": nn.Conv2d(4, 3, 1)}), "Conv2d conv: its input has 3 channels, expected 4"),
        (nn.Sequential(nn.GlobalAvgPool2d(), nn.ReLU(), nn.MaxPool2d(2)), "MaxPool2d 2: .* expected an image"),
        (nn.Linear(3, 2), "Linear: its input .* expected a vector"),
        (nn.Conv2d(3, 3, 20), "a kernel of 20 does not fit"),
        (nn.Residual(nn.Conv2d(3, 4, 1)), r"Residual .*the layers give \(12, 16, 4\), the way around \(12, 16, 3\)"),
        (nn.Concat(nn.ReLU(), nn.MaxPool2d(2)), r"the branches give \(12, 16, 3\), \(6, 8, 3\)"),
    ],
)
def test_images_that_do_not_fit_the_model_are_refused(onnx, model, message) -> None:
    with pytest.raises(ShapeError, match=message):
        to_onnx(model, SHAPE)


def test_what_cannot_be_written_is_one_line(onnx, tmp_path) -> None:
    with pytest.raises(InteropError, match=r"missing/model\.onnx: cannot be written: No such file or directory"):
        export_onnx(nn.ReLU(), SHAPE, tmp_path / "missing" / "model.onnx")


def test_without_the_package_there_is_a_remedy(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(InteropError, match=r'ONNX files need the package onnx: pip install "onnx>=1\.23"'):
        export_onnx(nn.ReLU(), SHAPE, tmp_path / "model.onnx")
    with pytest.raises(InteropError, match="ONNX files need the package onnx"):
        import_onnx(tmp_path / "model.onnx")
