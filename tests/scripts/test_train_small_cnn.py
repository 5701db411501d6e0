"""The first thing that someone reads runs as it stands, and does what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "scripts" / "train_small_cnn.py"


def test_it_trains_to_at_least_97_percent(tmp_path) -> None:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "error"}
    done = subprocess.run([sys.executable, SCRIPT], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    rows = [
        re.fullmatch(r"epoch (\d+): training loss (\d+\.\d{4}), test accuracy (\d+\.\d\d)%", line) for line in lines
    ]
    assert all(rows), done.stdout
    assert [int(row[1]) for row in rows] == list(range(1, len(lines) + 1))
    assert float(rows[-1][2]) < float(rows[0][2])
    assert float(rows[-1][3]) >= 97.0
    assert not list(tmp_path.iterdir())


def test_it_fits_on_a_page_and_uses_public_names_only() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 70
    assert not re.search(r"\b_\w|\._\w", text.replace("__name__", "").replace("__main__", ""))
