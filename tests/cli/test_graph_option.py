"""`minidl train --graph`."""

import json

from click.testing import CliRunner

from minidl.cli import main


def test_a_device_without_capture_is_one_line(tmp_path) -> None:
    out = tmp_path / "runs"
    result = CliRunner().invoke(main, ["train", "--device", "cpu", "--graph", "--out", str(out)])
    assert result.exit_code == 2
    assert result.stderr.strip().endswith("--graph needs a device that captures steps, and cpu does not; leave it out")
    assert len(result.stderr.strip().splitlines()) == 1
    assert not out.exists()


def test_the_emulator_replays_with_the_same_bits(minidl, write_stripes, tmp_path) -> None:
    data = write_stripes(tmp_path / "few.npz", train=6, test=3)
    summaries = []
    for option in ("--graph", "--no-graph"):
        arguments = "--data", data, "--epochs", 1, "--batch-size", 2, "--out", tmp_path / option, "--json", option
        result = minidl("train", "--device", "emulator", *arguments)
        assert result.exit_code == 0, result.output
        summary = json.loads(result.stdout)
        for name in ("run", "seconds", "images_per_second"):
            summary.pop(name)
        summaries.append(summary)
    assert summaries[0] == summaries[1]
