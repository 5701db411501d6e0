"""`minidl eval --reestimate`."""

import json

import pytest


def test_statistics_of_a_short_run_are_mended_by_the_training_images(minidl, runs) -> None:
    """After five steps the running statistics still hold most of their first values."""
    answers = {
        method: json.loads(minidl("eval", "--out", runs, "--json", *arguments).stdout)
        for method, arguments in {
            None: (),
            "precise": ("--reestimate", "precise"),
            "cumulative": ("--reestimate", "cumulative"),
        }.items()
    }
    assert all(answer["reestimate"] == method for method, answer in answers.items())
    assert answers["precise"]["accuracy"] > answers[None]["accuracy"] + 0.1
    assert answers["cumulative"]["loss"] == pytest.approx(answers["precise"]["loss"], rel=0.05)
    assert json.loads(minidl("eval", "--out", runs, "--json").stdout) == answers[None]  # the checkpoint stays


def test_it_is_told(minidl, runs) -> None:
    result = minidl("eval", "--out", runs, "--reestimate", "precise", "--fold")
    assert result.exit_code == 0, result.output
    assert "running statistics: precise, over 1,437 training images\n" in result.stdout


def test_without_running_statistics_there_is_nothing_to_do(minidl, tmp_path) -> None:
    assert minidl("train", "--norm", "layer", "--max-steps", 1, "--out", tmp_path, "--quiet").exit_code == 0
    result = minidl("eval", "--out", tmp_path, "--reestimate", "precise")
    assert result.exit_code == 2
    assert result.stderr.endswith("has no batch normalization with running statistics\n")
