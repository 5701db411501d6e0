import numpy as np
import pytest
from numba import cuda, float32, uint32

from kernels.activation import relu_forward
from kernels.emulator import KernelFault
from kernels.intrinsics import pointer_to_float32
from kernels.launch import Addresses, Cost, Factory, Float, Floats, Int32, Int64, Launch, Promises, blocks_for
from kernels.run_emulated import EmulatorRunner


@pytest.fixture
def run() -> EmulatorRunner:
    return EmulatorRunner()


def scale() -> Launch:
    def work(x: Floats, y: Floats, factor: Float, shift: Int32, n: Int64):
        i = uint32(cuda.blockIdx.x * 64 + cuda.threadIdx.x)
        if i < n:
            y[i] = factor * x[i] + float32(shift)

    return Launch(work, 64, lambda n: blocks_for(n, 64), lambda n: Cost(4 * n, 4 * n))


def in_place() -> Launch:
    def work(x: Floats, n: Int64):
        i = uint32(cuda.blockIdx.x * 64 + cuda.threadIdx.x)
        if i < n:
            x[i] = x[i] + float32(1)

    return Launch(work, 64, lambda n: blocks_for(n, 64), lambda n: Cost(4 * n, 4 * n))


def reversed_in_shared(size: int) -> Launch:
    def work(x: Floats, y: Floats):
        kept = cuda.shared.array(0, float32)
        i = cuda.threadIdx.x
        kept[i] = x[i]
        cuda.syncthreads()
        y[i] = kept[size - 1 - i]

    return Launch(work, size, lambda: 1, lambda: Cost(4 * size, 4 * size), shared_bytes=4 * size)


def fill_each() -> Launch:
    def work(table: Addresses, count: Int64):
        if cuda.blockIdx.x < count:
            pointer = pointer_to_float32(table[cuda.blockIdx.x])
            pointer[cuda.threadIdx.x] = float32(cuda.blockIdx.x)

    return Launch(work, 4, lambda count: count, lambda count: Cost(8 * count, 16 * count))


def promises(reads: str = "", writes: str = "", partial: str = "") -> Promises:
    return Promises(*(tuple(names.split()) for names in (reads, writes, partial)), (), 64, True, ())


def array(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_a_launch_and_its_numbers(run) -> None:
    x, y = np.arange(100, dtype=np.float32), np.zeros(100, np.float32)
    run(Factory(scale, promises("x", "y"))(), x, y, 0.1, -3, 100)
    np.testing.assert_array_equal(y, np.float32(0.1) * x + np.float32(-3))


def test_an_operation(run) -> None:
    x = np.linspace(-1, 1, 1001, dtype=np.float32)
    y = run.empty(x.shape)
    relu_forward(run, x, y)
    np.testing.assert_array_equal(y, np.maximum(x, 0))


def test_dynamic_shared_memory(run) -> None:
    x, y = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
    run(Factory(reversed_in_shared, promises("x", "y"))(64), x, y)
    np.testing.assert_array_equal(y, x[::-1])


def test_promises_are_held(run) -> None:
    x, y = np.zeros(64, np.float32), np.zeros(65, np.float32)
    kernel = Factory(scale, promises("x", "y"))()
    with pytest.raises(KernelFault) as unwritten:
        run(kernel, x, y, 1.0, 0, 64)  # the last element of y
    assert (unwritten.value.array, unwritten.value.kernel) == ("y", "scale()")
    run(Factory(scale, promises("x", "y", partial="y"))(), x, y, 1.0, 0, 64)
    with pytest.raises(KernelFault) as modified:
        run(Factory(in_place, promises("x", "", ""))(), x, 64)
    assert modified.value.array == "x"
    run(Factory(in_place, promises("x", "x"))(), x, 64)
    assert len(set(x.tolist())) == 1


def test_an_empty_grid_runs_nothing(run) -> None:
    run(Factory(scale, promises("x", "y"))(), array(), array(), 1.0, 0, 0)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (([1.0], array(1), 1.0, 0, 1), TypeError, "scale: x is a builtins.list, expected a numpy.ndarray"),
        ((array(1), np.zeros(1), 1.0, 0, 1), TypeError, "scale: y has dtype float64, expected float32"),
        ((array(1), np.zeros((2, 2), np.float32).T, 1.0, 0, 1), ValueError, "scale: y of shape .* not C-contiguous"),
        ((array(1), array(1), 1.0, 2**31, 1), OverflowError, "2147483648"),
        ((array(1), array(1), 1.0, 0, 1.5), TypeError, "float"),
        ((array(1), array(1), 1.0, 0), TypeError, "scale: 4 arguments were given, expected x, y, factor, shift, n"),
    ],
)
def test_what_does_not_fit_is_refused(run, values, error, message) -> None:
    with pytest.raises(error, match=message):
        run(Factory(scale, promises("x", "y"))(), *values)


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [((3, 2), np.float32, np.nan), ((), np.int64, -1), ((0, 5), np.int32, -1), ((4,), np.uint8, 255)],
)
def test_memory_that_nobody_wrote_is_no_number(run, shape, dtype, expected) -> None:
    memory = run.empty(shape, dtype)
    np.testing.assert_array_equal(memory, np.full(shape, expected, dtype), strict=True)
    memory[...] = 1


