"""Random kernels with branches, loops, break, continue, return, against Python running one thread after the other."""

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numba import cuda

from kernels.emulator import emulate

THREADS, BLOCKS, SIZE = 40, 3, 8
VARIABLES = ("a", "b", "c", "d")


class Writer:
    """Writes a random kernel of int64 variables; every loop ends."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.lines: list[str] = []
        self.loops = 0

    def atom(self) -> str:
        kind = self.random.randrange(6)
        if kind == 0:
            return str(self.random.randrange(-4, 9))
        if kind == 1:
            return "x[t]"
        if kind == 2:
            return f"x[({self.random.choice(VARIABLES)} + t) % {SIZE}]"
        return self.random.choice(VARIABLES)

    def number(self, depth: int = 2) -> str:
        kind = self.random.randrange(8)
        if depth == 0 or kind < 3:
            return self.atom()
        one, other = self.number(depth - 1), self.number(depth - 1)
        if kind == 3:
            return f"({one} if {self.truth(depth - 1)} else {other})"
        if kind == 4:
            return f"pick({one}, {other})"
        if kind == 5:
            divisor = self.random.choice(["3", "4", "7", "(1 + abs(b) % 5)", "-3"])
            return f"({one} {self.random.choice(['//', '%'])} {divisor})"
        return f"({one} {self.random.choice(['+', '-', '*', '&', '^'])} {other}) % 1000"

    def truth(self, depth: int = 1) -> str:
        kind = self.random.randrange(5)
        compare = self.random.choice(["<", "<=", ">", "==", "!="])
        if depth == 0 or kind < 3:
            return f"{self.number(1)} {compare} {self.number(1)}"
        if kind == 3:
            return f"({self.truth(depth - 1)} {self.random.choice(['and', 'or'])} {self.truth(depth - 1)})"
        return self.random.choice([f"not {self.truth(depth - 1)}", f"0 < {self.number(0)} <= {self.number(0)}"])

    def block(self, indent: int, depth: int, in_loop: bool) -> None:
        for _ in range(self.random.randrange(1, 4)):
            self.statement(indent, depth, in_loop)

    def add(self, indent: int, text: str) -> None:
        self.lines.append("    " * indent + text)

    def statement(self, indent: int, depth: int, in_loop: bool) -> None:
        kind = self.random.randrange(12) if depth else self.random.randrange(4)
        name = self.random.choice(VARIABLES)
        if kind < 2:
            self.add(indent, f"{name} = {self.number()}")
        elif kind == 2:
            # Two variables: up to 3.11.2 CPython itself stores `a, a = 1, 2` in the wrong order.
            other = self.random.choice([one for one in VARIABLES if one != name])
            self.add(indent, f"{name}, {other} = {self.number(1)}, {self.number(1)}")
        elif kind == 3:
            self.add(indent, f"m[{name} % {SIZE}] += {self.number(1)} % 50")
        elif kind < 8:
            self.add(indent, f"if {self.truth()}:")
            self.block(indent + 1, depth - 1, in_loop)
            leave = self.random.randrange(8)
            if leave == 0:
                self.add(indent + 1, "return")
            elif leave < 4 and in_loop:
                self.add(indent + 1, self.random.choice(["break", "continue"]))
            if self.random.random() < 0.5:
                self.add(indent, "else:")
                self.block(indent + 1, depth - 1, in_loop)
        elif kind < 10:
            self.loops += 1
            trips = self.random.choice(["3", "t % 4", "abs(a) % 4", "1, 9, 3", "t % 3, 6", "5, t % 5, -1"])
            self.add(indent, f"for i{self.loops} in range({trips}):")
            self.add(indent + 1, f"a = a + i{self.loops}")
            self.block(indent + 1, depth - 1, True)
        else:
            self.loops += 1
            counter = f"w{self.loops}"
            self.add(indent, f"{counter} = 0")
            self.add(indent, f"while {counter} < {self.random.choice(['3', '(t + b) % 5'])} and {self.truth(0)}:")
            self.add(indent + 1, f"{counter} += 1")
            self.block(indent + 1, depth - 1, True)

    def source(self) -> str:
        self.lines = ["def pick(u, v):", "    if u % 2 == 0:", "        return v + 1", "    for k in range(3):",
                      "        if k == abs(u) % 4:", "            return k", "    return u - v", "", ""]  # fmt: skip
        self.add(0, "def program(x, y):")
        self.add(1, "t = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x")
        self.add(1, f"m = cuda.local.array({SIZE}, int64)")
        self.add(1, f"for k in range({SIZE}):")
        self.add(2, "m[k] = k")
        for k, name in enumerate(VARIABLES):
            self.add(1, f"{name} = {['t', 'x[t]', '3', 't * 7 % 11'][k]}")
        self.add(1, "y[t, 0] = 1")
        for _ in range(3):
            self.block(1, 3, False)
        for k, name in enumerate(VARIABLES):
            self.add(1, f"y[t, {k + 1}] = {name}")
        self.add(1, f"for k in range({SIZE}):")
        self.add(2, "y[t, 5 + k] = m[k]")
        return "\n".join(self.lines) + "\n"


def one_by_one(namespace: dict[str, Any], x: Any, y: Any) -> None:
    fake = SimpleNamespace(
        blockDim=SimpleNamespace(x=THREADS), local=SimpleNamespace(array=lambda size, _: [None] * size)
    )
    for t in range(THREADS * BLOCKS):
        fake.blockIdx, fake.threadIdx = SimpleNamespace(x=t // THREADS), SimpleNamespace(x=t % THREADS)
        namespace["cuda"] = fake
        namespace["program"](x, y)


@pytest.mark.parametrize("seed", range(60))
def test_random_program(seed: int, tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(Writer(seed).source())
    namespace: dict[str, Any] = {"cuda": cuda, "int64": np.int64}
    exec(compile(path.read_text(), str(path), "exec"), namespace)
    x = np.random.default_rng(seed).integers(-5, 20, THREADS * BLOCKS)
    expected, found = np.zeros((2, THREADS * BLOCKS, 5 + SIZE), np.int64)
    emulate(namespace["program"], BLOCKS, THREADS, x, found)
    one_by_one(namespace, x.tolist(), expected)
    np.testing.assert_array_equal(found, expected)
