"""The configuration: its TOML file goes round, and what cannot be is named."""

import dataclasses
import math
import os
import sys
import tomllib
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidl.errors import ConfigError
from minidl.training.config import TrainConfig, load_config, validate, write_config


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


# Round trips

TEXTS = [
    "",
    "C:\\data\\new\\u0041",
    'say "hi"',
    "tab\tnewline\nreturn\r\x00\x01\x1f\x7f\x80\x85\u2028",
    "Ünïcode 数据 😀",
    "'''",
    '"""',
    "#[x]=1",
    " spaced ",
]


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_any_text_goes_round(tmp_path: Path, text: str) -> None:
    config = TrainConfig(data=text, data_dir=text)
    write_config(tmp_path / "c.toml", config)
    assert TrainConfig(**load_config(tmp_path / "c.toml")) == config


MOST = {
    "epochs": 10**9,
    "batch_size": 10**9,
    "max_steps": 10**15,
    "threads": 4096,
    "crop_padding": 4096,
    "cutout": 4096,
}
FIELDS = {
    name: {
        str: st.text(),
        bool: st.booleans(),
        int: st.integers(1, 2**64 - 1),
        float: st.floats(0, 1, exclude_min=True, exclude_max=True),
        str | None: st.none() | st.text(),
        bool | None: st.none() | st.booleans(),
        int | None: st.none() | st.integers(1, MOST.get(name)),
        float | None: st.none() | st.floats(0, exclude_min=True, allow_nan=False, allow_infinity=False, width=32),
    }[hint]
    for name, hint in get_type_hints(TrainConfig).items()
} | {
    "optimizer": st.sampled_from(["sgd", "adam", "adamw"]),
    "schedule": st.sampled_from(["constant", "step"]),
    "precision": st.sampled_from([None, "fp32", "tf32", "bf16", "fp16"]),
    "accumulate": st.integers(1, 10**9),
    "warmup": st.none() | st.floats(0, 1e9),
    "ema": st.none() | st.floats(0, 1, exclude_min=True, exclude_max=True),
}


@given(fields=st.fixed_dictionaries(FIELDS))
@settings(derandomize=True, deadline=None, max_examples=30)
def test_every_configuration_goes_round(tmp_path_factory: pytest.TempPathFactory, fields: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "round.toml"
    config = TrainConfig(**fields)
    validate(config)
    write_config(path, config)
    loaded = load_config(path)
    assert TrainConfig(**loaded) == config
    assert list(loaded) == [name for name, value in dataclasses.asdict(config).items() if value is not None]


def test_the_default_file_is_what_one_would_write_by_hand(tmp_path: Path) -> None:
    write_config(tmp_path / "c.toml", TrainConfig(lr=1))
    lines = (tmp_path / "c.toml").read_text(encoding="utf-8").splitlines()
    assert lines[1:8] == [
        'data = "digits"',
        'model = "small-cnn"',
        'norm = "batch"',
        "zero_gamma = false",
        "lr = 1.0",
        'optimizer = "sgd"',
        "momentum = 0.9",
    ]
    assert b"\r" not in (tmp_path / "c.toml").read_bytes()


def test_a_missing_key_keeps_its_default(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "")) == {}
    assert load_config(write(tmp_path, "seed = 3\naugment = false  # off\n")) == {"seed": 3, "augment": False}


def test_a_whole_number_is_a_number(tmp_path: Path) -> None:
    lr = load_config(write(tmp_path, "lr = 1"))["lr"]
    assert isinstance(lr, float)
    assert lr == 1.0


def test_windows_line_ends_and_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(b"\xef\xbb\xbfseed = 3\r\nlr = 0.5\r\n")
    assert load_config(path) == {"seed": 3, "lr": 0.5}


