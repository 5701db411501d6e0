"""Kernels' machine code, read without a GPU: what it uses, and whether that is what the kernel promises.

Every kernel is compiled as it is for a GPU, and disassembled. A float64 instruction is a forgotten `float32(...)` and
takes 2 to 64 times as long; local memory is a spilled register, or an array that the compiler could not keep in
registers; a wide load that is missing costs time without changing a result.
"""

import functools
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple

from kernels.compile import Capability, SharedCompiler, ToolkitError, compile_ptx, entry_name, link
from kernels.launch import Factory, Kernel, factories
from minidl.errors import DeviceError

ARCHITECTURES = ("sm_80", "sm_90")
# Bytes of shared memory that a block may have, and that its arrays of fixed size may take. NVIDIA, "CUDA C++
# Programming Guide" 13.0, technical specifications per compute capability.
MOST_SHARED = {80: 163 << 10, 86: 99 << 10, 87: 163 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
MOST_STATIC = 48 << 10
RESERVED = 1 << 10  # that the assembler adds from Hopper on, to a block that has any
REGISTER_FILE = 65536  # of a multiprocessor; a thread's share is rounded up to 8
GROUP = 24  # kernels that are disassembled at once: starting the disassembler takes longer than compiling one

# What an instruction does, by the beginning of its name; the first that fits. NVIDIA, "CUDA Binary Utilities".
CLASSES = (
    ("matrix", ("HMMA", "HGMMA", "IMMA", "QGMMA", "LDSM")),
    ("async copy", ("LDGSTS", "UTMA", "UBLKCP")),
    ("global load", ("LDG", "LD.")),
    ("global store", ("STG", "ST.")),
    ("shared load", ("LDS",)),
    ("shared store", ("STS",)),
    ("local", ("LDL", "STL")),
    ("atomic", ("ATOM", "RED.", "REDG")),
    ("warp", ("SHFL", "VOTE", "MATCH", "REDUX")),
    ("barrier", ("BAR", "WARPSYNC", "MEMBAR", "DEPBAR", "LDGDEPBAR", "ERRBAR", "CCTL", "SYNCS")),
    ("branch", ("BRA", "BRX", "JMP", "CALL", "RET", "EXIT", "BSSY", "BSYNC", "BREAK", "BMOV", "NANOSLEEP", "YIELD")),
    ("special", ("MUFU",)),
    ("float", ("FADD", "FMUL", "FFMA", "FMNMX", "FSEL", "FSET", "FCHK", "FRND", "HADD", "HMUL", "HFMA")),
    ("convert", ("F2", "I2")),
)
WIDTH = re.compile(r"\.(64|128)\b")
FLOAT64 = re.compile(r"D(ADD|FMA|MMA|MNMX|MUL|SET|SETP)\b|.*\.F64\b|.*\d+H\b")  # MUFU.RCP64H starts a division
SECTION = re.compile(r"^\.text\.(\w+):\n(.*?)(?=^\t\.section|\Z)", re.MULTILINE | re.DOTALL)
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)
USAGE = re.compile(
    r"Function properties for '(\w+)':\n"
    r"info\s*: used (\d+) registers, .*?(\d+) stack, (\d+) bytes smem, .*?(\d+) bytes lmem"
)
CALLED = re.compile(r"^\s*(?:\.visible |\.weak )?\.func\b[^\n]*?(\w+)\s*\(", re.MULTILINE)


@dataclass(frozen=True)
class MachineCode:
    """Of a kernel for one architecture."""

    kernel: str
    architecture: str
    registers: int  # of a thread
    local: int  # bytes of local memory a thread, the stack among them
    static_shared: int  # bytes a block, in arrays of fixed size
    dynamic_shared: int  # bytes a block, given by the launch
    instructions: dict[str, int]  # by class
    problems: tuple[str, ...]  # promises that it breaks

    @property
    def size(self) -> int:
        """Instructions in all."""
        return sum(self.instructions.values())


class _Usage(NamedTuple):
    registers: int
    local: int
    static_shared: int


