"""Bugs put into the kernels for tensor cores: in stages, layouts, rounding and borders; `verify` must find each."""

from pathlib import Path

import pytest
from kernel_bugs import Bug
from mutants import altered, emulator_with

from minidl.lab.verify import plan, verify

TILES, CONV, MATMUL = "kernels/tensor_tiles.py", "kernels/conv/tensor_core.py", "kernels/matmul_tensor_core.py"
TECHNIQUE = "tensor_core"
DEEP, WIDE = "ordinary/9x640x12", "ordinary/5x12x8"

BUGS = (
    Bug("stage-overwritten-while-others-multiply", "R25: HeCBench#263", TILES,
        "            cuda.syncthreads()  # the slab", "            # the slab",
        "linear_forward", TECHNIQUE, DEEP, "DataRace"),
    Bug("slab-multiplied-before-it-arrives", "R25: HeCBench#263", TILES,
        "cp_async_wait(stages - 2)", "cp_async_wait(stages - 1)",
        "linear_forward", TECHNIQUE, DEEP, "UninitialisedRead"),
    Bug("next-slab-into-the-stage-in-use", "NVIDIA/cutlass#876", TILES,
        "            free = stage\n", "            free = uint32(stage + 1 if stage + 1 < stages else 0)\n",
        "linear_forward", TECHNIQUE, DEEP, "UninitialisedRead"),
    Bug("swizzled-on-one-side", "R14: a vector's lanes confused", TILES,
        "((2 * k + half) ^ lane % 8) * 16", "(2 * k + half) * 16",
        "linear_forward", TECHNIQUE, DEEP, "y"),
    Bug("factors-cut-off", "NVIDIA/cutlass: rounding of tf32", TILES,
        "to_tf32(four[part])", "four[part]",
        "linear_forward", TECHNIQUE, DEEP, "y"),
    Bug("slab-beyond-the-depth", "R16: onnxruntime PR15054", TILES,
        "            there = step < last\n", "            there = True\n",
        "linear_forward", TECHNIQUE, WIDE, "OutOfBounds"),
    Bug("bias-in-every-slice", "NVIDIA/TensorRT-LLM PR12686", MATMUL,
        "        if with_bias and part == 0:\n", "        if with_bias:\n",
        "linear_forward", TECHNIQUE, "ordinary/9x640x12/bias", "y"),
    Bug("last-line-taken-for-none", "pytorch/glow#2273", CONV,
        "uint32(line_u + step_u) < h and", "uint32(line_u + step_u) < h - 1 and",
        "conv2d_backward_weight", TECHNIQUE, "ordinary/x2x5x7x4*", "dw"),
    Bug("zero-times-infinity-in-the-padding", "R17: pytorch#39044", CONV,
        "if exists and dx[place] != dx[place]:\n", "if False:\n",
        "conv2d_backward_input", TECHNIQUE, "w-inf/x1x11*", "dx"),
)  # fmt: skip


@pytest.mark.parametrize("bug", [None, *BUGS], ids=lambda bug: bug.name if bug else "none")
def test_a_bug_is_caught_and_nothing_else(bug: Bug | None, tmp_path: Path) -> None:
    source = {bug.file: altered(bug.file, bug.old, bug.new, bug.times)} if bug else {}
    with emulator_with(source, tmp_path) as backend:
        operation, cases = (bug.operation, bug.cases) if bug else ("linear_forward", DEEP)
        tasks = [task for task in plan(backend, operation, cases) if task.technique == TECHNIQUE]
        assert tasks
        rows = verify(backend, tasks, processes=1)
        faults = {type(fault).__name__ for fault in backend.run.faults}
    wrong = {row.output for row in rows if not row.passed and row.ratio > 1}
    if bug is None:
        assert not wrong
        assert not faults
    elif bug.caught in ("DataRace", "UninitialisedRead", "OutOfBounds"):
        assert faults == {bug.caught}
    else:
        assert not faults
        assert bug.caught in wrong
