import json
import re

import pytest

from minidl import models
from minidl.models.cost import cost


@pytest.fixture
def few(monkeypatch):
    """The list is of these; making all takes seconds."""
    names = ("small-cnn", "resnet-20", "mlp-3")
    monkeypatch.setattr("minidl.cli.models.NAMES", names)
    return names


def rows(text):
    """Cells of each line."""
    return [re.split(r"  +", line.strip()) for line in text.splitlines()]


def test_the_list(minidl, few) -> None:
    result = minidl("models")
    assert result.exit_code == 0, result.output
    table, families, conditions = result.stdout.split("\n\n")
    assert rows(table) == [
        ["model", "parameters", "FLOPs", "kept"],
        ["small-cnn", "96,554", "36.6 M", "379.5 kB"],
        ["resnet-20", "272,186", "62.0 M", "931.6 kB"],
        ["mlp-3", "118,538", "236.0 k", "5.2 kB"],
    ]
    assert len({len(line) for line in table.splitlines()}) == 1
    assert [row[0] for row in rows(families)] == [
        *("small-cnn", "plain-N", "resnet-N", "preact-resnet-N", "inception-small", "mlp-N"),
    ]
    assert "18, or 6 n + 2 with n of 1 or more" in families
    assert conditions.startswith("For images of 28x28x1 in 10 classes, --norm batch. FLOPs: of a forward pass of one")


def test_the_list_as_json_is_what_the_library_says_of_fused_models(minidl, few) -> None:
    result = minidl("models", "--json", "--image", "12x12x3", "--classes", 7, "--norm", "none")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert tuple(one["name"] for one in found) == few
    for one in found:
        expected = cost(models.build(one["name"], (12, 12, 3), 7, "none"), (12, 12, 3))
        assert one == {
            "name": one["name"],
            "image_shape": [12, 12, 3],
            "classes": 7,
            "norm": "none",
            "parameters": expected.parameters,
            "flops": expected.flops,
            "kept_bytes": expected.kept_bytes,
            "problem": "",
        }


def test_models_that_cannot_be_are_in_the_list_with_the_reason(minidl, few) -> None:
    result = minidl("models", "--image", "3x3")
    assert result.exit_code == 0, result.output
    assert rows(result.stdout)[1] == ["small-cnn"]
    assert rows(result.stdout)[2][0] == "resnet-20"
    assert "small-cnn needs images of at least 4x4 pixels, got 3x3" in result.stdout.splitlines()
    (small, *others) = json.loads(minidl("models", "--image", "3x3", "--json").stdout)
    assert small["problem"] == "small-cnn needs images of at least 4x4 pixels, got 3x3"
    assert small["parameters"] is None
    assert all(other["parameters"] for other in others)


def test_one_model(minidl) -> None:
    result = minidl("models", "--model", "preact-resnet-20", "--image", "32x32x3")
    assert result.exit_code == 0, result.output
    assert rows(result.stdout)[:2] == [
        ["model", "parameters", "FLOPs", "kept"],
        ["preact-resnet-20", "272,282", "81.6 M", "1.5 MB"],
    ]
    assert json.loads(minidl("models", "--model", "mlp-3", "--json").stdout)["name"] == "mlp-3"


def test_the_layers_of_one(minidl) -> None:
    result = minidl("models", "--model", "resnet-8", "--summary", "--image", "8x8x3")
    assert result.exit_code == 0, result.output
    table, conditions = result.stdout.split("\n\n")
    lines = table.splitlines()
    assert rows(table)[:9] == [
        ["layer", "type", "output", "parameters", "FLOPs", "kept"],
        ["conv1", "Conv2d", "8x8x16", "432", "55.3 k", "768 B"],
        ["bn1", "BatchNorm2d", "8x8x16", "32", "4.1 kB"],
        ["relu1", "ReLU", "8x8x16"],
        ["layer1", "Sequential", "8x8x16"],
        ["0", "Residual", "8x8x16"],
        ["conv1", "Conv2d", "8x8x16", "2,304", "294.9 k", "4.1 kB"],
        ["bn1", "BatchNorm2d", "8x8x16", "32", "4.1 kB"],
        ["relu1", "ReLU", "8x8x16"],
    ]
    assert [len(line) - len(line.lstrip()) for line in lines[1:8]] == [0, 0, 0, 0, 2, 4, 4]
    assert rows(table)[-1][:2] == ["in all", f"{cost(models.build('resnet-8', (8, 8, 3), 10), (8, 8, 3)).parameters:,}"]
    assert max(map(len, lines)) <= 80
    assert conditions.startswith("For images of 8x8x3")
    found = json.loads(minidl("models", "--model", "resnet-8", "--summary", "--json", "--image", "8x8x3").stdout)
    assert len(found["layers"]) == len(lines) - 2
    assert found["layers"][0] == {
        "name": "conv1",
        "kind": "Conv2d",
        "output": [8, 8, 16],
        "parameters": 432,
        "flops": 2 * 64 * 9 * 3 * 16,
        "kept_bytes": 768,
    }
    assert sum(layer["flops"] for layer in found["layers"]) == found["flops"]


