"""What a layer accepts, what it says about the rest, and that it leaves its inputs and earlier outputs alone."""

from typing import Any

import numpy as np
import pytest

from kernels.errors import ShapeError
from minidl import nn
from minidl.nn.init import manual_seed

LAYERS = {  # name: (layer, shape of x, shape of y); every length differs from its neighbour's
    "Conv2d": (lambda d: nn.Conv2d(4, 5, 3, padding=1, device=d), (2, 6, 7, 4), (2, 6, 7, 5)),
    "Linear": (lambda d: nn.Linear(4, 5, device=d), (6, 4), (6, 5)),
    "BatchNorm1d": (lambda d: nn.BatchNorm1d(4, device=d), (3, 6, 4), (3, 6, 4)),
    "BatchNorm2d": (lambda d: nn.BatchNorm2d(4, device=d), (2, 6, 7, 4), (2, 6, 7, 4)),
    "ReLU": (lambda d: nn.ReLU(device=d), (6, 4), (6, 4)),
    "Dropout": (lambda d: nn.Dropout(0.5, device=d), (6, 4), (6, 4)),
    "MaxPool2d": (lambda d: nn.MaxPool2d(2, device=d), (2, 6, 8, 4), (2, 3, 4, 4)),
    "AvgPool2d": (lambda d: nn.AvgPool2d(2, device=d), (2, 6, 8, 4), (2, 3, 4, 4)),
    "GlobalAvgPool2d": (lambda d: nn.GlobalAvgPool2d(device=d), (2, 6, 7, 4), (2, 4)),
    "Flatten": (lambda d: nn.Flatten(device=d), (2, 6, 7, 4), (2, 168)),
    "Softmax": (lambda d: nn.Softmax(device=d), (6, 4), (6, 4)),
    "LogSoftmax": (lambda d: nn.LogSoftmax(device=d), (2, 6, 4), (2, 6, 4)),
    "Concat": (lambda d: nn.Concat(nn.ReLU(device=d), nn.ReLU(device=d)), (2, 6, 4), (2, 6, 8)),
    "Residual": (lambda d: nn.Residual(nn.ReLU(device=d)), (6, 4), (6, 4)),
}


def broadcast(array: np.ndarray) -> np.ndarray:
    return np.broadcast_to(array[:1], array.shape)


def offset(array: np.ndarray) -> np.ndarray:
    """Contiguous, but three elements into its memory: aligned to the element and to nothing wider."""
    memory = np.empty(array.size + 3, array.dtype)
    memory[3:] = array.reshape(-1)
    return memory[3:].reshape(array.shape)


def every_second(array: np.ndarray) -> np.ndarray:
    memory = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan, array.dtype)
    memory[..., ::2] = array
    return memory[..., ::2]


FORMS = {
    "transposed": lambda a: np.array(a.T, order="C").T,
    "fortran": np.asfortranarray,
    "every second": every_second,
    "every second row": lambda a: np.repeat(a, 2, axis=0)[::2],
    "backwards": lambda a: np.array(a[::-1, ..., ::-1], order="C")[::-1, ..., ::-1],
    "broadcast": broadcast,
    "offset": offset,
}


def run(layer: nn.Module, x: Any, dy: Any) -> list[np.ndarray]:
    y = layer.forward(x)
    dx = layer.backward(dy)
    return [y, dx, *(parameter.grad for parameter in layer.parameters())]


def made(name: str, backend: Any) -> nn.Module:
    manual_seed(1)
    return LAYERS[name][0](backend)


@pytest.fixture
def arrays(normal):
    return lambda name: (normal(*LAYERS[name][1]), normal(*LAYERS[name][2]))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", LAYERS)
