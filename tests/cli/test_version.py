import json
import re

from minidl.version import __version__


def test_version(minidl) -> None:
    result = minidl("version")
    assert result.exit_code == 0
    here = json.loads(minidl("version", "--json").stdout)
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["minidl", __version__]
    assert lines[1].split() == ["python", here["python"]]
    assert dict(line.split() for line in lines) == here["versions"] | {"python": here["python"]}
    assert len({re.match(r"\S+ +", line).end() for line in lines}) == 1  # versions stand below each other


def test_the_option(minidl) -> None:
    result = minidl("--version")
    assert (result.exit_code, result.stdout) == (0, f"minidl {__version__}\n")


def test_json_has_the_versions_that_matter(minidl) -> None:
    result = minidl("version", "--json")
    assert result.exit_code == 0
    here = json.loads(result.stdout)
    assert here["version"] == here["versions"]["minidl"] == __version__
    assert {"numpy", "numba", "safetensors"} <= set(here["versions"])
    assert here["python"].startswith("3.")
    assert here["cores"] >= 1
