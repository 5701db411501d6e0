"""What a person sees of a training run: a progress bar on a terminal, plain lines elsewhere, one row an epoch."""

import contextlib
import sys
from types import TracebackType
from typing import Self

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from minidl.backends.compilation import COMPILATION
from minidl.cli import layout
from minidl.training import Session
from minidl.training.progress import Row
from minidl.training.session import describe

COLUMNS = ("epoch", "train loss", "train acc", "test loss", "test acc", "images/s", "learning rate")
HEADER = "  ".join(f"{title:>{width}}" for title, width in zip(COLUMNS, (5, 10, 9, 9, 9, 9, 13), strict=True))


def format_row(row: Row) -> str:
    """An epoch as one line, aligned with HEADER."""
    return (
        f"{row['epoch']:>5}  {row['train_loss']:>10.4f}  {row['train_accuracy']:>9.2%}  {row['test_loss']:>9.4f}  "
        f"{row['test_accuracy']:>9.2%}  {row['images_per_second']:>9,.0f}  {row['lr']:>13.6f}"
    )


class ConsoleReporter:
    """Shows a run; a context manager, so that the bar is gone when it ends.

    Args:
        quiet: Show nothing.
        to_stderr: Leave stdout to somebody else (to JSON).
    """

    def __init__(self, quiet: bool = False, to_stderr: bool = False) -> None:
        self.quiet, self.to_stderr = quiet, to_stderr
        stream = sys.stderr if to_stderr or not sys.stdout.isatty() else sys.stdout
        self._bar: Progress | None = None
        if stream.isatty() and not quiet:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(file=stream),
                transient=True,
            )
        self._bar_is_ours = stream is (sys.stderr if to_stderr else sys.stdout)
        self._task: TaskID | None = None
        self._compilation = contextlib.ExitStack()
        self._compiling, self._compiled = False, COMPILATION.seconds  # whether that was said; how much was told
        self._keeps = True  # what is compiled

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._take_away()

    def close(self) -> None:
        """Take the bar away; lines may still follow."""
        self._end_compiling()
        self._take_away()

    def _take_away(self) -> None:
        self._compilation.close()
        if self._bar is not None:
            self._bar.stop()

    def line(self, text: str) -> None:
        """One line, above the bar if there is one."""
        if self.quiet:
            return
        if self._bar is not None and self._bar_is_ours and self._bar.live.is_started:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            click.echo(text, err=self.to_stderr)

    # minidl.training.Reporter

    def note(self, text: str) -> None:
        """One line worth knowing."""
        self.line(text)

    def start(self, session: Session) -> None:
        """Say what is trained on what, and begin the table."""
        dataset, config = session.dataset, session.config
        self.line(
            f"data: {dataset.name}, {len(dataset.train_images):,} training and {len(dataset.test_images):,} test images"
            f" of {'x'.join(map(str, dataset.image_shape))}"
        )
        epochs, steps = layout.count(session.config.epochs or 0, "epoch"), len(session.trainer.loader)
        self.line(
            f"model: {describe(config)}, {session.parameters:,} parameters; "
            f"{config.optimizer}, {config.schedule} schedule, {epochs} of {layout.count(steps, 'step')}"
        )
        self.line(f"run: {session.run.path}")
        if session.trainer.backend.name == "cpu":
            self._look_at_cache()
        self.line(HEADER)
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("the first step", total=None)
        self._compilation.enter_context(COMPILATION.watched(self._begin_compiling))

    def _look_at_cache(self) -> None:
        """Say what is wrong with where compiled code is kept, if anything is."""
        from minidl.backends.cpu.cache import kept

        found = kept()
        self._keeps = found.folder is not None
        if found.problem is not None:
            self.line(f"compiled code: {found.problem}; {found.remedy}")

    def _begin_compiling(self) -> None:
        """Say so; the thread that calls this may be another one."""
        first, self._compiling = not self._compiling, True
        text = "compiling for this processor" + (", once" if self._keeps else "")
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=text)
        elif first:
            self.line(text)

    def _end_compiling(self) -> None:
        """Say how long it took, if it did, and what comes of it."""
        seconds, self._compiled = COMPILATION.seconds - self._compiled, COMPILATION.seconds
        if self._compiling:
            problem, text = COMPILATION.problem, f"compiled for this processor in {seconds:.1f} s"
            if problem is not None:
                text += f"; not all of it is kept for the next run: {problem}"
            elif self._keeps:
                text += "; kept for the next run"
            self.line(text)
        self._compiling = False

    def step(self, session: Session) -> None:
        """Move the bar."""
        self._end_compiling()
        if self._bar is not None and self._task is not None:
            progress, batches = session.trainer.progress, len(session.trainer.loader)
            loss = session.trainer.train_result().loss
            text = f"epoch {progress.epoch + 1}/{session.config.epochs}, loss {loss:.4f}"
            self._bar.update(self._task, description=text, total=batches, completed=progress.batch)

    def epoch(self, session: Session, row: Row) -> None:
        """Print the epoch's row."""
        del session
        self._end_compiling()
        self.line(format_row(row))
