"""What changes from one training step to the next, kept in device memory, so that a captured step can be replayed.

A plan lies on the device: the order of an epoch's images, and for each step a row of numbers (learning rates and what
follows from them). A count there says which step is next. Calls of layers are counted there, and a log is kept there.

    begin_step      index = order[step * size : step * size + n],  numbers = plan[step];  step + 1
    count_call      call = count;  count + 1, modulo 2^32
    append_number   log[count] = value;  count + 1

Shapes   order (images,) int64; plan (steps, k); step () int64; index (n,) int64, n at most `size`; numbers (k,);
         count of calls and call () uint32; count of a log () int64, log (N,) with room for one more; value (). On the
         device float32 where nothing else is said, C-contiguous. That the step is one of the plan's, its images of the
         order's and that the log has room is the caller's affair: the counts lie on the device.
Traffic  reads and writes what is moved once.
"""

from typing import Any

import numpy as np
from numba import cuda, uint32
from numpy.typing import NDArray

from kernels.errors import ShapeError, require_shape
from kernels.launch import Array as DeviceArray
from kernels.launch import Cost, Floats, Int64, Int64s, Launch, Runner, UInt32s, kernel

Array = NDArray[Any]
BLOCK = 256


def begin_step_reference(
    order: NDArray[np.int64],
    plan: Array,
    step: NDArray[np.int64],
    size: int,
    index: NDArray[np.int64],
    numbers: Array,
) -> None:
    """In place."""
    first = int(step) * size
    index[...] = order[first : first + len(index)]
    numbers[...] = plan[int(step)]
    step += 1


def count_call_reference(count: NDArray[np.uint32], call: NDArray[np.uint32]) -> None:
    """In place."""
    call[...] = count
    count[...] = (int(count) + 1) % 2**32


def append_number_reference(value: Array, count: NDArray[np.int64], log: Array) -> None:
    """In place."""
    log[count] = value
    count += 1


# Each is one block: whoever counts must be the last to read the count.


@kernel(traffic="order, plan, step -> step, index, numbers", partial="step", registers=32, examples=[()])
def begin_step_of_block() -> Launch:
    """All threads move, one counts."""

    def begin_step(
        order: Int64s,
        plan: Floats,
        step: Int64s,
        index: Int64s,
        numbers: Floats,
        size: Int64,
        n: Int64,
        k: Int64,
    ):
        now = step[0]
        for i in range(cuda.threadIdx.x, n, BLOCK):
            index[i] = order[now * size + i]
        for i in range(cuda.threadIdx.x, k, BLOCK):
            numbers[i] = plan[now * k + i]
        cuda.syncthreads()
        if cuda.threadIdx.x == 0:
            step[0] = now + 1

    return Launch(begin_step, BLOCK, lambda: 1, lambda n, k: Cost(8 * n + 4 * k + 8, 8 * n + 4 * k + 8))


@kernel(traffic="count -> count, call", registers=16, examples=[()])
def count_call_of_thread() -> Launch:
    """One thread."""

    def count_call(count: UInt32s, call: UInt32s):
        if cuda.threadIdx.x == 0:
            now = count[0]
            call[0] = now
            count[0] = uint32(now + 1)

    return Launch(count_call, 32, lambda: 1, lambda: Cost(4, 8))


@kernel(traffic="value, count -> count, log", partial="count, log", registers=16, examples=[()])
def append_number_of_thread() -> Launch:
    """One thread."""

    def append_number(value: Floats, count: Int64s, log: Floats):
        if cuda.threadIdx.x == 0:
            place = count[0]
            log[place] = value[0]
            count[0] = place + 1

    return Launch(append_number, 32, lambda: 1, lambda: Cost(12, 12))


def begin_step(
    run: Runner,
    order: DeviceArray,
    plan: DeviceArray,
    step: DeviceArray,
    size: int,
    index: DeviceArray,
    numbers: DeviceArray,
) -> None:
    """Launch on `run`. `size` is the images of a step but for the last of an epoch, which may have fewer.

    Raises:
        ShapeError: An array's shape is not as above.
    """
    for name, array in (("order", order), ("index", index)):
        if len(array.shape) != 1:
            raise ShapeError(f"begin_step: {name} has shape {tuple(array.shape)}, expected one axis")
    if len(plan.shape) != 2:
        raise ShapeError(f"begin_step: plan has shape {tuple(plan.shape)}, expected (steps, k)")
    if len(index) > size:
        raise ShapeError(f"begin_step: index has shape {tuple(index.shape)}, expected at most {size} as a step has")
    require_shape("begin_step", "step", step, ())
    require_shape("begin_step", "numbers", numbers, (plan.shape[1],))
    run(begin_step_of_block(), order, plan, step, index, numbers, size, len(index), len(numbers))


def count_call(run: Runner, count: DeviceArray, call: DeviceArray) -> None:
    """Launch on `run`. Raises ShapeError unless both are ()."""
    require_shape("count_call", "count", count, ())
    require_shape("count_call", "call", call, ())
    run(count_call_of_thread(), count, call)


def append_number(run: Runner, value: DeviceArray, count: DeviceArray, log: DeviceArray) -> None:
    """Launch on `run`. Raises ShapeError unless value and count are () and log (N,)."""
    require_shape("append_number", "value", value, ())
    require_shape("append_number", "count", count, ())
    if len(log.shape) != 1:
        raise ShapeError(f"append_number: log has shape {tuple(log.shape)}, expected (N,)")
    run(append_number_of_thread(), value, count, log)
