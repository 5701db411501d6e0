"""What tests of kernels share: a device without a GPU, arrays that start where a test wants, and what was launched."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kernels.errors import TechniqueError
from kernels.launch import Kernel
from kernels.run_emulated import EmulatorRunner

RUN = EmulatorRunner()


def placed(values: Any, offset: int = 0, dtype: Any = np.float32) -> np.ndarray:
    """A copy that starts `offset` elements into its memory, which NumPy aligns to 16 bytes."""
    values = np.asarray(values, dtype)
    array = np.empty(values.size + offset, values.dtype)[offset:].reshape(values.shape)
    array[...] = values
    return array


def blank(shape: tuple[int, ...], offset: int = 0, dtype: Any = np.float32) -> np.ndarray:
    """Memory for a result, full of 77: what is not written shows."""
    return placed(np.full(shape, 77), offset, dtype)


def number(value: Any, dtype: Any = np.uint32) -> np.ndarray:
    """A number in device memory."""
    return RUN.upload(np.array(value, dtype))


class Recorder:
    """A runner that runs nothing and notes what it was asked to."""

    name = "recorder"
    chip = None  # of the GPU for which techniques are chosen

    def __init__(self) -> None:
        self.kernels: list[Kernel] = []

    def __call__(self, kernel: Kernel, *values: Any) -> None:
        kernel.check(values, np.ndarray)
        kernel.grid(values)
        self.kernels.append(kernel)

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
        return np.empty(shape, dtype)

    def barrier(self) -> np.ndarray:
        return np.zeros(1, np.uint32)


def run_by(technique: str | None, fits: bool, host: Callable[..., None], *arguments: Any) -> None:
    """Call a host function by a technique; where vectors or tiles do not fit, see it refuse, and let it choose."""
    if technique in ("vector", "tiled") and not fits:
        with pytest.raises(TechniqueError, match=f"^{host.__name__} cannot be computed by technique '{technique}'"):
            host(*arguments, technique=technique)
        technique = None
    host(*arguments, technique=technique)


def figures(host: Callable[..., None], *arguments: Any, **options: Any) -> Any:
    """What the emulator counts of a host function's one launch."""
    run = EmulatorRunner(counts=True)
    host(run, *arguments, **options)
    (one,) = run.launched
    return one.report.counts.total


def launched(host: Callable[..., None], *arguments: Any, **options: Any) -> list[str]:
    """The names of the kernels that a host function would launch."""
    recorder = Recorder()
    host(recorder, *arguments, **options)
    return [kernel.name for kernel in recorder.kernels]
