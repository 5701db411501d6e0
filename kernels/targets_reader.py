"""What a loss must know of all targets before its first row: whether each is a class, and what a mean is divided by."""

from collections.abc import Callable
from typing import Any

from numba import cuda, float32

from kernels.device import inlined
from kernels.reductions import add


def targets_reader(block: int, classes: int, weighted: bool) -> Callable[..., Any]:
    """Make a device function by which a block of `block` threads, a power of two, reads all n targets.

    It leaves the first row whose target is no class, or n, in firsts[0], and in totals[0] + losts[0] how many rows take
    part, or the sum of their targets' weights; all three are shared memory of `block`. A barrier must follow before
    another thread than the first reads that.
    """

    @inlined
    def read_targets(targets, weight, ignore_index, n, totals, losts, firsts):
        thread = cuda.threadIdx.x
        total, lost = float32(0), float32(0)
        bad = n
        for row in range(thread, n, block):
            target = targets[row]
            if target != ignore_index:
                if target < 0 or target >= classes:
                    bad = min(bad, row)
                else:
                    total, lost = add(total, lost, weight[target] if weighted else float32(1))
        totals[thread] = total
        losts[thread] = lost
        firsts[thread] = bad
        half = block // 2
        while half > 0:
            cuda.syncthreads()
            if thread < half:
                total, lost = add(totals[thread], losts[thread] + losts[thread + half], totals[thread + half])
                totals[thread] = total
                losts[thread] = lost
                firsts[thread] = min(firsts[thread], firsts[thread + half])
            half >>= 1

    return read_targets
