from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="session")
def torch() -> ModuleType:
    return pytest.importorskip("torch", reason="PyTorch, the second opinion, is not installed")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20150211)
