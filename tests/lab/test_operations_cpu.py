"""Every operation of the CPU backend within its error budget, on all cases."""

import fnmatch
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from minidl.backends import Backend, get_backend
from minidl.backends.cpu import CpuBackend
from minidl.backends.techniques import WINOGRAD
from minidl.errors import ConfigError
from minidl.lab.operations import answers, cases, check_operation, operations
from minidl.lab.verify import Task, run


def parameters() -> Iterator[Any]:
    for operation in operations():
        for case in cases(operation, get_backend("cpu")):
            yield pytest.param(operation, case, id=f"{operation}-{case}")


@pytest.mark.parametrize(("operation", "case"), list(parameters()))
def test_the_cpu_is_within_its_error_budget(operation: str, case: str) -> None:
    rows = check_operation(get_backend("cpu", precision="fp32"), operation, case)
    assert rows
    assert not [str(row) for row in rows if not row.passed]


def by_winograd() -> Iterator[Any]:
    for operation in operations():
        if WINOGRAD in get_backend("cpu").techniques(operation):
            fitting = fnmatch.filter(cases(operation, get_backend("cpu")), "*-k3x3-*-s1x1-*")
            assert fitting
            yield from (pytest.param(operation, case, id=f"{operation}-{case}") for case in fitting)


@pytest.mark.parametrize(("operation", "case"), list(by_winograd()))
def test_convolutions_by_winograd_are_within_theirs(operation: str, case: str) -> None:
    found = run(Task(operation, WINOGRAD, (case,)), CpuBackend(2), 0)
    assert found.rows
    assert not found.refused
    assert not [str(row) for row in found.rows if not row.passed]


@pytest.mark.parametrize(
    ("operation", "case"),
    [
        ("linear_forward", "second-minus-inf-and-inf/19x7x5"),
        ("linear_backward_input", "inf/19x7x5"),
        ("conv2d_forward", "inf/x2x11x7x2-k2x3-o3-s1x2-p0x1"),
        ("conv2d_backward_weight", "dy-inf/x2x11x7x2-k2x3-o3-s1x2-p0x1"),
        ("bias_backward", "minus-inf-and-inf/5001x6"),
    ],
)
def test_infinities_make_no_warning(operation: str, case: str) -> None:
    answers(get_backend("cpu"), operation, case)


@functools.cache
def cpu(threads: int) -> Backend:
    return CpuBackend(threads)


@pytest.mark.parametrize("operation", operations())
def test_the_bits_do_not_depend_on_the_number_of_threads(operation: str) -> None:
    for case in cases(operation, cpu(1)):
        expected = answers(cpu(1), operation, case)
        for threads in (2, 3):
            got = answers(cpu(threads), operation, case)
            differ = [name for name in expected if expected[name].tobytes() != got[name].tobytes()]
            assert not differ, f"{case}: {differ} with {threads} threads"


@pytest.mark.parametrize("operation", operations())
def test_the_reference_has_no_errors(operation: str) -> None:
    for case in itertools.islice(cases(operation), 5):
        for row in check_operation(get_backend("reference"), operation, case):
            assert row.passed, str(row)
            assert row.error == 0 or row.output == "shift"


def test_every_operation_of_the_protocol_is_checked() -> None:
    memory = {"empty", "zeros", "array", "numpy", "copy", "accept", "describe", "capture"}
    memory |= {"fuses_normalization", "fuses_pooling"}
    methods = {name for name, value in vars(Backend).items() if callable(value) and not name.startswith("_")}
    assert methods - memory == set(operations()) - {"batchnorm_layer"}


@pytest.mark.parametrize("operation", operations())
def test_every_operation_is_tried_on_arrays_of_all_layouts(operation: str) -> None:
    for layout in ("offset", "strided"):
        if operation != "batchnorm_layer":  # made of operations that are
            assert any(fnmatch.fnmatchcase(case, f"*/{layout}") for case in cases(operation))


def test_other_seeds_make_other_inputs_and_the_same_seed_the_same() -> None:
    first, again, other = (answers(cpu(1), "relu_forward", "ordinary/127x17", seed)["y"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5


def test_mean_1e4_std_1e_2_is_normalized_to_float32_accuracy() -> None:
    case = "mean-1e4-std-1e-2/4100x2"
    rows = {row.output: row for row in check_operation(get_backend("cpu"), "batchnorm_layer", case)}
    assert rows["y"].error < 1e-6  # of y up to 5; a single float32 mean leaves 5e-2
    assert rows["y"].bound < 1e-4


@pytest.mark.parametrize("shape", ["130x3", "1x7x11x5", "4100x2"])
def test_a_constant_channel_has_variance_0_and_the_budget_demands_it(shape: str) -> None:
    rows = {row.output: row for row in check_operation(get_backend("cpu"), "batchnorm_layer", f"constant/{shape}")}
    for output in ("shift", "mean", "var", "y"):
        assert rows[output].error == rows[output].bound == 0


def test_exact_inputs_have_budget_0() -> None:
    for case in cases("batchnorm_statistics"):
        if case.startswith("exact/"):
            rows = {row.output: row for row in check_operation(get_backend("cpu"), "batchnorm_statistics", case)}
            assert rows["mean"].bound == rows["var"].bound == 0
    (row,) = check_operation(get_backend("cpu"), "conv2d_forward", "integers/x3x7x11x5-k3x3-o17-s1x1-p1x1")
    assert row.bound == 0


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="there is no operation 'conv3d'; known operations: conv2d_forward, "):
        cases("conv3d")
    with pytest.raises(ConfigError, match="add has no case 'odd'; its cases are such as ordinary/0x3, "):
        check_operation(get_backend("cpu"), "add", "odd")


def test_a_row_says_what_was_checked_and_how_it_went() -> None:
    (row,) = check_operation(get_backend("cpu"), "add", "ordinary/5x1", variant="plain")
    fields = row.as_dict()
    assert {name: fields[name] for name in ("op", "variant", "device", "case", "output", "passed")} == {
        "op": "add", "variant": "plain", "device": "cpu", "case": "ordinary/5x1", "output": "out", "passed": True,
    }  # fmt: skip
    assert 0 < row.ratio == row.error / row.bound <= 1
    assert str(row).startswith("add on cpu, case ordinary/5x1: out[")
