"""The learning curves: what the SVG shows, that it is the same every time, and that it leaves no trace."""

import json
import math
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

import minidl
from minidl.errors import ConfigError
from minidl.training.curves import draw_curves

ROOT = Path(minidl.__file__).parents[1]
SVG = "{http://www.w3.org/2000/svg}"
TRAIN, TEST = "#0072b2", "#d55e00"


def rows(epochs: int) -> list[dict[str, Any]]:
    return [
        {
            "epoch": e,
            "train_loss": 2.0 / e,
            "test_loss": 2.5 / e,
            "train_accuracy": 1 - 0.5 / e,
            "test_accuracy": 1 - 0.6 / e,
        }
        for e in range(1, epochs + 1)
    ]


def draw(tmp_path: Path, given: list[dict[str, Any]]) -> ET.Element:
    draw_curves(given, tmp_path / "curves.svg", "digits, small-cnn, seed 0")
    assert [p.name for p in tmp_path.iterdir()] == ["curves.svg"]
    return ET.parse(tmp_path / "curves.svg").getroot()


def panels(root: ET.Element) -> list[ET.Element]:
    return [g for g in root.iter(f"{SVG}g") if re.fullmatch(r"axes_\d", g.get("id", ""))]


def texts(element: ET.Element) -> list[str]:
    return ["".join(t.itertext()).strip() for t in element.iter(f"{SVG}text")]


def markers(panel: ET.Element, colour: str) -> list[tuple[float, float]]:
    """Where the panel has points of a colour, the legend's own left out; y grows downwards."""
    uses = [
        use
        for group in panel
        if not group.get("id", "").startswith("legend")
        for use in group.iter(f"{SVG}use")
        if f"fill: {colour}" in use.get("style", "")
    ]
    return [(float(use.get("x", "nan")), float(use.get("y", "nan"))) for use in uses]


def test_two_labelled_panels_with_a_legend(tmp_path: Path) -> None:
    loss, accuracy = panels(draw(tmp_path, rows(5)))
    assert {"epoch", "loss", "train", "test"} <= set(texts(loss))
    assert {"epoch", "accuracy (%)", "train", "test"} <= set(texts(accuracy))
    assert {"1", "2", "3", "4", "5"} <= set(texts(loss))
    assert not {"1.5", "2.5"} & {t for t in texts(accuracy) if "." in t and float(t) < 10}


def test_points_stand_where_the_numbers_say(tmp_path: Path) -> None:
    given = rows(5)
    loss, accuracy = panels(draw(tmp_path, given))
    for panel, metric in ((loss, "loss"), (accuracy, "accuracy")):
        points = {part: markers(panel, colour) for part, colour in (("train", TRAIN), ("test", TEST))}
        assert len(points["train"]) == len(points["test"]) == 5
        (x0, y0), (x1, y1) = points["train"][0], points["train"][-1]
        v0, v1 = given[0][f"train_{metric}"], given[-1][f"train_{metric}"]
        for part, found in points.items():
            for (x, y), row in zip(found, given, strict=True):
                assert x == pytest.approx(x0 + (x1 - x0) * (row["epoch"] - 1) / 4, abs=1e-3)
                assert y == pytest.approx(y0 + (y1 - y0) * (row[f"{part}_{metric}"] - v0) / (v1 - v0), abs=1e-3)


@pytest.mark.parametrize("title", ["digits, small-cnn, seed 0", "a $x$ & <b>", "数字, small-cnn"])
def test_the_title_is_shown_as_it_is(tmp_path: Path, title: str) -> None:
    draw_curves(rows(2), tmp_path / "curves.svg", title)
    assert title in texts(ET.parse(tmp_path / "curves.svg").getroot())


def test_a_title_that_xml_cannot_hold(tmp_path: Path) -> None:
    draw_curves(rows(2), tmp_path / "curves.svg", "a\0b\ud800c")
    assert "a?b?c" in texts(ET.parse(tmp_path / "curves.svg").getroot())


