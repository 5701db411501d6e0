"""A picture from a file, fitted to what a model was trained on.

`open_picture` reads any format that Pillow decodes and refuses the rest in one line. `prepare` gives the picture a
model's channels, size, polarity (dark or light background) and scale, and says in words what it did.
"""

import contextlib
import math
import warnings
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from minidl.data.files import opened
from minidl.errors import DataError

MAX_PIXELS = 2**26  # a larger picture is a mistake, or an attack on the memory
SMALL = 0.5  # of a frame's height and width; a subject that fills less of both is lost on a model
CLEARLY = 0.25  # of the largest difference from the background: above uneven light, below the strokes' soft edges
FAINT = 16  # of 255: a picture that differs less than that from its border has no subject
LUMA = np.array([0.299, 0.587, 0.114])  # brightness of red, green and blue (ITU-R BT.601), as Pillow weighs them
ORIENTATION = 0x0112  # the EXIF tag
DRAWINGS = ("EPS", "WMF")  # not pixels but programs; Pillow hands them to other software to be drawn
KINDS = {"1": "black-and-white", "L": "grey", "LA": "grey", "P": "palette", "PA": "palette", "RGBA": "RGB"}


@dataclass(frozen=True)
class Picture:
    """A decoded picture.

    Attributes:
        pixels: (h, w, 1) or (h, w, 3), uint8 or float32, 0 (black) to 255 (white).
        kind: size and pixel format of the file, for people.
        steps: what decoding did to it, for people.
    """

    pixels: NDArray[Any]
    kind: str
    steps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """A picture as a model wants it.

    Attributes:
        pixels: (h, w, c) float64, 0 (black) to the `white` of the data.
        inverted: whether black and white were swapped.
        description: what was done, in one line for people.
    """

    pixels: NDArray[np.float64]
    inverted: bool
    description: str


def open_picture(path: Path) -> Picture:
    """Read a picture: its first frame, upright, transparency laid on white.

    Raises:
        DataError: there is no such file, it is no picture, it is damaged, or it has more than MAX_PIXELS pixels.
    """
    with opened(path) as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata; a fault in the pixels is an error
        try:
            with Image.open(stream) as image:
                return _decoded(image)
        except UnidentifiedImageError:
            raise DataError(f"{path}: not a picture; expected PNG, JPEG, GIF, BMP, TIFF or WebP") from None
        except Image.DecompressionBombError:
            raise DataError(f"{path}: {_too_large('far more')}") from None
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        except Exception as error:  # decoders pass on whatever goes wrong in them
            raise DataError(f"{path}: damaged, {_reason(error)}; copy or save it again") from None


def prepare(
    picture: Picture,
    image_shape: tuple[int, int, int],
    white: float,
    background: float,
    invert: bool | None = None,
) -> Prepared:
    """Fit a picture to a model. Nothing is stretched or cropped, and each pixel is the mean of the area it covers.

    Args:
        picture: from `open_picture`.
        image_shape: (h, w, c) of the model's input.
        white: value of white in the data the model was trained on.
        background: mean value of that data's outermost pixels.
        invert: whether to swap black and white; None to do it where the picture's border is nearer to the data's
            background afterwards. Data whose background is neither dark nor light are never inverted unasked.

    Raises:
        DataError: the model has channels other than grey or red, green and blue.
    """
    height, width, channels = image_shape
    if channels not in (1, 3):
        raise DataError(f"the model reads images of {channels} channels; pictures can be made grey (1) or RGB (3)")
    steps = list(picture.steps)
    rows, columns, given = picture.pixels.shape
    border = _border(picture.pixels)
    padded = max(rows, columns * height / width), max(columns, rows * width / height)
    pixels = _area_means(picture.pixels, border, padded, (height, width))
    if given != channels:
        steps.append("grey" if channels == 1 else "RGB")
        pixels = pixels @ LUMA[:, np.newaxis] if channels == 1 else np.repeat(pixels, 3, axis=-1)
    if padded != (rows, columns):
        shape = "square" if height == width else f"{math.ceil(padded[1])}x{math.ceil(padded[0])}"
        steps.append(f"padded to {shape}")
    steps.append(f"{width}x{height}")
    brightness = float(border @ LUMA if given == 3 else border[0]) / 255
    inverted, polarity = _polarity(brightness, background / white if white else 0.5, invert)
    steps.append(polarity)
    if inverted:
        pixels = 255 - pixels
    subject = _subject(picture.pixels, border)
    filled = {"height": subject[0] / padded[0], "width": subject[1] / padded[1]}
    larger = max(filled, key=filled.__getitem__)
    if 0 < filled[larger] < SMALL:
        steps[-1] += f"; its subject fills only {100 * filled[larger]:.2g}% of the frame's {larger}: crop it closer"
    elif np.ptp(pixels) < 1:
        steps.append("blank: it has one colour everywhere")
    return Prepared(pixels * (white / 255), inverted, f"{picture.kind} -> {', '.join(steps)}")


