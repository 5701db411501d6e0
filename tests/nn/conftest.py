"""What the layer tests share: PyTorch in float64 as the second opinion, and bounds on rounding.

A layer and its PyTorch twin see the same numbers; arrays are channels last here and channels first there. The twin
computes in float64, so on the float32 backend the whole difference is the layer's, and on the float64 backend both
round: `unit` is the sum of the two unit roundoffs. A sum of t products, in any order and with any grouping, is off by
at most t * unit * (the sum of the products' absolute values) to first order (Higham, "Accuracy and Stability of
Numerical Algorithms", 2nd edition, section 3.1).
"""

import copy
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest

from minidl.backends import Backend, get_backend
from minidl.nn import Module

UNIT = {"cpu": 2.0**-24 + 2.0**-53, "reference": 2.0**-52}


class Pass(NamedTuple):
    """One forward and one backward pass, in PyTorch's layouts except for y and dx, which are channels last."""

    y: np.ndarray
    dx: np.ndarray
    grads: dict[str, np.ndarray]
    state: dict[str, np.ndarray]


class Oracle:
    """PyTorch on channels-last arrays."""

    def __init__(self, torch: ModuleType) -> None:
        self.torch = torch

    def tensor(self, array: np.ndarray) -> Any:
        """Channels second, contiguous, float64 unless it holds integers."""
        if array.ndim > 2:
            array = np.moveaxis(array, -1, 1)
        tensor = self.torch.from_numpy(np.array(array, order="C"))
        return tensor.double() if tensor.is_floating_point() else tensor

    def numpy(self, tensor: Any) -> np.ndarray:
        """Channels last again; a tensor of two axes or fewer as it is."""
        array = tensor.detach().numpy()
        return np.array(np.moveaxis(array, 1, -1) if array.ndim > 2 else array, order="C")

    def load(self, twin: Any, layer: Module) -> Any:
        """`twin` in float64 with the layer's state, by name; PyTorch refuses names or shapes that are not its own."""
        twin = twin.double()
        state = {name: self.torch.from_numpy(np.array(value)) for name, value in layer.state_dict().items()}
        twin.load_state_dict(state, strict=True)
        return twin

    def run(self, twin: Any, x: np.ndarray, dy: np.ndarray) -> Pass:
        inputs = self.tensor(x).requires_grad_()
        y = twin(inputs)
        twin.zero_grad()
        y.backward(self.tensor(dy))
        return Pass(
            self.numpy(y),
            self.numpy(inputs.grad),
            {name: p.grad.numpy().copy() for name, p in twin.named_parameters()},
            {name: value.numpy().copy() for name, value in twin.state_dict().items()},
        )

    def absolute(self, twin: Any, x: np.ndarray, dy: np.ndarray) -> Pass:
        """For a linear `twin`: the sums of the absolute values of the terms that each result is a sum of."""
        twin = copy.deepcopy(twin)
        with self.torch.no_grad():
            for parameter in twin.parameters():
                parameter.abs_()
        return self.run(twin, np.abs(x), np.abs(dy))


@pytest.fixture(scope="session")
def torch() -> ModuleType:
    reason = 'PyTorch, the second opinion, is not installed: pip install -e ".[oracle]"'
    return pytest.importorskip("torch", reason=reason)


@pytest.fixture(scope="session")
def oracle(torch: ModuleType) -> Oracle:
    return Oracle(torch)


@pytest.fixture(params=["reference", "cpu"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return get_backend(request.param)


@pytest.fixture
def unit(backend: Backend) -> float:
    return UNIT[backend.name]


@pytest.fixture
def cpu() -> Backend:
    return get_backend("cpu")


@pytest.fixture
def reference() -> Backend:
    return get_backend("reference")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20150211)


@pytest.fixture
def normal(rng: np.random.Generator, backend: Backend) -> Callable[..., np.ndarray]:
    """Float32 values, in the backend's dtype: what one backend or PyTorch is given, all of them can hold."""
    return lambda *shape: rng.standard_normal(shape).astype(np.float32).astype(backend.dtype)


@pytest.fixture(scope="session")
def passes() -> Callable[[Module, np.ndarray, np.ndarray], Pass]:
    """Forward and backward of a layer."""

    def run(layer: Module, x: np.ndarray, dy: np.ndarray) -> Pass:
        y = layer.forward(x).copy()
        dx = layer.backward(dy).copy()
        grads = {}
        for name, parameter in layer.named_parameters():
            axes = parameter.axes or range(parameter.grad.ndim)
            grads[name] = layer.backend.numpy(parameter.grad).transpose(axes)
        return Pass(y, dx, grads, layer.state_dict())

    return run


@pytest.fixture(scope="session")
def within() -> Callable[..., None]:
    """Fail unless each element of `actual` is within its `bound` of `expected`; NaN only where NaN is expected."""

    def check(actual: np.ndarray, expected: np.ndarray, bound: Any, what: str = "result") -> None:
        __tracebackhide__ = True
        actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
        assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
        bound = np.broadcast_to(np.asarray(bound, np.float64), expected.shape)
        same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
        good = same | (np.abs(actual - expected) <= bound)
        if not good.all():
            ratio = np.where(good, 0, np.abs(actual - expected) / bound)
            worst = np.unravel_index(np.nanargmax(np.nan_to_num(ratio, nan=np.inf)), ratio.shape)
            pytest.fail(
                f"{what}[{', '.join(map(str, worst))}]: expected {expected[worst]:.9g}, got {actual[worst]:.9g}, "
                f"{ratio[worst]:.3g} times the bound {bound[worst]:.3g}; {(~good).sum()} of {good.size} are off"
            )

    return check


@pytest.fixture(scope="session")
def same_bits() -> Callable[[np.ndarray, np.ndarray], bool]:
    """Whether two arrays have the same shape, dtype and bits (-0.0 is not 0.0, a NaN equals itself)."""

    def check(a: np.ndarray, b: np.ndarray) -> bool:
        a, b = np.asarray(a), np.asarray(b)
        return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()

    return check
