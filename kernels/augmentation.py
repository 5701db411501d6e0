"""What happens to each image of a batch in training: random crop with padding, horizontal flip, cutout.

    draw_augmentation   shifts, flips, centres = functions of (seed, epoch, image) alone

An image's numbers are the four words of the Philox block (kernels/random.py) with

    counter = (image low word, image high word, epoch, STREAM)       key = (seed low word, seed high word)

so an image is treated alike in whatever batch it comes, on every device, and a resumed run needs no state:

    down, right   the upper word of word * (2 crop_padding + 1), minus crop_padding
    flip          the upper bit of the third word
    centre        pixel number (row by row) of the upper word of the fourth word * (h w)

A crop of the padded image at a random place is the image shifted by -crop_padding..crop_padding either way. Integers
only: the same bits everywhere. The shifts and the centre are uniform, each value's probability to within 2^-32, and the
four are independent. kernels/images.py applies them.

Shapes   index (n,) int64, each at least 0; epoch () uint32; shifts (n, 2) int32, (down, right) in pixels; flips (n,)
         bool; centres (n, 2) int32, (row, column) of cutout's square in the picture as it comes out, in [0, h) x
         [0, w).
Traffic  reads index and writes the others once.
Source   cutout: T. DeVries, G. Taylor, "Improved regularization of convolutional neural networks with cutout", 2017,
         arXiv:1708.04552: the centre is any pixel, so that part of the square may lie outside. Crop and flip as there.
"""

from typing import Any

import numpy as np
from numba import cuda, int64, uint32
from numpy.typing import NDArray

from kernels.device import index_type, inlined
from kernels.errors import ShapeError, require_shape
from kernels.launch import Array as DeviceArray
from kernels.launch import Bytes, Cost, Int32s, Int64, Int64s, Launch, Runner, UInt32, UInt32s, blocks_for, kernel
from kernels.random import philox4x32, seed_words

BLOCK = 256
STREAM = 0xFFFFFFFF  # layers count their streams from 0: this one is never a layer's


def below(word: Any, count: Any) -> Any:
    """A uniform integer in 0..count-1 from a uniform 32-bit word; count in [0, 2^32).

    A scalar or a NumPy array; it compiles unchanged under Numba, for CPU and GPU.
    """
    return np.int64(np.uint64(word) * np.uint64(count) >> np.uint64(32))


_philox, _below = inlined(philox4x32), inlined(below)


def value_counts(image_size: tuple[int, int], crop_padding: int) -> tuple[int, int]:
    """How many values a shift has, and how many a centre.

    Raises:
        ValueError: an image (h, w) without pixels or with 2^32 or more, or a padding that is not in [0, 2^31).
    """
    height, width = image_size
    if min(height, width) < 1 or height * width >= 2**32:
        raise ValueError(f"draw_augmentation: image_size is {image_size}, expected 1 to 2^32 - 1 pixels in all")
    if not 0 <= crop_padding < 2**31:
        raise ValueError(f"draw_augmentation: crop_padding is {crop_padding}, expected 0 to 2^31 - 1 pixels")
    return 2 * crop_padding + 1, height * width


def draw_augmentation_reference(
    index: NDArray[np.int64], image_size: tuple[int, int], crop_padding: int, flip: bool, seed: int, epoch: int
) -> tuple[NDArray[np.int32], NDArray[np.bool_], NDArray[np.int32]]:
    """Shifts (n, 2), flips (n,) and centres (n, 2) of the images `index`; see `draw_augmentation`.

    Raises:
        ValueError: as `value_counts` does.
    """
    places, pixels = value_counts(image_size, crop_padding)
    down, right, mirror, centre = philox4x32(index & 0xFFFFFFFF, index >> 32, epoch, STREAM, *seed_words(seed))
    shifts = np.stack([below(down, places), below(right, places)], axis=-1) - crop_padding
    flips = mirror >> 31 == 1 if flip else np.zeros(len(index), bool)
    centres = np.stack(divmod(below(centre, pixels), image_size[1]), axis=-1)
    return shifts.astype(np.int32), flips, centres.astype(np.int32)


@kernel(
    traffic="chosen, epoch -> shifts, flips, centres",
    registers=32,
    examples=[(uint32, 28, 28, 4, True), (int64, 32, 24, 0, False)],
)
def draw_augmentation_scalar(place: Any, height: int, width: int, crop_padding: int, flip: bool) -> Launch:
    """One image a thread."""
    places, pixels = value_counts((height, width), crop_padding)

    def draw_augmentation(
        chosen: Int64s,
        epoch: UInt32s,
        shifts: Int32s,
        flips: Bytes,
        centres: Int32s,
        n: Int64,
        seed_low: UInt32,
        seed_high: UInt32,
    ):
        i = place(cuda.blockIdx.x * BLOCK + cuda.threadIdx.x)
        if i < n:
            image = chosen[i]
            a, b, c, d = _philox(image & 0xFFFFFFFF, image >> 32, epoch[0], STREAM, seed_low, seed_high)
            shifts[2 * i] = _below(a, places) - crop_padding
            shifts[2 * i + 1] = _below(b, places) - crop_padding
            flips[i] = c >> 31 if flip else 0
            pixel = _below(d, pixels)
            centres[2 * i] = pixel // width
            centres[2 * i + 1] = pixel % width

    return Launch(draw_augmentation, BLOCK, lambda n: blocks_for(n, BLOCK), lambda n: Cost(8 * n, 17 * n))


def draw_augmentation(
    run: Runner,
    index: DeviceArray,
    shifts: DeviceArray,
    flips: DeviceArray,
    centres: DeviceArray,
    image_size: tuple[int, int],
    crop_padding: int,
    flip: bool,
    seed: int,
    epoch: DeviceArray,
) -> None:
    """Launch on `run`. What changes in a run, `index` and `epoch`, is in device memory.

    Args:
        run: The device.
        index: Which images.
        shifts: The result: how far each moves.
        flips: The result: whether each is mirrored; nowhere without `flip`.
        centres: The result: where cutout's square lies.
        image_size: Height and width.
        crop_padding: Pixels, in [0, 2^31).
        flip: Whether every other image, by chance, is mirrored.
        seed: Of the generator; of a larger number its lower 64 bits count.
        epoch: () uint32.

    Raises:
        ShapeError: An array's shape is not as above.
        ValueError: An image without pixels, or crop_padding is out of range.
    """
    if index.ndim != 1:
        raise ShapeError(f"draw_augmentation: index has shape {tuple(index.shape)}, expected (n,)")
    n = len(index)
    require_shape("draw_augmentation", "shifts", shifts, (n, 2))
    require_shape("draw_augmentation", "flips", flips, (n,))
    require_shape("draw_augmentation", "centres", centres, (n, 2))
    require_shape("draw_augmentation", "epoch", epoch, ())
    value_counts(image_size, crop_padding)
    draw = draw_augmentation_scalar(index_type(n), *image_size, crop_padding, flip)
    run(draw, index, epoch, shifts, flips.view(np.uint8), centres, n, *seed_words(seed))