def examine(
    kernels: Sequence[Kernel], architecture: str, compiler: Callable[[Kernel, Capability], str] = compile_ptx
) -> list[MachineCode]:
    """Compile kernels and hold each against its promises. Raises ToolkitError; what does not compile is a problem."""
    capability = divmod(int(architecture.removeprefix("sm_")), 10)
    texts: dict[int, str] = {}
    results: dict[int, MachineCode] = {}
    for i, kernel in enumerate(kernels):
        try:
            texts[i] = re.sub(rf"\b{entry_name(kernel)}\b", f"kernel_{i}", compiler(kernel, capability))
        except ToolkitError:
            raise
        except Exception as error:
            results[i] = _failed(kernel, architecture, error)
    try:
        found = _assemble(list(texts.values()), capability) if texts else {}
    except RuntimeError as error:
        if len(kernels) == 1:
            return [_failed(kernels[0], architecture, error)]
        return [examine([kernel], architecture, compiler)[0] for kernel in kernels]  # to see whose fault it is
    for i, ptx in texts.items():
        usage, names = found[f"kernel_{i}"]
        results[i] = MachineCode(
            repr(kernels[i]),
            architecture,
            *usage,
            kernels[i].shared_bytes,
            dict(sorted(Counter(map(classify, names)).items())),
            tuple(_problems(kernels[i], capability, usage, ptx, names)),
        )
    return [results[i] for i in range(len(kernels))]


def _failed(kernel: Kernel, architecture: str, error: Exception) -> MachineCode:
    problem = f"does not compile: {type(error).__name__}: {' '.join(str(error).split())[:400]}"
    return MachineCode(repr(kernel), architecture, 0, 0, 0, kernel.shared_bytes, {}, (problem,))


def _assemble(texts: Sequence[str], capability: Capability) -> dict[str, tuple[_Usage, list[str]]]:
    """Of each kernel in these PTX texts what it uses, and its instructions."""
    try:
        cubin, log = link(texts, capability)
    except ToolkitError:
        raise
    except Exception as error:
        raise RuntimeError(str(error)) from None
    reserved = RESERVED if capability >= (9, 0) else 0
    usages = {
        name: _Usage(int(registers), int(stack) + int(local), max(int(shared) - reserved, 0))
        for name, registers, stack, shared, local in USAGE.findall(log)
    }
    listing = {name: INSTRUCTION.findall(text) for name, text in SECTION.findall(disassemble(cubin))}
    return {
        name: (usage, [instruction for instruction in listing[name] if instruction != "NOP"])
        for name, usage in usages.items()
        if name in listing
    }


