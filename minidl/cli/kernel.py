"""`minidl kernel compile` and `minidl kernel count`."""

from collections.abc import Sequence

import click

from kernels.compile import ToolkitError
from minidl.cli import layout
from minidl.errors import DeviceError
from minidl.lab import access_counts, machine_code, machine_code_record
from minidl.lab.access_counts import Measured
from minidl.lab.machine_code import ARCHITECTURES, MachineCode
from minidl.lab.machine_code_record import Record, toolkit


@click.group("kernel")
def command() -> None:
    """Look at the GPU kernels, on any machine."""


@command.command("compile")
@click.option("--kernel", "names", metavar="NAME", multiple=True, help="Only this kernel; may be given repeatedly.")
@click.option(
    "--arch",
    "architectures",
    metavar="ARCH",
    multiple=True,
    help=f"Compile for this architecture; may be given repeatedly.  [default: {', '.join(ARCHITECTURES)}]",
)
@click.option("--update", is_flag=True, help="Record the numbers instead of comparing with those recorded.")
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="Processes.  [default: all cores]")
@click.pass_context
def compile_kernels(
    ctx: click.Context, names: tuple[str, ...], architectures: tuple[str, ...], update: bool, jobs: int | None
) -> None:
    """Compile every kernel, without a GPU, and check its machine code.

    No float64 instruction, no local memory (spilled registers), no more registers and shared memory than promised, and
    the wide loads and other instructions that a kernel promises. The numbers are compared with those recorded in
    docs/results/kernels.json; where they differ, or a promise is broken, the exit code is 1.
    """
    try:
        codes = machine_code.examine_all(names, architectures or ARCHITECTURES, jobs)
    except ToolkitError as error:
        raise DeviceError(str(error)) from None
    for line in table(codes):
        click.echo(line)
    click.echo()
    broken = [f"{code.kernel} {code.architecture}: {problem}" for code in codes for problem in code.problems]
    for line in broken:
        layout.echo(f"PROBLEM {line}")
    changed = _compare(codes, complete=not names and not architectures, update=update)
    click.echo(
        f"{layout.count(len(codes), 'compiled kernel')}, {layout.count(len(broken), 'problem')}, "
        f"{layout.count(changed, 'difference')} from the record"
    )
    if broken or changed:
        ctx.exit(1)


@command.command("count")
@click.option("--kernel", "names", metavar="NAME", multiple=True, help="Only this kernel; may be given repeatedly.")
@click.pass_context
def count_accesses(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Count what the fast kernels move, in the emulator, and hold it against what they may.

    Of each kernel that promises wide accesses, on small arrays as it is meant for: requests of warps to global memory,
    sectors of 32 bytes that they move, the share of those bytes that was asked for (at least 95 %), the share of bank
    conflicts in the passes over shared memory (at most 5 %), and how often the arrays pass in all, each counted once in
    the kernel's cost. Where one of them does not hold the exit code is 1.
    """
    measured = access_counts.measure(access_counts.lines_of(names))
    for line in counts_table(measured):
        click.echo(line)
    click.echo()
    broken = [f"{one.line.kernel} {one.line.shape}: {problem}" for one in measured for problem in one.problems]
    unknown = [] if names else access_counts.missing()
    broken += [f"{name} promises instructions and has no line in the table of counts" for name in unknown]
    for problem in broken:
        layout.echo(f"PROBLEM {problem}")
    click.echo(f"{layout.count(len(measured), 'line')}, {layout.count(len(broken), 'problem')}")
    if broken:
        ctx.exit(1)


def _compare(codes: list[MachineCode], complete: bool, update: bool) -> int:
    """Compare with the record, or write it; how many differences there are."""
    path = machine_code_record.RECORD
    if not path.parent.is_dir():
        click.echo(f"nothing is compared: there is no folder {path.parent}, which comes with minidl's source")
        return 0
    record = Record({}, {}) if update and complete else Record.read(path)
    if update:
        record.update(codes, complete)
        record.write(path)
        click.echo(f"recorded in {path}")
        return 0
    if record.toolkit and record.toolkit != toolkit():
        versions = ", ".join(f"{name} {version}" for name, version in record.toolkit.items())
        layout.echo(f"not compared with the record, which is of {versions}: --update makes a new one")
        return 0
    differences = record.differences(codes, complete)
    for line in differences:
        layout.echo(f"CHANGED {line}")
    if differences:
        click.echo("if these are as they should be, record them with --update")
    return len(differences)


def table(codes: list[MachineCode]) -> list[str]:
    """Lines: kernel, architecture, what it uses."""
    rows = [("kernel", "arch", "registers", "shared", "instructions", "")]
    for code in codes:
        shared = code.static_shared + code.dynamic_shared
        verdict = "PROBLEM" if code.problems else ""
        rows.append((code.kernel, code.architecture, str(code.registers), f"{shared:,}", f"{code.size:,}", verdict))
    return layout.table(rows, "<<>>><")


def counts_table(measured: Sequence[Measured]) -> list[str]:
    """Lines: kernel, shape, what it moves, and why it moves more than each array once."""
    rows = [("kernel", "shape", "requests", "sectors", "asked for", "conflicts", "passes", "at most", "")]
    for one in measured:
        line = one.line
        shares = f"{100 * one.share:.1f} %", f"{100 * one.conflicts:.1f} %"
        passes = f"{one.passes:.2f}", f"{line.limit:.2f}"
        verdict = "PROBLEM" if any(one.problems) else line.why
        rows.append((line.kernel, line.shape, f"{one.requests:,}", f"{one.sectors:,}", *shares, *passes, verdict))
    return layout.table(rows, "<<>>>>>><")
