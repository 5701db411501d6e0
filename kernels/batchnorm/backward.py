"""Batch normalization backward. The definition is in reference.py.

With g = dy (behind a ReLU: dy where forward's y > 0, else 0) and centred = (x - shift) - delta, in three launches:

    sums over rows         s = sum g        p = sum g * centred                     two stages
    dbeta = s              dgamma = p * inv_std
    dx = scale * ((g - mean_g) - centred * slope)       through the batch's statistics
    dx = scale * g                                      through fixed ones

with scale = gamma * inv_std, mean_g = s / rows and slope = dgamma * inv_std / rows.

A ReLU's mask is computed again from x, which is read anyway. At the end of a residual block that would take the
residual too, so the mask is taken from y; the first launch then writes dresidual = g, and the last reads that in the
place of dy and y.

Shapes   x, y, dy, dx, dresidual (..., c) of one storage (kernels/storage.py), C-contiguous, taken as (rows, c); all
         others (c,) float32. Sums are of the numbers as they are stored. A mask is taken as forward saw it: from its
         float32 result where x gives it, before that was rounded; from y where a residual was added, after.
Traffic  x and dy twice, dx once; with a residual x twice, dy and y once, dresidual written once and read once, dx once.
         Through fixed statistics without gamma and beta: dy once (and x once for a ReLU's mask), dx once. The last
         launch visits the rows in the reverse of the first one's order, so what that read last comes from L2
         (`Split.way_back`); no bit depends on it. persistent_backward.py reads x and dy once, persistent_residual.py x,
         y and dy, and dresidual not at all.
Edges    A NaN or an infinity poisons its own channel and no other. No rows: dgamma = dbeta = 0.
"""

from kernels.arrays import wide
from kernels.batch_statistics import BatchStatistics, GradientSums
from kernels.batchnorm.apply import is_affine, mean_and_scale, read
from kernels.batchnorm.passes import mask_and_sum_gradients, subtract, sum_gradients
from kernels.batchnorm.persistent_backward import (
    batchnorm_backward_persistent_scalar,
    batchnorm_backward_persistent_vector,
)
from kernels.batchnorm.persistent_residual import (
    batchnorm_add_relu_backward_persistent_scalar,
    batchnorm_add_relu_backward_persistent_vector,
)
from kernels.batchnorm.residency import Residency, numbers, resident, why_resident
from kernels.batchnorm.split import Split, require_channels, split
from kernels.choice import Option, choose
from kernels.device import index_type
from kernels.errors import same_shape
from kernels.launch import Array, Runner, blocks_for, techniques
from kernels.storage import common_storage, storage_of


@techniques("scalar", "vector", "persistent")
def batchnorm_backward(
    run: Runner,
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
    *,
    technique: str | None = None,
) -> None:
    """dx, and dgamma and dbeta where they are wanted; through the batch's statistics where `training`.

    Three launches on `run`; one where x and dy fit on the chip of its GPU ("persistent", persistent_backward.py) or
    where no sums are needed, so that every technique reads everything once and "persistent" is as good as any.

    Raises:
        ShapeError: dy and dx are not of x's shape, or another array not (c,).
        TypeError: Only one of gamma and beta is given, images are not of one storage, or another array not float32.
        TechniqueError: "persistent" is asked for, and x and dy do not fit; or "vector", and c is no multiple of 4 (of 8
            in 16 bits) or an array starts at no multiple of 16 bytes.
    """
    operation = "batchnorm_backward"
    channels = {"gamma": gamma, "beta": beta, "dgamma": dgamma, "dbeta": dbeta}
    rows = require_channels(operation, x, **statistics._asdict(), **channels)
    same_shape(operation, x=x, dy=dy, dx=dx)
    storage = common_storage(operation, x=x, dy=dy, dx=dx)
    affine, parameters = is_affine(operation, gamma, beta, statistics)
    wants_sums = training or dgamma is not None or dbeta is not None
    others = {"dy": dy, "dx": dx, **read(statistics), "gamma": gamma, "beta": beta}
    if wants_sums and rows and (technique == "persistent" or (technique is None and numbers(run) is not None)):
        aligned = dy, dx, *mean_and_scale(statistics), *parameters
        chosen, found = _choose(run, operation, technique, x, aligned, "x and dy", others)
        if found is not None:
            gradients, modes = (dx, dgamma, dbeta), (affine, training, relu)
            _launch_persistent(run, found, x, dy, statistics, parameters, gradients, modes)
            return
        parts = Split(int(x.shape[-1]), storage.wide if chosen == "vector" else 1)
    else:  # without sums nothing is read twice, so there is nothing to hold
        parts = split(run, operation, None if technique == "persistent" else technique, storage, x, **others)
    subtracted = statistics.inv_std, statistics.inv_std  # not read
    if wants_sums:
        sums = _sums(run, parts, dgamma, dbeta)
        sum_gradients(run, parts, x, dy, statistics, parameters, sums, affine, relu)
        subtracted = sums.mean_g, sums.slope
    subtract(run, parts, x, dy, statistics, parameters, subtracted, dx, (affine, training, relu))


