"""ONNX's own test cases of single operators, run by minidl's operations: passed, unsupported or failed.

    python -m minidl.interop.onnx_nodes            # rewrite the table in docs/onnx.md
    python -m minidl.interop.onnx_nodes --check    # exit 1 if the page does not say what runs now

The package onnx generates the cases (1.23 and newer); each brings its own tolerances. A case passes where every backend
gives its answers. What minidl has no operation for is declared, with the reason; nothing else may fail.
"""

import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minidl.backends import get_backend
from minidl.errors import InteropError
from minidl.interop.onnx_attributes import UnsupportedError, attributes_of
from minidl.interop.onnx_operators import OPERATORS, run_operator
from minidl.interop.onnx_package import require_onnx

BACKENDS = ("cpu", "emulator", "reference")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "onnx.md"
BEGIN, END = "<!-- onnx-nodes -->", "<!-- /onnx-nodes -->"
PASSED, UNSUPPORTED, FAILED = "passed", "unsupported", "failed"


class Row(NamedTuple):
    """What became of a case: PASSED, UNSUPPORTED or FAILED, and why unless it passed."""

    operator: str
    case: str
    result: str
    reason: str = ""


def collect_cases() -> list[Any]:
    """The cases of the operators in `OPERATORS`, in the operators' order; onnx generates all of its, for some seconds.

    Raises:
        InteropError: The package onnx is missing, or has no cases.
    """
    require_onnx()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # making other operators' cases, it overflows and divides by zero
        try:
            from onnx.backend.test.case.node import collect_testcases

            cases = collect_testcases()  # once, with no argument: asked for one operator after another it loses cases
        except ImportError as error:
            raise InteropError(f"onnx's test cases cannot be generated: {error}") from None
    single: list[Any] = [case for case in cases if case.model is not None and len(case.model.graph.node) == 1]
    ours = [case for case in single if not case.model.graph.node[0].domain and operator_of(case) in OPERATORS]
    order = list(OPERATORS)
    return sorted(ours, key=lambda case: order.index(operator_of(case)))


def operator_of(case: Any) -> str:
    """The operator that a case tests."""
    return str(case.model.graph.node[0].op_type)


def run_case(case: Any, backends: Sequence[str] = BACKENDS) -> Row:
    """Run one case on each of the backends."""
    node, operator, name = case.model.graph.node[0], operator_of(case), case.name.removeprefix("test_")
    for backend in backends:
        for given, expected in case.data_sets:
            try:
                answers = run_operator(
                    get_backend(backend), operator, attributes_of(node), [np.array(x) for x in given], len(expected)
                )
            except UnsupportedError as error:
                return Row(operator, name, UNSUPPORTED, str(error))
            for answer, right in zip(answers, expected, strict=True):
                problem = _difference(answer, np.asarray(right), case.rtol, case.atol)
                if problem:
                    return Row(operator, name, FAILED, f"{backend}: {problem}")
    return Row(operator, name, PASSED)


def _difference(answer: np.ndarray, right: np.ndarray, rtol: float, atol: float) -> str | None:
    if answer.shape != right.shape:
        return f"shape {answer.shape}, expected {right.shape}"
    if right.dtype.kind != "f":
        return None if np.array_equal(answer, right) else "other numbers"
    good = np.isclose(answer, right, rtol, atol, equal_nan=True)
    if good.all():
        return None
    error = np.abs(answer.astype(np.float64) - right)[~good]
    return f"{error.size} of {good.size} numbers are off, the worst by {error.max():.3g}"


def table(rows: Iterable[Row]) -> str:
    """The rows as Markdown: counts for each operator, then every case that is not supported, and every failure."""
    rows = list(rows)
    lines = ["| operator | cases | passed | unsupported | failed |", "|---|---|---|---|---|"]
    totals: Counter[str] = Counter()
    for operator in OPERATORS:
        results = Counter(row.result for row in rows if row.operator == operator)
        totals += results
        lines.append(_counts(operator, results))
    lines += [_counts("all", totals), "", "| not passed | why |", "|---|---|"]
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if row.result != PASSED:
            reasons.setdefault((row.operator, row.result, row.reason), []).append(row.case)
    for (_, result, reason), cases in reasons.items():
        lines.append(f"| {', '.join(f'`{case}`' for case in cases)} | {result}: {reason} |")
    return "\n".join([*lines, "", f"The cases are those of onnx {require_onnx().__version__}."])


def _counts(name: str, results: Counter[str]) -> str:
    numbers = [results.total(), *(results[result] for result in (PASSED, UNSUPPORTED, FAILED))]
    return f"| {name} | {' | '.join(map(str, numbers))} |"


def page_with(text: str, new: str) -> str:
    """The page's text with the table in its place."""
    found = re.search(f"{re.escape(BEGIN)}\n.*?{re.escape(END)}", text, re.DOTALL)
    if found is None:
        raise InteropError(f"{PAGE}: has no {BEGIN} ... {END}")
    return f"{text[: found.start()]}{BEGIN}\n{new}\n{END}{text[found.end() :]}"


def main() -> None:
    """Rewrite the table, or with --check compare; exit 1 where a case fails or the page is stale."""
    if not PAGE.exists():
        sys.exit(f"{PAGE}: no such file; run this from a checkout of minidl")
    rows = [run_case(case) for case in collect_cases()]
    failed = [row for row in rows if row.result == FAILED]
    for row in failed:
        print(f"{row.operator} {row.case}: {row.reason}", file=sys.stderr)
    old = PAGE.read_text(encoding="utf-8")
    new = page_with(old, table(rows))
    if sys.argv[1:] != ["--check"]:
        PAGE.write_text(new, encoding="utf-8")
    elif new != old:
        sys.exit(f"{PAGE.name} does not say what runs now; run python -m minidl.interop.onnx_nodes")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
