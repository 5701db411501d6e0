"""`minidl train`."""

import json
import math
import shlex
import signal
from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

from minidl.cli import layout, options
from minidl.cli.console import ConsoleReporter
from minidl.models.norms import BATCH_KINDS, KINDS, parse
from minidl.schedule import NAMES as SCHEDULES
from minidl.training import Session, TrainConfig, begin, resume
from minidl.training.config import OPTIMIZERS, load_config
from minidl.training.runs import latest

LATEST = "latest"
MONITOR_EVERY = 100
FEW_STEPS = 30  # at momentum 0.1 the statistics' first values still weigh 0.9**30 = 4 % after as many


def _field(name: str, kind: type, metavar: str, text: str, default: object = "by data set") -> Callable[..., Any]:
    """An option that sets the field of TrainConfig with its name."""
    return click.option(name, type=kind, metavar=metavar, help=f"{text}  [default: {default}]")


def _switch(name: str, text: str) -> Callable[..., Any]:
    return click.option(f"--{name}/--no-{name}", default=None, help=f"{text}  [default: {name}]")


@click.command("train")
@_field("--data", str, "NAME|FILE.npz", "Data set; see `minidl data list`.", TrainConfig.data)
@options.data_dir
@_field("--model", str, "NAME", "Network; see `minidl models`.", TrainConfig.model)
@_field("--norm", str, "NAME", f"{', '.join(KINDS)}; ghost:N and group:N; -after for after ReLU.", TrainConfig.norm)
@click.option("--zero-gamma", is_flag=True, default=None, help="Residual branches start with gamma = 0.")
@_field("--epochs", int, "N", "Passes over the training images.")
@_field("--batch-size", int, "N", "Images a step.")
@_field("--lr", float, "RATE", "Largest learning rate.")
@_field("--optimizer", str, "NAME", f"{', '.join(OPTIMIZERS)}.", TrainConfig.optimizer)
@_field("--momentum", float, "M", "Of sgd, in Nesterov's form.", TrainConfig.momentum)
@_field("--weight-decay", float, "D", "Of weights.")
@_field("--norm-decay", float, "D", "Of biases and normalization parameters.", TrainConfig.norm_decay)
@_field("--label-smoothing", float, "S", "Share of the target spread over all classes.", TrainConfig.label_smoothing)
@_field("--schedule", str, "NAME", f"Of the learning rate: {', '.join(SCHEDULES)}.", TrainConfig.schedule)
@_field("--warmup", float, "EPOCHS", "Over which the learning rate rises; may be 0 or 0.5.", "by schedule")
@_field("--min-lr", float, "RATE", "Where the cosine schedule ends.", TrainConfig.min_lr)
@_field("--clip", float, "NORM", "Largest norm of all gradients together.", "no limit")
@_field("--accumulate", int, "K", "Compute each step in K parts of its images; less memory.", TrainConfig.accumulate)
@_field("--ema", float, "DECAY", "Evaluate and keep a moving average of the weights, such as 0.999.", "none")
@_switch("augment", "Random crop, flip and cutout of training images, as below; or none of them.")
@options.crop_padding
@options.flip
@options.cutout
@options.device
@options.threads
@options.precision
@options.graph
@_field("--seed", int, "N", "The same seed gives the same bits.", TrainConfig.seed)
@click.option("--max-steps", type=int, metavar="N", help="Stop after this many steps in all; --resume goes on.")
@click.option(
    "--monitor",
    type=int,
    metavar="[STEPS]",
    is_flag=False,
    flag_value=MONITOR_EVERY,
    help=f"Measure activations, statistics, gradients and weights every so many steps; without STEPS, {MONITOR_EVERY}.",
)
@click.option("--tensorboard", is_flag=True, default=None, help="Write event files for TensorBoard.")
@click.option("--config", "config_file", metavar="FILE", help="TOML file of these options; flags win over it.")
@options.out
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
    /,
    config_file: str | None,
    out: str,
    resume_from: str | None,
    as_json: bool,
    quiet: bool,
    **fields: Any,
) -> None:
    """Train a network; with no options, a small CNN with batch normalization on handwritten digits.

    Leaves a run folder with the configuration, metrics, learning curves and checkpoints. Ctrl-C saves and says how to
    go on.
    """
    given = {name: value for name, value in fields.items() if ctx.get_parameter_source(name) != ParameterSource.DEFAULT}
    if config_file is not None:
        given = load_config(config_file) | given
    with ConsoleReporter(quiet=quiet, to_stderr=as_json) as reporter:
        if resume_from is None:
            session = begin(TrainConfig(**given), out, reporter)
        else:
            session = resume(latest(out).path if resume_from == LATEST else resume_from, given, reporter)
        if not quiet:
            options.warn_of_threads(session.trainer.backend)
        summary = session.train(reporter)
        reporter.close()
        reporter.line(_closing(session, summary))
    if as_json:
        click.echo(json.dumps(summary))
    if session.stopped is not None:
        if not session.complete:
            path = shlex.quote(str(session.run.path))
            click.echo(f"stopped; go on with: python -m minidl train --resume {path}", err=True)
        ctx.exit(128 + signal.Signals(session.stopped))


def _closing(session: Session, summary: dict[str, Any]) -> str:
    epochs, steps = summary["epochs"], summary["steps"]
    done = layout.count(epochs, "epoch")
    if not summary["complete"]:
        done = f"{layout.count(steps, 'step')} ({epochs} of {layout.count(session.config.epochs or 0, 'epoch')})"
    words = f"test accuracy {summary['test_accuracy']:.2%} after {done} in {summary['seconds']:.1f} s"
    if summary["best_epoch"] not in (None, epochs):
        words += f"; best {summary['best_test_accuracy']:.2%} (epoch {summary['best_epoch']})"
    if not math.isfinite(summary["test_loss"]):
        words += "; the test loss is not finite: try a smaller --lr"
    batches = steps * session.config.accumulate
    if parse(summary["norm"]).kind in BATCH_KINDS and batches < FEW_STEPS:
        seen = layout.count(batches, "batch", "batches")
        words += f"; running statistics have seen only {seen}, so test accuracy may lag"
    return words
