"""Rows are kept with their provenance, and tables say what rows say."""

import json

import pytest

from minidl.errors import ConfigError, DataError
from minidl.lab.bench import provenance, tables
from minidl.lab.bench.plot import draw_ratios
from minidl.lab.bench.records import read, record, require_recordable

ENVIRONMENT = {"gpu": None, "commit": "abc", "versions": {"numba": "0.68.1", "torch": "2.13.0"}}
SHARED = {
    "device": "cpu",
    "machine": "a CPU, 2 threads",
    "threads": 2,
    "date": "2026-01-02",
    "environment": ENVIRONMENT,
}


def spread(median: float) -> dict[str, float]:
    return {"median": median, "lower": median, "upper": median}


def operation(shape: str, milliseconds: float, technique: str = "default", **ratios: float) -> dict[str, object]:
    return SHARED | {
        "kind": "operation",
        "operation": "relu_forward",
        "family": "relu",
        "shape": shape,
        "technique": technique,
        "precision": "winograd",
        "problem": "",
        "left_out": {},
        "seconds": spread(milliseconds / 1e3),
        "peers": {
            name.replace("_", "-"): {"seconds": spread(ratio * milliseconds / 1e3), "ratio": spread(ratio)}
            for name, ratio in ratios.items()
        },
        "bandwidth": 5e9,
        "rate": 2.5e9,
        "share_of_copy": 0.5,
        "share_of_matrix": 0.01,
        "rates": {"copy": 1e10, "matrix": 2.5e11, "matrix_of": "BLAS"},
    }


def step(model: str, batch: int, **ratios: float) -> dict[str, object]:
    peers = {name.replace("_", "-"): {"seconds": spread(1), "ratio": spread(ratio)} for name, ratio in ratios.items()}
    return SHARED | {
        "kind": "step",
        "model": model,
        "batch": batch,
        "technique": "launches",
        "precision": "winograd",
        "problem": "",
        "seconds": spread(0.05),
        "images_per_second": batch / 0.05,
        "peers": peers,
        "memory": {"ours": {"step": 30e6, "peak": 90e6}, "eager": {"step": 50e6, "peak": 1e9}, "channels-last": None},
    }


def test_a_row_takes_the_place_of_the_one_that_it_repeats(tmp_path) -> None:
    path = tmp_path / "bench.jsonl"
    record([operation("a", 1, eager=2), operation("b", 1, eager=2), operation("a", 9, "vector")], path)
    record([operation("a", 3, eager=2), step("mlp-3", 8)], path)
    rows = read(path)
    assert [(row["kind"], row.get("shape"), row["seconds"]["median"]) for row in rows] == [
        ("operation", "a", 0.003),
        ("operation", "b", 0.001),
        ("operation", "a", 0.009),
        ("step", None, 0.05),
    ]
    other = operation("a", 5) | {"machine": "another"}
    record([other], path)
    assert len(read(path)) == 5


def test_a_damaged_record_and_a_missing_folder_are_refused(tmp_path) -> None:
    path = tmp_path / "bench.jsonl"
    path.write_text(json.dumps(step("a", 1)) + "\nrubbish\n", "utf-8")
    with pytest.raises(DataError, match=r"bench\.jsonl:2: is no row"):
        read(path)
    with pytest.raises(ConfigError, match="--record: there is no folder"):
        require_recordable(tmp_path / "none" / "bench.jsonl")
    assert read(tmp_path / "none.jsonl") == []


def test_provenance_names_machine_versions_and_commit(cpu) -> None:
    shared = provenance(cpu, None, "1234")
    assert shared["device"] == "cpu"
    assert shared["machine"].endswith(", 1 thread")
    assert shared["environment"]["commit"] == "1234"
    assert shared["environment"]["versions"]["numba"]
    assert len(shared["date"]) == 10


def test_tables_have_geometric_means_and_the_worst_shape() -> None:
    rows = [
        operation("a", 1, eager=4, channels_last=2),
        operation("b", 2, eager=1, channels_last=8),
        operation("b", 7, "vector", eager=100),
        operation("c", 1, eager=3) | {"problem": "differs"},
    ]
    *_, line = tables.summary(rows)
    assert line == "| relu_forward | 2 | 2.00 | 4.00 |  | 1.41 | 1.00 (b) |"
    lines = tables.shapes(rows)
    assert len(lines) == 4
    assert lines[2] == "| relu_forward | a | 1.000 | 5.0 | 50% | 2.5 | 1% | 4.00 | 2.00 |  |"
    assert "2026-01-02: a CPU, 2 threads; Numba 0.68.1, PyTorch 2.13.0" in tables.conditions(rows)
    assert "copies 10 GB/s" in tables.conditions(rows)


def test_a_table_of_steps_with_memory() -> None:
    lines = tables.steps([step("mlp-3", 128, eager=1.5, channels_last=2.0)])
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|")
    assert lines[2] == "| mlp-3 | 128 | 2,560 | 50.00 | 1.50 | 2.00 |  | 30 MB / 50 MB |"
    graphs = tables.steps([step("mlp-3", 128, eager=1.5, graph=1.1) | {"technique": "graph"}])
    assert graphs[0].count("|") == graphs[1].count("|") == graphs[2].count("|")
    assert "| mlp-3, CUDA graph | 128 |" in graphs[2]


def test_a_precision_that_is_not_the_devices_own_is_named() -> None:
    rows = [operation("a", 1, eager=4), operation("a", 1, eager=2) | {"precision": "fp32"}]
    assert [line.split(" | ")[0] for line in tables.summary(rows)[2:]] == ["| relu_forward", "| relu_forward, fp32"]
    assert [line.split(" | ")[0] for line in tables.shapes(rows)[2:]] == ["| relu_forward", "| relu_forward, fp32"]
    on_gpu = step("mlp-3", 128) | {"device": "gpu", "precision": "bf16"}
    assert "| mlp-3, bf16 | 128 |" in tables.steps([on_gpu])[2]
    assert "| mlp-3 | 128 |" in tables.steps([on_gpu | {"precision": "tf32"}])[2]


def test_a_table_of_errors() -> None:
    errors = {"ours": 1e-7, "eager": None, "channels-last": 2e-3}
    row = SHARED | {"kind": "accuracy", "family": "constant", "errors": {"y": errors, "dx": errors}, "smaller": True}
    *_, line = tables.accuracy([row])
    assert line == "| constant | 1.0e-07 | not finite | 2.0e-03 | 1.0e-07 | not finite | 2.0e-03 | yes |"


def test_what_is_not_recorded_says_so(tmp_path) -> None:
    for table in (tables.summary, tables.shapes, tables.steps, tables.accuracy):
        assert table([]) == ["Not yet recorded."]
    assert tables.conditions([]) == "Not yet recorded."
    assert not draw_ratios([], tmp_path / "x.svg", "nothing")
    assert not (tmp_path / "x.svg").exists()


def test_rows_of_the_machine_that_was_recorded_last() -> None:
    older = operation("a", 1) | {"machine": "old", "date": "2025-01-01"}
    gpu = operation("a", 1) | {"device": "gpu"}
    assert tables.of_device([operation("a", 1), older, gpu], "cpu") == [operation("a", 1)]


def test_a_picture_of_ratios(tmp_path) -> None:
    path = tmp_path / "images" / "ratios.svg"
    assert draw_ratios([operation("a", 1, eager=4), step("mlp-3", 8, eager=2)], path, "CPU")
    text = path.read_text(encoding="utf-8")
    assert "relu_forward" in text
    assert "step of mlp-3" in text