def _decoded(image: Image.Image) -> Picture:
    """The first frame of an opened image. Raises DataError for what cannot be read rightly; messages lack the path."""
    columns, rows = image.size
    if image.format in DRAWINGS:
        raise DataError(f"{image.format} is a drawing, not a picture; save it as PNG")
    if rows * columns > MAX_PIXELS:
        raise DataError(_too_large(f"{columns}x{rows} = {rows * columns:,}"))
    kind = f"{columns}x{rows} {KINDS.get(image.mode, image.mode)}"
    frames, steps = getattr(image, "n_frames", 1), []
    if frames > 1:
        image.seek(0)
        steps.append(f"the first of {frames} frames")
    image.load()
    with contextlib.suppress(Exception):  # damaged metadata say nothing about the pixels
        if image.getexif().get(ORIENTATION, 1) in range(2, 9):
            image = ImageOps.exif_transpose(image)
            steps.append("turned upright")
    if image.mode.startswith(("I", "F")):  # integers of 16 or 32 bits, or floats
        pixels = np.asarray(image)
        if image.mode == "F" or pixels.min() < 0 or pixels.max() > 0xFFFF:
            raise DataError("its pixels have 32 bits and no known scale; save it with 8 or 16 bits")
        kind = f"{columns}x{rows} 16-bit grey"
        return Picture((pixels / np.float32(257))[..., np.newaxis].astype(np.float32), kind, tuple(steps))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert(
            "L" if image.mode in ("1", "L", "LA") else "RGB"
        )
        if layer.getchannel("A").getextrema() != (255, 255):
            steps.append("transparency on white")
    pixels = np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    return Picture(pixels if pixels.ndim == 3 else pixels[..., np.newaxis], kind, tuple(steps))


def _border(pixels: NDArray[Any]) -> NDArray[np.float64]:
    """The median colour (c,) of the outermost pixels: the background, even where a stroke touches the border."""
    edges = pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]
    return np.median(np.concatenate(edges), axis=0)


def _subject(pixels: NDArray[Any], border: NDArray[np.float64]) -> tuple[int, int]:
    """Height and width of the box around all that differs clearly from `border`; (0, 0) where nothing does."""
    darkest, lightest = pixels.min(axis=(0, 1)), pixels.max(axis=(0, 1))
    largest = max((border - darkest).max(), (lightest - border).max())
    if largest < FAINT:
        return 0, 0
    margin = CLEARLY * largest
    differs = ((pixels < border - margin) | (pixels > border + margin)).any(axis=-1)
    rows, columns = (np.flatnonzero(differs.any(axis=axis)) for axis in (1, 0))
    return int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1


def _area_means(
    pixels: NDArray[Any], border: NDArray[np.float64], padded: tuple[float, float], size: tuple[int, int]
) -> NDArray[np.float64]:
    """`pixels` in the middle of `padded` (rows, columns) of the colour `border`, averaged down or up to `size`."""
    rows, columns, _ = pixels.shape
    # The axis that leaves less comes first: a line of 2**26 pixels, its rows first, would grow to many such lines.
    if rows * size[1] < size[0] * columns:
        return _area_means(pixels.swapaxes(0, 1), border, padded[::-1], size[::-1]).swapaxes(0, 1)
    means = _means_along_first(pixels, border, padded[0], size[0])
    return _means_along_first(means.swapaxes(0, 1), border, padded[1], size[1]).swapaxes(0, 1)


def _means_along_first(
    pixels: NDArray[Any], border: NDArray[np.float64], padded: float, size: int
) -> NDArray[np.float64]:
    """Means (size, ..., c) over `size` equal parts of an axis `padded` long with pixels (n, ..., c) in its middle."""
    count = len(pixels)
    margin = (padded - count) / 2
    edges = [padded * i / size - margin for i in range(size + 1)]
    means = np.empty((size, *pixels.shape[1:]))
    for part, (start, stop) in enumerate(pairwise(edges)):
        first, last = (min(max(0, edge), count) for edge in (math.floor(start), math.ceil(stop)))
        places = np.arange(first, last)
        shares = (np.minimum(places + 1, stop) - np.maximum(places, start)) / (stop - start)
        means[part] = np.tensordot(shares, pixels[first:last], axes=1) + (1 - shares.sum()) * border
    return means


def _polarity(brightness: float, background: float, asked: bool | None) -> tuple[bool, str]:
    """Whether to invert a picture with a border of this brightness for data of this background (both 0 to 1); why."""
    own = "light" if brightness >= 0.5 else "dark"
    if asked is not None:
        return asked, f"{'inverted' if asked else 'not inverted'} (as asked)"
    if 1 / 3 < background < 2 / 3:
        return False, "not inverted (the data have no background of one kind)"
    if abs(1 - brightness - background) < abs(brightness - background):
        return True, f"inverted (its background is {own})"
    return False, f"not inverted (its background is {own})"


def _too_large(pixels: str) -> str:
    return f"{pixels} pixels, more than the {MAX_PIXELS:,} that minidl reads; save it smaller"


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
