"""What the twin of an intrinsic sees of the launch: the active lanes and the memory.

An intrinsic (inline PTX) has a twin in `kernels.intrinsics.TWINS`, a Python function `twin(context, *arguments)` that
does for all active lanes what the instruction does for one thread. Its arguments, and what it returns, are

    numbers    a NumPy scalar where all active lanes have the same value, else a vector with one element a lane, in
               ascending order of lanes; of the dtype that Numba gives the argument or result
    pointers   and arrays: a `Memory`, to be handed to `load`, `store` and `shared_address`; it has .dtype and .name
    tuples     of these

A twin must never change a vector in place: vectors are shared between variables.
"""

from collections.abc import Sequence
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[Any]
Place = tuple[str, int]  # file and line of the source
WARP = 32


class Observer(Protocol):
    """Sees what a launch does, to count it. A lane is a thread's number in the batch: block * threads + thread."""

    def memory(
        self, place: Place, kind: str, space: str, name: str, addresses: Vector, width: int, lanes: Vector, threads: int
    ) -> None:
        """One memory instruction.

        Args:
            place: File and line of the source.
            kind: "load", "store" or "atomic".
            space: "global" or "shared" (bytes from the start of the block's shared memory) or "local".
            name: Of the array.
            addresses: Byte address, one a lane.
            width: Bytes a lane moves.
            lanes: The active ones, ascending.
            threads: Of a block; lane % threads is the thread's number in its block, its warp that // 32.
        """

    def branch(self, place: Place, taken: Vector | bool, lanes: Vector, threads: int) -> None:
        """A conditional jump: per lane, or all alike, whether it was taken."""

    def barrier(self, place: Place, kind: str, lanes: Vector, threads: int) -> None:
        """A barrier: "block", "warp" or "grid"."""

    def arithmetic(self, place: Place, operation: str, dtype: np.dtype[Any], lanes: int) -> None:
        """An arithmetic operation ("add", "mul", "div", "exp", ...; "fma" counts twice) on so many lanes."""

    def statement(self, place: Place, lanes: Vector, threads: int) -> None:
        """A statement of the source was reached by these lanes."""


class Context(Protocol):
    """The launch at the instruction that a twin stands for."""

    lanes: Vector  # active lanes, ascending: block in batch * threads + thread
    threads: int  # of a block
    observer: Observer | None
    place: Place  # file and line of the source

    def load(self, pointer: Any, index: Any, count: int = 1) -> tuple[Any, ...]:
        """`count` consecutive elements from element `index` on, one vector each.

        Checked: bounds, alignment to count * itemsize, initialisation, races.
        """

    def store(self, pointer: Any, index: Any, values: Sequence[Any]) -> None:
        """Store consecutive elements from element `index` on; checked as in `load`."""

    def vector(self, value: Any) -> Vector:
        """One element a lane, of a value that may be uniform. Not to be written to."""

    def warps(self, value: Any) -> Vector:
        """A value as (active warps, 32). Refused as a DivergentBarrier unless all lanes of each warp are active."""

    def unwarp(self, rows: Vector) -> Vector:
        """(active warps, 32) or that shape broadcast -> one element a lane."""

    def shared_address(self, array: Any, index: Any) -> Vector:
        """Byte address (uint32) of an element of a shared array in the block's shared memory."""

    def at_shared(self, address: Any, dtype: Any) -> tuple[Any, Vector]:
        """The shared memory as elements of `dtype`, and the index of what is at `address` (uint32, bytes)."""

    def at_global(self, address: Any, dtype: Any) -> Any:
        """A pointer to what is at `address` (uint64; may differ by lane) in an array of this launch."""

    def address(self, pointer: Any, index: Any) -> Vector:
        """Byte address (uint64) of an element in global memory."""

    def add_release(self, pointer: Any, index: Any, value: Any) -> None:
        """Add to an element of global memory with release (`kernels.emulator.release`)."""

    def load_acquire(self, pointer: Any, index: Any) -> Vector:
        """An element of global memory with acquire: as the lane's block may see it."""

    def start_copy(self, pointer: Any, index: Any, values: Sequence[Any]) -> Any:
        """Store as `store` does, but until `finish_copy` the elements count as not there: reading them is a fault.

        Returns:
            A token for `finish_copy`.
        """

    def finish_copy(self, token: Any, arrived: Vector | None = None) -> None:
        """The elements have arrived, for the threads that copied them and for others after a barrier.

        Args:
            token: Of `start_copy`.
            arrived: Of each lane that was active there, whether its elements are meant, each once; None for all.
        """

    def load_block(self, pointer: Any, index: Any, count: int) -> Vector:
        """`count` consecutive elements of device memory a lane, as the copy engine reads them: (lanes, count)."""

    def start_bulk(self, pointer: Any, index: Any, values: Vector) -> Any:
        """As `start_copy`, of (lanes, count) elements, through the async proxy."""

    def load_async(self, pointer: Any, index: Any, count: int) -> tuple[tuple[Any, ...], Any]:
        """As `load`, through the async proxy, and under way until `finish_read` of the token that comes with it.

        Checked as well: that what ordinary stores wrote was fenced, and that nobody overwrites it meanwhile.
        """

    def finish_read(self, token: Any, done: Vector) -> None:
        """The reads of those of the lanes (one boolean a lane that was active there) are done."""

    def fence_proxy(self) -> None:
        """What the lanes have stored to shared memory is visible to the async proxy."""

    def require_fenced(self, pointer: Any, index: Any, count: int) -> None:
        """Fault unless these elements of a shared array are visible to the async proxy."""

    def row(self, array: Any, k: int) -> Any:
        """Element k of a local array, for all lanes: None or `kernels.emulator.lanes.Partial` where it is unset."""

    def set_row(self, array: Any, k: int, row: Any) -> None:
        """Replace it, by a value or a Partial."""

    def fault(self, kind: Any, what: str, array: Any = None) -> NoReturn:
        """Raise a KernelFault of this kind at this line, of the first lane."""

    def within(self, mask: Vector) -> "Context":
        """The launch as those of the active lanes see it where `mask` (one boolean a lane, not all False) is set."""

    def state(self, key: str, make: Any) -> Any:
        """What the twins keep for this batch of blocks under `key`; `make()` the first time."""

    def count(self, operation: str, dtype: Any, times: int = 1) -> None:
        """Tell the observer, if there is one, of arithmetic on the active lanes."""

    def refuse(self, what: str) -> NoReturn:
        """Raise UnsupportedFeature at this line."""
