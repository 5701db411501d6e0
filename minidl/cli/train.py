"""minidl train"""

import json
import signal
from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

from minidl.backends import DEVICES
from minidl.cli.console import ConsoleReporter
from minidl.models import MODELS
from minidl.schedule import NAMES as SCHEDULES
from minidl.training import Session, TrainConfig, begin, resume
from minidl.training.config import OPTIMIZERS, load_config
from minidl.training.runs import latest

LATEST = "latest"


def _options(function: Callable[..., None]) -> Callable[..., None]:
    """The options of a run; each is a field of TrainConfig, whose default it names."""
    by_recipe = "by data set"
    for decorate in reversed(
        (
            click.option(
                "--data", metavar="NAME|FILE.npz", help="Data set; see `minidl data list`.  [default: digits]"
            ),
            click.option("--data-dir", metavar="DIR", help="Where data sets lie.  [default: $MINIDL_DATA]"),
            click.option("--model", metavar="NAME", help=f"{', '.join(MODELS)}.  [default: small-cnn]"),
            click.option(
                "--epochs", type=int, metavar="N", help=f"Passes over the training images.  [default: {by_recipe}]"
            ),
            click.option("--batch-size", type=int, metavar="N", help=f"Images a step.  [default: {by_recipe}]"),
            click.option("--lr", type=float, metavar="RATE", help=f"Largest learning rate.  [default: {by_recipe}]"),
            click.option("--optimizer", metavar="NAME", help=f"{', '.join(OPTIMIZERS)}.  [default: sgd]"),
            click.option("--momentum", type=float, metavar="M", help="Of sgd (Nesterov's form).  [default: 0.9]"),
            click.option(
                "--weight-decay",
                type=float,
                metavar="D",
                help=f"Of weights; not of biases and normalization.  [default: {by_recipe}]",
            ),
            click.option("--label-smoothing", type=float, metavar="S", help="[default: 0]"),
            click.option("--schedule", metavar="NAME", help=f"{', '.join(SCHEDULES)}.  [default: one-cycle]"),
            click.option("--bn/--no-bn", default=None, help="With or without batch normalization.  [default: bn]"),
            click.option(
                "--augment/--no-augment",
                default=None,
                help="The data set's shifts and flips of training images.  [default: augment]",
            ),
            click.option(
                "--device", type=click.Choice(DEVICES), help="auto takes a GPU where one can be used.  [default: auto]"
            ),
            click.option("--threads", type=int, metavar="N", help="CPU threads.  [default: all cores]"),
            click.option("--seed", type=int, metavar="N", help="The same seed gives the same bits.  [default: 0]"),
            click.option(
                "--max-steps", type=int, metavar="N", help="Stop after this many steps in all; --resume goes on."
            ),
        )
    ):
        function = decorate(function)
    return function


@click.command("train")
@_options
@click.option("--config", "config_file", metavar="FILE", help="TOML file of these options; flags win over it.")
@click.option("--out", metavar="DIR", default="runs", show_default=True, help="Folder in which the run gets its own.")
@click.option(
    "--resume",
    "resume_from",
    metavar="[RUN]",
    is_flag=False,
    flag_value=LATEST,
    help="Go on with a stopped run; without RUN, the newest in --out.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout, all else on stderr.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors (and --json).")
@click.pass_context
def command(
    ctx: click.Context,
    config_file: str | None,
    out: str,
    resume_from: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Train a network; with no options, a small CNN with batch normalization on handwritten digits.

    Leaves a run folder with the configuration, metrics, learning curves and checkpoints. Ctrl-C saves and says how to
    go on.
    """
    given = {
        name: value for name, value in options.items() if ctx.get_parameter_source(name) != ParameterSource.DEFAULT
    }
    if config_file is not None:
        given = load_config(config_file) | given
    with ConsoleReporter(quiet=quiet, to_stderr=as_json) as reporter:
        if resume_from is None:
            session = begin(TrainConfig(**given), out, reporter)
        else:
            session = resume(latest(out).path if resume_from == LATEST else resume_from, given, reporter)
        summary = session.train(reporter)
        reporter.close()
        reporter.line(_closing(session, summary))
        if session.stopped is not None:
            click.echo(f"stopped; go on with: python -m minidl train --resume {session.run.path}", err=True)
    if as_json:
        click.echo(json.dumps(summary))
    if session.stopped is not None:
        ctx.exit(128 + (session.stopped if session.stopped is signal.SIGTERM else signal.SIGINT))


def _closing(session: Session, summary: dict[str, Any]) -> str:
    epochs, total = summary["epochs"], session.config.epochs
    done = f"{epochs} epochs" if summary["complete"] else f"{summary['steps']} steps ({epochs} of {total} epochs)"
    best = summary["best_test_accuracy"]
    words = f"test accuracy {summary['test_accuracy']:.2%} after {done} in {summary['seconds']:.1f} s"
    if best is not None and summary["best_epoch"] != epochs:
        words += f"; best {best:.2%} (epoch {summary['best_epoch']})"
    return words
