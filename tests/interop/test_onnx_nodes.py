"""ONNX's own test cases: none fails, and docs/onnx.md says what passes."""

from collections import Counter

import numpy as np
import pytest

from minidl.backends import get_backend
from minidl.errors import InteropError
from minidl.interop import onnx_nodes
from minidl.interop.onnx_attributes import UnsupportedError, attributes_of
from minidl.interop.onnx_import import RULES, from_onnx
from minidl.interop.onnx_nodes import FAILED, PASSED, UNSUPPORTED, Row, operator_of, page_with, run_case, table
from minidl.interop.onnx_operators import OPERATORS, run_operator


@pytest.fixture(scope="session")
def cases(onnx):
    """onnx makes all of its cases for some seconds; there is no way to ask it for some."""
    return onnx_nodes.collect_cases()


@pytest.fixture(scope="session")
def rows(cases):
    return [run_case(case) for case in cases]


def test_no_case_fails_and_every_operator_has_cases(rows) -> None:
    assert [row for row in rows if row.result == FAILED] == []
    passed = Counter(row.operator for row in rows if row.result == PASSED)
    assert set(passed) == set(OPERATORS)


def test_batch_normalization_passes_in_inference_and_training(rows) -> None:
    found = {row.case: row.result for row in rows if row.operator == "BatchNormalization"}
    names = "batchnorm_example", "batchnorm_epsilon"
    assert found == {name + mode: PASSED for name in names for mode in ("", "_training_mode")}


def test_what_is_unsupported_says_why(rows) -> None:
    reasons = {row.reason for row in rows if row.result == UNSUPPORTED}
    assert reasons
    assert all(reasons)


def test_the_page_says_what_runs(onnx, rows) -> None:
    text = onnx_nodes.PAGE.read_text(encoding="utf-8")
    if f"onnx {onnx.__version__}." not in text:
        pytest.skip(f"the page is of another version of onnx than {onnx.__version__}, which may have other cases")
    assert page_with(text, table(rows)) == text, "run python -m minidl.interop.onnx_nodes"


def test_a_wrong_answer_fails(cases, monkeypatch) -> None:
    (case,) = (case for case in cases if case.name == "test_relu")

    def off(backend, attributes, inputs, outputs):
        (y,) = OPERATORS["Relu"](backend, attributes, inputs, outputs)
        return [y * np.float32(1.01)]

    for wrong, reason in (
        (off, "numbers are off, the worst by 0.0"),
        (lambda *_: [np.zeros((3, 4), np.float32)], r"shape (3, 4), expected (3, 4, 5)"),
        (lambda *_: [np.full((3, 4, 5), np.nan, np.float32)], "60 of 60 numbers are off"),
    ):
        monkeypatch.setattr(onnx_nodes, "run_operator", lambda backend, _, *rest, wrong=wrong: wrong(backend, *rest))
        row = run_case(case, ["cpu"])
        assert row.result == FAILED
        assert reason in row.reason


def test_pytorchs_running_variance_would_fail(cases, monkeypatch) -> None:
    """The unbiased one differs by a factor of 40/39 here; the suite's tolerance is a thousandth."""
    monkeypatch.setattr("minidl.interop.onnx_operators.MANY", 40)
    (case,) = (case for case in cases if case.name == "test_batchnorm_example_training_mode")
    row = run_case(case, ["cpu"])
    assert (row.result, row.reason[:15]) == (FAILED, "cpu: 3 of 3 num")


def test_the_importer_passes_the_same_cases(onnx, cases) -> None:
    """Those with one input that is no weight; with the others as initializers, as in a file."""
    passed = Counter()
    for case in cases:
        model = onnx.ModelProto()
        model.CopyFrom(case.model)
        inputs, outputs = case.data_sets[0]
        names = [value.name for value in model.graph.input]
        model.graph.initializer.extend(
            onnx.numpy_helper.from_array(np.array(x), name) for name, x in zip(names[1:], inputs[1:], strict=True)
        )
        layout = {2: (0, 1), 4: (0, 2, 3, 1)}
        if operator_of(case) not in RULES or len(outputs) > 1 or inputs[0].ndim not in layout:
            continue
        try:
            graph = from_onnx(model, case.name)
        except InteropError:  # those that pass are counted
            continue
        y = graph.eval().forward(np.ascontiguousarray(inputs[0].transpose(layout[inputs[0].ndim])))
        right = outputs[0].transpose(layout[outputs[0].ndim])
        np.testing.assert_allclose(y, right, case.rtol, case.atol, err_msg=case.name)
        passed[operator_of(case)] += 1
    expected = {"BatchNormalization": 2, "Conv": 6, "MaxPool": 11, "AveragePool": 9, "GlobalAveragePool": 2, "Gemm": 8}
    assert passed == expected | {"Softmax": 2, "LogSoftmax": 2, "Flatten": 3}


def test_other_kinds_of_numbers_are_unsupported(onnx) -> None:
    with pytest.raises(UnsupportedError, match="arrays of integers"):
        run_operator(get_backend("cpu"), "Relu", {}, [np.ones(3, np.int32)], 1)


def test_attributes_are_the_numbers_that_were_meant(onnx) -> None:
    node = onnx.helper.make_node("X", [], [], a=1e-5, b=[1, 2], c="SAME", d=0.1)
    assert attributes_of(node) == {"a": 1e-5, "b": [1, 2], "c": "SAME", "d": 0.1}


def test_a_table_counts_and_gives_reasons(onnx) -> None:
    rows = [Row("Conv", "a", PASSED), Row("Conv", "b", UNSUPPORTED, "why"), Row("Conv", "c", UNSUPPORTED, "why")]
    lines = table([*rows, Row("Add", "d", FAILED, "cpu: off")]).splitlines()
    assert "| Conv | 3 | 1 | 2 | 0 |" in lines
    assert "| all | 4 | 1 | 2 | 1 |" in lines
    assert "| `b`, `c` | unsupported: why |" in lines
    assert "| `d` | failed: cpu: off |" in lines


def test_a_page_without_a_place_for_the_table_is_refused() -> None:
    with pytest.raises(InteropError, match="has no <!-- onnx-nodes -->"):
        page_with("nothing", "table")
