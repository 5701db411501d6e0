"""Recorded rows as the tables of docs/performance.md. A ratio is PyTorch's time over minidl's."""

from collections.abc import Iterable, Sequence
from statistics import geometric_mean
from typing import Any

from minidl.backends import PRECISIONS

Row = dict[str, Any]
NOT_YET = "not yet recorded"
LAYOUTS = ("eager", "channels-last", "compile")
GRAPHS = ("graph", "graph-channels-last")
OWN = "default"


def of_device(rows: Sequence[Row], device: str) -> list[Row]:
    """The rows of the machine that was recorded last: of a "cpu", or of a "gpu"."""
    there = [row for row in rows if row["device"] == device]
    newest = max(there, key=lambda row: row["date"], default=None)
    return [row for row in there if newest is not None and row["machine"] == newest["machine"]]


def conditions(rows: Sequence[Row]) -> str:
    """Where, when and by what the rows were measured."""
    if not rows:
        return f"{NOT_YET.capitalize()}."
    around = rows[-1]["environment"]
    versions = around["versions"]
    titles = {"numba": "Numba", "numba-cuda": "numba-cuda", "cupy-cuda12x": "CuPy", "cupy-cuda13x": "CuPy"}
    titles |= {"torch": "PyTorch", "cudnn": "cuDNN"}
    known = [f"{title} {versions[name]}" for name, title in titles.items() if name in versions]
    dates = sorted({row["date"] for row in rows})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    where = around["gpu"] if rows[-1]["device"] == "gpu" and around["gpu"] else rows[-1]["machine"]
    rates = next((row["rates"] for row in reversed(rows) if row.get("rates")), None)
    reached = (
        f" In the same run it copies {rates['copy'] / 1e9:,.0f} GB/s (read and written) and multiplies "
        f"{rates['matrix'] / 1e12:,.2f} TFLOP/s ({rates['matrix_of']})."
        if rates
        else ""
    )
    return f"Recorded on {when}: {where}; {', '.join(known)}.{reached}"


def summary(rows: Sequence[Row]) -> list[str]:
    """A line an operation: geometric means over the shapes, and the shape where minidl does worst."""
    lines = [
        "| operation | shapes | NCHW | channels last | torch.compile | the best of them | at least |",
        "|---|---|---|---|---|---|---|",
    ]
    groups = _grouped(row for row in _operations(rows) if row["peers"])
    for operation, group in groups.items():
        means = [
            _mean([row["peers"][name]["ratio"]["median"] for row in group if name in row["peers"]]) for name in LAYOUTS
        ]
        least = min(group, key=best)
        everywhere = _times(geometric_mean([best(row) for row in group]))
        lines.append(
            f"| {operation} | {len(group)} | {' | '.join(means)} | {everywhere} | "
            f"{_times(best(least))} ({least['shape']}) |"
        )
    return lines if groups else [NOT_YET.capitalize() + "."]


def shapes(rows: Sequence[Row]) -> list[str]:
    """A line an operation and shape."""
    lines = [
        "| operation | shape | ms | GB/s | of copy | GFLOP/s | of matrix rate | NCHW | channels last | torch.compile |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    chosen = _operations(rows)
    for row in chosen:
        numbers = (
            f"{row['seconds']['median'] * 1e3:,.3f}",
            f"{row['bandwidth'] / 1e9:,.1f}",
            f"{row['share_of_copy']:.0%}",
            f"{row['rate'] / 1e9:,.1f}",
            f"{row['share_of_matrix']:.0%}",
        )
        ratios = [_ratio(row, name) for name in LAYOUTS]
        name = _in_precision(row["operation"], row)
        lines.append(f"| {name} | {row['shape']} | {' | '.join((*numbers, *ratios))} |")
    return lines if chosen else [NOT_YET.capitalize() + "."]


def steps(rows: Sequence[Row]) -> list[str]:
    """A line a model, batch and way of launching."""
    chosen = [row for row in rows if row["kind"] == "step" and not row["problem"]]
    graphs = any(name in row["peers"] for row in chosen for name in GRAPHS)
    peers = (*LAYOUTS, *(GRAPHS if graphs else ()))
    titles = {"eager": "NCHW", "channels-last": "channels last", "compile": "torch.compile"}
    titles |= {"graph": "CUDA graph", "graph-channels-last": "CUDA graph, channels last"}
    heads = " | ".join(titles[name] for name in peers)
    lines = [
        f"| training step | batch | images/s | ms | {heads} | memory, minidl / PyTorch |",
        "|---" * (5 + len(peers)) + "|",
    ]
    for row in chosen:
        name = _in_precision(row["model"], row) + (", CUDA graph" if row["technique"] == "graph" else "")
        ratios = " | ".join(_ratio(row, peer) for peer in peers)
        lines.append(
            f"| {name} | {row['batch']} | {row['images_per_second']:,.0f} | {row['seconds']['median'] * 1e3:,.2f} | "
            f"{ratios} | {_memory(row)} |"
        )
    return lines if chosen else [NOT_YET.capitalize() + "."]


def accuracy(rows: Sequence[Row]) -> list[str]:
    """A line a family of inputs: the errors of y and dx, minidl's and PyTorch's."""
    chosen = [row for row in rows if row["kind"] == "accuracy"]
    lines = [
        "| input | y: minidl | NCHW | channels last | dx: minidl | NCHW | channels last | minidl's no larger |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in chosen:
        errors = [
            _error(row["errors"][output], side) for output in ("y", "dx") for side in ("ours", "eager", "channels-last")
        ]
        lines.append(f"| {row['family']} | {' | '.join(errors)} | {'yes' if row['smaller'] else 'no'} |")
    return lines if chosen else [NOT_YET.capitalize() + "."]


def best(row: Row) -> float:
    """The ratio to the peer's fastest variant."""
    return float(min(peer["ratio"]["median"] for peer in row["peers"].values()))


def _operations(rows: Iterable[Row]) -> list[Row]:
    """Those that were timed, by the technique that an operation picks itself."""
    return [
        row
        for row in rows
        if row["kind"] == "operation" and row["technique"] == OWN and not row["problem"] and "seconds" in row
    ]


def _grouped(rows: Iterable[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_in_precision(row["operation"], row), []).append(row)
    return groups


def _in_precision(name: str, row: Row) -> str:
    """The name, and the precision where that is not the device's own choice."""
    own = PRECISIONS["cpu" if row["device"] == "cpu" else "cuda"][0]
    return name if row["precision"] == own else f"{name}, {row['precision']}"


def _mean(ratios: list[float]) -> str:
    return _times(geometric_mean(ratios)) if ratios else ""


def _times(ratio: float) -> str:
    return f"{ratio:.2f}"


def _ratio(row: Row, name: str) -> str:
    return _times(row["peers"][name]["ratio"]["median"]) if name in row["peers"] else ""


def _memory(row: Row) -> str:
    found = row.get("memory") or {}
    ours = (found.get("ours") or {}).get("step")
    theirs = [side["step"] for name, side in found.items() if name in ("eager", "channels-last") and side]
    if ours is None:
        return ""
    return f"{ours / 1e6:,.0f} MB" + (f" / {min(theirs) / 1e6:,.0f} MB" if theirs else "")


def _error(of: dict[str, float | None], side: str) -> str:
    if side not in of:
        return ""
    error = of[side]
    return "not finite" if error is None else f"{error:.1e}"
