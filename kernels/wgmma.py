"""wgmma, the tensor-core instruction of Hopper: a product that four warps start together and later wait for.

Its threads are a *warpgroup*: 128, from a multiple of 128 on. One instruction makes d = a @ b + d of a 64x8, b 8xn and
d 64xn, TF32 with float32 sums. a and b are read from shared memory while the threads go on; d is in their registers.

Descriptor
    The instruction is told where a and b lie by a number of 64 bits each, the same in all threads of the warpgroup
    (PTX ISA, Matrix Descriptor Format; addresses and offsets in units of 16 bytes):

        bits  0-13  address of the first element        bits 49-51  base offset, 0 here
        bits 16-29  leading byte offset                  bits 62-63  swizzle: 0 none, 1 of 128 bytes, 2 of 64, 3 of 32
        bits 32-45  stride byte offset

    Of TF32 both factors must be contiguous along the depth: a is kept by rows, b by columns, which are *lines* here.

Swizzle
    With swizzle 128 a line is 128 bytes, 32 steps of depth; 8 lines are an atom of 1024 bytes that starts at a multiple
    of 1024; the stride byte offset is that from atom to atom, and the leading one does not count. The 16-byte chunk j
    of line i is kept at chunk j ^ (i % 8): the hardware flips bits 4 to 6 of an address by its bits 7 to 9. That is the
    layout of kernels/matmul/tensor_copies.py, which was chosen so that no two of 8 lines meet in a bank. Since it is
    the address that is flipped, 8 steps further along the lines are 32 bytes further: the next product takes the
    descriptor + 2.

Order
    The tensor cores read shared memory through the *async proxy*, a way of its own past the one of ordinary accesses.
    What ordinary stores have written it sees after `fence_proxy_async` of each thread that stored, and then a barrier
    with all that issue products. `wgmma_fence` orders the registers before the first product. Products that were
    issued become a group by `wgmma_commit`; at most `pending` groups are under way after `wgmma_wait(pending)`, and
    what the others read may be overwritten, by other warpgroups' threads after a barrier. Sums are in flight until
    `results`: nothing but a product of the same size may touch their registers.

    So sums are a local array, which the compiler keeps in registers, and `results` is at once the wait for all groups
    and the assignment of what they made of it: without that the compiler might move a read of a sum before the wait.

    Of a product's thread, with `lane` of its warp and `warp` of its warpgroup, d[i] is the element

        row 16 warp + lane // 4 + 8 (i // 2 % 2), column 8 (i // 4) + 2 (lane % 4) + i % 2

Only code for compute capability 9.0, sm_90a, has these instructions: neither older GPUs nor newer ones do.

Source  NVIDIA, "PTX ISA" 9.0, Asynchronous Warpgroup Level Matrix Instructions: Async Proxy, Register Fragments and
        Shared Memory Matrix Layouts, Matrix Descriptor Format, wgmma.fence, wgmma.mma_async, wgmma.commit_group,
        wgmma.wait_group; Strided and Swizzled layouts of shared memory.
"""

# Numba hands each intrinsic more than it needs:
# ruff: noqa: ARG001

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types, uint64

from kernels.device import inlined
from kernels.intrinsics import assemble, is_integer

try:
    from numba.cuda.extending import intrinsic
except ImportError:  # no CUDA target here; kernels then run in the emulator
    from numba.core.extending import intrinsic

