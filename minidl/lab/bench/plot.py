"""A picture of recorded ratios: a point a shape, a line an operation."""

from collections.abc import Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from minidl.lab.bench.tables import OWN, best

Row = dict[str, Any]


def draw_ratios(rows: Sequence[Row], path: Path, title: str) -> bool:
    """PyTorch's time over minidl's, by its fastest variant; False, and no picture, where nothing was recorded."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter, NullFormatter

    groups: dict[str, list[float]] = {}
    for row in rows:
        if row["kind"] == "operation" and row["technique"] == OWN and row.get("peers"):
            groups.setdefault(row["operation"], []).append(best(row))
        elif row["kind"] == "step" and row.get("peers"):
            groups.setdefault(f"step of {row['model']}", []).append(best(row))
    if not groups:
        return False
    style: Any = {"svg.hashsalt": "minidl", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}
    with rc_context(style):
        figure = Figure(figsize=(9, 1 + 0.27 * len(groups)), layout="constrained")
        axes = figure.subplots()
        for place, values in enumerate(groups.values()):
            axes.plot(values, [place] * len(values), "o", color="#0072b2", alpha=0.45, markersize=5)
            axes.plot([geometric_mean(values)], [place], "|", color="#d55e00", markersize=15, markeredgewidth=2)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_yticks(range(len(groups)), list(groups))
        axes.set_ylim(len(groups) - 0.4, -0.6)
        left, right = axes.get_xlim()
        axes.set_xlim(min(left, 0.45), max(right, 2.2))  # both sides of 1, and a tick on each
        axes.grid(axis="x", alpha=0.3)
        axes.set(title=title, xlabel="PyTorch's time over minidl's, PyTorch at its fastest; bar: geometric mean")
        axes.spines[["top", "right"]].set_visible(False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})
    return True
