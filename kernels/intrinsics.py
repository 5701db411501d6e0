"""Instructions that Numba has no name for: wide accesses, pointers from addresses, asynchronous copies, release.

Pointer arguments are flat pointers (`kernels.launch.Floats` and the like) or arrays in shared memory
(`cuda.shared.array`), whose elements are 4 bytes wide; an index counts elements, over all axes of an array. Where 16
bytes are moved at once, they start at a multiple of 16 bytes, where 8 are, at a multiple of 8. The asynchronous copies
also read elements of 2 bytes (kernels/packed.py has more for those); what they move is still counted in bytes.

Source  NVIDIA, "PTX ISA" 9.0; the sections are named at each function.
"""

# Numba hands each intrinsic more than it needs:
# ruff: noqa: ARG001

from typing import Any

from llvmlite import ir
from numba import types

try:
    from numba.cuda.extending import intrinsic
except ImportError:  # no CUDA target here; kernels then run in the emulator
    from numba.core.extending import intrinsic

TWINS: dict[Any, Any] = {}  # of an intrinsic what the emulator does instead; kernels.emulator.twins and .tensor fill it

_VOID, _I32, _I64 = ir.VoidType(), ir.IntType(32), ir.IntType(64)
_GLOBAL, _SHARED = 1, 3  # address spaces
_NARROW = types.uint16, types.float16


def _element(kind):
    """The type of what a pointer or a contiguous array has as elements, or None where those are not 4 bytes wide."""
    if isinstance(kind, types.Array) and kind.layout == "C":
        kind = types.CPointer(kind.dtype)
    if isinstance(kind, types.CPointer) and kind.dtype in (types.float32, types.int32, types.uint32):
        return kind.dtype
    return None


def is_integer(*kinds):
    """Whether all these types are integers."""
    return all(isinstance(kind, types.Integer) for kind in kinds)


def _address(context, builder, kind, value, index):
    """The LLVM pointer to an element."""
    if isinstance(kind, types.Array):
        value = context.make_array(kind)(context, builder, value).data
    return builder.gep(value, [index])


def _number(builder, pointer, space, width):
    """A generic pointer as a number in an address space."""
    return builder.ptrtoint(builder.addrspacecast(pointer, ir.PointerType(pointer.type.pointee, space)), width)


def assemble(builder, result, arguments, text, constraints, *, effect=True):
    """Call one PTX instruction. With `effect` it stays where it is, once, and nothing moves across it."""
    function = ir.FunctionType(result, [argument.type for argument in arguments])
    if effect:
        constraints = f"{constraints},~{{memory}}" if constraints else "~{memory}"
    assembly = ir.InlineAsm(function, text, constraints, side_effect=effect)
    return builder.call(assembly, arguments, attrs=("convergent",))


def _load(width):
    def typing(typingctx, x, i):
        element = _element(x)
        if element is None or not is_integer(i):
            return None
        result = types.UniTuple(element, width)

        def codegen(context, builder, signature, args):
            pointer = _address(context, builder, signature.args[0], args[0], args[1])
            vector = ir.VectorType(pointer.type.pointee, width)
            wide = builder.load(builder.bitcast(pointer, vector.as_pointer()), align=4 * width)
            parts = [builder.extract_element(wide, _I32(k)) for k in range(width)]
            return context.make_tuple(builder, result, parts)

        return result(x, types.int64), codegen

    return typing


def _store(builder, context, signature, args):
    pointer = _address(context, builder, signature.args[0], args[0], args[1])
    width = len(args) - 2
    vector = ir.VectorType(pointer.type.pointee, width)
    wide = ir.Constant(vector, ir.Undefined)
    for k, part in enumerate(args[2:]):
        wide = builder.insert_element(wide, part, _I32(k))
    builder.store(wide, builder.bitcast(pointer, vector.as_pointer()), align=4 * width)
    return context.get_dummy_value()


@intrinsic
def load4(typingctx, x, i):
    """x[i], x[i + 1], x[i + 2], x[i + 3] as one load of 16 bytes: ld.v4 (Data Movement: ld)."""
    return _load(4)(typingctx, x, i)


