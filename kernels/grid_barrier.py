"""A barrier of all blocks of a launch, of one number in device memory.

The number is 32 bits wide. A launch of n blocks adds 2^31 to it in all: 1 for each block but the first, which adds
2^31 - (n - 1). So its top bit turns when the last block arrives, whichever that is, and the other bits are 0 again: the
next barrier, of this launch or another one, of as many blocks or not, needs no reset. (NVIDIA's cooperative groups
count in this way.) A block's first thread adds with release after a barrier of its block and waits with acquire before
another, so what any thread wrote before is seen by every thread of the grid behind (PTX ISA, Memory Consistency Model:
causality order).

All blocks must be resident at once, or those that wait keep the others from starting: kernels that call this are
`cooperative`, which makes the driver refuse a grid that is too large. Launches that may run at the same time need
numbers of their own: `Runner.barrier` has them.
"""

from numba import cuda, uint32

from kernels.device import inlined
from kernels.intrinsics import add_release, load_acquire

TOP = 1 << 31


@inlined
def grid_barrier(state):
    """Wait until all threads of a launch with one-dimensional blocks are here; `state` (1,) uint32 is `run.barrier()`.

    What they wrote to global memory before is visible to all of them after. Every thread of every block must come.
    """
    before = uint32(0)
    if cuda.threadIdx.x == 0:
        before = load_acquire(state, 0)  # of this barrier none has left yet, so the top bit is still the old one
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        others = cuda.gridDim.x * cuda.gridDim.y * cuda.gridDim.z - 1
        first = cuda.blockIdx.x + cuda.blockIdx.y + cuda.blockIdx.z == 0
        add_release(state, 0, uint32(TOP - others if first else 1))
        while (load_acquire(state, 0) ^ before) & uint32(TOP) == uint32(0):
            pass
    cuda.syncthreads()
