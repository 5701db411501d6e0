import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

import kernels
from minidl.backends import get_backend, gpu
from minidl.backends.cpu import cache
from minidl.cli import checks, gpu_checks
from minidl.cli.checks import FAIL, INFO, PASS, WARN, Check, Finding

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def in_a_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def findings(result):
    return {one["check"]: one for one in json.loads(result.stdout)["checks"]}


def elsewhere(code, **environment):
    """Run Python code in another process, from the repository."""
    variables = os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables, timeout=300)


# The command


def test_a_sound_machine(minidl, in_a_folder) -> None:
    result = minidl("doctor")
    assert result.exit_code == 0, result.stdout
    *lines, blank, last = result.stdout.splitlines()
    assert blank == ""
    assert re.fullmatch(r"no failures, (no|\d+) warnings?", last)
    shown = [line for line in lines if not line.startswith(" ")]
    assert {line[:4] for line in shown} <= {"pass", "info", "warn"}
    for name in (*checks.DEPENDENCIES, "Python", "kernels", "processor", "BLAS", "CPU backend", "device", "data sets"):
        assert sum(line[6:19].rstrip() == name for line in shown) == 1, name
    for number, line in enumerate(lines):  # whoever does not pass learns what to do
        if line.startswith(("info", "warn")):
            assert lines[number + 1].startswith(" " * 21 + "to do: ")