@intrinsic
def load2(typingctx, x, i):
    """x[i], x[i + 1] as one load of 8 bytes: ld.v2 (Data Movement: ld)."""
    return _load(2)(typingctx, x, i)


@intrinsic
def store4(typingctx, y, i, a, b, c, d):
    """y[i], y[i + 1], y[i + 2], y[i + 3] = a, b, c, d as one store of 16 bytes: st.v4 (Data Movement: st)."""
    element = _element(y)
    if element is None or not is_integer(i) or any(part != element for part in (a, b, c, d)):
        return None

    def codegen(context, builder, signature, args):
        return _store(builder, context, signature, args)

    return types.void(y, types.int64, element, element, element, element), codegen


@intrinsic
def store2(typingctx, y, i, a, b):
    """y[i], y[i + 1] = a, b as one store of 8 bytes: st.v2 (Data Movement: st)."""
    element = _element(y)
    if element is None or not is_integer(i) or any(part != element for part in (a, b)):
        return None

    def codegen(context, builder, signature, args):
        return _store(builder, context, signature, args)

    return types.void(y, types.int64, element, element), codegen


@intrinsic
def pointer_to_float32(typingctx, address):
    """The pointer of float32 to this address (uint64) in device memory."""
    if address != types.uint64:
        return None

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], ir.FloatType().as_pointer())

    return types.CPointer(types.float32)(types.uint64), codegen


@intrinsic
def load4_readonly(typingctx, x, i):
    """As load4, of float32 that no thread writes during the launch: ld.global.nc.v4.f32 (Data Movement: ld)."""
    if x != types.CPointer(types.float32) or not is_integer(i):
        return None
    result = types.UniTuple(types.float32, 4)

    def codegen(context, builder, signature, args):
        address = _number(builder, builder.gep(args[0], [args[1]]), _GLOBAL, _I64)
        text = "ld.global.nc.v4.f32 {$0, $1, $2, $3}, [$4];"
        parts = assemble(
            builder, ir.LiteralStructType([ir.FloatType()] * 4), [address], text, "=f,=f,=f,=f,l", effect=False
        )
        return context.make_tuple(builder, result, [builder.extract_value(parts, k) for k in range(4)])

    return result(x, types.int64), codegen


@intrinsic
def fma(typingctx, a, b, c):
    """The float32 a * b + c, rounded once: fma.rn.f32 (Floating Point: fma)."""
    if any(part != types.float32 for part in (a, b, c)):
        return None

    def codegen(context, builder, signature, args):
        return builder.fma(*args)

    return types.float32(types.float32, types.float32, types.float32), codegen


@intrinsic
def shared_address(typingctx, array, i):
    """Where an element of an array lies in shared memory, in bytes (uint32): cvta.to.shared (Data Movement: cvta).

    Addresses may be computed with; instructions of this file and of tensor_core take them.
    """
    if not isinstance(array, types.Array) or array.layout != "C" or not is_integer(i):
        return None

    def codegen(context, builder, signature, args):
        return _number(builder, _address(context, builder, signature.args[0], args[0], args[1]), _SHARED, _I32)

    return types.uint32(array, types.int64), codegen


def _is_copied(kind):
    """Whether cp.async reads from what is of this type: a pointer to elements of 4 or 2 bytes."""
    return isinstance(kind, types.CPointer) and (_element(kind) is not None or kind.dtype in _NARROW)


def _copy(width, mode):
    def typing(typingctx, destination, x, i, size=None):
        sizes = [] if size is None else [types.uint32]
        integers = (destination, i) if size is None else (destination, i, size)
        if not _is_copied(x) or not is_integer(*integers):
            return None

        def codegen(context, builder, signature, args):
            address = _number(builder, builder.gep(args[1], [args[2]]), _GLOBAL, _I64)
            text = f"cp.async.{mode}.shared.global [$0], [$1], {width}" + (", $2;" if sizes else ";")
            constraints = "r,l,r" if sizes else "r,l"
            assemble(builder, _VOID, [args[0], address, *args[3:]], text, constraints)
            return context.get_dummy_value()

        return types.void(types.uint32, x, types.int64, *sizes), codegen

    return typing


