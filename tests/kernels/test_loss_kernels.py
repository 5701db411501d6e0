"""Cross-entropy and the metrics as kernels, in the emulator: what the checks of whole operations do not look at."""

import re
from typing import Any

import numpy as np
import pytest
from emulated import placed
from numba import int64, uint32

from kernels.chip import HOPPER, Chip
from kernels.errors import ShapeError, TechniqueError
from kernels.loss import (
    BLOCK,
    cross_entropy,
    cross_entropy_reference,
    cross_entropy_rows,
    cross_entropy_sum,
    cross_entropy_targets,
)
from kernels.loss_fused import MANY, lanes_for
from kernels.metrics import CHUNK, FEW, all_finite, append_result, count_correct_reference
from kernels.run_dry import DryRunner
from kernels.run_emulated import EmulatorRunner
from kernels.storage import BFLOAT16, FLOAT16, Storage
from minidl.lab.budget import compare
from minidl.lab.operations.loss import cross_entropy_bounds

NAN, INF, IGNORE = np.nan, np.inf, -100
LANES = {"thread": 1, "warp": 32}
TECHNIQUES = [*LANES, "fused"]


@pytest.fixture
def run() -> EmulatorRunner:
    return EmulatorRunner(counts=True)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def loss_of(run: EmulatorRunner, logits: Any, targets: Any, *options: Any, **more: Any) -> tuple[Any, np.ndarray]:
    logits, targets = np.array(logits, np.float32), np.array(targets, np.int64)
    smoothing, ignore_index, reduction, weight = (*options, *(0.0, IGNORE, "mean", None)[len(options) :])
    loss, dlogits = run.empty(targets.shape if reduction == "none" else ()), run.empty(logits.shape)
    cross_entropy(run, logits, targets, loss, dlogits, smoothing, ignore_index, reduction, weight, **more)
    return loss, dlogits


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 33), (BLOCK + 1, 2), (9, 70), (2, 1025), (130, 10)], ids=str)
@pytest.mark.parametrize("ignore_index", [IGNORE, 0])
def test_within_the_error_budget(run, rng, technique: str, shape: tuple[int, int], ignore_index: int) -> None:
    logits = (4 * rng.standard_normal(shape)).astype(np.float32)
    targets = rng.integers(0, shape[1], shape[0])
    weight = rng.uniform(0.1, 3, shape[1]).astype(np.float32)
    for options in (
        (0.0, ignore_index, "mean", None),
        (0.1, ignore_index, "sum", None),
        (0.1, ignore_index, "none", None),
        (0.1, ignore_index, "mean", weight),
        (0.0, ignore_index, "none", weight),
    ):
        smoothing, _, reduction, given = options
        got = loss_of(run, logits, targets, *options, technique=technique)
        expected = cross_entropy_reference(logits.astype(np.float64), targets, *options)
        bounds = cross_entropy_bounds(logits, targets, smoothing, reduction, ignore_index, given)
        for name, a, b in zip(("loss", "dlogits"), got, expected, strict=True):
            assert compare(a, b, bounds[name]).passed, compare(a, b, bounds[name])


def test_a_long_batch_loses_no_accuracy(run) -> None:
    """Added one by one in float32, 300,000 losses of log 2 would be off by parts in a thousand."""
    n = 300_000
    losses, divisor, loss = np.full(n, np.log(2), np.float32), np.array([n], np.float32), run.empty(())
    run(cross_entropy_sum(False), losses, divisor, loss, n)
    assert abs(float(loss) - n * float(losses[0])) <= 2**-24 * float(loss)


