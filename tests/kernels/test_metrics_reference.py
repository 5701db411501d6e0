import numpy as np

from kernels.metrics import all_finite_reference, count_correct_reference

NAN, INF = np.nan, np.inf
IGNORE = -100


def test_count_correct() -> None:
    logits = np.array([[1, 2, 3], [5, 5, 1], [5, 5, 1], [NAN, 9, 1], [1, 9, NAN], [-INF] * 3, [0, INF, 3], [3, 2, 1.0]])
    targets = np.array([2, 0, 1, 1, 1, 0, 1, IGNORE])
    correct = [count_correct_reference(logits[[row]], targets[[row]]) for row in range(len(logits))]
    assert correct == [1, 1, 0, 0, 0, 1, 1, 0]
    total = count_correct_reference(logits, targets)
    assert total == 4
    assert total.dtype == np.int64
    assert count_correct_reference(np.full((1, 2), NAN), np.array([0])) == 0  # not even where the NaN itself is
    assert count_correct_reference(np.zeros((0, 3)), np.zeros(0, int)) == 0


def test_all_finite() -> None:
    x = np.full((2, 3), 1e308)
    assert all_finite_reference(x) is True
    assert all_finite_reference(np.zeros((0, 3))) is True
    for value in (NAN, INF, -INF):
        assert all_finite_reference(np.where(np.eye(2, 3) > 0, value, x)) is False
