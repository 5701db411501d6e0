"""Values, gradients, buffers and arguments: what does not fit never reaches an operation."""

import numpy as np
import pytest

from kernels.errors import ShapeError
from minidl import nn


@pytest.mark.parametrize("shape", [(3, 3), (3, 5, 1), (15,), (5, 3), (0, 5), ()])
def test_a_value_of_another_shape_is_refused_and_nothing_changes(backend, shape) -> None:
    layer = nn.Linear(5, 3, device=backend)
    before = layer.weight.value
    with pytest.raises(ShapeError) as caught:
        layer.weight.value = backend.zeros(shape)
    assert str(caught.value) == f"Linear.weight: value has shape {shape}, expected (3, 5)"
    assert layer.weight.value is before
    with pytest.raises(ValueError, match=r"^Linear\.bias: grad has shape \(2,\), expected \(3,\)$"):
        layer.bias.grad = backend.zeros((2,))
    assert layer.bias.grad is None


@pytest.mark.parametrize("what", ["value", "grad"])
def test_another_dtype_or_no_array_is_refused(backend, what) -> None:
    layer = nn.Linear(5, 3, device=backend)
    with pytest.raises(TypeError, match=rf"^Linear\.weight: {what} has dtype int64, expected float"):
        setattr(layer.weight, what, np.ones((3, 5), np.int64))
    with pytest.raises(TypeError, match=rf"^Linear\.weight: {what} is a builtins\.list, expected"):
        setattr(layer.weight, what, [[1.0] * 5] * 3)
    with pytest.raises(TypeError, match=r"^Linear\.weight: value is a builtins\.NoneType"):
        layer.weight.value = None


@pytest.mark.parametrize("layout", ["transposed", "strided", "read-only", "one value"])
def test_another_layout_is_copied_into_the_right_one(backend, normal, same_bits, layout) -> None:
    layer, x = nn.Linear(5, 3, device=backend), normal(4, 5)
    value = np.arange(15, dtype=backend.dtype).reshape(3, 5)
    given = {
        "transposed": np.asfortranarray(value),
        "strided": np.repeat(value, 2, axis=1)[:, ::2],
        "read-only": value.copy(),
        "one value": np.broadcast_to(value[:1, :1], (3, 5)),
    }[layout]
    if layout == "read-only":
        given.setflags(write=False)
    expected = np.array(given, order="C")
    layer.weight.value = given
    layer.weight.grad = given
    for array in (layer.weight.value, layer.weight.grad):
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert same_bits(array, expected)
    twin = nn.Linear(5, 3, device=backend)
    twin.load_state_dict({"weight": expected, "bias": layer.bias.value})
    assert same_bits(layer.forward(x), twin.forward(x))


def test_what_fits_is_taken_as_it_is(backend) -> None:
    layer = nn.Linear(5, 3, device=backend)
    value, grad = backend.zeros((3, 5)), backend.zeros((3, 5))
    layer.weight.value, layer.weight.grad = value, grad
    assert layer.weight.value is value
    assert layer.weight.grad is grad
    layer.weight.grad = None
    assert layer.weight.grad is None


def test_a_moved_parameter_takes_its_new_devices_arrays() -> None:
    layer = nn.Linear(5, 3).to("reference")
    layer.weight.value = np.ones((3, 5))
    with pytest.raises(TypeError, match=r"Linear\.weight: value has dtype float32, expected float64"):
        layer.weight.value = np.ones((3, 5), np.float32)


def test_a_buffer_of_another_shape_is_refused_and_nothing_changes(backend) -> None:
    layer = nn.BatchNorm1d(4, device=backend)
    before = layer.running_mean
    with pytest.raises(ShapeError, match=r"^BatchNorm1d\.running_mean has shape \(3,\), expected \(4,\)$"):
        layer.running_mean = backend.zeros((3,))
    with pytest.raises(TypeError, match=r"^BatchNorm1d\.running_var has dtype int64"):
        layer.running_var = np.ones(4, np.int64)
    assert layer.running_mean is before
    assert layer.state_dict()["running_mean"].shape == (4,)
    layer.running_mean = backend.array(np.repeat(np.arange(4.0), 2))[::2]
    assert layer.running_mean.flags.c_contiguous
    assert layer.state_dict()["running_mean"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("count", [np.nan, np.inf, -1.0, 2.5, 1e30])
def test_a_count_of_batches_that_is_none_is_refused_and_nothing_changes(backend, count) -> None:
    model = nn.Sequential({"fc": nn.Linear(2, 3, device=backend), "bn": nn.BatchNorm1d(3, device=backend)})
    before = model.state_dict()
    wrong = {name: value + 1 for name, value in before.items()} | {"bn.num_batches_tracked": np.array(count)}
    with pytest.raises(ValueError, match=r"bn\.num_batches_tracked is .*, expected a whole number of at least 0$"):
        model.load_state_dict(wrong)
    after = model.state_dict()
    assert all(np.array_equal(after[name], before[name]) for name in before)
    model.load_state_dict(before | {"bn.num_batches_tracked": np.array(7.0)})  # whole, as a float
    assert model[1].num_batches_tracked == 7


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Conv2d(1, 1, 2.7), r"Conv2d: kernel_size must be one or two whole numbers, got 2.7$"),
        (lambda: nn.Conv2d(1, 1, (3, 2.0)), r"Conv2d: kernel_size must be one or two whole numbers, got \(3, 2.0\)"),
        (lambda: nn.Conv2d(1, 1, 3, stride="1"), "Conv2d: stride must be one or two whole numbers, got "),
        (lambda: nn.Conv2d(1, 1, 3, padding=(1, 1, 1)), "Conv2d: padding must be one or two whole numbers, got "),
        (lambda: nn.Conv2d(1.0, 1, 3), "Conv2d: in_channels must be a whole number, got 1.0"),
        (lambda: nn.Linear(2, "3"), "Linear: out_features must be a whole number, got '3'"),
        (lambda: nn.MaxPool2d(2.5), "MaxPool2d: kernel_size must be one or two whole numbers"),
        (lambda: nn.AvgPool2d(2, stride=None, padding=0.5), "AvgPool2d: padding must be one or two whole numbers"),
        (lambda: nn.BatchNorm1d(2.5), "BatchNorm1d: num_features must be a whole number, got 2.5"),
        (lambda: nn.BatchNorm2d(2, momentum="a"), "BatchNorm2d: momentum must be a number, got 'a'"),
        (lambda: nn.BatchNorm2d(2, eps="a"), "BatchNorm2d: eps must be a number, got 'a'"),
        (lambda: nn.Dropout("a"), "Dropout: p must be a number, got 'a'"),
        (lambda: nn.CrossEntropyLoss(ignore_index=1.5), "CrossEntropyLoss: ignore_index must be a whole number"),
    ],
)
def test_arguments_of_another_type_are_named(make, message) -> None:
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize("momentum", [-0.1, 1.5, np.nan])
def test_a_momentum_is_a_weight(momentum) -> None:
    with pytest.raises(ValueError, match="BatchNorm2d: momentum must be from 0 to 1, or None, got "):
        nn.BatchNorm2d(2, momentum=momentum)


def test_whole_numbers_of_numpy_and_lists_will_do() -> None:
    layer = nn.Conv2d(np.int64(2), 3, [np.int32(3), 1], stride=np.uint8(2))
    assert (layer.kernel_size, layer.stride) == ((3, 1), (2, 2))
    assert {type(number) for number in (*layer.kernel_size, *layer.stride, layer.in_channels)} == {int}
