"""How commands set out text: counted things, tables with aligned columns, paragraphs that fit the terminal."""

import shutil
import sys
import textwrap
from collections.abc import Sequence

import click


def count(number: int, noun: str, plural: str = "") -> str:
    """A number and what it counts: 1 epoch, 2 epochs."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def table(rows: Sequence[Sequence[str]], align: str) -> list[str]:
    """Lines of `rows`, columns two spaces apart; `align` has a "<" or ">" for each column."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True)).rstrip()
        for row in rows
    ]


def echo(text: str, indent: int = 0, first: str = "") -> None:
    """Print a paragraph, broken into lines of the terminal's width; in one line where stdout is no terminal.

    Args:
        text: what to print.
        indent: spaces before each line.
        first: what stands in place of the first line's spaces, `indent` wide; it may be coloured.
    """
    lines = [text]
    if sys.stdout.isatty():
        width = max(shutil.get_terminal_size().columns - indent, 24)
        lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]
    for number, line in enumerate(lines):
        click.echo((first if number == 0 and first else " " * indent) + line)
