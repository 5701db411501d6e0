"""From a kernel's Python function to machine code: Numba makes PTX of it, nvJitLink machine code. Needs no GPU.

What is compiled here for a GPU is, byte for byte, what is checked where there is none.
"""

import functools
import re
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from kernels.launch import Kernel

Capability = tuple[int, int]  # a GPU's, (9, 0) for Hopper


class Code(NamedTuple):
    """A kernel for one kind of GPU."""

    entry: str  # the name by which it is found
    cubin: bytes


class ToolkitError(Exception):
    """What compiles for GPUs is missing; says what to install."""


def compile_kernel(kernel: Kernel, capability: Capability) -> Code:
    """Machine code. Raises ToolkitError, or what Numba raises."""
    return assemble(compile_ptx(kernel, capability), entry_name(kernel), capability)


def entry_name(kernel: Kernel) -> str:
    """The kernel's name in machine code, which profilers and compute-sanitizer show."""
    return kernel.name if "_" in kernel.name else f"{kernel.name}_kernel"  # PTX reserves words such as add


def compile_ptx(kernel: Kernel, capability: Capability) -> str:
    """PTX, in which the kernel is called `entry_name(kernel)`."""
    try:
        from numba import cuda, types
    except ImportError as error:
        raise ToolkitError(_missing(error)) from None
    try:
        ptx, _ = cuda.compile_ptx(kernel.function, _signature(kernel, types), cc=target(capability))
    except (ImportError, OSError, RuntimeError) as error:
        if _is_about_toolkit(error):
            raise ToolkitError(_missing(error)) from None
        raise
    return _with_entry(kernel, str(ptx))


def _with_entry(kernel: Kernel, ptx: str) -> str:
    (mangled,) = re.findall(r"\.visible \.entry (\w+)\(", ptx)
    return ptx.replace(mangled, entry_name(kernel))


class SharedCompiler:
    """`compile_ptx` for several kinds of GPU: what Numba does before NVVM, most of the work, is done once a kernel.

    From compute capability 7.5 on Numba makes the same of a kernel for all of them, but for names within; so this is
    for machine code that is read, and `compile_kernel` for what is run.
    """

    def __init__(self) -> None:
        self._libraries: dict[Kernel, Any] = {}

    def __call__(self, kernel: Kernel, capability: Capability) -> str:
        """PTX. Raises as `compile_ptx` does."""
        if capability < (7, 5):
            return compile_ptx(kernel, capability)
        try:
            if kernel not in self._libraries:
                self._libraries[kernel] = _library_of(kernel, capability)
            (ptx,) = self._libraries[kernel].get_asm_strs(cc=target(capability))
        except (ImportError, AttributeError, TypeError, OSError, RuntimeError):
            return compile_ptx(kernel, capability)  # this Numba has other names there, or it says what is wrong
        return _with_entry(kernel, str(ptx))


def _library_of(kernel: Kernel, capability: Capability) -> Any:
    """What Numba hands to NVVM, by a function of its own that `cuda.compile_ptx` calls."""
    from numba import types
    from numba.cuda.compiler import _compile_pyfunc_with_fixup

    options = {"debug": None, "lineinfo": False, "device": False, "fastmath": False, "opt": None, "abi": "numba"}
    options |= {"abi_info": None, "forceinline": False, "launch_bounds": None, "lto": False}
    library, _ = _compile_pyfunc_with_fixup(
        kernel.function, _signature(kernel, types), cc=target(capability), **options
    )
    return library


def assemble(ptx: str, entry: str, capability: Capability) -> Code:
    """Machine code of PTX."""
    cubin, _ = link([ptx], capability)
    return Code(entry, cubin)


def link(texts: Sequence[str], capability: Capability) -> tuple[bytes, str]:
    """Machine code of several PTX texts, and what the assembler says of each kernel in them."""
    try:
        from cuda.core import Linker, LinkerOptions, ObjectCode
    except ImportError as error:
        raise ToolkitError(_missing(error)) from None
    options = LinkerOptions(arch=architecture(target(capability)), verbose=True)
    try:
        linker = Linker(*(ObjectCode.from_ptx(ptx.encode()) for ptx in texts), options=options)
    except RuntimeError as error:
        if _is_about_toolkit(error):
            raise ToolkitError(_missing(error)) from None
        raise
    cubin = bytes(linker.link("cubin").code)
    return cubin, str(linker.get_info_log())


def target(capability: Capability) -> tuple[Any, ...]:
    """What Numba compiles for: from Hopper on with the instructions that only this architecture has (wgmma, TMA)."""
    return (*capability, "a") if capability >= (9, 0) else capability


def architecture(numbers: tuple[Any, ...]) -> str:
    """(9, 0) is "sm_90"."""
    return "sm_" + "".join(map(str, numbers))


def versions() -> dict[str, str]:
    """Of everything that has a say in the machine code."""
    found = {"python": "{}.{}".format(*sys.version_info)}
    for name in ("numba", "llvmlite", "numba-cuda", *_TOOLKIT):
        for distribution in _TOOLKIT.get(name, (name,)):
            try:
                found[name] = metadata.version(distribution)
                break
            except metadata.PackageNotFoundError:
                continue
        else:
            if name in _TOOLKIT:
                found[name] = _library(name.removeprefix("nvidia-"))
    return found


# CUDA 13's packages, and CUDA 12's.
_TOOLKIT = {
    "nvidia-nvvm": ("nvidia-nvvm", "nvidia-cuda-nvcc-cu12"),
    "nvidia-nvjitlink": ("nvidia-nvjitlink", "nvidia-nvjitlink-cu12"),
}


@functools.cache
def _library(name: str) -> str:
    """What tells one build of a library from another that no package installed: where it lies, its size and date."""
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        path = Path(str(load_nvidia_dynamic_lib({"nvjitlink": "nvJitLink"}.get(name, name)).abs_path)).resolve()
        status = path.stat()
    except (ImportError, OSError, RuntimeError):
        return "not found"
    return f"{path} {status.st_size} {status.st_mtime_ns}"


def _signature(kernel: Kernel, types: Any) -> Any:
    parameters = []
    for parameter in kernel.parameters.values():
        number = getattr(types, parameter.dtype.name)
        parameters.append(types.CPointer(number) if parameter.is_pointer else number)
    return types.void(*parameters)


def _is_about_toolkit(error: Exception) -> bool:
    """Whether a library was not found: Numba's NvvmSupportError, cuda.pathfinder's DynamicLibNotFoundError."""
    return isinstance(error, ImportError | OSError) or "NotFound" in type(error).__name__


def _missing(error: BaseException) -> str:
    reason = " ".join(str(error).split())[:200]
    return f"kernels cannot be compiled here ({reason}); install CUDA's compiler: pip install 'numba-cuda[cu13]'"
