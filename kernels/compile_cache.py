"""Compiled kernels on disk, so that only the first process on a machine waits for the compiler.

An entry is found by everything that its machine code follows from: the kernel's bytecode and what it closes over, the
device functions it calls, the GPU's architecture, and the versions of the compilers. Numba's own cache looks at the
kernel's file and closure, and would not see a change of a device function that lies in another file.
"""

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

from kernels.compile import Capability, Code, architecture, compile_kernel, target, versions
from kernels.fingerprint import UncacheableError
from kernels.fingerprint import fingerprint as fingerprint_of
from kernels.launch import Kernel

MAGIC = b"minidl kernel 1\n"


class CompileCache:
    """Compiles each kernel once a machine."""

    def __init__(self, folder: Path | None) -> None:
        """Entries lie in `folder`; without one, or where it cannot be written to, each process compiles anew."""
        self.folder = folder
        self.compiled = 0  # by this process
        self.loaded = 0

    def get(self, kernel: Kernel, capability: Capability) -> Code:
        """The kernel's machine code."""
        try:
            path = self.folder and self.folder / f"{kernel.name}-{fingerprint(kernel, capability)[:32]}.cubin"
        except UncacheableError:
            path = None
        code = path and _read(path)
        if code:
            self.loaded += 1
            return code
        code = compile_kernel(kernel, capability)
        self.compiled += 1
        if path:
            _write(path, code)
        return code


def default_folder() -> Path:
    """$MINIDL_CACHE_DIR, else minidl/kernels in the user's cache folder."""
    chosen = os.environ.get("MINIDL_CACHE_DIR")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "minidl" / "kernels"


def fingerprint(kernel: Kernel, capability: Capability) -> str:
    """A SHA-256 of all that the kernel's machine code follows from. Raises UncacheableError."""
    types_of_parameters = [(str(one.dtype), one.is_pointer) for one in kernel.parameters.values()]
    target_and_tools = architecture(target(capability)), versions()
    return fingerprint_of(kernel.function, kernel.name, kernel.block, types_of_parameters, *target_and_tools)


def _read(path: Path) -> Code | None:
    """The entry; None where there is none or it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    magic, _, rest = content.partition(b"\n")
    header, _, cubin = rest.partition(b"\n")
    try:
        facts = json.loads(header)
        sound = magic + b"\n" == MAGIC and facts["sha256"] == hashlib.sha256(cubin).hexdigest()
        return Code(str(facts["entry"]), cubin) if sound else None
    except (ValueError, KeyError, TypeError):
        return None


def _write(path: Path, code: Code) -> None:
    """Under a name of its own first, then renamed: no process ever sees half an entry."""
    header = json.dumps({"entry": code.entry, "sha256": hashlib.sha256(code.cubin).hexdigest()}).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    except OSError:
        return  # a cache that cannot be written to is no cache
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(MAGIC + header + b"\n" + code.cubin)
        Path(temporary).replace(path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
