"""Linear layers on the CPU: matrix products by BLAS, cut into fixed tiles so that threads cannot change the bits."""

import numpy as np

from minidl.backends.cpu.device import CpuDevice
from minidl.backends.cpu.threads import BLAS, QUIET

TILE = 64  # rows of the result a product makes
PRODUCTS = 16  # that take as long as a simple pass over an element


class LinearOps(CpuDevice):
    """The linear part of the CPU backend; see `Backend` for the operations."""

    def _product(self, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        """Out = a @ b."""

        def rows(first: int, last: int) -> None:
            with np.errstate(**QUIET):
                for start in range(first, last, TILE):
                    np.dot(a[start : start + TILE], b, out=out[start : start + TILE])

        with BLAS.one_thread():
            self.workers.run(rows, len(out), TILE, elements=out.size * a.shape[1] // PRODUCTS)

    def linear_forward(self, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, y: np.ndarray) -> None:
        self._product(x, w.T, y)
        if bias is not None:
            with np.errstate(**QUIET):
                y += bias

    def linear_backward_input(self, dy: np.ndarray, w: np.ndarray, dx: np.ndarray) -> None:
        self._product(dy, w, dx)

    def linear_backward_weight(self, x: np.ndarray, dy: np.ndarray, dw: np.ndarray) -> None:
        self._product(dy.T, x, dw)