def test_uploads_are_copies(run) -> None:
    host = np.arange(6).reshape(2, 3).T
    copy = run.upload(host)
    np.testing.assert_array_equal(copy, host)
    assert copy.flags.c_contiguous
    assert not np.shares_memory(copy, host)


def test_addresses_reach_their_arrays_and_no_others(run) -> None:
    arrays = [np.zeros(4, np.float32) for _ in range(3)]
    table = run.addresses(arrays)
    assert (table.dtype, table.tolist()) == (np.uint64, [one.ctypes.data for one in arrays])
    kernel = Factory(fill_each, promises("table"))()
    run(kernel, table, 3)
    assert [one.tolist() for one in arrays] == [[0.0] * 4, [1.0] * 4, [2.0] * 4]
    run(kernel, table[1:], 2)  # a part of the table knows them too
    assert arrays[2].tolist() == [1.0] * 4
    with pytest.raises(KernelFault):
        run(kernel, np.array(table, copy=True, subok=False), 3)
    with pytest.raises(KernelFault):
        run(kernel, run.addresses([arrays[0], arrays[1][:3]]), 2)


def test_what_a_table_is_of_is_checked(run) -> None:
    with pytest.raises(TypeError, match="array 1 of a table of addresses has dtype float64, expected float32"):
        run.addresses([array(1), np.zeros(3)])
    assert run.addresses([np.zeros(3)], np.float64).size == 1
    assert run.addresses([]).shape == (0,)


def test_reports_are_kept_when_counting(run) -> None:
    counting = EmulatorRunner(counts=True)
    x, y = np.zeros(100, np.float32), np.zeros(100, np.float32)
    kernel = Factory(scale, promises("x", "y"))()
    for runner in (run, counting):
        runner(kernel, x, y, 1.0, 0, 100)
    assert run.launched == []
    ((launched, grid, report),) = counting.launched
    assert (launched, grid) == (kernel, (2, 1, 1))
    assert report is not None


def test_without_checks_a_race_passes() -> None:
    def racing() -> Launch:
        def work(y: Floats):
            y[0] = float32(cuda.threadIdx.x)

        return Launch(work, 64, lambda: 1, lambda: Cost(0, 4))

    y = np.zeros(1, np.float32)
    with pytest.raises(KernelFault):
        EmulatorRunner()(Factory(racing, promises("", "y"))(), y)
    EmulatorRunner(checks=False)(Factory(racing, promises("", "y"))(), y)
    EmulatorRunner().synchronize()


# Graphs


def test_a_graph_computes_nothing_until_it_is_replayed(run) -> None:
    x, y = run.upload(array(1, 2, 3)), run.upload(array(0, 0, 0))
    kernel = Factory(scale, promises("x", "y"))()
    graph = run.capture(lambda: run(kernel, x, y, 2.0, 1, 3), warm_up=0)
    assert y.tolist() == [0, 0, 0]
    graph.replay()
    assert y.tolist() == [3, 5, 7]
    x[0] = 10
    graph.replay()
    assert y.tolist() == [21, 5, 7]


def test_it_is_warmed_up_first(run) -> None:
    x, calls = run.upload(array(0)), []
    kernel = Factory(in_place, promises("x", "x"))()

    def function() -> None:
        calls.append(run.capturing)
        run(kernel, x, 1)

    graph = run.capture(function, warm_up=2)
    assert (calls, run.capturing, x.tolist()) == ([False, False, True], False, [2])
    graph.replay()
    assert x.tolist() == [3]


def test_memory_of_a_graph_is_unwritten_in_each_replay(run) -> None:
    """What one replay left there is not for the next."""
    kept = []
    graph = run.capture(lambda: kept.append(run.empty((1,))), warm_up=0)
    kept[0][0] = 7
    graph.replay()
    assert np.isnan(kept[0]).all()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda run, x: run.upload(array(1)), "numbers came from the host"),
        (lambda run, x: float(x[0]), "an element was read"),
        (lambda run, x: x.tolist(), "an array was read"),
        (lambda run, x: x + 1, "add was computed on the host"),
        (lambda run, x: np.concatenate([x, x]), "concatenate was computed on the host"),
        (lambda run, x: x.__setitem__(0, 1), "the host wrote to an array"),
        (lambda run, x: bool(x), "an array was read"),
        (lambda run, x: run.synchronize(), "the host waited"),
        (lambda run, x: run.capture(lambda: None), "another capture began"),
    ],
)
def test_what_a_graph_cannot_do_is_refused(run, what, message: str) -> None:
    x = run.upload(array(4))
    with pytest.raises(RuntimeError, match=f"^{message} while a graph is captured: "):
        run.capture(lambda: what(run, x), warm_up=0)
    assert not run.capturing
    what(run, x)  # and nowhere else


def test_views_are_made_while_a_graph_is_captured(run) -> None:
    x = run.upload(np.arange(6, dtype=np.float32))
    y = run.upload(array(0, 0))
    kernel = Factory(scale, promises("x", "y"))()
    run.capture(lambda: run(kernel, x[2:].reshape(2, 2)[1], y, 1.0, 0, 2), warm_up=0).replay()
    assert y.tolist() == [4, 5]
