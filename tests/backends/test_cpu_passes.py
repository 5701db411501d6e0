"""Passes over memory: NumPy's bits, whatever the numbers and sizes; nothing beside the arrays is written or read."""

import ctypes
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from minidl.backends.cpu import machine_code, passes
from minidl.backends.cpu.machine_code import LANES, built, once
from minidl.backends.cpu.passes import NAMES, PASSES, pass_table, repeats, run_pass

GUARD, SPACE = np.float32(-12345), 40
WIDTHS = sorted({1, 3, LANES - 1, LANES, LANES + 1, 17, 4 * LANES - 1, 4 * LANES, 4 * LANES + 1, 119, 128, 130})
HOSTILE = np.array(
    [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 2.0**-126, -(2.0**-127), 3e38, -3e38, 1, -1], np.float32
)
WITH_SUMS = [made.name for made in PASSES if made.sums]
WITHOUT_SUMS = [made.name for made in PASSES if not made.sums and not made.around]
AROUND = [made.name for made in PASSES if made.around]
Array = np.ndarray


def counts(width: int) -> list[int]:
    """Fewer than a row, whole rows, and rows and a part."""
    return sorted({0, 1, width // 2, width - 1, width, width + 1, 2 * width - 1, 3 * width, 5 * width + width // 3})


def expected(name: str, a: Array, b: Array, c: Array, parameters: Array) -> tuple[Array | None, list[Array]]:
    """What is stored, and the terms that are summed; float32 like its arguments."""
    shift, delta, scale, beta, mean_g, slope = (np.resize(row, a.shape) for row in parameters)
    zero = np.float32(0)
    centred = (a - shift) - delta
    normalized = centred * scale + beta
    masked = np.where(normalized <= 0, zero, b)
    added = normalized + b
    by_output = np.where(c <= 0, zero, b)
    d = a - shift

    def gradient(g: Array) -> Array:
        return scale * ((g - mean_g) - centred * slope)

    stored = {
        "copy": a,
        "normalize": normalized,
        "normalize_relu": np.where(normalized <= 0, zero, normalized),
        "gradient": gradient(b),
        "gradient_relu": gradient(masked),
        "normalize_add_relu": np.where(added <= 0, zero, added),
        "scale": scale * a,
        "mask_and_scale": scale * masked,
        "mask_and_sum_gradients": masked,
        "mask_by_output_and_sum_gradients": by_output,
    }
    terms = {
        "sum_shifted": [d, d * d],
        "sum_gradients": [b, b * centred],
        "sum_gradients_relu": [masked, masked * centred],
        "mask_and_sum_gradients": [masked, masked * centred],
        "mask_by_output_and_sum_gradients": [by_output, by_output * centred],
    }
    return stored.get(name.removesuffix("_around")), terms.get(name, [])


def summed(terms: Array, width: int) -> Array:
    """Row by row in float32."""
    total = np.zeros(width, np.float32)
    for begin in range(0, len(terms), width):
        row = terms[begin : begin + width]
        total[: len(row)] += row
    return total


def numbers(kind: str, rng: np.random.Generator, *shape: int) -> Array:
    if kind == "whole":
        return rng.integers(-3, 4, shape).astype(np.float32)
    made = rng.standard_normal(shape).astype(np.float32)
    if kind == "hostile":
        places = rng.random(shape) < 0.5
        made[places] = rng.choice(HOSTILE, int(places.sum()))
    return made


def run(name: str, width: int, a: Array, b: Array, c: Array, parameters: Array, y: Array, z: Array) -> None:
    function = passes._PROTOTYPE(int(pass_table()[NAMES.index(name)]))
    function(len(a), width, *(array.ctypes.data for array in (a, b, c, parameters, y, z)))


def same(got: Array, wanted: Array) -> None:
    """The same bits, whichever NaN."""
    assert got.dtype == wanted.dtype == np.float32
    np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(np.signbit(got[got == 0]), np.signbit(wanted[got == 0]))


def within(array: Array, rng: np.random.Generator, aligned: bool = False) -> Array:
    """A copy of the array beside guards, aligned to vectors or not."""
    at = SPACE + int(rng.integers(0, LANES))
    memory = np.full(len(array) + 2 * SPACE + LANES, GUARD)
    if aligned:
        at = SPACE + -(memory.ctypes.data // 4 + SPACE) % LANES
    memory[at : at + len(array)] = array
    return memory[at : at + len(array)]


def guards_are_there(array: Array) -> None:
    memory = array.base
    at = (array.ctypes.data - memory.ctypes.data) // 4
    assert (memory[:at] == GUARD).all()
    assert (memory[at + len(array) :] == GUARD).all()


@np.errstate(all="ignore")
def check(name: str, width: int, count: int, kind: str, rng: np.random.Generator) -> None:
    parameters = numbers(kind, rng, 6, width)
    a, b, c = (within(numbers(kind, rng, count), rng) for _ in range(3))
    given = [array.copy() for array in (a, b, c, parameters)]
    y, z = (within(np.full(size, np.nan, np.float32), rng, name in AROUND) for size in (count, 2 * width))
    stored, terms = expected(name, a, b, c, parameters)
    run(name, width, a, b, c, parameters, y, z)
    for before, array in zip(given, (a, b, c, parameters), strict=True):
        same(array, before)
    same(y, np.full(count, np.nan, np.float32) if stored is None else stored)
    if terms:
        same(z, np.concatenate([summed(each, width) for each in terms]))
    else:
        assert np.isnan(z).all()
    for array in (a, b, c, y, z):
        guards_are_there(array)


@pytest.mark.parametrize("kind", ["ordinary", "hostile"])
@pytest.mark.parametrize("name", WITHOUT_SUMS)
def test_passes_have_the_bits_of_numpy(name: str, kind: str) -> None:
    rng = np.random.default_rng(1)
    for width in WIDTHS:
        for count in counts(width):
            check(name, width, count, kind, rng)


@pytest.mark.parametrize("kind", ["ordinary", "hostile"])
@pytest.mark.parametrize("name", AROUND)
def test_so_do_those_that_write_around_the_caches(name: str, kind: str) -> None:
    """Of rows of whole vectors, into a place where vectors may begin."""
    rng = np.random.default_rng(1)
    for width in (LANES, 3 * LANES, 128, 272):
        for count in counts(width):
            check(name, width, count, kind, rng)


@pytest.mark.parametrize("kind", ["whole", "ordinary", "hostile"])
@pytest.mark.parametrize("name", WITH_SUMS)
def test_sums_go_row_by_row_in_float32(name: str, kind: str) -> None:
    """Of whole numbers they are exact, and of any others they have the bits of that order."""
    rng = np.random.default_rng(2)
    for width in WIDTHS:
        for count in counts(width):
            check(name, width, count, kind, rng)


@pytest.mark.parametrize("name", WITH_SUMS)
def test_whole_numbers_are_summed_exactly(name: str) -> None:
    rng = np.random.default_rng(3)
    width, rows = 130, 100
    parameters = numbers("whole", rng, 6, width)
    a, b, c = (numbers("whole", rng, rows * width) for _ in range(3))
    _, terms = expected(name, a, b, c, parameters)
    run(name, width, a, b, c, parameters, np.empty_like(a), z := np.empty(2 * width, np.float32))
    np.testing.assert_array_equal(z.reshape(2, width), [each.reshape(rows, width).sum(axis=0) for each in terms])


@pytest.mark.parametrize("name", [name for name in (*WITHOUT_SUMS, *WITH_SUMS) if name != "copy"])
@pytest.mark.parametrize("place", ["a", "b", "c"])
def test_the_result_may_take_the_place_of_what_is_read(name: str, place: str) -> None:
    rng = np.random.default_rng(4)
    width, count = 37, 200
    parameters = numbers("ordinary", rng, 6, width)
    arrays = {one: numbers("ordinary", rng, count) for one in "abc"}
    stored, terms = expected(name, *arrays.values(), parameters)
    before = arrays[place].copy()
    run(name, width, *arrays.values(), parameters, arrays[place], z := np.zeros(2 * width, np.float32))
    same(arrays[place], before if stored is None else stored)
    if terms:
        same(z, np.concatenate([summed(each, width) for each in terms]))


def test_relu_keeps_nan_and_stops_minus_zero() -> None:
    """Where the activation is 0 or less the gradient is 0; where it is NaN, the gradient passes."""
    y = np.array([np.nan, -0.0, 0.0, -1e-45, 1e-45, -np.inf, np.inf], np.float32)
    parameters = np.array([0, 0, 1, -0.0, 0, 0], np.float32)[:, None].repeat(len(y), axis=1)
    dy, got, ignored = np.full(7, 5, np.float32), np.empty(7, np.float32), np.empty(14, np.float32)
    run("normalize_relu", 7, y, dy, y, parameters, got, ignored)
    same(got, np.array([np.nan, 0, 0, 0, 1e-45, 0, np.inf], np.float32))
    run("mask_and_scale", 7, y, dy, y, parameters, got, ignored)
    same(got, np.array([5, 0, 0, 0, 5, 0, 5], np.float32))


@pytest.mark.parametrize("channels", [1, 17, 100, 130])
def test_ranges_of_a_pass_are_a_part_of_the_whole(channels: int) -> None:
    rng = np.random.default_rng(5)
    width = channels * repeats(channels)
    assert repeats(channels) == max(1, 128 // channels)
    count = 7 * channels
    row = numbers("ordinary", rng, 6, channels)
    parameters = np.ascontiguousarray(np.tile(row, repeats(channels)))
    a, b, y = (numbers("ordinary", rng, count) for _ in range(3))
    before = y.copy()
    places = tuple(array.ctypes.data for array in (a, b, a, y))
    run_pass(2 * channels, 5 * channels, NAMES.index("gradient_relu"), width, parameters.ctypes.data, *places)
    stored, _ = expected("gradient_relu", a, b, a, row)
    assert stored is not None
    before[2 * channels : 5 * channels] = stored[2 * channels : 5 * channels]
    same(y, before)


def test_threads_that_come_at_once_wait_for_one_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two builds one would be thrown away, with machine code that a thread may be running."""
    load, times = machine_code._load, []
    monkeypatch.setattr(machine_code, "_load", lambda *given: (times.append(1), load(*given))[1])
    monkeypatch.setattr(passes, "_addresses", built(NAMES)(passes._addresses.__wrapped__))
    monkeypatch.setattr(passes, "_built", once(passes._built.__wrapped__))
    meeting = threading.Barrier(4, timeout=30)
    a, parameters = np.ones(4, np.float32), np.ones((6, 4), np.float32)
    got = np.zeros((4, 4), np.float32)

    def work(i: int) -> None:
        meeting.wait()
        places = a.ctypes.data, a.ctypes.data, a.ctypes.data, got[i].ctypes.data
        run_pass(0, 4, NAMES.index("copy"), 4, parameters.ctypes.data, *places)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (got == 1).all()
    assert len(times) == 1


# The ends of memory. A pass that reads or writes beyond its arrays would end the process: so another one runs it.


def at_the_ends(size: int) -> Iterator[Array]:
    """Arrays of `size` numbers that begin, and end, where a page begins or ends; no page beside it may be touched."""
    page = mmap.PAGESIZE
    inside = -(-4 * max(size, 1) // page) * page
    memory = mmap.mmap(-1, inside + 2 * page)
    whole = np.frombuffer(memory, np.uint8)
    protect = ctypes.CDLL(None).mprotect
    protect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    for begin in (0, page + inside):
        assert protect(whole.ctypes.data + begin, page, 0) == 0
    yield np.frombuffer(memory, np.float32, size, page)
    yield np.frombuffer(memory, np.float32, size, page + inside - 4 * size)


def try_all_passes_at_the_ends() -> None:
    rng = np.random.default_rng(6)
    for width in (1, LANES, 17, 4 * LANES + 3, 130):
        for count in (1, width, 3 * width - 1, 2 * width + 1):
            arrays = [at_the_ends(size) for size in (count, count, count, 6 * width, count, 2 * width)]
            for a, b, c, parameters, y, z in zip(*arrays, strict=True):
                for array in (a, b, c, parameters):
                    array[:] = numbers("ordinary", rng, len(array))
                for made in PASSES:
                    if made.around and (width % LANES or y.ctypes.data % (4 * LANES)):
                        continue
                    stored, terms = expected(made.name, a, b, c, parameters.reshape(6, width))
                    run(made.name, width, a, b, c, parameters, y, z)
                    if stored is not None:
                        same(y, stored)
                    if terms:
                        same(z, np.concatenate([summed(each, width) for each in terms]))


def end_of_a_page_is_the_end() -> None:
    """A pass told of one number more."""
    _, a = at_the_ends(3)
    longer = np.lib.stride_tricks.as_strided(a, (4,))
    run("copy", 4, longer, a, a, a, np.empty(4, np.float32), a)


def in_a_process_of_its_own(function: str) -> subprocess.CompletedProcess:
    code = f"import test_cpu_passes; test_cpu_passes.{function}(); print('done')"
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="pages are protected by mprotect")
def test_no_pass_reads_or_writes_beyond_its_arrays() -> None:
    result = in_a_process_of_its_own("try_all_passes_at_the_ends")
    assert (result.stdout, result.stderr, result.returncode) == ("done\n", "", 0)


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="pages are protected by mprotect")
def test_beyond_a_page_is_noticed() -> None:
    result = in_a_process_of_its_own("end_of_a_page_is_the_end")
    assert result.returncode < 0
    assert result.stdout == ""
