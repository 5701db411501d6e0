"""`minidl doctor`."""

import json
import os
from functools import partial

import click

from minidl.cli import checks, gpu_checks, layout
from minidl.cli.checks import FAIL, INFO, PASS, WARN, Check, Finding

COLOURS = {PASS: "green", INFO: "blue", WARN: "yellow", FAIL: "red"}
INDENT = 21  # of what was found: after the status and the check's name


# Not minidl.cli.options: it brings NumPy, which may be what is broken.
@click.command("doctor")
@click.option("--data-dir", metavar="DIR", help="Where data sets lie.  [default: $MINIDL_DATA]")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def command(ctx: click.Context, data_dir: str | None, as_json: bool) -> None:
    """Check that what minidl needs is here and works.

    Each line is pass, info (nothing needs doing), warn (it works, less well than it could) or fail, and says what to do
    where something can be done. The exit code is 1 if anything fails.
    """
    findings = []
    for check in all_checks(data_dir):
        finding = checks.run(check)
        findings.append({"check": check.name, **finding._asdict()})
        if not as_json:
            _print(check.name, finding)
    failures, warnings = (sum(finding["status"] == status for finding in findings) for status in (FAIL, WARN))
    if as_json:
        click.echo(json.dumps({"ok": not failures, "checks": findings}))
    else:
        click.echo(f"\n{_count(failures, 'failure')}, {_count(warnings, 'warning')}")
    if failures:
        ctx.exit(1)


def all_checks(data_dir: str | None) -> list[Check]:
    """All checks, in the order in which one would mend things; the last column is for a check that raises."""
    first = "mend the failures above first"
    reinstall = "run `python -m pip install --force-reinstall {}`"
    return [
        Check("Python", checks.python, "install Python 3.11 or newer"),
        Check("kernels", checks.kernels_package, "reinstall minidl in a virtual environment of its own"),
        *(Check(name, partial(checks.dependency, name), reinstall.format(name)) for name in checks.DEPENDENCIES),
        Check("processor", checks.processor, first),
        Check("memory", checks.memory, "look at what the system says about its memory"),
        Check("BLAS", checks.blas, reinstall.format("numpy threadpoolctl")),
        Check("Numba", checks.numba_compiles, reinstall.format("numba llvmlite")),
        Check("Numba's cache", checks.numba_cache, "set NUMBA_CACHE_DIR to a folder that can be written to"),
        Check("CPU backend", checks.cpu_backend, f"{first}; if there are none, report this as a bug"),
        Check("emulator", gpu_checks.emulator, reinstall.format("numba")),
        Check("NVIDIA driver", gpu_checks.nvidia_driver, first),
        Check("CuPy", gpu_checks.cupy, first),
        Check("device", gpu_checks.device, first),
        Check("data sets", partial(checks.data_sets, data_dir), "name another folder with --data-dir"),
        Check("runs folder", checks.runs_folder, "train with --out DIR, a folder that can be written to"),
        Check("stdout", checks.stdout, "set PYTHONUTF8=1"),
    ]


def _print(name: str, finding: Finding) -> None:
    status: str = finding.status
    if "NO_COLOR" not in os.environ:
        status = click.style(status, fg=COLOURS[status])
    layout.echo(finding.found, indent=INDENT, first=f"{status}  {name:13}  ")
    if finding.remedy:
        layout.echo(f"to do: {finding.remedy}", indent=INDENT)


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"
