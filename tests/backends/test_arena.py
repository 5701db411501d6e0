"""The arena: memory comes back when it is dropped, never before, and does not grow without need."""

import gc
import itertools
import sys
import threading
from typing import Any

import numpy as np
import pytest

from minidl.backends.arena import ALIGNMENT, SMALL, WASTE, Arena


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64, np.uint8, bool])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5, 2), (0,), (4, 0, 3), (1000, 257)], ids=str)
def test_an_array_is_what_was_asked_for(shape: tuple[int, ...], dtype: Any) -> None:
    arena = Arena()
    arrays = [arena.empty(shape, dtype) for _ in range(3)]
    for array in arrays:
        assert type(array) is np.ndarray
        assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert array.flags.aligned
        assert address(array) % ALIGNMENT == 0
    assert len({address(array) for array in arrays}) == 3


def test_arrays_do_not_overlap() -> None:
    arena = Arena()
    rng = np.random.default_rng(0)
    arrays = []
    for _ in range(200):
        arrays.append(arena.empty((int(rng.integers(0, 3000)),), np.uint8))
        if rng.random() < 0.4:
            arrays.pop(int(rng.integers(len(arrays))))
    spans = sorted((address(array), address(array) + array.nbytes) for array in arrays if array.size)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def test_memory_is_used_again_when_dropped_and_not_before() -> None:
    arena = Arena()
    first = arena.empty((1000,), np.float32)
    place = address(first)
    second = arena.empty((1000,), np.float32)
    assert address(second) != place
    reserved = arena.reserved_bytes
    del first
    again = arena.empty((10, 100), np.float32)
    assert address(again) == place
    assert arena.reserved_bytes == reserved
    assert arena.blocks == 2


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[3:5],
        lambda a: a.reshape(-1)[::-7],
        lambda a: a.T[1:].T[2:],
        lambda a: a.view(np.int32),
        lambda a: np.broadcast_to(a[0], (5, *a.shape)),
        lambda a: memoryview(a),
        lambda a: np.frombuffer(a, np.uint8),
    ],
)
def test_a_view_keeps_the_memory(view: Any) -> None:
    arena = Arena()
    array = arena.empty((20, 30), np.float32)
    array[...] = 7
    kept = view(array)
    before = np.array(kept)
    del array
    gc.collect()
    others = [arena.empty((20, 30), np.float32) for _ in range(3)]
    for other in others:
        other[...] = -1
    assert np.array_equal(np.array(kept), before)
    place = np.asarray(kept).__array_interface__["data"][0]
    assert not any(address(other) <= place < address(other) + other.nbytes for other in others)
    blocks = arena.blocks
    del kept
    gc.collect()
    assert arena.empty((20, 30), np.float32).nbytes == 2400
    assert arena.blocks == blocks


def test_the_smallest_block_that_fits_is_taken() -> None:
    arena = Arena()
    sizes = [640, 128, 2560, 320]
    held = [arena.empty((size,), np.uint8) for size in sizes]
    places = {size: address(array) for size, array in zip(sizes, held, strict=True)}
    held.clear()
    assert address(arena.empty((300,), np.uint8)) == places[320]
    assert address(arena.empty((321,), np.uint8)) == places[640]
    assert address(arena.empty((2560,), np.uint8)) == places[2560]


def test_small_requests_do_not_take_big_blocks() -> None:
    """A scalar that lives long would otherwise occupy an activation."""
    arena = Arena()
    activation = arena.empty((4 * SMALL,), np.uint8)
    place = address(activation)
    del activation
    scalar = arena.empty((), np.float32)
    assert address(scalar) != place
    assert address(arena.empty((4 * SMALL,), np.uint8)) == place
    assert arena.reserved_bytes == 4 * SMALL + ALIGNMENT


@pytest.mark.parametrize(("size", "takes"), [(SMALL, False), (3 * SMALL, False), (4 * SMALL, True), (8 * SMALL, True)])
def test_what_is_kept_pins_no_more_than_twice_its_size(size: int, takes: bool) -> None:
    """Logits that are kept would otherwise hold the block of an activation, and each step would need another one."""
    assert WASTE == 2
    arena = Arena()
    activation = arena.empty((8 * SMALL,), np.uint8)
    place = address(activation)
    del activation
    kept = arena.empty((size,), np.uint8)
    assert (address(kept) == place) == takes
    assert kept.base.block.size <= 2 * size


def test_outputs_that_are_kept_cost_their_own_size() -> None:
    arena = Arena()
    kept = []
    for _ in range(20):
        activation = arena.empty((64 * SMALL,), np.uint8)
        del activation
        kept.append(arena.empty((2 * SMALL,), np.uint8))
    assert arena.reserved_bytes == 64 * SMALL + 20 * 2 * SMALL


def test_the_same_requests_need_the_same_memory() -> None:
    arena = Arena()

    def step() -> None:
        kept = [arena.empty((100 * i, 7), np.float32) for i in range(1, 30)]
        for array in kept[::3]:
            del array
        arena.empty((5000,), np.float64)

    step()
    reserved, blocks = arena.reserved_bytes, arena.blocks
    for _ in range(50):
        step()
    assert (arena.reserved_bytes, arena.blocks) == (reserved, blocks)


def test_an_array_may_outlive_the_arena() -> None:
    array = Arena().empty((1000,), np.float32)
    gc.collect()
    array[...] = 3
    assert (array == 3).all()


def test_garbage_cycles_give_their_memory_back() -> None:
    arena = Arena()
    cycle: list[Any] = [arena.empty((1000,), np.float32)]
    cycle.append(cycle)
    place = address(cycle[0])
    del cycle
    gc.collect()
    assert address(arena.empty((1000,), np.float32)) == place


def test_a_collection_while_a_block_is_sought_does_no_harm() -> None:
    """Python 3.12 and later collect where a Python function is entered: in the key function of the search, too."""
    arena = Arena()
    held = [arena.empty((size,), np.uint8) for size in (128, 256, 512)]
    cycle: list[Any] = [held.pop(1)]
    cycle.append(cycle)
    del cycle, held

    def collect_at_each_call(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code is not Arena.empty.__code__:
            gc.collect()

    gc.disable()
    sys.setprofile(collect_at_each_call)
    try:
        array = arena.empty((300,), np.uint8)
    finally:
        sys.setprofile(None)
        gc.enable()
    assert array.base.block.memory.nbytes >= 300 + ALIGNMENT


def test_threads_never_share_memory_by_chance() -> None:
    arena = Arena()
    faults: list[str] = []
    start = threading.Barrier(4)

    def work(mark: int) -> None:
        rng = np.random.default_rng(mark)
        held: list[np.ndarray] = []
        start.wait()
        for _ in range(1500):
            array = arena.empty((int(rng.integers(1, 500)),), np.int64)
            array[...] = mark
            held.append(array)
            if len(held) > 8:
                dropped = held.pop(int(rng.integers(len(held))))
                if not (dropped == mark).all():
                    faults.append(f"thread {mark} found {set(dropped.tolist())}")

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert faults == []
    assert arena.reserved_bytes <= 4 * 10 * 500 * 8  # what four threads hold at once, and no more
