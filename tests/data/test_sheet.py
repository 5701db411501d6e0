import numpy as np
import pytest

from minidl.data.sheet import draw_sheet
from minidl.errors import DataError


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(6)


def find(sheet: np.ndarray, tile: np.ndarray) -> list[tuple[int, int]]:
    """Where a tile lies in the sheet, by its upper left corner."""
    windows = np.lib.stride_tricks.sliding_window_view(sheet, tile.shape)
    return [(int(row), int(column)) for row, column, _ in np.argwhere((windows == tile).all(axis=(-3, -2, -1)))]


@pytest.mark.parametrize(("size", "scale"), [((36, 20), 2), ((9, 18), 4), ((73, 5), 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_picture_is_there_enlarged_in_its_row_and_column(rng, size, scale: int, channels: int) -> None:
    pictures = rng.integers(0, 256, (2, 3, *size, channels))
    sheet = np.asarray(draw_sheet(pictures / 255, ["plain", "a", "b"], ["first", "second"], "title"))
    places = np.zeros((2, 3, 2), int)
    for i in range(2):
        for j in range(3):
            tile = np.repeat(pictures[i, j], 3 // channels, axis=-1).repeat(scale, axis=0).repeat(scale, axis=1)
            (places[i, j],) = find(sheet, tile.astype(np.uint8))
    rows, columns = places[..., 0], places[..., 1]
    assert (rows == rows[:, :1]).all()
    assert (columns == columns[:1]).all()
    assert (np.diff(rows, axis=0) > size[0] * scale).all()
    assert (np.diff(columns, axis=1) > size[1] * scale).all()


def test_beyond_black_and_white_is_cut_off() -> None:
    sheet = np.asarray(draw_sheet(np.array([-3.0, 7.0]).reshape(1, 2, 1, 1, 1), ["a", "b"], ["c"], "d"))
    assert len(find(sheet, np.zeros((72, 72, 3), np.uint8))) == 1
    assert sheet.dtype == np.uint8


def test_a_long_name_and_title_and_signs_that_the_font_may_lack() -> None:
    sheet = draw_sheet(np.zeros((1, 1, 8, 8, 1)), ["plain"], ["Ünïcode 数据 " * 5], "title " * 60)
    assert sheet.width > 72 + 5 * 11 * 3  # the name is beside its row, not below the tiles


def test_what_cannot_be_shown() -> None:
    with pytest.raises(DataError, match=r"images of 2 channels cannot be shown; expected grey \(1\) or RGB \(3\)"):
        draw_sheet(np.zeros((1, 1, 8, 8, 2)), ["a"], ["b"], "c")
    many = np.broadcast_to(np.float32(0), (100, 50, 400, 400, 1))
    with pytest.raises(DataError, match="a sheet of 100 by 50 images of 400x400 is too large; show fewer"):
        draw_sheet(many, ["a"] * 50, ["b"] * 100, "c")
