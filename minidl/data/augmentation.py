"""What may happen to training images: random crop with padding, horizontal flip, cutout.

What does happen to one is a function of (seed, epoch, image) alone, which a backend's `draw_augmentation` computes
(kernels/augmentation.py) and `gather_images` applies (kernels/images.py). The same image gets the same treatment in an
epoch whatever batch it comes in and whatever the device, bit for bit.
"""

from dataclasses import dataclass

from minidl.errors import ConfigError

MOST = 4096  # pixels


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training image, in this order; by default nothing.

    Attributes:
        flip: Whether every other image, by chance, is mirrored left to right.
        crop_padding: Pixels of raw 0 around the image, from which it is cropped at a random place: it moves as many up,
            down, left or right at most.
        cutout: The side in pixels of a square that is cut out: around a random pixel, as far as it lies in the image.
            What is cut becomes the data set's mean, 0 after normalization.
    """

    crop_padding: int = 0
    flip: bool = False
    cutout: int = 0

    def __post_init__(self) -> None:
        for name, pixels in (("crop_padding", self.crop_padding), ("cutout", self.cutout)):
            if not 0 <= pixels <= MOST:
                raise ConfigError(f"augmentation: {name} is {pixels} pixels; expected 0 to {MOST:,}")

    def __str__(self) -> str:
        """In words, such as "crop padding 4, flip"."""
        sizes = {"crop padding": self.crop_padding, "cutout": self.cutout}
        words = [f"{name} {pixels}" for name, pixels in sizes.items() if pixels]
        if self.flip:
            words.insert(bool(self.crop_padding), "flip")
        return ", ".join(words) or "no augmentation"


NO_AUGMENTATION = Augmentation()
