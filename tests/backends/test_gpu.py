"""What is said about a GPU that cannot be used: what is missing first, and the remedy for this driver."""

import ctypes
import importlib
from importlib import metadata
from typing import Any

import pytest

from minidl.backends import gpu
from minidl.backends.gpu import Driver, Lack

SOUND = Driver((13, 0), ((9, 0),))


class Library:
    """The driver's library, as much of it as is called."""

    def __init__(self, version: int, capabilities: list[tuple[int, int]], error: int = 0) -> None:
        self.version, self.capabilities, self.error = version, capabilities, error

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.error

    def cuDriverGetVersion(self, number: Any) -> int:  # noqa: N802
        number._obj.value = self.version
        return 0

    def cuDeviceGetCount(self, number: Any) -> int:  # noqa: N802
        number._obj.value = len(self.capabilities)
        return 0

    def cuDeviceGetAttribute(self, number: Any, attribute: int, device: int) -> int:  # noqa: N802
        number._obj.value = self.capabilities[device][{75: 0, 76: 1}[attribute]]
        return 0


def test_the_driver_is_asked(monkeypatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library(12080, [(9, 0), (7, 5)]))
    assert gpu.driver() == Driver((12, 8), ((9, 0), (7, 5)))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library(13000, [], error=100))
    assert gpu.driver() == Driver((13, 0), (), 100)


def test_no_driver_and_what_is_no_driver(monkeypatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert gpu.driver() is None
    assert gpu.lack() == Lack("no NVIDIA driver was found on this machine", "")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())  # has none of the functions
    assert gpu.driver() is None


@pytest.mark.parametrize(
    ("found", "what"),
    [
        (SOUND, None),
        (SOUND._replace(error=803), "the NVIDIA driver does not start (CUDA error 803)"),
        (SOUND._replace(capabilities=(), error=100), "the NVIDIA driver finds no GPU"),
        (SOUND._replace(capabilities=()), "the NVIDIA driver finds no GPU"),
        (SOUND._replace(cuda=(11, 8)), "the NVIDIA driver supports CUDA 11.8, and 12.0 is needed"),
        (SOUND._replace(cuda=(12, 0)), None),
        (SOUND._replace(capabilities=((7, 5),)), "the GPU has compute capability 7.5, and 8.0 is needed"),
        (SOUND._replace(capabilities=((8, 0), (7, 5))), None),  # the first is taken
        (SOUND._replace(capabilities=((12, 0),)), None),
    ],
)
def test_what_may_be_wrong_with_the_driver(found: Driver, what: str | None) -> None:
    lack = gpu.driver_lack(found)
    assert (lack and lack.what) == what
    assert lack is None or lack.remedy


@pytest.fixture
def packages(monkeypatch):
    """Makes it seem that these distributions are installed, and that importing these modules fails."""

    def install(versions: dict[str, str], broken: dict[str, Exception] | None = None) -> None:
        def version(name: str) -> str:
            if name not in versions:
                raise metadata.PackageNotFoundError(name)
            return versions[name]

        def import_module(name: str) -> None:
            if broken and name in broken:
                raise broken[name]

        monkeypatch.setattr(metadata, "version", version)
        monkeypatch.setattr(importlib, "import_module", import_module)

    return install


@pytest.mark.parametrize(("cuda", "extra"), [((12, 0), "cuda12"), ((12, 9), "cuda12"), ((13, 0), "cuda13")])
def test_a_missing_package_gets_the_extra_for_this_driver(monkeypatch, packages, cuda, extra: str) -> None:
    monkeypatch.setattr(gpu, "driver", lambda: SOUND._replace(cuda=cuda))
    command = f'run `python -m pip install -e ".[{extra}]"`'
    packages({})
    assert gpu.lack() == Lack("CuPy is not installed", command)
    packages({"cupy": "14.0"})
    assert gpu.lack() == Lack("numba-cuda is not installed", command)
    assert str(gpu.lack()) == f"numba-cuda is not installed: {command}"
    packages({"cupy-cuda13x": "14.0", "numba-cuda": "0.30"})
    assert gpu.lack() is None


def test_a_package_that_cannot_be_imported_is_quoted(monkeypatch, packages) -> None:
    monkeypatch.setattr(gpu, "driver", lambda: SOUND)
    versions = {"cupy-cuda12x": "14.0", "numba-cuda": "0.30"}
    packages(versions, {"cupy": ImportError("\nlibcudart.so.12:\n not found")})
    assert gpu.lack().what == "CuPy cannot be imported (libcudart.so.12: not found)"
    packages(versions, {"cuda.core": RuntimeError("no driver")})
    assert gpu.lack().what == "numba-cuda cannot be imported (no driver)"


def test_packages_have_the_names_of_the_extras() -> None:
    import tomllib
    from pathlib import Path

    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    names = {name for names in gpu.DISTRIBUTIONS.values() for name in names}
    for extra in ("cuda12", "cuda13"):
        assert sum(any(entry.startswith(name) for name in names) for entry in extras[extra]) == 2
