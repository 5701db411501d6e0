import math
import re

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from kernels.loss import cross_entropy_reference
from kernels.rows import scale_rows_reference
from minidl.lab.gradcheck import check_gradient

NAN, INF = np.nan, np.inf
IGNORE = -100


def cross_entropy(logits, targets, smoothing=0.0, ignore_index=IGNORE, reduction="mean", weight=None):
    logits, targets = np.array(logits, float), np.array(targets, int)
    weight = None if weight is None else np.array(weight, float)
    return cross_entropy_reference(logits, targets, smoothing, ignore_index, reduction, weight)


def pytorchs(torch, logits, targets, weight, dloss=None, **options):
    """(loss, dlogits) in float64."""
    tl = torch.tensor(np.array(logits, float), requires_grad=True)
    weight = None if weight is None else torch.tensor(np.array(weight, float))
    loss = torch.nn.functional.cross_entropy(tl, torch.tensor(np.array(targets, int)), weight, **options)
    loss.backward(None if dloss is None else torch.tensor(dloss))
    return loss.detach().numpy(), tl.grad.numpy()


def test_equal_logits_cost_the_logarithm_of_the_number_of_classes() -> None:
    loss, dlogits = cross_entropy([[3, 3, 3, 3]], [2])
    assert loss == math.log(4)
    assert_array_equal(dlogits, [[0.25, 0.25, -0.75, 0.25]])


def test_two_classes_by_hand() -> None:
    loss, dlogits = cross_entropy([[math.log(3), 0], [0, 0]], [0, 1])  # p = 3/4 and 1/2
    assert_allclose(loss, (math.log(4 / 3) + math.log(2)) / 2, rtol=1e-15)
    assert_allclose(dlogits, [[-1 / 8, 1 / 8], [1 / 4, -1 / 4]], rtol=1e-15)
    loss, dlogits = cross_entropy([[math.log(3), 0], [0, 0]], [0, 1], reduction="sum")
    assert_allclose(loss, math.log(8 / 3), rtol=1e-15)
    assert_allclose(dlogits, [[-1 / 4, 1 / 4], [1 / 2, -1 / 2]], rtol=1e-15)


def test_smoothing_by_hand() -> None:
    loss, dlogits = cross_entropy([[math.log(3), 0]], [0], smoothing=0.5)  # q = 3/4, 1/4, and so is p
    assert_allclose(loss, -0.75 * math.log(0.75) - 0.25 * math.log(0.25), rtol=1e-15)
    assert_allclose(dlogits, [[0, 0]], atol=1e-16)


def test_huge_logits_are_exact() -> None:
    loss, dlogits = cross_entropy([[1e4, -1e4, 0]], [1])
    assert loss == 20000
    assert_array_equal(dlogits, [[1, -1, 0]])
    loss, dlogits = cross_entropy([[1e308, -1e308]], [0])
    assert loss == 0
    assert_array_equal(dlogits, [[0, 0]])


def test_one_class_costs_nothing() -> None:
    loss, dlogits = cross_entropy([[5], [-7]], [0, 0], smoothing=0.1)
    assert loss == 0
    assert_array_equal(dlogits, [[0], [0]])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_no_row_takes_part(torch, smoothing: float) -> None:
    for logits, targets in (([[1, 2, 3], [4, 5, NAN]], [IGNORE, IGNORE]), (np.zeros((0, 3)), [])):
        for reduction, expected in (("mean", NAN), ("sum", 0)):
            loss, dlogits = cross_entropy(logits, targets, smoothing, reduction=reduction)
            assert_array_equal(loss, expected)
            assert_array_equal(dlogits, np.zeros((len(targets), 3)))
            finite = torch.zeros(len(targets), 3, dtype=torch.float64, requires_grad=True)
            second = torch.nn.functional.cross_entropy(
                finite, torch.tensor(targets, dtype=torch.int64), reduction=reduction, label_smoothing=smoothing
            )
            second.backward()
            assert_array_equal(loss, second.item())
            assert_array_equal(dlogits, finite.grad)


