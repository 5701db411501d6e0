"""What a convolution hands on in the place of an activation: its output as it is, and how that is to be normalized."""

from typing import TYPE_CHECKING, NamedTuple

from minidl.backends import Array, Normalization

if TYPE_CHECKING:
    from minidl.nn.batchnorm import BatchNorm


class PendingActivation(NamedTuple):
    """An activation (n, h, w, c) that is worked out wherever it is read. Its gradient is a `PendingGradient`."""

    x: Array  # the convolution's output
    normalization: Normalization
    batchnorm: "BatchNorm"  # whose it is

    @property
    def shape(self) -> tuple[int, ...]:
        """The activation's."""
        return tuple(self.x.shape)

    def written(self) -> Array:
        """The activation itself."""
        return self.batchnorm.write(self.x, self.normalization)
