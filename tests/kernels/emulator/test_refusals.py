"""What the emulator does not do it refuses by name, with the line."""

from typing import Any

import numpy as np
import pytest
from numba import cuda, float32, int32, int64

from kernels.emulator import UnsupportedFeature, emulate
from kernels.launch import Floats, Int64


def lambda_kernel() -> Any:
    return lambda y: None


def with_list(y):
    v = [1, 2]
    y[0] = v[0]


def with_slice(y):
    y[0:2] = 1


def with_print(y):
    print(y[0])


def with_try(y):
    try:  # noqa: SIM105
        y[0] = 1
    except ValueError:
        pass


def with_comprehension(y):
    y[0] = sum(i for i in range(3))


def with_unknown_call(y):
    y[0] = np.linalg.norm(y)


def with_unset_variable(y):
    y[0] = v  # noqa: F821
    v = 1  # noqa: F841


def with_array_choice(y):
    a = cuda.local.array(2, int64)
    b = cuda.local.array(2, int64)
    c = a if y[0] > 0 else b
    y[0] = c[0]


def with_variable_shape(y):
    a = cuda.local.array(y[0], int64)
    y[0] = a[0]


def with_else_of_loop(y):
    for i in range(3):
        y[0] = i
    else:
        y[0] = 5


def with_recursion(y):
    with_recursion(y)


def with_value(y):
    return 3


def with_atomic_on_pointer(y: Floats):
    cuda.atomic.add(y, 0, float32(1))


def with_float_index(y):
    y[y[0] / 2] = 1


def with_minimum_of_a_boolean(y):
    y[0] = min(int32(y[0]), y[0] > 0)


def with_mixed_and(y):
    y[0] = y[0] and 3


@pytest.mark.parametrize(
    ("kernel", "line", "what"),
    [
        (with_list, 1, "List"),
        (with_slice, 1, "slice"),
        (with_print, 1, "print"),
        (with_try, 1, "Try"),
        (with_comprehension, 1, "GeneratorExp"),
        (with_unknown_call, 1, "norm"),
        (with_unset_variable, 1, "the variable v"),
        (with_array_choice, 3, "arrays"),
        (with_variable_shape, 1, "no constant"),
        (with_else_of_loop, 1, "else"),
        (with_recursion, 1, "calling itself"),
        (with_value, 0, "returns a value"),
        (with_atomic_on_pointer, 1, "atomic.add"),
        (with_float_index, 1, "float64"),
        (with_minimum_of_a_boolean, 1, "min of"),
        (with_mixed_and, 1, "and/or"),
    ],
)
def test_what_is_not_supported_is_refused_by_name_with_its_line(kernel: Any, line: int, what: str) -> None:
    dtype = np.float32 if kernel is with_atomic_on_pointer else np.int64
    with pytest.raises(UnsupportedFeature, match=what) as caught:
        emulate(kernel, 1, 1, np.zeros(4, dtype))
    assert caught.value.line == kernel.__code__.co_firstlineno + line
    assert caught.value.kernel == kernel.__name__
    assert caught.value.file == __file__


def test_a_thread_that_waits_for_another_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(y):
        while cuda.atomic.cas(y, 0, 0, 1) != 0:
            pass
        cuda.atomic.exch(y, 0, 0)

    monkeypatch.setattr("kernels.emulator.loops.LONGEST", 1000)
    with pytest.raises(UnsupportedFeature, match="wait") as caught:
        emulate(kernel, 1, 2, np.zeros(1, np.int64))
    assert caught.value.line == kernel.__code__.co_firstlineno + 1


def test_bad_arguments_are_refused_before_anything_runs() -> None:
    def kernel(y: Floats, n: Int64):
        y[0] = 1

    y = np.zeros(4, np.float32)
    with pytest.raises(TypeError, match="1 arguments were given, expected y, n"):
        emulate(kernel, 1, 1, y)
    with pytest.raises(TypeError, match="float64"):
        emulate(kernel, 1, 1, y.astype(np.float64), 3)
    with pytest.raises(TypeError, match="strides"):
        emulate(kernel, 1, 1, y[::2], 3)
    with pytest.raises(TypeError, match="expected an array"):
        emulate(kernel, 1, 1, 3, 3)
    with pytest.raises(ValueError, match="1024"):
        emulate(kernel, 1, 2048, y, 3)
    with pytest.raises(ValueError, match="at least 1"):
        emulate(kernel, 0, 1, y, 3)
    for grid in ("2", 2.0, (1, "2"), {1}):
        with pytest.raises(TypeError, match="expected a number or a tuple of numbers"):
            emulate(kernel, grid, 1, y, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no array parameter"):
        emulate(kernel, 1, 1, y, 3, outputs=["z"])
    with pytest.raises(TypeError, match="no kernel"):
        emulate("kernel", 1, 1)  # type: ignore[arg-type]
    assert not y.any()
