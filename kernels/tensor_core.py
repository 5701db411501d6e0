"""Tensor-core instructions of a warp: loads of fragments, conversions to their types, products.

All threads of a warp execute them together. A fragment is a thread's part of a small matrix: with `group` = lane // 4
and `part` = lane % 4, of what the product takes and gives, d = a @ b + c (PTX ISA, Matrix Fragments for mma)

    mma_tf32, m16n8k8: 32-bit registers of one tf32
        a[0..3]  A[group, part], A[group + 8, part], A[group, part + 4], A[group + 8, part + 4]
        b[0..1]  B[part, group], B[part + 4, group]
    mma_bf16, mma_f16, m16n8k16: registers of two neighbours along k, the first in the lower half
        a[0..3]  A[group, 2 part ..], A[group + 8, 2 part ..], A[group, 2 part + 8 ..], A[group + 8, 2 part + 8 ..]
        b[0..1]  B[2 part .., group], B[2 part + 8 .., group]
    both: float32
        c[0..3]  C[group, 2 part], C[group, 2 part + 1], C[group + 8, 2 part], C[group + 8, 2 part + 1]

Source  NVIDIA, "PTX ISA" 9.0, Warp-level Matrix Instructions, Data Movement and Conversion: cvt.
"""

# Numba hands each intrinsic more than it needs:
# ruff: noqa: ARG001

from llvmlite import ir
from numba import types

from kernels.intrinsics import assemble, is_integer

try:
    from numba.cuda.extending import intrinsic
except ImportError:  # no CUDA target here; kernels then run in the emulator
    from numba.core.extending import intrinsic

_I32, _F32 = ir.IntType(32), ir.FloatType()


def _registers(context, builder, result, arguments, text, constraints):
    """Call an instruction that gives several registers; they become the tuple `result`."""
    width = len(result)
    kind = _F32 if result.dtype == types.float32 else _I32
    parts = assemble(builder, ir.LiteralStructType([kind] * width), arguments, text, constraints)
    return context.make_tuple(builder, result, [builder.extract_value(parts, k) for k in range(width)])


def _matrices(count, transposed):
    """An ldmatrix of `count` matrices."""

    def typing(typingctx, address):
        if not is_integer(address):
            return None
        result = types.UniTuple(types.uint32, count)
        slots = ", ".join(f"${k}" for k in range(count))
        text = (
            f"ldmatrix.sync.aligned.m8n8.x{count}{'.trans' if transposed else ''}.shared.b16 {{{slots}}}, [${count}];"
        )

        def codegen(context, builder, signature, args):
            return _registers(context, builder, result, args, text, "=r," * count + "r")

        return result(types.uint32), codegen

    return typing


@intrinsic
def ldmatrix_x4(typingctx, address):
    """Four matrices of 8 rows of 16 bytes from shared memory (ldmatrix, .x4).

    Thread i gives the address, a multiple of 16, of row i % 8 of matrix i // 8, and receives of each matrix bytes
    4 part .. 4 part + 3 of row `group`.
    """
    return _matrices(4, False)(typingctx, address)


@intrinsic
def ldmatrix_x2(typingctx, address):
    """Two matrices, as ldmatrix_x4; threads 0 to 15 give the addresses (ldmatrix, .x2)."""
    return _matrices(2, False)(typingctx, address)


@intrinsic
def ldmatrix_x4_trans(typingctx, address):
    """As ldmatrix_x4, each matrix of 8x8 elements of 16 bits transposed (ldmatrix, .x4.trans).

    A thread receives elements [2 part, group] and [2 part + 1, group].
    """
    return _matrices(4, True)(typingctx, address)


@intrinsic
def ldmatrix_x2_trans(typingctx, address):
    """As ldmatrix_x2, each matrix transposed as in ldmatrix_x4_trans (ldmatrix, .x2.trans)."""
    return _matrices(2, True)(typingctx, address)


def _product(shape, kind):
    """mma.sync of `kind`, with float32 accumulators."""

    def typing(typingctx, a, b, c):
        expected = types.UniTuple(types.uint32, 4), types.UniTuple(types.uint32, 2), types.UniTuple(types.float32, 4)
        if (a, b, c) != expected:
            return None
        text = (
            f"mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 "
            "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
        )

        def codegen(context, builder, signature, args):
            flat = [builder.extract_value(tuple_, k) for tuple_ in args for k in range(len(tuple_.type.elements))]
            constraints = "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f"
            return _registers(context, builder, types.UniTuple(types.float32, 4), flat, text, constraints)

        return c(*expected), codegen

    return typing


@intrinsic
def mma_tf32(typingctx, a, b, c):
    """The product a @ b + c of 16x8 and 8x8 TF32, float32 sums (mma.sync.m16n8k8).

    Of each register of a and b the low 13 bits do not count: convert by `to_tf32` to round rather than truncate.
    """
    return _product("m16n8k8", "tf32")(typingctx, a, b, c)


@intrinsic
def mma_bf16(typingctx, a, b, c):
    """The product a @ b + c of 16x16 and 16x8 bfloat16, float32 sums (mma.sync.m16n8k16)."""
    return _product("m16n8k16", "bf16")(typingctx, a, b, c)


@intrinsic
def mma_f16(typingctx, a, b, c):
    """The product a @ b + c of 16x16 and 16x8 float16, float32 sums (mma.sync.m16n8k16)."""
    return _product("m16n8k16", "f16")(typingctx, a, b, c)


@intrinsic
def to_tf32(typingctx, x):
    """The bits (uint32) of x rounded to TF32, 10 bits of fraction, to nearest, ties away from 0: cvt.rna.tf32.f32.

    x is a float32, or its bits as uint32, such as ldmatrix gives.
    """
    if x not in (types.float32, types.uint32):
        return None

    def codegen(context, builder, signature, args):
        value = builder.bitcast(args[0], _F32)
        return assemble(builder, _I32, [value], "cvt.rna.tf32.f32 $0, $1;", "=r,f", effect=False)

    return types.uint32(x), codegen


def _pack(kind):
    def typing(typingctx, low, high):
        if (low, high) != (types.float32, types.float32):
            return None

        def codegen(context, builder, signature, args):
            return assemble(builder, _I32, [args[1], args[0]], f"cvt.rn.{kind}.f32 $0, $1, $2;", "=r,f,f", effect=False)

        return types.uint32(types.float32, types.float32), codegen

    return typing


@intrinsic
def pack_bf16(typingctx, low, high):
    """Two float32 rounded to bfloat16, to nearest even, in the halves of a register (uint32): cvt.rn.bf16x2.f32."""
    return _pack("bf16x2")(typingctx, low, high)


@intrinsic
def pack_f16(typingctx, low, high):
    """Two float32 rounded to float16, to nearest even, in the halves of a register (uint32): cvt.rn.f16x2.f32."""
    return _pack("f16x2")(typingctx, low, high)


@intrinsic
def float32_bits(typingctx, x):
    """The bits of a float32 as uint32: mov.b32."""
    if x != types.float32:
        return None

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], _I32)

    return types.uint32(types.float32), codegen
