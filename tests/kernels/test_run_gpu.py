"""GpuRunner without a GPU: what reaches the driver, what is refused, how a graph is captured."""

import ctypes
import functools
import multiprocessing
import os
import weakref

import numpy as np
import pytest
from fake_cupy import DeviceArray, FakeCupy, Memory

from kernels import compile_cache
from kernels.chip import HOPPER
from kernels.compile import Code
from kernels.compile_cache import CompileCache
from kernels.errors import OutOfMemoryError
from kernels.launch import Cost, Factory, Float, Floats, Int32, Int64, Launch, Promises, UInt32
from kernels.run_gpu import GpuRunner
from kernels.updates import CHUNK, chunks_of


def numbers(address: int, count: int):
    return np.frombuffer((ctypes.c_float * count).from_address(address), np.float32)


class PretendDriver:
    """Computes the runner's first kernel, to be believed, and records all others."""

    name = "pretence"

    def __init__(self, shift: float = 0) -> None:
        self.loaded: list[str] = []
        self.launches: list[tuple] = []
        self.shift = shift

    def load(self, kernel, code, device):
        self.loaded.append(kernel.name)

        def start(grid, stream, arguments):
            if kernel.name == "first_launch":
                x, y, scale, shift, n = arguments
                assert [type(one) for one in arguments] == [int, int, np.float32, np.int32, np.int64]
                numbers(y, 4)[:n] = scale * numbers(x, n) + shift + np.float32(self.shift)
            else:
                self.launches.append((grid, stream.ptr, list(arguments)))

        return lambda grid: functools.partial(start, grid)


