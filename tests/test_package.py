"""The house: what may import what, what a module is called, what is shipped, and what an import costs."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("kernels", "minidl")
FILES = sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))
SCRIPTS = sorted((REPOSITORY / "scripts").glob("*.py"))
VAGUE = {"utils", "util", "common", "helpers", "helper", "misc"}


def name_of(path: Path) -> str:
    """The module's dotted name."""
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports anywhere, `from package import name` as package.name too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def python(*arguments: str, path: list[Path], cwd: Path) -> subprocess.CompletedProcess:
    """A fresh interpreter with `path` in front of its own."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


# Imports point down only


def test_the_files_are_found() -> None:
    assert {"kernels", "minidl", "minidl.cli", "minidl.training.trainer"} <= {name_of(path) for path in FILES}
    assert "train_small_cnn.py" in {path.name for path in SCRIPTS}


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [("kernels", ("minidl", "scripts", "tests")), ("minidl", ("scripts", "tests", "pytest", "torch", "sklearn"))],
)
def test_a_package_imports_nothing_from_above(package, forbidden) -> None:
    wrong = [
        f"{name_of(path)} imports {name}"
        for path in FILES
        if is_within(name_of(path), package)
        for name in imported(path)
        if any(is_within(name, above) for above in forbidden)
    ]
    assert not wrong


def test_only_the_entry_point_imports_the_command_line() -> None:
    below = [path for path in FILES if not is_within(name_of(path), "minidl.cli") and path.name != "__main__.py"]
    assert not [name_of(path) for path in below if any(is_within(name, "minidl.cli") for name in imported(path))]


def test_what_is_imported_is_declared() -> None:
    """Each third-party package is a dependency, by its name or by the name of what it imports as."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [name for extra in project["optional-dependencies"].values() for name in extra]
    declared = {name.partition(">")[0].partition("[")[0] for name in [*project["dependencies"], *extras]}
    distribution = {"PIL": "pillow", "cupy": "cupy-cuda13x", "sklearn": "scikit-learn"}
    distribution |= {"llvmlite": "numba", "cuda": "numba-cuda"}  # each comes with the other
    tops = {name.partition(".")[0] for path in [*FILES, *SCRIPTS] for name in imported(path)}
    foreign = tops - set(sys.stdlib_module_names) - set(PACKAGES)
    assert {name for name in foreign if distribution.get(name, name) not in declared} == set()


# Names and words


@pytest.mark.parametrize("folder", ["kernels", "minidl", "scripts", "tests"])
def test_no_module_has_a_name_that_says_nothing(folder) -> None:
    assert not [path for path in (REPOSITORY / folder).rglob("*") if path.stem.lower().strip("_") in VAGUE]


@pytest.mark.parametrize("path", [*FILES, *SCRIPTS], ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_file_says_what_it_is(path) -> None:
    words = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert words
    assert words.strip().splitlines()[0].endswith((".", "?", ":"))


# What an import does


def test_another_package_named_kernels_is_told_in_one_line_with_the_remedy(tmp_path) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("def get_kernel(name): ...\n")
    done = python("-c", "import minidl", path=[tmp_path, REPOSITORY], cwd=tmp_path)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: another package named 'kernels' is installed (")
    assert str(tmp_path / "kernels" / "__init__.py") in last
    assert "`python -m pip uninstall kernels`" in last


def test_a_folder_named_kernels_is_told_apart_from_a_package(tmp_path) -> None:
    """As under an editable installation, whose own finder comes after all folders on the path."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "minidl").mkdir()
    shutil.copy(REPOSITORY / "minidl" / "__init__.py", tmp_path / "minidl")
    done = python("-c", "import minidl", path=[tmp_path], cwd=tmp_path)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: the folder {tmp_path / 'kernels'} is taken for the package 'kernels' and ")
    assert "None" not in last


def test_pytest_alone_finds_the_packages(tmp_path) -> None:
    """Without `python -m`, which puts the working folder on the path; -P is that."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "PYTEST"))}
    chosen = ["tests/data/test_digits.py", "tests/kernels/test_linear_reference.py"]
    command = [sys.executable, "-P", "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *chosen]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("arguments", ["--help", "train --help", "eval --help", "train --no-such-option", ""])
def test_help_waits_for_no_compiler_and_no_plots(arguments, tmp_path) -> None:
    program = (
        "import atexit, sys\n"
        "heavy = ('numba', 'llvmlite', 'matplotlib', 'cupy')\n"
        "atexit.register(lambda: print('imported:', *(name for name in heavy if name in sys.modules)))\n"
        "from minidl.cli import main\n"
        "main(prog_name='minidl')\n"
    )
    done = python("-c", program, *arguments.split(), path=[REPOSITORY], cwd=tmp_path)
    assert "Usage: minidl" in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].split() == ["imported:"]


def test_python_m_minidl_names_every_command(tmp_path) -> None:
    done = python("-m", "minidl", "--help", path=[REPOSITORY], cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    listed = [line.split()[0] for line in done.stdout.partition("Commands:\n")[2].splitlines() if line.startswith("  ")]
    assert {"train", "eval", "predict", "data", "doctor", "version"} <= set(listed)


def test_importing_minidl_writes_nothing(tmp_path) -> None:
    done = python("-c", "import minidl, minidl.training, minidl.cli", path=[REPOSITORY], cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


# What is shipped


def test_the_digits_and_their_description_are_shipped(monkeypatch) -> None:
    """As setuptools itself reads pyproject.toml."""
    setuptools = pytest.importorskip("setuptools", reason="setuptools is not installed")
    tool = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    monkeypatch.chdir(REPOSITORY)
    packages = setuptools.find_packages(include=tool["packages"]["find"]["include"])
    source = {name_of(path.parent / "__init__.py") for path in FILES}
    assert set(packages) == source
    distribution = setuptools.Distribution({"packages": packages, "package_data": tool["package-data"]})
    build = distribution.get_command_obj("build_py")
    build.ensure_finalized()
    build.manifest_files = {}  # files that a version control system would add
    data = {Path(name).name for name in build.find_data_files("minidl.data", str(Path("minidl", "data")))}
    assert {"digits.npz", "README.md"} <= data


def test_the_version_is_one(tmp_path) -> None:
    program = "import minidl, minidl.version; print(minidl.__version__, minidl.version.__version__)"
    first, second = python("-c", program, path=[REPOSITORY], cwd=tmp_path).stdout.split()
    assert first == second
