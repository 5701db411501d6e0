"""The gate of counts: whole sectors, few bank conflicts and one pass, for every kernel that promises wide accesses."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from numba import cuda, float32

from kernels.launch import Cost, Floats, Launch, factories, kernel
from minidl.errors import ConfigError
from minidl.lab import access_counts
from minidl.lab.access_counts import CONFLICTS, SHARE, Measured, lines_of, measure, missing
from minidl.lab.access_lines import LINES, SLACK, Call, Line

# Kernels that are not counted though their names or files might let one expect it, and why.
INHERENT = {
    "conv2d_forward_direct": "the kernel to compare with: it leaves everything to the caches",
    "gather_images_scalar": "it gathers: bytes of the images that the batch wants, shifted and mirrored",
    "cross_entropy_rows": "a row of few classes fills neither a warp nor a sector",
    "max_pool2d_forward_scalar": "for channels or addresses that wide accesses cannot take",
}


def by_call() -> dict[Call, list[Line]]:
    groups: dict[Call, list[Line]] = {}
    for line in LINES:
        groups.setdefault(line.call, []).append(line)
    return groups


@pytest.mark.parametrize("lines", by_call().values(), ids=lambda lines: f"{lines[0].kernel} {lines[0].shape}")
def test_kernels_move_what_they_promise(lines: list[Line]) -> None:
    problems = [f"{one.line.kernel} {one.line.shape} {problem}" for one in measure(lines) for problem in one.problems]
    assert not problems


def test_every_kernel_that_promises_instructions_has_a_line() -> None:
    assert missing() == []
    assert {line.kernel for line in LINES} <= set(factories())
    assert set(INHERENT) <= set(factories()) - {line.kernel for line in LINES}


def test_a_kernel_without_a_line_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_counts, "LINES", tuple(line for line in LINES if line.kernel != "add_vector"))
    assert missing() == ["add_vector"]


def test_more_than_one_pass_has_a_reason() -> None:
    assert [line.kernel for line in LINES if (line.limit > 1 + SLACK) != bool(line.why)] == []
    assert max(Counter((line.kernel, line.shape) for line in LINES).values()) == 1


BLOCK = 128


def copy(stride: int, again: int, pitch: int) -> Call:
    """Launches a kernel that reads each `stride`-th element, `again` times, and passes it through shared memory."""

    @kernel(traffic="x -> y", examples=[()])
    def faulty_copy() -> Launch:
        size = BLOCK * pitch

        def faulty_copy(x: Floats, y: Floats):
            shared = cuda.shared.array(size, float32)
            i = cuda.blockIdx.x * BLOCK + cuda.threadIdx.x
            total = float32(0)
            for _ in range(again):
                total += x[i * stride]
            shared[cuda.threadIdx.x * pitch] = total
            y[i] = shared[cuda.threadIdx.x * pitch]

        return Launch(faulty_copy, BLOCK, lambda: 8, lambda: Cost(4 * 8 * BLOCK, 4 * 8 * BLOCK))

    return lambda run: run(faulty_copy(), np.ones(8 * BLOCK * stride, np.float32), np.ones(8 * BLOCK, np.float32))


def measured(call: Call, **options: Any) -> Measured:
    (one,) = measure([Line("faulty_copy", "1024", call, **options)])
    return one


def test_what_is_wrong_is_told() -> None:
    good = measured(copy(1, 1, 1))
    assert (good.share, good.conflicts, good.passes, list(good.problems)) == (1, 0, 1, [])
    assert (good.launches, good.requests, good.sectors, good.asked, good.moved) == (1, 64, 256, 8192, 8192)
    strided = measured(copy(2, 1, 1), limit=2.0)
    assert strided.share == pytest.approx(2 / 3)
    assert list(strided.problems) == ["66.7 % of the bytes moved are asked for, expected at least 95 %"]
    twice = measured(copy(1, 2, 1))
    assert list(twice.problems) == ["moves 1.50 times the bytes of its cost, expected at most 1.05"]
    assert not list(measured(copy(1, 2, 1), limit=1.5).problems)
    conflicts = measured(copy(1, 1, 2))
    assert conflicts.conflicts == 0.5
    assert list(conflicts.problems) == [
        "50.0 % of the passes over shared memory are bank conflicts, expected at most 5 %"
    ]
    assert (SHARE, CONFLICTS) == (0.95, 0.05)


def test_a_line_that_launches_nothing_of_its_kernel_fails() -> None:
    (one,) = measure([Line("add_vector", "none", lambda run: None)])
    assert list(one.problems) == ["is not launched"]


def test_names() -> None:
    assert {line.kernel for line in lines_of(["transpose_tiled", "add_vector"])} == {"transpose_tiled", "add_vector"}
    assert len(lines_of()) == len(LINES)
    with pytest.raises(ConfigError, match=r"'add_vektor' is no kernel; did you mean add_vector"):
        lines_of(["add_vektor"])
    with pytest.raises(ConfigError, match="'add_scalar' has no line in the table of counts; did you mean add_vector"):
        lines_of(["add_scalar"])