def make(block: int = 32, shared_bytes: int = 0) -> Launch:
    def work(x: Floats, y: Floats, n: Int64, scale: Float, count: Int32, mask: UInt32):
        pass

    return Launch(work, block, lambda n: n // 32, lambda n: Cost(4 * n, 4 * n), shared_bytes)


work = Factory(make, Promises(("x",), ("y",), (), (), 64, True, ()))


@pytest.fixture
def cupy(monkeypatch) -> FakeCupy:
    monkeypatch.setattr(compile_cache, "compile_kernel", lambda kernel, capability: Code(kernel.name, b"machine code"))
    return FakeCupy()


@pytest.fixture
def driver() -> PretendDriver:
    return PretendDriver()


@pytest.fixture
def run(cupy, driver) -> GpuRunner:
    return GpuRunner(cupy=cupy, cache=CompileCache(None), drivers=[lambda: driver])


def array(*shape: int, dtype=np.float32, device: int = 0) -> DeviceArray:
    result = np.zeros(shape, dtype).view(DeviceArray)
    result.device_id = device
    return result


def test_arguments_reach_the_driver_as_pointers_and_typed_numbers(run, driver) -> None:
    x, y = array(64), array(64)
    run(work(), x, y, 64, 0.1, -3, 2**32 - 1)
    ((grid, _, arguments),) = driver.launches
    assert grid == (2, 1, 1)
    assert arguments[:2] == [x.ctypes.data, y.ctypes.data]
    assert [type(one) for one in arguments] == [int, int, np.int64, np.float32, np.int32, np.uint32]
    assert arguments[2:] == [64, np.float32(0.1), -3, 2**32 - 1]


def test_a_kernel_is_loaded_once(run, driver) -> None:
    for _ in range(3):
        run(work(), array(64), array(64), 64, 0.1, 1, 1)
    assert driver.loaded == ["first_launch", "make"]
    assert len(driver.launches) == 3


def test_a_launch_with_known_numbers_reads_its_arrays_anew(run, driver, monkeypatch) -> None:
    arrays = [array(64), array(64), array(64)]
    for x, y in ((0, 1), (1, 2), (0, 1)):
        run(work(), arrays[x], arrays[y], 64, 0.1, -3, 1)
    starts = [one.ctypes.data for one in arrays]
    assert [launch[2][:2] for launch in driver.launches] == [starts[:2], starts[1:], starts[:2]]
    assert driver.launches[0][2] is not driver.launches[2][2]
    high = 2**63 + 256
    monkeypatch.setattr(DeviceArray, "data", Memory(high, 0))
    run(work(), arrays[0], arrays[1], 64, 0.1, -3, 1)
    assert driver.launches[-1][2][:2] == [high, high]


def test_a_launch_keeps_no_array(run) -> None:
    x = array(64)
    gone = weakref.ref(x)
    for _ in range(2):
        run(work(), x, x, 64, 0.1, 1, 1)
    del x
    assert gone() is None


def test_known_numbers_do_not_let_wrong_arrays_pass(run, driver) -> None:
    x = array(64)
    run(work(), x, x, 64, 0.1, 1, 1)
    for wrong in (array(64, dtype=np.int32), array(64, 2)[:, 0], array(64, device=1), np.zeros(64, np.float32), None):
        with pytest.raises((TypeError, ValueError), match="make: y "):
            run(work(), x, wrong, 64, 0.1, 1, 1)
    assert len(driver.launches) == 1


def test_what_cupy_makes_an_object_for_is_not_asked_of_arrays(run, driver, monkeypatch) -> None:
    x = array(64)
    monkeypatch.setattr(DeviceArray, "_c_contiguous", True)
    monkeypatch.setattr(DeviceArray, "flags", property(lambda _: pytest.fail("flags take longer than the launch")))
    run(work(), x, x, 64, 0.1, 1, 1)
    assert run.addresses([x]).tolist() == [x.ctypes.data]
    assert len(driver.launches) == 1


def test_a_cupy_without_that_attribute_works_too(cupy, driver, monkeypatch) -> None:
    monkeypatch.delattr(DeviceArray, "_c_contiguous")
    run = GpuRunner(cupy=cupy, cache=CompileCache(None), drivers=[lambda: driver])
    x = array(64)
    run(work(), x, x, 64, 0.1, 1, 1)
    assert driver.launches[0][2][:2] == [x.ctypes.data] * 2
    assert run.addresses([x]).tolist() == [x.ctypes.data]
    for wrong in (array(64, 2)[:, 0], array(64, device=1)):
        with pytest.raises(ValueError, match="make: y"):
            run(work(), x, wrong, 64, 0.1, 1, 1)
        with pytest.raises(ValueError, match="array 1 of a table"):
            run.addresses([x, wrong])


def test_an_empty_grid_launches_nothing(run, driver) -> None:
    run(work(), array(0), array(0), 0, 0.1, 1, 1)
    assert not driver.launches


def test_launches_go_to_the_stream_that_is_current(run, cupy, driver) -> None:
    run(work(), array(64), array(64), 64, 0.1, 1, 1)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        run(work(), array(64), array(64), 64, 0.1, 1, 1)
    assert [launch[1] for launch in driver.launches] == [cupy.streams[0].ptr, stream.ptr]


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ((np.zeros(64, np.float32), array(64)), TypeError, r"make: x is a numpy.ndarray, expected a fake_cupy.Dev"),
        ((array(64), array(64, dtype=np.float64)), TypeError, "make: y has dtype float64, expected float32"),
        ((array(64), array(64, 2)[:, 0]), ValueError, r"make: y of shape \(64,\) is not C-contiguous"),
        ((array(64), array(64, device=1)), ValueError, "make: y lies on GPU 1, expected GPU 0"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(run, driver, values, error, message) -> None:
    with pytest.raises(error, match=message):
        run(work(), *values, 64, 0.1, 1, 1)
    assert not driver.launches


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ((64, 0.1, 2**31, 1), OverflowError),
        ((64, 0.1, 1, -1), OverflowError),
        ((64.5, 0.1, 1, 1), TypeError),
        ((64, 0.1, 1.5, 1), TypeError),
        ((64, 0.1, 1), TypeError),
    ],
)
def test_numbers_that_do_not_fit_are_refused(run, driver, values, error) -> None:
    with pytest.raises(error):
        run(work(), array(64), array(64), *values)
    assert not driver.launches


def test_another_current_device_is_refused(run, cupy, driver) -> None:
    with cupy.cuda.Device(1), pytest.raises(RuntimeError, match="GPU 1 is current in CuPy, expected GPU 0"):
        run(work(), array(64), array(64), 64, 0.1, 1, 1)
    assert not driver.launches


def test_a_runner_of_another_device_is_made_there(cupy, driver) -> None:
    run = GpuRunner(1, cupy=cupy, cache=CompileCache(None), drivers=[lambda: driver])
    assert (run.device, run._aside.device, cupy.current_device) == (1, 1, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_is_told_why_it_cannot_compute(run) -> None:
    def child(connection) -> None:
        try:
            run.empty((3,))
        except RuntimeError as error:
            connection.send(str(error))

    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=child, args=(sender,))
    process.start()
    assert receiver.poll(30)
    assert "forked" in receiver.recv()
    process.join(30)


# Choosing a driver


def failing() -> PretendDriver:
    raise AttributeError("no attribute LaunchConfig")


def test_the_first_driver_that_computes_right_is_taken(cupy) -> None:
    wrong, right = PretendDriver(shift=0.25), PretendDriver()
    right.name = "right"
    run = GpuRunner(cupy=cupy, cache=CompileCache(None), drivers=[failing, lambda: wrong, lambda: right])
    assert run.driver is right
    assert run.describe() == "NVIDIA Pretence (sm_90), launches by right"


