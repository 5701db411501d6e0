"""What a device must be able to do: the one interface between layers and arithmetic.

A layer holds state and wiring; every number it produces comes from a method here. Each operation writes into arrays
that the caller obtained from `empty`, so whoever reads a layer sees its buffers. Activations are NHWC (channels last);
`rows` below means all leading axes together: an activation (n, h, w, c) is a matrix of n*h*w rows and c columns.

Shapes are validated by the layers, once; operations trust them. Every array is C-contiguous.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from kernels.batch_statistics import BatchStatistics as BatchStatistics  # part of this interface
from kernels.batch_statistics import GradientSums as GradientSums
from kernels.batch_statistics import Normalization as Normalization
from kernels.batch_statistics import PendingGradient as PendingGradient
from kernels.launch import Graph as Graph

Array = Any  # numpy.ndarray on the CPU, cupy.ndarray on a GPU
Shape = tuple[int, ...]
Pair = tuple[int, int]


class Backend(Protocol):
    """A device: its memory and its operations."""

    name: str  # "cpu", "cuda", "emulator" or "reference"
    dtype: np.dtype[Any]  # of activations and parameters: float32, or float64 on the reference
    captures: bool  # whether `capture` works
    precision: str  # of convolutions and linear layers (docs/kernels.md); "bf16" and "fp16" say `activations` too

    @property
    def activations(self) -> np.dtype[Any]:
        """How images' activations (n, h, w, c) and their gradients are stored (kernels/storage.py): mostly `dtype`.

        Operations take images of this dtype, and of `dtype`; (n, c) arrays, parameters and statistics are of `dtype`.
        """

    # Memory. `empty` draws on an arena: memory returns to it when the last reference to the array is dropped, so after
    # the first step of a training loop nothing is allocated.
    def empty(self, shape: Shape, dtype: Any = None) -> Array: ...
    def zeros(self, shape: Shape, dtype: Any = None) -> Array: ...
    def array(self, host: np.ndarray, dtype: Any = None) -> Array:
        """A new device array with the values of `host`."""

    def numpy(self, array: Array) -> np.ndarray:
        """A new host array with the values of `array`."""

    def copy(self, source: Array, target: Array) -> None: ...
    def accept(self, array: Any, name: str, dtype: Any = None) -> Array:
        """`array` if it is one of this device's, of `dtype` (or the backend's), C-contiguous and writable, else a copy.

        Raises TypeError, naming the argument, if it lies elsewhere or has another dtype.
        """

    def describe(self) -> str:
        """The device in a few words, for people."""

    @property
    def capturing(self) -> bool:
        """Whether `capture` records right now."""

    def capture(self, function: Callable[[], Any], warm_up: int = 1) -> Graph:
        """Record what `function()` asks of the device, after running it `warm_up` times for real; see `Runner.capture`.

        Targets are not looked at while it records: where one is no class, the loss is NaN in a replay. Raises
        RuntimeError if something was asked for that cannot be recorded, or the device has no such thing.
        """

    # Convolution (kernels/conv). x (n, h, w, c_in), w (kh, kw, c_in, c_out), bias (c_out,) or None,
    # y (n, ho, wo, c_out).
    def conv2d_forward(self, x: Array, w: Array, bias: Array | None, y: Array, stride: Pair, padding: Pair) -> None: ...
    def conv2d_backward_input(self, dy: Array, w: Array, dx: Array, stride: Pair, padding: Pair) -> None: ...
    def conv2d_backward_weight(self, x: Array, dy: Array, dw: Array, stride: Pair, padding: Pair) -> None: ...
    def bias_backward(self, dy: Array, db: Array) -> None:
        """Db (c,) = the sum of dy's rows; for convolution and linear alike."""

    # Convolution in a chain of normalizations (kernels/conv/normalized_reference.py). x is what the convolution before
    # has left, `before` how that becomes the activation that is convolved (None: it is one), dy the gradient of y as
    # what it is worked out from: neither the activation nor that gradient need exist in memory.
    def fuses_normalization(self, c_in: int, c_out: int) -> bool:
        """Whether these take fewer passes over memory than their parts, for a convolution of so many channels."""

    def conv2d_normalized_forward(
        self,
        x: Array,
        before: Normalization | None,
        w: Array,
        y: Array,
        stride: Pair,
        padding: Pair,
        eps: float,
        out: BatchStatistics | None,
    ) -> None:
        """Y, not normalized, and its statistics into `out` where that is not None; y then has at least one row."""

    def conv2d_normalized_backward_weight(
        self, x: Array, before: Normalization | None, dy: PendingGradient, dw: Array, stride: Pair, padding: Pair
    ) -> None: ...
    def conv2d_normalized_backward_input(
        self,
        dy: PendingGradient,
        w: Array,
        dx: Array,
        stride: Pair,
        padding: Pair,
        x: Array | None,
        before: Normalization | None,
        sums: GradientSums | None,
    ) -> None:
        """Dx = the gradient of the activation, 0 where before's ReLU did not pass x; and `sums` from dx and x.

        x, before and sums are None together, where forward's `before` was.
        """

    # Linear (kernels/linear.py). x (n, c_in), w (c_out, c_in), bias (c_out,) or None, y (n, c_out).
    def linear_forward(self, x: Array, w: Array, bias: Array | None, y: Array) -> None: ...
    def linear_backward_input(self, dy: Array, w: Array, dx: Array) -> None: ...
    def linear_backward_weight(self, x: Array, dy: Array, dw: Array) -> None: ...

    # Batch normalization (kernels/batchnorm). x, y, dy, dx (..., c); gamma and beta (c,) or both None.
    def batchnorm_statistics(self, x: Array, eps: float, out: BatchStatistics) -> None:
        """Of the batch; x has at least one row."""

    def batchnorm_running_statistics(self, mean: Array, var: Array, eps: float, out: BatchStatistics) -> None:
        """The running estimates in the form that `batchnorm_apply` reads: shift = mean, delta = 0."""

    def batchnorm_update_running(
        self, batch: BatchStatistics, rows: int, factor: float | Array, running_mean: Array, running_var: Array
    ) -> None:
        """Running += factor * (batch - running), in place; the variance that enters is unbiased (rows / (rows - 1)).

        A factor that changes from step to step is (), on the device.
        """

    def cumulative_weight(self, count: Array, part: int, parts: int, weight: Array) -> None:
        """Weight () = 1 / (parts * (count + 1) - (parts - part)): of a part, from 1, in the mean over all batches.

        `count` () uint32, the batches before.
        """

    def batchnorm_apply(
        self, x: Array, statistics: BatchStatistics, gamma: Array | None, beta: Array | None, y: Array, relu: bool
    ) -> None:
        """Y = ((x - shift) - delta) * inv_std * gamma + beta, and max(y, 0) where `relu`."""

    def batchnorm_backward(
        self,
        x: Array,
        dy: Array,
        statistics: BatchStatistics,
        gamma: Array | None,
        beta: Array | None,
        dx: Array,
        dgamma: Array | None,
        dbeta: Array | None,
        training: bool,
        relu: bool,
    ) -> None:
        """Through batch statistics where `training`, else through fixed ones: dx = dy * gamma * inv_std.

        With `relu`, dy is the gradient of max(y, 0), and the sign of y is recomputed from x exactly as forward did.
        dgamma and dbeta are None where the layer has no gamma and beta, or what is frozen needs no gradient.
        """

    def batchnorm_forward(
        self,
        x: Array,
        gamma: Array | None,
        beta: Array | None,
        eps: float,
        out: BatchStatistics,
        y: Array,
        relu: bool,
        residual: Array | None = None,
    ) -> None:
        """Training's `batchnorm_statistics` into `out` and `batchnorm_apply` by them into y, which may be one launch.

        With a residual, `batchnorm_add_relu_apply` by them; `relu` is then true. x has at least one row.
        """

    # Backward in training a pass at a time, for whoever works dx out where it is read. `sums` without dgamma or dbeta
    # where they are not wanted.
    def batchnorm_gradient_sums(self, x: Array, dy: Array, normalization: Normalization, sums: GradientSums) -> None:
        """The first pass of `batchnorm_backward`: `sums` from dy, the gradient of the normalization's output."""

    def batchnorm_pending_gradient(self, dy: PendingGradient, dx: Array) -> None:
        """The second pass of `batchnorm_backward`: dx written out."""

    # The end of a residual block; residual and dresidual are like x.
    def batchnorm_add_relu_apply(
        self, x: Array, residual: Array, statistics: BatchStatistics, gamma: Array | None, beta: Array | None, y: Array
    ) -> None:
        """Y = max(((x - shift) - delta) * inv_std * gamma + beta + residual, 0)."""

    def batchnorm_add_relu_backward(
        self,
        x: Array,
        y: Array,
        dy: Array,
        statistics: BatchStatistics,
        gamma: Array | None,
        dx: Array,
        dresidual: Array,
        dgamma: Array | None,
        dbeta: Array | None,
        training: bool,
    ) -> None:
        """Dresidual = 0 where y <= 0, else dy; y is forward's output. The rest as `batchnorm_backward` from dresidual.

        dgamma and dbeta are None where `batchnorm_backward` has none.
        """

    def batchnorm_add_relu_gradient_sums(
        self, x: Array, y: Array, dy: Array, statistics: BatchStatistics, dresidual: Array, sums: GradientSums
    ) -> None:
        """The first pass of `batchnorm_add_relu_backward` in training: dresidual, and `sums` from it."""

    # Group, layer and instance normalization (kernels/group_norm). x, y, dy, dx (n, ..., c): n samples of rows of c
    # channels, of which c / groups neighbours are normalized together; statistics four arrays (n, groups); gamma, beta
    # (c,), or no beta, or neither.
    def group_norm_statistics(self, x: Array, groups: int, eps: float, out: BatchStatistics) -> None:
        """Of each sample's groups, over its rows and their channels; a sample has at least one row."""

    def group_norm_apply(
        self, x: Array, statistics: BatchStatistics, groups: int, gamma: Array | None, beta: Array | None, y: Array
    ) -> None:
        """Y = ((x - shift) - delta) * inv_std * gamma + beta."""

    def group_norm_backward(
        self,
        x: Array,
        dy: Array,
        statistics: BatchStatistics,
        groups: int,
        gamma: Array | None,
        dx: Array,
        dgamma: Array | None,
        dbeta: Array | None,
    ) -> None:
        """Through the statistics; dgamma and dbeta are None where they are not wanted."""

    # Elementwise (kernels/activation.py, elementwise.py, channels.py, dropout.py); arrays of equal shape unless stated.
    def relu_forward(self, x: Array, y: Array) -> None: ...
    def relu_backward(self, dy: Array, y: Array, dx: Array) -> None:
        """Dx = 0 where y <= 0, else dy; y is forward's output."""

    def add(self, a: Array, b: Array, out: Array) -> None:
        """Out = a + b; out may be a or b."""

    def scale_forward(self, x: Array, factor: Array, y: Array) -> None:
        """Y = factor * x; factor () lies on the device; y may be x (kernels/scale.py)."""

    def scale_backward(self, x: Array, dy: Array, factor: Array, dx: Array, dfactor: Array) -> None:
        """Dx = factor * dy, and dfactor () = the sum of dy * x over all elements; dx may be dy."""

    def concat(self, parts: Sequence[Array], out: Array) -> None:
        """Along the last axis (channels): parts (..., c_i), out (..., sum of c_i)."""

    def split(self, whole: Array, parts: Sequence[Array]) -> None:
        """The inverse of `concat`."""

    def channels_first(self, x: Array, y: Array) -> None:
        """X (n, h, w, c) to y (n, c*h*w), in PyTorch's flattening order (channel, height, width)."""

    def channels_last(self, x: Array, y: Array) -> None:
        """The inverse of `channels_first`: x (n, c*h*w) to y (n, h, w, c)."""

    def dropout(self, x: Array, y: Array, p: float, seed: int, stream: int, call: Array) -> None:
        """Y = x / (1 - p) where kept, else 0; the mask is a function of (seed, stream, call, index) alone.

        `call` () uint32, as `count_call` writes it.
        Forward and backward are the same operation: backward applies it to dy with the same numbers.
        """

    # Noise (kernels/noise.py). x, y, dy, dx (..., c), of equal shape; y may be x, dx may be dy.
    def noise_forward(
        self,
        x: Array,
        y: Array,
        offset: float,
        scale: float,
        jitter: float,
        seed: int,
        stream: int,
        call: Array,
    ) -> None:
        """Y = s * x + m, both functions of (seed, stream to stream + 3, call, index) alone.

        A channel draws sigma ~ U(1, scale) and mu ~ U(-offset, offset), its elements s ~ U(sigma -+ jitter) and
        m ~ U(mu -+ jitter). `call` () uint32.
        """

    def noise_backward(
        self, dy: Array, dx: Array, scale: float, jitter: float, seed: int, stream: int, call: Array
    ) -> None:
        """Dx = s * dy, with the s that forward had for the same numbers."""

    # Pooling (kernels/pooling). x (n, h, w, c), y (n, ho, wo, c); windows as in kernels/window.py.
    def max_pool2d_forward(
        self,
        x: Array,
        y: Array,
        index: Array,
        kernel: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair = (1, 1),
        ceil_mode: bool = False,
    ) -> None:
        """`index` (like y, int32): the maximum's place in the image, row * w + column; ties go to the first."""

    def max_pool2d_backward(
        self,
        dy: Array,
        index: Array,
        dx: Array,
        kernel: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair = (1, 1),
        ceil_mode: bool = False,
    ) -> None: ...
    def avg_pool2d_forward(
        self,
        x: Array,
        y: Array,
        kernel: Pair,
        stride: Pair,
        padding: Pair,
        count_include_pad: bool,
        ceil_mode: bool = False,
    ) -> None: ...
    def avg_pool2d_backward(
        self,
        dy: Array,
        dx: Array,
        kernel: Pair,
        stride: Pair,
        padding: Pair,
        count_include_pad: bool,
        ceil_mode: bool = False,
    ) -> None: ...
    def global_avg_pool2d_forward(self, x: Array, y: Array) -> None:
        """X (n, h, w, c), y (n, c)."""

    def global_avg_pool2d_backward(self, dy: Array, dx: Array) -> None: ...

    # Max pooling at the end of a chain of normalizations (kernels/pooling/normalized_reference.py): of the activation
    # that `before` makes of x, which need not exist in memory.
    def fuses_pooling(self) -> bool:
        """Whether these take fewer passes over memory than their parts."""

    def max_pool2d_normalized_forward(
        self,
        x: Array,
        before: Normalization,
        y: Array,
        index: Array,
        kernel: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair = (1, 1),
        ceil_mode: bool = False,
    ) -> None:
        """Y and `index` as of max_pool2d_forward."""

    def max_pool2d_normalized_backward(
        self,
        dy: Array,
        index: Array,
        dx: Array,
        kernel: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        ceil_mode: bool,
        x: Array,
        before: Normalization,
        sums: GradientSums,
    ) -> None:
        """Dx = the gradient of the activation, 0 where before's ReLU did not pass x; and `sums` from dx and x."""

    # Softmax (kernels/softmax.py) over the last axis, of arrays of equal shapes; y is forward's output.
    def softmax_forward(self, x: Array, y: Array) -> None: ...
    def softmax_backward(self, dy: Array, y: Array, dx: Array) -> None: ...
    def log_softmax_forward(self, x: Array, y: Array) -> None: ...
    def log_softmax_backward(self, dy: Array, y: Array, dx: Array) -> None: ...

    # Loss and metrics (kernels/loss.py, rows.py, metrics.py). logits (n, classes), targets (n,) int64.
    def cross_entropy(
        self,
        logits: Array,
        targets: Array,
        loss: Array,
        dlogits: Array,
        label_smoothing: float,
        ignore_index: int,
        reduction: str,
        weight: Array | None = None,
    ) -> None:
        """Loss and its gradient in one pass; `reduction` is "mean" (over rows that are not ignored), "sum" or "none".

        With "none" loss is (n,) and dlogits holds each row's own gradient, otherwise loss is (). weight (classes,) or
        None: the mean is then weighted by the weights of the targets.
        """

    def scale_rows(self, x: Array, factors: Array, y: Array) -> None:
        """Y (n, c) = x (n, c), each row times its own of `factors` (n,)."""

    def append_result(
        self, logits: Array, targets: Array, loss: Array, count: Array, losses: Array, corrects: Array
    ) -> None:
        """Losses[count] = loss (), corrects[count] = rows whose largest logit is at their target; count + 1.

        Of equal logits the first leads; a row with NaN is not correct. count () int64; corrects int64, like losses
        (N,); the caller sees to it that there is room.
        """

    def all_finite(self, x: Array) -> bool: ...

    # Optimizers (kernels/optimizer.py): lists of equally shaped arrays, all updated in place.
    def sgd(
        self,
        values: Sequence[Array],
        grads: Sequence[Array],
        velocities: Sequence[Array],
        numbers: Array,
        rows: Sequence[int],
        nesterov: bool,
    ) -> None:
        """`velocities` is empty when momentum is 0.

        `numbers` (k, 3), a row for each parameter group: lr, momentum, weight decay. Tensor i goes by row `rows[i]`.
        """

    def adam(
        self,
        values: Sequence[Array],
        grads: Sequence[Array],
        first_moments: Sequence[Array],
        second_moments: Sequence[Array],
        numbers: Array,
        rows: Sequence[int],
    ) -> None:
        """Adam and AdamW.

        `numbers` (k, 9): rows of those of `adam_numbers` in kernels/optimizer_numbers.py. Tensor i goes by row
        `rows[i]`.
        """

    def moving_average(self, averages: Sequence[Array], values: Sequence[Array], weight: Array) -> None:
        """Average += weight * (value - average), for each pair, in place; weight () (kernels/averaging.py)."""

    # What changes from step to step (kernels/steps.py): it lies on the device, so that a captured step can be replayed.
    def begin_step(self, order: Array, plan: Array, step: Array, size: int, index: Array, numbers: Array) -> None:
        """Index (n,) = order[step * size :][:n], int64, and numbers (k,) = plan[step]; then step () int64 + 1."""

    def count_call(self, count: Array, call: Array) -> None:
        """Call () = count (), both uint32; then count + 1."""

    def append_number(self, value: Array, count: Array, log: Array) -> None:
        """Log[count] = value (); then count () int64 + 1. The caller sees to it that there is room."""

    # Gradient clipping (kernels/gradient_norm.py); the norm stays on the device.
    def global_norm(self, arrays: Sequence[Array], norm: Array) -> None:
        """Norm () = the root of the sum of the squares of all elements of all arrays; none of them overflows."""

    def clip_by_norm(self, arrays: Sequence[Array], norm: Array, max_norm: float) -> None:
        """Each array *= min(1, max_norm / (norm + 1e-6)), in place."""

    # Loss scaling (kernels/loss_scale.py), for gradients stored in float16; all on the device.
    def settle_loss_scale(
        self, norm: Array, state: Array, factor: Array, numbers: Array, still: Array, interval: int
    ) -> None:
        """If norm () is finite, factor () = 1 / scale, else 0 and numbers = still, of any shape; then the next state.

        State (2,): the scale, and the steps since it changed.
        """

    def unscale(self, arrays: Sequence[Array], factor: Array) -> None:
        """Each array *= factor (), in place; a factor of 0 makes all elements 0, those too that are not finite."""

    # Images (kernels/images.py, and kernels/augmentation.py for what is drawn).
    def draw_augmentation(
        self,
        index: Array,
        shifts: Array,
        flips: Array,
        centres: Array,
        image_size: Pair,
        crop_padding: int,
        flip: bool,
        seed: int,
        epoch: Array,
    ) -> None:
        """What happens to the images `index` (n,) int64 in epoch () uint32: a function of (seed, epoch, image) each.

        shifts (n, 2) int32, uniform in -crop_padding..crop_padding; flips (n,) bool, half of them where `flip`, else
        none; centres (n, 2) int32, uniform over the pixels of images of `image_size` (h, w).
        """

    def gather_images(
        self,
        images: Array,
        index: Array,
        shifts: Array,
        flips: Array,
        centres: Array,
        mean: Array,
        std: Array,
        out: Array,
        cutout: int,
    ) -> None:
        """A batch of normalized float images from the uint8 images of a data set.

        images (N, h, w, c) uint8; index (n,) int64; shifts (n, 2) int32, (down, right), what moves in is 0; flips (n,)
        bool, left to right, before the shift; centres (n, 2) int32, (row, column) in out of a square of side `cutout`
        that becomes 0 after normalization, not looked at where `cutout` is 0; mean, std (c,) in the units of `images`;
        out (n, h, w, c).
        """

    def gather_labels(self, labels: Array, index: Array, out: Array) -> None:
        """Out (n,) = labels[index], int64."""
