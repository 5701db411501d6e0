"""What the host functions of batch normalization launch, and what they refuse."""

from typing import Any

import numpy as np
import pytest
from emulated import RUN, Recorder, blank, launched, placed
from numba import uint32

from kernels import batchnorm
from kernels.batchnorm import BatchStatistics
from kernels.batchnorm.apply import batchnorm_apply_vector
from kernels.batchnorm.input_gradient import batchnorm_backward_vector
from kernels.batchnorm.split import ENOUGH, Split
from kernels.emulator import launch as emulation
from kernels.emulator.counts import CountingObserver
from kernels.errors import ShapeError, TechniqueError
from kernels.run_emulated import EmulatorRunner
from kernels.storage import FLOAT32

Array = np.ndarray


def arrays(*shape: int, offset: int = 0) -> tuple[Array, BatchStatistics, Array]:
    """x, statistics and a parameter."""
    channels = shape[-1:]
    return blank(shape, offset), BatchStatistics(*(blank(channels) for _ in range(4))), blank(channels)


def backward(x: Array, training: bool, affine: bool, relu: bool = False, technique: str | None = None) -> list[str]:
    _, statistics, parameter = arrays(*x.shape)
    parameters = (parameter, parameter, x, parameter, parameter) if affine else (None, None, x, None, None)
    return launched(batchnorm.batchnorm_backward, x, x, statistics, *parameters, training, relu, technique=technique)


def test_wide_accesses_where_the_arrays_allow_them() -> None:
    for c, offset, technique, width in (
        (8, 0, None, "vector"), (8, 0, "vector", "vector"), (8, 4, None, "vector"), (8, 0, "scalar", "scalar"),
        (8, 1, None, "scalar"), (6, 0, None, "scalar"), (1, 0, None, "scalar"),
    ):  # fmt: skip
        x, statistics, parameter = arrays(5, c, offset=offset)
        choice: dict[str, Any] = {"technique": technique}
        assert launched(batchnorm.batchnorm_statistics, x, 1e-5, statistics, **choice) == [
            f"batchnorm_sum_shifted_{width}", "batchnorm_finish_statistics",
        ]  # fmt: skip
        given = statistics, parameter, parameter, x
        assert launched(batchnorm.batchnorm_apply, x, *given, True, **choice) == [f"batchnorm_apply_{width}"]
        assert launched(batchnorm.batchnorm_add_relu_apply, x, x, *given, **choice) == [
            f"batchnorm_add_relu_apply_{width}"
        ]
        assert backward(x, True, True, technique=technique) == [
            f"batchnorm_sum_gradients_{width}", "batchnorm_finish_gradients", f"batchnorm_backward_{width}",
        ]  # fmt: skip
        assert launched(
            batchnorm.batchnorm_add_relu_backward, x, x, x, statistics, parameter, x, x, None, None, True, **choice
        ) == [
            f"batchnorm_mask_and_sum_gradients_{width}", "batchnorm_finish_gradients", f"batchnorm_backward_{width}",
        ]  # fmt: skip


@pytest.mark.parametrize(("c", "offset"), [(6, 0), (8, 1)])
def test_wide_accesses_are_refused_where_the_arrays_do_not_allow_them(c: int, offset: int) -> None:
    x, statistics, parameter = arrays(5, c, offset=offset)
    given, wide = (statistics, parameter, parameter, x), {"technique": "vector"}
    for host, rest in (
        (batchnorm.batchnorm_statistics, (1e-5, statistics)),
        (batchnorm.batchnorm_apply, (*given, True)),
        (batchnorm.batchnorm_add_relu_apply, (x, *given)),
        (batchnorm.batchnorm_backward, (x, *given, parameter, parameter, True, True)),
        (batchnorm.batchnorm_add_relu_backward, (x, x, statistics, parameter, x, x, None, None, True)),
    ):
        with pytest.raises(TechniqueError, match="technique 'vector'"):
            launched(host, x, *rest, **wide)


