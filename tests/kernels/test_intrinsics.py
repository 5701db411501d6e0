"""Each intrinsic becomes the instruction that it names, in PTX and in machine code; wrong types are refused."""

import re

import pytest
from numba import cuda, float32, int64, types, uint32
from numba.core.errors import TypingError

from kernels.compile import ToolkitError, link, target
from kernels.intrinsics import (
    TWINS,
    cp_async_4,
    cp_async_4_zero_fill,
    cp_async_16,
    cp_async_16_zero_fill,
    cp_async_commit,
    cp_async_wait,
    fma,
    load2,
    load4,
    load4_readonly,
    pointer_to_float32,
    shared_address,
    store2,
    store4,
)
from kernels.tensor_core import (
    float32_bits,
    ldmatrix_x2,
    ldmatrix_x2_trans,
    ldmatrix_x4,
    ldmatrix_x4_trans,
    mma_bf16,
    mma_f16,
    mma_tf32,
    pack_bf16,
    pack_f16,
    to_tf32,
)
from minidl.lab.machine_code import disassemble

FLOATS, WORDS, ADDRESSES = (types.CPointer(kind) for kind in (types.float32, types.uint32, types.uint64))
STAGES = 3


def compiled(function, parameters, capability) -> tuple[str, str]:
    """PTX and machine code of a kernel."""
    try:
        ptx, _ = cuda.compile_ptx(function, types.void(*parameters), cc=target(capability))
        cubin, _ = link([ptx], capability)
        return ptx, disassemble(cubin)
    except (ImportError, OSError, ToolkitError) as error:
        pytest.skip(f"no CUDA compiler here: {error}")


def wide_global(x, y, table):
    i = uint32(4 * cuda.threadIdx.x)
    a, b, c, d = load4(x, i)
    store4(y, i, d, c, b, a)


def wide_words(x, y, table):
    i = int64(4 * cuda.threadIdx.x)
    a, b, c, d = load4(table, i)
    store4(table, i, d, c, b, a)


def wide_shared(x, y, table):
    tile = cuda.shared.array((8, 128), float32, alignment=16)
    i = uint32(4 * cuda.threadIdx.x)
    store4(tile, i, x[i], x[i + 1], x[i + 2], x[i + 3])
    cuda.syncthreads()
    a, b, c, d = load4(tile, 1020 - i)
    y[i] = a + b + c + d


def half_global(x, y, table):
    i = uint32(2 * cuda.threadIdx.x)
    a, b = load2(x, i)
    store2(y, i, b, a)


def half_shared(x, y, table):
    tile = cuda.shared.array(1024, float32, alignment=16)
    i = uint32(2 * cuda.threadIdx.x)
    store2(tile, i, x[i], x[i + 1])
    cuda.syncthreads()
    a, b = load2(tile, 1020 - i)
    y[i] = a + b


def readonly(x, y, table):
    i = uint32(4 * cuda.threadIdx.x)
    a, b, c, d = load4_readonly(x, i)
    y[i] = a + b + c + d


def by_address(x, y, table):
    y[cuda.threadIdx.x] = pointer_to_float32(table[cuda.blockIdx.x])[cuda.threadIdx.x]


def fused(x, y, table):
    y[0] = fma(x[0], x[1], x[2])


def copies(x, y, table):
    tile = cuda.shared.array((4, 128), float32, alignment=16)
    t = cuda.threadIdx.x
    cp_async_16(shared_address(tile, 4 * t), x, 4 * t)
    cp_async_commit()
    cp_async_wait(STAGES - 2)
    y[t] = tile[0, t]


def copies_with_zeros(x, y, table):
    tile = cuda.shared.array((4, 128), float32, alignment=16)
    t = cuda.threadIdx.x
    cp_async_16_zero_fill(shared_address(tile, 4 * t) + 512, x, 4 * t, 4 * (t % 5))
    cp_async_commit()
    cp_async_wait(0)
    y[t] = tile[0, t]


def small_copies(x, y, table):
    tile = cuda.shared.array(128, float32)
    t = cuda.threadIdx.x
    cp_async_4(shared_address(tile, t), x, t)
    cp_async_4_zero_fill(shared_address(tile, t + 64), x, t, 4 if t < 7 else 0)
    cp_async_commit()
    cp_async_wait(0)
    y[t] = tile[t]


def matrices(x, y, table):
    tile = cuda.shared.array(1024, float32, alignment=16)
    at = shared_address(tile, 4 * cuda.threadIdx.x)
    for i in range(1024):
        tile[i] = x[i]
    a, b = ldmatrix_x4(at), ldmatrix_x2(at)
    c, d = ldmatrix_x4_trans(at), ldmatrix_x2_trans(at)
    y[0] = float32(a[0] ^ a[1] ^ a[2] ^ a[3] ^ b[0] ^ b[1] ^ c[0] ^ c[1] ^ c[2] ^ c[3] ^ d[0] ^ d[1])


