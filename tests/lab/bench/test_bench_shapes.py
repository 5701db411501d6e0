"""Lists of shapes: what a line may hold, and what is said of one that cannot be."""

import json

import pytest

from minidl.errors import ConfigError
from minidl.lab.bench import default_shapes, operations_of, read_shapes
from minidl.lab.bench.operations import problem
from minidl.lab.bench.shapes import FAMILIES, family_of, shape


def written(tmp_path, *lines: object) -> str:
    path = tmp_path / "shapes.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), "utf-8")
    return str(path)


def test_a_list_is_read(tmp_path) -> None:
    conv = {"op": "conv2d_forward", "n": 2, "h": 8, "w": 9, "c_in": 3, "c_out": 4, "kernel": [1, 5], "stride": 2}
    pool = {"op": "max_pool2d", "n": 2, "h": 8, "w": 8, "c": 3, "kernel": 2}
    first, second, third = read_shapes(written(tmp_path, "# ours", "", conv, pool, {"op": "sgd", "model": "mlp-3"}))
    assert first.operations == ("conv2d_forward",)
    assert (first.c_in, first.kernel, first.stride, first.padding) == (3, (1, 5), (2, 2), (0, 2))
    assert first.label == "2x8x9x3 to 4, 1x5/2"
    assert (second.stride, second.padding) == ((2, 2), (0, 0))
    assert second.operations == FAMILIES["max_pool2d"]
    assert (third.family, third.model) == ("optimizer", "mlp-3")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not JSON"),
        ([1], 'expected an object with "op"'),
        ({"n": 1}, 'expected an object with "op"'),
        ({"op": "conv3d"}, "did you mean 'conv2d'?"),
        ({"op": "batchnorm", "n": 1, "h": 2, "w": 2}, "batchnorm lacks c"),
        ({"op": "batchnorm", "n": 1, "h": 2, "w": 2, "c": 2, "chanels": 1}, "batchnorm has no 'chanels'"),
        ({"op": "batchnorm", "n": 0, "h": 2, "w": 2, "c": 2}, "n must be a whole number of at least 1, not 0"),
        ({"op": "batchnorm", "n": True, "h": 2, "w": 2, "c": 2}, "not true"),
        ({"op": "batchnorm", "n": 1, "h": 1, "w": 1, "c": 2}, "more than one value a channel"),
        ({"op": "conv2d", "n": 1, "h": 2, "w": 2, "c_in": 1, "c_out": 1, "kernel": 7, "padding": 0}, "does not fit"),
        ({"op": "conv2d", "n": 1, "h": 2, "w": 2, "c_in": 1, "c_out": 1, "kernel": [1, 2, 3]}, "a number or two"),
        ({"op": "max_pool2d", "n": 1, "h": 9, "w": 9, "c": 1, "kernel": 2, "padding": 2}, "padding"),
        ({"op": "sgd", "model": 3}, "needs a model by name"),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path, line, message) -> None:
    good = {"op": "relu", "n": 1, "h": 1, "w": 1, "c": 1}
    path = written(tmp_path, "# a remark", good, line)
    with pytest.raises(ConfigError) as caught:
        read_shapes(path)
    assert str(caught.value).startswith(f"--shapes {path}:3: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_list(tmp_path) -> None:
    with pytest.raises(ConfigError, match="holds no shape"):
        read_shapes(written(tmp_path, "# nothing"))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_shapes(tmp_path / "none.jsonl")


def test_names_of_operations_and_families() -> None:
    assert operations_of(("conv2d", "conv2d_forward", "sgd")) == (*FAMILIES["conv2d"], "sgd")
    assert family_of("adam") == "optimizer"
    with pytest.raises(ConfigError, match="did you mean 'batchnorm_relu_forward'"):
        operations_of(("batchnorm_relu_forwrad",))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_own_list_has_every_family_and_what_kernels_are_bad_at(device) -> None:
    shapes = default_shapes(device)
    assert {one.family for one in shapes} == set(FAMILIES)
    convolutions = [one for one in shapes if one.family == "conv2d"]
    assert {one.kernel[0] for one in convolutions} == {1, 3, 5, 7}
    assert {one.stride[0] for one in convolutions} == {1, 2}
    assert any(one.c_in % 4 for one in convolutions)
    assert {1, 3} <= {one.c_in for one in convolutions}
    assert len({(one.family, one.label) for one in shapes}) == len(shapes)


def test_bytes_and_operations_are_those_of_the_definition() -> None:
    conv = shape("conv2d", n=2, h=4, w=4, c_in=3, c_out=5, kernel=3)
    cost = problem("conv2d_forward", conv).cost
    assert cost == (4 * (2 * 16 * 3 + 27 * 5), 4 * 2 * 16 * 5, 2 * 2 * 16 * 5 * 27)
    elements = 2 * 3 * 4 * 5
    norm = shape("batchnorm", n=2, h=3, w=4, c=5)
    passes = {
        name: (problem(name, norm).cost.reads / elements / 4, problem(name, norm).cost.writes / elements / 4)
        for name in norm.operations
    }
    assert passes["batchnorm_relu_forward"] == (2, 1)
    assert passes["batchnorm_add_relu_forward"] == (3, 1)
    assert passes["batchnorm_relu_backward"] == (4, 1)
    assert passes["batchnorm_add_relu_backward"] == (5, 2)
    assert problem("linear_forward", shape("linear", n=2, c_in=3, c_out=4)).cost.flops == 2 * 2 * 3 * 4