@pytest.mark.parametrize("technique", ["warp", "fused"])
def test_a_row_of_many_classes_loses_no_accuracy(run, technique: str) -> None:
    classes = 40_000
    loss, dlogits = loss_of(run, np.zeros((1, classes)), [7], technique=technique)
    assert abs(float(loss) - np.log(classes)) <= 2 * 2**-24 * np.log(classes)
    assert abs(dlogits.astype(np.float64).sum()) < 1e-6


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_hostile_rows_follow_the_reference(run, technique: str) -> None:
    logits = np.array([[-INF, 1, 2], [1, 2, -INF], [-INF] * 3, [INF, 0, 0], [NAN, 0, 0], [0, NAN, 1], [3e38, -3e38, 0]])
    logits = logits.astype(np.float32)
    for smoothing in (0.0, 0.1):
        for row, target in enumerate([1, 2, 0, 1, 1, 1, 0]):
            loss, dlogits = loss_of(run, logits[[row]], [target], smoothing, technique=technique)
            expected, dexpected = cross_entropy_reference(logits[[row]], np.array([target]), smoothing, IGNORE, "mean")
            np.testing.assert_allclose(loss, expected, rtol=1e-6)
            np.testing.assert_allclose(dlogits, dexpected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize(("target", "ignore_index"), [(3, IGNORE), (-1, IGNORE), (-100, -1), (2**40, IGNORE)])
def test_a_target_that_is_no_class_is_named_before_anything_is_written(
    run, target: int, ignore_index: int, technique: str
) -> None:
    logits, loss, dlogits = np.zeros((600, 3), np.float32), run.empty(()), run.empty((600, 3))
    targets = np.zeros(600, np.int64)
    targets[[300, 301, 300 + BLOCK]] = target, 99, 99  # the last one falls to the thread of the first
    message = (
        f"cross_entropy: target {target} in row 300 is not one of the 3 classes; give 0 to 2, or {ignore_index} to"
    )
    with pytest.raises(IndexError, match=re.escape(message)):
        cross_entropy(run, logits, targets, loss, dlogits, 0.0, ignore_index, "mean", technique=technique)
    assert np.isnan(loss)
    assert np.isnan(dlogits).all()
    only = "cross_entropy_fused" if technique == "fused" else "cross_entropy_targets"
    assert [launched.kernel.name for launched in run.launched] == [only]


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("bad", [3, -1, 2**40])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_unchecked_a_target_that_is_no_class_makes_the_loss_nan(run, bad: int, reduction: str, technique: str) -> None:
    for weight in (None, np.ones(3, np.float32)):
        options = 0.0, IGNORE, reduction, weight
        loss, _ = loss_of(run, np.zeros((4, 3)), [0, 1, bad, 2], *options, check=False, technique=technique)
        assert np.isnan(loss).any()
        if reduction == "none":
            assert np.isnan(loss).tolist() == [False, False, True, False]
        loss, _ = loss_of(run, np.zeros((4, 3)), [0, 1, IGNORE, 2], *options, check=False, technique=technique)
        assert np.isfinite(loss).all()


@pytest.mark.parametrize(
    ("shape", "blocks"), [((0, 10), 1), ((128, 10), 1), ((129, 10), 2), ((700, 10), 6), ((9, 200), 2)]
)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_small_batch_is_one_launch(run, rng, shape: tuple[int, int], blocks: int, reduction: str) -> None:
    """Of as many blocks as it takes, with the same bits again, and the barrier ready for the next."""
    logits = 3 * rng.standard_normal(shape)
    targets = rng.integers(0, shape[1], shape[0])
    targets[::5] = IGNORE
    loss, dlogits = loss_of(run, logits, targets, 0.1, IGNORE, reduction)
    (one,) = run.launched
    assert (one.kernel.name, one.grid[0]) == ("cross_entropy_fused", blocks)
    assert one.kernel.cooperative == (blocks > 1 and reduction != "none")
    assert not run.barrier()[0] & 0x7FFFFFFF
    again, dagain = loss_of(run, logits, targets, 0.1, IGNORE, reduction)
    assert same_bits(loss, again)
    assert same_bits(dlogits, dagain)


def test_the_fused_technique_says_what_it_takes() -> None:
    def chosen(n: int, classes: int, chip: Chip | None = None) -> tuple[str, str]:
        run = DryRunner(chip)
        logits, targets = np.empty((n, classes), np.float32), np.zeros(n, np.int64)
        cross_entropy(run, logits, targets, run.empty(()), run.empty(logits.shape), 0.0, IGNORE, "mean", check=False)
        return run.chosen[0].technique, run.chosen[0].why

    assert chosen(128, 10) == ("fused", "one launch for 128 rows")
    assert chosen(4096, 10, HOPPER)[0] == "fused"
    warp = "32 threads for each row"
    assert chosen(4097, 10) == ("warp", f"4,097 rows of 10 classes, fused takes at most 4,096; {warp}")
    assert chosen(1025, 1000) == ("warp", f"1,025 rows of 1,000 classes, fused takes at most 1,024; {warp}")
    few = HOPPER._replace(multiprocessors=2)
    waiting = "16 blocks that wait for each other, this GPU has room for fewer"
    assert chosen(2048, 10, few) == ("warp", f"{waiting}; {warp}")
    assert chosen(128, 10, few)[0] == "fused"
    with pytest.raises(TechniqueError, match="technique 'fused': 5,000 rows of 3 classes, fused takes at most 4,096"):
        loss_of(DryRunner(), np.zeros((5000, 3)), np.zeros(5000), technique="fused")


def test_the_targets_are_counted_over_more_rows_than_threads(run, rng) -> None:
    n = 3 * BLOCK + 7
    targets = rng.integers(0, 5, n)
    targets[::3] = IGNORE
    first, divisor = run.empty((1,), np.int64), run.empty((1,))
    weight = np.array([1, 2, 4, 8, 0.5], np.float32)
    for weighted, expected in (
        (False, (targets != IGNORE).sum()),
        (True, weight[targets[targets != IGNORE]].astype(np.float64).sum()),  # exact
    ):
        run(cross_entropy_targets(5, weighted), targets, weight, first, divisor, IGNORE, n)
        assert (first[0], divisor[0]) == (n, expected)
    targets[[n - 1, 500]] = 5
    run(cross_entropy_targets(5, True), targets, weight, first, divisor, IGNORE, n)
    assert first[0] == 500


def test_many_rows_and_weights_are_counted_exactly(run) -> None:
    """In a plain float32 sum, 300,000 weights of 0.1 would be off by parts in a million."""
    n = 300_000
    first, divisor, weight = run.empty((1,), np.int64), run.empty((1,)), np.full(2, 0.1, np.float32)
    for weighted, expected in ((False, n), (True, n * float(weight[0]))):
        run(cross_entropy_targets(2, weighted), np.zeros(n, np.int64), weight, first, divisor, IGNORE, n)
        assert divisor[0] == np.float32(expected)


def test_a_small_batch_passes_once_and_few_classes_meet_in_no_bank(run) -> None:
    """Beside the logits and the gradient: the targets for each of two blocks, and the losses, which are read again."""
    n, classes = 256, 10
    loss_of(run, np.zeros((n, classes)), np.zeros(n))
    found = run.launched[0].report.counts.total
    assert found.bytes_moved - 8 * n * classes <= 2 * 8 * n + 2 * 8 * n + 3 * 4 * n
    assert found.bank_conflicts == 0
    for count in range(1, 300):
        lanes = lanes_for(count)
        assert 32 % lanes == 0
        assert lanes == 32 or count <= MANY * lanes


@pytest.mark.parametrize("lanes", LANES.values())
def test_wide_indices_give_the_same_bits(run, rng, lanes: int) -> None:
    logits, targets, n = rng.standard_normal((9, 11)).astype(np.float32), rng.integers(0, 11, 9), 9
    found = []
    for index in (uint32, int64):
        losses, dlogits = run.empty((n,)), run.empty((n, 11))
        inputs = logits, targets, np.arange(11, dtype=np.float32), np.array([n], np.float32)
        run(cross_entropy_rows(index, 11, lanes, True, True), *inputs, losses, dlogits, 0.9, 0.1, IGNORE, n)
        found.append((losses, dlogits))
    assert all(same_bits(a, b) for a, b in zip(*found, strict=True))


def test_shapes_that_do_not_fit_are_refused(run) -> None:
    x, t, loss = np.zeros((4, 3), np.float32), np.zeros(4, np.int64), np.zeros((), np.float32)
    for arrays, message in (
        ((x[0], t, loss, x), "logits has shape (3,), expected (n, classes)"),
        ((x[:, :0], t, loss, x), "logits has shape (4, 0), expected (n, classes)"),
        ((x, t[:3], loss, x), "targets has shape (3,), expected (4,)"),
        ((x, t, loss.reshape(1), x), "loss has shape (1,), expected ()"),
        ((x, t, loss, x[:3]), "dlogits has shape (3, 3), expected (4, 3) as logits has"),
    ):
        with pytest.raises(ShapeError, match=re.escape(f"cross_entropy: {message}")):
            cross_entropy(run, *arrays, 0.0, IGNORE, "mean")
    with pytest.raises(ShapeError, match=re.escape("cross_entropy: loss has shape (), expected (4,)")):
        cross_entropy(run, x, t, loss, x, 0.0, IGNORE, "none")
    with pytest.raises(ShapeError, match=re.escape("cross_entropy: weight has shape (4,), expected (3,)")):
        cross_entropy(run, x, t, loss, x, 0.0, IGNORE, "mean", x[:, 0].copy())
    with pytest.raises(ValueError, match="reduction 'each' is not known"):
        cross_entropy(run, x, t, loss, x, 0.0, IGNORE, "each")
    with pytest.raises(TypeError, match="targets has dtype int32, expected int64"):
        cross_entropy(run, x, t.astype(np.int32), loss, x, 0.0, IGNORE, "mean")
    log = np.array(0), np.zeros(3, np.float32), np.zeros(3, np.int64)
    for arrays, message in (
        ((x[0], t, loss, *log), "logits has shape (3,), expected (n, classes)"),
        ((x, t[:3], loss, *log), "targets has shape (3,), expected (4,)"),
        ((x, t, loss.reshape(1), *log), "loss has shape (1,), expected ()"),
        ((x, t, loss, log[0].reshape(1), *log[1:]), "count has shape (1,), expected ()"),
        ((x, t, loss, log[0], x, log[2]), "losses has shape (4, 3), expected (N,)"),
        ((x, t, loss, *log[:2], log[2][:2]), "corrects has shape (2,), expected (3,)"),
    ):
        with pytest.raises(ShapeError, match=re.escape(f"append_result: {message}")):
            append_result(run, *arrays)


@pytest.mark.parametrize("technique", [*LANES, "block"])
def test_correct_rows_are_counted_exactly(run, rng, technique: str) -> None:
    """Over several blocks, with ties, NaN, infinities and targets that are no class."""
    logits = rng.integers(-2, 3, (3 * BLOCK + 5, 7)).astype(np.float32)
    logits[::5, 3], logits[::7, 2], logits[1::7, 0] = NAN, INF, -INF
    logits[::11] = -INF
    best = np.where(np.isnan(logits), -INF, logits).argmax(axis=1)
    targets = np.where(rng.random(len(logits)) < 0.5, best, rng.integers(-2, 9, len(logits)))
    count, losses, corrects = np.array(1), np.zeros(3, np.float32), np.zeros(3, np.int64)
    append_result(run, logits, targets, np.array(0.5, np.float32), count, losses, corrects, technique=technique)
    expected = count_correct_reference(logits, targets)
    assert expected > 0
    assert (count.item(), losses.tolist(), corrects.tolist()) == (2, [0, 0.5, 0], [0, expected, 0])


@pytest.mark.parametrize(("rows", "launches"), [(1, 1), (FEW, 1), (FEW + 1, 2)])
def test_the_results_of_a_small_batch_are_one_launch(rows: int, launches: int) -> None:
    run = EmulatorRunner(counts=True)
    logits, targets, loss = np.eye(3, dtype=np.float32)[np.arange(rows) % 3], np.arange(rows) % 3, np.array(2.0, "f4")
    count, losses, corrects = np.array(0), np.zeros(1, np.float32), np.zeros(1, np.int64)
    append_result(run, logits, targets, loss, count, losses, corrects)
    assert (corrects.item(), len(run.launched)) == (rows, launches)


@pytest.mark.parametrize("technique", ["scalar", "vector"])
@pytest.mark.parametrize("size", [1, 3, 4, CHUNK - 1, CHUNK, CHUNK + 3, 2 * CHUNK + 5])
def test_a_number_that_is_not_finite_is_found_wherever_it_is(run, technique: str, size: int) -> None:
    x = np.full(size, np.finfo(np.float32).max, np.float32)
    x[::2] *= -1
    assert all_finite(run, x, technique=technique) is True
    for place in {0, size // 2, max(0, size - 2), size - 1, min(size - 1, CHUNK - 1), min(size - 1, CHUNK)}:
        for value in (NAN, INF, -INF):
            bad = x.copy()
            bad[place] = value
            assert all_finite(run, bad, technique=technique) is False, place


@pytest.mark.parametrize("storage", [BFLOAT16, FLOAT16], ids=repr)
@pytest.mark.parametrize("technique", ["scalar", "vector"])
@pytest.mark.parametrize("size", [1, 7, 8, CHUNK + 5])
def test_in_16_bits_too(run, technique: str, size: int, storage: Storage) -> None:
    most = 2.0**storage.most * (2 - 2.0**-storage.fraction)
    x = np.where(np.arange(size) % 2 == 0, most, -most)
    assert all_finite(run, placed(storage.encode(x), 0, storage.dtype), technique=technique) is True
    for place in {0, max(0, size - 2), size - 1, min(size - 1, CHUNK)}:
        for value in (NAN, INF, -INF):
            bad = x.copy()
            bad[place] = value
            given = placed(storage.encode(bad), 0, storage.dtype)
            assert all_finite(run, given, technique=technique) is False, place


def test_nothing_is_finite(run) -> None:
    assert all_finite(run, np.zeros((0, 3), np.float32)) is True


def test_an_array_that_is_not_aligned_is_read_one_by_one(run) -> None:
    whole = np.zeros(4 * BLOCK + 4, np.float32)
    start = -(whole.ctypes.data // 4) % 4  # where it is aligned
    all_finite(run, whole[start : start + 99])
    all_finite(run, whole[start + 1 : start + 99])
    names = [launched.kernel.name for launched in run.launched if launched.kernel.name != "add_counts"]
    assert names == ["count_not_finite_vector", "count_not_finite_scalar"]