def product_tf32(x, y, table):
    zero = float32(0)
    t = 4 * cuda.threadIdx.x
    r = float32_bits(x[1])
    a, b = to_tf32(x[t]), to_tf32(x[t + 1])
    c = mma_tf32((a, b, a, r), (b, r), (zero, zero, zero, zero))
    store4(y, t, c[0], c[1], c[2], c[3])


def product_bf16(x, y, table):
    t = 4 * cuda.threadIdx.x
    a, b = pack_bf16(x[t], x[t + 1]), pack_bf16(x[t + 2], x[t + 3])
    c = mma_bf16((a, b, a, b), (b, a), load4(x, t))
    store4(y, t, c[0], c[1], c[2], c[3])


def product_f16(x, y, table):
    t = 4 * cuda.threadIdx.x
    a, b = pack_f16(x[t], x[t + 1]), pack_f16(x[t + 2], x[t + 3])
    c = mma_f16((a, b, a, b), (b, a), load4(x, t))
    store4(y, t, c[0], c[1], c[2], c[3])


CASES = {
    wide_global: (["ld.global.v4.f32", "st.global.v4.f32"], ["LDG.E.128", "STG.E.128"]),
    wide_words: (["ld.global.v4.u32", "st.global.v4.u32"], ["LDG.E.128", "STG.E.128"]),
    wide_shared: (["ld.shared.v4.f32", "st.shared.v4.f32"], ["LDS.128", "STS.128"]),
    half_global: (["ld.global.v2.f32", "st.global.v2.f32"], ["LDG.E.64", "STG.E.64"]),
    half_shared: (["ld.shared.v2.f32", "st.shared.v2.f32"], ["LDS.64", "STS.64"]),
    readonly: (["ld.global.nc.v4.f32"], ["LDG.E.128.CONSTANT"]),
    by_address: (["ld.global.u64"], ["LDG.E.64", "LDG.E"]),
    fused: (["fma.rn.f32"], ["FFMA"]),
    copies: (
        ["cp.async.cg.shared.global", "cp.async.commit_group", "cp.async.wait_group 1;"],
        ["LDGSTS.E.BYPASS.128", "LDGDEPBAR", "DEPBAR.LE SB0, 0x1"],
    ),
    copies_with_zeros: (["cp.async.cg.shared.global"], ["LDGSTS.E.BYPASS.128.ZFILL"]),
    small_copies: (["cp.async.ca.shared.global"], ["LDGSTS.E"]),
    matrices: (
        [f"ldmatrix.sync.aligned.m8n8.x{n}{trans}.shared.b16" for n in (2, 4) for trans in ("", ".trans")],
        ["LDSM.16.M88.2", "LDSM.16.M88.4", "LDSM.16.MT88.2", "LDSM.16.MT88.4"],
    ),
    product_tf32: (
        ["cvt.rna.tf32.f32", "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"], ["HMMA.1688.F32.TF32"],
    ),
    product_bf16: (
        ["cvt.rn.bf16x2.f32", "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"], ["HMMA.16816.F32.BF16"],
    ),
    product_f16: (["cvt.rn.f16x2.f32", "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"], ["HMMA.16816.F32"]),
}  # fmt: skip


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)], ids=["sm_80", "sm_90"])
@pytest.mark.parametrize("function", CASES, ids=lambda function: function.__name__)
def test_becomes_the_instruction(function, capability) -> None:
    table = WORDS if function is wide_words else ADDRESSES
    ptx, sass = compiled(function, (FLOATS, FLOATS, table), capability)
    instructions, opcodes = CASES[function]
    for instruction in instructions:
        assert re.search(rf"\b{re.escape(instruction)}", ptx), (instruction, ptx)
    for opcode in opcodes:
        assert re.search(rf"\b{re.escape(opcode)}\b", sass), (opcode, sass)
    assert not re.search(r"\b(LDL|STL|D(ADD|MUL|FMA|SETP))\b", sass)


def test_wait_for_a_constant_leaves_no_branch() -> None:
    ptx, _ = compiled(copies, (FLOATS, FLOATS, ADDRESSES), (9, 0))
    assert ptx.count("cp.async.wait_group") == 1


def test_products_stay_in_place() -> None:
    """A product whose result only some threads use is still executed by all: no branch may come before it."""

    def kernel(x, y, table):
        t = 4 * cuda.threadIdx.x
        a, b = to_tf32(x[t]), to_tf32(x[t + 1])
        c = mma_tf32((a, b, a, b), (b, a), load4(x, t))
        if x[t] > float32(0):
            store4(y, t, c[0], c[1], c[2], c[3])

    ptx, _ = compiled(kernel, (FLOATS, FLOATS, ADDRESSES), (9, 0))
    before = ptx[: ptx.index("mma.sync")]
    assert not re.search(r"@%p\d+\s+bra", before)


