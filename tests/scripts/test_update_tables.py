"""The documentation says what docs/results/ says."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = dict(os.environ, PYTHONPATH=str(ROOT))


def test_tables_are_those_of_the_records() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "update_tables.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr


def test_a_page_that_says_something_else_is_named(tmp_path) -> None:
    for name in ("scripts", "docs/results"):
        (tmp_path / name).mkdir(parents=True)
    pages = "docs/kernels.md", "docs/performance.md", "docs/batchnorm-conventions.md", "README.md"
    for name in ("scripts/update_tables.py", "docs/results/training.jsonl", *pages):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    page = tmp_path / "README.md"
    page.write_text(page.read_text(encoding="utf-8").replace(" %", " percent").replace("| digits", "| Digits"), "utf-8")
    command = [sys.executable, str(tmp_path / "scripts" / "update_tables.py")]
    refused = subprocess.run(
        [*command, "--check"], capture_output=True, text=True, timeout=120, check=False, env=ENVIRONMENT
    )
    assert refused.returncode == 1
    assert "README.md: results" in refused.stderr
    subprocess.run(command, capture_output=True, timeout=120, check=True, env=ENVIRONMENT)
    assert "| digits" in page.read_text(encoding="utf-8")
    assert (tmp_path / "docs" / "images" / "batchnorm.svg").stat().st_size > 1000
