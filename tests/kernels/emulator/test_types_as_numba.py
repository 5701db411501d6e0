"""Types, against those that Numba's compiler finds for the same source."""

import math
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import cuda, types

from kernels.emulator.lanes import Batch
from kernels.emulator.machine import Machine
from kernels.emulator.program import translate_function
from kernels.emulator.translation import Program

NAMES = {"i": types.int32, "j": types.int64, "u": types.uint32, "v": types.uint64, "b": types.boolean,
         "f": types.float32, "g": types.float64}  # fmt: skip
ARITHMETIC = ["+", "-", "*", "/", "//", "%"]
OF_INTEGERS = ["<<", ">>", "&", "|", "^"]
COMPARISONS = ["<", "<=", "==", "!="]


class WithoutLaunch(Machine):
    """As much of a launch as arithmetic needs."""

    def __init__(self) -> None:
        self.program = Program("function", False, None)

    def fault(self, kind: Any, what: str, **_: Any) -> Any:
        raise ArithmeticError(what)


class Writer:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def number(self, depth: int) -> str:
        kind = self.random.randrange(10)
        if depth == 0 or kind == 0:
            return self.random.choice([*NAMES, "2", "0.5", "True", "w", "w"])
        one = self.number(depth - 1)
        if kind == 1:
            return self.random.choice(
                ["-({})", "abs({})", "float32({})", "int64({})", "uint32({})", "float({})"]
            ).format(one)
        other = self.number(depth - 1)
        if kind == 2:
            return f"min({one}, {other})" if self.random.random() < 0.5 else f"max({one}, {other})"
        if kind == 3:
            return f"({one} if {self.number(0)} {self.random.choice(COMPARISONS)} {self.number(0)} else {other})"
        if kind == 4:
            return self.random.choice(["math.sqrt({})", "math.exp({})", "math.floor({})"]).format(one)
        if kind == 5:
            return f"({self.random.choice('ijuv')} {self.random.choice(OF_INTEGERS)} {self.random.choice('ijuv2')})"
        if kind == 6:
            return f"({self.random.choice('fgiju')} ** {self.random.choice('23fg')})"
        return f"({one} {self.random.choice(ARITHMETIC)} {other})"

    def source(self) -> str:
        lines = [f"def function({', '.join(NAMES)}):", "    w = i"]
        form = self.random.randrange(3)
        if form == 0:
            lines += ["    if j > 3:", f"        w = {self.number(1)}"]
        elif form == 1:
            lines += ["    for k in range(u):", f"        w = {self.number(2)}"]
        else:
            lines += ["    while i < j:", f"        w = {self.number(1)}", "        if u > 3:", "            break",
                      f"        w = {self.number(1)}"]  # fmt: skip
        return "\n".join([*lines, f"    return {self.number(3)}"]) + "\n"


@pytest.mark.parametrize("seed", range(60))
def test_result_has_numbas_type(seed: int, tmp_path: Path) -> None:
    writer = Writer(seed)
    for attempt in range(30):
        path = tmp_path / f"function{attempt}.py"
        path.write_text(writer.source())

        namespace: dict[str, Any] = {"math": math} | {
            name: getattr(types, name) for name in ("float32", "int64", "uint32")
        }
        exec(compile(path.read_text(), str(path), "exec"), namespace)
        function = namespace["function"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                _, expected = cuda.compile_ptx(function, tuple(NAMES.values()), device=True, cc=(9, 0))
            except Exception:  # no type in Numba either, such as float ^ int
                continue
        translated, kind = translate_function(function, list(NAMES.values()))
        assert kind == types.unliteral(expected), path.read_text()
        values = [np.dtype(str(one)).type(k + 2) for k, one in enumerate(NAMES.values())]
        vectors = [np.full(8, value) for value in values]
        lanes = Batch((1, 1, 1), (8, 1, 1), 0, 1).lanes
        try:
            with np.errstate(all="ignore"):
                scalar, vector = (translated(WithoutLaunch(), lanes, *given) for given in (values, vectors))
        except ArithmeticError:  # divides by zero, or shifts too far
            continue
        assert scalar.dtype == vector.dtype == np.dtype(str(kind)), path.read_text()
        np.testing.assert_array_equal(np.broadcast_to(scalar, 8), vector, err_msg=path.read_text())
        return
    pytest.fail("no program with a type")


def test_numpy_has_the_types_names() -> None:
    assert {np.dtype(str(kind)) for kind in NAMES.values() if kind != types.boolean} == {
        np.dtype(name) for name in ("int32", "int64", "uint32", "uint64", "float32", "float64")
    }
