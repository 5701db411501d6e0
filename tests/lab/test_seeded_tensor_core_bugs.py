"""Bugs put into the kernels for tensor cores: in stages, layouts, rounding and borders; `verify` must find each."""

from pathlib import Path

import pytest
from kernel_bugs import Bug
from mutants import altered, assert_caught, assert_right

PRODUCT, COPIES, FRAGMENTS, EPILOGUE = (
    f"kernels/matmul/tensor_{name}.py" for name in ("product", "copies", "fragments", "epilogue")
)
MATMUL, SIDES, NORMALIZED, SUMS = (
    f"kernels/{name}.py"
    for name in (
        "matmul/tensor_core",
        "conv/tensor_core_sides",
        "conv/normalized_tensor_core",
        "conv/normalized_epilogue",
    )
)
FORWARD, WEIGHT, INPUT = (f"conv2d_normalized_{name}" for name in ("forward", "backward_weight", "backward_input"))
TECHNIQUE = "tensor_core"
DEEP, WIDE = "ordinary/9x640x12", "ordinary/5x12x8"
PADDED, STRIDED = "ordinary/x2x5x7x4-k3x3-o8-s1x1-p1x1", "ordinary/x1x11x9x12*"

BUGS = (
    Bug("stage-overwritten-while-others-multiply", "R25: HeCBench#263", PRODUCT,
        "            cuda.syncthreads()  # the slab", "            # the slab",
        "linear_forward", TECHNIQUE, DEEP, "DataRace"),
    Bug("slab-multiplied-before-it-arrives", "R25: HeCBench#263", PRODUCT,
        "cp_async_wait(stages - 2)", "cp_async_wait(stages - 1)",
        "linear_forward", TECHNIQUE, DEEP, "UninitialisedRead"),
    Bug("next-slab-into-the-stage-in-use", "NVIDIA/cutlass#876", PRODUCT,
        "            free = stage\n", "            free = uint32(stage + 1 if stage + 1 < stages else 0)\n",
        "linear_forward", TECHNIQUE, DEEP, "UninitialisedRead"),
    Bug("swizzled-on-one-side", "R14: a vector's lanes confused", FRAGMENTS,
        "((2 * k + half) ^ lane % 8) * 16", "(2 * k + half) * 16",
        "linear_forward", TECHNIQUE, DEEP, "y"),
    Bug("factors-cut-off", "NVIDIA/cutlass: rounding of tf32", FRAGMENTS,
        "convert(four[part])", "four[part]",
        "linear_forward", TECHNIQUE, DEEP, "y"),
    Bug("slab-beyond-the-depth", "R16: onnxruntime PR15054", COPIES,
        "        there = step < last\n        place = address", "        there = True\n        place = address",
        "linear_forward", TECHNIQUE, WIDE, "OutOfBounds"),
    Bug("bias-in-every-slice", "NVIDIA/TensorRT-LLM PR12686", MATMUL,
        "        if with_bias and part == 0:\n", "        if with_bias:\n",
        "linear_forward", TECHNIQUE, "ordinary/9x640x12/bias", "y"),
    Bug("last-line-taken-for-none", "pytorch/glow#2273", SIDES,
        "uint32(line_u + step_u) < h and", "uint32(line_u + step_u) < h - 1 and",
        "conv2d_backward_weight", TECHNIQUE, "ordinary/x2x5x7x4*", "dw"),
    Bug("zero-times-infinity-in-the-padding", "R17: pytorch#39044", EPILOGUE,
        "if mends and has_nan:\n", "if False:\n",
        "conv2d_backward_input", TECHNIQUE, "w-inf/x1x11*", "dx"),
    Bug("slab-worked-out-when-others-may-read-it", "R25: HeCBench#263", PRODUCT,
        "            arrive_b(elements, base + a_floats, b_source, b_numbers, b_u, b_v, start, last)\n"
        "            cuda.syncthreads()",
        "            cuda.syncthreads()\n"
        "            arrive_b(elements, base + a_floats, b_source, b_numbers, b_u, b_v, start, last)",
        WEIGHT, TECHNIQUE, STRIDED, "DataRace"),
    Bug("slab-worked-out-before-it-arrives", "R25: HeCBench#263", PRODUCT,
        "            cp_async_wait(stages - 2)  # the thread's own part of the slab has arrived\n",
        "",
        WEIGHT, TECHNIQUE, STRIDED, "UninitialisedRead"),
    Bug("padding-is-normalized", "zeros of the activated tensor", COPIES,
        "                if there and inside(u[begin + i], v[begin + i], step_u, step_v):\n",
        "                if there:\n",
        FORWARD, TECHNIQUE, PADDED, "y"),
    Bug("scale-of-the-channel-beside", "R14: a vector's lanes confused", COPIES,
        "value(kept, 1, values[at + 1]", "value(kept, 0, values[at + 1]",
        FORWARD, TECHNIQUE, PADDED, "y"),
    Bug("rows-beyond-the-last-counted", "R1: tensorflow#124949", SUMS,
        "        own, count = thread % across * chunk, min(tile_rows, rows - first_row)\n        column = "
        "index(first_column + own)\n        for j in range(chunk):\n            total[j] = float32(0)\n        for row",
        "        own, count = thread % across * chunk, tile_rows\n        column = "
        "index(first_column + own)\n        for j in range(chunk):\n            total[j] = float32(0)\n        for row",
        FORWARD, TECHNIQUE, PADDED, "OutOfBounds"),
    Bug("shift-read-before-it-is-there", "R25: HeCBench#263", SUMS,
        "        cuda.syncthreads()\n        take(memory, shifts", "        take(memory, shifts",
        FORWARD, TECHNIQUE, PADDED, "DataRace"),
    Bug("mask-of-the-relu-forgotten", "R9", SUMS,
        "                                g = passed(g, y)\n", "",
        INPUT, TECHNIQUE, STRIDED, "dx"),
    Bug("sums-of-every-phase-in-one-place", "R17: pytorch#39044", NORMALIZED,
        "phase * down + row // tile_rows, phases * down", "row // tile_rows, phases * down",
        INPUT, TECHNIQUE, STRIDED, "DataRace"),
)  # fmt: skip


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_bug_is_caught_and_nothing_else(bug: Bug, tmp_path: Path) -> None:
    assert_caught(bug, {bug.file: altered(bug.file, bug.old, bug.new, bug.times)}, tmp_path)


def test_without_a_bug_nothing_is_found(tmp_path: Path) -> None:
    assert_right(tmp_path, "linear_forward", TECHNIQUE, DEEP)
