"""Hopper's own instructions in PTX and in machine code, and products that the assembler does not make wait."""

import re

import pytest
from numba import cuda, float32, types, uint32, uint64

from kernels.bulk_copy import copy_bulk, fence_proxy_async, mbarrier_expect, mbarrier_init, mbarrier_wait
from kernels.compile import ToolkitError, compile_ptx, entry_name, link, target
from kernels.conv.wgmma import conv2d_forward_wgmma
from kernels.guarded_load import load4_where
from kernels.intrinsics import TWINS, shared_address
from kernels.wgmma import (
    WGMMA_RESULTS,
    WGMMA_TF32,
    WIDTHS,
    descriptor,
    wgmma_commit,
    wgmma_fence,
    wgmma_wait,
)
from minidl.lab.machine_code import disassemble

FLOATS = types.CPointer(types.float32)
HOPPER = 9, 0


def compiled(function, *parameters) -> tuple[str, str]:
    """PTX and machine code of a kernel."""
    try:
        ptx, _ = cuda.compile_ptx(function, types.void(*parameters), cc=target(HOPPER))
        cubin, _ = link([ptx], HOPPER)
        return ptx, disassemble(cubin)
    except (ImportError, OSError, ToolkitError) as error:
        pytest.skip(f"no CUDA compiler here: {error}")


def product(width: int):
    multiply, results, own = WGMMA_TF32[width], WGMMA_RESULTS[width], width // 2

    def kernel(x, y):
        memory = cuda.shared.array(0, float32)
        sums = cuda.local.array(own, float32)
        for i in range(own // 16):
            for j in range(16):
                sums[16 * i + j] = float32(0)
        t = cuda.threadIdx.x
        lines = descriptor(shared_address(memory, 0))
        wgmma_fence()
        for k in range(2):
            multiply(sums, lines, uint64(lines + uint64(2 * k)))
        wgmma_commit()
        wgmma_wait(1)
        results(sums)
        for i in range(own // 16):
            for j in range(16):
                y[t * own + 16 * i + j] = sums[16 * i + j]

    return kernel


@pytest.mark.parametrize("width", WIDTHS)
def test_products(width: int) -> None:
    ptx, sass = compiled(product(width), FLOATS, FLOATS)
    for instruction in (
        "wgmma.fence.sync.aligned", "wgmma.commit_group.sync.aligned", "wgmma.wait_group.sync.aligned 1",
        "wgmma.wait_group.sync.aligned 0",
    ):  # fmt: skip
        assert ptx.count(instruction) == 1
    (first, second) = re.findall(rf"wgmma.mma_async.sync.aligned.m64n{width}k8.f32.tf32.tf32\s+\{{([^}}]*)\}}", ptx)
    assert len(first.split(",")) == len(second.split(",")) == width // 2
    assert len(re.findall(rf"\bHGMMA\.64x{width}x8\.F32\.TF32\b", sass)) == 2
    assert not re.search(r"\b(LDL|STL|D(ADD|MUL|FMA|SETP))\b", sass)


def test_copies_and_barriers() -> None:
    def kernel(x, y):
        memory = cuda.shared.array(0, float32)
        t = uint32(cuda.threadIdx.x)
        barrier = shared_address(memory, 1024)
        if t == 0:
            mbarrier_init(barrier, 1)
            fence_proxy_async()
        cuda.syncthreads()
        if t == 0:
            mbarrier_expect(barrier, 4096)
            copy_bulk(shared_address(memory, 0), x, t, 4096, barrier)
        mbarrier_wait(barrier, 0)
        a, b, c, d = load4_where(x, 4 * t, t < 7)
        y[t] = memory[t] + a + b + c + d

    ptx, sass = compiled(kernel, FLOATS, FLOATS)
    for instruction in (
        "mbarrier.init.shared::cta.b64", "fence.proxy.async.shared::cta", "mbarrier.arrive.expect_tx.shared::cta.b64 _",
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes", "mbarrier.try_wait.parity.shared::cta.b64",
        "ld.global.v4.f32",
    ):  # fmt: skip
        assert instruction in ptx
    for opcode in ("SYNCS.EXCH.64", "FENCE.VIEW.ASYNC", "SYNCS.ARRIVE", "UBLKCP", "SYNCS.PHASECHK", "LDG.E.128"):
        assert opcode in sass
    assert re.search(r"@!?P\d+ +LDG\.E\.128", sass)  # no branch around it


def test_products_of_a_slab_follow_one_another_while_the_next_one_is_loaded() -> None:
    """Where the assembler does not see through sums in flight, it makes every product wait for the one before."""
    kernel = conv2d_forward_wgmma.examples()[2]
    try:
        ptx = compile_ptx(kernel, HOPPER)
        cubin, log = link([ptx], HOPPER)
        sass = disassemble(cubin)
    except ToolkitError as error:
        pytest.skip(str(error))
    assert entry_name(kernel) in ptx
    assert "serialized" not in log  # its warnings C7509 to C7514
    order = re.findall(r"\b(HGMMA\S*|WARPGROUP\.\w+|LDG\.E\.128|BAR\.SYNC)[^;\n]*?(gsb0)?(?:, 0x(\d))? *;", sass)
    loop = order[max(i for i, (name, _, _) in enumerate(order) if name == "BAR.SYNC") :]
    names = [name for name, _, _ in loop]
    products = [i for i, name in enumerate(names) if name.startswith("HGMMA")]
    assert len(products) == 4
    assert [loop[i][1] for i in products] == ["", "", "", "gsb0"]  # all four are one group
    assert set(names[products[0] : products[-1]]) <= {names[products[0]], "LDG.E.128"}  # with no wait between them
    waits = [i for i, name in enumerate(names) if name == "WARPGROUP.DEPBAR"]
    assert [loop[i][2] for i in waits] == ["1", "0"]
    assert names.count("LDG.E.128") == 4  # all of them behind the barrier and before the wait
    assert "LDG.E.128" not in names[waits[0] :]


MULTIPLY = WGMMA_TF32[32]


def sums_of_another_type(x):
    sums = cuda.local.array(16, uint32)
    MULTIPLY(sums, uint64(0), uint64(0))


def descriptor_of_32_bits(x):
    sums = cuda.local.array(16, float32)
    MULTIPLY(sums, uint32(0), uint64(0))


def copy_from_shared(x):
    memory = cuda.shared.array(16, float32)
    copy_bulk(shared_address(memory, 0), memory, 0, 16, shared_address(memory, 4))


@pytest.mark.parametrize("function", [sums_of_another_type, descriptor_of_32_bits, copy_from_shared])
def test_wrong_types_are_refused(function) -> None:
    with pytest.raises(Exception, match="No implementation of function"):
        cuda.compile_ptx(function, types.void(FLOATS), cc=target(HOPPER))


def test_every_intrinsic_has_a_twin() -> None:
    import kernels.bulk_copy
    import kernels.guarded_load
    import kernels.wgmma
    from kernels.emulator import bulk_copy, wgmma  # noqa: F401

    modules = kernels.bulk_copy, kernels.guarded_load, kernels.wgmma
    found = {value for module in modules for value in vars(module).values() if isinstance(value, type(copy_bulk))}
    assert len(found) >= 9
    assert set(TWINS) >= {*found, *WGMMA_TF32.values(), *WGMMA_RESULTS.values()}
