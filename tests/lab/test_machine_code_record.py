import json

import pytest

from minidl.errors import DataError
from minidl.lab import machine_code_record
from minidl.lab.machine_code import MachineCode
from minidl.lab.machine_code_record import Record, numbers, toolkit

VERSIONS = {"numba-cuda": "1.2", "nvidia-cuda-nvdisasm": "13.5"}


@pytest.fixture(autouse=True)
def versions(monkeypatch) -> None:
    monkeypatch.setattr(machine_code_record, "toolkit", lambda: VERSIONS)


def code(kernel="relu(uint32)", architecture="sm_90", registers=10, problems=(), **instructions) -> MachineCode:
    counts = {name.replace("_", " "): number for name, number in instructions.items()}
    return MachineCode(kernel, architecture, registers, 0, 128, 0, counts, problems)


CODES = [
    code(float=2, global_load=1),
    code(architecture="sm_80", float=3),
    code("add(int64)", float=1),
]


@pytest.fixture
def record(tmp_path) -> Record:
    """One of CODES, written and read."""
    record = Record({}, {})
    record.update(CODES, complete=True)
    record.write(tmp_path / "kernels.json")
    return Record.read(tmp_path / "kernels.json")


def test_what_was_recorded_is_no_difference(record) -> None:
    assert record.toolkit == VERSIONS
    assert record.differences(CODES, complete=True) == []
    assert record.differences(CODES[:1], complete=False) == []


def test_a_change_is_named(record) -> None:
    changed = [code(registers=12, float=2, shared_load=4), *CODES[1:]]
    assert record.differences(changed, complete=True) == [
        "relu(uint32) sm_90: registers 10 -> 12, instructions 3 -> 6, global load 1 -> 0, shared load 0 -> 4"
    ]


def test_new_and_gone_kernels_are_named(record) -> None:
    new = code("sub(int64)", float=1)
    assert record.differences([*CODES[:2], new], complete=True) == [
        "sub(int64) sm_90: not recorded yet",
        "add(int64): recorded, but there is no such kernel",
    ]
    assert record.differences([new], complete=False) == ["sub(int64) sm_90: not recorded yet"]


def test_another_architecture_need_not_be_recorded(record) -> None:
    assert record.differences([code(architecture="sm_100", float=9)], complete=False) == []


def test_what_does_not_compile_is_neither_compared_nor_recorded(record, tmp_path) -> None:
    broken = code("relu(uint32)", problems=("does not compile",))
    assert record.differences([broken], complete=False) == []
    record.update([broken], complete=False)
    assert record.kernels["relu(uint32)"]["sm_90"] == numbers(CODES[0])


def test_an_update_of_some_keeps_the_others(record) -> None:
    record.update([code(registers=11, float=2)], complete=False)
    assert record.kernels["relu(uint32)"]["sm_90"]["registers"] == 11
    assert record.kernels["relu(uint32)"]["sm_80"] == numbers(CODES[1])
    assert set(record.kernels) == {"relu(uint32)", "add(int64)"}


def test_an_update_of_all_or_by_another_toolkit_drops_the_others(record, monkeypatch) -> None:
    record.update(CODES[2:], complete=True)
    assert set(record.kernels) == {"add(int64)"}
    monkeypatch.setattr(machine_code_record, "toolkit", lambda: {"numba-cuda": "2"})
    record.update(CODES[:1], complete=False)
    assert set(record.kernels) == {"relu(uint32)"}
    assert record.toolkit == {"numba-cuda": "2"}


def test_the_file_has_a_line_for_each_kernel_and_architecture(record, tmp_path) -> None:
    text = (tmp_path / "kernels.json").read_text()
    lines = [line for line in text.splitlines() if '"sm_' in line]
    assert [line.split(":")[0].strip() for line in lines] == ['"sm_90"', '"sm_80"', '"sm_90"']
    assert json.loads(text)["kernels"]["add(int64)"]["sm_90"] == numbers(CODES[2])
    record.write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == text


def test_no_file_is_an_empty_record(tmp_path) -> None:
    assert Record.read(tmp_path / "none.json").kernels == {}


@pytest.mark.parametrize("text", ["", "[]", '{"toolkit": {}}', "{"])
def test_a_file_that_is_no_record(tmp_path, text) -> None:
    (tmp_path / "kernels.json").write_text(text)
    with pytest.raises(DataError, match=r"kernels.json is no record of kernels .* write it anew with --update"):
        Record.read(tmp_path / "kernels.json")


def test_the_toolkit(monkeypatch) -> None:
    monkeypatch.undo()
    assert "numba" in toolkit()
    assert "python" in toolkit()
