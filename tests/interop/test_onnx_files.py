"""ONNX files from anywhere: damaged, hostile or of another kind; one line each, and nothing else happens."""

import os

import numpy as np
import pytest

from minidl import models, nn
from minidl.errors import InteropError
from minidl.interop import import_onnx, onnx_file
from minidl.interop.onnx_export import to_onnx

SHAPE = (8, 8, 1)


@pytest.fixture
def proto(onnx):
    return to_onnx(models.build("small-cnn", SHAPE, 3), SHAPE)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.onnx"


def refused(path) -> str:
    with pytest.raises(InteropError) as error:
        import_onnx(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert len(message) < 1000 + len(str(path))
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an ONNX file, or has no operators"),
        (b"PK\x03\x04 a zip", "is not an ONNX file"),
        (os.urandom(1000), "is not an ONNX file"),
        (b"\x08\x0a" * 50, "is not an ONNX file"),
    ],
)
def test_what_is_no_onnx_file(onnx, path, content, message) -> None:
    path.write_bytes(content)
    assert refused(path).startswith(message)


def test_what_is_not_there_or_no_file(onnx, path) -> None:
    assert refused(path) == "no such file"
    path.mkdir()
    assert refused(path) == "is a folder, not a file"
    path.rmdir()
    os.mkfifo(path)
    assert refused(path) == "is not a regular file"


def test_a_truncated_file(proto, path) -> None:
    content = proto.SerializeToString()
    for length in (len(content) - 1, len(content) // 2, 20):
        path.write_bytes(content[:length])
        refused(path)


def test_any_byte_may_be_wrong(proto, path) -> None:
    """Each damaged file is refused in a line, or is a model: the bytes of weights have no checksum."""
    content, rng = proto.SerializeToString(), np.random.default_rng(0)
    names = content.find(b"relu1") - 60  # where the nodes are, and not weights
    for place in [*rng.integers(0, len(content), 40), *rng.integers(names, names + 900, 120)]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(damaged)
        try:
            message = repr(type(import_onnx(path)))
        except InteropError as error:
            message = str(error)
        assert message.isprintable()


def test_a_file_that_is_too_large_is_not_read(onnx, path, monkeypatch) -> None:
    monkeypatch.setattr(onnx_file, "MAX_BYTES", 10)
    path.write_bytes(b"x" * 11)
    assert refused(path) == "has 11 bytes; minidl reads ONNX files of up to 10"


def test_too_many_nodes(proto, path, monkeypatch) -> None:
    monkeypatch.setattr(onnx_file, "MAX_NODES", 15)
    path.write_bytes(proto.SerializeToString())
    assert refused(path) == "has 16 nodes; minidl imports up to 15"


def test_tensors_in_other_files_are_refused_and_not_opened(onnx, proto, path, tmp_path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"\0" * 10_000)
    for tensor in proto.graph.initializer[:1]:
        onnx.external_data_helper.set_external_data(tensor, "secret")
        tensor.ClearField("raw_data")
    path.write_bytes(proto.SerializeToString())
    assert refused(path).startswith("keeps tensors in other files (external data), which minidl does not open")


def test_a_constant_in_another_file_is_refused(onnx, path) -> None:
    tensor = onnx.numpy_helper.from_array(np.ones(3, np.float32), "t")
    onnx.external_data_helper.set_external_data(tensor, "/etc/passwd")
    node = onnx.helper.make_node("Constant", [], ["y"], value=tensor)
    graph = onnx.helper.make_graph([node], "g", [], [onnx.helper.make_tensor_value_info("y", 1, (3,))])
    opset = [onnx.helper.make_opsetid("", 21)]
    path.write_bytes(onnx.helper.make_model(graph, opset_imports=opset).SerializeToString())
    assert refused(path).startswith("keeps tensors in other files (external data)")


@pytest.mark.parametrize("dims", [[2**40, 2**20], [-1, 5], [3], [2, 3]])
def test_a_shape_that_its_numbers_do_not_fill(onnx, proto, path, dims) -> None:
    """No memory is taken for what a file only says that it has."""
    proto.graph.initializer[0].dims[:] = dims
    path.write_bytes(proto.SerializeToString())
    assert refused(path).startswith("is no valid ONNX model")
    for raw in (True, False):  # and not only by onnx's checker
        tensor = onnx.helper.make_tensor("t", 1, [5], np.ones(5, np.float32).tobytes() if raw else [1.0] * 5, raw=raw)
        tensor.dims[:] = dims
        with pytest.raises(InteropError, match=r"t is damaged: it has shape .* and 5 numbers"):
            onnx_file.array_of(tensor, "t")


def test_other_kinds_of_numbers(onnx, proto, path) -> None:
    first = proto.graph.initializer[0]
    half = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(first).astype(np.float16), first.name)
    first.CopyFrom(half)
    path.write_bytes(proto.SerializeToString())
    assert refused(path).startswith("is no valid ONNX model")  # a convolution of float32 images by float16 is none


def test_numbers_that_nothing_uses_are_looked_at_too(onnx, proto, path) -> None:
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2, np.float16), "spare"))
    path.write_bytes(proto.SerializeToString())
    assert refused(path) == "spare holds numbers of type FLOAT16; minidl imports FLOAT, DOUBLE, INT64, BOOL"


def test_names_that_are_no_text(proto, path) -> None:
    content = proto.SerializeToString()
    path.write_bytes(content.replace(b"relu1", b"rel\xff1"))
    assert refused(path) == "is damaged: it has names that are not text"


@pytest.mark.parametrize("version", [6, 29, 1000])
def test_another_operator_set(proto, path, version) -> None:
    proto.opset_import[0].version = version
    path.write_bytes(proto.SerializeToString())
    assert refused(path).startswith(f"uses version {version} of ONNX's operators; minidl imports versions 7 to 28")


def test_two_inputs_or_outputs(onnx, proto, path) -> None:
    proto.graph.input.append(onnx.helper.make_tensor_value_info("other", 1, ("N", 3)))
    path.write_bytes(proto.SerializeToString())
    assert refused(path) == "has 2 inputs and 1 outputs; minidl imports models with one of each"


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        (7, ("N", 1, 8, 8), "its input input is not float32"),
        (1, ("N", 1, 8), "its input input has 3 axes; expected images"),
    ],
)
def test_other_inputs(onnx, path, kind, shape, message) -> None:
    node = onnx.helper.make_node("Identity", ["input"], ["y"])
    values = [onnx.helper.make_tensor_value_info(name, kind, shape) for name in ("input", "y")]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:])
    opset = [onnx.helper.make_opsetid("", 21)]
    path.write_bytes(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString())
    assert refused(path).startswith(message)


def test_functions_are_refused(onnx, proto, path) -> None:
    body = onnx.helper.make_function("d", "F", ["a"], ["b"], [onnx.helper.make_node("Relu", ["a"], ["b"])], [])
    proto.functions.append(body)
    path.write_bytes(proto.SerializeToString())
    assert refused(path).startswith("has functions, training information or sparse tensors")


def test_many_unknown_operators_make_a_short_message(onnx, proto, path) -> None:
    for i in range(50):
        proto.graph.node.append(onnx.helper.make_node(f"Strange{i:02}\n" + "x" * 1000, ["input"], [f"s{i}"]))
    path.write_bytes(proto.SerializeToString())
    assert "and 42 more" in refused(path)


def test_what_joins_outside_a_graph_has_no_counterpart() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Add())
    with pytest.raises(InteropError, match="no ONNX counterpart for Add"):
        to_onnx(model, (4, 4, 3))