def test_no_driver_is_an_error_that_names_all_reasons(cupy) -> None:
    with pytest.raises(RuntimeError, match=r"GPU 0: AttributeError: no attribute LaunchConfig; Run.*computed \[10.75"):
        GpuRunner(cupy=cupy, cache=CompileCache(None), drivers=[failing, lambda: PretendDriver(shift=0.25)])


@pytest.mark.parametrize(("text", "expected"), [("75", (7, 5)), ("90", (9, 0)), ("120", (12, 0))])
def test_compute_capability(text, expected, monkeypatch, driver) -> None:
    monkeypatch.setattr(compile_cache, "compile_kernel", lambda kernel, capability: Code("", repr(capability).encode()))
    run = GpuRunner(cupy=FakeCupy(capability=text), cache=CompileCache(None), drivers=[lambda: driver])
    assert run.capability == expected
    assert run.cache.get(work(), run.capability).cubin == repr(expected).encode()


# Memory


def test_out_of_memory_says_how_much_and_what_to_do(run) -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        run.empty((1 << 20, 3 << 10))
    text = str(caught.value)
    assert text.startswith(
        "the GPU has no 12.00 GiB left: of its 80.00 GiB, 1.00 GiB are free and arrays of this process"
    )
    assert "hold 3.00 GiB" in text
    assert "--batch-size" in text


def test_uploads_are_in_order_with_launches_and_waited_for_by_nobody(run, cupy) -> None:
    cupy.log.clear()
    with cupy.cuda.Stream() as _, cupy.cuda.Stream() as _:
        inner = cupy.streams[-1].ptr
        assert run.upload(np.arange(6).reshape(2, 3).T).tolist() == [[0, 3], [1, 4], [2, 5]]
    assert cupy.log == [("copy", inner)]  # else its memory could be reused before a launch has read it


def test_a_table_of_addresses_is_made_once(run, cupy) -> None:
    arrays = [array(3), array(5), array(0)]
    cupy.log.clear()
    stream = cupy.cuda.Stream()
    with stream:
        table = run.addresses(arrays)
        assert table.dtype == np.uint64
        assert table.tolist() == [one.ctypes.data for one in arrays]
        assert run.addresses(arrays) is table
    assert run.addresses(arrays) is table
    assert cupy.log == [("copy", stream.ptr), ("synchronize", stream.ptr)]  # so that every stream finds it there
    assert run.addresses(arrays[::-1]) is not table


def test_old_tables_are_dropped(run, cupy, monkeypatch) -> None:
    monkeypatch.setattr("kernels.run_gpu.TABLES", 2)
    kept = [array(3) for _ in range(4)]
    first = run.addresses(kept[:1])
    run.addresses(kept[1:2])
    assert run.addresses(kept[:1]) is first  # used again, so no longer the oldest
    cupy.log.clear()
    run.addresses(kept[2:3])
    assert cupy.log[0] == ("synchronize all",)  # nothing may read the one that goes
    assert run.addresses(kept[:1]) is first
    assert len(run._tables) == 2


def test_a_table_of_chunks_is_made_once_and_few_are_kept(run, monkeypatch) -> None:
    """An optimizer asks for one of the parameters that have gradients, and these may be others in each step."""
    monkeypatch.setattr("kernels.run_gpu.TABLES", 2)
    assert chunks_of(run, (7, CHUNK + 1)).tolist() == [[0, 1, 1], [0, 0, CHUNK], [7, CHUNK + 1, CHUNK + 1], [0, 0, 0]]
    assert chunks_of(run, (7, 3), (1, 0)) is chunks_of(run, (7, 3), (1, 0))
    assert chunks_of(run, (7, 3), (1, 0)).tolist() == [[0, 1], [0, 0], [7, 3], [1, 0]]
    made = [weakref.ref(chunks_of(run, (size,))) for size in range(1, 9)]
    assert [table() is None for table in made] == [True] * 6 + [False] * 2


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (array(3, dtype=np.int64), TypeError, "array 1 of a table of addresses has dtype int64, expected float32"),
        (array(3, device=1), ValueError, "array 1 of a table of addresses lies on GPU 1"),
        (array(3, 2)[:, 0], ValueError, "array 1 of a table of addresses of shape .* not C-contiguous"),
        (np.zeros(3, np.float32), TypeError, "array 1 of a table of addresses is a numpy.ndarray"),
    ],
)
def test_what_a_table_is_of_is_checked(run, wrong, error, message) -> None:
    with pytest.raises(error, match=message):
        run.addresses([array(3), wrong])


# Graphs


