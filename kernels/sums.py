"""One number out of many: sums over all elements, in two stages.

A block adds its threads' sums as a tree (`add_threads`) and leaves a partial sum; one block adds those with what their
additions lost (kernels/reductions.py), so the error does not grow with their number. The order depends on the size
alone, and so do the bits.
"""

from numba import cuda, float32

from kernels.device import inlined
from kernels.launch import Cost, Floats, Int64, Launch, kernel
from kernels.reductions import add, rounded

BLOCK = 256


@inlined
def add_threads(thread, values):
    """values[0] = the sum of the BLOCK elements that the threads of a block have written to shared memory."""
    half = BLOCK // 2
    while half > 0:
        cuda.syncthreads()
        if thread < half:
            values[thread] += values[thread + half]
        half >>= 1


@inlined
def sum_by_block(thread, x, first, n, totals, losts):
    """The sum of x[first : first + n], for every thread of a block; it shares `totals` and `losts`, BLOCK numbers."""
    total, lost = float32(0), float32(0)
    for i in range(thread, n, BLOCK):
        total, lost = add(total, lost, x[first + i])
    totals[thread] = total
    losts[thread] = lost
    half = BLOCK // 2
    while half > 0:
        cuda.syncthreads()
        if thread < half:
            total, lost = add(totals[thread], losts[thread] + losts[thread + half], totals[thread + half])
            totals[thread] = total
            losts[thread] = lost
        half >>= 1
    cuda.syncthreads()
    result = rounded(totals[0], losts[0])
    cuda.syncthreads()  # before the next sum takes the same memory
    return result


@kernel(traffic="partial -> total", registers=32, examples=[()])
def add_partial_sums() -> Launch:
    """total[0]: the sum of partial (n,). One block."""

    def add_partial_sums(partial: Floats, total: Floats, n: Int64):
        totals = cuda.shared.array(BLOCK, float32)
        losts = cuda.shared.array(BLOCK, float32)
        thread = cuda.threadIdx.x
        result = sum_by_block(thread, partial, 0, n, totals, losts)
        if thread == 0:
            total[0] = result

    return Launch(add_partial_sums, BLOCK, lambda: 1, lambda n: Cost(4 * n, 4, n))