@techniques("scalar", "vector", "persistent")
def batchnorm_add_relu_backward(
    run: Runner,
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
    *,
    technique: str | None = None,
) -> None:
    """Backward of `batchnorm_add_relu_apply`, whose output was y: dx, dresidual and, where wanted, dgamma and dbeta.

    Three launches on `run`; one where x and dresidual fit on the chip of its GPU ("persistent",
    persistent_residual.py). Otherwise as `batchnorm_backward`.

    Raises:
        ShapeError: y, dy, dx and dresidual are not of x's shape, or another array not (c,).
        TypeError, TechniqueError: As `batchnorm_backward`.
    """
    operation = "batchnorm_add_relu_backward"
    rows = require_channels(operation, x, **statistics._asdict(), gamma=gamma, dgamma=dgamma, dbeta=dbeta)
    same_shape(operation, x=x, y=y, dy=dy, dx=dx, dresidual=dresidual)
    storage = common_storage(operation, x=x, y=y, dy=dy, dx=dx, dresidual=dresidual)
    affine, parameters = is_affine(operation, gamma, gamma, statistics)  # beta is in y; here it is not read
    arrays = {"y": y, "dy": dy, "dx": dx, "dresidual": dresidual, **read(statistics), "gamma": gamma}
    if rows and (technique == "persistent" or (technique is None and numbers(run) is not None)):
        aligned = y, dy, dx, dresidual, *mean_and_scale(statistics), *parameters
        chosen, found = _choose(run, operation, technique, x, aligned, "x and dresidual", arrays)
        if found is not None:
            _launch_residual(
                run, found, x, y, dy, statistics, parameters[0], dresidual, (dx, dgamma, dbeta), (affine, training)
            )
            return
        parts = Split(int(x.shape[-1]), storage.wide if chosen == "vector" else 1)
    else:  # without rows there is nothing to hold
        parts = split(run, operation, None if technique == "persistent" else technique, storage, x, **arrays)
    sums = _sums(run, parts, dgamma, dbeta)
    mask_and_sum_gradients(run, parts, x, y, dy, statistics, dresidual, sums)
    subtracted = sums.mean_g, sums.slope
    subtract(run, parts, x, dresidual, statistics, parameters, subtracted, dx, (affine, training, False))


def _choose(
    run: Runner,
    operation: str,
    technique: str | None,
    x: Array,
    aligned: tuple[Array, ...],
    held: str,
    arrays: dict[str, Array | None],
) -> tuple[str, Residency | None]:
    """The technique, and where to keep what of x and another tensor if that is "persistent"; `held` names them."""
    storage = storage_of(x)
    found = resident(run, storage, x, *aligned, tensors=2)
    options: tuple[Option, ...] = (
        ("persistent", found is not None, lambda: why_resident(run, x, found, held)),
        ("vector", x.shape[-1] % storage.wide == 0 and wide(x, *aligned), ""),
        ("scalar", True, ""),
    )
    chosen = choose(run, operation, technique, options, x=x, **arrays)
    return chosen, found if chosen == "persistent" else None


def _sums(run: Runner, parts: Split, dgamma: Array | None, dbeta: Array | None) -> GradientSums:
    """With scratch memory for what dx subtracts."""
    return GradientSums(dgamma, dbeta, run.empty((parts.channels,)), run.empty((parts.channels,)))


def _launch_persistent(
    run: Runner,
    found: Residency,
    x: Array,
    dy: Array,
    statistics: BatchStatistics,
    parameters: tuple[Array, Array],
    gradients: tuple[Array, Array | None, Array | None],
    options: tuple[bool, bool, bool],
) -> None:
    parts, kept, span = found
    rows, channels = x.size // parts.channels, parts.channels
    factory = batchnorm_backward_persistent_vector if parts.width > 1 else batchnorm_backward_persistent_scalar
    chosen = factory(channels, *options, kept, index_type(x.size), storage_of(x))
    dx, dgamma, dbeta = gradients
    dgamma, dbeta = (run.empty((channels,)) if array is None else array for array in (dgamma, dbeta))
    arrays = x, dy, *mean_and_scale(statistics), *parameters, dgamma, dbeta, dx
    run(chosen, *arrays, run.empty((2, blocks_for(rows, span), channels)), run.barrier(), rows, span)


def _launch_residual(
    run: Runner,
    found: Residency,
    x: Array,
    y: Array,
    dy: Array,
    statistics: BatchStatistics,
    gamma: Array,
    dresidual: Array,
    gradients: tuple[Array, Array | None, Array | None],
    options: tuple[bool, bool],
) -> None:
    parts, kept, span = found
    rows, channels = x.size // parts.channels, parts.channels
    vector = parts.width > 1
    factory = batchnorm_add_relu_backward_persistent_vector if vector else batchnorm_add_relu_backward_persistent_scalar
    chosen = factory(channels, *options, kept, index_type(x.size), storage_of(x))
    dx, dgamma, dbeta = gradients
    dgamma, dbeta = (run.empty((channels,)) if array is None else array for array in (dgamma, dbeta))
    arrays = x, y, dy, *mean_and_scale(statistics), gamma, dresidual, dgamma, dbeta, dx
    run(chosen, *arrays, run.empty((2, blocks_for(rows, span), channels)), run.barrier(), rows, span)