@pytest.mark.parametrize(("smallest", "logarithmic"), [(0.11, False), (0.09, True), (1e-9, True), (0.0, False)])
def test_a_loss_of_many_magnitudes_is_drawn_on_a_logarithmic_axis(
    tmp_path: Path, smallest: float, logarithmic: bool
) -> None:
    losses = [3.0, 1.0, max(smallest, 0.1), smallest]
    given = [{"epoch": e, "train_loss": loss, "test_loss": 2.0} for e, loss in enumerate(losses, 1)]
    loss, _ = panels(draw(tmp_path, given))
    y = [y for _, y in markers(loss, TRAIN)]
    scale = math.log if logarithmic else float
    for height, value in zip(y, losses, strict=True):
        share = (scale(value) - scale(3.0)) / (scale(smallest) - scale(3.0))
        assert height == pytest.approx(y[0] + (y[-1] - y[0]) * share, abs=1e-3)
    numbers = [text for text in texts(loss) if re.fullmatch(r"[\d.e+-]+", text) and text not in "1234"]
    assert len(numbers) >= 2 or not logarithmic
    assert ("0.3" in numbers) == (smallest == 0.09)


def test_accuracy_is_in_percent(tmp_path: Path) -> None:
    _, accuracy = panels(draw(tmp_path, rows(5)))
    ticks = [float(t) for t in texts(accuracy) if re.fullmatch(r"[\d.]+", t)]
    assert {50.0, 60.0, 70.0, 80.0, 90.0} <= set(ticks)


def test_one_epoch_has_points_in_the_middle_and_axes_from_zero(tmp_path: Path) -> None:
    for panel in panels(draw(tmp_path, rows(1))):
        ((x, _),) = markers(panel, TRAIN)
        assert markers(panel, TEST)[0][0] == x
        assert "1" in texts(panel)
        ticks = {float(t) for t in texts(panel) if re.fullmatch(r"[\d.]+", t)}
        assert 0.0 in ticks


@pytest.mark.parametrize("gap", [None, math.nan, math.inf, "absent"])
def test_a_value_that_is_missing_leaves_a_gap(tmp_path: Path, gap: Any) -> None:
    given = rows(5)
    if gap == "absent":
        del given[2]["test_loss"]
    else:
        given[2]["test_loss"] = gap
    loss, accuracy = panels(draw(tmp_path, given))
    assert [len(markers(p, c)) for p in (loss, accuracy) for c in (TRAIN, TEST)] == [5, 4, 5, 5]


@pytest.mark.parametrize("given", [[], [{"epoch": 1}], [{"epoch": 1, "train_loss": 0.0}]], ids=len)
def test_next_to_nothing_is_still_a_picture(tmp_path: Path, given: list[dict[str, Any]]) -> None:
    assert len(panels(draw(tmp_path, given))) == 2


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    import matplotlib as mpl

    draw_curves(rows(3), tmp_path / "a.svg", "digits")
    before = dict(mpl.rcParams)
    with mpl.rc_context({"axes.facecolor": "black", "font.size": 30, "lines.linewidth": 9, "svg.fonttype": "path"}):
        draw_curves(rows(3), tmp_path / "b.svg", "digits")  # whatever the user's own settings are
    assert dict(mpl.rcParams) == before
    code = (
        "import json, sys; from minidl.training.curves import draw_curves;"
        "draw_curves(json.load(sys.stdin), sys.argv[1], 'digits')"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "c.svg")]
    environment = os.environ | {"PYTHONHASHSEED": "5", "PYTHONPATH": str(ROOT), "SOURCE_DATE_EPOCH": "1"}
    subprocess.run(command, input=json.dumps(rows(3)), text=True, env=environment, check=True)
    assert len({(tmp_path / f"{name}.svg").read_bytes() for name in "abc"}) == 1
    assert b"date" not in (tmp_path / "a.svg").read_bytes()


def test_neither_pyplot_nor_a_window_is_needed() -> None:
    code = (
        "import sys, os, tempfile; from minidl.training.curves import draw_curves;"
        "loaded = 'matplotlib' in sys.modules;"
        "draw_curves([{'epoch': 1, 'train_loss': 1.0}], os.path.join(tempfile.mkdtemp(), 'x.svg'), '');"
        "print(loaded, 'matplotlib' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "tkagg"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "False"], done.stderr


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"curves.svg: cannot be written: "):
        draw_curves(rows(1), tmp_path / "gone" / "curves.svg", "")
