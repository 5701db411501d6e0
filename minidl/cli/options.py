"""Options that several commands share."""

import click

from minidl.backends import DEVICES

data_dir = click.option("--data-dir", metavar="DIR", help="Where data sets lie.  [default: $MINIDL_DATA]")
device = click.option(
    "--device",
    type=click.Choice(DEVICES),
    help="auto takes a GPU where one can be used; this version has none.  [default: auto]",
)
threads = click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads.  [default: all cores]")
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
