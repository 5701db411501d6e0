"""Ghost batch normalization (Hoffer et al. 2017, arXiv:1705.08741): statistics over a few images of the batch each.

So a large batch is normalized as noisily as a small one. Parameters and running statistics are shared.
"""

import math

from minidl.backends import Array, Backend
from minidl.nn.arguments import whole_number
from minidl.nn.batchnorm import BatchNorm
from minidl.nn.module import Module


class GhostBatchNorm(BatchNorm):
    """What GhostBatchNorm1d and GhostBatchNorm2d share; they differ in the shapes they take.

    In training the first `ghost_size` images of a batch are normalized by their own mean and variance, then the next,
    and so on; otherwise as BatchNorm, which it is where the batch is one ghost batch.

    The running statistics move once a batch, by `momentum`, towards the mean of the ghost batches' means and unbiased
    variances. So their memory is as many steps long as that of BatchNorm, whatever the ghost size, and all images of a
    batch count alike. Others apply momentum once for each of the n ghost batches in turn (the paper's algorithm 1,
    pytorch_tabnet), which with momentum 1 - (1 - momentum)^n here gives the same memory, or keep a set for each.

    Args:
        num_features: Channels.
        ghost_size: Images of a ghost batch.
        eps: As in BatchNorm, and so are all others.
        momentum: See above; None for the cumulative mean over all batches.
        affine: Whether there are gamma and beta.
        track_running_stats: Whether running statistics are kept. Without them evaluation goes by ghost batches too.
        device: Where it computes; the CPU unless given.
    """

    def __init__(
        self,
        num_features: int,
        ghost_size: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        device: str | Backend | None = None,
    ) -> None:
        if whole_number(self, "ghost_size", ghost_size) < 1:
            raise ValueError(f"{type(self).__name__}: ghost_size must be at least 1, got {ghost_size}")
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device)
        self.ghost_size = int(ghost_size)

    def forward(self, x: Array) -> Array:
        """Normalize x; the output has its shape.

        Raises:
            ShapeError: x has another number of axes or channels.
            ValueError: Ghost batches normalize, and they do not divide the batch, or have one value for each channel.
        """
        return super().forward(x)

    def _split(self, x: Array) -> list[slice]:
        images = len(x)
        if images % self.ghost_size:
            whole = images - images % self.ghost_size
            raise ValueError(
                f"{type(self).__name__}: a batch of {images} is not made of ghost batches of {self.ghost_size}; use a "
                f"multiple of {self.ghost_size}, such as {whole or self.ghost_size}"
            )
        return [slice(i, i + self.ghost_size) for i in range(0, images, self.ghost_size)] or [slice(None)]

    def _too_few(self, x: Array) -> str:
        if self.observer is not None:
            return super()._too_few(x)
        return (
            f"{type(self).__name__}: a ghost batch needs more than one value for each channel, got an input of shape "
            f"{tuple(x.shape)} in ghost batches of {self.ghost_size}; use a larger ghost_size"
        )

    def extra_repr(self) -> str:
        """The arguments, as BatchNorm prints them."""
        features, rest = super().extra_repr().split(", ", 1)
        return f"{features}, ghost_size={self.ghost_size}, {rest}"


class GhostBatchNorm1d(GhostBatchNorm):
    """Ghost batch normalization of (n, c), or of (n, length, c) with channels last."""

    forms = ("n c", "n l c")


class GhostBatchNorm2d(GhostBatchNorm):
    """Ghost batch normalization of (n, h, w, c) over the n of a ghost batch, h and w."""

    forms = ("n h w c",)


def batch_multiple(model: Module) -> int:
    """What number a training batch of `model` must be a multiple of: 1, but for ghost batches."""
    sizes = [module.ghost_size for _, module in model.named_modules() if isinstance(module, GhostBatchNorm)]
    return math.lcm(*sizes)
