"""`minidl version`."""

import json

import click

from minidl.version import __version__


@click.command("version")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON, with the machine and the versions it runs on.")
def command(as_json: bool) -> None:
    """The version of minidl."""
    if not as_json:
        click.echo(f"minidl {__version__}")
        return
    from minidl.training.environment import environment  # late: it brings NumPy

    click.echo(json.dumps({"version": __version__} | environment()))