def test_any_memory_layout_gives_the_bits_of_a_contiguous_copy(name, form, backend, arrays, same_bits) -> None:
    x, dy = (FORMS[form](array) for array in arrays(name))
    if form != "offset":
        assert not (x.flags.c_contiguous and dy.flags.c_contiguous)
    expected = run(made(name, backend), np.array(x, order="C"), np.array(dy, order="C"))
    got = run(made(name, backend), x, dy)
    assert all(same_bits(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("name", ["Linear", "ReLU"])  # two: each kernel is compiled once more for such arrays
def test_read_only_arrays_are_inputs_like_any(name, backend, arrays, same_bits) -> None:
    x, dy = arrays(name)
    expected = run(made(name, backend), x, dy)
    for array in (x, dy):
        array.flags.writeable = False
    assert all(same_bits(a, b) for a, b in zip(run(made(name, backend), x, dy), expected, strict=True))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_inputs_and_gradients_are_only_read(name, training: bool, backend, arrays, same_bits) -> None:
    layer = made(name, backend).train(training)
    for x, dy in (arrays(name), tuple(np.asfortranarray(array) for array in arrays(name))):
        before = x.copy(), dy.copy()
        run(layer, x, dy)
        assert np.array_equal(x, before[0])
        assert np.array_equal(dy, before[1])


@pytest.mark.parametrize("name", LAYERS)
def test_results_stay_what_they_are_while_the_layer_goes_on(name, backend, arrays, same_bits) -> None:
    """Memory is used again only when nobody holds it."""
    layer = made(name, backend)
    held = run(layer, *arrays(name))[:2]  # gradients of parameters do change: they add up
    before = [array.copy() for array in held]
    for _ in range(3):
        run(layer, *arrays(name))
    assert all(same_bits(a, b) for a, b in zip(held, before, strict=True))


@pytest.mark.parametrize("name", LAYERS)
def test_another_dtype_is_refused_with_the_remedy(name, backend, arrays) -> None:
    layer = made(name, backend)
    x, dy = arrays(name)
    wanted = backend.dtype
    for other in ("float64" if wanted == np.float32 else "float32", "float16", "int64", "uint8", "bool"):
        remedy = rf" has dtype {other}, expected {wanted}; convert it with .astype\('{wanted}'\)"
        with pytest.raises(TypeError, match=rf"^\w+: the input{remedy}"):
            layer.forward(x.astype(other))
        layer.forward(x)
        with pytest.raises(TypeError, match=rf"^\w+: the gradient{remedy}"):
            layer.backward(dy.astype(other))


@pytest.mark.parametrize("name", LAYERS)
def test_what_is_no_array_is_refused(name, backend, arrays) -> None:
    layer = made(name, backend)
    x, _ = arrays(name)
    with pytest.raises(TypeError, match=r"^\w+: the input is a builtins.list, expected a numpy.ndarray"):
        layer.forward(x.tolist())
    layer.forward(x)
    with pytest.raises(TypeError, match=r"^\w+: the gradient is a builtins.NoneType, expected a numpy.ndarray"):
        layer.backward(None)


def test_a_tensor_of_pytorchs_is_named(torch) -> None:
    with pytest.raises(TypeError, match=r"Linear: the input is a torch.Tensor, expected a numpy.ndarray"):
        nn.Linear(3, 2).forward(torch.zeros(4, 3))


ANY_SHAPE = "ReLU", "Dropout", "Softmax", "LogSoftmax", "Concat", "Residual"


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in ANY_SHAPE])
def test_another_number_of_axes_is_refused(name, backend, arrays) -> None:
    x, _ = arrays(name)
    wrong = x[..., None, None]
    with pytest.raises(ShapeError) as e:
        made(name, backend).forward(wrong)
    assert str(e.value).startswith(f"{name}: the input has shape {wrong.shape}, expected (n, ")


@pytest.mark.parametrize(("name", "wanted"), [("Conv2d", "(n, h, w, 4)"), ("Linear", "(n, 4)")])
def test_another_number_of_channels_is_refused(name, wanted: str, backend, arrays) -> None:
    x, _ = arrays(name)
    wrong = x[..., :3]
    with pytest.raises(ShapeError) as e:
        made(name, backend).forward(wrong)
    assert str(e.value) == f"{name}: the input has shape {wrong.shape}, expected {wanted}"


@pytest.mark.parametrize("name", LAYERS)
def test_a_gradient_of_another_shape_is_refused(name, backend, arrays) -> None:
    layer = made(name, backend)
    x, dy = arrays(name)
    for wrong in (dy[:1], dy[..., :1], dy[None], dy.reshape(-1)):
        layer.forward(x)
        with pytest.raises(ShapeError) as e:
            layer.backward(wrong)
        expected = f"the gradient has shape {wrong.shape}, expected {LAYERS[name][2]}, that of forward's output"
        assert str(e.value).split(": ", 1)[1] == expected