def test_a_capture_warms_up_records_and_keeps_order(run, cupy, driver) -> None:
    outside = cupy.streams[0].ptr
    seen = []

    def step() -> None:
        stream = cupy.cuda.get_current_stream()
        seen.append((stream.capturing, cupy.allocator))
        run(work(), array(64), array(64), 64, 0.1, 1, 1)

    cupy.log.clear()
    graph = run.capture(step, warm_up=2)
    inside = driver.launches[0][1]
    assert inside != outside
    assert [launch[1] for launch in driver.launches] == [inside] * 3
    assert [capturing for capturing, _ in seen] == [False, False, True]
    assert cupy.allocator == "default"
    assert {allocator == "default" for _, allocator in seen} == {False}
    assert cupy.log == [
        ("free",),
        ("record", outside),
        ("wait", inside, f"event of {outside}"),
        ("synchronize", inside),
        ("begin", inside),
        ("end", inside),
        ("record", inside),
        ("wait", outside, f"event of {inside}"),
    ]
    graph.replay()
    assert cupy.log[-1] == ("replay", outside)
    assert len(driver.launches) == 3


def test_a_capture_that_fails_is_ended(run, cupy) -> None:
    calls = []

    def step() -> None:
        calls.append(1)
        if len(calls) == 2:
            run.synchronize()

    with pytest.raises(RuntimeError, match="cudaErrorStreamCaptureUnsupported"):
        run.capture(step)
    begun, ended = (next(entry[1] for entry in cupy.log if entry[0] == what) for what in ("begin", "end"))
    assert begun == ended
    assert cupy.allocator == "default"
    assert len(cupy.streams) == 1
    run.capture(lambda: None)  # and the next one works


def test_numbers_from_the_host_cannot_be_captured(run, cupy) -> None:
    assert run.upload(np.array([0.5], np.float32)).tolist() == [0.5]
    with pytest.raises(RuntimeError, match="fill it before each replay"):
        run.capture(lambda: run.upload(np.array([0.5], np.float32)), warm_up=0)


def test_tables_may_be_made_while_capturing_and_live_as_long_as_the_graph(run, cupy, monkeypatch) -> None:
    monkeypatch.setattr("kernels.run_gpu.TABLES", 1)
    arrays = [array(3) for _ in range(3)]
    made = []
    cupy.log.clear()
    graph = run.capture(lambda: made.extend([*map(run.addresses, zip(arrays)), chunks_of(run, (7,))]), warm_up=0)
    inside = next(entry[1] for entry in cupy.log if entry[0] == "begin")
    copies = [entry[1] for entry in cupy.log if entry[0] == "copy"]
    assert copies == [run._aside.ptr] * 4
    assert inside != run._aside.ptr
    assert ("synchronize all",) not in cupy.log
    assert all(any(table is kept for kept in graph._memory) for table in made)


def test_waiting_for_each_launch_names_the_kernel_that_failed(cupy, driver) -> None:
    run = GpuRunner(cupy=cupy, wait=True, cache=CompileCache(None), drivers=[lambda: driver])
    cupy.streams[-1].capturing = True  # so that waiting fails
    with pytest.raises(RuntimeError, match=r"make\(\) with grid \(2, 1, 1\) failed on the GPU: cudaError"):
        run(work(), array(64), array(64), 64, 0.1, 1, 1)


def test_each_stream_has_its_own_number_for_barriers_of_the_grid(run, cupy) -> None:
    here = run.barrier()
    assert (here.shape, here.dtype, here.tolist()) == ((1,), np.uint32, [0])
    assert run.barrier() is here
    with cupy.cuda.Stream():
        assert run.barrier() is not here
    assert run.barrier() is here


def test_each_graph_has_its_own_number_for_barriers_of_the_grid(run) -> None:
    made = []
    first = run.capture(lambda: made.append(run.barrier()))
    run.capture(lambda: made.append(run.barrier()))
    assert made[0] is made[1]  # the recording reads what the warm-up has made
    assert made[2] is not made[1]
    assert any(held is made[0] for held in first._memory)
    assert run.barrier() is not made[0]


def test_what_the_gpu_says_of_itself(run, cupy, monkeypatch) -> None:
    assert run.chip is None  # it says nothing
    says = {"CooperativeLaunch": 1, "MultiProcessorCount": 132, "MaxSharedMemoryPerBlockOptin": 232448}
    monkeypatch.setattr(cupy.cuda.Device, "attributes", says, raising=False)
    del run.chip
    assert run.chip is None
    del run.chip
    says["MaxRegistersPerMultiprocessor"] = 65536
    assert run.chip == HOPPER
    del run.chip
    says["CooperativeLaunch"] = 0
    assert run.chip is None
