import json

from minidl.version import __version__


def test_version(minidl) -> None:
    result = minidl("version")
    assert result.exit_code == 0
    assert result.stdout == f"minidl {__version__}\n"


def test_json_has_the_versions_that_matter(minidl) -> None:
    result = minidl("version", "--json")
    assert result.exit_code == 0
    here = json.loads(result.stdout)
    assert here["version"] == here["versions"]["minidl"] == __version__
    assert {"numpy", "numba", "safetensors"} <= set(here["versions"])
    assert here["python"].startswith("3.")
    assert here["cores"] >= 1
