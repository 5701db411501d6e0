"""A sheet of pictures for people: rows and columns of small images with headings."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from minidl.data.picture import MAX_PIXELS
from minidl.errors import DataError

TILE = 72  # pixels; smaller images are enlarged to about this, each pixel to a square
GAP, LINE = 6, 16  # between tiles; of a line of text
PAPER, INK = (255, 255, 255), (60, 60, 60)


def draw_sheet(
    pictures: NDArray[np.floating[Any]], columns: Sequence[str], rows: Sequence[str], title: str
) -> Image.Image:
    """An RGB image of all pictures.

    Args:
        pictures: (rows, columns, h, w, c), 0 black to 1 white; what lies beyond is cut off.
        columns: A heading for each.
        rows: A name for each.
        title: A line above all.

    Raises:
        DataError: The pictures are neither grey (c = 1) nor RGB (3), or so many that the sheet has over MAX_PIXELS.
    """
    height, width, channels = pictures.shape[2:]
    if channels not in (1, 3):
        raise DataError(f"images of {channels} channels cannot be shown; expected grey (1) or RGB (3)")
    scale = max(1, TILE // max(height, width))
    font = ImageFont.load_default()
    margin = GAP + max((int(font.getlength(_printable(name))) for name in rows), default=0)
    step = height * scale + GAP, width * scale + GAP
    size = margin + GAP + len(columns) * step[1], 2 * LINE + GAP + len(rows) * step[0]
    size = max(size[0], 2 * GAP + int(font.getlength(_printable(title)))), size[1]
    if size[0] * size[1] > MAX_PIXELS:
        raise DataError(f"a sheet of {len(rows)} by {len(columns)} images of {height}x{width} is too large; show fewer")
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 2), _printable(title), INK, font)
    for j, heading in enumerate(columns):
        draw.text((margin + GAP + j * step[1], LINE + 2), _printable(heading), INK, font)
    tiles = np.rint(pictures.clip(0, 1) * 255).astype(np.uint8)
    tiles = np.repeat(tiles, 3 // channels, axis=-1).repeat(scale, axis=2).repeat(scale, axis=3)
    for i, name in enumerate(rows):
        top = 2 * LINE + i * step[0]
        draw.text((GAP, top), _printable(name), INK, font)
        for j in range(len(columns)):
            sheet.paste(Image.fromarray(tiles[i, j]), (margin + GAP + j * step[1], top))
    return sheet


def _printable(text: str) -> str:
    """What Pillow's own font has; where it is built without FreeType, that is Latin-1."""
    return text.encode("latin-1", "replace").decode("latin-1")