def _problems(kernel: Kernel, capability: Capability, usage: _Usage, ptx: str, names: Sequence[str]) -> Iterator[str]:
    float64 = sorted({name for name in names if FLOAT64.match(name)})
    if float64:
        yield f"float64 instructions: {', '.join(float64)}"
    spills = sum(name.startswith(("LDL", "STL")) for name in names)
    if usage.local or spills:
        yield f"local memory: {usage.local} bytes a thread, {spills} loads and stores"
    called = CALLED.findall(ptx)
    if called:
        yield f"device functions that are not inlined: {', '.join(called)}"
    if usage.registers > kernel.promises.registers:
        yield f"{usage.registers} registers, promised are at most {kernel.promises.registers}"
    threads = prod(kernel.block)
    if -(-usage.registers // 8) * 8 * threads > REGISTER_FILE:
        yield f"{usage.registers} registers for each of {threads} threads: no block fits on a multiprocessor"
    if usage.static_shared > MOST_STATIC:
        yield f"{usage.static_shared:,} bytes of static shared memory, at most {MOST_STATIC:,} are allowed"
    most = MOST_SHARED.get(capability[0] * 10 + capability[1])
    shared = usage.static_shared + kernel.shared_bytes
    if most is not None and shared > most:
        yield f"{shared:,} bytes of shared memory, a block may have {most:,}"
    if (".extern .shared" in ptx) != (kernel.shared_bytes > 0):
        uses = "uses no" if kernel.shared_bytes else "uses"
        yield f"it {uses} dynamic shared memory, its launch declares {kernel.shared_bytes:,} bytes"
    for promised in kernel.promises.instructions:
        if not any(name.startswith(promised) for name in names):
            base = promised.partition(".")[0]
            instead = ", ".join(sorted({name for name in names if name.partition(".")[0] == base}))
            yield f"no {promised}, which is promised" + (f", but {instead}" if instead else "")


def classify(name: str) -> str:
    """An instruction's class; loads and stores with their width in bits."""
    for title, beginnings in CLASSES:
        if name.startswith(beginnings):
            width = WIDTH.search(name)
            return f"{title} {width[1] if width else 32}" if title.endswith(("load", "store")) else title
    return "integer and other"


def examine_all(
    names: Iterable[str] = (), architectures: Sequence[str] = ARCHITECTURES, jobs: int | None = None
) -> list[MachineCode]:
    """All examples of these factories (of every one by default), in `jobs` processes.

    Raises:
        ToolkitError: CUDA's compiler or disassembler is missing.
        DeviceError: There is no kernel of a name, no such architecture, or none that the kernels are for.
    """
    known = factories()
    chosen = sorted(set(names)) or list(known)
    for name in chosen:
        if name not in known:
            close = ", ".join(one for one in known if name in one) or "python -m minidl kernel compile names them all"
            raise DeviceError(f"there is no kernel '{name}'; known: {close}")
    for architecture in architectures:
        if not re.fullmatch(r"sm_\d{2,3}", architecture):
            raise DeviceError(f"'{architecture}' is no architecture; one is called sm_80, sm_90, ...")
    disassembler()  # before anything is compiled
    examples = {
        architecture: [
            (name, i)
            for name in chosen
            if architecture in (known[name].promises.architectures or architectures)
            for i in range(len(known[name].promises.examples))
        ]
        for architecture in architectures
    }
    if not any(examples.values()):
        has = ", ".join(sorted({one for name in chosen for one in known[name].promises.architectures}))
        raise DeviceError(f"{', '.join(chosen)}: only {has} has the instructions, given was {', '.join(architectures)}")
    everything = list(dict.fromkeys(one for some in examples.values() for one in some))
    groups = [
        {architecture: [one for one in some if one in part] for architecture, some in examples.items()}
        for part in (everything[start : start + GROUP] for start in range(0, len(everything), GROUP))
    ]
    jobs = min(jobs or _cores(), len(groups))
    if jobs < 2 or len(everything) < GROUP:
        found = [_examine_group(group) for group in groups]
    else:
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
            found = list(pool.map(_examine_group, groups))
    return sorted((code for group in found for code in group), key=lambda code: (code.kernel, code.architecture))


@functools.cache
def _known() -> dict[str, Factory]:
    return dict(factories())


def _examine_group(group: Mapping[str, Sequence[tuple[str, int]]]) -> list[MachineCode]:
    """By architecture; most of the compiler's work is done once for all of them."""
    compiler = SharedCompiler()
    return [
        code
        for architecture, examples in group.items()
        for code in examine([_known()[name].examples()[i] for name, i in examples], architecture, compiler)
    ]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def disassemble(cubin: bytes) -> str:
    """The disassembler's listing."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernels.cubin")
        path.write_bytes(cubin)
        done = subprocess.run([disassembler(), "-c", str(path)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"nvdisasm: {done.stderr.strip()}")
    return done.stdout


@functools.cache
def disassembler() -> str:
    """The path of nvdisasm. Raises ToolkitError, which says what to install."""
    try:
        from cuda.pathfinder import find_nvidia_binary_utility
    except ImportError:
        found = None
    else:
        found = find_nvidia_binary_utility("nvdisasm")
    if not found:
        raise ToolkitError(
            "machine code cannot be read here; install NVIDIA's: pip install nvidia-cuda-nvdisasm 'numba-cuda[cu13]'"
        )
    return str(found)