@intrinsic
def cp_async_16(typingctx, destination, x, i):
    """Start to copy 16 bytes from &x[i] in global memory to a shared address: cp.async.cg (Data Movement: cp.async).

    Both multiples of 16. They arrive no later than `cp_async_wait` for the group that they were committed to, for the
    thread that waits; for others after a barrier.
    """
    return _copy(16, "cg")(typingctx, destination, x, i)


@intrinsic
def cp_async_16_zero_fill(typingctx, destination, x, i, size):
    """As cp_async_16, of which the first `size` bytes (0 to 16) are read from x and the others are zeros."""
    return _copy(16, "cg")(typingctx, destination, x, i, size)


@intrinsic
def cp_async_4(typingctx, destination, x, i):
    """Start to copy 4 bytes, one element or two, as cp_async_16 does 16: cp.async.ca (Data Movement: cp.async)."""
    return _copy(4, "ca")(typingctx, destination, x, i)


@intrinsic
def cp_async_4_zero_fill(typingctx, destination, x, i, size):
    """As cp_async_4, of which the first `size` bytes (0 to 4) are read from x and the others are zeros."""
    return _copy(4, "ca")(typingctx, destination, x, i, size)


@intrinsic
def cp_async_commit(typingctx):
    """Make a group of the thread's copies since its last one: cp.async.commit_group (Data Movement: cp.async)."""

    def codegen(context, builder, signature, args):
        assemble(builder, _VOID, [], "cp.async.commit_group;", "")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def cp_async_wait(typingctx, pending):
    """Wait until at most `pending` of the thread's youngest groups are incomplete: cp.async.wait_group.

    `pending` should be a constant from 0 to 7; with any other number this waits for all (Data Movement: cp.async).
    """
    if not is_integer(pending):
        return None

    def codegen(context, builder, signature, args):
        # The instruction takes only a constant: the compiler keeps one of these cases.
        done, default = builder.append_basic_block("arrived"), builder.append_basic_block("all")
        choice = builder.switch(args[0], default)
        for number in range(8):
            block = default if number == 0 else builder.append_basic_block(f"all_but_{number}")
            if number:
                choice.add_case(_I64(number), block)
            builder.position_at_end(block)
            assemble(builder, _VOID, [], f"cp.async.wait_group {number};", "")
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def add_release(typingctx, x, i, value):
    """Add to x[i], uint32 in device memory, indivisibly: red.release.gpu.add (Parallel Synchronization: red).

    What the thread wrote before, and what other threads wrote before a barrier with it, is visible to a thread of any
    block once its `load_acquire` has seen this sum. It goes with `load_acquire` and atomic updates only.
    """
    if x != types.CPointer(types.uint32) or not is_integer(i, value):
        return None

    def codegen(context, builder, signature, args):
        address = _number(builder, builder.gep(args[0], [args[1]]), _GLOBAL, _I64)
        assemble(builder, _VOID, [address, args[2]], "red.release.gpu.global.add.u32 [$0], $1;", "l,r")
        return context.get_dummy_value()

    return types.void(x, types.int64, types.uint32), codegen


@intrinsic
def load_acquire(typingctx, x, i):
    """x[i], uint32 in device memory that others change: ld.acquire.gpu (Data Movement: ld); see `add_release`.

    Read each time that it is called: a loop may wait on it, which one on an ordinary load must not, since the compiler
    takes such a load out of it.
    """
    if x != types.CPointer(types.uint32) or not is_integer(i):
        return None

    def codegen(context, builder, signature, args):
        address = _number(builder, builder.gep(args[0], [args[1]]), _GLOBAL, _I64)
        return assemble(builder, _I32, [address], "ld.acquire.gpu.global.u32 $0, [$1];", "=r,l")

    return types.uint32(x, types.int64), codegen
