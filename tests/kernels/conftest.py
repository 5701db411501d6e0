from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="session")
def torch() -> ModuleType:
    reason = 'PyTorch, the second opinion, is not installed: pip install -e ".[oracle]"'
    return pytest.importorskip("torch", reason=reason)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20150211)
