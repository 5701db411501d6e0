import pytest
from click.testing import CliRunner

from minidl.backends.compilation import Compilation
from minidl.cli import console, main
from minidl.data import catalogue


@pytest.fixture(autouse=True)
def no_data_sets_but_the_tests_own(monkeypatch):
    """Whatever this machine has."""
    monkeypatch.delenv("MINIDL_DATA", raising=False)
    monkeypatch.setattr(catalogue, "SYSTEM_FOLDERS", {})


@pytest.fixture(autouse=True)
def nothing_is_said_of_compiling(monkeypatch) -> Compilation:
    """Whatever this machine's cache has. What runs say of this one is tested with it."""
    compilation = Compilation()
    monkeypatch.setattr(console, "COMPILATION", compilation)
    return compilation


@pytest.fixture(scope="session")
def minidl():
    """`minidl("predict", "x.png")` runs the command line; the result has exit_code, stdout and stderr."""

    def invoke(*arguments):
        return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="minidl")

    return invoke


@pytest.fixture(scope="session")
def runs(minidl, tmp_path_factory):
    """A folder with one run: five steps on digits, too few for a best checkpoint."""
    out = tmp_path_factory.mktemp("runs")
    result = minidl("train", "--max-steps", 5, "--out", out, "--quiet")
    assert result.exit_code == 0, result.output
    return out
