"""Training's forward of batch normalization: in one launch where x fits on the chip, else statistics and their use.

The one launch is persistent.py; statistics.py and apply.py are the others, and say what shapes and edges there are.
"""

from kernels.batch_statistics import BatchStatistics
from kernels.batchnorm.apply import batchnorm_add_relu_apply, batchnorm_apply, is_affine
from kernels.batchnorm.persistent import batchnorm_forward_persistent_scalar, batchnorm_forward_persistent_vector
from kernels.batchnorm.residency import numbers, resident, why_resident
from kernels.batchnorm.split import require_channels
from kernels.batchnorm.statistics import batchnorm_statistics
from kernels.choice import Option, choose
from kernels.device import index_type
from kernels.errors import ShapeError, same_shape
from kernels.launch import Array, Runner, blocks_for, techniques
from kernels.storage import common_storage


@techniques("two_pass", "persistent")
def batchnorm_forward(
    run: Runner,
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    eps: float,
    out: BatchStatistics,
    y: Array,
    relu: bool,
    residual: Array | None = None,
    *,
    technique: str | None = None,
) -> None:
    """Training's forward: the statistics of the batch x (..., c) into the four (c,) arrays of `out`, and y by them.

    With a residual y = max(normalized x + residual, 0), the end of a residual block, and `relu` is true; else max(y, 0)
    where `relu`. gamma and beta (c,) or both None. One launch on `run` where x fits on the chip of its GPU and this
    technique is chosen ("persistent"), else three.

    Raises:
        ShapeError: x has no channels or no rows, y or residual is not of its shape, or another array not (c,).
        TypeError: Only one of gamma and beta is given, images are not of one storage, or another array not float32.
        ValueError: A residual without `relu`.
        TechniqueError: technique is "persistent" and x does not fit.
    """
    operation = "batchnorm_forward"
    rows = require_channels(operation, x, **out._asdict(), gamma=gamma, beta=beta)
    same_shape(operation, x=x, y=y, **({} if residual is None else {"residual": residual}))
    if rows == 0:
        raise ShapeError(f"{operation}: x has shape {tuple(x.shape)}, expected at least one row")
    storage = common_storage(operation, x=x, y=y, **({} if residual is None else {"residual": residual}))
    affine, (scale, offset) = is_affine(operation, gamma, beta, out)
    if residual is not None and not relu:
        raise ValueError(f"{operation}: a residual is added before a ReLU; give relu=True")
    other = x if residual is None else residual
    found = resident(run, storage, x, y, other, scale, offset, tensors=1)
    persistent: Option = "persistent", found is not None, lambda: why_resident(run, x, found, "x")
    plain: Option = "two_pass", True, "three launches, for any size and any GPU"
    options = (plain, persistent) if numbers(run) is None else (persistent, plain)
    arrays = {"x": x, "y": y, "residual": residual}
    if choose(run, operation, technique, options, **arrays) == "two_pass" or found is None:
        batchnorm_statistics(run, x, eps, out)
        if residual is None:
            batchnorm_apply(run, x, out, gamma, beta, y, relu)
        else:
            batchnorm_add_relu_apply(run, x, residual, out, gamma, beta, y)
        return
    parts, kept, span = found
    vector = parts.width > 1
    factory = batchnorm_forward_persistent_vector if vector else batchnorm_forward_persistent_scalar
    chosen = factory(parts.channels, affine, relu, residual is not None, kept, index_type(x.size), storage)
    partial = run.empty((3, blocks_for(rows, span), parts.channels))
    run(chosen, x, other, scale, offset, *out, y, partial, run.barrier(), rows, span, eps)
