"""The barrier of the grid, and the order between blocks that release and acquire establish in the emulator."""

from typing import Any

import numpy as np
import pytest
from numba import cuda, float32, types, uint32
from test_intrinsics import compiled

from kernels.emulator import DataRace, DivergentBarrier, UnsupportedFeature, emulate
from kernels.grid_barrier import TOP, grid_barrier
from kernels.intrinsics import add_release, load_acquire
from kernels.launch import Floats, UInt32s

THREADS = 32


def exchange(barrier: Any) -> Any:
    """Each thread reads what the one at the other end of the grid wrote; then its own place is written again."""

    def kernel(state: UInt32s, x: Floats, y: Floats):
        i = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
        x[i] = float32(i)
        barrier(state)
        y[i] = x[cuda.gridDim.x * THREADS - 1 - i]
        barrier(state)
        x[i] = float32(0)

    return kernel


def run(kernel: Any, blocks: int, state: np.ndarray | None = None, cooperative: bool = True) -> np.ndarray:
    state = np.zeros(1, np.uint32) if state is None else state
    x, y = np.zeros(blocks * THREADS, np.float32), np.zeros(blocks * THREADS, np.float32)
    emulate(kernel, blocks, THREADS, state, x, y, cooperative=cooperative)
    return y


@pytest.mark.parametrize("top", [0, TOP])
def test_all_see_what_all_wrote_and_the_number_is_ready_for_the_next(top: int) -> None:
    state = np.array([top], np.uint32)
    for blocks in (1, 2, 7, 7, 40):
        assert run(exchange(grid_barrier), blocks, state).tolist() == list(range(blocks * THREADS))[::-1]
        assert state[0] == top  # turned twice


def variant(change: str) -> Any:
    """The barrier with a mistake."""
    early, late, weak = change == "no barrier before", change == "no barrier behind", change == "ends one too early"
    alone, short, once = change == "nothing", change == "one block less", change == "looks once"

    def barrier(state):
        if alone:
            return
        before = uint32(0)
        if cuda.threadIdx.x == 0:
            before = load_acquire(state, 0)
        if not early:
            cuda.syncthreads()
        if cuda.threadIdx.x == 0:
            others = cuda.gridDim.x - 1
            if weak:
                others -= 1
            if not (short and cuda.blockIdx.x == 1):
                add_release(state, 0, uint32(TOP - others if cuda.blockIdx.x == 0 else 1))
            if once:
                load_acquire(state, 0)
            else:
                while (load_acquire(state, 0) ^ before) & uint32(TOP) == uint32(0):
                    pass
        if not late:
            cuda.syncthreads()

    return exchange(cuda.jit(device=True, inline="always")(barrier))


@pytest.mark.parametrize(
    "change", ["no barrier before", "no barrier behind", "ends one too early", "nothing", "looks once"]
)
def test_a_barrier_that_lets_one_through_is_a_race(change: str) -> None:
    with pytest.raises(DataRace):
        run(variant(change), 4)


def test_the_barrier_without_a_mistake_passes() -> None:
    run(variant(""), 4)


def test_a_wait_that_nobody_ends_is_found() -> None:
    with pytest.raises(DivergentBarrier, match="waits for a change of state that no thread will make"):
        run(variant("one block less"), 4)


def test_blocks_wait_for_others_only_where_all_run_at_once() -> None:
    with pytest.raises(UnsupportedFeature, match="the launch is not cooperative"):
        run(exchange(grid_barrier), 4, cooperative=False)


def test_what_one_block_was_handed_it_hands_on() -> None:
    def relay(skip: bool) -> Any:
        def kernel(flags: UInt32s, x: Floats, y: Floats):
            block = cuda.blockIdx.x
            if block == 0:
                x[cuda.threadIdx.x] = float32(7)
            for turn in range(1, 3):
                cuda.syncthreads()
                if block == turn - 1 and cuda.threadIdx.x == 0 and not (skip and turn == 1):
                    add_release(flags, turn, uint32(1))
                if block == turn and cuda.threadIdx.x == 0 and not (skip and turn == 1):
                    while load_acquire(flags, turn) == uint32(0):
                        pass
                cuda.syncthreads()
            if block == 2:
                y[cuda.threadIdx.x] = x[THREADS - 1 - cuda.threadIdx.x]

        return kernel

    flags, x, y = np.zeros(3, np.uint32), np.zeros(THREADS, np.float32), np.zeros(THREADS, np.float32)
    emulate(relay(False), 3, THREADS, flags, x, y, cooperative=True)
    assert (y == 7).all()
    with pytest.raises(DataRace):
        emulate(relay(True), 3, THREADS, np.zeros(3, np.uint32), x, y, cooperative=True)


def test_plain_accesses_to_the_number_race_with_it() -> None:
    def kernel(state: UInt32s, y: Floats):
        if cuda.threadIdx.x == 0:
            add_release(state, 0, uint32(1))
            y[cuda.blockIdx.x] = float32(state[0])

    with pytest.raises(DataRace, match="read after atomic"):
        emulate(kernel, 2, 1, np.zeros(1, np.uint32), np.zeros(2, np.float32), cooperative=True)


def test_the_wait_stays_a_loop_in_machine_code() -> None:
    pointers = types.CPointer(types.uint32), types.CPointer(types.float32), types.CPointer(types.float32)
    ptx, code = compiled(exchange(grid_barrier), pointers, (9, 0))
    assert ptx.count("red.release.gpu.global.add.u32") == 2
    lines = [line for line in code.splitlines() if "/*" in line or line.startswith(".L")]
    loops = 0
    for i, line in enumerate(lines):
        if line.startswith(".L"):
            name = line.split(":")[0]
            until = next((k for k in range(i, len(lines)) if "BRA" in lines[k]), i)
            # a loop: the branch at its end goes back to its start, and what it waits for is loaded between
            loops += f"`({name})" in lines[until] and any("LDG.E.STRONG.GPU" in inner for inner in lines[i:until])
    assert loops == 2
