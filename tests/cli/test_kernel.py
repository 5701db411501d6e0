import json
import re

import pytest

from kernels.compile import ToolkitError
from minidl.lab import machine_code, machine_code_record
from minidl.lab.machine_code import MachineCode

VERSIONS = {"numba-cuda": "1.2"}


@pytest.fixture
def codes(monkeypatch, tmp_path) -> list[MachineCode]:
    """What the compiler gives, to be changed; the record is in tmp_path."""
    found = [
        MachineCode("relu(uint32)", architecture, 10, 0, 1024, 512, {"float": 2, "global load 32": 1}, ())
        for architecture in ("sm_80", "sm_90")
    ]

    def examine_all(names, architectures, jobs):
        if names == ("absent",):
            raise ToolkitError("machine code cannot be read here; install it")
        return [code for code in found if code.architecture in architectures]

    monkeypatch.setattr(machine_code, "examine_all", examine_all)
    monkeypatch.setattr(machine_code_record, "RECORD", tmp_path / "kernels.json")
    monkeypatch.setattr(machine_code_record, "toolkit", lambda: VERSIONS)
    monkeypatch.setattr("minidl.cli.kernel.toolkit", lambda: VERSIONS)
    return found


def changed(code: MachineCode, **values) -> MachineCode:
    return MachineCode(**(vars(code) | values))


def test_recorded_numbers_pass(minidl, codes) -> None:
    assert minidl("kernel", "compile", "--update").exit_code == 0
    result = minidl("kernel", "compile")
    assert result.exit_code == 0
    table, summary = result.stdout.split("\n\n")
    assert [line.split() for line in table.splitlines()] == [
        ["kernel", "arch", "registers", "shared", "instructions"],
        ["relu(uint32)", "sm_80", "10", "1,536", "3"],
        ["relu(uint32)", "sm_90", "10", "1,536", "3"],
    ]
    assert summary == "2 compiled kernels, 0 problems, 0 differences from the record\n"


def test_a_change_fails_until_it_is_recorded(minidl, codes, tmp_path) -> None:
    minidl("kernel", "compile", "--update")
    codes[1] = changed(codes[1], registers=12)
    result = minidl("kernel", "compile")
    assert result.exit_code == 1
    assert "CHANGED relu(uint32) sm_90: registers 10 -> 12\n" in result.stdout
    assert "record them with --update" in result.stdout
    assert minidl("kernel", "compile", "--arch", "sm_80").exit_code == 0
    assert minidl("kernel", "compile", "--arch", "sm_90", "--update").exit_code == 0
    recorded = json.loads((tmp_path / "kernels.json").read_text())["kernels"]["relu(uint32)"]
    assert (recorded["sm_80"]["registers"], recorded["sm_90"]["registers"]) == (10, 12)
    assert minidl("kernel", "compile").exit_code == 0


def test_a_broken_promise_fails_even_when_recorded(minidl, codes) -> None:
    codes[0] = changed(codes[0], problems=("float64 instructions: DMUL",))
    result = minidl("kernel", "compile", "--update")
    assert result.exit_code == 1
    assert "PROBLEM relu(uint32) sm_80: float64 instructions: DMUL\n" in result.stdout
    assert result.stdout.endswith("2 compiled kernels, 1 problem, 0 differences from the record\n")


def test_numbers_of_another_toolkit_are_not_compared(minidl, codes, monkeypatch) -> None:
    minidl("kernel", "compile", "--update")
    codes[0] = changed(codes[0], registers=99)
    monkeypatch.setattr("minidl.cli.kernel.toolkit", lambda: {"numba-cuda": "2"})
    result = minidl("kernel", "compile")
    assert result.exit_code == 0
    assert "not compared with the record, which is of numba-cuda 1.2: --update makes a new one" in result.stdout


def test_without_minidls_source_only_promises_are_checked(minidl, codes, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(machine_code_record, "RECORD", tmp_path / "no" / "folder" / "kernels.json")
    result = minidl("kernel", "compile")
    assert result.exit_code == 0
    assert "nothing is compared: there is no folder" in result.stdout


def test_a_damaged_record_is_named_and_can_be_replaced(minidl, codes, tmp_path) -> None:
    (tmp_path / "kernels.json").write_text("{")
    result = minidl("kernel", "compile")
    assert result.exit_code == 2
    assert re.fullmatch(r"Error: .*kernels.json is no record of kernels .*--update\n", result.stderr)
    assert minidl("kernel", "compile", "--update").exit_code == 0


def test_a_missing_toolkit_is_one_line(minidl, codes) -> None:
    result = minidl("kernel", "compile", "--kernel", "absent")
    assert (result.exit_code, result.stderr) == (2, "Error: machine code cannot be read here; install it\n")


def test_an_unknown_kernel_is_one_line(minidl) -> None:
    result = minidl("kernel", "compile", "--kernel", "relu_forward")
    assert result.exit_code == 2
    assert (
        result.stderr == "Error: there is no kernel 'relu_forward'; known: relu_forward_scalar, relu_forward_vector\n"
    )


def test_a_real_kernel_keeps_its_promises(minidl) -> None:
    try:
        machine_code.disassembler()
    except ToolkitError as error:
        pytest.skip(str(error))
    result = minidl("kernel", "compile", "--kernel", "relu_forward_vector", "--arch", "sm_90")
    assert re.search(r"^relu_forward_vector\(uint32, float32\) +sm_90 ", result.stdout, re.MULTILINE)
    assert "PROBLEM" not in result.stdout
