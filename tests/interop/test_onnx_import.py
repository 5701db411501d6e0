"""ONNX import: files of PyTorch's and made by hand, against onnxruntime; names, forms of operators, what is refused."""

import numpy as np
import pytest

from minidl import nn
from minidl.errors import InteropError
from minidl.interop import import_onnx
from minidl.nn import Graph


@pytest.fixture
def make(onnx, tmp_path):
    """A file of nodes (operator, inputs, outputs, attributes), with initializers by name; returns its path."""

    def write(nodes, initializers=None, shape=("N", 3, 8, 10), output=("N",), opset=21, name="model.onnx", **options):
        helper, kinds = onnx.helper, onnx.TensorProto
        made = [
            helper.make_node(op, inputs, outputs, name=more.pop("node_name", ""), domain=more.pop("domain", ""), **more)
            for op, inputs, outputs, more in ((*node, {})[:4] for node in nodes)
            for more in [dict(more)]
        ]
        graph = helper.make_graph(
            made,
            "graph",
            [helper.make_tensor_value_info("x", options.get("dtype", kinds.FLOAT), shape)],
            [helper.make_tensor_value_info("y", kinds.FLOAT, output)] if output is not None else [],
            [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in (initializers or {}).items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        path = tmp_path / name
        path.write_bytes(model.SerializeToString())
        return path

    return write


@pytest.fixture
def run(onnxruntime):
    """onnxruntime's answer, for images and vectors in minidl's order, in minidl's order."""

    def answer(path, x):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        given = np.ascontiguousarray(np.moveaxis(x, -1, 1))
        (y,) = session.run(None, {session.get_inputs()[0].name: given})
        return np.moveaxis(y, 1, -1)

    return answer


@pytest.fixture
def agree(run, rng):
    """Import a file, run it beside onnxruntime, and return the model."""

    def check(path, shape=(2, 8, 10, 3)) -> Graph:
        x = rng.standard_normal(shape).astype(np.float32)
        model = import_onnx(path).eval()
        expected, actual = run(path, x), model.forward(x)
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
        return model

    return check


def weights(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


IMAGE = ("N", "C", "H", "W")


# PyTorch's own exporter


@pytest.fixture(scope="module")
def network(torch):
    class Block(torch.nn.Module):
        def __init__(self, c_in: int, c_out: int, stride: int) -> None:
            super().__init__()
            self.conv1 = torch.nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
            self.bn1 = torch.nn.BatchNorm2d(c_out)
            self.downsample = torch.nn.Sequential(torch.nn.Conv2d(c_in, c_out, 1, stride), torch.nn.BatchNorm2d(c_out))

        def forward(self, x):
            return (self.bn1(self.conv1(x)) + self.downsample(x)).relu()

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = torch.nn.Conv2d(3, 8, 3, 1, 1, bias=False)
            self.bn1 = torch.nn.BatchNorm2d(8)
            self.pool = torch.nn.MaxPool2d(3, 2, 1, ceil_mode=True)
            self.layer1 = torch.nn.Sequential(Block(8, 8, 1), Block(8, 16, 2))
            self.average = torch.nn.AdaptiveAvgPool2d(1)
            self.dropout = torch.nn.Dropout(0.2)
            self.fc = torch.nn.Linear(16, 5)

        def forward(self, x):
            x = self.layer1(self.pool(self.bn1(self.conv1(x)).relu()))
            return self.fc(self.dropout(torch.flatten(self.average(x), 1)))

    torch.manual_seed(0)
    model = Net()
    model(torch.randn(8, 3, 8, 10))  # moves the running statistics
    return model.eval()


@pytest.fixture
def exported(torch, onnx, network, tmp_path):
    def export(**options):
        path = tmp_path / "torch.onnx"
        x = torch.zeros(2, 3, 8, 10)
        torch.onnx.export(
            network, x, str(path), dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "N"}}, **options
        )
        return path

    return export


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_pytorch_exports_is_imported_with_its_names(torch, network, exported, agree) -> None:
    """With batch normalization apart; equal initializers are one in the file, and an Identity gives the others."""
    model = agree(exported(training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False))
    state, theirs = model.state_dict(), network.state_dict()
    assert sorted(state) == sorted(theirs)
    for name, value in theirs.items():
        assert np.array_equal(state[name], value.numpy()) or name.endswith("tracked"), name
    assert vars(model)["bn1"].eps == 1e-5
    assert vars(model)["bn1"].momentum == 0.1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_pytorch_exports_folded_is_imported_under_its_modules_names(exported, agree) -> None:
    model = agree(exported())
    assert sorted(name for name in model.state_dict() if "weight" in name) == [
        *("conv1.weight", "fc.weight", "layer1.0.conv1.weight", "layer1.0.downsample.0.weight"),
        *("layer1.1.conv1.weight", "layer1.1.downsample.0.weight"),
    ]


def test_an_imported_model_trains(exported, torch, network, rng) -> None:
    """Its gradients are PyTorch's, on the float64 reference; and a step of it lowers the loss."""
    model = import_onnx(_kept(exported, torch)).to("reference")
    twin = __import__("copy").deepcopy(network).double().train()
    for module in twin.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for _, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            assert module.p == 0.2
            module.p = 0.0
    x, dy = rng.standard_normal((4, 8, 10, 3)), rng.standard_normal((4, 5))
    inputs = torch.from_numpy(np.moveaxis(x, -1, 1).copy()).requires_grad_()
    twin(inputs).backward(torch.from_numpy(dy))
    model.train().forward(x)
    dx = model.backward(dy)
    np.testing.assert_allclose(dx, np.moveaxis(inputs.grad.numpy(), 1, -1), rtol=0, atol=1e-12)
    ours = dict(model.named_parameters())
    for name, parameter in twin.named_parameters():
        gradient = ours[name].grad.transpose(ours[name].axes or range(parameter.ndim))
        np.testing.assert_allclose(gradient, parameter.grad.numpy(), rtol=0, atol=1e-11, err_msg=name)


def _kept(exported, torch):
    with __import__("warnings").catch_warnings():
        __import__("warnings").simplefilter("ignore", DeprecationWarning)
        return exported(training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False)


# Forms of operators


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [
        ("Conv", {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
        ("Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ("Conv", {"auto_pad": "SAME_LOWER", "strides": [1, 3]}),
        ("Conv", {"auto_pad": "VALID"}),
        ("MaxPool", {"kernel_shape": [3, 2], "pads": [2, 1, 0, 1]}),
        ("MaxPool", {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER", "strides": [3, 3]}),
        ("MaxPool", {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1], "strides": [2, 2], "ceil_mode": 1}),
        ("MaxPool", {"kernel_shape": [2, 2], "dilations": [2, 3], "storage_order": 1}),
        ("AveragePool", {"kernel_shape": [3, 3], "pads": [0, 1, 2, 1], "count_include_pad": 1}),
        ("AveragePool", {"kernel_shape": [2, 2], "auto_pad": "SAME_LOWER", "strides": [2, 2]}),
        ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ],
)
def test_windows_of_all_forms(make, agree, rng, operator, attributes) -> None:
    initializers = {"w": weights(rng, 4, 3, 3, 3), "b": weights(rng, 4)} if operator == "Conv" else {}
    agree(make([(operator, ["x", *initializers], ["y"], attributes)], initializers, output=IMAGE))


@pytest.mark.parametrize("attributes", [{}, {"transB": 1}, {"alpha": 0.5, "beta": 0.25, "transB": 1}, {"beta": 0.0}])
@pytest.mark.parametrize("bias", [(4,), (1, 4), (), (1,), None])
def test_matrix_products_of_all_forms(make, agree, rng, attributes, bias) -> None:
    initializers = {"w": weights(rng, *((4, 5) if attributes.get("transB") else (5, 4)))}
    initializers |= {} if bias is None else {"b": weights(rng, *bias)}
    path = make([("Gemm", ["x", *initializers], ["y"], attributes)], initializers, ("N", 5), ("N", "M"))
    agree(path, (3, 5))


def test_graphs_of_any_wiring(make, agree, rng) -> None:
    """Images of one pixel that go on as images, sums of three, channels of both kinds, dead ends, and constants."""
    nodes = [
        ("Constant", [], ["ratio"], {"value_float": 0.25}),
        ("Identity", ["w"], ["w2"]),
        ("Conv", ["x", "w"], ["a"]),
        ("Relu", ["a"], ["b"]),
        ("Relu", ["x"], ["dead"]),
        ("Sum", ["a", "b", "x"], ["s"]),
        ("Mul", ["factor", "s"], ["t"]),
        ("Concat", ["t", "x"], ["c"], {"axis": -3}),
        ("GlobalAveragePool", ["c"], ["g"]),
        ("Conv", ["g", "squeeze"], ["q"]),
        ("GlobalAveragePool", ["q"], ["again"]),
        ("Dropout", ["again", "ratio"], ["d"]),
        ("Conv", ["x", "w2"], ["e"]),
        ("GlobalAveragePool", ["e"], ["f"]),
        ("Concat", ["d", "f"], ["h"], {"axis": 1}),
        ("Flatten", ["h"], ["i"]),
        ("Flatten", ["i"], ["j"]),
        ("LogSoftmax", ["j"], ["y"], {"axis": 1}),
    ]
    initializers = {"w": weights(rng, 3, 3, 1, 1), "squeeze": weights(rng, 2, 6, 1, 1), "factor": np.float32(1.5)}
    model = agree(make(nodes, initializers, output=("N", 5)))
    assert "dead" not in repr(model)
    assert len([name for name in model.state_dict() if name.endswith("weight")]) == 4


def test_an_output_of_one_pixel_is_an_image(make, agree) -> None:
    assert agree(make([("GlobalAveragePool", ["x"], ["y"])], output=IMAGE)).output == "globalaveragepool_pixel"


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 15, 18, 21, 24])
def test_old_and_new_operator_sets(onnx, make, agree, rng, opset) -> None:
    nodes = [
        ("Conv", ["x", "w"], ["c"]),
        ("BatchNormalization", ["c", "s", "b", "m", "v"], ["n"], {"epsilon": 1e-3, "momentum": 0.75}),
        ("Relu", ["n"], ["r"]),
        ("MaxPool", ["r"], ["p"], {"kernel_shape": [2, 2]}),
        ("Dropout", ["p"], ["d"], {"ratio": 0.125} if opset < 12 else {}),
        ("GlobalAveragePool", ["d"], ["g"]),
        ("Flatten", ["g"], ["f"]),
        ("Gemm", ["f", "fc", "b"], ["h"]),
        ("Softmax", ["h"], ["y"]),
    ]
    initializers = {"w": weights(rng, 4, 3, 3, 3), "fc": weights(rng, 4, 4)}
    initializers |= {name: weights(rng, 4) ** 2 + 0.5 for name in "sbmv"}
    path = make(nodes, initializers, output=("N", 4), opset=opset)
    layers = [node.layer for node in agree(path).nodes.values()]
    assert layers[1].eps == 1e-3
    assert layers[1].momentum == 0.25
    assert layers[4].p == (0.125 if opset < 12 else 0.5)


def test_numbers_of_float64_become_the_models(make, onnx) -> None:
    path = make([("Gemm", ["x", "w"], ["y"])], {"w": np.full((5, 4), 0.1)}, ("N", 5), ("N", 4))
    with pytest.raises(InteropError, match="is no valid ONNX model"):  # a product of float32 by float64 is none
        import_onnx(path)


# Names


@pytest.mark.parametrize(
    ("initializer", "node", "layer"),
    [
        ("layer1.0.conv.weight", "", "layer1.0.conv"),
        ("features.weight", "other", "features"),
        ("w", "features.0", "features.0"),
        ("w", "/layer1/layer1.0/conv1/Conv", "layer1.0.conv1"),
        ("w", "", "conv"),
        ("w", "a\nb", "conv"),
        ("forward.weight", "", "conv"),
        ("a.backend.weight", "", "conv"),
        ("nodes.weight", "", "conv"),
        ("input.weight", "", "conv"),
        ("..weight", "", "conv"),
        ("__class__.weight", "", "conv"),
        (".".join("a" * 500) + ".weight", "", "conv"),
        ("a" * 5000 + ".weight", "", "conv"),
    ],
)
def test_layers_are_called_as_the_file_calls_them_where_that_is_a_name(make, rng, initializer, node, layer) -> None:
    nodes = [("Conv", ["x", initializer], ["y"], {"node_name": node})]
    model = import_onnx(make(nodes, {initializer: weights(rng, 2, 3, 1, 1)}, output=IMAGE))
    assert list(model.nodes) == [layer]
    assert list(model.state_dict()) == [f"{layer}.weight"]


def test_names_that_clash_get_numbers(make, agree, rng) -> None:
    nodes = [
        ("Conv", ["x", "a.weight"], ["p"]),
        ("Conv", ["p", "a.weight"], ["q"]),  # shared: each layer gets its own
        ("Conv", ["q", "a.b.weight"], ["r"]),
        ("Relu", ["r"], ["s"], {"node_name": "a"}),
        ("Relu", ["s"], ["y"], {"node_name": "a.c"}),
    ]
    model = agree(
        make(nodes, {"a.weight": weights(rng, 3, 3, 1, 1), "a.b.weight": weights(rng, 3, 3, 1, 1)}, output=IMAGE)
    )
    assert list(model.nodes) == ["a", "a_2", "a_b_2", "a_3", "a_c_2"]


# What is refused


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (
            [("Sigmoid", ["x"], ["a"]), ("Tanh", ["a"], ["y"])],
            "operators that minidl does not import: Sigmoid, Tanh; it",
        ),
        ([("Relu", ["x"], ["y"], {"domain": "com.example"})], r"does not import: com\.example\.Relu"),
        ([("Conv", ["x", "w"], ["y"], {"group": 3})], "it works on 3 groups of channels"),
        ([("Conv", ["x", "w3"], ["y"], {"dilations": [2, 2]})], r"its dilations are \(2, 2\)"),
        ([("MaxPool", ["x"], ["y", "i"], {"kernel_shape": [2, 2]})], "its second output, the places of the maxima"),
        (
            [("AveragePool", ["x"], ["y"], {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]})],
            r"its pads \(0, 0, 1, 1\) count in no mean",
        ),
        (
            [("MaxPool", ["x"], ["y"], {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1], "ceil_mode": 1})],
            r"its pads \(0, 0, 1, 1\) go with ceil_mode",
        ),
        ([("AveragePool", ["x"], ["y"], {"kernel_shape": [2, 2], "dilations": [2, 2]})], "its dilations are"),
        (
            [("BatchNormalization", ["x", *"ssss"], ["y", "m", "v"], {"training_mode": 1})],
            "it is not in inference form",
        ),
        ([("BatchNormalization", ["x", "s", "s", "s", "n"], ["y"])], "its variance is negative in places"),
        ([("BatchNormalization", ["x", "s", "s", "s", "nan"], ["y"])], "nan holds NaN or infinity"),
        ([("Flatten", ["x"], ["y"], {"axis": 2})], "its axis is 2; minidl flattens each image by itself, axis 1"),
        ([("Softmax", ["x"], ["y"], {"axis": 2})], "its axis is 2; minidl takes it over channels, axis 1"),
        ([("Softmax", ["x"], ["y"])], "its axis is -1"),
        ([("Concat", ["x", "x"], ["y"], {"axis": 2})], "its axis is 2; minidl concatenates channels, axis 1"),
        ([("Add", ["x", "c"], ["y"])], "input 1, 'c', is a constant"),
        ([("GlobalAveragePool", ["x"], ["g"]), ("Add", ["x", "g"], ["y"])], "its inputs have unequal shapes"),
        ([("Mul", ["x", "c"], ["y"])], r"its factor has shape \(3, 1, 1\); minidl multiplies by one number"),
        ([("Mul", ["x", "x"], ["y"])], "input 0, 'x', is computed; minidl needs it in the file"),
        ([("Pad", ["x", "p"], ["y"], {"mode": "edge"})], "minidl pads height and width, with a constant"),
        ([("Pad", ["x", "pc"], ["y"])], "minidl pads height and width, and removes nothing"),
        ([("Unsqueeze", ["x", "p1"], ["y"])], "its axes are"),
        ([("Dropout", ["x", "", "t"], ["y"])], "its training_mode is on"),
        ([("Identity", ["x"], ["y"])], "its output is a constant, or its input itself"),
        ([("Identity", ["s"], ["y"])], "its output is a constant, or its input itself"),
        ([("LayerNormalization", ["x", "ten"], ["y"])], "minidl normalizes all axes but the batch together"),
        ([("Conv", ["x", "x"], ["y"])], "input 1, 'x', is computed"),
        (
            [("GlobalAveragePool", ["x"], ["g"]), ("Flatten", ["g"], ["f"]), ("Conv", ["f", "w"], ["y"])],
            "valid|no image",
        ),
    ],
)
def test_what_minidl_does_not_have_is_refused_in_one_line(make, nodes, message) -> None:
    initializers = {
        "w": np.ones((3, 1, 1, 1), np.float32),
        "w3": np.ones((3, 3, 1, 1), np.float32),
        "s": np.ones(3, np.float32),
        "n": np.array([1, -1, 1], np.float32),
        "nan": np.array([1, np.nan, 1], np.float32),
        "c": np.ones((3, 1, 1), np.float32),
        "ten": np.ones(10, np.float32),
        "p": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "pc": np.array([0, 1, 0, 0, 0, 0, 0, 0]),
        "p1": np.array([0]),
        "t": np.array(True),
    }
    used = {name for node in nodes for name in node[1]}
    rank = {"Flatten": 2, "Unsqueeze": 5}.get(nodes[-1][0], 1 if nodes[-1][1] == ["s"] else 4)
    given = {name: value for name, value in initializers.items() if name in used}
    path = make(nodes, given, output=tuple(f"axis{i}" for i in range(rank)))
    with pytest.raises(InteropError, match=message) as error:
        import_onnx(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_group_normalization_of_before_opset_21_is_refused(make) -> None:
    """It scaled groups, not channels; no program ever wrote it so."""
    initializers = {"s": np.ones(1, np.float32)}
    nodes = [("GroupNormalization", ["x", "s", "s"], ["y"], {"num_groups": 1})]
    with pytest.raises(
        InteropError, match="is no valid ONNX model: Op registered for GroupNormalization is deprecated"
    ):
        import_onnx(make(nodes, initializers, output=IMAGE, opset=18))
