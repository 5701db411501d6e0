"""The bulk copy engine of Hopper, and the barriers that say when a copy has arrived.

One thread starts a copy of many kilobytes from global to shared memory, and no thread moves the data. The copy counts
the bytes that have arrived on an *mbarrier*, 8 bytes of shared memory that threads can wait for. An mbarrier goes
through phases, number 0, 1, ...: a phase ends when as many arrivals as it was initialised for have come, and as many
bytes as they expected (`mbarrier_expect` is one arrival and says how many bytes). A wait names the parity of a phase,
its number modulo 2, and ends when that phase has ended.

The engine works through the async proxy (kernels/wgmma.py). It sees an mbarrier after `fence_proxy_async` of the thread
that initialised it; what it copied is visible to a thread after its wait, and to that thread's products without any
further fence.

Source  NVIDIA, "PTX ISA" 9.0, Asynchronous Copy: cp.async.bulk; mbarrier.init, mbarrier.arrive.expect_tx,
        mbarrier.try_wait; Membar, fence.proxy.async.
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

MBARRIER = 8  # bytes
TRIES = 1 << 25
_VOID, _I64 = ir.VoidType(), ir.IntType(64)
_GLOBAL = 1  # address space


def _of_numbers(count, text):
    """The typing of an intrinsic that is an instruction on `count` numbers of 32 bits."""

    def typing(typingctx, *given):
        if len(given) != count or not is_integer(*given):
            return None

        def codegen(context, builder, signature, args):
            assemble(builder, _VOID, list(args), text, ",".join("r" * count))
            return context.get_dummy_value()

        return types.void(*[types.uint32] * count), codegen

    return typing


@intrinsic
def fence_proxy_async(typingctx):
    """Show the async proxy what the thread has written to shared memory (fence.proxy.async)."""

    def codegen(context, builder, signature, args):
        assemble(builder, _VOID, [], "fence.proxy.async.shared::cta;", "")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def mbarrier_init(typingctx, barrier, arrivals):
    """Make an mbarrier of 8 bytes at a shared address, whose phases take so many arrivals (mbarrier.init).

    One thread does it; others use it after a barrier.
    """
    return _of_numbers(2, "mbarrier.init.shared::cta.b64 [$0], $1;")(typingctx, barrier, arrivals)


@intrinsic
def mbarrier_expect(typingctx, barrier, size):
    """Arrive, and let the phase end no sooner than `size` more bytes have (mbarrier.arrive.expect_tx)."""
    return _of_numbers(2, "mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], $1;")(typingctx, barrier, size)


@intrinsic
def mbarrier_wait(typingctx, barrier, parity):
    """Wait until the phase of this parity, 0 or 1, has ended (mbarrier.try_wait.parity, until it has).

    Each try takes the hardware some time. After TRIES of them, seconds, nothing will come: the launch ends in an error.
    """
    text = (
        "{ .reg .pred ended; .reg .u32 tries; mov.u32 tries, 0; "
        "again: mbarrier.try_wait.parity.shared::cta.b64 ended, [$0], $1; @ended bra done; "
        f"add.u32 tries, tries, 1; setp.ge.u32 ended, tries, {TRIES}; @!ended bra again; trap; done: }}"
    )
    return _of_numbers(2, text)(typingctx, barrier, parity)


@intrinsic
def copy_bulk(typingctx, destination, x, i, size, barrier):
    """Start to copy `size` bytes from &x[i] in global memory to a shared address (cp.async.bulk).

    All three are multiples of 16. The bytes are counted on the mbarrier.
    """
    words = types.CPointer(types.float32), types.CPointer(types.uint32)
    if x not in words or not is_integer(destination, i, size, barrier):
        return None

    def codegen(context, builder, signature, args):
        destination, x, i, size, barrier = args
        place = builder.addrspacecast(builder.gep(x, [i]), ir.PointerType(x.type.pointee, _GLOBAL))
        text = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [$0], [$1], $2, [$3];"
        assemble(builder, _VOID, [destination, builder.ptrtoint(place, _I64), size, barrier], text, "r,l,r,r")
        return context.get_dummy_value()

    return types.void(types.uint32, x, types.int64, types.uint32, types.uint32), codegen
