"""Batches of images on the CPU, and what augmentation draws for them."""

import numpy as np

from kernels.augmentation import draw_augmentation_reference
from kernels.images import check_cutout
from minidl.backends.cpu.compile import compiled
from minidl.backends.cpu.device import CpuDevice
from minidl.backends.protocol import Pair

GRAIN = 1 << 16  # elements in a piece of work


@compiled
def _gather_images(first, last, images, index, shifts, flips, mean, std, out):
    _, h, w, c = images.shape
    for n in range(first, last):
        source, down, right, flip = index[n], shifts[n, 0], shifts[n, 1], flips[n]
        for i in range(h):
            for j in range(w):
                y, x = i - down, j - right
                inside = 0 <= y < h and 0 <= x < w
                x = w - 1 - x if flip else x
                for k in range(c):
                    raw = np.float32(images[source, y, x, k]) if inside else np.float32(0)
                    out[n, i, j, k] = (raw - mean[k]) / std[k]


@compiled
def _cut_out(first, last, centres, cutout, out):
    _, h, w, c = out.shape
    for n in range(first, last):
        top, left = centres[n, 0] - cutout // 2, centres[n, 1] - cutout // 2
        for i in range(max(0, top), min(h, top + cutout)):
            for j in range(max(0, left), min(w, left + cutout)):
                for k in range(c):
                    out[n, i, j, k] = np.float32(0)


class ImageOps(CpuDevice):
    """Batches of images; see `Backend` for the operations."""

    def draw_augmentation(
        self,
        index: np.ndarray,
        shifts: np.ndarray,
        flips: np.ndarray,
        centres: np.ndarray,
        image_size: Pair,
        crop_padding: int,
        flip: bool,
        seed: int,
        epoch: np.ndarray,
    ) -> None:
        # By its definition: of a batch that takes microseconds, and compiling it would take half a second.
        shifts[:], flips[:], centres[:] = draw_augmentation_reference(
            index, image_size, crop_padding, flip, seed, int(epoch)
        )

    def gather_images(
        self,
        images: np.ndarray,
        index: np.ndarray,
        shifts: np.ndarray,
        flips: np.ndarray,
        centres: np.ndarray,
        mean: np.ndarray,
        std: np.ndarray,
        out: np.ndarray,
        cutout: int,
    ) -> None:
        check_cutout(cutout)
        grain = max(1, GRAIN // max(1, images[0].size))
        self.workers.run(_gather_images, len(index), grain, images, index, shifts, flips, mean, std, out)
        if cutout > 0:
            self.workers.run(_cut_out, len(index), grain, centres, cutout, out)

    def gather_labels(self, labels: np.ndarray, index: np.ndarray, out: np.ndarray) -> None:
        np.take(labels, index, out=out)
