"""What the machine code of each kernel was when it was last recorded, so that a change shows as a diff.

The record is docs/results/kernels.json: one line a kernel, example and architecture.
"""

import contextlib
import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from kernels.compile import versions
from minidl.errors import DataError
from minidl.lab.machine_code import ARCHITECTURES, MachineCode
from minidl.training.atomic import write_atomically

RECORD = Path(__file__).resolve().parents[2] / "docs" / "results" / "kernels.json"
Numbers = dict[str, Any]


def toolkit() -> dict[str, str]:
    """Versions of what makes machine code and of what reads it."""
    found = versions()  # Python's among them: Numba starts from its bytecode
    with contextlib.suppress(metadata.PackageNotFoundError):
        found["nvidia-cuda-nvdisasm"] = metadata.version("nvidia-cuda-nvdisasm")
    return found


def numbers(code: MachineCode) -> Numbers:
    """What is recorded of it."""
    return {
        "registers": code.registers,
        "static shared": code.static_shared,
        "dynamic shared": code.dynamic_shared,
        "instructions": code.size,
        **code.instructions,
    }


class Record:
    """The recorded numbers by kernel and architecture, and the versions that they belong to."""

    def __init__(self, toolkit: dict[str, str], kernels: dict[str, dict[str, Numbers]]) -> None:
        self.toolkit = toolkit
        self.kernels = kernels

    @classmethod
    def read(cls, path: Path) -> "Record":
        """An empty one where there is no file. Raises DataError for a file that is no record."""
        if not path.exists():
            return cls({}, {})
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(content["toolkit"], content["kernels"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is no record of kernels ({error}); write it anew with --update") from None

    def differences(self, codes: Sequence[MachineCode], complete: bool) -> list[str]:
        """What changed since, a line each; `complete` if these are all kernels there are."""
        lines = []
        for code in codes:
            if not code.instructions:  # it did not compile
                continue
            recorded = self.kernels.get(code.kernel, {}).get(code.architecture)
            what = f"{code.kernel} {code.architecture}"
            if recorded is None and code.architecture in ARCHITECTURES:
                lines.append(f"{what}: not recorded yet")
            elif recorded is not None and recorded != numbers(code):
                lines.append(f"{what}: {_changes(recorded, numbers(code))}")
        if complete:
            known = {code.kernel for code in codes}
            lines += [f"{name}: recorded, but there is no such kernel" for name in self.kernels if name not in known]
        return lines

    def update(self, codes: Sequence[MachineCode], complete: bool) -> None:
        """Take these numbers; of a complete set nothing else stays, nor of another toolkit."""
        if complete or self.toolkit != toolkit():
            self.kernels = {}
        self.toolkit = toolkit()
        for code in (code for code in codes if code.instructions):
            self.kernels.setdefault(code.kernel, {})[code.architecture] = numbers(code)

    def write(self, path: Path) -> None:
        """Sorted, a line for each kernel and architecture."""
        kernels = []
        for kernel, architectures in sorted(self.kernels.items()):
            lines = (f"   {json.dumps(name)}: {json.dumps(one)}" for name, one in sorted(architectures.items()))
            kernels.append(f"  {json.dumps(kernel)}: {{\n" + ",\n".join(lines) + "\n  }")
        text = f'{{\n "toolkit": {json.dumps(self.toolkit)},\n "kernels": {{\n' + ",\n".join(kernels) + "\n }\n}\n"
        write_atomically(path, text.encode())


def _changes(before: Numbers, now: Numbers) -> str:
    changed = [name for name in {**before, **now} if before.get(name, 0) != now.get(name, 0)]
    return ", ".join(f"{name} {before.get(name, 0)} -> {now.get(name, 0)}" for name in changed) or "order of entries"
