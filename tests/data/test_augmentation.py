import pytest

from minidl.data import NO_AUGMENTATION, Augmentation
from minidl.errors import ConfigError


def test_by_default_nothing_happens() -> None:
    assert Augmentation() == NO_AUGMENTATION == Augmentation(crop_padding=0, flip=False, cutout=0)


@pytest.mark.parametrize(
    ("augmentation", "words"),
    [
        (Augmentation(crop_padding=4, flip=True, cutout=8), "crop padding 4, flip, cutout 8"),
        (Augmentation(flip=True, cutout=8), "flip, cutout 8"),
        (Augmentation(crop_padding=2), "crop padding 2"),
        (Augmentation(), "no augmentation"),
    ],
)
def test_in_words(augmentation: Augmentation, words: str) -> None:
    assert str(augmentation) == words


@pytest.mark.parametrize("name", ["crop_padding", "cutout"])
@pytest.mark.parametrize("pixels", [-1, 4097])
def test_pixels_out_of_range(name: str, pixels: int) -> None:
    with pytest.raises(ConfigError, match=f"augmentation: {name} is {pixels} pixels; expected 0 to 4,096"):
        Augmentation(**{name: pixels})
