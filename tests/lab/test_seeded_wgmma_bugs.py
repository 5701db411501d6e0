"""Bugs put into the wgmma kernels: in fences, waits, stages, layouts and rounding; `verify` must find each."""

from pathlib import Path

import pytest
from kernel_bugs import Bug
from mutants import altered, assert_caught, assert_right

PRODUCT, SLABS, TILES = (
    "kernels/matmul/wgmma_product.py",
    "kernels/matmul/wgmma_slabs.py",
    "kernels/matmul/wgmma_tiles.py",
)
PACK, CONV = "kernels/conv/wgmma_pack.py", "kernels/conv/wgmma.py"
TECHNIQUE = "wgmma"
FORWARD, INPUT, WEIGHT = "conv2d_forward", "conv2d_backward_input", "conv2d_backward_weight"
DEEP = "ordinary/x1x9x10x64*"  # 576 taps in slices of 288: nine slabs, three times through the stages
HERE = "            fence_proxy_async()\n            if in_bulk:\n"

BUGS = (
    Bug("stores-not-shown-to-the-tensor-cores", "NVIDIA/cutlass: fence_view_async_shared", PRODUCT,
        HERE, "            if in_bulk:\n",
        FORWARD, TECHNIQUE, DEEP, "MissingFence"),
    Bug("barrier-not-shown-to-the-copy-engine", "NVIDIA/cutlass: fence_barrier_init", PRODUCT,
        "1)\n                fence_proxy_async()\n", "1)\n",
        FORWARD, TECHNIQUE, DEEP, "MissingFence"),
    Bug("slab-multiplied-before-all-have-stored", "R25: HeCBench#263", PRODUCT,
        "            cuda.syncthreads()  # the slab", "            # the slab",
        FORWARD, TECHNIQUE, DEEP, "DataRace"),
    Bug("weights-not-waited-for", "R25: HeCBench#263", PRODUCT,
        "mbarrier_wait(uint32(barriers + stage * MBARRIER), parity)", "pass",
        FORWARD, TECHNIQUE, DEEP, "UninitialisedRead"),
    Bug("phase-of-the-barrier-forgotten", "NVIDIA/cutlass: PipelineState phase", PRODUCT,
        "parity = uint32(parity if following > 0 else 1 - parity)", "parity = uint32(parity)",
        FORWARD, TECHNIQUE, DEEP, "UninitialisedRead"),
    Bug("products-not-waited-for", "R25: HeCBench#263", PRODUCT,
        "            wgmma_wait(1)\n", "",
        WEIGHT, TECHNIQUE, "ordinary/x3x17x13x8*", "DataRace"),
    Bug("one-stage-too-few", "NVIDIA/cutlass#876", TILES,
        "NARROW = WgmmaTile(2, 32, 3)", "NARROW = WgmmaTile(2, 32, 2)",
        FORWARD, TECHNIQUE, DEEP, "DataRace"),
    Bug("sums-read-in-flight", "NVIDIA/cutlass: warpgroup_wait", PRODUCT,
        "        results(sums)\n", "",
        FORWARD, TECHNIQUE, "ordinary/x2x5x7x4*", "UninitialisedRead"),
    Bug("registers-not-fenced", "NVIDIA/cutlass: warpgroup_arrive", PRODUCT,
        "            wgmma_fence()\n", "",
        FORWARD, TECHNIQUE, "ordinary/x2x5x7x4*", "MissingFence"),
    Bug("swizzled-on-one-side", "R14: a vector's lanes confused", SLABS,
        "(step // CHUNK ^ line % EIGHT) * CHUNK", "step",
        FORWARD, TECHNIQUE, "ordinary/x2x5x7x4*", "y"),
    Bug("swizzle-of-another-width", "deepseek-ai/DeepGEMM: descriptors", PRODUCT,
        "a_lines = descriptor(", "a_lines = uint64(1 << 62) + descriptor(",
        FORWARD, TECHNIQUE, "ordinary/x2x5x7x4*", "y"),
    Bug("steps-half-as-far", "deepseek-ai/DeepGEMM: descriptors", PRODUCT,
        "uint64(k * NEXT)", "uint64(k)",
        FORWARD, TECHNIQUE, "ordinary/x2x5x7x4*", "y", times=2),
    Bug("second-warpgroup-takes-the-first-one-s-rows", "R3: grids of one dimension", PRODUCT,
        "+ group * (ROWS * LINE)))", "))",
        INPUT, TECHNIQUE, "ordinary/x2x9x7x20*", "dx"),
    Bug("slab-turned-by-one-step", "R14: a vector's lanes confused", SLABS,
        "memory[uint64(place + DEPTH + (chunk ^ first + 1) * CHUNK)] = b",
        "memory[uint64(place + DEPTH + (chunk ^ first) * CHUNK)] = b",
        WEIGHT, TECHNIQUE, "ordinary/x2x5x7x4*", "dw"),
    Bug("weights-cut-off", "NVIDIA/cutlass: rounding of tf32", PACK,
        "d = load4_where(w, first, there)\n        store4(packed, target, to_tf32(a)",
        "d = load4_where(w, first, there)\n        store4(packed, target, float32_bits(a)",
        INPUT, TECHNIQUE, "ordinary/x2x5x7x4*", "dx"),
    Bug("bias-in-every-slice", "NVIDIA/TensorRT-LLM PR12686", CONV,
        "        if with_bias and part == 0:\n", "        if with_bias:\n",
        FORWARD, TECHNIQUE, "ordinary/x1x9x10x64*/bias", "y"),
    Bug("zero-times-infinity-in-the-padding", "R17: pytorch#39044", CONV,
        "if exists and dx[place] != dx[place]:\n", "if False:\n",
        INPUT, TECHNIQUE, "w-inf/x1x11*", "dx"),
)  # fmt: skip
IMPORTS = {"weights-cut-off": ("import to_tf32\n", "import float32_bits, to_tf32\n")}


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_bug_is_caught_and_nothing_else(bug: Bug, tmp_path: Path) -> None:
    text = altered(bug.file, bug.old, bug.new, bug.times)
    if bug.name in IMPORTS:
        text = text.replace(*IMPORTS[bug.name])
    assert_caught(bug, {bug.file: text}, tmp_path)


def test_without_a_bug_nothing_is_found(tmp_path: Path) -> None:
    assert_right(tmp_path, FORWARD, TECHNIQUE, DEEP)
