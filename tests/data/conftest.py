"""No data set but those that a test makes, or asks for: the real Fashion-MNIST where it is at hand."""

import os
from pathlib import Path

import pytest

from minidl.data import catalogue
from minidl.data.search import find
from minidl.errors import DataError

REPOSITORY = Path(__file__).resolve().parents[2]
DATA_FOLDERS = [folder for folder in (os.environ.get("MINIDL_DATA"), REPOSITORY.parent / "shared" / "data") if folder]


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch):
    """Tests see only the data sets that they make, whatever this machine has."""
    monkeypatch.delenv("MINIDL_DATA", raising=False)
    monkeypatch.setattr(catalogue, "SYSTEM_FOLDERS", {})


@pytest.fixture
def real_fashion_mnist():
    """The folder of the published Fashion-MNIST files."""
    for folder in DATA_FOLDERS:
        if Path(folder).is_dir():
            try:
                return find("fashion-mnist", folder).folder
            except DataError:
                continue
    pytest.skip("no Fashion-MNIST here: name its folder by MINIDL_DATA")
