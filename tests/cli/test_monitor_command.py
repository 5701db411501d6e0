"""`minidl monitor`."""

import json

import pytest


@pytest.fixture(scope="module")
def out(minidl, tmp_path_factory):
    folder = tmp_path_factory.mktemp("monitored")
    result = minidl("train", "--max-steps", 5, "--monitor", 2, "--out", folder, "--quiet")
    assert result.exit_code == 0, result.output
    return folder


def test_it_draws_and_lists_the_newest_run(minidl, out) -> None:
    result = minidl("monitor", "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("step 4, after 0 epochs; learning rate ")
    for words in ("outputs: percentiles", "batch against running", "scales and offsets", "weights: Euclidean", "conv1"):
        assert words in result.stdout
    (run,) = out.iterdir()
    assert result.stdout.endswith(f"3 measured steps, drawn in {run / 'monitor.svg'}\n")
    assert (run / "monitor.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_json_and_another_picture(minidl, out, tmp_path) -> None:
    result = minidl("monitor", "--out", out, "--step", 2, "--json", "--picture", tmp_path / "p.svg")
    answer = json.loads(result.stdout)
    assert answer["steps"] == [0, 2, 4]
    assert answer["record"]["step"] == 2
    assert answer["picture"] == str(tmp_path / "p.svg")
    assert (tmp_path / "p.svg").exists()


def test_bad_input_is_one_line(minidl, out, runs, tmp_path) -> None:
    (run,) = out.iterdir()
    for arguments, words in [
        (["--step", 3], f"--step 3: {run} has no measurement of that step; the nearest is 2"),
        (["--picture", tmp_path / "no" / "p.svg"], "cannot be written"),
        (["--picture", run / "config.toml"], "pictures are SVG; give a name that ends in .svg"),
    ]:
        result = minidl("monitor", "--out", out, *arguments)
        assert result.exit_code == 2
        assert words in result.stderr
        assert result.stderr.count("\n") == 1
    result = minidl("monitor", "--out", runs)
    assert result.exit_code == 2
    assert "nothing was measured; train with --monitor" in result.stderr
    result = minidl("train", "--monitor", 0, "--out", tmp_path)
    assert result.exit_code == 2
    assert "--monitor must be a whole number of at least 1" in result.stderr


def test_monitor_alone_means_every_hundred_steps(minidl, tmp_path) -> None:
    result = minidl("train", "--max-steps", 1, "--out", tmp_path, "--quiet", "--monitor")
    assert result.exit_code == 0, result.output
    (run,) = tmp_path.iterdir()
    assert "monitor = 100\n" in (run / "config.toml").read_text(encoding="utf-8")
