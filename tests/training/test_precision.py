"""The precision of a run: what was used is recorded, and what a device has not is refused before anything is made."""

import json
from pathlib import Path

import pytest

from minidl.errors import ConfigError
from minidl.training import Session, TrainConfig, begin, resume
from minidl.training.config import load_config
from minidl.training.runs import RunFolder


class Notes:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)

    def start(self, session: Session) -> None: ...
    def step(self, session: Session) -> None: ...
    def epoch(self, session: Session, row: object) -> None: ...


def config(**options) -> TrainConfig:
    return TrainConfig(**{"model": "mlp-2", "norm": "none", "device": "emulator", "epochs": 1} | options)


def test_what_was_used_is_recorded(tmp_path: Path) -> None:
    session = begin(config(device="cpu"), tmp_path, Notes())
    assert load_config(session.run.config)["precision"] == session.summary()["precision"] == "winograd"
    session = begin(config(precision="tf32"), tmp_path, Notes())
    assert load_config(session.run.config)["precision"] == "tf32"
    assert session.trainer.backend.precision == "tf32"
    assert json.dumps(session._metadata()["config"]["precision"]) == '"tf32"'


def test_one_that_the_device_has_not_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--precision tf32: device cpu computes in winograd, fp32 only"):
        begin(config(device="cpu", precision="tf32"), tmp_path, Notes())
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="--precision must be one of fp32, tf32, bf16, fp16, winograd, not 'fp8'"):
        begin(config(precision="fp8"), tmp_path, Notes())


def test_a_run_goes_on_in_its_precision_or_in_that_of_another_device(tmp_path: Path) -> None:
    first = begin(config(precision="tf32"), tmp_path, Notes())
    path = RunFolder.open(first.run.path).path
    first._lock.release()  # type: ignore[union-attr]
    for changes, precision in (({}, "tf32"), ({"precision": "fp32"}, "fp32"), ({"device": "cpu"}, "winograd")):
        notes = Notes()
        session = resume(path, changes, notes)
        session._lock.release()  # type: ignore[union-attr]
        assert session.config.precision == session.trainer.backend.precision == precision
        said = f"precision: {precision} from here on, tf32 so far" in notes.lines
        assert said is (precision != "tf32")
    with pytest.raises(ConfigError, match="device cpu computes in winograd, fp32 only"):
        resume(path, {"device": "cpu", "precision": "tf32"}, Notes())
