"""The rules of kernels/optimizer.py and kernels/averaging.py, applied to every element of many tensors in one launch.

Shapes   Each tensor has its arrays (value, mostly a gradient, and up to two states) of n elements, float32. Where they
         start is a table in device memory, so that one launch reaches all of them, and so are the numbers of a rule:
         rows of as many as it reads, and each tensor goes by one of them, as parameter groups do.
Blocks   A block updates a chunk of one tensor: many small tensors cost one launch, and a large one fills the GPU.
Traffic  reads every array once and writes all but the gradients once.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import cuda, float32, int64, uint32

from kernels.device import index_type, inlined
from kernels.errors import ShapeError
from kernels.intrinsics import load4, pointer_to_float32, store4
from kernels.launch import Addresses, Cost, Floats, Int64, Int64s, Launch, Runner, kernel
from kernels.launch import Array as DeviceArray

BLOCK = 256
CHUNK = 16 * BLOCK  # elements that a block updates
# The numbers in a row (kernels/optimizer_numbers.py): in device memory, where a graph's replay finds new ones.
SGD_NUMBERS, ADAM_NUMBERS = 3, 9


@inlined
def _read_one(n, row):
    return n[row]


@inlined
def _read_sgd(n, row):
    i = SGD_NUMBERS * row
    return n[i], n[i + 1], n[i + 2]


@inlined
def _read_adam(n, row):
    i = ADAM_NUMBERS * row
    return n[i], n[i + 1], n[i + 2], n[i + 3], n[i + 4], n[i + 5], n[i + 6], n[i + 7], n[i + 8]


# Rules: the next value, first state and second state of an element; a state that a rule does not have goes through it.


@inlined
def _sgd(value, grad, first, second, numbers):
    lr, _, decay = numbers
    return value - lr * (grad + decay * value), first, second


@inlined
def _momentum(value, grad, velocity, second, numbers):
    lr, momentum, decay = numbers
    velocity = momentum * velocity + (grad + decay * value)
    return value - lr * velocity, velocity, second


@inlined
def _nesterov(value, grad, velocity, second, numbers):
    lr, momentum, decay = numbers
    grad = grad + decay * value
    velocity = momentum * velocity + grad
    return value - lr * (grad + momentum * velocity), velocity, second


@inlined
def _adam(value, grad, first, second, numbers):
    decay, shrink, beta1, new1, beta2, new2, rate, scale, eps = numbers
    value = value * shrink
    grad = grad + decay * value
    first = beta1 * first + new1 * grad
    second = beta2 * second + new2 * grad * grad
    return value - rate * first / (math.sqrt(second) * scale + eps), first, second


@inlined
def _average(average, value, first, second, weight):
    return average + weight * (value - average), first, second


@inlined
def _scale(value, _grad, first, second, factor):
    return value * factor, first, second


@inlined
def _unscale(value, _grad, first, second, factor):
    return float32(0) if factor == float32(0) else value * factor, first, second


class Rule(NamedTuple):
    """How an element is updated."""

    update: Callable[..., Any]
    read: Callable[..., Any]  # its numbers, from a row of them
    arrays: int  # of a tensor: value, gradient and states, as many as the rule needs
    flops: int  # for an element


RULES = {
    "sgd": Rule(_sgd, _read_sgd, 2, 4),
    "momentum": Rule(_momentum, _read_sgd, 3, 6),
    "nesterov": Rule(_nesterov, _read_sgd, 3, 8),
    "adam": Rule(_adam, _read_adam, 4, 15),
    "average": Rule(_average, _read_one, 2, 3),  # `values` are the averages, `grads` what enters them
    "scale": Rule(_scale, _read_one, 1, 1),
    "unscale": Rule(_unscale, _read_one, 1, 1),
}
EXAMPLES = [*((uint32, rule) for rule in RULES), (int64, "adam")]


def _one(rule: str) -> Callable[..., None]:
    """A device function that updates element i."""
    update, _, arrays, _ = RULES[rule]

    @inlined
    def one(values, grads, firsts, seconds, i, numbers):
        grad = grads[i] if arrays > 1 else float32(0)
        first = firsts[i] if arrays > 2 else float32(0)
        second = seconds[i] if arrays > 3 else float32(0)
        value, first, second = update(values[i], grad, first, second, numbers)
        values[i] = value
        if arrays > 2:
            firsts[i] = first
        if arrays > 3:
            seconds[i] = second

    return one


# Kernels. `table` says where the values start, then the gradients, the first states, the second states; `chunks` the
# tensor of each block, then its first element in it, then the size of that tensor, then the row of numbers that it goes
# by; `total`, all elements, is for the cost.


def _launch(function: Callable[..., None], rule: str) -> Launch:
    arrays, flops = RULES[rule].arrays, RULES[rule].flops

    def cost(total: int) -> Cost:
        return Cost(4 * arrays * total, 4 * max(1, arrays - 1) * total, flops * total)

    return Launch(function, BLOCK, lambda blocks: blocks, cost)


@kernel(
    traffic="table, chunks, numbers ->",
    registers=48,
    examples=EXAMPLES,
)
def update_tensors_scalar(index: Any, rule: str) -> Launch:
    """All tensors in one launch, a chunk of one of them a block, one element at a time."""
    one, read, arrays = _one(rule), RULES[rule].read, RULES[rule].arrays

    def update_tensors(
        table: Addresses,
        chunks: Int64s,
        numbers: Floats,
        tensors: Int64,
        blocks: Int64,
        total: Int64,  # noqa: ARG001
    ):
        block = cuda.blockIdx.x
        tensor, begin, size = chunks[block], chunks[blocks + block], chunks[2 * blocks + block]
        values = pointer_to_float32(table[tensor])
        grads = pointer_to_float32(table[min(1, arrays - 1) * tensors + tensor])  # of a rule without: not looked at
        firsts = pointer_to_float32(table[min(2, arrays - 1) * tensors + tensor])
        seconds = pointer_to_float32(table[(arrays - 1) * tensors + tensor])
        hyper = read(numbers, chunks[3 * blocks + block])
        for k in range(CHUNK // BLOCK):
            i = index(begin + k * BLOCK + cuda.threadIdx.x)
            if i < size:
                one(values, grads, firsts, seconds, i, hyper)

    return _launch(update_tensors, rule)


@kernel(
    traffic="table, chunks, numbers ->",
    instructions=("LDG.E.128", "STG.E.128"),
    examples=EXAMPLES,
)
def update_tensors_vector(index: Any, rule: str) -> Launch:
    """The same, four elements at a time; all tensors aligned to 16."""
    one, (update, read, arrays, _) = _one(rule), RULES[rule]

    def update_tensors(
        table: Addresses,
        chunks: Int64s,
        numbers: Floats,
        tensors: Int64,
        blocks: Int64,
        total: Int64,  # noqa: ARG001
    ):
        block = cuda.blockIdx.x
        tensor, begin, size = chunks[block], chunks[blocks + block], chunks[2 * blocks + block]
        values = pointer_to_float32(table[tensor])
        grads = pointer_to_float32(table[min(1, arrays - 1) * tensors + tensor])
        firsts = pointer_to_float32(table[min(2, arrays - 1) * tensors + tensor])
        seconds = pointer_to_float32(table[(arrays - 1) * tensors + tensor])
        hyper = read(numbers, chunks[3 * blocks + block])
        zero = float32(0)
        for k in range(CHUNK // (4 * BLOCK)):
            i = index(begin + 4 * (k * BLOCK + cuda.threadIdx.x))
            if i + 3 < size:
                v0, v1, v2, v3 = load4(values, i)
                g0, g1, g2, g3 = load4(grads, i) if arrays > 1 else (zero, zero, zero, zero)
                a0, a1, a2, a3 = load4(firsts, i) if arrays > 2 else (zero, zero, zero, zero)
                b0, b1, b2, b3 = load4(seconds, i) if arrays > 3 else (zero, zero, zero, zero)
                v0, a0, b0 = update(v0, g0, a0, b0, hyper)
                v1, a1, b1 = update(v1, g1, a1, b1, hyper)
                v2, a2, b2 = update(v2, g2, a2, b2, hyper)
                v3, a3, b3 = update(v3, g3, a3, b3, hyper)
                store4(values, i, v0, v1, v2, v3)
                if arrays > 2:
                    store4(firsts, i, a0, a1, a2, a3)
                if arrays > 3:
                    store4(seconds, i, b0, b1, b2, b3)
            else:
                for j in range(i, size):  # the tail, at most three elements
                    one(values, grads, firsts, seconds, index(j), hyper)

    return _launch(update_tensors, rule)


def chunks_of(run: Runner, sizes: tuple[int, ...], rows: tuple[int, ...] = ()) -> DeviceArray:
    """(4, blocks) int64: of each block the tensor, its first element in it, that tensor's size, and its row of numbers.

    Args:
        run: Where.
        sizes: Of the tensors.
        rows: Of each; all are row 0 by default.
    """

    def make() -> np.ndarray:
        rules = rows or (0,) * len(sizes)
        blocks = [
            (tensor, begin, size, rules[tensor]) for tensor, size in enumerate(sizes) for begin in range(0, size, CHUNK)
        ]
        return np.array(blocks, np.int64).T.copy()

    return run.table(("chunks", sizes, rows), make)


def require_lists(operation: str, lists: dict[str, Sequence[DeviceArray]]) -> None:
    """Raise ShapeError unless all lists have as many arrays as the first one, of the same shapes."""
    (first, leading), *others = lists.items()
    for name, arrays in others:
        if len(arrays) != len(leading):
            raise ShapeError(f"{operation}: {name} has {len(arrays)} arrays, expected {len(leading)} as {first} has")
        for i, (array, leader) in enumerate(zip(arrays, leading, strict=True)):
            if array.shape != leader.shape:
                raise ShapeError(
                    f"{operation}: {name}[{i}] has shape {tuple(array.shape)}, expected {tuple(leader.shape)} as "
                    f"{first}[{i}] has"
                )


def require_rows(operation: str, numbers: DeviceArray, each: int, rows: Sequence[int], tensors: int) -> None:
    """Raise ShapeError unless `numbers` is (k, each), and `rows` has the number of one of its rows for each tensor."""
    if len(numbers.shape) != 2 or numbers.shape[1] != each:
        raise ShapeError(f"{operation}: numbers has shape {tuple(numbers.shape)}, expected (k, {each}), a row a group")
    if len(rows) != tensors:
        raise ShapeError(f"{operation}: rows has {len(rows)} numbers, expected {tensors}, one a tensor")
    if rows and not 0 <= min(rows) <= max(rows) < len(numbers):
        raise ShapeError(
            f"{operation}: rows has {min(rows)} to {max(rows)}, expected 0 to {len(numbers) - 1} as numbers has rows"
        )


def update_tensors(
    run: Runner,
    lists: Sequence[Sequence[DeviceArray]],
    rule: str,
    numbers: DeviceArray,
    vector: bool,
    rows: Sequence[int] = (),
) -> None:
    """Launch a rule on `run`; `lists` are as many as its arrays, and fit each other.

    `rows` says by which row of `numbers` each tensor goes, by default by the first. `vector` needs arrays that start at
    multiples of 16 bytes: whoever calls has chosen (kernels/choice.py).
    """
    sizes = tuple(int(value.size) for value in lists[0])
    if not sum(sizes):
        return
    everything = [array for arrays in lists for array in arrays]
    factory = update_tensors_vector if vector else update_tensors_scalar
    chunks = chunks_of(run, sizes, tuple(rows))
    run(
        factory(index_type(max(sizes)), rule),
        run.addresses(everything), chunks, numbers, len(sizes), chunks.shape[1], sum(sizes),
    )  # fmt: skip
