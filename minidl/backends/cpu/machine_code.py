"""Functions written in LLVM's language: vectors of this processor, building, and calling them from Numba's kernels.

Numba leaves to LLVM what becomes a vector and what stays in a register; where that decides about the speed, a function
is put together here, instruction by instruction. All of them build in a fraction of a second, once on a machine.
"""

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import llvmlite
import llvmlite.binding as llvm
from llvmlite import ir
from numba import config
from numba.core.codegen import get_host_cpu_features

from kernels.fingerprint import UncacheableError, fingerprint_of_module
from minidl.backends.compilation import COMPILATION
from minidl.backends.cpu.cache import through_disk


def _processor() -> tuple[str, str]:
    """Name and features, as LLVM has them, of what Numba compiles for: this processor, unless it is told another."""
    name, features = config.CPU_NAME, config.CPU_FEATURES
    name = llvm.get_host_cpu_name() if name is None else name
    return name, get_host_cpu_features() if features is None else features


def _vectors(features: str) -> tuple[int, int]:
    """Lanes of its vectors of float32, and how many vectors of sums its registers hold beside what is read."""
    has = set(features.split(","))
    if "+avx512f" in has:
        return 16, 16  # of 32 registers; with more it is no faster
    if {"+avx2", "+fma"} <= has:
        return 8, 12  # of 16
    return 4, 12


Result = TypeVar("Result")

LANES, SUMS = _vectors(_processor()[1])

I64, FLOAT = ir.IntType(64), ir.FloatType()
POINTER = FLOAT.as_pointer()
VECTOR = ir.VectorType(FLOAT, LANES)
ZERO = ir.Constant(VECTOR, [0.0] * LANES)


def number(value: int) -> ir.Constant:
    """An integer."""
    return ir.Constant(I64, value)


def vector_at(b: ir.IRBuilder, base: Any, index: Any) -> Any:
    """A pointer to the vector that begins with element `index`."""
    return b.bitcast(b.gep(base, [index]), VECTOR.as_pointer())


def spread(b: ir.IRBuilder, value: Any) -> Any:
    """A vector of the number, of whatever type, in all lanes."""
    anything = ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined)
    index = ir.IntType(32)
    first = ir.Constant(ir.VectorType(index, LANES), [0] * LANES)
    return b.shuffle_vector(b.insert_element(anything, value, ir.Constant(index, 0)), anything, first)


def once(make: Callable[[], Result]) -> Callable[[], Result]:
    """A function that makes something at its first call, however many threads call it, and then gives that."""
    lock, made = threading.Lock(), functools.cache(make)

    @functools.wraps(make)
    def given() -> Result:
        with lock:
            return made()

    return given


def built(names: Sequence[str]) -> Callable[[Callable[[], ir.Module]], Callable[[], list[int]]]:
    """Make of a function, which puts together a module of LLVM, one that gives its functions' addresses, by `names`.

    At its first call it builds them, or takes the machine code that an earlier process has left on disk. A module
    follows from the source that puts it together, so that is not even done then.
    """

    def decorate(generate: Callable[[], ir.Module]) -> Callable[[], list[int]]:
        source = generate.__module__
        try:  # at import: it is this source that runs, however it is edited later
            stamp = fingerprint_of_module(source, LANES, SUMS)
        except UncacheableError:
            stamp = None
        owner = once(lambda: _load(source, stamp, generate))

        @functools.wraps(generate)
        def addresses() -> list[int]:
            return [owner().get_function_address(name) for name in names]

        return addresses

    return decorate


def _load(source: str, stamp: str | None, generate: Callable[[], ir.Module]) -> Any:
    """What owns the functions of module `source`, ready to run."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    name, features = _processor()
    machine = llvm.Target.from_default_triple().create_target_machine(cpu=name, features=features, opt=2)

    def emit() -> bytes:
        COMPILATION.begin()
        try:
            module = generate()
            module.triple = llvm.get_process_triple()
            return bytes(machine.emit_object(llvm.parse_assembly(str(module))))
        finally:
            COMPILATION.end()

    if stamp is None:
        COMPILATION.problem = f"{source}: it cannot be told when it changes"
        code = emit()
    else:
        facts = stamp, machine.triple, name, features, llvmlite.__version__, llvm.llvm_version_info
        code = through_disk(f"{source.rpartition('.')[2]}.machine_code", repr(facts), emit)
    owner = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    owner.add_object_file(llvm.ObjectFileRef.from_data(code))
    owner.finalize_object()
    return owner


def caller(function: ir.FunctionType) -> Callable[..., Any]:
    """What generates, within an intrinsic of Numba, the call of a function by its address.

    The intrinsic's arguments are the address and then the function's; for each pointer two of them, an array and the
    element to begin with. The array is contiguous.
    """

    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        given, place = [], 1
        for kind in function.args:
            if kind == POINTER:
                data = context.make_array(signature.args[place])(context, b, args[place]).data
                given.append(b.gep(data, [args[place + 1]]))
                place += 2
            else:
                given.append(args[place])
                place += 1
        b.call(b.inttoptr(args[0], function.as_pointer()), given)
        return context.get_dummy_value()

    return generate
