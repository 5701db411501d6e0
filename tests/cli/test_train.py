"""`minidl train` as a person meets it: what is printed where, what is refused in one line, and exit codes."""

import json
import re
import signal
import tomllib
from pathlib import Path

import pytest
from click.testing import Result

from minidl.cli.console import ConsoleReporter
from minidl.training import checkpoint


@pytest.fixture
def minidl(minidl, tmp_path, monkeypatch):
    """Runs `minidl ARGUMENTS` in an empty folder; what would be a traceback is raised."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Result:
        result = minidl(*arguments)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def train(minidl, stripes_file):
    """Runs `minidl train` on the stripes: three epochs of six steps unless told otherwise."""

    def run(*arguments: str) -> Result:
        return minidl("train", "--data", stripes_file, "--epochs", "3", "--batch-size", "16", *arguments)

    return run


def error_of(result: Result, exit_code: int = 2) -> str:
    """The error, which is the only line on stderr."""
    assert result.exit_code == exit_code, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    return lines[0].removeprefix("Error: ")


def state(run: Path) -> dict[str, tuple]:
    tensors = checkpoint.load(run / "checkpoints" / checkpoint.LAST).tensors
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in tensors.items()}


def history(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


# What it prints


def test_a_run_in_plain_lines(train, stripes_file) -> None:
    result = train("--device", "cpu", "--threads", "2")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "device: cpu, 2 threads (asked for)"
    assert lines[1] == "data: stripes, 90 training and 30 test images of 8x8x1"
    assert lines[2] == "model: small-cnn, 65,955 parameters; sgd, cosine schedule, 3 epochs of 6 steps"
    assert Path(lines[3].removeprefix("run: ")) == Path("runs", "stripes-small-cnn-001")
    assert " ".join(lines[4].split()) == "epoch train loss train acc test loss test acc images/s learning rate"
    assert [line.split()[0] for line in lines[5:8]] == ["1", "2", "3"]
    assert re.fullmatch(r"test accuracy \d+\.\d\d% after 3 epochs in \d+\.\d s(; best .*)?; running .*", lines[8])
    assert len(lines) == 9
    assert "\x1b" not in result.stdout


def test_each_number_ends_under_the_end_of_its_title(train) -> None:
    lines = train().stdout.splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("epoch"))
    titles = [match.end() for match in re.finditer(r"\S+(?: \S+)*", lines[header])]
    assert len(titles) == 7
    for line in lines[header + 1 : header + 4]:
        assert [match.end() for match in re.finditer(r"\S+", line)] == titles


def test_a_row_is_the_epochs_metrics(train) -> None:
    lines = train().stdout.splitlines()
    for line, row in zip(lines[5:8], history(Path("runs/stripes-small-cnn-001")), strict=True):
        epoch, train_loss, train_accuracy, test_loss, test_accuracy, _, lr = line.split()
        assert int(epoch) == row["epoch"]
        for text, value in ((train_loss, row["train_loss"]), (test_loss, row["test_loss"]), (lr, row["lr"])):
            decimals = len(text.partition(".")[2])
            assert float(text) == pytest.approx(value, abs=0.5001 * 10**-decimals)
        for text, value in ((train_accuracy, row["train_accuracy"]), (test_accuracy, row["test_accuracy"])):
            assert float(text.removesuffix("%")) == pytest.approx(100 * value, abs=0.005001)


def test_json_has_stdout_for_itself(train) -> None:
    result = train("--json")
    summary = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1
    assert summary == json.loads(Path("runs/stripes-small-cnn-001/summary.json").read_text())
    names = "device data model epochs steps seed train_loss train_accuracy test_loss test_accuracy seconds"
    assert {*names.split(), "images_per_second", "parameters"} <= set(summary)
    assert "data: stripes" in result.stderr
    assert "test accuracy" in result.stderr


def test_quiet_is_silent_and_leaves_json_alone(train) -> None:
    assert train("--quiet", "--max-steps", "2").output == ""
    result = train("-q", "--json", "--max-steps", "2")
    assert json.loads(result.stdout)["steps"] == 2
    assert result.stderr == ""


def test_without_batch_normalization_it_says_so(train) -> None:
    assert "model: small-cnn without batch normalization, 65,763 parameters" in train("--norm", "none").stdout


def test_the_defaults_are_the_digits(minidl) -> None:
    lines = minidl("train", "--max-steps", "1").stdout.splitlines()
    assert lines[1] == "data: digits, 1,437 training and 360 test images of 8x8x1"
    assert lines[2] == "model: small-cnn, 67,754 parameters; sgd, cosine schedule, 12 epochs of 23 steps"
    assert re.fullmatch(r"test accuracy \d+\.\d\d% after 1 step \(0 of 12 epochs\) in \d+\.\d s; running .*", lines[5])


def test_one_epoch_is_not_epochs(train) -> None:
    lines = train("--epochs", "1", "--batch-size", "90").stdout.splitlines()
    assert lines[2].endswith(" schedule, 1 epoch of 1 step")
    assert " after 1 epoch in " in lines[-1]
    assert " after 1 step (0 of 1 epoch) in " in train("--epochs", "1", "--max-steps", "1").stdout


def test_running_statistics_of_few_batches_are_told(train) -> None:
    def closing(*arguments):
        return train(*arguments).stdout.splitlines()[-1]

    assert closing().endswith("; running statistics have seen only 18 batches, so test accuracy may lag")
    assert closing("--max-steps", "1").endswith("have seen only 1 batch, so test accuracy may lag")
    assert "running statistics" in closing("--epochs", "5", "--max-steps", "29")
    assert "running statistics" not in closing("--epochs", "5")
    assert "running statistics" not in closing("--norm", "none")


# Configuration files and resumption


def test_the_recorded_configuration_repeats_the_run(train, minidl) -> None:
    train("--seed", "3", "--optimizer", "adamw", "--max-steps", "9")
    first, again = Path("runs/stripes-small-cnn-001"), Path("runs/stripes-small-cnn-002")
    assert minidl("train", "--config", str(first / "config.toml")).exit_code == 0
    assert state(again) == state(first)
    assert history(again) == history(first)


def test_flags_win_over_the_file(minidl, stripes_file) -> None:
    Path("my.toml").write_text(f"data = {json.dumps(stripes_file)}\nepochs = 2\nseed = 5\n")
    assert minidl("train", "--config", "my.toml", "--seed", "6", "--max-steps", "1").exit_code == 0
    recorded = tomllib.loads(Path("runs/stripes-small-cnn-001/config.toml").read_text())
    assert (recorded["epochs"], recorded["seed"], recorded["max_steps"]) == (2, 6, 1)


@pytest.mark.parametrize("step", ["6", "8"])
def test_max_steps_and_resume_equal_one_run(train, minidl, step) -> None:
    train()
    train("--max-steps", step)
    result = minidl("train", "--resume")
    whole, resumed = Path("runs/stripes-small-cnn-001"), Path("runs/stripes-small-cnn-002")
    assert f"resumed {resumed} after step {step}" in result.stdout.splitlines()
    assert state(resumed) == state(whole)
    assert history(resumed) == history(whole)
    assert (resumed / "metrics.csv").read_text().count("\n") == 4


def test_resume_takes_another_limit(train, minidl) -> None:
    train("--max-steps", "2")
    result = minidl("train", "--resume", "runs/stripes-small-cnn-001", "--max-steps", "4", "--threads", "1")
    assert result.exit_code == 0
    assert json.loads(Path("runs/stripes-small-cnn-001/summary.json").read_text())["steps"] == 4


def test_resume_finds_the_newest_run_of_the_folder_in_out(train, minidl) -> None:
    train("--out", "elsewhere", "--max-steps", "2")
    train("--max-steps", "2")
    result = minidl("train", "--resume", "--out", "elsewhere")
    assert f"run: {Path('elsewhere', 'stripes-small-cnn-001')}" in result.stdout.splitlines()


def test_a_damaged_checkpoint_is_noted(train, minidl) -> None:
    train("--max-steps", "8")
    last = Path("runs/stripes-small-cnn-001/checkpoints/last.safetensors")
    last.write_bytes(last.read_bytes()[:-1])
    result = minidl("train", "--resume")
    assert result.exit_code == 0
    assert "continuing from previous.safetensors, the checkpoint before it" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "--lr", "0.01"], "--lr is 0.05 in {run} and cannot become 0.01 there; start a new run, or leave"),
        (["--resume", "--norm", "none"], "in {run} and cannot become"),
        (["--resume", "nothing"], "nothing: no such run"),
        (
            ["--resume", "runs"],
            "runs: is not a run folder (it has no config.toml and checkpoints); the newest run in it is",
        ),
        (["--resume", "--out", "nothing"], "nothing: there is no run in this folder"),
    ],
)
def test_what_cannot_be_resumed(train, minidl, arguments, message) -> None:
    train("--max-steps", "2")
    run = Path("runs/stripes-small-cnn-001")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert message.format(run=run) in error_of(minidl("train", *arguments))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_complete_run_names_the_remedy(train, minidl) -> None:
    train()
    message = error_of(minidl("train", "--resume"))
    assert (
        message == f"{Path('runs/stripes-small-cnn-001')} is complete at --epochs 3 (it has finished 3); "
        "give a larger number to go on"
    )


def test_another_runs_checkpoint_is_refused(train, minidl) -> None:
    train("--max-steps", "8")
    train("--max-steps", "8", "--norm", "none")
    mine, other = (Path(f"runs/stripes-small-cnn-{number}/checkpoints/last.safetensors") for number in ("001", "002"))
    mine.write_bytes(other.read_bytes())
    assert "another" in error_of(minidl("train", "--resume", "runs/stripes-small-cnn-001"))


def test_a_signal_after_the_last_step_finds_the_run_complete(train, monkeypatch) -> None:
    epoch = ConsoleReporter.epoch

    def interrupted(self, session, row) -> None:
        epoch(self, session, row)
        if row["epoch"] == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ConsoleReporter, "epoch", interrupted)
    result = train()
    assert json.loads(Path("runs/stripes-small-cnn-001/summary.json").read_text())["complete"] is True
    assert "test accuracy" in result.stdout.splitlines()[-1]
    assert "go on with" not in result.output  # there is nothing to go on with: --resume would be refused


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--data", "digit"],
            "unknown data set 'digit'; expected one of digits, fashion-mnist, mnist, cifar10, or the path",
        ),
        (["--data", "digit"], "did you mean 'digits'?"),
        (
            ["--data", "fashion-mnist"],
            "fashion-mnist: no folder to look in; on Debian and Ubuntu `apt install dataset-",
        ),
        (["--data", "mnist", "--data-dir", "nothing"], "nothing: no such folder; --data-dir names the folder"),
        (["--data", "nothing.npz"], "nothing.npz: no such file"),
        (["--batch-size", "0"], "--batch-size must be a whole number of at least 1, not 0"),
        (
            ["--batch-size", "91"],
            "--batch-size 91 is larger than the data set: stripes has 90 training images; use at most 90",
        ),
        (["--lr", "nan"], "--lr must be a finite number above 0, not nan"),
        (["--lr", "inf"], "--lr must be a finite number above 0, not inf"),
        (["--lr", "0"], "--lr must be a finite number above 0, not 0.0"),
        (["--epochs", "0"], "--epochs must be a whole number of at least 1, not 0"),
        (["--max-steps", "0"], "--max-steps must be a whole number of at least 1, not 0"),
        (["--momentum", "1"], "--momentum must be at least 0 and less than 1, not 1.0"),
        (["--weight-decay", "-1"], "--weight-decay must be a finite number of at least 0, not -1.0"),
        (["--label-smoothing", "1"], "--label-smoothing must be at least 0 and less than 1, not 1.0"),
        (["--norm-decay", "-1"], "--norm-decay must be a finite number of at least 0, not -1.0"),
        (["--ema", "1"], "--ema must be more than 0 and less than 1, not 1.0"),
        (["--clip", "0"], "--clip must be a finite number above 0, not 0.0"),
        (["--accumulate", "0"], "--accumulate must be a whole number of at least 1, not 0"),
        (["--batch-size", "16", "--accumulate", "3"], "--accumulate 3 does not divide --batch-size 16; 2 does"),
        (["--warmup", "-1"], "--warmup must be a finite number of at least 0, not -1.0"),
        (["--epochs", "2", "--warmup", "2"], "--warmup 2 is no shorter than the run of --epochs 2"),
        (["--min-lr", "1"], "--min-lr must be from 0 to --lr, which is 0.05, not 1.0"),
        (["--min-lr", "0.01", "--schedule", "step"], "leave it out with --schedule step"),
        (["--seed", "-1"], "--seed must be a whole number from 0 to 2**64 - 1, not -1"),
        (["--epochs", "1" + 400 * "0"], "--epochs must be at most 1,000,000,000, not 1000"),
        (["--threads", "100000"], "--threads must be at most 4,096, not 100000"),
        (["--threads", "0"], "--threads must be a whole number of at least 1, not 0"),
        (["--data", "~no-such-user/x.npz"], "~no-such-user/x.npz: no such file"),
        (["--model", "small-cn"], "there is no model 'small-cn' (known: small-cnn, "),
        (["--optimizer", "sdg"], "--optimizer must be one of sgd, adam, adamw, not 'sdg'; did you mean 'sgd'?"),
        (["--schedule", "onecycle"], "not 'onecycle'; did you mean 'one-cycle'?"),
        (["--out", "file"], "file: cannot make a run folder there: it is a file; name another folder with --out DIR"),
        (
            ["--out", "file/below"],
            "cannot make a run folder there: Not a directory; name another folder with --out DIR",
        ),
        (["--config", "nothing.toml"], "nothing.toml: no such configuration file"),
        (["--config", "unknown.toml"], "unknown.toml: unknown option 'epoch'; did you mean 'epochs'?"),
        (["--config", "file"], "file: is not TOML: "),
        (["--data-dir", "\udcff"], "is not valid Unicode"),
    ],
)
def test_one_line_exit_code_2_and_no_folder(train, arguments, message) -> None:
    Path("file").write_text("neither a folder nor TOML\n")
    Path("unknown.toml").write_text("epoch = 3\n")
    assert message in error_of(train(*arguments))
    # The folder of runs may have been made by then, a run in it not.
    assert {str(path) for path in Path().rglob("*")} - {"runs"} == {"file", "unknown.toml"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--epoch", "3"], "No such option '--epoch'. Did you mean '--epochs'?"),
        (["train", "--lr", "fast"], "Invalid value for '--lr': 'fast' is not a valid float."),
        (["train", "--epochs", "1.5"], "Invalid value for '--epochs': '1.5' is not a valid integer."),
        (
            ["train", "--device", "gpu"],
            "Invalid value for '--device': 'gpu' is not one of 'auto', 'cpu', 'cuda', 'emulator'.",
        ),
        (["train", "digits"], "Got unexpected extra argument (digits)"),
        (["trian"], "No such command 'trian'."),
    ],
)
def test_a_wrong_command_line_ends_with_one_line_that_says_what_is_wrong(minidl, arguments, message) -> None:
    result = minidl(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr.splitlines()[-1]
    assert not Path("runs").exists()


def test_more_threads_than_the_system_can_start_are_refused(train, monkeypatch) -> None:
    def cannot_start(_thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", cannot_start)
    assert "--threads" in error_of(train("--threads", "77"))
    assert not Path("runs").exists()


def test_cuda_without_a_gpu_is_refused_and_never_replaced(train, monkeypatch) -> None:
    monkeypatch.setattr("minidl.backends.why_no_cuda", lambda: "the reason")
    monkeypatch.setattr("minidl.training.starting.Session", lambda *_: pytest.fail("trained without being asked to"))
    message = error_of(train("--device", "cuda"))
    assert message.startswith("device cuda cannot be used: the reason")
    assert "--device cpu" in message
    assert not Path("runs").exists()


def test_auto_says_why_there_is_no_gpu(train, monkeypatch) -> None:
    monkeypatch.setattr("minidl.backends.why_no_cuda", lambda: "the reason")
    assert re.fullmatch(r"device: cpu, \d+ threads? \(.*the reason\)", train("--max-steps", "1").stdout.splitlines()[0])


@pytest.mark.parametrize("bn", [[], ["--norm", "none"]])
def test_a_loss_that_becomes_nan_ends_with_one_line_and_exit_code_1(train, bn) -> None:
    message = error_of(train("--lr", "1e30", *bn), exit_code=1)
    assert re.match(r"training stopped at step 2 \(epoch 1\): the loss is (nan|inf); ", message)
    assert re.search(r"not finite: \w[\w ]* of \w+ \((Conv2d|BatchNorm2d|ReLU|Linear)\)", message)
    assert message.endswith("; try a smaller --lr")
    last = message.partition("the last good checkpoint is ")[2].partition(";")[0]
    assert checkpoint.load(last).metadata["counters"]["progress"]["step"] == 0


def test_a_second_ctrl_c_ends_with_130_and_no_traceback(train, monkeypatch) -> None:
    def step(*_) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ConsoleReporter, "step", step)
    handler = signal.getsignal(signal.SIGINT)
    result = train("--epochs", "2")
    assert (result.exit_code, result.stderr) == (130, "")
    assert signal.getsignal(signal.SIGINT) is handler
    assert not list(Path("runs").rglob(".lock"))


def test_ghost_batches_train_on_whole_ones_and_refuse_others(train) -> None:
    """Of 90 images, the last of three batches of 32 has 26, of which 16 are taken."""
    result = train("--norm", "ghost:16", "--batch-size", "32", "--epochs", "1")
    assert result.exit_code == 0, result.output
    assert "1 epoch of 3 steps" in result.stdout
    refused = train("--norm", "ghost:24", "--batch-size", "32", "--epochs", "1")
    assert refused.exit_code == 2
    assert refused.stderr.endswith("--batch-size 32 is not a multiple of the ghost batch of 24; use 24 or 48\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--batch-size", "1", "--model", "mlp-2"],
            "--batch-size 1 is too small for mlp-2: BatchNorm1d: training needs",
        ),
        (["--batch-size", "8", "--accumulate", "8", "--model", "mlp-2"], "--batch-size 8 in 8 parts is too small"),
        (["--schedule", "step", "--warmup", "3", "--epochs", "4"], "does not fit --schedule step, which falls after"),
        (["--cutout", "15"], "--cutout 15 leaves nothing of any image"),
    ],
)
def test_what_could_not_train_leaves_no_folder(train, tmp_path, arguments: list[str], words: str) -> None:
    result = train(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1 + result.stderr.count("device:")
    assert not list(tmp_path.glob("runs/*"))


def test_the_same_normalization_in_other_words_resumes(train, tmp_path) -> None:
    assert train("--norm", "group", "--max-steps", "2").exit_code == 0
    result = train("--resume", "--norm", "group:8", "--max-steps", "3")
    assert result.exit_code == 0, result.output
