"""A load of 16 bytes where a condition holds, and zeros where it does not, without a branch.

Such loads follow one another without waiting: a branch around each would end a batch of them.

Source  NVIDIA, "PTX ISA" 9.0, Predicated Execution; Data Movement: ld.
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

_F32, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_GLOBAL = 1  # address space


@intrinsic
def load4_where(typingctx, x, i, there):
    """x[i], ..., x[i + 3] of float32 in device memory as one load of 16 bytes where `there`, else four zeros."""
    if x != types.CPointer(types.float32) or not is_integer(i) or there != types.boolean:
        return None
    result = types.UniTuple(types.float32, 4)

    def codegen(context, builder, signature, args):
        x, i, there = args
        place = builder.addrspacecast(builder.gep(x, [i]), ir.PointerType(x.type.pointee, _GLOBAL))
        zeros = "".join(f"mov.f32 ${k}, 0f00000000; " for k in range(4))
        text = (
            f"{{ .reg .pred there; setp.ne.u32 there, $5, 0; {zeros}"
            "@there ld.global.v4.f32 {$0, $1, $2, $3}, [$4]; }"
        )
        given = [builder.ptrtoint(place, _I64), builder.zext(there, _I32)]
        parts = assemble(builder, ir.LiteralStructType([_F32] * 4), given, text, "=&f,=&f,=&f,=&f,l,r")
        return context.make_tuple(builder, result, [builder.extract_value(parts, k) for k in range(4)])

    return result(x, types.int64, types.boolean), codegen
