"""Options that several commands share."""

from typing import Any

import click

from minidl.backends import DEVICES

data_dir = click.option("--data-dir", metavar="DIR", help="Where data sets lie.  [default: $MINIDL_DATA]")
device = click.option(
    "--device",
    type=click.Choice(DEVICES),
    help="auto takes a GPU where one can be used; emulator runs the GPU's kernels, slowly, without one.  "
    "[default: auto]",
)


def _validated(_ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    from minidl.training.config import validate_option  # here, as `minidl data` needs nothing of training

    validate_option(str(parameter.name), value)
    return value


threads = click.option(
    "--threads", type=int, callback=_validated, metavar="N", help="CPU threads.  [default: all cores]"
)
out = click.option("--out", metavar="DIR", default="runs", show_default=True, help="Folder of the runs.")
which = click.option(
    "--checkpoint",
    "which",
    type=click.Choice(("best", "last")),
    default="best",
    show_default=True,
    help="Of the test accuracies after each epoch the best, or the last.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
