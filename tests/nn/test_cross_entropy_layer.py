"""CrossEntropyLoss against PyTorch, and what it refuses."""

from typing import Any

import numpy as np
import pytest

from kernels.errors import ShapeError
from minidl import nn
from minidl.backends import get_backend

OPTIONS = [
    {},
    {"reduction": "sum"},
    {"label_smoothing": 0.1},
    {"label_smoothing": 1.0},
    {"ignore_index": 2},
    {"ignore_index": 2, "label_smoothing": 0.3, "reduction": "sum"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", [(6, 10), (1, 2), (9, 3)], ids=str)
def test_it_is_pytorchs(backend, normal, oracle, within, unit, shape: Any, options: dict[str, Any]) -> None:
    n, classes = shape
    logits, targets = 3 * normal(n, classes), np.arange(n) % min(classes, 3)
    layer = nn.CrossEntropyLoss(**options, device=backend)
    loss = layer.forward(logits, targets)
    dlogits = layer.backward()

    theirs = oracle.tensor(logits).requires_grad_()
    expected = oracle.torch.nn.CrossEntropyLoss(**options)(theirs, oracle.tensor(targets))
    expected.backward()

    # A row's loss is a difference of numbers no larger than `size`, its log-sum-exp a sum of `classes` terms; each
    # probability is off relatively by as much as its exponent is absolutely.
    size = np.abs(logits).max() + np.log(classes)
    error = (classes + 8) * unit * (1 + size)
    counted = np.count_nonzero(targets != layer.ignore_index)
    share = counted if layer.reduction == "mean" else 1
    assert loss.shape == ()
    assert loss.dtype == backend.dtype
    within(loss, expected.item(), (counted + 4) * error * counted / share, "loss")
    within(dlogits, theirs.grad.numpy(), 4 * error / share, "dlogits")


def test_huge_logits_are_exact(backend) -> None:
    layer = nn.CrossEntropyLoss(device=backend)
    assert layer.forward(np.array([[1e4, -1e4, 0]], backend.dtype), np.array([1])) == 20000
    assert np.array_equal(layer.backward(), [[1, -1, 0]])


def test_equal_logits_are_exact(backend) -> None:
    """Probabilities of 1/2 and 1/4 round nowhere."""
    layer = nn.CrossEntropyLoss(device=backend)
    assert layer.forward(np.zeros((2, 4), backend.dtype), np.array([1, 3])) == backend.dtype.type(np.log(4))
    assert np.array_equal(layer.backward(), [[0.125, -0.375, 0.125, 0.125], [0.125, 0.125, 0.125, -0.375]])


def test_ignored_rows_take_no_part(backend, normal, same_bits) -> None:
    logits, targets = normal(6, 4), np.array([0, -100, 2, 3, -100, 1])
    layer = nn.CrossEntropyLoss(device=backend)
    loss = layer.forward(logits, targets).copy()
    dlogits = layer.backward()
    counted = targets != -100
    assert same_bits(layer.forward(logits[counted], targets[counted]), loss)
    assert same_bits(layer.backward(), dlogits[counted])
    assert not dlogits[~counted].any()


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize(("reduction", "expected"), [("mean", np.nan), ("sum", 0.0)])
def test_nothing_that_counts_gives_nan_or_zero_and_a_zero_gradient(
    rows: int, reduction: str, expected: float, backend, normal, oracle
) -> None:
    logits, targets = normal(rows, 4), np.full(rows, -100)
    layer = nn.CrossEntropyLoss(reduction=reduction, device=backend)
    theirs = oracle.torch.nn.CrossEntropyLoss(reduction=reduction)(oracle.tensor(logits), oracle.tensor(targets))
    assert np.array_equal(theirs.item(), expected, equal_nan=True)
    assert np.array_equal(layer.forward(logits, targets), expected, equal_nan=True)
    assert np.array_equal(layer.backward(), np.zeros((rows, 4)))


def test_it_is_called_with_both_arguments(backend, normal) -> None:
    logits, targets = normal(5, 3), np.array([0, 1, 2, 0, 1])
    layer = nn.CrossEntropyLoss(device=backend)
    assert layer(logits, targets) == layer.forward(logits, targets)


def test_what_does_not_fit_is_refused(backend, normal) -> None:
    layer, logits = nn.CrossEntropyLoss(device=backend), normal(3, 4)
    with pytest.raises(ShapeError, match=r"CrossEntropyLoss: the input has shape \(3,\), expected \(n, classes\)"):
        layer.forward(logits[:, 0], np.zeros(3, np.int64))
    with pytest.raises(ShapeError, match=r"targets have shape \(2,\), expected \(3,\) for logits of shape \(3, 4\)"):
        layer.forward(logits, np.zeros(2, np.int64))
    with pytest.raises(
        TypeError, match=r"CrossEntropyLoss: targets has dtype int32, expected int64.*astype\('int64'\)"
    ):
        layer.forward(logits, np.zeros(3, np.int32))
    with pytest.raises(TypeError, match=r"CrossEntropyLoss: targets is a builtins.NoneType, expected a numpy.ndarray"):
        layer.forward(logits)
    with pytest.raises(TypeError, match="takes no gradient"):
        layer.backward(np.ones(()))


@pytest.mark.parametrize("target", [4, -1, -100])
def test_a_target_out_of_range_is_named_before_anything_is_written(target: int, backend, normal) -> None:
    layer = nn.CrossEntropyLoss(ignore_index=7, device=backend)
    message = f"target {target} in row 1 is not one of the 4 classes; give 0 to 3, or 7 to ignore the row"
    with pytest.raises(IndexError, match=message):
        layer.forward(normal(3, 4), np.array([7, target, 9]))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.1}, {"ignore_index": 2, "label_smoothing": 1.0}], ids=str
)
@pytest.mark.parametrize("weighted", [True, False])
def test_weights_and_the_losses_of_single_rows_are_pytorchs(
    backend, normal, rng, oracle, within, unit, reduction: str, options: dict[str, Any], weighted: bool
) -> None:
    n, classes = 9, 5
    logits, targets = 3 * normal(n, classes), np.arange(n) % 3
    weight = rng.uniform(0.1, 3, classes).astype(np.float32) if weighted else None
    layer = nn.CrossEntropyLoss(weight, reduction=reduction, **options, device=backend)
    dloss = (normal(n),) if reduction == "none" else ()
    loss = layer.forward(logits, targets)
    dlogits = layer.backward(*dloss)

    theirs = oracle.tensor(logits).requires_grad_()
    weights = None if weight is None else oracle.tensor(weight)
    expected = oracle.torch.nn.CrossEntropyLoss(weights, reduction=reduction, **options)(theirs, oracle.tensor(targets))
    expected.backward(*(oracle.tensor(part) for part in dloss))

    # As above; a weight is a factor of up to 3 and two roundings more.
    size = np.abs(logits).max() + np.log(classes)
    error = 3 * (classes + 10) * unit * (1 + size)
    counted = np.count_nonzero(targets != layer.ignore_index)
    share = 1.0
    if reduction == "mean":
        share = counted if weight is None else weight[targets[targets != layer.ignore_index]].sum()
    assert loss.shape == ((n,) if reduction == "none" else ())
    within(loss, expected.detach().numpy(), (counted + 4) * error * counted / share, "loss")
    within(dlogits, theirs.grad.numpy(), 6 * error / share * np.abs(dloss or 1).max(), "dlogits")


