"""What tests of bench share: PyTorch, and lists so small that a row takes milliseconds."""

from types import ModuleType

import pytest

from minidl.backends import get_backend
from minidl.lab.bench import Shape
from minidl.lab.bench.shapes import shape


@pytest.fixture(scope="session")
def torch() -> ModuleType:
    return pytest.importorskip("torch", reason='PyTorch is not installed: pip install -e ".[oracle]"')


@pytest.fixture(scope="session")
def cpu():
    return get_backend("cpu", 1)


@pytest.fixture(scope="session")
def tiny() -> list[Shape]:
    """A shape of each family, none of them round."""
    return [
        shape("conv2d", n=2, h=9, w=7, c_in=3, c_out=5, kernel=3, stride=2, padding=1),
        shape("batchnorm", n=3, h=5, w=4, c=6),
        shape("relu", n=3, h=5, w=4, c=6),
        shape("max_pool2d", n=2, h=7, w=9, c=3, kernel=3, stride=2, padding=1),
        shape("global_avg_pool2d", n=2, h=3, w=5, c=4),
        shape("linear", n=5, c_in=7, c_out=3),
        shape("cross_entropy", n=5, classes=4),
        shape("optimizer", model="small-cnn"),
    ]