@pytest.mark.parametrize(("rows", "classes"), [(1, 1), (1, 2), (7, 3), (31, 10), (5, 101)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("ignore_index", [IGNORE, 0, 2])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_agrees_with_pytorch(torch, rng, rows, classes, smoothing, ignore_index, reduction) -> None:
    logits = 4 * rng.standard_normal((rows, classes))
    targets = rng.integers(0, classes, rows)
    targets[rng.random(rows) < 0.3] = ignore_index
    tl = torch.tensor(logits, requires_grad=True)
    tloss = torch.nn.functional.cross_entropy(
        tl, torch.tensor(targets), ignore_index=ignore_index, reduction=reduction, label_smoothing=smoothing
    )
    tloss.backward()
    loss, dlogits = cross_entropy_reference(logits, targets, smoothing, ignore_index, reduction)
    assert_allclose(loss, tloss.item(), rtol=1e-13)
    assert_allclose(dlogits, tl.grad, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_agrees_with_pytorch_on_infinite_logits(torch, smoothing: float) -> None:
    logits = np.array([[-INF, 1, 2], [1, 2, -INF], [-INF] * 3, [INF, 0, 0], [NAN, 0, 0], [0, 1, 2]])
    targets = np.array([1, 2, 0, 1, 1, 0])
    tl = torch.tensor(logits, requires_grad=True)
    tlosses = torch.nn.functional.cross_entropy(tl, torch.tensor(targets), label_smoothing=smoothing, reduction="none")
    tlosses.sum().backward()
    losses = [cross_entropy(logits[[row]], targets[[row]], smoothing)[0] for row in range(6)]
    _, dlogits = cross_entropy(logits, targets, smoothing, reduction="sum")
    assert_allclose(losses, tlosses.detach(), rtol=1e-14)
    assert_allclose(dlogits, tl.grad, rtol=1e-14, atol=1e-15)


def test_weights_by_hand() -> None:
    """p = 3/4, 1/4 in both rows; the targets weigh 2 and 6."""
    logits = [[math.log(3), 0], [math.log(3), 0]]
    loss, dlogits = cross_entropy(logits, [0, 1], weight=[2, 6])
    assert_allclose(loss, (2 * math.log(4 / 3) + 6 * math.log(4)) / 8, rtol=1e-15)
    assert_allclose(dlogits, [[-2 / 32, 2 / 32], [18 / 32, -18 / 32]], rtol=1e-15)
    losses, rows = cross_entropy(logits, [0, 1], weight=[2, 6], reduction="none")
    assert_allclose(losses, [2 * math.log(4 / 3), 6 * math.log(4)], rtol=1e-15)
    assert_allclose(rows, dlogits * 8, rtol=1e-15)


@pytest.mark.parametrize(("rows", "classes"), [(1, 1), (7, 3), (31, 10), (5, 101)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("ignore_index", [IGNORE, 0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [True, False])
def test_weights_and_single_rows_agree_with_pytorch(
    torch, rng, rows, classes, smoothing, ignore_index, reduction, weighted: bool
) -> None:
    logits, targets = 4 * rng.standard_normal((rows, classes)), rng.integers(0, classes, rows)
    targets[rng.random(rows) < 0.3] = ignore_index
    weight = rng.uniform(0, 3, classes) if weighted else None
    dloss = rng.standard_normal(rows) if reduction == "none" else None
    options = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": smoothing}
    expected, dexpected = pytorchs(torch, logits, targets, weight, dloss, **options)
    loss, dlogits = cross_entropy(logits, targets, smoothing, ignore_index, reduction, weight)
    assert np.shape(loss) == expected.shape
    assert_allclose(loss, expected, rtol=1e-12, atol=1e-14)
    dlogits = dlogits if dloss is None else scale_rows_reference(dlogits, dloss)
    assert_allclose(dlogits, dexpected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("targets", [[1, 1], [1, IGNORE], [0, 1]], ids=str)
@pytest.mark.parametrize("weight", [[0, 0, 0], [1, 0, 1]], ids=str)
def test_targets_of_weight_0_are_pytorchs(torch, smoothing: float, targets, weight) -> None:
    """The mean over them is 0 / 0: NaN, and so are the gradients of the rows that take part."""
    logits = [[1, 2, 4], [0, 1, 2]]
    for reduction, dloss in (("mean", None), ("sum", None), ("none", np.array([1.0, 2.0]))):
        options = {"reduction": reduction, "label_smoothing": smoothing}
        expected, dexpected = pytorchs(torch, logits, targets, weight, dloss, **options)
        loss, dlogits = cross_entropy(logits, targets, smoothing, reduction=reduction, weight=weight)
        assert_allclose(loss, expected, rtol=1e-14)
        assert_allclose(dlogits if dloss is None else dlogits * dloss[:, None], dexpected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_infinite_logits_with_weights_are_pytorchs(torch, smoothing: float) -> None:
    logits = np.array([[-INF, 1, 2], [1, 2, -INF], [-INF] * 3, [INF, 0, 0], [NAN, 0, 0], [0, 1, 2]])
    options = {"reduction": "none", "label_smoothing": smoothing}
    targets, weight = [1, 2, 0, 1, 1, 0], [0.5, 2, 3]
    expected, dexpected = pytorchs(torch, logits, targets, weight, np.ones(6), **options)
    losses, dlogits = cross_entropy(logits, targets, smoothing, reduction="none", weight=weight)
    assert_allclose(losses, expected, rtol=1e-14)
    assert_allclose(dlogits, dexpected, rtol=1e-14, atol=1e-15)


def test_a_class_of_weight_0_costs_nothing_where_it_is_impossible() -> None:
    """PyTorch multiplies 0 by infinity, which is NaN."""
    for smoothing in (0.0, 0.1):
        loss, _ = cross_entropy([[1, 2, -INF]], [1], smoothing, weight=[1, 1, 0])
        assert np.isfinite(loss)
    assert cross_entropy([[1, 2, -INF]], [2], reduction="sum", weight=[1, 1, 0])[0] == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_gradients_of_single_rows_with_weights(rng, smoothing: float) -> None:
    logits, targets = rng.standard_normal((7, 5)), np.array([0, 4, IGNORE, 2, 2, IGNORE, 1])
    weight, dloss = rng.uniform(0.1, 2, 5), rng.standard_normal(7)

    def losses(logits):
        return cross_entropy_reference(logits, targets, smoothing, IGNORE, "none", weight)[0]

    _, dlogits = cross_entropy_reference(logits, targets, smoothing, IGNORE, "none", weight)
    dlogits = scale_rows_reference(dlogits, dloss)
    check_gradient("cross_entropy", losses, {"logits": logits}, {"logits": dlogits}, dloss)


def test_an_ignored_row_has_no_say_whatever_it_holds() -> None:
    logits = np.array([[1.0, 2, 3], [NAN, INF, -INF], [3, 2, 1]])
    loss, dlogits = cross_entropy(logits, [0, IGNORE, 1], 0.1)
    alone, dalone = cross_entropy(logits[[0, 2]], [0, 1], 0.1)
    assert loss == alone
    assert_array_equal(dlogits[[0, 2]], dalone)
    assert_array_equal(dlogits[1], [0, 0, 0])


def test_a_nan_stays_in_its_row_of_the_gradient() -> None:
    loss, dlogits = cross_entropy([[1, NAN, 3], [1, 2, 3]], [0, 0])
    assert math.isnan(loss)
    assert_array_equal(np.isnan(dlogits).all(axis=1), [True, False])
    assert np.isfinite(dlogits[1]).all()


@pytest.mark.parametrize(("target", "ignore_index"), [(3, IGNORE), (-1, IGNORE), (-100, -1), (2**40, IGNORE)])
def test_a_target_that_is_no_class_is_named(target: int, ignore_index: int) -> None:
    message = f"cross_entropy: target {target} in row 1 is not one of the 3 classes; give 0 to 2, or {ignore_index} to"
    with pytest.raises(IndexError, match=re.escape(message)):
        cross_entropy(np.zeros((3, 3)), [0, target, 99], ignore_index=ignore_index)


def test_an_ignored_target_may_lie_anywhere() -> None:
    assert cross_entropy(np.zeros((2, 3)), [0, 255], ignore_index=255)[0] == math.log(3)
    assert cross_entropy(np.zeros((2, 3)), [0, 1], ignore_index=1)[0] == math.log(3)


def test_an_unknown_reduction_is_refused() -> None:
    with pytest.raises(ValueError, match='reduction \'each\' is not known; use "mean", "sum" or "none"'):
        cross_entropy([[1, 2]], [0], reduction="each")


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradient(rng, smoothing: float, reduction: str) -> None:
    logits, targets = rng.standard_normal((7, 5)), np.array([0, 4, IGNORE, 2, 2, IGNORE, 1])

    def loss(logits):
        return cross_entropy_reference(logits, targets, smoothing, IGNORE, reduction)[0]

    _, dlogits = cross_entropy_reference(logits, targets, smoothing, IGNORE, reduction)
    check_gradient("cross_entropy", loss, {"logits": logits}, {"logits": dlogits}, 1.0)
