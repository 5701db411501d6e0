import struct
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from minidl.data import picture
from minidl.data.picture import Picture, open_picture, prepare
from minidl.errors import DataError

GREY = np.array([[0, 50, 100], [150, 200, 255]], np.uint8)  # 3 wide, 2 high
RED = (255, 0, 0)


def saved(tmp_path, image, name="picture.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def grey(rows):
    return Picture(np.array(rows, np.uint8)[..., np.newaxis], "a picture")


# Reading


def test_grey_is_read_as_it_is(tmp_path) -> None:
    read = open_picture(saved(tmp_path, Image.fromarray(GREY)))
    assert read.pixels.dtype == np.uint8
    assert np.array_equal(read.pixels, GREY[..., np.newaxis])
    assert (read.kind, read.steps) == ("3x2 grey", ())


@pytest.mark.parametrize(("mode", "kind"), [("RGB", "RGB"), ("P", "palette"), ("CMYK", "CMYK")])
def test_colours_become_rgb(tmp_path, mode, kind) -> None:
    image = Image.new("RGB", (4, 3), RED).convert(mode)
    read = open_picture(saved(tmp_path, image, "picture.tiff"))
    assert read.pixels.shape == (3, 4, 3)
    assert np.array_equal(read.pixels, np.broadcast_to(np.uint8(RED), (3, 4, 3)))
    assert read.kind == f"4x3 {kind}"


def test_one_bit_a_pixel(tmp_path) -> None:
    read = open_picture(saved(tmp_path, Image.fromarray(GREY > 120)))
    assert np.array_equal(read.pixels[..., 0], np.where(GREY > 120, 255, 0))
    assert read.kind == "3x2 black-and-white"


@pytest.mark.parametrize("name", ["picture.png", "picture.tiff", "picture.pgm"])
def test_sixteen_bits_keep_their_scale(tmp_path, name) -> None:
    read = open_picture(saved(tmp_path, Image.fromarray(GREY.astype(np.uint16) * 257), name))
    assert np.array_equal(read.pixels[..., 0], GREY)
    assert read.kind == "3x2 16-bit grey"


def test_sixteen_bits_are_not_cut_to_eight(tmp_path) -> None:
    read = open_picture(saved(tmp_path, Image.fromarray(np.array([[0, 128, 257]], np.uint16))))
    assert read.pixels[0, :, 0] == pytest.approx([0, 128 / 257, 1])


@pytest.mark.parametrize("pixels", [GREY.astype(np.float32), GREY.astype(np.int32) * 1000], ids=["float", "int"])
def test_pixels_without_a_known_scale_are_refused(tmp_path, pixels) -> None:
    path = saved(tmp_path, Image.fromarray(pixels), "picture.tiff")
    with pytest.raises(DataError, match=r"picture\.tiff: its pixels have 32 bits and no known scale; save it with 8"):
        open_picture(path)


def test_transparency_is_laid_on_white(tmp_path) -> None:
    image = Image.new("RGBA", (3, 1))
    for column, alpha in enumerate((0, 102, 255)):
        image.putpixel((column, 0), (0, 0, 0, alpha))
    read = open_picture(saved(tmp_path, image))
    assert read.pixels[0].tolist() == [[255] * 3, [153] * 3, [0] * 3]
    assert (read.kind, read.steps) == ("3x1 RGB", ("transparency on white",))


def test_grey_with_transparency_stays_grey(tmp_path) -> None:
    read = open_picture(saved(tmp_path, Image.new("LA", (3, 2), (10, 0))))
    assert read.pixels.tolist() == [[[255]] * 3] * 2


def test_a_transparent_palette_entry(tmp_path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([9, 9, 9, *RED])
    image.putpixel((1, 0), 1)
    read = open_picture(saved(tmp_path, image, transparency=0))
    assert read.pixels[0].tolist() == [[255] * 3, list(RED)]


def test_opaque_alpha_is_not_worth_a_word(tmp_path) -> None:
    assert open_picture(saved(tmp_path, Image.new("RGBA", (2, 2), (*RED, 255)))).steps == ()


@pytest.mark.parametrize(
    ("orientation", "upright"), [(3, np.rot90(GREY, 2)), (6, np.rot90(GREY, -1)), (8, np.rot90(GREY))]
)
def test_the_camera_s_orientation_is_applied(tmp_path, orientation, upright) -> None:
    exif = Image.Exif()
    exif[picture.ORIENTATION] = orientation
    read = open_picture(saved(tmp_path, Image.fromarray(GREY), exif=exif))
    assert np.array_equal(read.pixels[..., 0], upright)
    assert read.steps == ("turned upright",)


def test_damaged_metadata_do_not_matter(tmp_path) -> None:
    path = saved(tmp_path, Image.fromarray(GREY), "picture.jpg", quality=100, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert open_picture(path).pixels.shape == (2, 3, 1)


def test_the_first_frame_of_several(tmp_path) -> None:
    frames = [Image.new("L", (2, 2), value) for value in (0, 128, 255)]
    read = open_picture(saved(tmp_path, frames[0], "picture.gif", save_all=True, append_images=frames[1:]))
    assert read.steps == ("the first of 3 frames",)
    assert read.pixels.max() == 0


def png_header(columns, rows):
    """A PNG that promises so many grey pixels and holds none."""
    chunks = (b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def noise_png(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)
    return saved(tmp_path, Image.fromarray(noise), "whole.png").read_bytes()


BAD = {
    "empty": (lambda _: b"", "the file is empty"),
    "text": (lambda _: b"a cat\n" * 50, "not a picture; expected PNG, JPEG"),
    "truncated": (lambda tmp_path: noise_png(tmp_path)[:700], "damaged, image file is truncated"),
    "header cut": (lambda tmp_path: noise_png(tmp_path)[:20], "damaged"),
    "large": (lambda _: png_header(10_000, 10_000), "10000x10000 = 100,000,000 pixels, more than the 67,108,864"),
    "huge": (lambda _: png_header(2**31 - 1, 2**31 - 1), "far more pixels, more than the 67,108,864"),
    "no pixels": (lambda _: png_header(0, 5), ""),
    "drawing": (lambda _: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "EPS is a drawing"),
}


@pytest.mark.parametrize(("contents", "message"), BAD.values(), ids=BAD)
def test_bad_files(tmp_path, contents, message) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(contents(tmp_path))
    with pytest.raises(DataError) as error, warnings.catch_warnings(record=True) as seen:
        open_picture(path)
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)
    assert not seen  # nor does Pillow warn of what is refused anyway


def test_a_flipped_bit_is_found_or_harmless(tmp_path) -> None:
    whole, path = noise_png(tmp_path), tmp_path / "flipped.png"
    refusals = []
    for position in range(0, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        try:
            open_picture(path)
        except DataError as error:
            refusals.append(str(error))
    assert len(refusals) > 200
    assert not any("\n" in message for message in refusals)


def test_missing_and_folder(tmp_path) -> None:
    with pytest.raises(DataError, match=r"nothing\.png: no such file"):
        open_picture(tmp_path / "nothing.png")
    with pytest.raises(DataError, match="a folder or device, expected a file"):
        open_picture(tmp_path)


# Preparing


def test_what_fits_already_is_not_touched() -> None:
    prepared = prepare(grey(GREY), (2, 3, 1), white=255, background=0, invert=False)
    assert np.array_equal(prepared.pixels[..., 0], GREY)
    assert prepared.description == "a picture -> 3x2, not inverted (as asked)"


def test_white_becomes_the_data_s_white() -> None:
    prepared = prepare(grey(GREY), (2, 3, 1), white=16, background=0, invert=False)
    assert prepared.pixels[..., 0] == pytest.approx(GREY * (16 / 255))


def test_shrinking_takes_the_mean_of_each_area() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (12, 20, 3), np.uint8)
    prepared = prepare(Picture(pixels, ""), (3, 5, 3), 255, 0, invert=False)
    assert prepared.pixels == pytest.approx(pixels.reshape(3, 4, 5, 4, 3).mean(axis=(1, 3)))


def test_shrinking_by_a_fraction_shares_out_pixels() -> None:
    prepared = prepare(grey([[0, 90, 30], [0, 90, 30], [0, 90, 30]]), (2, 2, 1), 255, 0, invert=False)
    assert prepared.pixels[..., 0] == pytest.approx(np.array([[30, 50], [30, 50]]))


def test_enlarging_repeats() -> None:
    prepared = prepare(grey(GREY), (4, 6, 1), 255, 0, invert=False)
    assert prepared.pixels[..., 0] == pytest.approx(np.kron(GREY, np.ones((2, 2))))


@pytest.mark.parametrize("transposed", [False, True])
def test_another_aspect_ratio_is_padded_and_not_stretched(transposed) -> None:
    rows = np.full((4, 8), 10, np.uint8)
    rows[1:3, 2:6] = 250
    wanted = np.full((8, 8), 10.0)
    wanted[3:5, 2:6] = 250
    if transposed:
        rows, wanted = rows.T, wanted.T
    prepared = prepare(grey(rows), (8, 8, 1), 255, 0, invert=False)
    assert prepared.pixels[..., 0] == pytest.approx(wanted)
    assert "padded to square" in prepared.description


def test_padding_to_a_shape_that_is_not_square() -> None:
    assert "padded to 8x4" in prepare(grey(np.zeros((4, 4))), (2, 4, 1), 255, 0).description


def test_a_stroke_at_the_border_does_not_colour_the_padding() -> None:
    rows = np.full((4, 8), 255, np.uint8)
    rows[:, 3] = 0
    prepared = prepare(grey(rows), (8, 8, 1), 255, 255)
    assert (prepared.pixels[:2] == 255).all()
    assert (prepared.pixels[2:6, 3] == 0).all()


def test_a_line_of_a_million_pixels() -> None:
    prepared = prepare(grey(np.zeros((1, 1_000_000))), (8, 8, 1), 255, 0)
    assert (prepared.pixels == 0).all()


def test_colours_become_grey_by_brightness_and_grey_becomes_rgb() -> None:
    red = Picture(np.full((2, 2, 3), RED, np.uint8), "a picture")
    prepared = prepare(red, (2, 2, 1), 255, 0, invert=False)
    assert prepared.pixels.shape == (2, 2, 1)
    assert prepared.pixels == pytest.approx(np.full((2, 2, 1), 0.299 * 255))
    assert prepared.description.startswith("a picture -> grey, 2x2")
    prepared = prepare(grey(GREY), (2, 3, 3), 255, 0, invert=False)
    assert np.array_equal(prepared.pixels, np.repeat(GREY[..., np.newaxis], 3, axis=-1))
    assert prepared.description.startswith("a picture -> RGB, 3x2")


@pytest.mark.parametrize(
    ("border", "background", "inverted", "words"),
    [
        (250, 2, True, "inverted (its background is light)"),
        (5, 2, False, "not inverted (its background is dark)"),
        (5, 14, True, "inverted (its background is dark)"),
        (250, 14, False, "not inverted (its background is light)"),
        (250, 7.5, False, "not inverted (the data have no background of one kind)"),
    ],
)
def test_the_background_decides_inversion(border, background, inverted, words) -> None:
    rows = np.full((6, 6), border)
    rows[1:5, 1:5] = 100
    prepared = prepare(grey(rows), (6, 6, 1), white=16, background=background)
    assert prepared.inverted == inverted
    assert prepared.description.endswith(f"6x6, {words}")
    wanted = (255 - rows if inverted else rows) * 16 / 255
    assert prepared.pixels[..., 0] == pytest.approx(wanted)


def test_inversion_as_asked_wins() -> None:
    light = np.full((2, 2), 255)
    assert not prepare(grey(light), (2, 2, 1), 16, 0, invert=False).inverted
    prepared = prepare(grey(light), (2, 2, 1), 16, 16, invert=True)
    assert (prepared.pixels == 0).all()
    assert "inverted (as asked)" in prepared.description


def test_a_blank_picture_is_called_blank() -> None:
    assert prepare(grey(np.full((5, 5), 77)), (4, 4, 1), 255, 0).description.endswith(
        "blank: it has one colour everywhere"
    )


def drawn(height, width, rows=1000, columns=1000, ink=0, paper=255):
    """Paper with a rectangle of ink, off the middle."""
    pixels = np.full((rows, columns), paper)
    pixels[20 : 20 + height, 30 : 30 + width] = ink
    return grey(pixels)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (drawn(100, 60), "10% of the frame's height"),
        (drawn(60, 100), "10% of the frame's width"),
        (drawn(1, 1), "0.1% of the frame's height"),
        (drawn(499, 3), "50% of the frame's height"),
        (drawn(100, 60, ink=255, paper=0), "10% of the frame's height"),
        (drawn(100, 60, ink=215), "10% of the frame's height"),
        (drawn(100, 60, rows=200), "10% of the frame's height"),  # of what the model sees: the padded square
    ],
)
def test_a_subject_that_is_small_in_the_frame_is_told(given, words) -> None:
    description = prepare(given, (8, 8, 1), 255, 0).description
    assert description.endswith(f"; its subject fills only {words}: crop it closer")


@pytest.mark.parametrize("given", [drawn(500, 3), drawn(3, 500), drawn(700, 700), drawn(100, 60, ink=240), drawn(0, 0)])
def test_a_subject_that_fills_half_of_the_height_or_width_is_not(given) -> None:
    assert "crop" not in prepare(given, (8, 8, 1), 255, 0).description


def test_uneven_light_does_not_hide_a_small_subject() -> None:
    pixels = np.tile(np.linspace(235, 205, 400), (400, 1))
    pixels[150:200, 150:190] = 10
    assert "fills only 12% of the frame's height" in prepare(grey(pixels), (8, 8, 1), 255, 0).description


def test_a_small_subject_may_differ_in_one_colour_only() -> None:
    pixels = np.full((100, 100, 3), 200, np.uint8)
    pixels[40:60, 40:50, 2] = 0
    assert "fills only 20% of the frame's height" in prepare(Picture(pixels, ""), (8, 8, 3), 255, 0).description


def test_a_model_of_other_channels_is_refused() -> None:
    with pytest.raises(DataError, match="the model reads images of 4 channels"):
        prepare(grey(GREY), (2, 3, 4), 255, 0)


@pytest.mark.parametrize("shape", [(1, 2**20), (2**20, 1)])
def test_a_long_line_takes_little_memory(shape) -> None:
    line = np.zeros(shape, np.uint8)
    line.flat[: 2**19] = 200
    tracemalloc.start()
    try:
        prepared = prepare(Picture(line[..., np.newaxis], "a line"), (28, 28, 1), 255, 0, invert=False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * line.nbytes  # one line of floats for each of the 28 rows would be 224 times as much
    pixels = prepared.pixels[..., 0] if shape[0] == 1 else prepared.pixels[..., 0].T
    # The border's median is 100; the line fills 14 / 2**20 of each of the two rows in the middle.
    expected = np.full((28, 28), 100.0)
    expected[13:15, :14] += 100 * 14 / 2**20
    expected[13:15, 14:] -= 100 * 14 / 2**20
    assert pixels == pytest.approx(expected, rel=1e-12)