def test_equal_weights_change_no_mean(backend, normal, same_bits) -> None:
    logits, targets = normal(6, 4), np.array([0, 1, 2, 3, 3, 1])
    plain, weighted = nn.CrossEntropyLoss(device=backend), nn.CrossEntropyLoss([4] * 4, device=backend)
    assert same_bits(plain.forward(logits, targets), weighted.forward(logits, targets))
    assert same_bits(plain.backward(), weighted.backward())


def test_the_gradient_of_single_rows_is_wanted_once(backend, normal) -> None:
    logits, targets = normal(3, 4), np.array([0, 3, 1])
    layer = nn.CrossEntropyLoss(reduction="none", device=backend)
    layer.forward(logits, targets)
    with pytest.raises(TypeError, match=r"with reduction='none' give the gradient of each row's loss, of shape \(n,\)"):
        layer.backward()
    with pytest.raises(ShapeError, match=r"CrossEntropyLoss: the gradient has shape \(2,\), expected \(3,\)"):
        layer.backward(np.ones(2, backend.dtype))
    assert layer.backward(np.ones(3, backend.dtype)).shape == (3, 4)
    with pytest.raises(RuntimeError, match="there is no forward pass"):
        layer.backward(np.ones(3, backend.dtype))


def test_weights_are_a_buffer(backend, cpu) -> None:
    layer = nn.CrossEntropyLoss([1, 2.5], device=backend)
    assert list(layer.state_dict()) == ["weight"]
    assert layer.weight.dtype == backend.dtype
    assert layer.to(cpu).weight.dtype == cpu.dtype
    assert not nn.CrossEntropyLoss(device=backend).state_dict()
    with pytest.raises(
        ShapeError, match=r"CrossEntropyLoss: weight has shape \(2,\), expected \(3,\) for logits of shape \(4, 3\)"
    ):
        layer.forward(np.zeros((4, 3), cpu.dtype), np.zeros(4, np.int64))


def test_weights_that_are_none_are_named() -> None:
    for weight, error, message in (
        (7, ShapeError, r"weight has shape \(\), expected \(classes,\)"),
        ([[1, 2]], ShapeError, r"weight has shape \(1, 2\), expected \(classes,\)"),
        ([1, -2, 3], ValueError, r"weight\[1\] is -2, expected a finite number that is not negative"),
        ([1, 2, np.nan], ValueError, r"weight\[2\] is nan, expected a finite number"),
        ([np.inf], ValueError, r"weight\[0\] is inf, expected a finite number"),
        ("heavy", TypeError, r"weight must be a number for each class, got 'heavy'"),
    ):
        with pytest.raises(error, match=f"CrossEntropyLoss: {message}"):
            nn.CrossEntropyLoss(weight)


def test_it_prints_what_is_not_the_default() -> None:
    assert repr(nn.CrossEntropyLoss()) == "CrossEntropyLoss()"
    assert repr(nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1)) == (
        "CrossEntropyLoss(reduction='none', label_smoothing=0.1)"
    )


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="reduction is 'each', expected 'mean', 'sum' or 'none'"):
        nn.CrossEntropyLoss(reduction="each")
    for smoothing in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=f"label_smoothing is {smoothing}, expected 0 to 1"):
            nn.CrossEntropyLoss(label_smoothing=smoothing)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("device", ["cpu", "reference", "emulator"])
def test_nan_is_seen_in_the_loss_where_its_class_has_no_weight(device: str, reduction: str) -> None:
    """Training looks for NaN in the loss alone; the gradient of such a row is NaN."""
    backend = get_backend(device)
    weight = np.array([0, 1, 1, 1], backend.dtype)
    criterion = nn.CrossEntropyLoss(weight, reduction=reduction, device=backend)
    logits = np.array([[np.nan] * 4, [0, 1, 2, 3]], backend.dtype)
    loss = backend.numpy(criterion.forward(backend.array(logits), backend.array(np.array([0, 1]), np.int64)))
    assert np.isnan(loss.reshape(-1)[0])