@pytest.mark.parametrize("rows", [1, 63, 64, 1000, 4096, 99_999, 2**20])
@pytest.mark.parametrize("c", [1, 64, 516])
def test_the_second_pass_visits_all_rows_and_the_ends_of_what_blocks_have_read_first(c: int, rows: int) -> None:
    parts = Split(c, 4 if c % 4 == 0 else 1)
    stretch, groups = parts.way_back(rows, 2048, 16)
    blocks, _, pieces = parts.grid_back(rows, stretch, groups)
    assert stretch == parts.span(rows, ENOUGH, rows)  # what a block has summed
    assert blocks == -(-rows // stretch)
    assert (pieces - 1) * groups * 4 * parts.depth < stretch <= pieces * groups * 4 * parts.depth
    assert groups <= 4


@pytest.mark.parametrize("operation", ["apply", "backward"])
def test_of_each_stretch_the_second_pass_reads_the_end_first(operation: str, monkeypatch) -> None:
    """As a GPU starts blocks: in the order of their numbers, here one after the other."""
    seen: list[int] = []

    class Order(CountingObserver):
        def memory(self, place, kind, space, name, addresses, *rest):
            if (kind, name) == ("load", "x"):
                seen.append(int(addresses.min()) // 256)
            super().memory(place, kind, space, name, addresses, *rest)

    monkeypatch.setattr(emulation, "CountingObserver", Order)
    monkeypatch.setattr(emulation, "BATCH", 256)
    rows, stretch, groups, c = 3 * 512 + 100, 512, 2, [blank((64,)) for _ in range(7)]
    x, y = blank((rows, 64)), blank((rows, 64))
    if operation == "apply":
        arrays = (batchnorm_apply_vector(64, True, True, uint32, FLOAT32), x, *c[:5], y)
    else:
        arrays = (batchnorm_backward_vector(64, True, True, True, uint32, FLOAT32), x, x, *c, y)
    EmulatorRunner(counts=True)(*arrays, rows, stretch, groups)
    first = min(seen)
    visited = [row - first for row in seen]
    assert len(visited) * 16 == rows + (-rows) % 16  # 16 rows at once
    assert {row // 512 for row in visited[:24]} == {0, 1, 2}  # the last 128 rows of all but the short stretch
    assert all(row % 512 >= 384 for row in visited[:24])
    for number in range(4):
        pieces = [row % 512 // 64 for row in visited if row // 512 == number]
        assert pieces == sorted(pieces, reverse=True)


def test_one_misaligned_array_is_enough_for_scalar_accesses() -> None:
    x, statistics, parameter = arrays(5, 8)
    off = blank((5, 8), offset=1)
    given = statistics, parameter, parameter
    assert launched(batchnorm.batchnorm_apply, x, *given, off, True) == ["batchnorm_apply_scalar"]
    for pair in ((off, x), (x, off)):
        assert launched(batchnorm.batchnorm_add_relu_apply, x, pair[0], *given, pair[1]) == [
            "batchnorm_add_relu_apply_scalar"
        ]
        names = launched(batchnorm.batchnorm_backward, x, pair[0], *given, pair[1], parameter, parameter, True, False)
        assert all("vector" not in name for name in names)
    for place in range(4):
        y, dy, dx, dresidual = (off if place == i else x for i in range(4))
        names = launched(
            batchnorm.batchnorm_add_relu_backward,
            x, y, dy, statistics, parameter, dx, dresidual, parameter, parameter, True,
        )  # fmt: skip
        assert all("vector" not in name for name in names)


def test_a_misaligned_parameter_is_enough_too() -> None:
    x, statistics, parameter = arrays(5, 8)
    off = blank((8,), offset=1)
    for given in ((statistics._replace(delta=off), parameter, parameter), (statistics, off, parameter)):
        assert launched(batchnorm.batchnorm_apply, x, *given, x, True) == ["batchnorm_apply_scalar"]


@pytest.mark.parametrize("shape", [(4096, 64), (1024, 512), (4096, 1), (1024, 96)], ids=str)
def test_accesses_are_coalesced_and_meet_no_bank_twice(rng, shape: tuple[int, ...]) -> None:
    run = EmulatorRunner(counts=True)
    x, dy, y, dx, dresidual = (placed(rng.standard_normal(shape)) for _ in range(5))
    statistics, gamma, beta = arrays(*shape)[1], blank(shape[-1:]), blank(shape[-1:])
    gradients = dx, dresidual, blank(gamma.shape), blank(gamma.shape)
    batchnorm.batchnorm_statistics(run, x, 1e-5, statistics)
    batchnorm.batchnorm_apply(run, x, statistics, gamma, beta, y, relu=True)
    batchnorm.batchnorm_backward(run, x, dy, statistics, gamma, beta, dx, *gradients[2:], True, True)
    batchnorm.batchnorm_add_relu_apply(run, x, dy, statistics, gamma, beta, y)
    batchnorm.batchnorm_add_relu_backward(run, x, y, dy, statistics, gamma, *gradients, True)
    assert len(run.launched) == 10
    for kernel, _, report in run.launched:
        assert report.counts is not None
        total = report.counts.total
        assert total.bank_conflicts == 0
        if "finish" in kernel.name:  # four channels are half a sector; in all a few thousandths of x
            assert total.bytes_moved <= max(2 * total.bytes_asked, 0.03 * x.nbytes)
        else:
            assert total.bytes_moved <= 1.03 * total.bytes_asked, kernel


def test_sums_are_made_only_where_they_are_needed() -> None:
    x = blank((5, 8))
    assert len(backward(x, training=True, affine=True)) == 3
    assert len(backward(x, training=True, affine=False)) == 3
    assert len(backward(x, training=False, affine=True)) == 3
    assert len(backward(x, training=False, affine=False)) == 1


def test_the_rows_of_a_short_last_batch_compile_nothing_new() -> None:
    recorder = Recorder()
    for rows in (512, 300, 1):
        x, statistics, parameter = arrays(rows, 8)
        batchnorm.batchnorm_statistics(recorder, x, 1e-5, statistics)
        given = statistics, parameter, parameter, x, parameter, parameter
        batchnorm.batchnorm_backward(recorder, x, x, *given, True, True)
    assert len(set(map(id, recorder.kernels))) == 5


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("groups", [1, 3, 17, 63, 64, 65, 128, 129, 513])
def test_every_channel_has_a_lane_and_few_lanes_have_none(groups: int, width: int) -> None:
    split = Split(groups * width, width)
    assert groups <= split.across * split.lanes < groups + split.across
    assert split.lanes <= 64
    assert split.depth * split.lanes <= 256 < (split.depth + 1) * split.lanes


def test_a_sum_over_many_rows_fills_a_gpu_once_and_one_over_few_has_as_many_blocks_as_help() -> None:
    for rows in (2**20, 2**24, 2**34):
        split = Split(64, 4)
        assert 370 <= -(-rows // split.span(rows, ENOUGH, rows)) <= ENOUGH
    assert Split(64, 4).span(2048, ENOUGH, 2048) == 64  # 16 rows at once, four times
    assert Split(512, 4).span(2048, ENOUGH, 2048) == 16


def refused(match: str, host: Any, *arguments: Any) -> None:
    with pytest.raises(ShapeError, match=match):
        host(RUN, *arguments)


def test_wrong_shapes_are_refused() -> None:
    x, statistics, parameter = arrays(5, 8)
    short, other = blank((7,)), blank((4, 8))
    wrong = statistics._replace(var=short)
    refused(r"batchnorm_statistics: var has shape \(7,\), expected \(8,\)", batchnorm.batchnorm_statistics, x, 1, wrong)
    refused(r"x has shape \(\), expected \(\.\.\., c\)", batchnorm.batchnorm_statistics, blank(()), 1, statistics)
    refused(r"x has shape \(3, 0\), expected", batchnorm.batchnorm_statistics, blank((3, 0)), 1, statistics)
    apply = batchnorm.batchnorm_apply
    refused(r"batchnorm_apply: gamma has shape \(7,\)", apply, x, statistics, short, parameter, x, True)
    as_x = r"batchnorm_apply: y has shape \(4, 8\), expected \(5, 8\) as x has"
    refused(as_x, apply, x, statistics, None, None, other, True)
    refused(
        r"batchnorm_add_relu_apply: residual has shape \(4, 8\)",
        batchnorm.batchnorm_add_relu_apply, x, other, statistics, None, None, x,
    )  # fmt: skip
    given = statistics, parameter, parameter
    refused(
        r"batchnorm_backward: dy has shape \(4, 8\)",
        batchnorm.batchnorm_backward, x, other, *given, x, parameter, parameter, True, True,
    )  # fmt: skip
    refused(
        r"batchnorm_backward: dbeta has shape \(7,\)",
        batchnorm.batchnorm_backward, x, x, *given, x, parameter, short, True, True,
    )  # fmt: skip
    refused(
        r"batchnorm_add_relu_backward: dresidual has shape \(4, 8\)",
        batchnorm.batchnorm_add_relu_backward, x, x, x, statistics, None, x, other, None, None, True,
    )  # fmt: skip
    refused(
        r"batchnorm_running_statistics: running_var has shape \(7,\), expected \(8,\)",
        batchnorm.batchnorm_running_statistics, parameter, short, 1, statistics,
    )  # fmt: skip
    refused(
        r"batchnorm_update_running: running_var has shape \(7,\), expected \(8,\)",
        batchnorm.batchnorm_update_running, statistics, 3, 0.1, parameter, short,
    )  # fmt: skip


def test_other_wrong_arguments_are_refused() -> None:
    x, statistics, parameter = arrays(5, 8)
    with pytest.raises(TypeError, match="batchnorm_apply: gamma and beta are given together or not at all"):
        batchnorm.batchnorm_apply(RUN, x, statistics, parameter, None, x, relu=False)
    with pytest.raises(ValueError, match="a variance over 1 rows has no unbiased estimate"):
        batchnorm.batchnorm_update_running(RUN, statistics, 1, 0.1, parameter, parameter)
    with pytest.raises(TypeError, match="x has dtype float64, expected float32"):
        batchnorm.batchnorm_statistics(RUN, placed(np.zeros((4, 8)), dtype=np.float64), 1e-5, statistics)
