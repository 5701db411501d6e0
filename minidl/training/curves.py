"""The learning curves of a run as an SVG file: loss and accuracy against epoch, training beside test."""

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minidl.errors import ConfigError
from minidl.training.atomic import write_atomically

_COLOURS = {"train": "#0072b2", "test": "#d55e00"}  # blue and vermilion: told apart by colour-blind readers too
LOGARITHMIC = 30  # a loss that spans a larger factor has a logarithmic axis
STYLE = {
    "font.size": 10.0,
    "font.family": ["sans-serif"],
    "axes.formatter.limits": [-3, 4],  # beyond 1e-3 to 1e4, a factor above the axis: the margin holds any label
    "svg.fonttype": "none",  # text stays text: a smaller file, drawn in the reader's own sans-serif font
    "svg.hashsalt": "minidl",  # element names that do not change from run to run
}


def draw_curves(rows: Sequence[Mapping[str, Any]], path: str | Path, title: str) -> None:
    """Draw the metrics of a run.

    The same rows give the same bytes under one version of matplotlib, whatever the user's matplotlibrc says.

    Args:
        rows: One an epoch, with `epoch` and any of train_loss, test_loss, train_accuracy, test_accuracy; accuracies are
            fractions from 0 to 1. A value that is missing, None or not finite leaves a gap.
        path: The SVG file to make or replace.
        title: What stands above them: whose curves they are.

    Raises:
        ConfigError: The file cannot be written.
    """
    try:
        write_atomically(Path(path), _svg(rows, title))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None


def _svg(rows: Sequence[Mapping[str, Any]], title: str) -> bytes:
    # Imported here: half a second that only a run's end has to pay. Figure alone, without pyplot, keeps no global state
    # and opens no window.
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    unused = {"backend", "backend_fallback", "interactive", "toolbar"}  # and not ours to change
    style: Any = {name: value for name, value in mpl.rcParamsDefault.items() if name not in unused} | STYLE
    with mpl.rc_context(style):
        figure = Figure(figsize=(9, 3.8))
        # Fixed margins: a layout engine would draw everything twice to find them.
        figure.subplots_adjust(left=0.085, right=0.985, bottom=0.14, top=0.89, wspace=0.2)
        figure.suptitle(printable(title), fontsize=10.0, y=0.97, parse_math=False)  # a data set may be called "$x$"
        loss, accuracy = figure.subplots(1, 2)
        for axes, metric, scale in ((loss, "loss", 1.0), (accuracy, "accuracy", 100.0)):
            for part, colour in _COLOURS.items():
                points = [(row["epoch"], scale * _number(row, f"{part}_{metric}")) for row in rows]
                if any(math.isfinite(y) for _, y in points):
                    # Small markers in a long run: they vanish in the line, but a point between two gaps is still seen.
                    size = 4.0 if len(points) <= 40 else 1.5
                    axes.plot(
                        *zip(*points, strict=True), "o-", color=colour, linewidth=1.5, markersize=size, label=part
                    )
            if axes.lines:
                axes.legend(frameon=False)
            axes.set_xlabel("epoch")
            axes.grid(color="#e0e0e0", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            if len(rows) == 1 and axes.lines:  # limits fitted to one epoch would make a small difference look large
                axes.set_xlim(rows[0]["epoch"] - 1, rows[0]["epoch"] + 1)
                axes.set_ylim(0, 105 if metric == "accuracy" else 1.25 * axes.dataLim.y1 or 1)
        losses = [_number(row, f"{part}_loss") for row in rows for part in _COLOURS]
        losses = [value for value in losses if math.isfinite(value)]
        if len(rows) > 1 and losses and 0 < LOGARITHMIC * min(losses) < max(losses):
            loss.set_yscale("log")
            # Ticks at 1 and 3 of each power of ten, written out; over many powers at 1 alone, thinned.
            loss.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if max(losses) < 1e4 * min(losses) else (1.0,)))
            loss.yaxis.set_major_formatter("{x:g}")
            loss.yaxis.set_minor_formatter(NullFormatter())
        loss.set_ylabel("loss")
        accuracy.set_ylabel("accuracy (%)")
        image = io.BytesIO()
        with warnings.catch_warnings():
            # matplotlib's own font has few of the world's letters, but the reader's draws them.
            warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
            figure.savefig(image, format="svg", metadata={"Date": None})
    return image.getvalue()


def _number(row: Mapping[str, Any], name: str) -> float:
    value = row.get(name)
    return float(value) if value is not None and math.isfinite(value) else math.nan


def printable(text: str) -> str:
    """`text` without what XML cannot hold."""
    return "".join(character if character.isprintable() else "?" for character in text)
