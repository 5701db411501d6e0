"""Instructions for numbers of 16 bits: one of them, eight in an access of 16 bytes, two in a register of 32 bits.

Pointer arguments are flat pointers or arrays in shared memory whose elements are 2 bytes wide: uint16 or float16, of
which no instruction here looks at more than the bits. In a register the element with the lower index is the lower half.
To round float32 to such numbers there are `pack_bf16` and `pack_f16` (kernels/tensor_core.py).

Source  NVIDIA, "PTX ISA" 9.0; the sections are named at each function.
"""

# Numba hands each intrinsic more than it needs:
# ruff: noqa: ARG001

from llvmlite import ir
from numba import types

from kernels.intrinsics import is_integer

try:
    from numba.cuda.extending import intrinsic
except ImportError:  # no CUDA target here; kernels then run in the emulator
    from numba.core.extending import intrinsic

_I16, _I32, _F32 = ir.IntType(16), ir.IntType(32), ir.FloatType()
_WORDS = ir.VectorType(_I32, 4)


def _is_narrow(kind):
    """Whether a pointer or a contiguous array has elements of 16 bits."""
    if not isinstance(kind, types.CPointer) and not (isinstance(kind, types.Array) and kind.layout == "C"):
        return False
    return kind.dtype in (types.uint16, types.float16)


def _pointer(context, builder, kind, value, index, target):
    """The LLVM pointer to an element, as one to a `target`."""
    if isinstance(kind, types.Array):
        value = context.make_array(kind)(context, builder, value).data
    return builder.bitcast(builder.gep(value, [index]), target.as_pointer())


@intrinsic
def load_bits(typingctx, x, i):
    """The bits of x[i] as uint32, the upper half 0: ld.u16 (Data Movement: ld)."""
    if not _is_narrow(x) or not is_integer(i):
        return None

    def codegen(context, builder, signature, args):
        place = _pointer(context, builder, signature.args[0], args[0], args[1], _I16)
        return builder.zext(builder.load(place, align=2), _I32)

    return types.uint32(x, types.int64), codegen


@intrinsic
def store_bits(typingctx, y, i, word):
    """y[i] = the lower half of `word` (uint32): st.u16 (Data Movement: st)."""
    if not _is_narrow(y) or not is_integer(i) or word != types.uint32:
        return None

    def codegen(context, builder, signature, args):
        place = _pointer(context, builder, signature.args[0], args[0], args[1], _I16)
        builder.store(builder.trunc(args[2], _I16), place, align=2)
        return context.get_dummy_value()

    return types.void(y, types.int64, types.uint32), codegen


@intrinsic
def load_words(typingctx, x, i):
    """x[i], ..., x[i + 7] as one load of 16 bytes, in four uint32: ld.v4 (Data Movement: ld)."""
    if not _is_narrow(x) or not is_integer(i):
        return None
    result = types.UniTuple(types.uint32, 4)

    def codegen(context, builder, signature, args):
        wide = builder.load(_pointer(context, builder, signature.args[0], args[0], args[1], _WORDS), align=16)
        return context.make_tuple(builder, result, [builder.extract_element(wide, _I32(k)) for k in range(4)])

    return result(x, types.int64), codegen


@intrinsic
def store_words(typingctx, y, i, a, b, c, d):
    """y[i], ..., y[i + 7] = the halves of a, b, c, d (uint32) as one store of 16 bytes: st.v4 (Data Movement: st)."""
    if not _is_narrow(y) or not is_integer(i) or any(word != types.uint32 for word in (a, b, c, d)):
        return None

    def codegen(context, builder, signature, args):
        wide = ir.Constant(_WORDS, ir.Undefined)
        for k, word in enumerate(args[2:]):
            wide = builder.insert_element(wide, word, _I32(k))
        builder.store(wide, _pointer(context, builder, signature.args[0], args[0], args[1], _WORDS), align=16)
        return context.get_dummy_value()

    return types.void(y, types.int64, *[types.uint32] * 4), codegen


def _unpack(halves):
    """Of a word two float32; `halves` makes LLVM values of it."""

    def typing(typingctx, word):
        if word != types.uint32:
            return None
        result = types.UniTuple(types.float32, 2)

        def codegen(context, builder, signature, args):
            return context.make_tuple(builder, result, halves(builder, args[0]))

        return result(types.uint32), codegen

    return typing


def _of_bf16(builder, word):
    """A bfloat16 is the upper half of a float32."""
    low, high = builder.shl(word, _I32(16)), builder.and_(word, _I32(0xFFFF0000))
    return [builder.bitcast(half, _F32) for half in (low, high)]


def _of_f16(builder, word):
    parts = builder.trunc(word, _I16), builder.trunc(builder.lshr(word, _I32(16)), _I16)
    return [builder.fpext(builder.bitcast(half, ir.HalfType()), _F32) for half in parts]


@intrinsic
def unpack_bf16(typingctx, word):
    """The two bfloat16 of a register (uint32) as float32, exactly: their bits, and 16 zeros."""
    return _unpack(_of_bf16)(typingctx, word)


@intrinsic
def unpack_f16(typingctx, word):
    """The two float16 of a register (uint32) as float32, exactly: cvt.f32.f16 (Data Movement and Conversion: cvt)."""
    return _unpack(_of_f16)(typingctx, word)