# Files that are not right


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate = 1", "unknown option 'learning_rate'; the options are data, data_dir, model"),
        ("batchsize = 1", "unknown option 'batchsize'; did you mean 'batch_size'?"),
        ("batch-size = 1", "unknown option 'batch-size'; did you mean 'batch_size'?"),
        ("epoch = 1", "unknown option 'epoch'; did you mean 'epochs'?"),
        ('epochs = "3"', "epochs must be a whole number of at least 1, not '3'"),
        ("epochs = 3.0", "epochs must be a whole number of at least 1, not 3.0"),
        ("epochs = true", "epochs must be a whole number of at least 1, not True"),
        ("epochs = 0", "epochs must be a whole number of at least 1, not 0"),
        ("augment = 1", "augment must be true or false, not 1"),
        ("lr = true", "lr must be a finite number above 0, not True"),
        ("lr = nan", "lr must be a finite number above 0, not nan"),
        ("lr = 1" + "0" * 400, "lr must be a finite number above 0, not 1000"),
        ("data = 3", "data must be text, not 3"),
        ("data_dir = []", "data_dir must be text, not []"),
        ("lr = 2026-01-01", "lr must be a finite number above 0, not datetime.date(2026, 1, 1)"),
        ('optimizer = "adamm"', "optimizer must be one of sgd, adam, adamw, not 'adamm'; did you mean 'adam'?"),
        ("[train]\nlr = 1", "'train' is a table; options stand at the top level"),
        ("train.lr = 1", "'train' is a table"),
        ("[lr]\nx = 1", "'lr' is a table"),
        ("[[data]]\nx = 1", "'data' is a table"),
        ("lr = ", "is not TOML: "),
        ("lr 1", "is not TOML: Expected '=' after a key"),
        ("lr = 1\nlr = 2", "is not TOML: Cannot overwrite a value"),
        ("lr = " + "[" * 5000, "is not TOML: "),
    ],
)
def test_a_wrong_file_gets_one_line_with_its_name(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone.toml: no such configuration file"):
        load_config(tmp_path / "gone.toml")
    with pytest.raises(ConfigError, match="cannot be read: "):
        load_config(tmp_path)
    (tmp_path / "bytes.toml").write_bytes(b"data = '\xff'")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load_config(tmp_path / "bytes.toml")


# Files that cannot be written


@pytest.mark.parametrize("where", ["file/c.toml", "gone/c.toml", "nul\0", "x" * 300], ids=repr)
def test_a_place_that_cannot_be_written(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written: ") as error:
        write_config(tmp_path / where, TrainConfig())
    assert "\0" not in str(error.value)


def test_text_that_is_not_unicode_is_refused(tmp_path: Path) -> None:
    undecodable = os.fsdecode(b"data\xff") if sys.platform == "linux" else "data\udcff"
    with pytest.raises(ConfigError, match=r"data_dir: .* is not valid Unicode"):
        write_config(tmp_path / "c.toml", TrainConfig(data_dir=undecodable))
    assert not list(tmp_path.iterdir())


def test_toml_has_no_surrogate_pairs(tmp_path: Path) -> None:
    write_config(tmp_path / "c.toml", TrainConfig(data="😀"))
    assert tomllib.loads((tmp_path / "c.toml").read_text(encoding="utf-8"))["data"] == "😀"


# Values

NAN, INF = math.nan, math.inf
BAD: dict[str, list[Any]] = {
    "epochs": [0, -1, 1.0, True, "1"],
    "batch_size": [0, -64, 32.0],
    "lr": [NAN, INF, -INF, 0, 0.0, -0.1, "0.1", True],
    "momentum": [NAN, INF, 1, 1.0, -0.1, None],
    "weight_decay": [NAN, INF, -1e-9],
    "label_smoothing": [NAN, 1.0, -0.1, None],
    "optimizer": ["SGD", "rmsprop", "", None, 3],
    "schedule": ["onecycle", "linear", None],
    "precision": ["FP32", "fp8", "", 3],
    "threads": [0, -1, 2.0],
    "max_steps": [0, -1],
    "seed": [-1, 2**64, 1.5, None],
    "data": [None, 3],
    "norm": [1, None, False],
    "zero_gamma": [1, None, "yes"],
    "crop_padding": [-1, 1.5, 5000, "2"],
    "flip": [1, "yes"],
    "cutout": [-1, 1.5, 5000, True],
    "norm_decay": [NAN, INF, -1e-9, None],
    "warmup": [NAN, INF, -1, "1"],
    "min_lr": [NAN, INF, -1e-3, None],
    "clip": [NAN, INF, 0, -1.0, "1"],
    "accumulate": [0, -2, 2.0, None, True],
    "ema": [NAN, 0.0, 1.0, 1, -0.5, 2, "0.9"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_bad_value_is_named_as_on_the_command_line(name: str, value: Any) -> None:
    flag = {"augment": "--no-augment"}.get(name, "--" + name.replace("_", "-"))
    with pytest.raises(ConfigError) as error:
        validate(TrainConfig(**{name: value}))
    message = str(error.value)
    assert message.startswith(f"{flag} must be ")
    assert f"not {value!r}" in message
    assert "\n" not in message


GOOD: dict[str, list[Any]] = {
    "epochs": [1, 10**6, None],
    "batch_size": [1, None],
    "lr": [5e-324, 1, 3e38, None],
    "momentum": [0, 0.0, 0.999999],
    "weight_decay": [0, 0.0, 5e-4, None],
    "label_smoothing": [0, 0.1, 0.99],
    "seed": [0, 2**64 - 1],
    "threads": [1, None],
    "max_steps": [1, None],
    "crop_padding": [0, 4096, None],
    "flip": [True, False, None],
    "cutout": [0, 4096, None],
    "norm_decay": [0, 0.0, 5e-4],
    "warmup": [0, 0.5, 3, None],
    "min_lr": [0, 1e-5],
    "clip": [1, 5e-324, 3e38, None],
    "accumulate": [1, 64],
    "ema": [0.9, 0.999999, 5e-324, None],
    "optimizer": ["sgd", "adam", "adamw"],
    "schedule": ["constant", "cosine", "one-cycle", "step"],
    "precision": [None, "fp32", "tf32", "bf16", "fp16"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in GOOD.items() for value in values])
def test_a_good_value_passes(name: str, value: Any) -> None:
    validate(TrainConfig(**{name: value}))


def test_messages_say_what_is_allowed() -> None:
    with pytest.raises(ConfigError, match=r"^--schedule must be one of constant, cosine, one-cycle, step, not 'onecy"):
        validate(TrainConfig(schedule="onecycle"))
    with pytest.raises(ConfigError, match=r"did you mean 'one-cycle'\?$"):
        validate(TrainConfig(schedule="onecycle"))
    with pytest.raises(ConfigError, match=r"^--lr must be a finite number above 0, not nan$"):
        validate(TrainConfig(lr=NAN))
    with pytest.raises(ConfigError, match=r"^--seed must be a whole number from 0 to 2\*\*64 - 1, not -1$"):
        validate(TrainConfig(seed=-1))


@pytest.mark.parametrize("name", MOST)
def test_a_number_that_is_a_slip_is_refused(tmp_path: Path, name: str) -> None:
    validate(TrainConfig(**{name: MOST[name]}))
    for value in (MOST[name] + 1, 10**400):
        with pytest.raises(ConfigError) as caught:
            validate(TrainConfig(**{name: value}))
        message = str(caught.value)
        assert message.startswith(f"--{name.replace('_', '-')} must be at most {MOST[name]:,}, not ")
        assert len(message) < 100
        with pytest.raises(ConfigError, match=f"{name} must be at most"):
            load_config(write(tmp_path, f"{name} = {value}"))
