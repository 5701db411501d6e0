"""Convolution and normalization on processors with narrower vectors: the same tests, compiled as for those.

Numba's own settings say what is compiled for. A processor runs code of its narrower relatives.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import pytest

from minidl.backends.cpu.machine_code import _vectors

FOLDER = Path(__file__).parent
FILES = "test_cpu_blocks.py", "test_cpu_passes.py", "test_cpu_convolution.py", "test_cpu_winograd.py"
CHOSEN = "is_exact or bits_of_numpy or row_by_row or convolved or packed"
CODE = """
import os
import sys
import pytest
from minidl.backends.cpu.machine_code import LANES, SUMS
assert (LANES, SUMS) == (int(sys.argv[1]), int(sys.argv[2]))

class Each:
    "Every file has tests of the chosen names."
    def pytest_collection_finish(self, session):
        assert {item.path.name for item in session.items} == {os.path.basename(file) for file in sys.argv[4:]}

sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-k", *sys.argv[3:]], plugins=[Each()]))
"""


@pytest.mark.parametrize(
    ("features", "lanes", "sums"),
    [
        ("+avx,+avx2,+avx512bw,+avx512f,+fma", 16, 16),
        ("+avx,+avx2,-avx512f,+fma", 8, 12),
        ("+avx,+avx2,-fma", 4, 12),
        ("+neon,+fp-armv8", 4, 12),
        ("", 4, 12),
    ],
)
def test_vectors_are_those_of_the_processor(features: str, lanes: int, sums: int) -> None:
    assert _vectors(features) == (lanes, sums)


@pytest.mark.parametrize(
    ("name", "features", "lanes", "sums"),
    [
        ("haswell", "+sse4.2,+avx,+avx2,+fma,+bmi,+bmi2", 8, 12),
        ("generic", "", 4, 12),  # not even a fused multiplication and addition
    ],
)
def test_other_processors_are_right_too(name: str, features: str, lanes: int, sums: int, tmp_path: Path) -> None:
    has = llvm.get_host_cpu_features()
    if platform.machine().lower() not in ("x86_64", "amd64") or not (has.get("avx2") and has.get("fma")):
        pytest.skip("another processor is played by an x86-64 with AVX2 and FMA")
    # A cache of its own: the usual one keeps code for one kind of vectors at a time.
    told = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
    path = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-c", CODE, str(lanes), str(sums), CHOSEN, *(str(FOLDER / file) for file in FILES)]
    result = subprocess.run(
        command, env={**os.environ, **told, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
