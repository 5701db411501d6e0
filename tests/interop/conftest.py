"""What tests of interoperability share: the other programs, and models whose every number matters."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from minidl.nn import Module


def importable(name: str) -> ModuleType:
    return pytest.importorskip(
        name, reason=f'{name}, the other side, is not installed: pip install -e ".[test,oracle]"'
    )


@pytest.fixture(scope="session")
def torch() -> ModuleType:
    return importable("torch")


@pytest.fixture(scope="session")
def onnx() -> ModuleType:
    return importable("onnx")


@pytest.fixture(scope="session")
def onnxruntime() -> ModuleType:
    return importable("onnxruntime")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20170427)


@pytest.fixture
def lived_in(rng: np.random.Generator) -> Callable[[Module], Module]:
    """A model whose running statistics, gammas, betas and factors are not those that models begin with."""

    def change(model: Module) -> Module:
        state = model.state_dict()
        for name, value in state.items():
            last = name.rpartition(".")[2]
            if last == "running_var":
                state[name] = rng.uniform(0.5, 2, value.shape)
            elif last == "num_batches_tracked":
                state[name] = np.array(7)
            elif value.ndim < 2:  # gamma, beta, biases, running means, factors
                state[name] = value + rng.uniform(-0.3, 0.3, value.shape)
        model.load_state_dict(state)
        return model

    return change


@pytest.fixture(scope="session")
def runtime(onnx: ModuleType, onnxruntime: ModuleType) -> Callable[[Any, np.ndarray], np.ndarray]:
    """Outputs of an onnx.ModelProto by onnxruntime, for inputs in minidl's order; images come back in it, too."""

    def run(proto: Any, x: np.ndarray) -> np.ndarray:
        session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        given = np.ascontiguousarray(np.moveaxis(x, -1, 1), np.float32)
        (y,) = session.run(None, {session.get_inputs()[0].name: given})
        return np.moveaxis(y, 1, -1)

    return run


@pytest.fixture(scope="session")
def as_exact() -> Callable[[np.ndarray, np.ndarray, np.ndarray], None]:
    """Fail unless `other`, computed in float32, is as near to `exact` as our own float32 answer is, but for a factor.

    What float32 costs through a network is what it costs an independent implementation. Eight times as much is allowed:
    both sum in orders of their own. The floor is the rounding of the result's largest element.
    """

    def check(other: np.ndarray, ours: np.ndarray, exact: np.ndarray) -> None:
        assert other.shape == ours.shape == exact.shape
        assert np.isfinite(other).all()
        cost = np.abs(ours - exact).max() + 2.0**-24 * np.abs(exact).max()
        assert np.abs(other - exact).max() <= 8 * cost

    return check