CAPABILITY = 9  # the major number of the GPUs that have it
GROUP = 128  # threads of a warpgroup
ROWS, STEPS = 64, 8  # of one product
WIDTHS = (32, 64, 128)  # its columns; the hardware has every multiple of 8 up to 256
LINE = 128  # bytes
ATOM = 1024  # bytes of 8 lines
NEXT = 2  # added to a descriptor: STEPS steps further
SWIZZLE_128 = 1 << 62 | (ATOM // 16) << 32 | 1 << 16  # all of a descriptor but the address
_VOID, _F32 = ir.VoidType(), ir.FloatType()


@inlined
def descriptor(address):
    """The descriptor of lines with swizzle 128 from this shared address (uint32) on, a multiple of ATOM."""
    return uint64(uint64(SWIZZLE_128) + uint64(address // 16))


def _statement(text: str) -> Callable[..., Any]:
    """The typing of an intrinsic that is one instruction without operands."""

    def typing(typingctx):
        def codegen(context, builder, signature, args):
            assemble(builder, _VOID, [], text, "")
            return context.get_dummy_value()

        return types.void(), codegen

    return typing


@intrinsic
def wgmma_fence(typingctx):
    """Order what the warp did to its registers before the products that follow (wgmma.fence)."""
    return _statement("wgmma.fence.sync.aligned;")(typingctx)


@intrinsic
def wgmma_commit(typingctx):
    """Make a group of the warpgroup's products since its last one (wgmma.commit_group)."""
    return _statement("wgmma.commit_group.sync.aligned;")(typingctx)


@intrinsic
def wgmma_wait(typingctx, pending):
    """Wait until at most `pending`, a constant of 0 or 1, of the warpgroup's groups are under way (wgmma.wait_group).

    What the others have read of shared memory may then be overwritten. It leaves the sums in flight.
    """
    if not is_integer(pending):
        return None

    def codegen(context, builder, signature, args):
        one = builder.icmp_signed("==", args[0], ir.IntType(64)(1))
        with builder.if_else(one) as (then, otherwise):  # the instruction takes a constant: one branch is left
            with then:
                assemble(builder, _VOID, [], "wgmma.wait_group.sync.aligned 1;", "")
            with otherwise:
                assemble(builder, _VOID, [], "wgmma.wait_group.sync.aligned 0;", "")
        return context.get_dummy_value()

    return types.void(types.int64), codegen


def _registers(context, builder, kind, array, count):
    """Pointers to the first `count` elements of a local array."""
    data = context.make_array(kind)(context, builder, array).data
    return [builder.gep(data, [ir.IntType(64)(k)]) for k in range(count)]


def _update(builder, pointers, arguments, text, constraints):
    """One instruction that reads and writes the registers that `pointers` stand for, and takes `arguments`."""
    count = len(pointers)
    tied = ",".join(["=f"] * count + [*map(str, range(count)), *constraints])
    values = [builder.load(pointer) for pointer in pointers]
    result = assemble(builder, ir.LiteralStructType([_F32] * count), [*values, *arguments], text, tied)
    for k, pointer in enumerate(pointers):
        builder.store(builder.extract_value(result, k), pointer)


def _is_sums(kind):
    return isinstance(kind, types.Array) and kind.layout == "C" and kind.ndim == 1 and kind.dtype == types.float32


def _product(width: int) -> Any:
    @intrinsic
    def wgmma_tf32(typingctx, sums, a, b):
        """Start sums += a @ b, of a and b by descriptors (uint64); see the module (wgmma.mma_async)."""
        if not _is_sums(sums) or (a, b) != (types.uint64, types.uint64):
            return None
        count = width // 2
        slots = ", ".join(f"${k}" for k in range(count))
        text = (
            f"wgmma.mma_async.sync.aligned.m64n{width}k8.f32.tf32.tf32 "
            f"{{{slots}}}, ${2 * count}, ${2 * count + 1}, 1, 1, 1;"
        )

        def codegen(context, builder, signature, args):
            pointers = _registers(context, builder, signature.args[0], args[0], count)
            _update(builder, pointers, list(args[1:]), text, ["l", "l"])
            return context.get_dummy_value()

        return types.void(sums, a, b), codegen

    return wgmma_tf32


def _results(width: int) -> Any:
    @intrinsic
    def wgmma_results(typingctx, sums):
        """Wait for all products of the warpgroup; the sums can then be used (wgmma.wait_group 0)."""
        if not _is_sums(sums):
            return None

        def codegen(context, builder, signature, args):
            pointers = _registers(context, builder, signature.args[0], args[0], width // 2)
            _update(builder, pointers, [], "wgmma.wait_group.sync.aligned 0;", [])
            return context.get_dummy_value()

        return types.void(sums), codegen

    return wgmma_results


# By columns of the product. The sums are a local array of width // 2 float32.
WGMMA_TF32 = {width: _product(width) for width in WIDTHS}
WGMMA_RESULTS = {width: _results(width) for width in WIDTHS}
