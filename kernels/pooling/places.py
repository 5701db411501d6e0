"""Places of eight maxima a thread, int32, moved so that each access of a warp takes whole sectors.

A thread with eight channels has 32 bytes of them, and an access moves 16: by itself it would take half of a sector at
a time. So neighbouring threads, an even one and the next, move each other's: first both halves of the even one's eight,
then those of the odd one's, and they exchange what is not their own. Tiles do so where they have an even number of
groups of eight channels: then both are of one window. With other channels, as with 8, each moves its own.
"""

from typing import Any

from numba import cuda, int32, uint32

from kernels.device import inlined
from kernels.intrinsics import load4, store4

ALL = 0xFFFFFFFF  # lanes of a warp


@inlined
def store_places(place: Any, first: Any, is_even_there: Any, is_odd_there: Any, where: Any) -> None:
    """place[first : first + 8] = where[:8], of all threads of a block; a pair's lie behind one another.

    `first` is this thread's; of a thread that is not there nothing is stored.
    """
    early = cuda.local.array(4, int32)
    late = cuda.local.array(4, int32)
    odd = uint32(cuda.threadIdx.x) & 1
    for k in range(4):
        received = cuda.shfl_xor_sync(ALL, where[k] if odd == 1 else where[k + 4], 1)
        early[k] = received if odd == 1 else where[k]
        late[k] = where[k + 4] if odd == 1 else received
    if is_even_there:
        store4(place, first - 4 * odd, early[0], early[1], early[2], early[3])
    if is_odd_there:
        store4(place, first + 8 - 4 * odd, late[0], late[1], late[2], late[3])


@inlined
def load_places(place: Any, first: Any, is_even_there: Any, is_odd_there: Any, where: Any) -> None:
    """where[:8] = place[first : first + 8], likewise; of a thread that is not there they may be anything."""
    early = cuda.local.array(4, int32)
    late = cuda.local.array(4, int32)
    odd = uint32(cuda.threadIdx.x) & 1
    if is_even_there:
        early[0], early[1], early[2], early[3] = load4(place, first - 4 * odd)
    else:
        for k in range(4):
            early[k] = 0
    if is_odd_there:
        late[0], late[1], late[2], late[3] = load4(place, first + 8 - 4 * odd)
    else:
        for k in range(4):
            late[k] = 0
    for k in range(4):
        received = cuda.shfl_xor_sync(ALL, early[k] if odd == 1 else late[k], 1)
        where[k] = received if odd == 1 else early[k]
        where[k + 4] = late[k] if odd == 1 else received
