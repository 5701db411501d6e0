"""The command line: one file a command, each a thin layer over the library."""

from importlib import import_module
from typing import Any

import click

from minidl.errors import MinidlError
from minidl.version import __version__

# Module and summary. A command is imported when it is called, so that `minidl --help` does not wait for Numba.
COMMANDS = {
    "train": ("minidl.cli.train", "Train a network; by default a small CNN on handwritten digits."),
    "eval": ("minidl.cli.evaluate", "Loss and accuracy of a trained network."),
    "predict": ("minidl.cli.predict", "Classify pictures with a trained network."),
    "data": ("minidl.cli.data", "List the data sets and check their files."),
    "doctor": ("minidl.cli.doctor", "What is here, what is missing, and what to do about it."),
    "version": ("minidl.cli.version", "The version, and those of what minidl stands on."),
}


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

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MinidlError as error:
            raise _Failure(str(error), error.exit_code) from None
        except KeyboardInterrupt:
            raise SystemExit(130) from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="minidl", message="%(prog)s %(version)s")
def main() -> None:
    """Batch Normalization from the kernel up: train small networks, with and without it."""
