import numpy as np
import pytest
from numpy.testing import assert_array_equal

from kernels.columns import bias_backward, sum_columns
from kernels.errors import ShapeError
from kernels.launch import Kernel
from kernels.run_emulated import EmulatorRunner

SIZES = [
    (0, 3), (1, 1), (1, 33), (2, 2), (3, 31), (7, 32), (9, 65), (127, 5), (128, 32), (129, 33), (257, 1), (4095, 1),
    (4096, 1), (4097, 1), (70001, 2), (5, 1000),
]  # fmt: skip


class Recorder(EmulatorRunner):
    """Keeps what was launched."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[tuple[Kernel, tuple[int, ...]]] = []

    def __call__(self, kernel: Kernel, *values) -> None:
        self.kernels.append((kernel, tuple(value for value in values if not isinstance(value, np.ndarray))))
        super().__call__(kernel, *values)


def whole(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(-3, 4, shape).astype(np.float32)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sums_of_whole_numbers_are_exact(rng, size) -> None:
    x, sums = whole(rng, size), np.empty(size[1], np.float32)
    sum_columns(EmulatorRunner(), x, sums)
    assert_array_equal(sums, x.sum(axis=0))


def test_many_rows_take_two_launches_and_no_more(rng) -> None:
    run = Recorder()
    x, sums = whole(rng, (5000, 3)), np.empty(3, np.float32)
    sum_columns(run, x, sums)
    assert_array_equal(sums, x.sum(axis=0))
    (_, (rows, columns, chunk)), (_, (chunks, _, _)) = run.kernels
    assert (rows, columns) == (5000, 3)
    assert chunks == -(-5000 // chunk) > 1


def test_no_accumulator_takes_more_than_32_terms_in_a_row(rng) -> None:
    # 2^24 + 1 rounds back to 2^24. After a first row of 2^24, only the accumulator that holds it loses its ones.
    x, sums = np.ones((100_001, 1), np.float32), np.empty(1, np.float32)
    x[0] = 2.0**24
    sum_columns(EmulatorRunner(), x, sums)
    assert 0 <= 2.0**24 + 100_000 - sums[0] <= 32 + 2 * 17  # a rounding to an even number at each level of the tree


def test_a_bias_gradient_sums_over_all_but_the_channels(rng) -> None:
    dy, db = whole(rng, (3, 5, 7, 6)), np.empty(6, np.float32)
    bias_backward(EmulatorRunner(), dy, db)
    assert_array_equal(db, dy.sum(axis=(0, 1, 2)))


def test_a_channel_with_a_nan_has_a_nan_and_no_other(rng) -> None:
    dy, db = whole(rng, (300, 5)), np.empty(5, np.float32)
    dy[123, 2] = np.nan
    bias_backward(EmulatorRunner(), dy, db)
    assert_array_equal(np.isnan(db), [False, False, True, False, False])


@pytest.mark.parametrize("shape", [(4,), (1, 3), ()])
def test_other_channels_are_refused(shape) -> None:
    with pytest.raises(ShapeError, match=r"bias_backward: db has shape .*, expected \(3,\) for dy \(2, 3\)"):
        bias_backward(EmulatorRunner(), np.zeros((2, 3), np.float32), np.zeros(shape, np.float32))


def test_neighbouring_threads_read_neighbouring_columns(rng) -> None:
    run = EmulatorRunner(counts=True)
    x, sums = whole(rng, (200, 64)), np.empty(64, np.float32)
    sum_columns(run, x, sums)
    (launched,) = run.launched
    total = launched.report.counts.total
    assert total.load_sectors * 32 == total.load_bytes == x.nbytes
    assert total.bank_conflicts == 0
