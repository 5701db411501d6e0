"""Pieces that threads take within machine code: each once, whoever takes it."""

import threading

import numpy as np
import pytest
from numba import njit
from numba.core.errors import TypingError

from minidl.backends.cpu.pieces import next_piece


@njit(nogil=True)
def take(counter, count, times):
    taken = 0
    for _ in range(count):
        piece = next_piece(counter)
        if piece >= count:
            break
        times[piece] += 1
        taken += 1
    return taken


def test_threads_are_given_each_piece_once() -> None:
    count, threads = 200_000, 4
    counter, times = np.zeros(1, np.int64), np.zeros(count, np.int64)
    take(counter, 0, times)  # compiled
    meeting, taken = threading.Barrier(threads), [0] * threads

    def work(i: int) -> None:
        meeting.wait(30)
        taken[i] = take(counter, count, times)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert (times == 1).all()
    assert sum(taken) == count
    assert counter[0] <= count + threads


@pytest.mark.parametrize("counter", [np.zeros(1, np.int32), np.zeros((2, 2), np.int64)[:, 0], 1])
def test_a_counter_is_a_contiguous_array_of_64_bits(counter: object) -> None:
    with pytest.raises(TypingError, match="a counter is a contiguous array of int64"):
        take(counter, 1, np.zeros(1, np.int64))
