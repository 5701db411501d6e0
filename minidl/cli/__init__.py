"""The command line: one file a command, each a thin layer over the library."""

import difflib
import errno
import os
import sys
from importlib import import_module
from typing import Any

import click

from kernels.errors import OutOfMemoryError
from minidl.errors import MinidlError
from minidl.version import __version__

# Module and summary. A command is imported when it is called, so that `minidl --help` does not wait for Numba.
COMMANDS = {
    "train": ("minidl.cli.train", "Train a network; by default a small CNN on handwritten digits."),
    "eval": ("minidl.cli.evaluate", "Loss and accuracy of a trained network."),
    "predict": ("minidl.cli.predict", "Classify pictures with a trained network."),
    "export": ("minidl.cli.export", "Write a trained network for PyTorch or as ONNX."),
    "import": ("minidl.cli.import_weights", "Make a run of weights from PyTorch or ONNX."),
    "monitor": ("minidl.cli.monitor", "Draw what `train --monitor` measured."),
    "verify": ("minidl.cli.verify", "Hold every operation of a device against its float64 definition."),
    "bench": ("minidl.cli.bench", "Time operations and training steps, beside PyTorch."),
    "models": ("minidl.cli.models", "List the networks: parameters, FLOPs, memory; show the layers of one."),
    "data": ("minidl.cli.data", "List the data sets and check their files."),
    "kernel": ("minidl.cli.kernel", "Compile the GPU kernels, without a GPU, and check their machine code."),
    "doctor": ("minidl.cli.doctor", "What is here, what is missing, and what to do about it."),
    "version": ("minidl.cli.version", "The version, and those of what minidl stands on."),
}


_WRITING = (errno.ENOSPC, errno.EFBIG, errno.EIO, errno.EBADF)  # how writing fails where opening did not


class _Failure(click.ClickException):
    """An error in one line, with an exit code of its own."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click declares it a class variable


class _Commands(click.Group):
    """Loads each command's module when it is used; turns minidl's errors into one line and an exit code."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        command: click.Command | None = import_module(COMMANDS[name][0]).command if name in COMMANDS else None
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def main(self, *arguments: Any, **options: Any) -> Any:
        _open_missing_streams()
        try:
            return super().main(*arguments, **options)
        except (OSError, SystemExit) as error:
            problem = _stdout_problem(error)
            if problem is None or getattr(error, "code", None):  # an error that was told already
                raise
            click.echo(f"Error: standard output cannot be written: {problem}", err=True)
            raise SystemExit(1) from None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise click.UsageError(f"No such command '{args[0]}'.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MinidlError as error:
            raise _Failure(str(error), error.exit_code) from None
        except OutOfMemoryError as error:
            raise _Failure(str(error), 1) from None
        except Exception as error:
            faults = sys.modules.get("kernels.emulator.faults")  # not imported for this: it brings Numba
            if faults is not None and isinstance(error, faults.KernelFault):
                raise _Failure(f"the emulator stopped a kernel: {error}", 1) from None
            raise
        except KeyboardInterrupt:
            raise SystemExit(130) from None


def _open_missing_streams() -> None:
    """Give a program that was started without stdout or stderr (`>&-`) one that goes nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            setattr(sys, name, open(nowhere, "w", encoding="utf-8", closefd=False))  # noqa: SIM115  # until the end


def _stdout_problem(end: OSError | SystemExit) -> str | None:
    """Why stdout took not all (a full disk), or None if it did, where a command ended so. The rest is dropped."""
    problem = None
    if isinstance(end, OSError) and end.filename is None and end.errno in _WRITING:
        problem = end.strerror  # all files are written by code that says which; this one has no name
    try:
        sys.stdout.flush()
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # or the interpreter would try again as it ends, and complain
        os.close(nowhere)
        problem = error.strerror
    return problem


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="minidl", message="%(prog)s %(version)s")
def main() -> None:
    """Batch Normalization from the kernel up: train small networks, with and without it."""
