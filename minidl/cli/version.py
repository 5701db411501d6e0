"""`minidl version`."""

import json

import click

from minidl.cli import layout
from minidl.training.environment import environment
from minidl.version import __version__


@click.command("version")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON, with the machine and the versions it runs on.")
def command(as_json: bool) -> None:
    """The version of minidl, and those of Python and the packages it stands on."""
    here = environment()
    if as_json:
        click.echo(json.dumps({"version": __version__} | here))
        return
    minidl, *packages = here["versions"].items()
    for line in layout.table([minidl, ("python", here["python"]), *packages], "<<"):
        click.echo(line)