def test_json(minidl, in_a_folder) -> None:
    result = minidl("doctor", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["ok"]
    found = findings(result)
    assert all(set(one) == {"check", "status", "found", "remedy"} for one in found.values())
    assert all((one["status"] == PASS) == (one["remedy"] == "") for one in found.values())
    assert found["NVIDIA driver"]["status"] in (INFO, PASS, WARN)
    assert found["Python"]["found"].startswith(".".join(map(str, sys.version_info[:3])))
    assert found["runs folder"]["found"].startswith(str(Path.cwd()))


def test_a_failure_ends_with_exit_code_1_and_stops_no_other(minidl, monkeypatch, in_a_folder) -> None:
    def broken():
        raise RuntimeError("out of\nluck")

    monkeypatch.setattr(checks, "processor", broken)
    result = minidl("doctor")
    assert result.exit_code == 1
    assert "fail  processor      RuntimeError: out of luck\n" + " " * 21 + "to do: mend the failures" in result.stdout
    assert "\npass  BLAS" in result.stdout
    assert "\n1 failure, " in result.stdout
    assert not json.loads(minidl("doctor", "--json").stdout)["ok"]


def test_a_wrong_data_dir_is_a_failure(minidl, in_a_folder) -> None:
    result = minidl("doctor", "--data-dir", "nowhere", "--json")
    assert result.exit_code == 1
    assert findings(result)["data sets"]["found"].startswith("DataError: nowhere: no such folder")


def test_it_runs_where_numpy_is_missing() -> None:
    code = "import sys; sys.modules['numpy'] = None; from minidl.cli import main; main(['doctor', '--json'])"
    done = elsewhere(code)
    assert done.returncode == 1
    found = {one["check"]: one for one in json.loads(done.stdout)["checks"]}
    assert found["numpy"]["status"] == found["CPU backend"]["status"] == FAIL
    assert found["numpy"]["remedy"] == "run `python -m pip install --force-reinstall numpy`"
    assert found["click"]["status"] == found["kernels"]["status"] == PASS


# Checks


def test_an_exception_without_words_is_named() -> None:
    def broken():
        raise KeyError

    assert checks.run(Check("a check", broken, "mend it")) == Finding(FAIL, "KeyError", "mend it")


def test_the_dependencies_are_those_of_the_package() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    entries = [entry.partition(";") for entry in project["dependencies"]]
    assert {marker.strip() for _, _, marker in entries} == {"", "sys_platform != 'darwin'"}
    here = {entry.partition(",")[0] for entry, _, marker in entries if not marker or sys.platform != "darwin"}
    assert here == {f"{name}>={oldest}" for name, (_, oldest) in checks.DEPENDENCIES.items()}
    assert project["requires-python"] == ">={}.{}".format(*checks.PYTHON)


@pytest.mark.parametrize(
    ("version", "status"), [("1.9.12", FAIL), ("2.0.0", PASS), ("2.0rc1", PASS), ("10.1", PASS), ("2", FAIL)]
)
def test_old_versions_fail(monkeypatch, version, status) -> None:
    monkeypatch.setattr(checks.metadata, "version", lambda name: version)
    finding = checks.dependency("numpy")
    assert finding.status == status
    assert version in finding.found
    assert finding.remedy == ("" if status == PASS else "run `python -m pip install -U numpy`")


def test_another_python(monkeypatch) -> None:
    monkeypatch.setattr(checks, "PYTHON", (99, 0))
    assert checks.python().status == FAIL


def test_another_package_named_kernels(monkeypatch, tmp_path) -> None:
    assert checks.kernels_package().status == PASS
    monkeypatch.setattr(kernels, "__file__", str(tmp_path / "kernels" / "__init__.py"))
    assert checks.kernels_package().status == WARN
    monkeypatch.delattr(kernels, "BELONGS_TO")
    finding = checks.kernels_package()
    assert finding.status == FAIL
    assert str(tmp_path) in finding.found
    assert finding.remedy == "run `python -m pip uninstall kernels`"


@pytest.mark.parametrize(("limit", "threads"), [("50000 100000", "1"), ("max 100000", None), ("99900000 100000", None)])
def test_a_container_s_share_of_the_processor(monkeypatch, tmp_path, limit, threads) -> None:
    (tmp_path / "cpu.max").write_text(f"{limit}\n")
    monkeypatch.setattr(checks, "CGROUP", tmp_path)
    finding = checks.processor()
    assert finding.status == (PASS if threads is None else WARN)
    assert finding.remedy == ("" if threads is None else f"train with --threads {threads}")
    assert ("may use 0.5 at a time" in finding.found) == (threads is not None)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how much memory is free")
def test_memory(monkeypatch, tmp_path) -> None:
    report = tmp_path / "meminfo"
    report.write_text("MemTotal: 9999999 kB\nMemAvailable:    2097152 kB\n")
    monkeypatch.setattr(checks, "MEMORY", report)
    monkeypatch.setattr(checks, "CGROUP", tmp_path)
    assert checks.memory().status == PASS
    assert checks.memory().found.startswith("2.0 GiB available of ")
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    (tmp_path / "memory.current").write_text(f"{2**29}\n")
    assert checks.memory().status == WARN
    assert checks.memory().found.startswith("0.5 GiB available of ")
    (tmp_path / "memory.max").write_text("max\n")
    assert checks.memory().status == PASS


def test_no_blas_is_known(monkeypatch) -> None:
    assert checks.blas().status in (PASS, INFO)
    monkeypatch.setattr("threadpoolctl.threadpool_info", list)
    monkeypatch.setattr(sys, "platform", "linux")
    assert checks.blas().status == WARN


def test_numba_switched_off() -> None:
    code = "from minidl.cli import checks; print(*checks.numba_compiles(), sep=' | ')"
    assert elsewhere(code).stdout.startswith("pass | compiled and ran a kernel in ")
    switched_off = elsewhere(code, NUMBA_DISABLE_JIT="1").stdout
    assert switched_off.startswith("fail | NUMBA_DISABLE_JIT is set")


def test_numba_cache_is_where_numba_says(tmp_path) -> None:
    code = "from minidl.cli import checks; print(*checks.numba_cache(), sep=' | ')"
    given = elsewhere(code, NUMBA_CACHE_DIR=str(tmp_path / "cache")).stdout
    assert given.startswith(f"pass | {tmp_path / 'cache'}{os.sep}cpu_")
    (tmp_path / "file").write_text("no folder")
    refused = elsewhere(code, NUMBA_CACHE_DIR=str(tmp_path / "file")).stdout
    assert refused.startswith("warn | ")
    assert f"as NUMBA_CACHE_DIR ({tmp_path / 'file'}) cannot be written to" in refused


def test_no_cache(monkeypatch) -> None:
    def nowhere(*_) -> None:
        raise RuntimeError("no locator available")

    monkeypatch.setattr(cache.FunctionCache, "__init__", nowhere)
    finding = checks.numba_cache()
    assert finding.status == WARN
    assert "each start compiles anew" in finding.found
    assert "NUMBA_CACHE_DIR" in finding.remedy


@pytest.mark.parametrize("second", [1.5 + 2e-5, float("nan")])
def test_a_cpu_backend_that_computes_something_else(monkeypatch, second) -> None:
    assert checks.cpu_backend().status == PASS
    losses = {"cpu": (2.5, second), "reference": (2.5, 1.5)}
    monkeypatch.setattr(checks, "_losses_around_a_step", losses.__getitem__)
    finding = checks.cpu_backend()
    assert finding.status == FAIL
    assert "(2.5, 1.5)" in finding.found


def test_the_step_that_is_compared_learns() -> None:
    before, after = checks._losses_around_a_step("reference")
    assert after < before


def test_data_sets(tmp_path) -> None:
    assert checks.data_sets(str(tmp_path)).found.startswith("digits; not here: fashion-mnist, mnist, cifar10, see ")
    for number in range(1, 6):
        (tmp_path / f"data_batch_{number}.bin").write_bytes(b"short")
    (tmp_path / "test_batch.bin").write_bytes(b"short")
    finding = checks.data_sets(str(tmp_path))
    assert finding.status == WARN
    assert "5 bytes, expected a multiple of 3,073" in finding.found


def test_no_digits(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("minidl.data.digits.FILE", tmp_path / "digits.npz")
    finding = checks.data_sets(None)
    assert finding.status == FAIL
    assert "no such file" in finding.found


def test_runs_folder(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    assert checks.runs_folder().found.startswith(f"{tmp_path} can be written to")
    (tmp_path / "runs").mkdir()
    assert checks.runs_folder().found.startswith(f"{tmp_path / 'runs'} can be written to")
    assert list(tmp_path.rglob("*")) == [tmp_path / "runs"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5e7))
    assert checks.runs_folder().status == WARN


def test_a_folder_that_cannot_be_written_to(minidl, monkeypatch, in_a_folder) -> None:
    def refuse(**options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    found = findings(minidl("doctor", "--json"))["runs folder"]
    assert (found["status"], found["found"]) == (FAIL, "PermissionError: [Errno 13] Permission denied")
    assert "--out DIR" in found["remedy"]


@pytest.mark.parametrize(("encoding", "status"), [("utf-8", PASS), ("UTF8", PASS), ("ascii", WARN), ("cp1252", WARN)])
def test_stdout(monkeypatch, encoding, status) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    assert checks.stdout().status == status


# A GPU, and what belongs to it


@pytest.fixture
def nvidia_smi(monkeypatch, tmp_path):
    """Puts a program of that name first on the PATH."""
    if sys.platform == "win32":
        pytest.skip("the stand-in for nvidia-smi is a shell script")

    def install(script):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return install


@pytest.fixture
def driver(monkeypatch):
    """Makes the driver say this of itself; None where there is none."""

    def install(found):
        monkeypatch.setattr(gpu, "driver", lambda: found)

    return install


SOUND = gpu.Driver((13, 0), ((9, 0),))


def test_without_a_gpu_there_is_nothing_to_install(minidl, in_a_folder, driver, monkeypatch) -> None:
    driver(None)
    monkeypatch.setattr(gpu, "installed", lambda package: None)
    found = findings(minidl("doctor", "--json"))
    for name in ("NVIDIA driver", "CuPy"):
        assert (found[name]["status"], found[name]["remedy"]) == (INFO, gpu_checks.NOTHING)
    assert found["device"]["status"] == PASS
    assert found["device"]["found"].startswith("cpu, ")


def test_with_a_gpu_what_it_needs_is_worth_a_warning(minidl, in_a_folder, driver, nvidia_smi, monkeypatch) -> None:
    driver(SOUND._replace(cuda=(12, 4)))
    nvidia_smi("echo 'NVIDIA A100, 40960 MiB, 550.54.15'")
    monkeypatch.setattr(gpu, "installed", lambda package: None)
    found = findings(minidl("doctor", "--json"))
    assert found["NVIDIA driver"]["status"] == PASS
    assert found["NVIDIA driver"]["found"] == "NVIDIA A100, 40960 MiB, driver 550.54.15"
    for name in ("CuPy", "device"):
        assert found[name]["status"] == WARN
        assert found[name]["remedy"] == 'run `python -m pip install -e ".[cuda12]"`'
    assert found["device"]["found"].startswith("cpu, ")
    assert found["device"]["found"].endswith("(CuPy is not installed)")


def test_a_gpu_that_is_refused_at_its_start_is_worth_a_warning(driver, monkeypatch) -> None:
    def refuse(**options):
        raise RuntimeError("no kernel can be launched")

    driver(SOUND)
    monkeypatch.setattr(gpu, "lack", lambda: None)
    monkeypatch.setattr("minidl.backends.cuda.CudaBackend", refuse)
    finding = gpu_checks.device()
    assert finding.status == WARN
    assert "no kernel can be launched" in finding.found


def test_a_gpu_that_is_taken(driver, monkeypatch) -> None:
    driver(SOUND)
    taken = SimpleNamespace(name="cuda", describe=lambda: "cuda, NVIDIA H200")
    monkeypatch.setattr(gpu, "lack", lambda: None)
    monkeypatch.setattr("minidl.backends._created", {("cuda", None, "tf32"): taken})
    assert gpu_checks.device() == Finding(PASS, "cuda, NVIDIA H200")


@pytest.mark.parametrize(
    ("script", "found"),
    [
        (
            "echo 'NVIDIA H200, 143771 MiB, 580.95.05'; echo 'NVIDIA T4, 15360 MiB, 580.95.05'",
            "NVIDIA H200, 143771 MiB, driver 580.95.05 | NVIDIA T4, 15360 MiB, driver 580.95.05",
        ),
        ("echo 'Driver/library version mismatch'; exit 18", "nvidia-smi: Driver/library version mismatch"),
        ("exit 9", "nvidia-smi: exit code 9"),
    ],
)
def test_driver(nvidia_smi, driver, script, found) -> None:
    driver(SOUND)
    nvidia_smi(script)
    assert gpu_checks.nvidia_driver() == Finding(PASS, found)
    driver(SOUND._replace(error=803))
    assert gpu_checks.nvidia_driver() == Finding(
        WARN, f"{found}; the NVIDIA driver does not start (CUDA error 803)", "see what `nvidia-smi` says"
    )


def test_no_driver(driver) -> None:
    driver(None)
    assert gpu_checks.nvidia_driver() == Finding(INFO, "none found", gpu_checks.NOTHING)


def test_a_driver_without_nvidia_smi(monkeypatch, tmp_path, driver) -> None:
    driver(SOUND)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_checks.nvidia_driver() == Finding(PASS, "here; there is no nvidia-smi to say more")


def test_cupy_that_is_installed(monkeypatch) -> None:
    monkeypatch.setattr(gpu, "installed", {"CuPy": "cupy-cuda13x 14.0"}.get)
    assert gpu_checks.cupy() == Finding(PASS, "cupy-cuda13x 14.0")


def test_the_emulator_runs_a_kernel(monkeypatch) -> None:
    assert gpu_checks.emulator().status == PASS
    emulator = get_backend("emulator")
    monkeypatch.setattr(emulator, "add", lambda a, b, out: out.fill(1))
    finding = gpu_checks.emulator()
    assert (finding.status, finding.found) == (FAIL, "[1.0, 2.0, 3.0] + [0.5, -2.0, 4.0] is [1.0, 1.0, 1.0]")