def offsets_of(ptx: str, instruction: str) -> list[int | None]:
    """Of the registers in an instruction's lists, in order, from what byte offset each was loaded, or None."""
    loaded = {}
    for registers, offset in re.findall(r"ld\.global\.(?:v4\.)?[fu]32\s+\{?([^\[]+?)\}?, \[%rd\d+(?:\+(\d+))?\]", ptx):
        for k, register in enumerate(registers.split(", ")):
            loaded[register] = int(offset or 0) + 4 * k
    (line,) = re.findall(rf"\b{re.escape(instruction)}\s+([^;]*);", ptx)
    return [loaded.get(register) for register in re.findall(r"%[rf]\d+", line)]


def test_order_of_operands() -> None:
    """Without a GPU nothing else shows that PTX gets its operands in the order that it documents."""

    def kernel(x, y, words):
        c = load4(x, 0)
        a = load4(words, 0)
        d = mma_tf32(a, (words[8], words[9]), c)
        store4(y, 0, d[0], d[1], d[2], d[3])
        store4(y, 4, c[3], c[1], c[2], c[0])
        words[16] = pack_bf16(x[4], x[5])
        words[17] = pack_f16(x[6], x[7])
        y[8] = fma(x[9], x[10], x[11])

    ptx, _ = compiled(kernel, (FLOATS, FLOATS, WORDS), (9, 0))
    assert offsets_of(ptx, "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32") == [
        *(None,) * 4, *(0, 4, 8, 12), *(32, 36), *(0, 4, 8, 12),
    ]  # fmt: skip
    assert offsets_of(ptx, "cvt.rn.bf16x2.f32") == [None, 20, 16]  # the upper half comes first
    assert offsets_of(ptx, "cvt.rn.f16x2.f32") == [None, 28, 24]
    assert offsets_of(ptx, "fma.rn.f32") == [None, 36, 40, 44]
    (results,) = re.findall(r"mma\.sync\S+\s+\{([^}]*)\}", ptx)
    stores = re.findall(r"st\.global\.v4\.f32\s+\[%rd\d+(?:\+(\d+))?\], \{([^}]*)\}", ptx)
    assert ("", results) in stores
    (inputs,) = re.findall(r"ld\.global\.v4\.f32\s+\{([^}]*)\}", ptx)
    a, b, c, d = inputs.split(", ")
    assert ("16", f"{d}, {b}, {c}, {a}") in stores


def test_order_of_matrices() -> None:
    def kernel(y):
        tile = cuda.shared.array(1024, uint32, alignment=16)
        r = ldmatrix_x4(shared_address(tile, 4 * cuda.threadIdx.x))
        store4(y, 0, r[0], r[1], r[2], r[3])

    ptx, _ = compiled(kernel, (WORDS,), (9, 0))
    (loaded,) = re.findall(r"ldmatrix\S+\s+\{([^}]*)\}", ptx)
    assert re.search(rf"st\.global\.v4\.u32\s+\[%rd\d+\], \{{{loaded}\}}", ptx)


def load_float64(x):
    load4(x, 0)


def store_float64(x):
    store4(x, 0, 1.0, 2.0, 3.0, 4.0)


def store_too_wide(x):
    store2(x, 0, float32(1) + 1, float32(2))


def address_of_wrong_type(x):
    x[0] = pointer_to_float32(7)[0]


def fma_of_float64(x):
    x[0] = fma(x[0], 1.5, x[0])


def product_of_floats(x):
    mma_tf32((x[0], x[0], x[0], x[0]), (x[0], x[0]), (x[0], x[0], x[0], x[0]))


def float_index(x):
    load4(x, float32(0))


@pytest.mark.parametrize(
    ("function", "pointer"),
    [
        (load_float64, types.CPointer(types.float64)), (store_float64, FLOATS), (store_too_wide, FLOATS),
        (address_of_wrong_type, FLOATS), (fma_of_float64, FLOATS), (product_of_floats, FLOATS), (float_index, FLOATS),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_wrong_types_are_refused(function, pointer) -> None:
    with pytest.raises(TypingError, match="No implementation of function"):
        cuda.compile_ptx(function, types.void(pointer), cc=(9, 0))


def test_every_intrinsic_has_a_twin() -> None:
    import kernels.intrinsics
    import kernels.tensor_core
    from kernels.emulator import tensor, twins  # noqa: F401

    kind = type(load4)
    found = {value for module in (kernels.intrinsics, kernels.tensor_core) for value in vars(module).values()
             if isinstance(value, kind)}  # fmt: skip
    assert len(found) > 20
    assert set(TWINS) >= found
