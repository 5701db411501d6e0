"""The README and the pages of docs/: their Python runs as it stands, and what they point at is there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "minidl" / "data" / "README.md"]
BLOCKS = [
    block
    for page in (ROOT / "README.md", ROOT / "docs" / "kernels.md")
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split("\n")[0])
def test_its_python_runs_as_it_stands(block: str, tmp_path: Path) -> None:
    program = tmp_path / "block.py"  # a file, for kernels are run from their source
    program.write_text(block, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", str(program)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if not target.startswith("http")]
    assert not [target for target in local if not (page.parent / target).exists()]


def test_there_are_blocks_and_links_to_test() -> None:
    assert len(BLOCKS) >= 4
    assert len(PAGES) >= 4