@pytest.mark.parametrize("norm", ["batch", "noisy"])
def test_the_widest_fits_a_terminal_of_80_columns(minidl, norm: str) -> None:
    summary = minidl("models", "--model", "preact-resnet-18", "--summary", "--norm", norm, "--image", "256x256x3")
    assert summary.exit_code == 0, summary.output
    assert max(len(line) for line in summary.stdout.split("\n\n")[0].splitlines()) <= 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "resnt-20"], "did you mean 'resnet-20'?"),
        (["--model", "resnet-21"], "did you mean 'resnet-20'?"),
        (["--norm", "btch"], "did you mean 'batch'?"),
        (["--model", "small-cnn", "--norm", "group:5"], "that many can be in 1, 2, 4, 8, 16, 32 groups"),
        (["--summary"], "--summary needs --model NAME: it shows the layers of one model"),
        (["--image", "28"], "--image must be HEIGHTxWIDTHxCHANNELS, as 28x28x1, and at most 256x256x4, not '28'"),
        (["--image", "0x28x1"], "not '0x28x1'"),
        (["--image", "28x28x5"], "not '28x28x5'"),
        (["--image", "28x28x1x1"], "not '28x28x1x1'"),
        (["--image", "9999999999x1x1"], "not '9999999999x1x1'"),
        (["--image", "a 28x28"], "not 'a 28x28'"),
        (["--classes", "0"], "--classes must be a whole number from 1 to 1000, not 0"),
        (["--model", "small-cnn", "--image", "3x3"], "small-cnn needs images of at least 4x4 pixels, got 3x3"),
        (["--norm", "instance", "--image", "1x1"], "at least 4x4"),
    ],
)
def test_bad_input_is_one_line(minidl, few, arguments, message: str) -> None:
    result = minidl("models", *arguments)
    assert result.exit_code == 2
    assert not result.stdout
    assert result.stderr.startswith("Error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_explain_says_which_technique_each_operation_takes_and_why(minidl) -> None:
    arguments = "models", "--model", "small-cnn", "--explain", "--device", "emulator", "--batch-size", 2
    result = minidl(*arguments)
    assert result.exit_code == 0, result.output
    table, conditions = result.stdout.split("\n\n")
    assert rows(table)[0] == ["layer", "operation", "arrays", "technique", "why"]
    pool = ["pool2", "max_pool2d_forward", "x 2x28x28x32", "vector", "32 channels, all arrays aligned to 16 bytes"]
    assert pool in rows(table)
    assert conditions.startswith("For a training step of 2 images of 28x28x1 in 10 classes, --norm batch, on emulator")
    for precision in ("tf32", "bf16", "fp16"):
        found = json.loads(minidl(*arguments, "--precision", precision, "--json").stdout)
        assert (found["device"], found["precision"], found["batch_size"]) == ("emulator", precision, 2)
        conv2 = next(one for one in found["operations"] if one["layer"] == "conv2")
        assert (conv2["operation"], conv2["technique"]) == ("conv2d_normalized_forward", "tensor_core")
        assert conv2["shapes"]["x"] == [2, 28, 28, 32]


def test_the_cpu_has_little_to_explain(minidl) -> None:
    result = minidl("models", "--model", "small-cnn", "--explain", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("device cpu chooses only how 3x3 convolutions are done")
    assert result.stdout.count("\n") == 1
    assert json.loads(minidl("models", "--model", "mlp-3", "--explain", "--device", "cpu", "--json").stdout) == {
        "device": "cpu",
        "operations": [],
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--explain"], "--explain needs --model NAME"),
        (["--model", "mlp-3", "--explain", "--summary"], "--explain and --summary are two tables"),
        (["--model", "mlp-3", "--device", "cpu"], "--device goes with --explain"),
        (["--batch-size", "3"], "--batch-size goes with --explain"),
        (["--model", "mlp-3", "--explain", "--device", "cpu", "--precision", "tf32"], "computes in winograd, fp32"),
        (["--model", "small-cnn", "--norm", "ghost:4", "--explain", "--device", "emulator", "--batch-size", "3"],
         "--batch-size 3 is too small for small-cnn"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_one_line(minidl, arguments, message: str) -> None:
    result = minidl("models", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
