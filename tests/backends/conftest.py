from collections.abc import Callable, Iterator

import numpy as np
import pytest

from minidl.backends.cpu import convolution, threads


@pytest.fixture(scope="session")
def same_bits() -> Callable[[np.ndarray, np.ndarray], bool]:
    """Whether two arrays have the same shape, dtype and bits."""

    def check(a: np.ndarray, b: np.ndarray) -> bool:
        a, b = np.asarray(a), np.asarray(b)
        return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()

    return check


@pytest.fixture(scope="session", autouse=True)
def threads_are_woken_for_little() -> Iterator[None]:
    """Small arrays are shared out, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "WORTH", 1)
        patch.setattr(convolution, "WORTH_PRODUCTS", 1)
        yield
