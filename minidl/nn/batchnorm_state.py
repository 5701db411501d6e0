"""What a batch normalization layer holds: gamma and beta, the running statistics, and what of them is frozen."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np

from minidl.backends import Array, Backend, BatchStatistics
from minidl.nn.arguments import is_count, real_number, whole_number
from minidl.nn.counts import Count
from minidl.nn.module import Module, Parameter


class Part(NamedTuple):
    """Images of a batch that are normalized together, and what by."""

    images: slice
    statistics: BatchStatistics


class BatchNormState(Module):
    """Base of `BatchNorm`, which says what the arguments and attributes are."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        device: str | Backend | None = None,
    ) -> None:
        super().__init__(device)
        if whole_number(self, "num_features", num_features) < 1:
            raise ValueError(f"{type(self).__name__}: num_features must be at least 1, got {num_features}")
        if not 0 < real_number(self, "eps", eps) < math.inf:
            raise ValueError(f"{type(self).__name__}: eps must be greater than 0, got {eps}")
        if momentum is not None and not 0 <= real_number(self, "momentum", momentum) <= 1:
            raise ValueError(f"{type(self).__name__}: momentum must be from 0 to 1, or None, got {momentum}")
        self.num_features, self.eps, self.momentum = int(num_features), eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self.weight: Parameter | None = None
        self.bias: Parameter | None = None
        if affine:
            self.weight = Parameter(self.backend, np.ones(num_features), decay=False)
            self.bias = Parameter(self.backend, np.zeros(num_features), decay=False)
        self.running_mean: Array = None
        self.running_var: Array = None
        self._batches = Count()
        self.statistics_frozen = False
        self.observer: Callable[[Sequence[Part], int], None] | None = None
        if track_running_stats:
            self.register_buffer("running_mean", self.backend.array(np.zeros(num_features)))
            self.register_buffer("running_var", self.backend.array(np.ones(num_features)))

    @property
    def num_batches_tracked(self) -> int:
        """How many batches the running statistics have seen."""
        return self._batches.value

    @num_batches_tracked.setter
    def num_batches_tracked(self, batches: int) -> None:
        self._batches.value = batches

    def freeze_statistics(self, frozen: bool = True) -> Self:
        """In training too, normalize by the running estimates and leave them and num_batches_tracked as they are.

        What evaluation does, but `train()` and `eval()` do not undo it. (In PyTorch `requires_grad = False` freezes no
        statistics; there it takes `eval()` on the layer, again after each `train()` of the model. Keras' `trainable =
        False` freezes both.) It is no part of `state_dict`: freeze again after making a model anew.

        Raises:
            ValueError: There are no running statistics.
        """
        if frozen and not self.track_running_stats:
            raise ValueError(
                f"{type(self).__name__}: there are no running statistics to freeze; make it with "
                "track_running_stats=True"
            )
        self.statistics_frozen = bool(frozen)
        return self

    def freeze_affine(self, frozen: bool = True) -> Self:
        """Leave gamma and beta, if there are any, as they are: see `Parameter.trainable`. The statistics go on."""
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                parameter.trainable = not frozen
        return self

    @property
    def uses_batch_statistics(self) -> bool:
        """Whether a forward pass normalizes by the statistics of its batch, not by the running ones."""
        if not self.track_running_stats or self.observer is not None:
            return True
        return self.training and not self.statistics_frozen

    @property
    def _tracks(self) -> bool:
        """Whether the running statistics follow the batches that normalize."""
        return self.training and self.track_running_stats and self.observer is None

    def _count_batch(self) -> Array | None:
        """Count one that the running statistics follow; how many there were, where the cumulative mean asks for it."""
        if self.momentum is None:
            return self._batches.draw(self.backend)
        self.num_batches_tracked += 1
        return None

    def _update_running(self, parts: Sequence[Part], rows: int, before: Array | None) -> None:
        """Move the running estimates by one factor towards the mean of the parts' means and unbiased variances.

        One part at a time: with n of them and the factor f, part i by f / (n - (n - i) f), so that each ends up with
        the weight f / n and what was there before with 1 - f. Of the cumulative mean, f is 1 / (`before` + 1), which
        the device works out from the number of batches before this one.
        """
        n = len(parts)
        for i, (_, statistics) in enumerate(parts, start=1):
            if self.momentum is None:
                weight: float | Array = self.backend.empty(())
                self.backend.cumulative_weight(before, i, n, weight)
            else:
                weight = self.momentum / (n - (n - i) * self.momentum)
            self.backend.batchnorm_update_running(statistics, rows, weight, self.running_mean, self.running_var)

    @contextlib.contextmanager
    def _affine_gradients(self) -> Iterator[tuple[Array | None, Array | None]]:
        """Where backward writes dgamma and dbeta; None for what does not exist or is frozen."""
        with contextlib.ExitStack() as stack:
            dgamma, dbeta = (
                stack.enter_context(parameter.gradient()) if parameter is not None and parameter.trainable else None
                for parameter in (self.weight, self.bias)
            )
            yield dgamma, dbeta

    def _affine(self) -> tuple[Array | None, Array | None]:
        if self.weight is None or self.bias is None:
            return None, None
        return self.weight.value, self.bias.value

    # num_batches_tracked is part of the state, as PyTorch's 0-d int64.

    def own_state(self) -> dict[str, np.ndarray]:
        """See `Module.own_state`."""
        state = super().own_state()
        if self.track_running_stats:
            state["num_batches_tracked"] = np.array(self.num_batches_tracked, np.int64)
        return state

    def own_shapes(self) -> dict[str, tuple[int, ...]]:
        """See `Module.own_shapes`."""
        shapes = super().own_shapes()
        if self.track_running_stats:
            shapes["num_batches_tracked"] = ()
        return shapes

    def own_faults(self, state: Mapping[str, np.ndarray]) -> list[str]:
        """See `Module.own_faults`."""
        batches = state.get("num_batches_tracked", 0)
        return [] if is_count(batches) else [f"num_batches_tracked is {batches}, expected a whole number of at least 0"]

    def load_own_state(self, state: Mapping[str, np.ndarray]) -> None:
        """See `Module.load_own_state`."""
        super().load_own_state(state)
        if "num_batches_tracked" in state:
            self.num_batches_tracked = int(state["num_batches_tracked"])

    def extra_repr(self) -> str:
        """The arguments, as PyTorch prints them."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )
