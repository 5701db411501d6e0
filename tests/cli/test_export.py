"""`minidl export` and `minidl import`: a run to PyTorch and ONNX, and weights from there into a run."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from minidl.backends import get_backend
from minidl.data import load
from minidl.training import load_model


def ok(result) -> str:
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


def error_of(result) -> str:
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0].removeprefix("Error: ")


@pytest.fixture
def run(runs) -> Path:
    return runs / "digits-small-cnn-001"


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def images() -> np.ndarray:
    """Digits, normalized as in training."""
    digits = load("digits")
    return ((digits.test_images[:20] - digits.mean) / digits.std).astype(np.float32)


def test_a_state_for_pytorch(minidl, run, here) -> None:
    out = ok(minidl("export", run, "--torch", "model.safetensors"))
    model, _, file = load_model(run, get_backend("cpu"))
    assert out.splitlines() == [
        f"model: small-cnn, norm batch, from {file}",
        "model.safetensors: in PyTorch, safetensors.torch.load_model(model, 'model.safetensors')",
    ]
    saved = safetensors.numpy.load_file("model.safetensors")
    state = model.state_dict()
    assert saved.keys() == state.keys()
    assert all(np.array_equal(value, state[name]) for name, value in saved.items())


def test_a_network_for_onnx(minidl, run, here, images) -> None:
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    out = ok(minidl("export", run, "--onnx", "model.onnx", "--torch", "model.safetensors"))
    assert "model.onnx: ONNX opset 21, input (N, 1, 8, 8) float32, (pixel - mean) / std with mean 4.89491 and" in out
    props = {prop.key: prop.value for prop in onnx.load("model.onnx").metadata_props}
    assert (props["model"], props["norm"], props["data"]) == ("small-cnn", "batch", "digits")
    digits = load("digits")
    assert json.loads(props["mean"]) == digits.mean.tolist()
    assert json.loads(props["std"]) == digits.std.tolist()
    assert json.loads(props["class_names"]) == list(digits.class_names)
    assert json.loads(props["brightest_pixel"]) == 16
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input": np.ascontiguousarray(np.moveaxis(images, -1, 1))})
    model, _, _ = load_model(run, get_backend("cpu"))
    np.testing.assert_allclose(logits, model.forward(images), rtol=1e-4, atol=1e-5)


def test_folded_it_has_no_normalization(minidl, run, here) -> None:
    onnx = pytest.importorskip("onnx")
    out = ok(minidl("export", run, "--onnx", "model.onnx", "--fold"))
    assert "folded: 4 layers of batch normalization" in out
    operators = {node.op_type for node in onnx.load("model.onnx").graph.node}
    assert operators == {"Conv", "Relu", "MaxPool", "Flatten", "Gemm"}


def test_the_newest_run_unless_one_is_named(minidl, runs, here) -> None:
    assert "digits-small-cnn-001" in ok(minidl("export", "--out", runs, "--torch", "model.safetensors"))


@pytest.mark.parametrize("file", ["model.safetensors", "model.onnx"])
def test_what_is_exported_is_imported_and_evaluates_alike(minidl, run, here, file) -> None:
    if file.endswith(".onnx"):
        pytest.importorskip("onnx")
    ok(minidl("export", run, "--onnx" if file.endswith(".onnx") else "--torch", file))
    out = ok(minidl("import", file))
    assert f"run: runs/digits-small-cnn-001, 67,754 parameters of small-cnn from {file}" in out
    assert "its images are normalized as (pixel - 4.89491) / 6.02153" in out
    there, back = (json.loads(ok(minidl("eval", path, "--json"))) for path in (run, "runs/digits-small-cnn-001"))
    assert [back[name] for name in ("loss", "accuracy")] == [there[name] for name in ("loss", "accuracy")]
    head = Path("runs/digits-small-cnn-001/config.toml").read_text().splitlines()[0]
    assert head == f"# This run began with the weights in '{file}': this file alone does not repeat it."


def test_training_goes_on_from_imported_weights(minidl, run, here) -> None:
    ok(minidl("export", run, "--torch", "model.safetensors"))
    Path("few.toml").write_text("epochs = 3\nlr = 0.01\n")
    ok(minidl("import", "model.safetensors", "--config", "few.toml"))
    before = load_model("runs/digits-small-cnn-001", get_backend("cpu")).model.state_dict()
    saved = safetensors.numpy.load_file("model.safetensors")
    assert all(np.array_equal(value, saved[name]) for name, value in before.items())
    result = minidl("train", "--resume", "--max-steps", "2", "--json", "-q")
    summary = json.loads(ok(result))
    assert (summary["steps"], summary["epochs"]) == (2, 0)
    after = load_model("runs/digits-small-cnn-001", get_backend("cpu"), "last").model.state_dict()
    assert not np.array_equal(after["conv1.weight"], before["conv1.weight"])


def test_a_note_says_what_was_converted(minidl, run, here) -> None:
    state = {
        name: value.astype(np.float16) if value.dtype.kind == "f" else value for name, value in _state(run).items()
    }
    safetensors.numpy.save_file(state, "half.safetensors")
    assert "half.safetensors: holds float16 numbers; widened to float32, which changes none" in ok(
        minidl("import", "half.safetensors")
    )


def _state(run: Path) -> dict[str, np.ndarray]:
    return load_model(run, get_backend("cpu")).model.state_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "export needs a file to write: give --torch FILE, --onnx FILE or both"),
        (("--torch", "a", "--onnx", "a"), "--torch and --onnx are both a; give each a file of its own"),
        (
            ("--torch", "a", "--fold"),
            "--fold goes with --onnx; a PyTorch file keeps the layers apart, as PyTorch's own does",
        ),
        (("--torch", "no/folder/a"), "no/folder/a: cannot be written: its folder does not exist; nothing was exported"),
    ],
)
def test_what_cannot_be_exported_is_one_line(minidl, run, here, arguments, message) -> None:
    assert error_of(minidl("export", run, *arguments)) == message
    assert not list(here.iterdir())


def test_a_checkpoint_is_not_overwritten_by_its_own_export(minidl, run, here) -> None:
    last = run / "checkpoints" / "last.safetensors"
    before = last.read_bytes()
    assert (
        error_of(minidl("export", run, "--torch", last))
        == f"{last} lies among the run's checkpoints; give another file"
    )
    assert last.read_bytes() == before


def test_nothing_is_exported_where_one_of_two_files_cannot_be(minidl, run, here) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    assert "nothing was exported" in error_of(minidl("export", run, "--onnx", "m.onnx", "--torch", "no/folder/a"))
    assert not (here / "m.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing.safetensors",), "nothing.safetensors: no such file"),
        (("a.safetensors", "--model", "resnet-20"), "a.safetensors: does not fit the model: it lacks layer1.0.conv1"),
        (("a.safetensors", "--model", "smal-cnn"), "there is no model 'smal-cnn'"),
        (("a.safetensors", "--norm", "bach"), "--norm: there is no normalization 'bach'"),
    ],
)
def test_what_cannot_be_imported_is_one_line_and_leaves_no_run(minidl, run, here, arguments, message) -> None:
    safetensors.numpy.save_file(_state(run), "a.safetensors")
    assert error_of(minidl("import", *arguments)).startswith(message)
    assert [path.name for path in here.iterdir()] == ["a.safetensors"]
