"""The monitor's records as one SVG: how each layer's numbers change over the steps."""

import io
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minidl.errors import ConfigError
from minidl.training.atomic import write_atomically
from minidl.training.curves import STYLE, printable
from minidl.training.monitor.record import PERCENTILES, Record

BANDS = 6  # layers whose activations are drawn; of more, evenly spaced ones
Value = Callable[[Record], Any]

# Title, group of the record, value, logarithmic axis.
LINES: tuple[tuple[str, str, Value, bool], ...] = (
    ("batch mean - running mean, in deviations", "statistics", lambda v: v["mean_shift"], True),
    ("batch variance / running variance", "statistics", lambda v: v["variance_ratio"], True),
    ("norm of the weights' gradient", "weights", lambda v: v["gradient_norm"], True),
    ("norm of the weights", "weights", lambda v: v["norm"], False),
    ("effective learning rate, lr / norm²", "weights", lambda v: v["effective_lr"], True),
    ("update / weight", "weights", lambda v: v["update_ratio"], True),
    ("mean of gamma", "affine", lambda v: v.get("gamma", [None] * 3)[1], False),
    ("mean of beta", "affine", lambda v: v.get("beta", [None] * 3)[1], False),
    ("dead channels after ReLU", "activations", lambda v: v["dead"], False),
)


def draw(records: Sequence[Record], path: str | Path, title: str) -> None:
    """Draw what a monitor measured: activations of some layers, and nine quantities of every layer.

    Args:
        records: At least one, in the order of their steps.
        path: The SVG file to make or replace.
        title: What stands above.

    Raises:
        ConfigError: There is nothing to draw, or the file cannot be written.
    """
    if not records:
        raise ConfigError("the monitor has measured nothing yet; train with --monitor")
    try:
        write_atomically(Path(path), _svg(records, title))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None


def _svg(records: Sequence[Record], title: str) -> bytes:
    import matplotlib as mpl  # late: half a second
    from matplotlib.figure import Figure

    unused = {"backend", "backend_fallback", "interactive", "toolbar"}
    style: Any = {name: value for name, value in mpl.rcParamsDefault.items() if name not in unused} | STYLE
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of glyphs that a font lacks, in names of layers
        figure = Figure(figsize=(12, 15))
        figure.subplots_adjust(left=0.06, right=0.985, bottom=0.035, top=0.945, wspace=0.2, hspace=0.42)
        figure.suptitle(printable(title), fontsize=11.0, y=0.985, parse_math=False)
        panels = figure.subplots(5, 3)
        steps = [record["step"] for record in records]
        outputs, weights = _names(records, "activations"), _names(records, "weights")
        names = [name for name in outputs if f"{name}.weight" in weights] or outputs  # what comes before normalization
        chosen = [names[i] for i in _spread(len(names), BANDS)]
        for axes, name in zip(panels[:2].flat, chosen, strict=False):
            _bands(axes, steps, records, name)
        for axes in list(panels[:2].flat)[len(chosen) :]:
            axes.set_axis_off()
        for axes, (heading, group, value, logarithmic) in zip(panels[2:].flat, LINES, strict=True):
            _lines(axes, steps, records, heading, group, value, logarithmic)
        for axes in panels[-1]:
            axes.set_xlabel("step")
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _bands(axes: Any, steps: list[int], records: Sequence[Record], name: str) -> None:
    """The percentiles of one layer's outputs, the outer and the inner pair as bands."""
    rows = [record["activations"].get(name, {}).get("percentiles") or [None] * len(PERCENTILES) for record in records]
    low, lower, middle, upper, high = (
        np.array([math.nan if v is None else v for v in column]) for column in zip(*rows, strict=True)
    )
    axes.fill_between(steps, low, high, color="#0072b2", alpha=0.15, linewidth=0)
    axes.fill_between(steps, lower, upper, color="#0072b2", alpha=0.35, linewidth=0)
    axes.plot(steps, middle, color="#0072b2", marker="." if len(steps) == 1 else None)
    axes.set_title(printable(f"{name}: percentiles {', '.join(map(str, PERCENTILES))}"), fontsize=9.0, parse_math=False)
    axes.grid(alpha=0.3)


def _lines(
    axes: Any, steps: list[int], records: Sequence[Record], heading: str, group: str, value: Value, logarithmic: bool
) -> None:
    """One line a layer, the first dark, the last bright."""
    from matplotlib import colormaps

    names = _names(records, group)
    series = {
        name: [_number(value(r[group][name])) if name in r[group] else math.nan for r in records] for name in names
    }
    series = {name: line for name, line in series.items() if not all(math.isnan(v) for v in line)}
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(series)))
    for (name, line), colour in zip(series.items(), colours, strict=True):
        ends = name in (next(iter(series)), list(series)[-1])
        axes.plot(
            steps,
            line,
            color=colour,
            linewidth=1.0,
            marker="." if len(steps) == 1 else None,
            label=printable(name) if ends else None,
        )
    positive = [v for line in series.values() for v in line if v > 0]
    if logarithmic and positive:
        axes.set_yscale("log")
    if heading.startswith("dead"):
        axes.set_ylim(-0.02, max(0.1, 1.05 * max(positive, default=0.0)))
    axes.set_title(heading, fontsize=9.0)
    axes.grid(alpha=0.3)
    if series:
        legend = axes.legend(fontsize=7.0, framealpha=0.6, loc="best")
        for text in legend.get_texts():
            text.set_parse_math(False)
    else:
        axes.text(0.5, 0.5, "none in this network", ha="center", va="center", transform=axes.transAxes, color="#666666")


def _names(records: Sequence[Record], group: str) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record[group]))


def _spread(count: int, most: int) -> list[int]:
    return (
        sorted({round(i * (count - 1) / max(1, most - 1)) for i in range(most)}) if count > most else list(range(count))
    )


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
